"""What every picture of a walk needs: where is up, and which images followed each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How much the mean direction of the images' bottoms counts beside one camera's x axis.
_DOWN_WEIGHT = 0.01


@dataclass(frozen=True)
class FloorView:
    """The floor on which cameras move, looked at from above.

    Attributes:
        origin: (3,) in the world, the mean of the cameras.
        axes: (3, 2), two orthonormal directions in the world: right and up in the picture.
    """

    origin: np.ndarray
    axes: np.ndarray

    @property
    def up(self) -> np.ndarray:
        """The direction (3,) in the world that points away from the floor, of unit length."""
        return np.cross(*self.axes.T)

    def flat(self, points_N3) -> np.ndarray:
        """Picture coordinates (N, 2) in metres."""
        return (np.asarray(points_N3) - self.origin) @ self.axes


def floor_view(world_T_camera_N44) -> FloorView:
    """The floor under cameras that are carried upright, its longer side to the right.

    A camera without roll has a horizontal x axis, however it is tilted: up is the direction that is
    most nearly orthogonal to all of them, on the side to which the images' tops point. Cameras that
    all look the same way leave a choice, which the images' tops decide too.
    """
    T = np.asarray(world_T_camera_N44)
    positions, x_axes = T[:, :3, 3], T[:, :3, 0]
    down = T[:, :3, 1].mean(axis=0)
    towards = down / max(np.linalg.norm(down), 1e-9)
    spread = x_axes.T @ x_axes / len(T)
    up = np.linalg.eigh(spread - _DOWN_WEIGHT * np.outer(towards, towards))[1][:, 0]
    up = -up if up @ down > 0 else up
    origin = positions.mean(axis=0)
    floor_23 = np.linalg.svd(up[None])[2][1:]
    right = np.linalg.svd((positions - origin) @ floor_23.T, full_matrices=True)[2][0] @ floor_23
    return FloorView(origin, np.stack([right, np.cross(up, right)], axis=1))


def walked(points_ND, sequences: Sequence[str] | None = None) -> np.ndarray:
    """Indices i of the steps i -> i + 1 that a camera walked (M,).

    A step across a jump or into another sequence is none. A loose collection of images, of which
    most would be jumps, has no steps at all.

    Args:
        points_ND: positions (N, 2) or (N, 3) in the order of the images.
        sequences: the sequence of each; None means one for all.
    """
    points = np.asarray(points_ND)
    if len(points) < 2:
        return np.zeros(0, dtype=int)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    extent = float(np.max(np.ptp(points, axis=0)))
    # A straight walk has steps of extent / len(steps).
    longest = extent * max(0.25, 1.5 / len(steps))
    joined = steps <= min(8 * float(np.median(steps)), longest)
    if sequences is not None:
        names = np.asarray(sequences)
        joined &= names[1:] == names[:-1]
    return np.flatnonzero(joined) if joined.sum() > len(steps) / 2 else np.zeros(0, dtype=int)
