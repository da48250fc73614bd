"""Posed images from many sources behind one interface: `open_dataset(kind, path) -> Dataset`.

One module per source. A loader reads only lists and poses; images and depth are decoded when a
`Sample` is asked for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from pose_reloc.camera import MAX_PIXELS, Camera
from pose_reloc.errors import DatasetError
from training.datasets.files import image_size
from training.datasets.options import checked_options

# kind -> module; each has `load(path: Path, **options) -> Dataset`.
LOADERS = {
    '7scenes': 'training.datasets.seven_scenes',
    'cambridge': 'training.datasets.cambridge',
    'colmap': 'training.datasets.colmap',
    'bundler': 'training.datasets.bundler',
    'tum': 'training.datasets.tum',
    'csv': 'training.datasets.csv_poses',
    'bag': 'training.datasets.bag',
}

_ENOUGH_DEPTH = 0.8  # share of images with depth from which those without are given up
_OFF_CENTRE = 0.2  # of the image's size: no lens is mounted that far beside its sensor


@dataclass(frozen=True)
class Sample:
    """One posed image.

    A loader of depth or points may have a method `source` that says, without reading anything, what
    its result depends on: files and settings, for JSON. Without it the result itself is looked at
    to tell whether it changed.

    Attributes:
        image_path: the colour image; only a name where `image_loader` gives it.
        camera: the camera that took it, with distortion.
        world_T_camera: its pose (4, 4), optical axes, metres.
        sequence: name of the recording it belongs to; consecutive samples are consecutive in time.
        timestamp: seconds, only comparable within a sequence.
        depth_loader: gives depth (H, W) float32 in metres along z, registered to the colour
            camera, 0 where unknown; None where the source has no depth.
        points_loader: gives 3D points (N, 3) in the world that this image sees; None where the
            source has none.
        image_loader: gives the image where the file alone is not it (undistorted on loading, or one
            of many in a bag).
        container: the file that holds the image, where that is not `image_path`.
    """

    image_path: Path
    camera: Camera
    world_T_camera: np.ndarray
    sequence: str = ''
    timestamp: float = 0.0
    depth_loader: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    points_loader: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    image_loader: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    container: Path | None = None

    @property
    def file(self) -> Path:
        """The file to be read for the image."""
        return self.container or self.image_path

    def load_image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3).

        Raises:
            DatasetError: the file is missing, damaged or of another size than its camera.
        """
        image = self.image_loader() if self.image_loader else read_image(self.image_path)
        if image.shape[:2] != (self.camera.height, self.camera.width):
            raise DatasetError(
                f'{self.image_path} is {image.shape[1]}x{image.shape[0]} but its camera is '
                f'{self.camera.width}x{self.camera.height}'
            )
        return image

    def load_depth(self) -> np.ndarray | None:
        """Depth (H, W) float32 in metres, registered to the image; 0 where unknown."""
        return self.depth_loader() if self.depth_loader else None

    def load_points(self) -> np.ndarray | None:
        """World points (N, 3) float64 that this image sees: SfM points, or every valid depth."""
        if self.points_loader:
            return self.points_loader()
        depth = self.load_depth()
        if depth is None:
            return None
        return self.lift(depth, np.argwhere(depth))

    def lift(self, depth_HW: np.ndarray, pixels_N2: np.ndarray) -> np.ndarray:
        """World points (N, 3) of pixels (N, 2), given as (row, column), at their depth."""
        v, u = pixels_N2.T
        points = self.camera.unproject(np.stack([u, v], axis=1), depth_HW[v, u])
        return points @ self.world_T_camera[:3, :3].T + self.world_T_camera[:3, 3]


@dataclass(frozen=True)
class Dataset:
    """Posed images, split as their source splits them.

    Attributes:
        name: for people.
        train, test: samples in the order of their sequences.
        warnings: what a user should know about the files (for `inspect`).
        notes: what was chosen where the source leaves a choice.
    """

    name: str
    train: list[Sample]
    test: list[Sample]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> list[Sample]:
        """The samples of split 'train' or 'test'.

        Raises:
            DatasetError: the split is empty.
        """
        samples = {'train': self.train, 'test': self.test}[name]
        if not samples:
            text = f'dataset {self.name} has no images in its {name} split'
            if name == 'test':
                text += ' (give --test-path ANOTHER_BAG; evaluate also takes --split train)'
            raise DatasetError(text)
        return samples


def open_dataset(kind: str, path: str | Path, **options) -> Dataset:
    """Opens the dataset of this kind at this path.

    Args:
        options: keyword arguments of the source's `load`.

    Raises:
        DatasetError: unknown kind or option, no such folder, or the folder is not such a dataset.
    """
    if kind not in LOADERS:
        raise DatasetError(f'unknown dataset kind {kind!r}; choose one of {", ".join(LOADERS)}')
    path = Path(path).expanduser()
    if not path.exists():
        raise DatasetError(f'no dataset at {path}: there is no such file or folder')
    load = import_module(LOADERS[kind]).load
    dataset = _with_agreed_depth(load(path, **checked_options(kind, load, options)))
    return replace(dataset, warnings=[*dataset.warnings, *_odd_cameras(dataset)])


def _with_agreed_depth(dataset: Dataset) -> Dataset:
    """Training needs depth for all of its images or none: keeps the more useful ones."""
    train = dataset.train
    with_depth = [sample for sample in train if sample.depth_loader]
    without = len(train) - len(with_depth)
    if not (with_depth and without):
        return dataset
    if len(with_depth) >= _ENOUGH_DEPTH * len(train):
        text = f'{without} of {len(train)} training images left out: they have no depth'
        train = with_depth
    else:
        text = f'depth is not used: {without} of {len(train)} training images have none'
        train = [replace(sample, depth_loader=None) for sample in train]
    return replace(dataset, train=train, warnings=[*dataset.warnings, text])


def _odd_cameras(dataset: Dataset) -> list[str]:
    """A warning, or none, about intrinsics that seem to be for images of another size."""
    for camera in dict.fromkeys(sample.camera for sample in [*dataset.train, *dataset.test]):
        size = np.array([camera.width, camera.height])
        if np.any(np.abs((camera.cx, camera.cy) - (size - 1) / 2) > _OFF_CENTRE * size):
            return [
                f'the principal point ({camera.cx:g}, {camera.cy:g}) is far from the centre of the '
                f'{camera.width}x{camera.height} images: are the intrinsics for another size?'
            ]
    return []


def read_image(path: Path, flags: int | None = None) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3), or unchanged with `flags` of cv2.imread.

    Raises:
        DatasetError: the file is missing, truncated or not an image.
    """
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DatasetError(f'cannot read image {path}: {error.strerror}') from error
    if flags is None:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        rgb = True
    else:
        rgb = False
    image = None
    if data.size and not _truncated(data) and np.prod(image_size(path)) <= MAX_PIXELS:
        image = cv2.imdecode(data, flags)
    if image is None:
        raise DatasetError(f'{path} is not a whole image (truncated or damaged); replace it')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if rgb else image


def _truncated(data: np.ndarray) -> bool:
    """True for a JPEG or PNG without its end marker: OpenCV would fill the rest with grey."""
    head, tail = data[:8].tobytes(), data[-64:].tobytes()
    if head.startswith(b'\xff\xd8'):
        return b'\xff\xd9' not in tail
    if head == b'\x89PNG\r\n\x1a\n':
        return b'IEND' not in tail
    return False
