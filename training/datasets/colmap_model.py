"""COLMAP models: cameras, images and points3D, as .bin or .txt files.

Read here and not by pycolmap, so that common cameras need no further package, and because damaged
files must be refused: every count is checked against the size of the file before it is believed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import numpy as np

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose, pose_matrix, rotation_from_quaternion
from training.datasets.text import Line, every_line, read_lines

# COLMAP's model ids: name and number of parameters.
MODELS = {
    0: ('SIMPLE_PINHOLE', 3),
    1: ('PINHOLE', 4),
    2: ('SIMPLE_RADIAL', 4),
    3: ('RADIAL', 5),
    4: ('OPENCV', 8),
    5: ('OPENCV_FISHEYE', 8),
    6: ('FULL_OPENCV', 12),
    7: ('FOV', 5),
    8: ('SIMPLE_RADIAL_FISHEYE', 4),
    9: ('RADIAL_FISHEYE', 5),
    10: ('THIN_PRISM_FISHEYE', 12),
    11: ('RAD_TAN_THIN_PRISM_FISHEYE', 16),
    12: ('SIMPLE_DIVISION', 4),
    13: ('DIVISION', 5),
    14: ('SIMPLE_FISHEYE', 3),
    15: ('FISHEYE', 4),
    16: ('EUCM', 6),
    17: ('EQUIRECTANGULAR', 2),
}
_PARAMETERS = dict(MODELS.values())


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics as COLMAP writes them; its pixel (0.5, 0.5) is the centre of the top left one."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """One registered image.

    Attributes:
        name: file name below the folder of images.
        camera_id: key into `ColmapModel.cameras`.
        world_T_camera: pose (4, 4).
        point_ids: int64 (N,), keys into `ColmapModel.points`.
    """

    name: str
    camera_id: int
    world_T_camera: np.ndarray
    point_ids: np.ndarray


@dataclass(frozen=True)
class ColmapModel:
    """A reconstruction: `point_ids` (P,) ascending belong to `points` (P, 3)."""

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    point_ids: np.ndarray
    points: np.ndarray

    def knows(self, ids: np.ndarray) -> bool:
        """True where the model holds all these points."""
        places = np.searchsorted(self.point_ids, ids)
        inside = bool(np.all(places < len(self.point_ids)))
        return inside and np.array_equal(self.point_ids[places], ids)

    def points_of(self, image: ColmapImage) -> np.ndarray:
        """World points (N, 3) that an image sees."""
        return self.points[np.searchsorted(self.point_ids, image.point_ids)]


def has_model(folder: Path) -> bool:
    """True where the folder holds the cameras and images of a model."""
    return any(
        all((folder / f'{name}{suffix}').is_file() for name in ('cameras', 'images'))
        for suffix in ('.bin', '.txt')
    )


def read_model(folder: Path) -> ColmapModel:
    """Reads a model; .bin wins over .txt. Without points3D the model has no points.

    Raises:
        DatasetError: a file is damaged, or the files do not belong together.
    """
    if (folder / 'cameras.bin').is_file():
        readers, suffix = (_cameras_bin, _images_bin, _points_bin), '.bin'
    else:
        readers, suffix = (_cameras_txt, _images_txt, _points_txt), '.txt'
    cameras = readers[0](folder / f'cameras{suffix}')
    images = readers[1](folder / f'images{suffix}')
    points_file = folder / f'points3D{suffix}'
    ids, points = [], []
    if points_file.is_file():
        ids, points = readers[2](points_file)
    ids, points = np.array(ids, dtype=np.int64), np.array(points, dtype=np.float64).reshape(-1, 3)
    if not np.all(np.isfinite(points)):
        raise DatasetError(f'{points_file} holds points that are NaN or infinite')
    order = np.argsort(ids)
    model = ColmapModel(cameras, images, ids[order], points[order])
    _check(model, folder, points_file.is_file())
    return model


def _check(model: ColmapModel, folder: Path, has_points: bool) -> None:
    for image in model.images:
        if image.camera_id not in model.cameras:
            raise DatasetError(f'{folder}: image {image.name} has no camera {image.camera_id}')
        if has_points and not model.knows(image.point_ids):
            raise DatasetError(
                f'{folder}: image {image.name} sees points that points3D does not hold; '
                'the files are of different models or damaged'
            )


def _camera(model: str, width: int, height: int, params, where: str) -> ColmapCamera:
    if not np.all(np.isfinite(params)):
        raise DatasetError(f'{where}: the camera parameters hold NaN or infinity')
    return ColmapCamera(model, int(width), int(height), tuple(float(p) for p in params))


def _pose(q_wxyz, c_t_w, where: str) -> np.ndarray:
    """`world_T_camera` from COLMAP's world-to-camera quaternion and translation."""
    if not np.all(np.isfinite([*q_wxyz, *c_t_w])):
        raise DatasetError(f'{where}: the pose holds NaN or infinity')
    length = math.hypot(*q_wxyz)
    if not 0.9 < length < 1.1:
        raise DatasetError(f'{where}: the quaternion has length {length:.4g} instead of 1')
    return invert_pose(pose_matrix(rotation_from_quaternion(q_wxyz), c_t_w))


