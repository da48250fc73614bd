"""What the benchmarks work on: a dataset, or the built-in room where none is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.cache import CacheSettings, TrainingCache, build_cache
from training.datasets import Sample, open_dataset
from training.datasets.synthetic import SyntheticSettings, write_scene

_TRAINING_IMAGES = 350  # of the untrained scene, as of red kitchen


@dataclass(frozen=True)
class BenchSettings:
    """How long to measure, and on what. Can be sent to another process.

    Attributes:
        folder: where the built-in room and the caches go.
        devices: that are measured: 'cpu', 'cuda'.
        dataset, path, options: as `open_dataset`; path None means the built-in room.
        scene: the file of a scene that was trained on this dataset, where a benchmark needs one.
        foreign: kinds and paths of datasets of other places, for `wrong_places`.
        rounds: turns of each case.
        turn_seconds: how long a turn lasts at least.
        batch: images of a training step.
        steps: of a training epoch.
        short_side: of the network's input, pixels.
        compile: whether torch.compile, which takes minutes on a CPU, is measured too.
    """

    folder: Path
    devices: tuple[str, ...]
    dataset: str = '7scenes'
    path: Path | None = None
    options: dict = field(default_factory=dict)
    scene: Path | None = None
    foreign: tuple[tuple[str, str], ...] = ()
    rounds: int = 5
    turn_seconds: float = 0.5
    batch: int = 64
    steps: int = 2
    short_side: int = 256
    compile: bool = True

    def split(self, name: str) -> list[Sample]:
        """The images of a split, 'train' or 'test'."""
        path = self.path
        if path is None:
            path = self.folder / 'room'
            write_scene(path, SyntheticSettings(train_frames=(32, 32), test_frames=12))
        return open_dataset(self.dataset, path, **self.options).split(name)

    def samples(self, count: int | None = None) -> list[Sample]:
        """The first `count` training images, again from the start where there are fewer."""
        samples = self.split('train')
        count = len(samples) if count is None else count
        return [samples[i % len(samples)] for i in range(count)]

    def cache(self, count: int) -> TrainingCache:
        """The training cache of `samples(count)`."""
        return build_cache(
            self.samples(count), CacheSettings(self.short_side), self.folder / 'cache'
        )


def untrained_scene(camera, short_side: int):
    """A SceneModel as fast as a trained one, with random weights.

    Args:
        camera: of the images that it will be asked about.
        short_side: of the network's input, pixels.
    """
    import torch

    from pose_reloc.network import PoseRegressor
    from pose_reloc.preprocess import network_camera
    from pose_reloc.scene import SceneHeader, SceneModel
    from pose_reloc.uncertainty import CoarseCalibration

    torch.manual_seed(0)
    network = PoseRegressor()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    backbone = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).numpy()
        for name, tensor in network.backbone.state_dict().items()
    }
    header = SceneHeader(
        'untrained',
        network.settings.to_dict(),
        camera,
        network_camera(camera, short_side),
        CoarseCalibration(0.1, 0.1, 0.1, 0.1, 0.1),
    )
    features = np.full((_TRAINING_IMAGES, 1280), 1280**-0.5, dtype=np.float16)
    mean = np.zeros(1280, dtype=np.float32)
    poses = np.tile(np.eye(4), (_TRAINING_IMAGES, 1, 1))
    frames = np.zeros(_TRAINING_IMAGES, dtype=np.int32)  # also of a scene with other images
    return SceneModel(header, weights, poses, backbone, features, features, mean, frames)
