"""Measures on held-out frames how far off the regressed pose of a new image is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pose_reloc.geometry import pose_from_network, pose_residual
from pose_reloc.network import PoseRegressor
from pose_reloc.preprocess import normalize
from pose_reloc.uncertainty import CoarseCalibration, feature_distance, fit_coarse

_BATCH = 32


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
    residual = pose_residual(np.asarray(world_T_camera_N44)[held_out], estimate)
    distance = feature_distance(features, train_features)
    return CoarseMeasurement(fit_coarse(residual, distance), train_features)


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
