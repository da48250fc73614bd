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
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pose_reloc.backends import choose_device
from pose_reloc.errors import TrainingError, WeightsError
from pose_reloc.geometry import pose_from_network
from pose_reloc.network import PoseRegressor, load_backbone_weights
from pose_reloc.preprocess import normalize
from training.batches import Batches
from training.cache import TrainingCache
from training.checkpoint import CheckpointWriter, load_checkpoint, set_aside
from training.divergence import cause_of_divergence
from training.held_out import held_out_blocks
from training.learner import Learner
from training.losses import LOSSES
from training.metrics import pose_metrics
from training.processes import Processes, local_device
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
    """

    network: PoseRegressor
    start_backbone: dict[str, torch.Tensor]
    history: list[dict] = field(default_factory=list)
    recipe: dict = field(default_factory=dict)


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
        TrainingError: fewer images than one batch, no depth in any image for a loss that needs
            it, the loss diverged, the GPU has too little memory, or a checkpoint of another run.
            The last good checkpoint is kept.
        SettingsError, WeightsError: settings that cannot work here.
    """
    try:
        trainer = Trainer(cache, sequences, settings, folder)
        if resume:
            trainer.resume()
        trainer.loop()
    except torch.cuda.OutOfMemoryError as error:
        found = str(error).partition(' Including')[0].rstrip('.')
        raise TrainingError(
            f'the GPU has too little free memory for batches of {settings.batch} images ({found}); '
            f'use --batch {max(1, settings.batch // 2)}, --precision bfloat16, which takes about '
            'half where it is not the default, or --device cpu. With another precision or device '
            '--resume goes on from the last checkpoint. `nvidia-smi` shows what else uses the GPU'
        ) from error
    result = trainer.result()
    trainer.processes.leave()
    return result


