"""Measures on the training recording how far off the regressed pose of a new image is.

Frames kept out of training are as new to the network as those of another visit, but they are few
and come in few blocks of neighbours, whose errors are alike. So the frames it was trained on are
asked too: on average none errs more than a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pose_reloc.geometry import (
    network_from_pose,
    network_offset,
    pose_from_network,
    pose_residual,
)
from pose_reloc.network import PoseRegressor, most_similar
from pose_reloc.preprocess import normalize
from pose_reloc.uncertainty import CoarseCalibration
from training.held_out import evenly_spaced
from training.metrics import mean_pose, nees

_BATCH = 32
_CAUTION = 0.25  # standard errors, see `cautious_mean`
_MOST_BLOCKS = 200  # of the recording that are compared with all others
# Training images that an image is compared with: those beside them tell nothing new, and a robot
# must not answer the slower the longer it was trained.
_MOST_FEATURES = 600
# No regressed pose is better than 1 mm and 0.06 deg, no two images are more alike than this, and no
# two are taken nearer to each other.
_LEAST_SIGMA, _LEAST_DISTANCE, _LEAST_OFFSET = 1e-3, 1e-3, 1e-3
_NEVER = 1e6  # no feature distance, and no offset in m or rad, is as great
# How far another visit's images are from those of training, m and rad, where nothing is known.
_ASIDE = np.array([0.25, np.deg2rad(10)])


@dataclass(frozen=True)
class CoarseMeasurement:
    """What a scene stores to state the covariance of its regressed poses.

    Attributes:
        calibration: see `CoarseCalibration`.
        train_features: of the trained backbone (M, F), float16, less their mean, rows of unit
            length, of images it was trained on: without the held-out ones, as when the calibration
            was measured, and not more than 600, evenly spaced along the way.
        feature_mean: that mean (F,), float32.
        train_frames: which images those are (M,), int32.
    """

    calibration: CoarseCalibration
    train_features: np.ndarray
    feature_mean: np.ndarray
    train_frames: np.ndarray


def calibrate_coarse(
    network: PoseRegressor,
    image_NHW3: np.ndarray,
    world_T_camera_N44: np.ndarray,
    held_out: np.ndarray,
    blocks: np.ndarray,
) -> CoarseMeasurement:
    """Compares the errors on training images with what the other parts tell of these.

    Where nothing is held out, nothing is known: see `know_nothing`.

    Args:
        network: trained, in evaluation mode, on the CPU.
        image_NHW3: network images, uint8 RGB, of the training split.
        world_T_camera_N44: their poses.
        held_out: mask (N,) of the frames it was not trained on.
        blocks: number (N,) of the block of each frame, see `held_out.travel_blocks`.

    Raises:
        ValueError: everything is held out, or the network answers NaN.
    """
    if held_out.all():
        raise ValueError('a calibration needs training frames')
    features, w_t_c_N3, c_q_w_N4 = _infer(network, image_NHW3)
    estimate_N44 = pose_from_network(w_t_c_N3, c_q_w_N4)
    kept = evenly_spaced(np.flatnonzero(~held_out), _MOST_FEATURES).astype(np.int32)
    mean = features[kept].mean(axis=0)
    features -= mean
    length = np.linalg.norm(features[kept], axis=1, keepdims=True)
    # Rounded before they are compared, because the robot compares with the rounded ones.
    train_features = (features[kept] / np.maximum(length, 1e-12)).astype(np.float16)
    if not held_out.any():
        return CoarseMeasurement(know_nothing(world_T_camera_N44), train_features, mean, kept)
    train_w_t_c_M3, train_c_q_w_M4 = network_from_pose(world_T_camera_N44[kept])
    frames, distances, offsets = [], [], []
    asked = [evenly_spaced(np.unique(blocks[x]), _MOST_BLOCKS) for x in (held_out, ~held_out)]
    for block in np.unique(np.concatenate(asked)):
        own = np.flatnonzero(blocks == block)
        others = np.flatnonzero(blocks[kept] != block)
        if len(others) == 0:  # all in one block: only what is held out is new
            own, others = own[held_out[own]], np.arange(len(kept))
        distance, index = most_similar(
            torch.from_numpy(features[own]), torch.from_numpy(train_features[others]).float()
        )
        frames += own.tolist()
        distances += distance.tolist()
        for i, similar in zip(own, others[index.numpy()], strict=True):
            poses = train_w_t_c_M3[similar], train_c_q_w_M4[similar]
            offsets.append(network_offset(*poses, w_t_c_N3[i], c_q_w_N4[i]))
    fitted = fit_coarse(
        pose_residual(world_T_camera_N44[frames], estimate_N44[frames]),
        np.array(distances),
        offsets,
        held_out[frames],
        len(np.unique(blocks[frames][held_out[frames]])),
    )
    return CoarseMeasurement(fitted, train_features, mean, kept)


def fit_coarse(
    residual_N6: np.ndarray,
    distance_N: np.ndarray,
    offsets: list[np.ndarray],
    held_out_N: np.ndarray,
    blocks: int,
) -> CoarseCalibration:
    """The calibration under which these errors are honest, for position and for rotation.

    The variance is the greater of what the held-out frames and what all frames need: where the
    held-out ones seem easier, the few blocks of them were easy ones. It is known no better than
    from 3 axes of so many independent blocks, which makes the error of a new image follow Student's
    distribution with v = 3 `blocks` degrees of freedom: its variance is v / (v - 2) times as large.

    Args:
        residual_N6: `geometry.pose_residual` on images of the training recording.
        distance_N: of their features to the most similar image that was trained on, of another
            block: see `network.most_similar`.
        offsets: N times `geometry.network_offset` (K, 6) of the regressed pose from the most
            similar images of other blocks, that one first.
        held_out_N: mask of the images that were not.
        blocks: number of blocks of those.

    Raises:
        ValueError: nothing is held out, or values that are not finite.
    """
    if not held_out_N.any():
        raise ValueError('a calibration needs at least one held-out frame')
    if not all(np.isfinite(x).all() for x in (residual_N6, distance_N, *offsets)):
        raise ValueError('the errors or distances of training images hold NaN or infinity')
    parts = slice(0, 3), slice(3, 6)
    first_N6 = np.array([offset_K6[0] for offset_K6 in offsets])
    apart = [np.sqrt(np.median((first_N6[:, part] ** 2).sum(axis=1))) for part in parts]
    usual = np.maximum(
        [np.median(distance_N), *apart], [_LEAST_DISTANCE, _LEAST_OFFSET, _LEAST_OFFSET]
    ).tolist()
    unit = CoarseCalibration(1.0, 1.0, *usual)
    unit_N66 = np.array([unit.covariance(*of) for of in zip(distance_N, offsets, strict=True)])
    freedom = 3 * blocks
    sigmas = []
    for part in parts:
        variance_N = nees(residual_N6[:, part], unit_N66[:, part, part]) / 3
        variance = max(bounded_mean(variance_N[held_out_N]), bounded_mean(variance_N))
        sigmas.append(float(np.sqrt(variance * freedom / (freedom - 2))))
    return CoarseCalibration(*np.maximum(sigmas, _LEAST_SIGMA).tolist(), *usual)


def know_nothing(world_T_camera_N44: np.ndarray) -> CoarseCalibration:
    """What can be said of a network of which nothing is known: it answers some pose of the scene.

    Such an answer differs from the truth as two independent poses of the scene do: by twice the
    variance of the training poses, and by another visit's distance from them. Errors on training
    images would be smaller, but say nothing about others.
    """
    mean = np.broadcast_to(mean_pose(world_T_camera_N44), world_T_camera_N44.shape)
    squared = pose_residual(world_T_camera_N44, mean) ** 2
    variance = np.array([squared[:, :3].mean(), squared[:, 3:].mean()])
    sigmas = np.sqrt(2 * variance + _ASIDE**2).tolist()
    return CoarseCalibration(*sigmas, _NEVER, _NEVER, _NEVER)  # all are equally uncertain


def bounded_mean(values_N: np.ndarray) -> float:
    """Mean of squared errors in which one that went wrong does not decide: see `bounded`."""
    return float(bounded(values_N).mean())


def cautious_mean(values_N: np.ndarray, blocks_N: np.ndarray) -> float:
    """`bounded_mean` and a quarter of its standard error, of values that are alike within a block.

    The standard error is that of a mean over clusters (Liang & Zeger 1986). A quarter of it, as it
    costs a robot more to be told too small an error than too large a one; how much was chosen by
    the coverage of test answers (docs/experiments.md).
    """
    values_N = bounded(values_N)
    mean = values_N.mean()
    _, index_N = np.unique(blocks_N, return_inverse=True)
    sums = np.bincount(index_N, values_N - mean)
    return float(mean + _CAUTION * np.sqrt((sums**2).sum()) / len(values_N))


def bounded(values_N: np.ndarray) -> np.ndarray:
    """The values, none greater than three times their 90 % quantile."""
    return np.minimum(values_N, 3 * conformal_quantile(values_N, 0.9))


def conformal_quantile(values_N: np.ndarray, level: float) -> float:
    """A bound that a new value of the same kind keeps with at least this probability.

    The ceil(level (N + 1))-th smallest value (split conformal prediction, Vovk et al. 2005); the
    greatest where the values are too few for that.
    """
    rank = min(int(np.ceil(level * (len(values_N) + 1))), len(values_N))
    return float(np.sort(values_N)[rank - 1])


def _infer(network, image_NHW3) -> list[np.ndarray]:
    """Backbone features (N, F) float32 of images, and `w_t_c` and `c_q_w` in float64."""
    answers = []
    with torch.inference_mode():
        for start in range(0, len(image_NHW3), _BATCH):
            image = np.array(image_NHW3[start : start + _BATCH])
            feature = network.features(normalize(torch.from_numpy(image)))
            w_t_c, c_q_w = (x.double().numpy() for x in network.pose(feature))
            answers.append((feature.float().numpy(), w_t_c, c_q_w))
    return [np.concatenate(x) for x in zip(*answers, strict=True)]
