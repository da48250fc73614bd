"""VisualSFM reconstructions (NVM_V3): focal lengths, distortion and points.

Camera line: `file focal W P Q R X Y Z r 0`; point line: `X Y Z R G B n` and n times
`image feature x y`, with x and y in pixels from the image centre. VisualSFM distorts measurements:
with x_d a measurement and x_u the projection of its point, both divided by the focal length,
    x_u = x_d (1 + r |x_d|^2).
OpenCV maps the other way, so its radial coefficients are fitted to the inverse over the image:
x_d = x_u (1 + k1 |x_u|^2 + k2 |x_u|^4 + k3 |x_u|^6). The series of the inverse starts with
k1 = -r, k2 = 3 r^2, k3 = -12 r^3; the fit stays within 0.1 px at 1920x1080 for |r| up to 0.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from training.datasets.text import Line, next_line, read_lines
from training.datasets.tracks import TrackReader, Tracks

_CAMERA = 'file focal W P Q R X Y Z r'
_POINT = 'X Y Z R G B n'
_FOCAL, _RADIAL = (1, 10**6), 1000  # pixels; far beyond any lens


@dataclass(frozen=True)
class Reconstruction:
    """What a relocalization dataset needs of an NVM file; indices count its images.

    Attributes:
        index: image name without suffix -> index.
        focal_N: focal lengths in pixels.
        radial_N: r of the measurement distortion.
        tracks: which points each image sees.
    """

    index: dict[str, int]
    focal_N: np.ndarray
    radial_N: np.ndarray
    tracks: Tracks

    def find(self, name: str) -> int | None:
        """Index of an image; the suffix does not count (the original lists disagree about it)."""
        return self.index.get(_stem(name))

    def camera(self, index: int, width: int, height: int) -> Camera:
        """The camera of an image of this size, principal point in its centre."""
        f, r = float(self.focal_N[index]), float(self.radial_N[index])
        k1, k2, k3 = opencv_radial(r, np.hypot(width, height) / 2 / f)
        cx, cy = (width - 1) / 2, (height - 1) / 2
        return Camera(width, height, f, f, cx, cy, (k1, k2, 0.0, 0.0, k3))


def opencv_radial(r: float, radius: float) -> tuple[float, float, float]:
    """OpenCV's (k1, k2, k3) for VisualSFM's measurement distortion r.

    Args:
        radius: how far from the centre measurements lie, divided by the focal length.
    """
    if r == 0:
        return 0.0, 0.0, 0.0
    if r < 0:  # beyond this radius x_u shrinks again, so nothing real was measured there
        radius = min(radius, 0.95 / np.sqrt(-3 * r))
    x_d = np.linspace(radius / 200, radius, 200)
    x_u = x_d * (1 + r * x_d**2)
    powers = x_u[:, None] ** (3, 5, 7)
    k, *_ = np.linalg.lstsq(powers, x_d - x_u, rcond=None)
    return float(k[0]), float(k[1]), float(k[2])


def read_nvm(path: Path) -> Reconstruction:
    """Reads the first model of an NVM file.

    Raises:
        DatasetError: it is not such a file, is truncated, or has a bad line.
    """
    lines = read_lines(path)
    first = next_line(lines, path, 'NVM_V3')
    if not first.text.startswith('NVM_V3'):
        raise first.error('not a VisualSFM reconstruction (NVM_V3)')
    if 'FixedK' in first.text:
        raise first.error('a calibration shared by all images (FixedK) is not supported')
    images = _count(next_line(lines, path, 'the number of images'))
    index, focal, radial = {}, [], []
    for i in range(images):
        line = next_line(lines, path, f'image {i + 1} of {images}')
        words = line.words(_CAMERA, more=True)
        values = line.numbers(words[1:10])
        if not _FOCAL[0] <= values[0] <= _FOCAL[1]:
            raise line.error(f'the focal length is not in the range {_FOCAL[0]} to {_FOCAL[1]}')
        if abs(values[8]) > _RADIAL:
            raise line.error(f'the radial distortion is larger than {_RADIAL}')
        index[_stem(words[0])] = i
        focal.append(values[0])
        radial.append(values[8])
    return Reconstruction(
        index, np.array(focal), np.array(radial), _read_points(lines, path, images)
    )


def _read_points(lines: Iterator[Line], path: Path, images: int) -> Tracks:
    count = _count(next_line(lines, path, 'the number of points'))
    reader = TrackReader(images)
    for i in range(count):
        line = next_line(lines, path, f'point {i + 1} of {count}')
        words = line.words(_POINT, more=True)
        reader.add(line.numbers(words[:3]), line, words[6:])
    return reader.tracks()


def _count(line: Line) -> int:
    (count,) = line.integers(line.words('count'), 0, 2**31)
    return count


def _stem(name: str) -> str:
    return re.sub(r'\.[^./]*$', '', name.replace('\\', '/'))
