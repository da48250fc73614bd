"""What a dataset holds, in numbers: counts, extents, depth, and how far the test split is away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose, rotation_angle
from training.datasets import Dataset, Sample

_PERCENTILES = (0.025, 0.975)  # as published, of depth
_POINTS_PER_FRAME = 4000
_INSIDE_EXPECTED = 0.9


@dataclass(frozen=True)
class SplitSummary:
    """One split.

    Attributes:
        images: number of images.
        sequences: name -> number of images, in their order.
        path_m: length of the ways between consecutive images of each sequence, added up.
    """

    images: int
    sequences: dict[str, int]
    path_m: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect_dataset` found.

    Attributes:
        cameras: each camera and its number of images, most frequent first.
        extent_m: size of the box around the training cameras along x, y, z; None without any.
        depth_range_m: 2.5 and 97.5 percentiles of the depths that the sampled training images
            see; None where the source has neither depth nor points.
        frames_sampled: number of training images looked into.
        nearest_m, nearest_deg: distance (N,) of each test image to the nearest training image,
            and the angle between the two.
        points_N3: a sample of the world points that were seen; may be empty.
        warnings: of the loader, and what was noticed here.
        notes: of the loader: what it chose.
    """

    train: SplitSummary
    test: SplitSummary
    cameras: list[tuple[Camera, int]]
    extent_m: tuple[float, float, float] | None
    depth_range_m: tuple[float, float] | None
    frames_sampled: int
    nearest_m: np.ndarray
    nearest_deg: np.ndarray
    points_N3: np.ndarray
    warnings: list[str]
    notes: list[str]


def inspect_dataset(dataset: Dataset, frames: int = 32) -> Inspection:
    """Looks at all poses and into some images.

    Args:
        dataset: opened.
        frames: number of training images whose picture, depth and points are read; 0 for all.
    """
    warnings = list(dataset.warnings)
    samples = [*dataset.train, *dataset.test]
    cameras = Counter(sample.camera for sample in samples).most_common()
    if not dataset.train:
        warnings.append('the train split is empty: nothing to train on')
    if not dataset.test:
        warnings.append('the test split is empty: train evaluates on frames that it holds out')
    sizes = {(camera.width, camera.height) for camera, _ in cameras}
    if len(sizes) > 1:
        warnings.append(f'the images have {len(sizes)} different sizes')
    chosen = _spread(dataset.train, frames)
    look = _look_into(chosen)
    warnings += look.warnings
    nearest_m, nearest_deg = nearest_training(dataset.train, dataset.test)
    positions = _positions(dataset.train)
    return Inspection(
        _summary(dataset.train),
        _summary(dataset.test),
        cameras,
        tuple(float(x) for x in np.ptp(positions, axis=0)) if len(positions) else None,
        look.depth_range_m,
        len(chosen),
        nearest_m,
        nearest_deg,
        look.points_N3,
        warnings,
        list(dataset.notes),
    )


def nearest_training(
    train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) in metres and angle (N,) in degrees of each test image to the nearest other.

    The nearest training image is the one whose camera centre is nearest.
    """
    if not train or not test:
        return np.zeros(0), np.zeros(0)
    distance, index = cKDTree(_positions(train)).query(_positions(test))
    R_test = np.stack([sample.world_T_camera[:3, :3] for sample in test])
    R_train = np.stack([train[i].world_T_camera[:3, :3] for i in index])
    return distance, np.rad2deg(rotation_angle(np.swapaxes(R_train, -1, -2) @ R_test))


def depth_percentiles(depths: np.ndarray) -> tuple[float, float] | None:
    """2.5 and 97.5 percentiles as published, sorted[int(p (n - 1))]; None of no depths."""
    if not len(depths):
        return None
    ranks = [int(p * (len(depths) - 1)) for p in _PERCENTILES]
    low, high = np.partition(depths, ranks)[ranks]
    return float(low), float(high)


@dataclass(frozen=True)
class _Look:
    """What the sampled images showed."""

    depth_range_m: tuple[float, float] | None
    points_N3: np.ndarray
    warnings: list[str]


def _look_into(samples: Sequence[Sample]) -> _Look:
    depths, points, inside, broken = [], [], [], []
    rng = np.random.default_rng(0)
    for sample in tqdm(samples, 'looking into images', unit='img', disable=None, leave=False):
        try:
            if sample.file.is_file():  # the loaders report those that are missing
                sample.load_image()
            seen = _seen_points(sample, rng)
        except DatasetError as error:
            broken.append(str(error))
            continue
        if not len(seen):
            continue
        c_T_w = invert_pose(sample.world_T_camera)
        in_camera = seen @ c_T_w[:3, :3].T + c_T_w[:3, 3]
        uv = np.nan_to_num(sample.camera.project(in_camera), nan=-1e9)
        # Half a pixel is the border of the image, another one is for rounding.
        size = (sample.camera.width, sample.camera.height)
        inside.append(((uv > -1) & (uv < size)).all(axis=1).mean())
        depths.append(in_camera[:, 2][in_camera[:, 2] > 0])
        points.append(seen)
    warnings = []
    if broken:
        warnings.append(f'{len(broken)} of {len(samples)} images looked into: {broken[0]}')
    if inside and np.mean(inside) < _INSIDE_EXPECTED:
        warnings.append(
            f'only {100 * np.mean(inside):.0f} % of the points project into the images that see '
            'them: the intrinsics or the pose convention may be wrong'
        )
    return _Look(
        depth_percentiles(np.concatenate([np.zeros(0), *depths])),
        np.concatenate([np.zeros((0, 3)), *points]),
        warnings,
    )


def _seen_points(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """World points (N, 3), drawn from all that an image sees; N may be 0."""
    if not sample.points_loader and sample.depth_loader:
        depth = sample.load_depth()
        pixels = np.argwhere(depth)
        drawn = rng.choice(len(pixels), min(len(pixels), _POINTS_PER_FRAME), replace=False)
        return sample.lift(depth, pixels[drawn])
    points = sample.load_points()
    if points is None:
        return np.zeros((0, 3))
    return points[rng.permutation(len(points))[:_POINTS_PER_FRAME]]


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly over the list; all for 0."""
    if count <= 0 or count >= len(samples):
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _summary(samples: Sequence[Sample]) -> SplitSummary:
    length = 0.0
    for before, after in zip(samples, samples[1:]):
        if before.sequence == after.sequence:
            step = after.world_T_camera[:3, 3] - before.world_T_camera[:3, 3]
            length += float(np.linalg.norm(step))
    return SplitSummary(len(samples), dict(Counter(s.sequence for s in samples)), length)


def _positions(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.world_T_camera[:3, 3] for sample in samples]).reshape(-1, 3)
