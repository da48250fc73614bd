"""The training loop: posed images to a scene model.

An epoch draws a random permutation of the training images; each batch gathers cached uint8 images,
renders new views of them (view_synthesis), normalises on the device and takes one Adam step. All
randomness of an epoch comes from (seed, epoch).
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from pose_reloc.errors import TrainingError
from pose_reloc.geometry import network_from_pose, pose_from_network
from pose_reloc.network import PoseRegressor, load_backbone_weights
from pose_reloc.preprocess import normalize
from pose_reloc.relocalizer import PRECISIONS, choose_device
from training.cache import TrainingCache
from training.losses import PoseTarget, build_loss
from training.metrics import pose_metrics
from training.settings import TrainSettings
from training.view_synthesis import change_light, render_views, sample_motion


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


def train(cache: TrainingCache, sequences: list[str], settings: TrainSettings) -> TrainingResult:
    """Trains a PoseRegressor.

    Args:
        cache: of the training split.
        sequences: the sequence of each cached image, for the held-out blocks.
        settings: see TrainSettings.

    Raises:
        TrainingError: fewer images than one batch, or the loss diverged.
        SettingsError, WeightsError: settings that cannot work here.
    """
    trainer = _Trainer(cache, sequences, settings)
    trainer.loop()
    return trainer.result()


def held_out_blocks(sequences: list[str], fraction: float, block: int = 20) -> np.ndarray:
    """Mask (N,) of frames kept out of training: evenly spaced blocks of consecutive frames.

    Single frames between two training frames would only measure interpolation; a block shows what
    happens where no training image is near.
    """
    mask = np.zeros(len(sequences), dtype=bool)
    if fraction <= 0:
        return mask
    for name in dict.fromkeys(sequences):
        index = np.flatnonzero(np.array(sequences) == name)
        length = min(block, max(1, round(fraction * len(index))))
        blocks = max(1, round(fraction * len(index) / length))
        for k in range(blocks):
            start = int((k + 0.5) * len(index) / blocks - length / 2)
            mask[index[max(0, start) : start + length]] = True
    return mask


class _Trainer:
    def __init__(self, cache, sequences, settings: TrainSettings):
        torch.manual_seed(settings.seed)
        self.settings, self.cache = settings, cache
        self.device = choose_device(settings.device)
        self.dtype = _training_dtype(settings.precision, self.device)
        held_out = held_out_blocks(sequences, settings.validation)
        self.train_index = torch.from_numpy(np.flatnonzero(~held_out))
        self.held_out_index = np.flatnonzero(held_out)
        if len(self.train_index) < settings.batch:
            raise TrainingError(
                f'{len(self.train_index)} training images are fewer than one batch of '
                f'{settings.batch}; use --batch {max(2, len(self.train_index) // 2)} or less'
            )
        self.data = _Data(cache, self.device, settings)
        self.network, self.weights = self._network()
        self.loss = build_loss(settings.loss, cache.global_depth_range).to(self.device)
        self.optimizer = torch.optim.Adam(
            [*self.network.parameters(), *self.loss.parameters()],
            lr=settings.learning_rate,
            eps=self.loss.adam_eps,
            fused=True,
        )
        self.images_seen = 0
        self.last_result = ''
        self.epoch = 0
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

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_index) // self.settings.batch

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]: of the minutes where given, else of the epochs."""
        if self.settings.minutes is None:
            return self.epoch / self.settings.epochs
        return min(1.0, (time.perf_counter() - self.started) / (self.settings.minutes * 60))

    def loop(self) -> None:
        settings = self.settings
        with tqdm(total=100, desc='training', unit='%', disable=None, bar_format=_BAR) as bar:
            while self.progress < 1:
                value = self._one_epoch(bar)
                self.epoch += 1
                if not math.isfinite(value):
                    raise TrainingError(
                        f'the loss became {value} in epoch {self.epoch}; lower --learning-rate '
                        f'(now {settings.learning_rate}) or check the poses with `pose_reloc inspect`'
                    )
                if self.epoch % settings.validate_every == 0 or self.progress >= 1:
                    self._validate(value, bar)

    def _one_epoch(self, bar) -> float:
        settings = self.settings
        generator = torch.Generator().manual_seed(hash((settings.seed, self.epoch)) % 2**63)
        order = self.train_index[torch.randperm(len(self.train_index), generator=generator)]
        self.network.train()
        total = torch.zeros((), device=self.device)
        for step in range(self.steps_per_epoch):
            self._set_learning_rate(step / self.steps_per_epoch)
            index = order[step * settings.batch : (step + 1) * settings.batch]
            total += self._step(index, generator)
            self.images_seen += len(index)
            self._show(bar)
        return float(total) / self.steps_per_epoch  # the only synchronisation of the epoch

    def _step(self, index: torch.Tensor, generator) -> torch.Tensor:
        image, target = self.data.batch(index, generator)
        with self._autocast():
            prediction = self.network(image)
        loss = self.loss(prediction, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _set_learning_rate(self, fraction_of_epoch: float) -> None:
        settings = self.settings
        progress = self.progress
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
        rate = self.images_seen / (time.perf_counter() - self.started)
        bar.set_postfix_str(f'epoch {self.epoch + 1}, {rate:.0f} img/s{self.last_result}', False)
        bar.update(round(100 * self.progress, 1) - bar.n)

    def _validate(self, loss: float, bar) -> None:
        row = {'epoch': self.epoch, 'seconds': time.perf_counter() - self.started, 'loss': loss}
        index = self.held_out_index
        if len(index):
            metrics = pose_metrics(self.cache.world_T_camera[index], self.predict(index))
            row |= {k: metrics[k] for k in ('median_position_m', 'median_rotation_deg')}
            # Scale-free: the product falls by the same factor as either of the two medians.
            score = metrics['median_position_m'] * metrics['median_rotation_deg']
            self.last_result = (
                f', loss {loss:.3g}, held out {row["median_position_m"]:.2f} m '
                f'{row["median_rotation_deg"]:.1f} deg'
            )
        else:
            score = -self.epoch  # nothing held out: the last state
            self.last_result = f', loss {loss:.3g}'
        self._show(bar)
        self.history.append(row)
        if score < self.best_score:
            self.best_score = score
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def predict(self, index: np.ndarray) -> np.ndarray:
        """Poses (N, 4, 4) of cached images in evaluation mode."""
        self.network.eval()
        poses = []
        with torch.inference_mode(), self._autocast():
            for start in range(0, len(index), self.settings.batch):
                image = self.data.images(index[start : start + self.settings.batch])
                w_t_c, c_q_w = (x.double().cpu().numpy() for x in self.network(normalize(image)))
                poses.append(pose_from_network(w_t_c, c_q_w))
        return np.concatenate(poses)

    def result(self) -> TrainingResult:
        self.network.load_state_dict(self.best)
        held_out = None
        if len(self.held_out_index):
            held_out = (
                self.cache.world_T_camera[self.held_out_index],
                self.predict(self.held_out_index),
            )
        seconds = time.perf_counter() - self.started
        recipe = {
            'settings': self.settings.to_dict(),
            'epochs': self.epoch,
            'images_per_second': round(self.images_seen / seconds, 1),
            'backbone_weights': self.weights,
            'images': len(self.train_index),
            'images_held_out': len(self.held_out_index),
            'seconds': round(seconds, 1),
            'device': str(self.device),
            'precision': str(self.dtype).removeprefix('torch.'),
            'history': self.history,
        }
        network = self.network.cpu().eval()
        return TrainingResult(network, self.start_backbone, self.history, recipe, held_out)

    def _autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


class _Data:
    """Cached arrays as batches on the device; on the device as a whole where they fit."""

    def __init__(self, cache: TrainingCache, device: torch.device, settings: TrainSettings):
        self.cache, self.device, self.views = cache, device, settings.views
        self.resident = None
        if device.type == 'cuda':
            free = torch.cuda.mem_get_info(device)[0]
            if cache.images.nbytes < free // 2:
                self.resident = torch.from_numpy(np.array(cache.images)).to(device)
        self.world_T_camera = torch.from_numpy(cache.world_T_camera)
        w_t_c, c_q_w = network_from_pose(cache.world_T_camera)
        self.w_t_c, self.c_q_w = torch.from_numpy(w_t_c), torch.from_numpy(c_q_w)
        self.points = None if cache.points is None else torch.from_numpy(np.array(cache.points))
        if self.views and self.views.sources > 1:
            self.neighbours = _neighbours(cache.world_T_camera)

    def images(self, index) -> torch.Tensor:
        """uint8 (B, H, W, 3) on the device."""
        if self.resident is not None:
            return self.resident[torch.as_tensor(index, device=self.device)]
        return torch.from_numpy(self.cache.images[np.asarray(index)]).to(self.device)

    def batch(self, index: torch.Tensor, generator) -> tuple[torch.Tensor, PoseTarget]:
        """Normalised images (B, 3, H, W) and their targets on the device."""
        if self.views is None:
            return normalize(self.images(index)), self._target(index)
        return self._synthetic(index, generator)

    def _target(self, index: torch.Tensor) -> PoseTarget:
        ranges = self.cache.depth_range
        points = None if self.points is None else self.points[index]
        target = PoseTarget(
            self.w_t_c[index].float(),
            self.c_q_w[index].float(),
            None if ranges is None else torch.from_numpy(ranges[index.numpy()]).float(),
            None if points is None else points.nan_to_num(),
            None if points is None else points.isfinite().all(-1),
        )
        return PoseTarget(*(None if x is None else x.to(self.device) for x in target))

    def _synthetic(self, index: torch.Tensor, generator) -> tuple[torch.Tensor, PoseTarget]:
        views, camera = self.views, self.cache.camera
        has_depth = self.cache.depth is not None
        motion = sample_motion(len(index), views, has_depth, generator).double()
        world_T_view = self.world_T_camera[index] @ motion
        sources = index[:, None]
        if has_depth and views.sources > 1:
            others = self._other_sources(world_T_view, index, views.sources - 1, generator)
            sources = torch.cat([sources, others], 1)
        flat = sources.flatten()
        image = self.images(flat).unflatten(0, sources.shape)
        depth = None
        if has_depth:
            depth = torch.from_numpy(self.cache.depth[flat.numpy()]).to(self.device)
            depth = depth.unflatten(0, sources.shape)
        # World coordinates can be large: poses relative to the view before going to float32.
        view_T_source = torch.linalg.solve(world_T_view[:, None], self.world_T_camera[sources])
        view_T_source = view_T_source.float().to(self.device)
        eye = torch.eye(4, device=self.device).expand(len(index), 4, 4)
        rendered, _ = render_views(image, depth, view_T_source, eye, camera)
        rendered = change_light(rendered, views, generator).permute(0, 2, 3, 1)
        return normalize(rendered), self._view_target(world_T_view, sources)

    def _other_sources(self, world_T_view, index, count: int, generator) -> torch.Tensor:
        """Further training images (B, count) that look where the views look."""
        B = len(index)
        candidates = self.neighbours[index]  # (B, C)
        poses = self.world_T_camera[candidates]
        shift = (poses[..., :3, 3] - world_T_view[:, None, :3, 3]).norm(dim=-1)
        cosine = (poses[..., :3, 2] * world_T_view[:, None, :3, 2]).sum(-1).clamp(-1, 1)
        score = shift + 1.5 * torch.acos(cosine)
        # Some randomness: the same helper every time would be memorised with its flaws.
        score = score + 0.2 * torch.rand(score.shape, generator=generator)
        best = score.topk(min(count, score.shape[1]), largest=False).indices
        return candidates[torch.arange(B)[:, None], best]

    def _view_target(self, world_T_view: torch.Tensor, sources: torch.Tensor) -> PoseTarget:
        """Pose, seen points and depth range of synthetic views, from the sources' points."""
        w_t_c = world_T_view[:, :3, 3]
        c_q_w = torch.from_numpy(network_from_pose(world_T_view.numpy())[1])
        ranges = points = mask = None
        if self.points is not None:
            points = self.points[sources].flatten(1, 2)  # (B, S*K, 3)
            R = world_T_view[:, :3, :3].float()
            p = (points - w_t_c[:, None].float()) @ R
            camera, z = self.cache.camera, p[..., 2]
            u = p[..., 0] / z.clamp(min=1e-3) * camera.fx + camera.cx
            v = p[..., 1] / z.clamp(min=1e-3) * camera.fy + camera.cy
            mask = (z > 0.05) & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
            levels = torch.tensor([0.025, 0.975])
            seen = torch.where(mask, z, torch.nan)
            ranges = torch.nanquantile(seen, levels, dim=1).T
            own = torch.from_numpy(self.cache.depth_range[sources[:, 0].numpy()]).float()
            ranges = torch.where(mask.sum(1, keepdim=True) < 16, own, ranges)
            points = points.nan_to_num()
        target = PoseTarget(w_t_c.float(), c_q_w.float(), ranges, points, mask)
        return PoseTarget(*(None if x is None else x.to(self.device) for x in target))


def _neighbours(world_T_camera: np.ndarray, count: int = 48) -> torch.Tensor:
    """For each image the `count` others (N, C) that lie and look nearest, at least 0.1 apart.

    The distance is metres plus 1.5 times the angle between the optical axes in radians: a nearly
    identical image could not fill what its twin does not see.
    """
    centres, axes = world_T_camera[:, :3, 3], world_T_camera[:, :3, 2]
    rows = []
    for centre, axis in zip(centres, axes, strict=True):
        angle = np.arccos(np.clip(axes @ axis, -1, 1))
        distance = np.linalg.norm(centres - centre, axis=1) + 1.5 * angle
        distance[distance < 0.1] = np.inf
        rows.append(np.argsort(distance)[: min(count, len(centres))])
    return torch.from_numpy(np.stack(rows))


def _training_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != 'auto':
        return PRECISIONS[name]
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Emulated bf16 is slower than float32: only where the processor has the instructions.
    flags = torch.backends.cpu.get_cpu_capability()
    has_bf16 = 'AVX512' in flags and _cpu_has('avx512_bf16')
    return torch.bfloat16 if has_bf16 or _cpu_has('amx_bf16') else torch.float32


def _cpu_has(flag: str) -> bool:
    try:
        with open('/proc/cpuinfo') as file:
            return any(flag in line.split() for line in file if line.startswith('flags'))
    except OSError:
        return False
