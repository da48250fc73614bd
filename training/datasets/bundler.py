"""Bundler v0.3 reconstructions in the layout of Dubrovnik6K and its siblings (Li et al. 2010).

    list.db.txt, list.query.txt               train and test images: `name` or `name 0 focal`
    bundle/bundle.db.out                      model of the train images, in the order of the list
    bundle/bundle.orig.out, list.orig.txt     optional: model and list of all images, which gives
                                              the poses of the test images

The bundle files may also lie beside the lists. Bundler's cameras look along -z with y up; with
F = diag(1, -1, -1) a world-to-camera (R, t) becomes (F R, F t) in optical axes. Its distortion
1 + k1 r^2 + k2 r^4 is OpenCV's. The images are not distributed and the files do not hold their
sizes: without them the size is taken from the measurements, which reach nearly to the borders.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError
from pose_reloc.geometry import invert_pose, pose_matrix
from training.datasets import Dataset, Sample
from training.datasets.files import image_file, image_size, missing_images
from training.datasets.text import Line, next_line, read_lines
from training.datasets.tracks import TrackReader, Tracks

_OPTICAL_R_BUNDLER = np.diag([1.0, -1.0, -1.0])
_MAXIMUM_SIDE = 65535


@dataclass(frozen=True)
class _View:
    """One registered camera of a bundle file."""

    focal: float
    k1: float
    k2: float
    world_T_camera: np.ndarray


@dataclass(frozen=True)
class _Bundle:
    """A bundle file: views (None where not registered) and what they see."""

    views: list[_View | None]
    tracks: Tracks


def load(path: Path) -> Dataset:
    """Reads the lists and models.

    Raises:
        DatasetError: a file is missing, truncated or has a bad line, or list and model disagree.
    """
    if not (path / 'list.db.txt').is_file():
        raise DatasetError(f'{path} is not a Dubrovnik6K-like folder: it has no list.db.txt')
    names = list(read_lines(path / 'list.db.txt'))
    bundle = _read_bundle(_find(path, 'bundle.db.out'), len(names))
    warnings: list[str] = []
    train = _samples(path, dict(enumerate(names)), bundle, 'train', warnings)
    test = _test_samples(path, warnings)
    warnings += missing_images([sample.image_path for sample in [*train, *test]])
    return Dataset(path.resolve().name, train, test, warnings)


def _test_samples(path: Path, warnings: list[str]) -> list[Sample]:
    if not (path / 'list.query.txt').is_file():
        return []
    queries = {_name(line) for line in read_lines(path / 'list.query.txt')}
    bundle_file, list_file = _find(path, 'bundle.orig.out'), _find(path, 'list.orig.txt')
    if not (bundle_file.is_file() and list_file.is_file()):
        warnings.append(
            f'list.query.txt names {len(queries)} images, but without bundle.orig.out and '
            'list.orig.txt their poses are unknown: the test split is empty'
        )
        return []
    names = list(read_lines(list_file))
    bundle = _read_bundle(bundle_file, len(names))
    chosen = {i: line for i, line in enumerate(names) if _name(line) in queries}
    if len(chosen) < len(queries):
        warnings.append(
            f'{len(queries) - len(chosen)} of {len(queries)} images of list.query.txt are not in '
            f'{list_file.name}'
        )
    return _samples(path, chosen, bundle, 'test', warnings)


def _find(path: Path, name: str) -> Path:
    """The file in bundle/ or beside the lists."""
    return path / name if (path / name).is_file() else path / 'bundle' / name


def _name(line: Line) -> str:
    return line.text.split()[0]


def _samples(
    path: Path, names: dict[int, Line], bundle: _Bundle, split: str, warnings: list[str]
) -> list[Sample]:
    samples = []
    for index, line in names.items():
        view = bundle.views[index]
        if view is None:
            continue
        name = _name(line)
        image_path = image_file(path, name, line.where)
        reach = bundle.tracks.reach_N2[index]
        size = image_size(image_path) if os.path.isfile(image_path) else _size(reach)
        samples.append(
            Sample(
                image_path,
                _camera(view, size, line),
                view.world_T_camera,
                name.rpartition('/')[0],
                float(index),
                points_loader=partial(bundle.tracks.seen_points, index),
            )
        )
    if len(samples) < len(names):
        warnings.append(
            f'{len(names) - len(samples)} of {len(names)} {split} images are not registered in the '
            'model and left out'
        )
    return samples


def _size(reach_2: np.ndarray) -> tuple[int, int]:
    """The smallest image, width and height, that holds measurements this far from its centre."""
    width, height = np.clip(2 * np.ceil(reach_2) + 1, 2, _MAXIMUM_SIDE).astype(int)
    return int(width), int(height)


def _camera(view: _View, size: tuple[int, int], line: Line) -> Camera:
    cx, cy = (size[0] - 1) / 2, (size[1] - 1) / 2
    try:
        return Camera(*size, view.focal, view.focal, cx, cy, (view.k1, view.k2, 0.0, 0.0))
    except CameraError as error:
        raise line.error(str(error)) from error


def _read_bundle(file: Path, expected: int) -> _Bundle:
    """Reads a bundle file that belongs to a list of this many images."""
    lines = read_lines(file)  # the first line, `# Bundle file v0.3`, counts as a comment
    first = next_line(lines, file, 'the numbers of cameras and points')
    cameras, points = first.integers(first.words('cameras points'), 0, 2**31)
    if cameras != expected:
        raise first.error(f'the model has {cameras} cameras but its list {expected} images')
    views = [_read_view(lines, file, f'camera {i + 1} of {cameras}') for i in range(cameras)]
    reader = TrackReader(cameras)
    for i in tqdm(range(points), file.name, unit='point', disable=None, leave=False):
        what = f'point {i + 1} of {points}'
        line = next_line(lines, file, what)
        xyz = line.numbers(line.words('x y z'))
        next_line(lines, file, f'the colour of {what}')
        line = next_line(lines, file, f'the views of {what}')
        reader.add(xyz, line, line.text.split())
    return _Bundle(views, reader.tracks())


def _read_view(lines, file: Path, what: str) -> _View | None:
    first = next_line(lines, file, what)
    focal, k1, k2 = first.numbers(first.words('f k1 k2'))
    rows = []
    for _ in range(4):
        line = next_line(lines, file, what)
        rows.append(line.numbers(line.words('a b c')))
    if focal == 0:
        return None
    if focal < 0:
        raise first.error('the focal length is negative')
    R = _OPTICAL_R_BUNDLER @ first.nearest_rotation(rows[:3])
    camera_T_world = pose_matrix(R, _OPTICAL_R_BUNDLER @ rows[3])
    return _View(float(focal), float(k1), float(k2), invert_pose(camera_T_world))
