"""The training loop: posed images to a PoseRegressor.

An epoch draws a random permutation of the training images; each batch gathers cached uint8 images,
renders new views of them, normalises on the device and takes one Adam step. All randomness of an
epoch comes from (seed, epoch), so a resumed run continues as if it had not stopped. Under
`torchrun` every process takes its share of each batch and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pose_reloc.errors import TrainingError
from pose_reloc.geometry import pose_error, pose_from_network
from pose_reloc.network import PoseRegressor, load_backbone_weights
from pose_reloc.preprocess import normalize
from pose_reloc.relocalizer import PRECISIONS, choose_device
from training import checkpoint
from training.batches import Batches
from training.cache import TrainingCache
from training.losses import HomoscedasticLoss, build_loss
from training.metrics import pose_metrics
from training.run_folder import RunFolder
from training.settings import TrainSettings

_BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}'


@dataclass
class TrainingResult:
    """What a run leaves behind.

    Attributes:
        network: the best state, on the CPU, in evaluation mode.
        start_backbone: state dict of the backbone before training.
        history: one row per validation: epoch, loss, medians.
        recipe: what a scene file should remember of the run.
        world_T_camera_held_out: pairs (truth, estimate) of the held-out frames, each (N, 4, 4).
    """

    network: PoseRegressor
    start_backbone: dict[str, torch.Tensor]
    history: list[dict] = field(default_factory=list)
    recipe: dict = field(default_factory=dict)
    world_T_camera_held_out: tuple[np.ndarray, np.ndarray] | None = None


def train(
    cache: TrainingCache,
    sequences: list[str],
    settings: TrainSettings,
    folder: Path | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Trains a PoseRegressor.

    Args:
        cache: of the training split.
        sequences: the sequence of each cached image, for the held-out blocks.
        settings: see TrainSettings.
        folder: where checkpoints, metrics and curves go; None keeps nothing.
        resume: continue from the checkpoint in `folder` if there is one.

    Raises:
        TrainingError: fewer images than one batch, the loss diverged, or a checkpoint of another
            run. The last good checkpoint is kept.
        SettingsError, WeightsError: settings that cannot work here.
    """
    trainer = Trainer(cache, sequences, settings, folder)
    if resume:
        trainer.resume()
    trainer.loop()
    return trainer.result()


