"""Covariances of poses: how they are measured and how they move along a rigid body.

Every 6x6 covariance here follows ROS: (x, y, z, rotX, rotY, rotZ), translation of the frame's
origin and rotation about it, both along the fixed axes of the parent frame; the error it describes
is `geometry.pose_residual`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

GREATEST_DISTANCE = 2.0  # of two unit vectors: they are opposite
_POWER = 1.25


@dataclass(frozen=True)
class CoarseCalibration:
    """How far off a regressed pose is, by how little its image resembles the training images.

    The variance grows as 1 + (d / usual_distance)^1.25 with the `network.feature_distance` d of
    the image: a network errs most where it has seen nothing alike. The power was found by trying;
    see docs/benchmarks.md for what else was tried. Axes are alike and independent: the few held-out
    frames do not tell directions apart.

    Attributes:
        position_m: standard deviation along each axis for d = 0.
        rotation_rad: the same of the rotation about each axis.
        usual_distance: median of d between parts of the training recording.
    """

    position_m: float
    rotation_rad: float
    usual_distance: float

    def __post_init__(self):
        values = self.position_m, self.rotation_rad, self.usual_distance
        if not all(np.isfinite(x) and x > 0 for x in values):
            raise ValueError(f'a calibration must be positive and finite, got {values}')

    def growth(self, distance):
        """Factor on the variances by `network.feature_distance`, of any shape."""
        return 1 + (distance / self.usual_distance) ** _POWER

    def growth_formula(self, distance: str) -> str:
        """`growth`, to be read by people."""
        return f'1 + ({distance} / {self.usual_distance:.4g})^{_POWER}'

    def covariance(self, distance: float) -> np.ndarray:
        """Covariance (6, 6) of a regressed pose, positive definite and finite.

        Args:
            distance: `network.feature_distance` of its image; NaN counts as the greatest possible.
        """
        growth = self.growth(distance if math.isfinite(distance) else GREATEST_DISTANCE)
        return np.diag([growth * self.position_m**2] * 3 + [growth * self.rotation_rad**2] * 3)


def checked_covariance(covariance_66) -> np.ndarray:
    """The covariance (6, 6) as float64, exactly symmetric. It may be singular.

    Raises:
        ValueError: it is none; the message continues a sentence that begins with its name.
    """
    covariance = np.asarray(covariance_66, dtype=np.float64)
    if covariance.shape != (6, 6):
        raise ValueError(f'must be (6, 6), not {covariance.shape}')
    if not np.isfinite(covariance).all():
        raise ValueError('holds NaN or infinity')
    covariance = (covariance + covariance.T) / 2
    if np.linalg.eigvalsh(covariance)[0] < -1e-9 * max(np.trace(covariance), 1.0):
        raise ValueError('has a negative eigenvalue')
    return covariance


def propagate_lever_arm(covariance_66, a_T_b, b_T_c) -> np.ndarray:
    """Covariance of `a_T_c = a_T_b b_T_c` for an exact `b_T_c`.

    The rotation error is the same at every point of a rigid body; the origin of c additionally
    moves by w x r with the lever r = a_R_b b_t_c, so x_c = x_b - [r]x w.

    Args:
        covariance_66: of `a_T_b`, along the axes of a.
        a_T_b: pose (4, 4), for example map_T_camera.
        b_T_c: pose (4, 4), for example camera_T_base.

    Returns:
        (6, 6), symmetric.
    """
    x, y, z = np.asarray(a_T_b)[:3, :3] @ np.asarray(b_T_c)[:3, 3]
    J = np.eye(6)
    J[:3, 3:] = -np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    moved = J @ np.asarray(covariance_66, dtype=np.float64) @ J.T
    return (moved + moved.T) / 2


def rotate_covariance(covariance_66, b_R_a) -> np.ndarray:
    """The same covariance (6, 6) along the axes of frame b instead of a."""
    B = np.kron(np.eye(2), np.asarray(b_R_a))
    rotated = B @ np.asarray(covariance_66, dtype=np.float64) @ B.T
    return (rotated + rotated.T) / 2
