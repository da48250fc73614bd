"""The reasons to refuse an estimate, each a named rule. LOST is an answer, not a failure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pose_reloc.geometry import pose_error, pose_residual


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of the gates, all of them parameters of the node too.

    Attributes:
        min_inliers: landmarks that must agree on a pose to make it REFINED.
        min_brightness: mean grey level (0..255) below which an image is too dark.
        min_contrast: standard deviation of the grey levels below which it is empty.
        min_sharpness: below, an image without landmarks is too blurred; see `sharpness`. A Gaussian
            blur of 1 % of the width has 0.05.
        max_disagreement_rad: of landmarks and network, where neither proves the pose.
        max_distance_m: from the nearest training camera, beyond which lies unmapped space. None: as
            far as keyframes were from their landmarks (median), at least 3 m.
        max_sigma_m: standard deviation of a position, along its worst axis, still worth publishing.
        max_prior_distance: Mahalanobis distance from the prior, if there is one.
    """

    min_inliers: int = 25
    min_brightness: float = 6.0
    min_contrast: float = 3.0
    min_sharpness: float = 0.05
    max_disagreement_rad: float = 0.5236  # 30 deg
    max_distance_m: float | None = None
    max_sigma_m: float = 10.0
    max_prior_distance: float = 5.0


# Every image gets an answer, as in the papers: to measure with, not to drive by.
OPEN = GateSettings(
    min_brightness=0.0, min_contrast=0.0, max_distance_m=float('inf'), max_sigma_m=float('inf')
)
_LEAST_DISTANCE_M = 3.0  # a robot may pass a mapped room at its other side


def image_reasons(image_HW3: np.ndarray, settings: GateSettings) -> list[str]:
    """Why this image (uint8 RGB, the network's input) cannot be localised; empty if it can."""
    # OpenCV, because numpy takes ten times as long for it: a quarter of a fast network's time.
    grey_HW = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
    mean, deviation = (float(x[0, 0]) for x in cv2.meanStdDev(grey_HW))
    reasons = []
    if mean < settings.min_brightness:
        reasons.append('too_dark')
    elif deviation < settings.min_contrast:
        reasons.append('empty')
    return reasons


def unrefined_reasons(
    image_HW3: np.ndarray, likeness: float, least_likeness: float, settings: GateSettings
) -> list[str]:
    """Why a regressed pose cannot be believed where no landmarks were found; empty if it can.

    A regressor answers every image with a pose inside the scene, so that the pose itself proves
    nothing: the image must look like one of the scene.

    Args:
        image_HW3: uint8 RGB, the network's input.
        likeness: to the most similar keyframe.
        least_likeness: of images of this scene, see `scene.Calibration`.
        settings: see GateSettings.
    """
    if sharpness(image_HW3) < settings.min_sharpness:
        return ['blurred']
    return ['unfamiliar'] if likeness < least_likeness else []


def unconfirmed_reasons(
    voted_world_T_camera, regressed_world_T_camera, settings: GateSettings
) -> list[str]:
    """Why a regressed pose is not confirmed by the landmarks, though too few to refine it agree.

    Two independent witnesses: of an image of this scene the pose that most matches agree on looks
    the same way as the regressed one. Of another image it looks anywhere, within 30 deg of a given
    direction once in 130 times.

    Args:
        voted_world_T_camera: `refine.Evidence.vote` (4, 4), or None.
        regressed_world_T_camera: (4, 4).
        settings: see GateSettings.
    """
    if voted_world_T_camera is None:
        return ['unconfirmed']
    _, radians = pose_error(voted_world_T_camera, regressed_world_T_camera)
    return [] if radians <= settings.max_disagreement_rad else ['unconfirmed']


def sharpness(image_HW3: np.ndarray) -> float:
    """Mean absolute Laplacian of the grey levels over their standard deviation."""
    grey = image_HW3.mean(axis=2)
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(around - 4 * inner).mean() / max(grey.std(), 1e-6))


def estimate_reasons(
    world_T_camera,
    covariance_66,
    prior_world_T_camera,
    prior_covariance_66,
    settings: GateSettings,
) -> list[str]:
    """Why an estimate is too vague, or contradicts a prior (None: there is none); empty if not."""
    position_33, most = covariance_66[:3, :3], settings.max_sigma_m**2
    # The trace is never less than the largest eigenvalue, and quicker.
    if position_33.trace() > most and np.linalg.eigvalsh(position_33)[-1] > most:
        return ['too_vague']
    if prior_world_T_camera is not None:
        distance = mahalanobis(
            prior_world_T_camera, prior_covariance_66, world_T_camera, covariance_66
        )
        if distance > settings.max_prior_distance:
            return ['contradicts_prior']
    return []


def mahalanobis(a_world_T_camera, a_covariance_66, b_world_T_camera, b_covariance_66) -> float:
    """Distance of two independent estimates (4, 4) of one pose: the covariances (6, 6) add up."""
    residual = pose_residual(a_world_T_camera, b_world_T_camera)
    return float(np.sqrt(residual @ np.linalg.solve(a_covariance_66 + b_covariance_66, residual)))


def pose_reasons(world_T_camera, covariance_66, train_centres_N3, limit_m: float) -> list[str]:
    """Why this camera pose (4, 4) cannot be believed; empty if it can.

    Args:
        world_T_camera: (4, 4), may hold NaN.
        covariance_66: its rms error in position is allowed for.
        train_centres_N3: where the training images were taken.
        limit_m: see `max_distance`.
    """
    if not np.isfinite(world_T_camera).all():
        return ['not_finite']
    limit_m += math.sqrt(covariance_66[:3, :3].trace())
    offsets_N3 = train_centres_N3 - world_T_camera[:3, 3]
    if (offsets_N3 * offsets_N3).sum(axis=1).min() > limit_m**2:
        return ['outside_map']
    return []


def max_distance(viewing_distance_m: float, settings: GateSettings) -> float:
    """How far from all training cameras a pose may lie, metres.

    Args:
        viewing_distance_m: see `LandmarkMap.viewing_distance`; 0 without landmarks.
        settings: see GateSettings.
    """
    if settings.max_distance_m is not None:
        return settings.max_distance_m
    return max(_LEAST_DISTANCE_M, viewing_distance_m)