def held_out_blocks(world_T_camera_N44, sequences: list[str], fraction: float) -> np.ndarray:
    """Mask (N,) of frames kept out of training: evenly spaced blocks of consecutive frames.

    Single frames between two training frames would only measure interpolation. A block lasts until
    the camera has moved by 0.5 m or turned by 20 deg, so that its middle lies as far from the
    nearest training frame as another visit's frames do.

    Args:
        world_T_camera_N44: poses of the frames.
        sequences: the sequence of each frame; frames of one follow each other in time.
        fraction: of the frames to keep out; 0 keeps none. Each sequence loses at least one block
            and at most half of its frames.
    """
    mask = np.zeros(len(sequences), dtype=bool)
    if fraction <= 0:
        return mask
    for name in dict.fromkeys(sequences):
        index = np.flatnonzero(np.array(sequences) == name)
        poses = world_T_camera_N44[index]
        metres, radians = pose_error(poses[:-1], poses[1:])
        travelled = np.concatenate([[0.0], np.cumsum(metres / 0.5 + radians / np.deg2rad(20))])
        block = travelled.astype(int)  # number of the block that each frame belongs to
        count = block[-1] + 1
        chosen = max(1, round(fraction * count))
        kept_out = ((np.arange(chosen) + 0.5) * count / chosen).astype(int)
        candidates = index[np.isin(block, kept_out)]
        mask[candidates[: len(index) // 2]] = True
    return mask


class _Objective(nn.Module):
    """Network and losses as one module, so that one wrapper averages all their gradients."""

    def __init__(self, network: PoseRegressor, loss: nn.Module, warm_up: nn.Module | None):
        super().__init__()
        self.network, self.loss, self.warm_up = network, loss, warm_up

    def forward(self, image_B3HW, target, warming_up: bool, dtype: torch.dtype):
        with _autocast(image_B3HW.device, dtype):
            prediction = self.network(image_B3HW)
        return (self.warm_up if warming_up else self.loss)(prediction, target)


class Trainer:
    """One run. See `train`."""

    def __init__(self, cache, sequences, settings: TrainSettings, folder: Path | None = None):
        torch.manual_seed(settings.seed)
        self.settings, self.cache, self.folder = settings, cache, folder
        self.rank, self.world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = _local_device(settings.device)
        self.dtype = _training_dtype(settings.precision, self.device)
        held_out = held_out_blocks(cache.world_T_camera, sequences, settings.validation)
        self.train_index = torch.from_numpy(np.flatnonzero(~held_out))
        self.held_out_index = np.flatnonzero(held_out)
        if len(self.train_index) < settings.batch:
            raise TrainingError(
                f'{len(self.train_index)} training images are fewer than one batch of '
                f'{settings.batch}; use --batch {max(2, len(self.train_index) // 2)} or less'
            )
        if settings.batch % self.world:
            raise TrainingError(
                f'a batch of {settings.batch} cannot be shared by {self.world} processes; '
                'use a multiple of their number'
            )
        self.batches = Batches(cache, self.device, settings.views)
        self.network, self.weights = self._network()
        self.objective = self._objective()
        self.optimizer = torch.optim.Adam(
            self.objective.parameters(),
            lr=settings.learning_rate,
            eps=_loss(self.objective).adam_eps,
            fused=True,
        )
        self.run_folder = RunFolder(folder, settings.to_dict()) if folder and self._leads else None
        self.epoch = self.images_seen = 0
        self.seconds_before = 0.0  # of the run before it was resumed
        self.next_checkpoint = 0.0
        self.last_result = ''
        self.history: list[dict] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_score = math.inf
        self.started = time.perf_counter()

    def _network(self):
        network = PoseRegressor(self.settings.network)
        weights = load_backbone_weights(network, self.settings.backbone_weights)
        self.start_backbone = {k: v.clone() for k, v in network.backbone.state_dict().items()}
        if self.settings.normalize_translation:
            poses = self.cache.world_T_camera[self.train_index.numpy()]
            centre = poses[:, :3, 3].mean(0)
            spread = np.sqrt(((poses[:, :3, 3] - centre) ** 2).sum(1).mean())
            network.translation_mean.copy_(torch.from_numpy(centre))
            network.translation_scale.fill_(float(max(spread, 1e-3)))
        return network.to(self.device, memory_format=torch.channels_last), weights

    def _objective(self) -> nn.Module:
        loss = build_loss(self.settings.loss, self.cache.global_depth_range)
        warm_up = HomoscedasticLoss() if loss.name == 'geometric' else None
        objective = _Objective(self.network, loss, warm_up).to(self.device)
        if self.world == 1:
            return objective
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('nccl' if self.device.type == 'cuda' else 'gloo')
        if self.device.type == 'cuda':
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
            self.network = objective.network
        return nn.parallel.DistributedDataParallel(
            objective, find_unused_parameters=warm_up is not None
        )

    @property
    def _leads(self) -> bool:
        """True in the one process that writes and prints."""
        return self.rank == 0

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_index) // self.settings.batch

    @property
    def seconds(self) -> float:
        """Time spent training, before and after a resume."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]: of the minutes where given, else the epochs."""
        if self.settings.minutes is None:
            return self.epoch / self.settings.epochs
        return min(1.0, self._agreed(self.seconds) / (self.settings.minutes * 60))

    def _agreed(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def loop(self) -> None:
        """Trains until the epochs or the minutes are over."""
        settings = self.settings
        hidden = None if self._leads else True
        with tqdm(total=100, desc='training', disable=hidden, bar_format=_BAR) as bar:
            while (progress := self.progress) < 1:
                value = self._one_epoch(progress, bar)
                if not math.isfinite(value):
                    raise TrainingError(self._divergence(value))
                self.epoch += 1
                done = self.progress >= 1
                if self.epoch % settings.validate_every == 0 or done:
                    self._validate(value, bar)
                if self.folder and self._leads and not done:
                    self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        """Saves after an epoch, but spends at most 5 % of the time on it when epochs are short."""
        start = time.perf_counter()
        if start < self.next_checkpoint:
            return
        checkpoint.save(self.folder, self._state())
        end = time.perf_counter()
        self.next_checkpoint = end + 20 * (end - start)

    def _divergence(self, value: float) -> str:
        kept = ''
        if self.folder and self.epoch:
            kept = f'; the last checkpoint is kept in {self.folder}'
        return (
            f'the loss became {value} in epoch {self.epoch + 1}: lower --learning-rate (now '
            f'{self.settings.learning_rate}) or check the poses with `pose_reloc inspect`{kept}'
        )

    def _one_epoch(self, progress: float, bar) -> float:
        settings = self.settings
        seed = int.from_bytes(
            hashlib.sha256(f'{settings.seed}/{self.epoch}'.encode()).digest()[:7], 'big'
        )
        torch.manual_seed(seed + self.rank)  # dropout
        generator = torch.Generator().manual_seed(seed)
        order = self.train_index[torch.randperm(len(self.train_index), generator=generator)]
        views = torch.Generator().manual_seed(seed + 1 + self.rank)
        share = settings.batch // self.world
        self.objective.train()
        total = torch.zeros((), device=self.device)
        for step in range(self.steps_per_epoch):
            self._set_learning_rate(progress, step / self.steps_per_epoch)
            start = step * settings.batch + self.rank * share
            total += self._step(order[start : start + share], progress, views)
            self.images_seen += settings.batch
            self._show(bar)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total) / self.steps_per_epoch / self.world  # the epoch's only synchronisation

    def _step(self, index: torch.Tensor, progress: float, generator) -> torch.Tensor:
        image, target = self.batches.batch(index, progress, generator)
        warming_up = (
            self.settings.loss.name == 'geometric' and progress < self.settings.geometric_warmup
        )
        loss = self.objective(image, target, warming_up, self.dtype)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _set_learning_rate(self, progress: float, fraction_of_epoch: float) -> None:
        settings = self.settings
        if settings.minutes is None:
            progress += fraction_of_epoch / settings.epochs
        rate = settings.learning_rate
        if settings.schedule == 'cosine':
            rate *= 0.5 * (1 + math.cos(math.pi * progress))
        if progress < settings.warmup:
            rate *= max(progress / settings.warmup, 0.01)
        for group in self.optimizer.param_groups:
            group['lr'] = rate

    def _show(self, bar) -> None:
        rate = self.images_seen / max(self.seconds, 1e-9)
        bar.set_postfix_str(f'epoch {self.epoch + 1}, {rate:.0f} img/s{self.last_result}', False)
        if self.settings.minutes is None:
            within = self.images_seen / self.settings.batch / self.steps_per_epoch
            done = within / self.settings.epochs
        else:
            done = self.seconds / (self.settings.minutes * 60)
        bar.update(round(100 * min(done, 1.0), 1) - bar.n)

    def _validate(self, loss: float, bar) -> None:
        row = {'epoch': self.epoch, 'seconds': round(self.seconds, 1), 'loss': loss}
        index = self.held_out_index
        self.last_result = f', loss {loss:.3g}'
        score = -self.epoch  # nothing held out: the last state
        if len(index):
            metrics = pose_metrics(self.cache.world_T_camera[index], self.predict(index))
            row |= {k: metrics[k] for k in ('median_position_m', 'median_rotation_deg')}
            # Scale-free: the product falls by the same factor as either of the two medians.
            score = metrics['median_position_m'] * metrics['median_rotation_deg']
            self.last_result += (
                f', held out {row["median_position_m"]:.2f} m {row["median_rotation_deg"]:.1f} deg'
            )
        self._show(bar)
        self.history.append(row)
        if self.run_folder:
            self.run_folder.add(self.history)
        if score < self.best_score:
            self.best_score = score
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def predict(self, index: np.ndarray) -> np.ndarray:
        """Poses (N, 4, 4) of cached images in evaluation mode."""
        self.network.eval()
        poses = []
        with torch.inference_mode(), _autocast(self.device, self.dtype):
            for start in range(0, len(index), self.settings.batch):
                image = self.batches.images(index[start : start + self.settings.batch])
                w_t_c, c_q_w = (x.double().cpu().numpy() for x in self.network(normalize(image)))
                poses.append(pose_from_network(w_t_c, c_q_w))
        return np.concatenate(poses)

    def _data_key(self) -> str:
        return hashlib.sha256(self.cache.world_T_camera.tobytes()).hexdigest()

    def _state(self) -> dict:
        return {
            'settings': self.settings.to_dict(),
            'data_key': self._data_key(),
            'objective': _plain(self.objective).state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'best': self.best,
            'best_score': self.best_score,
            'history': self.history,
            'epoch': self.epoch,
            'images_seen': self.images_seen,
            'seconds': self.seconds,
        }

    def resume(self) -> None:
        """Continues from the checkpoint in the run folder, if there is one.

        Raises:
            TrainingError: it is damaged or belongs to another run.
        """
        if self.folder is None:
            return
        state = checkpoint.load(self.folder, self.settings.to_dict(), self._data_key())
        if state is None:
            return
        _plain(self.objective).load_state_dict(state['objective'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.best, self.best_score = state['best'], state['best_score']
        self.history, self.epoch = state['history'], state['epoch']
        self.images_seen, self.seconds_before = state['images_seen'], state['seconds']
        self.started = time.perf_counter()

    def result(self) -> TrainingResult:
        """The best state and what is known of the run."""
        seconds = self.seconds
        self.network.load_state_dict(self.best)
        held_out = None
        index = self.held_out_index
        if len(index):
            held_out = (self.cache.world_T_camera[index], self.predict(index))
        recipe = {
            'settings': self.settings.to_dict(),
            'epochs': self.epoch,
            'images_per_second': round(self.images_seen / seconds, 1),
            'backbone_weights': self.weights,
            'images': len(self.train_index),
            'images_held_out': len(index),
            'seconds': round(seconds, 1),
            'device': str(self.device),
            'precision': str(self.dtype).removeprefix('torch.'),
            'history': self.history,
        }
        network = self.network.cpu().eval()
        return TrainingResult(network, self.start_backbone, self.history, recipe, held_out)


def _plain(objective: nn.Module) -> _Objective:
    """The objective without the wrapper that averages gradients."""
    wrapped = isinstance(objective, nn.parallel.DistributedDataParallel)
    return objective.module if wrapped else objective


def _loss(objective: nn.Module):
    return _plain(objective).loss


def _autocast(device: torch.device, dtype: torch.dtype):
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _local_device(name: str) -> torch.device:
    device = choose_device(name)
    if device.type == 'cuda' and 'LOCAL_RANK' in os.environ:
        return choose_device(f'cuda:{os.environ["LOCAL_RANK"]}')
    return device


def _training_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != 'auto':
        return PRECISIONS[name]
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Emulated bf16 is slower than float32: only where the processor has the instructions.
    has = _cpu_flags() & {'avx512_bf16', 'amx_bf16'}
    return torch.bfloat16 if has else torch.float32


def _cpu_flags() -> set[str]:
    try:
        with open('/proc/cpuinfo') as file:
            return next((set(line.split()) for line in file if line.startswith('flags')), set())
    except OSError:
        return set()