class _Binary:
    """A little-endian file, read in order."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise DatasetError(f'cannot read {path}: {error.strerror}') from error
        self._offset = 0

    def unpack(self, form: str) -> tuple:
        form = '<' + form
        start = self._advance(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)

    def count(self, item_size: int) -> int:
        """A number of items that each take at least this many bytes."""
        (count,) = self.unpack('Q')
        if count * item_size > len(self._data) - self._offset:
            raise self._truncated()
        return count

    def array(self, dtype, count: int) -> np.ndarray:
        dtype = np.dtype(dtype)
        start = self._advance(dtype.itemsize * count)
        return np.frombuffer(self._data, dtype, count, start)

    def skip(self, size: int) -> None:
        self._advance(size)

    def text(self) -> str:
        end = self._data.find(b'\0', self._offset)
        if end < 0:
            raise self._truncated()
        start = self._advance(end + 1 - self._offset)
        return self._data[start:end].decode(errors='replace')

    def end(self) -> None:
        if self._offset != len(self._data):
            raise DatasetError(f'{self.path} has more bytes than it announces: it is damaged')

    def _advance(self, size: int) -> int:
        start = self._offset
        if start + size > len(self._data):
            raise self._truncated()
        self._offset = start + size
        return start

    def _truncated(self) -> DatasetError:
        return DatasetError(
            f'{self.path} is truncated or damaged (it ends within the data it announces)'
        )


def _cameras_bin(path: Path) -> dict[int, ColmapCamera]:
    file, cameras = _Binary(path), {}
    for _ in range(file.count(24)):
        key, model_id, width, height = file.unpack('IiQQ')
        if model_id not in MODELS:
            raise DatasetError(f'{path}: camera {key} has the unknown model {model_id}')
        name, parameters = MODELS[model_id]
        params = file.unpack(f'{parameters}d')
        cameras[key] = _camera(name, width, height, params, f'{path}, camera {key}')
    file.end()
    return cameras


def _images_bin(path: Path) -> list[ColmapImage]:
    file, images = _Binary(path), []
    for _ in range(file.count(73)):
        key, *numbers, camera_id = file.unpack('I7dI')
        pose = _pose(numbers[:4], numbers[4:], f'{path}, image {key}')
        name = file.text()
        seen = file.array([('xy', '<f8', 2), ('id', '<i8')], file.count(24))['id']
        images.append(ColmapImage(name, camera_id, pose, _point_ids(seen)))
    file.end()
    return images


def _points_bin(path: Path) -> tuple[list, list]:
    file, ids, points = _Binary(path), [], []
    for _ in range(file.count(51)):
        key, x, y, z, _, _, _, _ = file.unpack('q3d3Bd')
        file.skip(8 * file.count(8))
        ids.append(key)
        points.append((x, y, z))
    file.end()
    return ids, points


def _point_ids(ids) -> np.ndarray:
    """Without the observations that have no point (-1)."""
    ids = np.array(ids, dtype=np.int64)
    return np.unique(ids[ids >= 0])


def _cameras_txt(path: Path) -> dict[int, ColmapCamera]:
    cameras = {}
    for line in read_lines(path):
        key, model, *rest = line.words('CAMERA_ID MODEL WIDTH HEIGHT PARAMS', more=True)
        if model not in _PARAMETERS:
            raise line.error(f'unknown camera model {model}')
        if len(rest) != 2 + _PARAMETERS[model]:
            raise line.error(f'{model} has {_PARAMETERS[model]} parameters')
        (key,) = line.integers([key], 0, 2**32)
        width, height = line.integers(rest[:2], 1, 2**31)
        cameras[key] = _camera(model, width, height, line.numbers(rest[2:]), line.where)
    return cameras


def _images_txt(path: Path) -> list[ColmapImage]:
    """Two lines per image; the second, its observations, may be empty."""
    images = []
    lines = (line for line in every_line(path) if not line.text.startswith('#'))
    # Later an empty line means "no observations".
    lines = dropwhile(lambda line: not line.text, lines)
    for line in lines:
        form = 'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME'
        words = line.words(form, more=True)
        numbers = line.numbers(words[1:8])
        (camera_id,) = line.integers(words[8:9], 0, 2**32)
        name = line.text.split(maxsplit=9)[9]
        second = next(lines, Line(path, line.number + 1, ''))
        seen = second.text.split()
        if len(seen) % 3:
            raise second.error('expected `X Y POINT3D_ID` for each observation')
        ids = second.integers(seen[2::3], -1, 2**62)
        pose = _pose(numbers[:4], numbers[4:], line.where)
        images.append(ColmapImage(name, camera_id, pose, _point_ids(ids)))
    return images


def _points_txt(path: Path) -> tuple[list, list]:
    ids, points = [], []
    for line in read_lines(path):
        words = line.words('POINT3D_ID X Y Z', more=True)
        ids.extend(line.integers(words[:1], 0, 2**62))
        points.append(line.numbers(words[1:4]))
    return ids, points
