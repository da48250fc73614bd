"""Which points of a reconstruction each image sees."""

from __future__ import annotations

import numpy as np


class Tracks:
    """World points and, per image, the indices of those it observes.

    Args:
        points_N3: world points.
        image_M, point_M: one observation each: index of the image and of the point.
        images: number of images.
    """

    def __init__(self, points_N3, image_M, point_M, images: int):
        self._points_N3 = np.asarray(points_N3, dtype=np.float64).reshape(-1, 3)
        image_M = np.asarray(image_M, dtype=np.int32)
        order = np.argsort(image_M, kind='stable')
        self._point_M = np.asarray(point_M, dtype=np.int32)[order]
        self._start = np.searchsorted(image_M[order], np.arange(images + 1))

    def seen(self, image: int) -> np.ndarray:
        """Indices of the points that this image observes, each once, ascending."""
        return np.unique(self._point_M[self._start[image] : self._start[image + 1]])

    def points(self, indices: np.ndarray) -> np.ndarray:
        """World points (N, 3) of these indices."""
        return self._points_N3[indices]

    def seen_points(self, image: int) -> np.ndarray:
        """World points (N, 3) that this image observes."""
        return self.points(self.seen(image))
