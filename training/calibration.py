"""Measures on held-out frames how far off the regressed pose of a new image is.

Covariances are made to fit at `LEVELS`: that share of the held-out errors, or a little more, lies
inside the ellipsoid of that probability. Means are not used, because errors of poses have heavy
tails and one frame of a few dozen would decide them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2

from pose_reloc.geometry import pose_from_network, pose_residual
from pose_reloc.network import PoseRegressor
from pose_reloc.preprocess import normalize
from pose_reloc.uncertainty import CoarseCalibration, feature_distance
from training.metrics import mean_pose

LEVELS = (0.5, 0.9)
_BATCH = 32
# No regressed pose is better than 1 mm and 0.06 deg, no two images are more alike than this.
_LEAST_SIGMA, _LEAST_DISTANCE = 1e-3, 1e-3
# How far another visit's images are from those of training, m and rad.
_ASIDE = np.array([0.25, np.deg2rad(10)])


@dataclass(frozen=True)
class CoarseMeasurement:
    """What a scene stores to state the covariance of its regressed poses.

    Attributes:
        calibration: see `CoarseCalibration`.
        train_features: of the trained backbone (N, F), float16, rows of unit length, of the images
            it was trained on: without the held-out ones, as when the calibration was measured.
    """

    calibration: CoarseCalibration
    train_features: np.ndarray


def calibrate_coarse(
    network: PoseRegressor, image_NHW3: np.ndarray, world_T_camera_N44, held_out: np.ndarray
) -> CoarseMeasurement:
    """Compares the errors on held-out frames with how little these resemble the training images.

    Args:
        network: trained, in evaluation mode, on the CPU.
        image_NHW3: network images, uint8 RGB, of the training split.
        world_T_camera_N44: their poses.
        held_out: mask (N,) of the frames it was not trained on.

    Raises:
        ValueError: nothing is held out, everything is, or the network answers NaN.
    """
    if not held_out.any() or held_out.all():
        raise ValueError('a calibration needs held-out frames and training frames')
    train, _ = _infer(network, image_NHW3, np.flatnonzero(~held_out))
    length = np.linalg.norm(train, axis=1, keepdims=True)
    # Rounded before they are compared, because the robot compares with the rounded ones.
    train_features = (train / np.maximum(length, 1e-12)).astype(np.float16)
    features, estimate = _infer(network, image_NHW3, np.flatnonzero(held_out))
    residual = pose_residual(world_T_camera_N44[held_out], estimate)
    distance = feature_distance(features, train_features)
    fitted = fit_coarse(residual, distance, pose_spread(world_T_camera_N44))
    return CoarseMeasurement(fitted, train_features)


def fit_coarse(
    residual_N6: np.ndarray, distance_N: np.ndarray, greatest: tuple[float, float]
) -> CoarseCalibration:
    """The calibration under which these errors are honest, for position and for rotation.

    Args:
        residual_N6: `geometry.pose_residual` on frames kept out of training.
        distance_N: their `feature_distance`.
        greatest: standard deviations (m, rad) that none exceeds, see `pose_spread`.

    Raises:
        ValueError: no frames, or values that are not finite.
    """
    if len(residual_N6) == 0:
        raise ValueError('a calibration needs at least one held-out frame')
    if not (np.isfinite(residual_N6).all() and np.isfinite(distance_N).all()):
        raise ValueError('the held-out errors or distances hold NaN or infinity')
    usual = max(float(np.median(distance_N)), _LEAST_DISTANCE)
    growth_N = CoarseCalibration(1.0, 1.0, usual).growth(distance_N)
    sigmas = []
    for part_N3, limit in zip((residual_N6[:, :3], residual_N6[:, 3:]), greatest, strict=True):
        squared_N = np.maximum((part_N3**2).sum(axis=1), _LEAST_SIGMA**4)
        variances = []
        for level in LEVELS:
            # The variance for d = 0 with which a frame lies on the ellipsoid of this level.
            inverse_N = growth_N * (chi2.ppf(level, df=3) / squared_N - limit**-2)
            # A frame beyond the ellipsoid of the limit itself asks for the limit.
            inverse_N = np.maximum(inverse_N, (10 * limit) ** -2)
            variances.append(conformal_quantile(1 / inverse_N, level))
        sigmas.append(max(float(np.sqrt(max(variances))), _LEAST_SIGMA))
    return CoarseCalibration(*sigmas, usual, *greatest)


def pose_spread(world_T_camera_N44: np.ndarray) -> tuple[float, float]:
    """Standard deviations along one axis (m, rad) of a pose of which only the scene is known.

    That of the training poses, and of another visit's distance from them.
    """
    mean = np.broadcast_to(mean_pose(world_T_camera_N44), world_T_camera_N44.shape)
    squared = pose_residual(world_T_camera_N44, mean) ** 2
    spread = np.array([squared[:, :3].mean(), squared[:, 3:].mean()])
    metres, radians = np.sqrt(spread + _ASIDE**2)
    return float(metres), float(radians)


def conformal_quantile(values_N: np.ndarray, level: float) -> float:
    """A bound that a new value of the same kind keeps with at least this probability.

    The ceil(level (N + 1))-th smallest value (split conformal prediction, Vovk et al. 2005); the
    greatest where the values are too few for that.
    """
    rank = min(int(np.ceil(level * (len(values_N) + 1))), len(values_N))
    return float(np.sort(values_N)[rank - 1])


def _infer(network, image_NHW3, index) -> tuple[np.ndarray, np.ndarray]:
    """Backbone features (M, F) float32 and poses (M, 4, 4) of some of the images."""
    features, poses = [], []
    with torch.inference_mode():
        for start in range(0, len(index), _BATCH):
            image = np.array(image_NHW3[index[start : start + _BATCH]])
            feature = network.features(normalize(torch.from_numpy(image)))
            w_t_c, c_q_w = (x.double().numpy() for x in network.pose(feature))
            features.append(feature.float().numpy())
            poses.append(pose_from_network(w_t_c, c_q_w))
    return np.concatenate(features), np.concatenate(poses)
