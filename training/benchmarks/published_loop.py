"""The training loop that a user would write first, and that was published with the paper.

All images lie in memory as float32 tensors (3, H, W), a DataLoader collates them, arithmetic is
float32, and every step computes its metrics and appends a line to a CSV file. Network, loss and
optimiser are those of our trainer.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from pose_reloc.geometry import network_from_pose
from pose_reloc.network import PoseRegressor
from pose_reloc.preprocess import normalize
from training.cache import TrainingCache
from training.losses import LossSettings, PoseTarget, build_loss


class PublishedLoop:
    """See the module.

    Args:
        cache: whose images are unpacked.
        loss: its settings.
        batch: images of a step.
        device: that trains.
        log: the CSV file.
    """

    def __init__(
        self, cache: TrainingCache, loss: LossSettings, batch: int, device: str, log: Path
    ):
        w_t_c, c_q_w = (
            torch.from_numpy(x).float() for x in network_from_pose(cache.world_T_camera)
        )
        images = [normalize(torch.from_numpy(image[None].copy()))[0] for image in cache.images]
        tensors = [torch.stack(images).contiguous(), w_t_c, c_q_w]
        if cache.depth_range is not None:
            tensors.append(torch.from_numpy(cache.depth_range.copy()).float())
        self._loader = DataLoader(TensorDataset(*tensors), batch, shuffle=True, drop_last=True)
        self._network = PoseRegressor().to(device).train()
        self._loss = build_loss(loss, cache.global_depth_range).to(device)
        self._optimizer = torch.optim.Adam(
            [*self._network.parameters(), *self._loss.parameters()],
            lr=1e-4,
            eps=self._loss.adam_eps,
        )
        self._device, self._log = device, log

    def epoch(self) -> None:
        """Trains on every image once."""
        for batch in self._loader:
            image, *target = (tensor.to(self._device) for tensor in batch)
            target = PoseTarget(*target)
            prediction = self._network(image)
            loss = self._loss(prediction, target)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._write(loss, prediction, target)

    def _write(self, loss, prediction, target) -> None:
        with torch.no_grad():
            metres = (prediction.w_t_c - target.w_t_c).norm(dim=1)
            q_hat = prediction.c_q_w / prediction.c_q_w.norm(dim=1, keepdim=True)
            radians = 2 * torch.acos((q_hat * target.c_q_w).sum(1).abs().clamp(max=1))
        row = [loss.item(), metres.median().item(), torch.rad2deg(radians).median().item()]
        with open(self._log, 'a', newline='') as file:
            csv.writer(file).writerow(row)
