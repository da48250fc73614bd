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
MOST_SIMILAR = 10  # training images that an image is compared with; all where there are fewer
_POWER, _GROWTH, _SPREAD = 1.6, 4.0, 10.0
_EYE = np.eye(3)


@dataclass(frozen=True)
class CoarseCalibration:
    """How far off a regressed pose is, by what the training images most like its image tell of it.

    With the feature distance d to the most similar of them (`network.most_similar`) and the mean
    E = mean(e e^T) over several of them, where e is the offset of the regressed pose from where one
    was taken, position and rotation have the covariance

        s^2 ((1 + 4 (d / usual_distance)^1.6) I + 10 E / usual_offset^2)

    A network errs most where it has seen nothing alike; and where it answers another place than
    those of the images it finds most alike, or these are far apart, the error is likely to lie
    along what separates them. Power and weights were found by trying; see docs/experiments.md for
    what else was tried.

    Attributes:
        position_m: s, the standard deviation along each axis for d = 0 and E = 0.
        rotation_rad: the same of the rotation about each axis.
        usual_distance: median of d between parts of the training recording.
        usual_offset_m: square root of the median of |e|^2 between these parts, of positions, with
            e from the most similar image.
        usual_offset_rad: the same of rotations.
    """

    position_m: float
    rotation_rad: float
    usual_distance: float
    usual_offset_m: float
    usual_offset_rad: float

    def __post_init__(self):
        values = tuple(vars(self).values())
        if not all(np.isfinite(x) and x > 0 for x in values):
            raise ValueError(f'a calibration must be positive and finite, got {values}')

    def covariance(self, distance: float, offset_K6) -> np.ndarray:
        """Covariance (6, 6) of a regressed pose, positive definite and finite.

        Args:
            distance: of its image, see `network.most_similar`. Where it or an offset is not finite,
                it counts as the greatest possible, and the offsets as nothing.
            offset_K6: `geometry.network_offset` of the pose from the most similar images.
        """
        mean_66 = offset_K6.T @ offset_K6 / len(offset_K6)
        distance, spread = float(distance), float(mean_66.trace())
        if not (math.isfinite(distance) and math.isfinite(spread)):
            distance, mean_66 = GREATEST_DISTANCE, np.zeros((6, 6))
        growth = 1 + _GROWTH * (distance / self.usual_distance) ** _POWER
        result = np.zeros((6, 6))
        for part, sigma, usual in (
            (slice(0, 3), self.position_m, self.usual_offset_m),
            (slice(3, 6), self.rotation_rad, self.usual_offset_rad),
        ):
            result[part, part] = mean_66[part, part] * (_SPREAD * (sigma / usual) ** 2)
            result[part, part] += growth * sigma * sigma * _EYE
        return result

    def formula(self, distance: str, mean: str) -> str:
        """The two covariances, to be read by people."""
        return (
            f's^2 ((1 + {_GROWTH:g} ({distance} / {self.usual_distance:.4g})^{_POWER}) I '
            f'+ {_SPREAD:g} {mean} / u^2) with s = {self.position_m:.4g} m and '
            f'u = {self.usual_offset_m:.4g} m of positions, s = {self.rotation_rad:.4g} rad and '
            f'u = {self.usual_offset_rad:.4g} rad of rotations'
        )


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
