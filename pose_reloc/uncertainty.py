"""Covariances of poses: how they are measured and how they move along a rigid body.

Every 6x6 covariance here follows ROS: (x, y, z, rotX, rotY, rotZ), translation of the frame's
origin and rotation about it, both along the fixed axes of the parent frame; the error it describes
is `geometry.pose_residual`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pose_reloc.geometry import pose_residual

# 95 % of the squared Mahalanobis length of one Gaussian axis lie below this (chi-square, 1 dof).
_CHI2_95_1 = 3.841458820694124
_GREATEST_DISTANCE = 2.0  # of two unit vectors: they are opposite


@dataclass(frozen=True)
class CoarseCalibration:
    """How far off a regressed pose is, by how little its image resembles the training images.

    The variance grows as 1 + (d / usual_distance)^2 with the `feature_distance` d of the image: a
    network errs most where it has seen nothing alike. It does not grow beyond that of the training
    poses, because the network answers within the scene: 1 / variance = 1 / grown + 1 / greatest.
    Axes are alike and independent: the few held-out frames do not tell directions apart.

    Attributes:
        position_m: standard deviation along each axis for d = 0, without the limit.
        rotation_rad: the same of the rotation about each axis.
        usual_distance: median of d over the held-out frames.
        greatest_position_m, greatest_rotation_rad: the limits; files of earlier versions have
            none.
    """

    position_m: float
    rotation_rad: float
    usual_distance: float
    greatest_position_m: float = 1e3
    greatest_rotation_rad: float = np.pi

    def growth(self, distance):
        """Factor on the variances by `feature_distance`, of any shape."""
        return 1 + (np.asarray(distance) / self.usual_distance) ** 2

    def covariance(self, distance: float) -> np.ndarray:
        """Covariance (6, 6) of a regressed pose, positive definite and finite.

        Args:
            distance: `feature_distance` of its image; NaN counts as the greatest possible.
        """
        if not np.isfinite(distance):
            distance = _GREATEST_DISTANCE
        grown = self.growth(distance) * np.square([self.position_m, self.rotation_rad])
        greatest = np.square([self.greatest_position_m, self.greatest_rotation_rad])
        return np.diag(np.repeat(1 / (1 / grown + 1 / greatest), 3))


def feature_distance(features_BF, train_features_NF) -> np.ndarray:
    """1 - cosine to the most similar training image (B,), in [0, 2].

    Args:
        features_BF: what the trained backbone says of the images, of any length.
        train_features_NF: the same of the images it was trained on, rows of unit length.

    Returns:
        NaN where the features are not finite; 1 where they are all zero.
    """
    features_BF = np.asarray(features_BF, dtype=np.float32)
    length = np.linalg.norm(features_BF, axis=1, keepdims=True)
    unit = features_BF / np.maximum(length, np.finfo(np.float32).tiny)
    train_NF = np.asarray(train_features_NF, dtype=np.float32)
    # Not `@`: the threads of numpy's BLAS keep spinning where the next network wants to run.
    cosine = np.einsum('bf,nf->bn', unit, train_NF)
    return np.clip(1 - cosine.max(axis=1), 0.0, _GREATEST_DISTANCE)


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


def held_out_covariance(a_T_true_N44, a_T_estimate_N44) -> np.ndarray:
    """One covariance (6, 6) for all answers, from the errors on frames kept out of training.

    Second moments of the residuals (a bias is an error too), each axis raised where needed until
    95 % of the held-out errors lie within its 95 % interval: regression errors have heavier tails
    than a Gaussian.

    Raises:
        ValueError: no frames.
    """
    residual_N6 = pose_residual(a_T_true_N44, a_T_estimate_N44)
    if len(residual_N6) == 0:
        raise ValueError('a covariance needs at least one held-out frame')
    covariance = residual_N6.T @ residual_N6 / len(residual_N6)
    # Floors of 1 mm and 0.06 deg: a zero variance would mean infinite trust downstream.
    covariance = covariance + np.diag(np.maximum(1e-6 - np.diag(covariance), 0.0))
    needed = np.quantile(residual_N6**2, 0.95, axis=0) / _CHI2_95_1
    gain = np.sqrt(np.maximum(needed / np.diag(covariance), 1.0))
    covariance = covariance * np.outer(gain, gain)
    # Shrink correlations a little so that few frames still give a positive-definite matrix.
    return 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
