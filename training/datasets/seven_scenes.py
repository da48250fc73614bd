"""7-Scenes (Shotton et al. 2013) in its native layout.

    TrainSplit.txt, TestSplit.txt     lines `sequenceN`
    seq-XX/frame-XXXXXX.color.png     (or .color.jpg)
    seq-XX/frame-XXXXXX.depth.png     16-bit millimetres; 0 and 65535 are invalid
    seq-XX/frame-XXXXXX.pose.txt      camera-to-world 4x4 of the DEPTH camera; NaN or infinite
                                      where tracking was lost: such frames are left out
    calibration.yaml                  optional: intrinsics of both cameras and color_T_depth

The samples' poses are those of the colour camera and depth is registered to it. Without
calibration.yaml the usual numbers are taken: f = 525 for colour, 585 for depth, no offset.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError
from pose_reloc.geometry import invert_pose, pose_matrix, project_to_so3
from training.datasets import Dataset, Sample
from training.datasets.depth import DepthImage
from training.datasets.text import read_lines, read_yaml

FRAME_RATE_HZ = 30.0
_LOST = ('nan', 'inf', 'infinity')  # numbers in the pose of a frame whose tracking was lost


def load(path: Path) -> Dataset:
    """Reads the lists and poses of a scene.

    Raises:
        DatasetError: the split files or the sequences they name are missing, or a pose is not one.
    """
    if not (path / 'TrainSplit.txt').is_file():
        raise DatasetError(
            f'{path} is not a 7-Scenes folder: it has no TrainSplit.txt. Give the folder of one '
            'scene, for example chess/'
        )
    color, depth, color_T_depth, warnings = _calibration(path)
    read = partial(
        _sequence, path, color=color, depth=depth, color_T_depth=color_T_depth, warnings=warnings
    )
    train, test = (
        [sample for sequence in _sequences(path / name) for sample in read(sequence)]
        for name in ('TrainSplit.txt', 'TestSplit.txt')
    )
    if not any(sample.depth_loader for sample in train or test):
        warnings.append(f'{path} holds no depth images')
    return Dataset(path.name, train, test, warnings)


def _sequences(path: Path) -> list[str]:
    if not path.is_file():
        return []
    names = []
    for line in read_lines(path):
        match = re.fullmatch(r'(?:sequence|seq-?)\s*([0-9]{1,6})', line.text)
        if not match:
            raise line.error('expected `sequenceN`')
        names.append(f'seq-{int(match[1]):02d}')
    return names


def _sequence(
    path: Path, name: str, color: Camera, depth: dict, color_T_depth, warnings: list[str]
) -> list[Sample]:
    folder = path / name
    poses = sorted(folder.glob('frame-*.pose.txt'))
    if not poses:
        raise DatasetError(f'{folder} holds no frame-*.pose.txt although a split file names it')
    depth_T_color = invert_pose(color_T_depth)
    samples = []
    for pose_path in poses:
        world_T_depth = _read_pose(pose_path)
        if world_T_depth is None:
            continue
        stem = pose_path.name[: -len('.pose.txt')]
        images = [folder / f'{stem}.color.{ext}' for ext in ('png', 'jpg')]
        image_path = next((p for p in images if p.is_file()), None)
        if image_path is None:
            raise DatasetError(f'{pose_path} has no image beside it: expected {images[0].name}')
        depth_path = folder / f'{stem}.depth.png'
        loader = None
        if depth_path.is_file():
            loader = DepthImage(depth_path, color=color, color_T_depth=color_T_depth, **depth)
        samples.append(
            Sample(
                image_path,
                color,
                world_T_depth @ depth_T_color,
                name,
                int(re.sub(r'\D', '', stem) or 0) / FRAME_RATE_HZ,
                loader,
            )
        )
    if len(samples) < len(poses):
        warnings.append(
            f'{len(poses) - len(samples)} of {len(poses)} frames of {folder} left out: their poses '
            'are NaN or infinite (tracking was lost)'
        )
    return samples


def _read_pose(path: Path) -> np.ndarray | None:
    """The pose (4, 4) in a file; None where it is NaN or infinite."""
    lines = list(read_lines(path))
    if any(word.strip('+-').lower() in _LOST for line in lines for word in line.text.split()):
        return None
    numbers = [number for line in lines for number in line.numbers(line.text.split())]
    if len(numbers) != 16:
        raise DatasetError(f'{path} is not a pose: expected 16 numbers, got {len(numbers)}')
    T = np.reshape(numbers, (4, 4))
    return pose_matrix(lines[0].nearest_rotation(T[:3, :3]), T[:3, 3])


def _calibration(path: Path):
    """Colour camera, keyword arguments of DepthImage, color_T_depth, warnings."""
    file = path / 'calibration.yaml'
    if not file.is_file():
        color = Camera(640, 480, 525.0, 525.0, 320.0, 240.0)
        depth = {'depth': Camera(640, 480, 585.0, 585.0, 320.0, 240.0)}
        text = f'{path} has no calibration.yaml: colour and depth are taken to share one pose'
        return color, depth, np.eye(4), [text]
    try:
        values = read_yaml(file)
        color = _camera(values['color'])
        depth = {
            'depth': _camera(values['depth']),
            'unit_m': float(values['depth'].get('unit_m', 0.001)),
            'invalid': tuple(int(v) for v in values['depth'].get('invalid', (0, 65535))),
        }
        T = np.array(values['color_T_depth'], dtype=np.float64).reshape(4, 4)
        return color, depth, pose_matrix(project_to_so3(T[:3, :3]), T[:3, 3]), []
    except (
        *(KeyError, TypeError, ValueError, OverflowError),
        *(AttributeError, CameraError),
    ) as error:
        raise DatasetError(f'{file} is not a calibration: {error!r:.300}') from error


def _camera(values: dict) -> Camera:
    names = ('width', 'height', 'fx', 'fy', 'cx', 'cy')
    return Camera.from_dict({name: values[name] for name in names})
