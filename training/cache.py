"""The training cache: every image decoded and resized once, memory-mapped.

A cache is a folder of .npy files that is built beside its final place and renamed, so it is whole
or absent, and two builders of the same cache do not disturb each other. Its name is a hash of the
files of images and depth (path, size, time of change), how depth is measured, 3D points, poses,
cameras and settings it was made from. A checksum of its content is verified whenever it is opened:
training on a damaged image would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError, TrainingError
from pose_reloc.export import cache_folder
from pose_reloc.files import temporary_folder
from pose_reloc.geometry import invert_pose
from pose_reloc.preprocess import network_camera, to_network_image
from training.datasets import Sample
from training.datasets.files import file_state

_VERSION = 5
_PERCENTILES = (0.025, 0.975)


@dataclass(frozen=True)
class CacheSettings:
    """What a cache holds."""

    short_side: int = 256  # of the network's input, pixels
    points: int = 512  # 3D points kept per image, drawn at random
    seed: int = 0  # of that draw


@dataclass(frozen=True)
class TrainingCache:
    """Memory-mapped arrays of N samples, in the order of the samples.

    Attributes:
        camera: the network camera of every image.
        images: uint8 RGB (N, H, W, 3).
        world_T_camera: float64 (N, 4, 4).
        depth: float16 (N, ceil(H/2), ceil(W/2)), metres, holes filled; None where a source has
            no depth.
        points: float32 (N, K, 3) in the world, NaN where an image has fewer; None without points.
        depth_range: float64 (N, 2): 2.5 and 97.5 percentiles of all the depths an image sees,
            NaN where it sees none; None without points.
        global_depth_range: the same over all points of all images, or None.
        sha256: of all of this: it tells one set of training data from another, on any machine.
    """

    camera: Camera
    images: np.ndarray
    world_T_camera: np.ndarray
    depth: np.ndarray | None
    points: np.ndarray | None
    depth_range: np.ndarray | None
    global_depth_range: tuple[float, float] | None
    sha256: str

    def __len__(self) -> int:
        return len(self.images)


def build_cache(
    samples: list[Sample], settings: CacheSettings, root: str | Path | None = None
) -> TrainingCache:
    """Opens the cache of these samples, building it first if it is not there.

    Args:
        samples: non-empty; their network cameras must agree in size.
        settings: what to keep.
        root: folder of all caches; default $POSE_RELOC_CACHE or ~/.cache/pose_reloc.

    Raises:
        DatasetError: an image or depth file is damaged, or the images differ in size.
        TrainingError: the folder cannot be written.
    """
    if not samples:
        raise DatasetError('there are no images to cache')
    camera = network_camera(samples[0].camera, settings.short_side)
    root = Path(root).expanduser() if root else cache_folder()
    folder = root / _key(samples, settings)
    if not folder.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with temporary_folder(root, 'cache') as temporary:
                _fill(temporary, samples, camera, settings)
                _rename(temporary, folder)
        except OSError as error:
            raise TrainingError(
                f'cannot write the training cache in {root}: {error.strerror}; '
                'free some space or set POSE_RELOC_CACHE to another folder'
            ) from error
    return _open(folder)


def _key(samples: list[Sample], settings: CacheSettings) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, asdict(settings)]).encode())
    for sample in samples:
        made_from = [
            file_state(sample.file),
            str(sample.image_path.resolve()),
            sample.camera.to_dict(),
            np.asarray(sample.world_T_camera, dtype=np.float64).tolist(),
            _source(sample.depth_loader),
            _source(sample.points_loader),
        ]
        digest.update(json.dumps(made_from).encode())
    return digest.hexdigest()[:24]


def _source(loader: Callable[[], np.ndarray] | None) -> list | str | None:
    """Where depth or points come from. Points of a reconstruction are in memory: they say it."""
    if loader is None:
        return None
    if hasattr(loader, 'source'):
        return loader.source()
    return hashlib.sha256(np.ascontiguousarray(loader())).hexdigest()


def _fill(folder: Path, samples: list[Sample], camera: Camera, settings: CacheSettings) -> None:
    N, H, W = len(samples), camera.height, camera.width
    has_depth = all(sample.depth_loader for sample in samples)
    has_points = all(sample.depth_loader or sample.points_loader for sample in samples)

    def create(name, dtype, shape):
        path = folder / f'{name}.npy'
        array = np.lib.format.open_memmap(path, 'w+', dtype, shape)
        # A full disk is an error here. Met later, when the map is written, it kills the process.
        with open(path, 'r+b') as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    images = create('images', np.uint8, (N, H, W, 3))
    depth = create('depth', np.float16, (N, (H + 1) // 2, (W + 1) // 2)) if has_depth else None
    points = create('points', np.float32, (N, settings.points, 3)) if has_points else None
    ranges = np.full((N, 2), np.nan)
    histogram = _DepthHistogram()

    def one(index: int) -> np.ndarray | None:
        sample = samples[index]
        images[index] = to_network_image(sample.load_image(), sample.camera, camera)
        depth_HW = sample.load_depth() if depth is not None or not sample.points_loader else None
        if depth is not None:
            depth[index] = _small_filled_depth(depth_HW, sample, camera, depth.shape[1:])
        if points is None:
            return None
        rng = np.random.default_rng([settings.seed, index])
        if sample.points_loader:
            world = sample.load_points()
            c_T_w = invert_pose(sample.world_T_camera)
            z = world @ c_T_w[2, :3] + c_T_w[2, 3]
            chosen = world[rng.permutation(len(world))[: settings.points]]
        else:
            pixels = np.argwhere(depth_HW)
            z = depth_HW[depth_HW > 0]
            drawn = rng.choice(len(pixels), min(settings.points, len(pixels)), replace=False)
            chosen = sample.lift(depth_HW, pixels[drawn])
        if len(z):
            ranks = [int(p * (len(z) - 1)) for p in _PERCENTILES]
            ranges[index] = np.partition(z, ranks)[ranks]
        points[index] = np.nan
        points[index, : len(chosen)] = chosen
        return z

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for z in tqdm(pool.map(one, range(N)), 'caching images', N, unit='img', disable=None):
            if z is not None:
                histogram.add(z)
    np.save(folder / 'world_T_camera.npy', np.stack([s.world_T_camera for s in samples]))
    if points is not None:
        np.save(folder / 'depth_range.npy', ranges)
    meta = {'camera': camera.to_dict(), 'global_depth_range': histogram.range()}
    meta['sha256'] = _checksum(folder, meta)
    (folder / 'meta.json').write_text(json.dumps(meta))


def _checksum(folder: Path, meta: dict) -> str:
    """sha256 of the arrays and the meta file; afterwards the arrays are on the disk."""
    digest = hashlib.sha256(json.dumps([meta['camera'], meta['global_depth_range']]).encode())
    for path in sorted(folder.glob('*.npy')):
        digest.update(path.name.encode())
        with open(path, 'rb') as file:
            while block := file.read(1 << 22):
                digest.update(block)
            os.fsync(file.fileno())
    return digest.hexdigest()


def _small_filled_depth(depth_HW, sample: Sample, camera: Camera, shape) -> np.ndarray:
    """Depth at half the network's resolution; each unknown pixel takes the nearest known one."""
    u, v = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    small = camera.scaled(shape[1], shape[0])
    rays = small.unproject(np.stack([u.ravel(), v.ravel()], 1), np.ones(u.size))
    uv = np.rint(sample.camera.project(rays)).astype(int)
    uv = np.clip(uv, 0, (sample.camera.width - 1, sample.camera.height - 1))
    z = depth_HW[uv[:, 1], uv[:, 0]].reshape(shape)
    if not z.any():
        return np.ones(shape, dtype=np.float16)
    _, labels = cv2.distanceTransformWithLabels(
        (z == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    known = np.zeros(labels.max() + 1, dtype=np.float32)
    known[labels[z > 0]] = z[z > 0]
    return known[labels].astype(np.float16)


class _DepthHistogram:
    """Percentiles of more depths than fit in memory, to 0.1 %: bins of equal ratio."""

    def __init__(self):
        self._edges = np.geomspace(1e-3, 1e4, 16001)
        self._counts = np.zeros(16000, dtype=np.int64)

    def add(self, z: np.ndarray) -> None:
        self._counts += np.histogram(z, self._edges)[0]

    def range(self) -> tuple[float, float] | None:
        total = self._counts.sum()
        if not total:
            return None
        bins = [np.searchsorted(np.cumsum(self._counts), p * total) for p in _PERCENTILES]
        return tuple(float(np.sqrt(self._edges[b] * self._edges[b + 1])) for b in bins)


def _open(folder: Path) -> TrainingCache:
    def load(name):
        path = folder / f'{name}.npy'
        return np.load(path, mmap_mode='r') if path.is_file() else None

    try:
        meta = json.loads((folder / 'meta.json').read_text())
        if meta['sha256'] != _checksum(folder, meta):
            raise ValueError('its checksum is not that of its content')
        found = meta['global_depth_range']
        return TrainingCache(
            Camera.from_dict(meta['camera']),
            load('images'),
            np.array(load('world_T_camera')),
            load('depth'),
            load('points'),
            load('depth_range'),
            tuple(found) if found else None,
            meta['sha256'],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, CameraError) as error:
        raise TrainingError(
            f'the training cache {folder} is damaged ({error}); delete that folder and try again'
        ) from error


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster: its cache is as good
            raise
