"""Matches features of two images whose poses are known.

Both rays to a point lie in one plane with the baseline. In polar coordinates about the baseline a
ray has a longitude (which plane) and a colatitude (its angle from the baseline), so that

    rays that may meet have nearly the same longitude, and
    the colatitude grows from the first camera to the second by the angle at which they meet.

Features sorted by longitude have their candidates in a narrow band. Only that band of the matrix of
similarities is computed, which is some ten times cheaper than all of it and leaves so few rivals
that the ratio test may be loose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_CHUNK = 128  # features of the first image per block of similarities
_NEAREST = np.deg2rad(2.0)  # rays closer than this to the baseline say nothing about distance
_WIDEST = np.deg2rad(60.0)  # SIFT does not recognise a point over a wider angle


@dataclass(frozen=True)
class Rays:
    """What one image sees.

    Attributes:
        centre: of the camera in the world (3,).
        directions: unit vectors (N, 3) in the world, float64.
        descriptors: unit vectors (N, D) float32.
    """

    centre: np.ndarray
    directions: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Matches:
    """Features that may see the same point.

    Attributes:
        first, second: indices (M,) into the features of the two images.
        ratio: squared distance (M,) of the descriptors over that of the best rival; small is sure.
        angle: between the two rays (M,), radians.
        distance: from the first camera to where the rays meet (M,), in the unit of the centres.
    """

    first: np.ndarray
    second: np.ndarray
    ratio: np.ndarray
    angle: np.ndarray
    distance: np.ndarray


def match_rays(a: Rays, b: Rays, tolerance: float, ratio: float) -> Matches:
    """Mutual nearest neighbours among the features that epipolar geometry allows.

    Args:
        a, b: the two images.
        tolerance: on the Sampson distance from the epipolar plane, radians.
        ratio: bound on the distance of the nearest descriptor over that of its best rival.
    """
    baseline = b.centre - a.centre
    length = np.linalg.norm(baseline)
    if length == 0 or len(a.directions) == 0 or len(b.directions) == 0:
        return _matches(np.zeros((5, 0)))
    axes = _axes(baseline / length, a.directions.mean(axis=0) + b.directions.mean(axis=0))
    a_side, b_side = _side(a, axes, tolerance), _side(b, axes, tolerance)
    if len(a_side.index) == 0 or len(b_side.index) == 0:
        return _matches(np.zeros((5, 0)))
    best, nearest, rival, taker = _search(a_side, b_side, tolerance)
    # |x - y|^2 = 2 - 2 cos for unit vectors.
    quotient = (1 - nearest) / np.maximum(1 - rival, 1e-6)
    passed = (nearest > 0) & (quotient < ratio**2) & (taker[best] == np.arange(len(best)))
    first, second = np.flatnonzero(passed), best[passed]
    angle = b_side.colatitude[second] - a_side.colatitude[first]
    distance = length * np.sin(b_side.colatitude[second]) / np.sin(np.maximum(angle, 1e-6))
    return _matches((a_side.index[first], b_side.index[second], quotient[first], angle, distance))


def _matches(columns) -> Matches:
    first, second, ratio, angle, distance = columns
    return Matches(first.astype(np.int64), second.astype(np.int64), ratio, angle, distance)


def _axes(pole: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Columns (3, 3): the pole, and two axes across it; longitude 0 is where the cameras look.

    The cut at longitude 180 degrees is then where they do not look.
    """
    across = view - (view @ pole) * pole
    if np.linalg.norm(across) < 1e-6:
        across = np.eye(3)[np.abs(pole).argmin()]
        across = across - (across @ pole) * pole
    across /= np.linalg.norm(across)
    return np.stack([pole, across, np.cross(pole, across)], axis=1)


@dataclass(frozen=True)
class _Side:
    """The usable rays of one image, by longitude.

    Attributes:
        index: of the features (K,).
        longitude, colatitude: radians (K,) float32.
        reach2: square of what the tolerance is in longitude (K,).
        descriptors: (K, D).
    """

    index: np.ndarray
    longitude: np.ndarray
    colatitude: np.ndarray
    reach2: np.ndarray
    descriptors: torch.Tensor


def _side(rays: Rays, axes: np.ndarray, tolerance: float) -> _Side:
    along, x, y = (rays.directions @ axes).T
    colatitude, longitude = np.arctan2(np.hypot(x, y), along), np.arctan2(y, x)
    usable = np.flatnonzero(np.sin(colatitude) > np.sin(_NEAREST))
    index = usable[np.argsort(longitude[usable], kind='stable')]
    colatitude = colatitude[index].astype(np.float32)
    return _Side(
        index,
        longitude[index].astype(np.float32),
        colatitude,
        (tolerance / np.sin(colatitude)) ** 2,
        torch.from_numpy(rays.descriptors[index]),
    )


def _search(a: _Side, b: _Side, tolerance: float):
    """Nearest neighbours among the allowed pairs.

    Returns:
        For each ray of a the best of b, its similarity and that of the second best; for each ray of
        b the best of a. Where nothing is allowed the similarity is -1.
    """
    best, nearest = np.zeros(len(a.index), dtype=np.int64), np.full(len(a.index), -1.0)
    rival = nearest.copy()
    taker, taken = np.zeros(len(b.index), dtype=np.int64), np.full(len(b.index), -1.0)
    for start in range(0, len(a.index), _CHUNK):
        rows = slice(start, start + _CHUNK)
        reach = np.sqrt(a.reach2[rows] + b.reach2.max())
        low = np.searchsorted(b.longitude, (a.longitude[rows] - reach).min())
        high = np.searchsorted(b.longitude, (a.longitude[rows] + reach).max())
        if low == high:
            continue
        band = slice(low, high)
        # torch, because numpy's OpenBLAS spins: 50 times slower when the cores are shared.
        similarity = (a.descriptors[rows] @ b.descriptors[band].T).numpy()
        # A ray that is off by t has a longitude that is off by t / sin(colatitude); the squared
        # Sampson distance is the squared difference over the sum of both factors, squared.
        turn = a.longitude[rows, None] - b.longitude[band]
        angle = b.colatitude[band] - a.colatitude[rows, None]
        allowed = turn * turn < a.reach2[rows, None] + b.reach2[band]
        allowed &= (angle > -tolerance) & (angle < _WIDEST)
        similarity[~allowed] = -1.0
        # A column meets one block after the other; a row is complete in its block.
        row = similarity.argmax(axis=0)
        top = similarity[row, np.arange(high - low)]
        taker[band] = np.where(top > taken[band], row + start, taker[band])
        taken[band] = np.maximum(top, taken[band])
        each, column = np.arange(len(similarity)), similarity.argmax(axis=1)
        best[rows], nearest[rows] = column + low, similarity[each, column]
        similarity[each, column] = -1.0
        rival[rows] = similarity.max(axis=1)
    return best, nearest, rival, taker
