"""Cambridge Landmarks (Kendall et al. 2015) in its native layout, and folders written like it.

    dataset_train.txt, dataset_test.txt   3 header lines, then `file X Y Z W P Q R`: camera centre
                                          in the world and world-to-camera quaternion wxyz
    seqN/frameNNNNN.png                   the images those files name
    reconstruction.nvm                    optional, VisualSFM: focal length and radial distortion
                                          of each image, and the points it sees
    K.txt or calibration.yaml             optional, where there is no reconstruction

With a reconstruction, points and images are selected as published (Boittiaux et al. 2022): a point
counts for an image when 0.2 < z < 1000 and |x|, |y| < 1000 in its camera and it projects into the
image; images with fewer than 10 such points, or more than 1000 from the origin, are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.datasets import Dataset, Sample
from training.datasets.calibration import CameraSource, camera_source
from training.datasets.files import existing_image, image_size, natural_order
from training.datasets.nvm import Reconstruction, read_nvm
from training.datasets.text import read_lines

_FOCAL, _FOCAL_WIDTH = 1670.0, 1920  # of the phone that took most of the original images
_HEADER_LINES = 3
_NEAR, _FAR = 0.2, 1000.0  # metres, as published
_FRAME_RATE_HZ = 2.0  # the videos were subsampled to this rate
_FORM = 'file X Y Z W P Q R'


@dataclass(frozen=True)
class _Entry:
    """One line of a list file: what it names and the pose it gives."""

    name: str
    image_path: Path
    world_T_camera: np.ndarray


def load(path: Path, intrinsics=None, min_points: int = 10) -> Dataset:
    """Reads the lists, and the reconstruction if there is one.

    Args:
        path: folder of one scene.
        intrinsics: (fx, fy, cx, cy) in pixels, instead of those in the folder.
        min_points: images that see fewer points of the reconstruction are left out.

    Raises:
        DatasetError: a list is missing or has a bad line, an image is missing, or the
            reconstruction is damaged.
    """
    if not (path / 'dataset_train.txt').is_file():
        raise DatasetError(
            f'{path} is not a Cambridge Landmarks folder: it has no dataset_train.txt. Give the '
            'folder of one scene, for example KingsCollege/'
        )
    lists = [_read_list(path, path / f'dataset_{name}.txt') for name in ('train', 'test')]
    source = camera_source(path, intrinsics, _default_camera())
    if (path / 'reconstruction.nvm').is_file():
        model = read_nvm(path / 'reconstruction.nvm')
        cameras = None if intrinsics is None else source
        read = partial(_with_points, model=model, cameras=cameras, min_points=min_points)
        splits, warnings = [read(entries) for entries in lists], []
        for name, entries, samples in zip(('train', 'test'), lists, splits):
            if len(samples) < len(entries):
                warnings.append(
                    f'{len(entries) - len(samples)} of {len(entries)} {name} images left out: '
                    f'they see fewer than {min_points} usable points of the reconstruction'
                )
    else:
        splits = [[_sample(e, source.make(*image_size(e.image_path))) for e in es] for es in lists]
        warnings = [*source.warnings, f'{path} has no reconstruction.nvm: no 3D points']
    return Dataset(path.resolve().name, splits[0], splits[1], warnings)


def _default_camera() -> CameraSource:
    def make(width: int, height: int) -> Camera:
        f = _FOCAL * max(width, height) / _FOCAL_WIDTH
        return Camera(width, height, f, f, (width - 1) / 2, (height - 1) / 2)

    text = (
        'neither K.txt nor calibration.yaml is there: the focal length is taken to be '
        f'{_FOCAL:.0f} px at {_FOCAL_WIDTH} px width, as in Cambridge Landmarks'
    )
    return CameraSource(make, (text,))


def _read_list(path: Path, file: Path) -> list[_Entry]:
    """The entries of a list in the order of their recordings; none where there is no such list."""
    if not file.is_file():
        return []
    entries = []
    for line in read_lines(file):
        words = line.text.split()
        if line.number <= _HEADER_LINES and not _is_entry(words):
            continue
        words = line.words(_FORM)
        values = line.numbers(words[1:])
        pose = line.pose(values[:3], values[3:], camera_to_world=False)
        entries.append(_Entry(words[0], existing_image(path, words[0], line.where), pose))
    return sorted(entries, key=lambda entry: natural_order(entry.name))


def _is_entry(words: list[str]) -> bool:
    """Tells a pose from a header line, for lists that were written without a header."""
    try:
        return len([float(word) for word in words[1:]]) == 7
    except ValueError:
        return False


def _sample(entry: _Entry, camera: Camera, points_loader=None) -> Sample:
    sequence, _, file = entry.name.rpartition('/')
    digits = re.sub(r'\D', '', file)[-9:]
    timestamp = int(digits or 0) / _FRAME_RATE_HZ
    return Sample(
        entry.image_path,
        camera,
        entry.world_T_camera,
        sequence,
        timestamp,
        points_loader=points_loader,
    )


def _with_points(
    entries: list[_Entry], model: Reconstruction, cameras: CameraSource | None, min_points: int
) -> list[Sample]:
    """Samples of the images that see enough points of the reconstruction."""
    samples = []
    for entry in entries:
        index = model.find(entry.name)
        if index is None or np.abs(entry.world_T_camera[:3, 3]).max() > _FAR:
            continue
        size = image_size(entry.image_path)
        if cameras:
            camera = cameras.make(*size)
        else:
            _check_size(entry, size, model.tracks.reach_N2[index].max())
            camera = model.camera(index, *size)
        seen = model.tracks.seen(index)
        seen = seen[_usable(model.tracks.points(seen), entry.world_T_camera, camera)]
        if len(seen) >= min_points:
            samples.append(_sample(entry, camera, partial(model.tracks.points, seen)))
    return samples


def _check_size(entry: _Entry, size: tuple[int, int], reach: float) -> None:
    if reach > 0.51 * max(size):
        raise DatasetError(
            f'{entry.image_path} is {size[0]}x{size[1]}, but its measurements in '
            f'reconstruction.nvm reach {reach:.0f} px from the centre: it was resized since. '
            'Give the option intrinsics=fx,fy,cx,cy of the resized images'
        )


def _usable(points_N3: np.ndarray, world_T_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Which world points (N, 3) pass the published rules for this camera."""
    c_T_w = invert_pose(world_T_camera)
    p = points_N3 @ c_T_w[:3, :3].T + c_T_w[:3, 3]
    near = (p[:, 2] > _NEAR) & (p[:, 2] < _FAR) & (np.abs(p[:, :2]) < _FAR).all(axis=1)
    uv = np.nan_to_num(camera.project(p), nan=-1e9)
    # Pixel 0 reaches from -0.5 to 0.5.
    inside = (uv > -0.5).all(axis=1) & (uv < (camera.width - 0.5, camera.height - 0.5)).all(axis=1)
    usable = near & inside
    if usable.any() and not camera.is_pinhole:
        # Far outside the image a distortion polynomial folds back into it: such a pixel does not
        # lead back to its point.
        back = camera.unproject(uv[usable], p[usable, 2])
        limit = 0.02 * np.linalg.norm(p[usable], axis=1)
        usable[usable] = np.linalg.norm(back - p[usable], axis=1) < limit
    return usable
