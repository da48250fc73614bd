"""Building the training cache, and the memory that a training run keeps per image."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

from pose_reloc.preprocess import network_camera
from training.batches import Batches
from training.benchmarks.measure import (
    Case,
    Role,
    Timed,
    in_fresh_process,
    interleave,
    resident_megabytes,
)
from training.benchmarks.table import Bar, Table, find
from training.benchmarks.workload import BenchSettings
from training.cache import CacheSettings, build_cache
from training.datasets import Sample
from training.view_synthesis import ViewSettings

_FEW, _MANY = 32, 160  # images whose difference in memory is that of the images
_MAX_MB = 0.35


def run(settings: BenchSettings) -> list[Table]:
    """Time, then memory."""
    return [_time(settings), _memory(settings)]


def _time(settings: BenchSettings) -> Table:
    samples = settings.samples(settings.batch)
    images = settings.cache(settings.batch).images
    ways = {
        'everything kept as floats, one by one': (Role.ALTERNATIVE, partial(_keep_all, settings)),
        'decoding colour and depth alone': (Role.FLOOR, _decode),
        'our cache': (Role.OURS, partial(_build, settings)),
        'copying the images in memory': (Role.OTHER, lambda _: np.array(images)),
    }
    cases = [
        Case(name, Timed(partial(way, samples), settings.turn_seconds, len(samples)), role)
        for name, (role, way) in ways.items()
    ]
    measured = interleave(cases, settings.rounds, 'cache')
    camera = samples[0].camera
    title = f'cache: building, {camera.width}x{camera.height}, {_files(samples)}'
    notes = (
        'ours: images, filled depth, points and depth range, written to disk; the alternative: '
        'images, every depth as a point and depth range, in memory, so again for every run',
    )
    return Table(title, 'images/s', measured, notes=notes)


def _files(samples: list[Sample]) -> str:
    depth = 'with depth' if samples[0].depth_loader else 'without depth'
    return f'{samples[0].image_path.suffix[1:]} {depth}'


def _build(settings: BenchSettings, samples: list[Sample]) -> None:
    with tempfile.TemporaryDirectory(dir=settings.folder) as root:
        build_cache(samples, CacheSettings(settings.short_side), root)


def _decode(samples: list[Sample]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda sample: (sample.load_image(), sample.load_depth()), samples):
            pass


def _keep_all(settings: BenchSettings, samples: list[Sample]) -> list[tuple]:
    """What the published code keeps of each sample: float32 image, points, depth range."""
    camera = network_camera(samples[0].camera, settings.short_side)
    kept = []
    for sample in samples:
        image = Image.open(sample.image_path).convert('RGB').resize((camera.width, camera.height))
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        points = sample.load_points()
        depth_range = None
        if points is not None:
            pose = sample.world_T_camera
            depth = np.sort((points - pose[:3, 3]) @ pose[:3, 2])
            depth_range = [depth[int(p * (len(depth) - 1))] for p in (0.025, 0.975)]
        kept.append((image, points, depth_range))
    return kept


def _memory(settings: BenchSettings) -> Table:
    for count in (_FEW, _MANY):
        settings.cache(count)  # built here, so that the fresh processes only open it
    cases = [
        Case(name, partial(_memory_per_image, way, settings), role)
        for name, role, way in (
            ('everything kept as floats', Role.ALTERNATIVE, _keep_samples),
            ('our batches, new views', Role.OURS, _draw_batches),
            ('the uint8 images alone', Role.FLOOR, _read_images),
        )
    ]
    # Once is enough: other processes slow this one down, but take none of its memory.
    measured = interleave(cases, 1, 'memory')
    ours = find(measured, 'our batches, new views')
    bar = Bar('resident memory per image, MB', ours.median, _MAX_MB)
    camera = settings.cache(_MANY).camera
    title = f'cache: resident memory per image while training, {camera.width}x{camera.height}'
    note = (
        f'growth of a fresh process from {_FEW} to {_MANY} images, after the memory it freed was '
        'given back; MB = 10^6 bytes'
    )
    return Table(title, 'MB', measured, (bar,), (note,))


def _memory_per_image(way, settings: BenchSettings) -> float:
    few, many = (in_fresh_process(_resident, way, settings, count) for count in (_FEW, _MANY))
    return (many - few) / (_MANY - _FEW)


def _resident(way, settings: BenchSettings, count: int) -> float:
    """Resident megabytes of this process after the work on `count` images."""
    torch.set_num_threads(1)
    kept = way(settings, count)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    megabytes = resident_megabytes()
    del kept
    return megabytes


def _draw_batches(settings: BenchSettings, count: int) -> Batches:
    batches = Batches(settings.cache(count), torch.device('cpu'), ViewSettings(), resident=False)
    generator = torch.Generator().manual_seed(0)
    # As many for few images as for many: what is left is what the images take.
    for index in torch.arange(_MANY).remainder(count).split(16):
        batches.batch(index, 0.5, generator)
    return batches


def _read_images(settings: BenchSettings, count: int) -> np.ndarray:
    images = settings.cache(count).images
    images.max()
    return images


def _keep_samples(settings: BenchSettings, count: int) -> list[tuple]:
    return _keep_all(settings, settings.samples(count))