class Trainer:
    """One run. See `train`."""

    def __init__(
        self,
        cache: TrainingCache,
        sequences: list[str],
        settings: TrainSettings,
        folder: Path | None = None,
    ):
        self.started = time.perf_counter()
        torch.manual_seed(settings.seed)
        self.settings, self.cache, self.sequences = settings, cache, sequences
        self.processes = Processes.join(choose_device(local_device(settings.device)))
        held_out = held_out_blocks(cache.world_T_camera, sequences, settings.validation)
        self.train_index = torch.from_numpy(np.flatnonzero(~held_out))
        self.held_out_index = np.flatnonzero(held_out)
        self._check_batch()
        self._check_depth()
        self.batches = Batches(cache, self.processes.device, settings.views)
        self.learner = self._learner()
        self.learner.check(self.batches.target(self.train_index[:1]))
        self.folder = folder
        self.run_folder: RunFolder | None = None
        self.epoch = self.images_seen = 0
        self.seconds_before = 0.0  # of the run before it was resumed
        self.last_result = ''
        self.history: list[dict] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_score = math.inf

    def _check_batch(self) -> None:
        images, batch = len(self.train_index), self.settings.batch
        if images < batch:
            raise TrainingError(
                f'{images} training images are fewer than one batch of {batch}; '
                f'use --batch {max(1, images // 2)} or less'
            )
        if batch % self.processes.count:
            raise TrainingError(
                f'a batch of {batch} cannot be shared by {self.processes.count} processes; '
                'use a multiple of their number'
            )

    def _check_depth(self) -> None:
        """Depth that is there but empty would give NaN, or a geometric loss without gradient."""
        settings, cache = self.settings.loss, self.cache
        if cache.depth_range is None or cache.global_depth_range is not None:
            return
        loss = LOSSES[settings.name]
        way_out = 'choose another --loss, for example homoscedastic'
        if not loss.needs_points:
            if settings.depth_range or not (loss.needs_depth_range or loss.needs_global_range):
                return
            way_out = f'give --depth-range NEAR FAR, or {way_out}'
        raise TrainingError(
            f'loss {loss.name} must know how far away things are, but none of the {len(cache)} '
            'training images shows depth or a 3D point between 1 mm and 10 km: look at them with '
            f'`pose_reloc inspect` (is the unit of the depth right?), or {way_out}'
        )

    def _learner(self) -> Learner:
        settings, camera = self.settings, self.cache.camera
        network = PoseRegressor(settings.network)
        self.weights = _start(network, settings.backbone_weights)
        self.start_backbone = {k: v.clone() for k, v in network.backbone.state_dict().items()}
        if settings.normalize_translation:
            centres = self.cache.world_T_camera[self.train_index.numpy(), :3, 3]
            centre = centres.mean(0)
            spread = np.sqrt(((centres - centre) ** 2).sum(1).mean())
            network.translation_mean.copy_(torch.from_numpy(centre))
            network.translation_scale.fill_(float(max(spread, 1e-3)))
        return Learner(
            network,
            settings,
            self.cache.global_depth_range,
            self.processes,
            (settings.batch // self.processes.count, 3, camera.height, camera.width),
            settings.epochs * self.steps_per_epoch,
        )

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
            return min(1.0, self.epoch / self.settings.epochs)
        return min(1.0, self.processes.agreed(self.seconds) / (self.settings.minutes * 60))

    def loop(self) -> None:
        """Trains until the epochs or the minutes are over."""
        if self.folder and self.processes.rank == 0:
            self.run_folder = RunFolder(self.folder, self.settings.to_dict())
            if not self.epoch:
                set_aside(self.folder)
        nothing = contextlib.nullcontext()
        writer = CheckpointWriter(self.folder) if self.run_folder else nothing
        hidden = None if self.processes.rank == 0 else True
        progress = self.progress
        bar = tqdm(total=100, desc='training', disable=hidden, bar_format=_BAR)
        with self.run_folder or nothing, writer, bar:
            # A resumed run may have spent its budget before the first validation.
            while progress < 1 or not self.history:
                loss = self._one_epoch(progress, bar)
                self.epoch += 1
                progress = self.progress
                if self.epoch % self.settings.validate_every == 0 or progress >= 1:
                    self._validate(loss, bar)
                if self.run_folder:
                    writer.offer(self._state, whatever_the_time=progress >= 1)

    def _one_epoch(self, progress: float, bar) -> float:
        """Trains one epoch and returns its mean loss.

        Raises:
            TrainingError: it diverged.
        """
        seed = self._seed()
        torch.manual_seed(seed + self.processes.rank)  # dropout
        generator = torch.Generator().manual_seed(seed)
        order = self.train_index[torch.randperm(len(self.train_index), generator=generator)]
        order = order[: self.steps_per_epoch * self.settings.batch].view(self.steps_per_epoch, -1)
        warming_up = (
            self.settings.loss.name == 'geometric' and progress < self.settings.geometric_warmup
        )
        losses = torch.zeros(len(order), device=self.processes.device)
        for step, index in enumerate(order):
            image, target = self.batches.batch(index, progress, generator, self._share())
            rate = self._learning_rate(progress, step / len(order))
            losses[step] = self.learner.step(image, target, rate, warming_up)
            self.images_seen += self.settings.batch
            self._show(bar)
        # The epoch's only synchronisation of host, device and processes.
        losses = self.processes.mean(losses).cpu()
        self._check(losses, rate)
        return float(losses.mean())

    def _seed(self) -> int:
        """Of this epoch: it depends on nothing that happened before."""
        text = f'{self.settings.seed}/{self.epoch}'
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], 'big')

    def _share(self) -> slice:
        """The part of each batch that this process takes."""
        count = self.settings.batch // self.processes.count
        return slice(self.processes.rank * count, (self.processes.rank + 1) * count)

    def _check(self, losses: torch.Tensor, learning_rate: float) -> None:
        broken = self.learner.not_finite()
        if not broken and losses.isfinite().all():
            return
        cause = cause_of_divergence(
            losses,
            broken,
            self.cache.world_T_camera[self.train_index.numpy()],
            [self.sequences[i] for i in self.train_index],
            learning_rate,
        )
        advice = 'start again with a lower --learning-rate'
        if self.folder and self.epoch:
            advice = (
                f'the last good state is kept in {self.folder}, go on from it with --resume and a '
                'lower --learning-rate'
            )
        raise TrainingError(f'training failed in epoch {self.epoch + 1}: {cause}; {advice}')

    def _learning_rate(self, progress: float, fraction_of_epoch: float) -> float:
        settings = self.settings
        if settings.minutes is None:
            progress += fraction_of_epoch / settings.epochs
        rate = settings.learning_rate
        if settings.schedule == 'cosine':
            rate *= 0.5 * (1 + math.cos(math.pi * progress))
        if progress < settings.warmup:
            rate *= max(progress / settings.warmup, 0.01)
        return rate

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
            state = self.learner.evaluated.state_dict()
            self.best = {name: tensor.clone() for name, tensor in state.items()}

    def predict(self, index: np.ndarray) -> np.ndarray:
        """Poses (N, 4, 4) of cached images by the network as it is now, in evaluation mode."""
        poses = []
        for start in range(0, len(index), self.settings.batch):
            image = self.batches.images(index[start : start + self.settings.batch])
            w_t_c, c_q_w = (
                x.double().cpu().numpy() for x in self.learner.predict(normalize(image))
            )
            poses.append(pose_from_network(w_t_c, c_q_w))
        return np.concatenate(poses)

    def _state(self) -> dict:
        return {
            'settings': self.settings.to_dict(),
            'data_key': self.cache.sha256,
            'learner': self.learner.state_dict(),
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
        state = load_checkpoint(self.folder, self.settings.to_dict(), self.cache.sha256)
        if state is None:
            return
        self.learner.load_state_dict(state['learner'])
        self.best, self.best_score = state['best'], state['best_score']
        self.history, self.epoch = state['history'], state['epoch']
        self.images_seen, self.seconds_before = state['images_seen'], state['seconds']
        self.started = time.perf_counter()

    def result(self) -> TrainingResult:
        """The best state and what is known of the run."""
        seconds = self.seconds
        network = self.learner.evaluated
        network.load_state_dict(self.best)
        recipe = {
            'settings': self.settings.to_dict(),
            'epochs': self.epoch,
            'images_per_second': round(self.images_seen / seconds, 1),
            'backbone_weights': self.weights,
            'images': len(self.train_index),
            'images_held_out': len(self.held_out_index),
            'seconds': round(seconds, 1),
            'device': str(self.processes.device),
            'precision': str(self.learner.dtype).removeprefix('torch.'),
            'history': self.history,
        }
        return TrainingResult(network.cpu().eval(), self.start_backbone, self.history, recipe)


def _start(network: PoseRegressor, source: str) -> str:
    """Loads the backbone's first weights; says for the recipe what was loaded.

    With 'auto' a robot without a network still trains: the landmarks, which give the centimetres,
    do not depend on the backbone.

    Raises:
        WeightsError: what was asked for cannot be loaded.
    """
    if source != 'auto':
        return load_backbone_weights(network, source)
    try:
        return load_backbone_weights(network, 'imagenet')
    except WeightsError as error:
        print(f'note: training from a random start: {error}', file=sys.stderr)
        return load_backbone_weights(network, 'none')
