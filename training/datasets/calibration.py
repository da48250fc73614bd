"""The camera of datasets whose lists hold poses only.

In this order: the option `intrinsics`, calibration.yaml (entry `color`, fields of `Camera`), K.txt
(3x3), and last what the source is known to use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError
from training.datasets.text import read_lines, read_yaml


@dataclass(frozen=True)
class CameraSource:
    """Gives the camera of each image of a dataset.

    Attributes:
        make: (width, height) -> Camera.
        warnings: what a user should know about these intrinsics.
    """

    make: Callable[[int, int], Camera]
    warnings: tuple[str, ...] = ()


def camera_source(
    path: Path, intrinsics: str | Sequence[float] | None, fallback: CameraSource
) -> CameraSource:
    """Where the intrinsics of the dataset in this folder come from.

    Args:
        path: folder that may hold calibration.yaml or K.txt.
        intrinsics: (fx, fy, cx, cy) in pixels, also as text 'fx,fy,cx,cy'.
        fallback: when nothing else is known.

    Raises:
        DatasetError: a calibration is there but cannot be used.
    """
    if intrinsics is not None:
        fx, fy, cx, cy = parse_intrinsics(intrinsics)
        return CameraSource(lambda w, h: Camera(w, h, fx, fy, cx, cy))
    if (path / 'calibration.yaml').is_file():
        camera = _read_yaml(path / 'calibration.yaml')
        return CameraSource(lambda w, h: _resized(camera, w, h, path / 'calibration.yaml'))
    if (path / 'K.txt').is_file():
        fx, fy, cx, cy = _read_matrix(path / 'K.txt')
        return CameraSource(lambda w, h: Camera(w, h, fx, fy, cx, cy))
    return fallback


def parse_intrinsics(intrinsics: str | Sequence[float]) -> tuple[float, ...]:
    """(fx, fy, cx, cy) from numbers or the text 'fx,fy,cx,cy'.

    Raises:
        DatasetError: these are not four positive numbers.
    """
    words = intrinsics.split(',') if isinstance(intrinsics, str) else intrinsics
    try:
        values = tuple(float(word) for word in words)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 4 or not np.all(np.isfinite(values)) or min(values) <= 0:
        raise DatasetError(f'intrinsics must be fx,fy,cx,cy in pixels, got {intrinsics!r}')
    return values


def _read_yaml(file: Path) -> Camera:
    try:
        values = read_yaml(file)
        fields = dict(values.get('color', values))
        known = {name: fields[name] for name in Camera.__dataclass_fields__ if name in fields}
        return Camera.from_dict(known)
    except (ValueError, TypeError, AttributeError, CameraError) as error:
        raise DatasetError(
            f'{file} is not a calibration: {error!s:.300}. '
            'Expected color: {width, height, fx, fy, cx, cy}, optionally with distortion and '
            'distortion_model'
        ) from error


def _resized(camera: Camera, width: int, height: int, file: Path) -> Camera:
    """The calibrated camera for images that may have been resized since."""
    if (camera.width, camera.height) == (width, height):
        return camera
    if abs(width / height - camera.width / camera.height) > 0.01 * width / height:
        raise DatasetError(
            f'{file} is for {camera.width}x{camera.height} images but an image is '
            f'{width}x{height}: calibrate at that size'
        )
    return camera.scaled(width, height)


def _read_matrix(file: Path) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) of a file that holds the calibration matrix."""
    lines = list(read_lines(file))
    if len(lines) != 3:
        raise DatasetError(f'{file} must hold a 3x3 matrix, it has {len(lines)} lines')
    K = np.array([line.numbers(line.words('a b c')) for line in lines])
    if not np.allclose(K[2], (0, 0, 1)) or min(K[0, 0], K[1, 1]) <= 0:
        raise DatasetError(f'{file} is not a calibration matrix: [[fx 0 cx] [0 fy cy] [0 0 1]]')
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
