"""The points of a reconstruction and which of them each image sees."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from training.datasets.text import Line


class Tracks:
    """World points and, per image, the indices of those it observes.

    Attributes:
        reach_N2: largest |x| and |y| of each image's measurements, in pixels from the centre.
    """

    def __init__(self, points_N3, image_M, point_M, xy_M2, images: int):
        self._points_N3 = np.array(points_N3, dtype=np.float64).reshape(-1, 3)
        image_M, xy_M2 = np.array(image_M, dtype=np.int32), np.reshape(xy_M2, (-1, 2))
        order = np.argsort(image_M, kind='stable')
        self._point_M = np.array(point_M, dtype=np.int32)[order]
        self._start = np.searchsorted(image_M[order], np.arange(images + 1))
        self.reach_N2 = np.zeros((images, 2))
        np.maximum.at(self.reach_N2, image_M, np.abs(xy_M2))

    def seen(self, image: int) -> np.ndarray:
        """Indices of the points that this image observes, each once, ascending."""
        return np.unique(self._point_M[self._start[image] : self._start[image + 1]])

    def points(self, indices: np.ndarray) -> np.ndarray:
        """World points (N, 3) of these indices."""
        return self._points_N3[indices]

    def seen_points(self, image: int) -> np.ndarray:
        """World points (N, 3) that this image observes."""
        return self.points(self.seen(image))


class TrackReader:
    """Collects the points of a text file; memory grows with what is read, not what is announced."""

    def __init__(self, images: int):
        self._images = images
        self._points_N3, self._xy_M2 = array('d'), array('f')
        self._image_M, self._point_M = array('i'), array('i')

    def add(self, xyz: np.ndarray, line: Line, words: Sequence[str]) -> None:
        """Adds a point and its measurements `n`, then n times `image feature x y`.

        Raises:
            DatasetError: the words of the line are not that.
        """
        (seen,) = line.integers(words[:1], 0, len(words))
        if len(words) < 1 + 4 * seen:
            raise line.error(f'expected {seen} measurements `image feature x y`')
        point = len(self._points_N3) // 3
        self._points_N3.extend(xyz)
        self._image_M.extend(line.integers(words[1 : 1 + 4 * seen : 4], 0, self._images))
        self._point_M.extend([point] * seen)
        xy = [word for k in range(3, 1 + 4 * seen, 4) for word in words[k : k + 2]]
        self._xy_M2.extend(line.numbers(xy))

    def tracks(self) -> Tracks:
        """All that was added."""
        return Tracks(self._points_N3, self._image_M, self._point_M, self._xy_M2, self._images)
