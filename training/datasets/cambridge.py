"""Cambridge Landmarks (Kendall et al. 2015) in its native layout, and folders written like it.

    dataset_train.txt, dataset_test.txt   3 header lines, then `file X Y Z W P Q R`: camera centre in
                                          the world and world-to-camera quaternion wxyz
    seqN/frameNNNNN.png                   the images those files name
    reconstruction.nvm                    optional, VisualSFM: focal length and radial distortion of
                                          each image, and the points it sees
    K.txt or calibration.yaml             optional, where there is no reconstruction

With a reconstruction, points and images are selected as published (Boittiaux et al. 2022): a point
counts for an image when 0.2 < z < 1000 and |x|, |y| < 1000 in its camera and it projects into the
image; images with fewer than 10 such points, or more than 1000 from the origin, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from training.datasets import Dataset, Sample
from training.datasets.calibration import CameraSource, camera_source
from training.datasets.files import existing_image, image_size
from training.datasets.nvm import Reconstruction, read_nvm
from training.datasets.text import Line, read_lines

_FOCAL, _FOCAL_WIDTH = 1670.0, 1920  # of the phone that took most of the original images
_HEADER_LINES = 3
_NEAR, _FAR = 0.2, 1000.0  # metres, as published
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
    entries = [_read_list(path, path / f'dataset_{name}.txt') for name in ('train', 'test')]
    source = camera_source(path, intrinsics, _default_camera())
    if not (path / 'reconstruction.nvm').is_file():
        warnings = [*source.warnings, f'{path} has no reconstruction.nvm: no 3D points']
        splits = [[_sample(entry, source) for entry in split] for split in entries]
        return Dataset(path.resolve().name, splits[0], splits[1], warnings)
    reconstruction = read_nvm(path / 'reconstruction.nvm')
    warnings = list(reconstruction.warnings)
    splits = []
    for name, split in zip(('train', 'test'), entries):
        samples = [_sample_with_points(entry, reconstruction, intrinsics) for entry in split]
        kept = [s for s in samples if s is not None and len(s.load_points()) >= min_points]
        if len(kept) < len(samples):
            warnings.append(
                f'{len(samples) - len(kept)} of {len(samples)} {name} images left out: they see '
                f'fewer than {min_points} points of the reconstruction'
            )
        splits.append(kept)
    return Dataset(path.resolve().name, splits[0], splits[1], warnings)


def _default_camera() -> CameraSource:
    def make(width: int, height: int) -> Camera:
        f = _FOCAL * max(width, height) / _FOCAL_WIDTH
        return Camera(width, height, f, f, (width - 1) / 2, (height - 1) / 2)

    text = (
        f'no K.txt, calibration.yaml or reconstruction.nvm: the focal length is taken to be '
        f'{_FOCAL:.0f} px at {_FOCAL_WIDTH} px width, as in Cambridge Landmarks'
    )
    return CameraSource(make, (text,))


def _read_list(path: Path, file: Path) -> list[_Entry]:
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
    return entries


def _is_entry(words: list[str]) -> bool:
    """Tells a pose from a header line, for lists that were written without a header."""
    try:
        return len(words) == 8 and all(np.isfinite(float(word)) for word in words[1:])
    except ValueError:
        return False


def _sample(entry: _Entry, source: CameraSource, **more) -> Sample:
    camera = source.make(*image_size(entry.image_path))
    sequence = entry.name.rpartition('/')[0]
    return Sample(entry.image_path, camera, entry.world_T_camera, sequence, **more)


def _sample_with_points(entry: _Entry, model: Reconstruction, intrinsics) -> Sample | None:
    """None where the reconstruction does not hold the image or it is absurdly far away."""
    index = model.find(entry.name)
    if index is None or np.abs(entry.world_T_camera[:3, 3]).max() > _FAR:
        return None
    if intrinsics is None:
        source = CameraSource(partial(model.camera, index))
    else:
        source = camera_source(entry.image_path.parent, intrinsics, CameraSource(Camera))
    return _sample(entry, source)
