"""The reasons to refuse an estimate, each a named rule. LOST is an answer, not a failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pose_reloc.geometry import pose_residual


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of the gates; one default each, all overridable."""

    min_brightness: float = 6.0  # mean grey level (0..255) below which an image is too dark
    min_contrast: float = 3.0  # standard deviation of the grey levels below which it is empty
    max_distance_m: float = 3.0  # from the nearest training camera; beyond lies unmapped space
    max_prior_distance: float = 5.0  # Mahalanobis distance from the prior, if there is one
    max_sigma_m: float = 2.0  # largest standard deviation of the position that is worth publishing


def image_reasons(image_HW3: np.ndarray, settings: GateSettings) -> list[str]:
    """Why this image (uint8 RGB, the network's input) cannot be localised; empty if it can."""
    grey = image_HW3.mean(axis=2)
    reasons = []
    if grey.mean() < settings.min_brightness:
        reasons.append('too_dark')
    elif grey.std() < settings.min_contrast:
        reasons.append('empty')
    return reasons


def estimate_reasons(
    world_T_camera,
    covariance_66,
    prior_world_T_camera,
    prior_covariance_66,
    settings: GateSettings,
) -> list[str]:
    """Why an estimate is too vague, or contradicts a prior (None: there is none); empty if not.

    The distance from the prior is that of two Gaussians: the covariances add up.
    """
    if np.sqrt(np.linalg.eigvalsh(covariance_66[:3, :3])[-1]) > settings.max_sigma_m:
        return ['too_vague']
    if prior_world_T_camera is not None:
        residual = pose_residual(prior_world_T_camera, world_T_camera)
        total = covariance_66 + prior_covariance_66
        if np.sqrt(residual @ np.linalg.solve(total, residual)) > settings.max_prior_distance:
            return ['contradicts_prior']
    return []


def pose_reasons(world_T_camera, train_world_T_camera_N44, settings: GateSettings) -> list[str]:
    """Why this camera pose (4, 4) cannot be believed; empty if it can."""
    if not np.all(np.isfinite(world_T_camera)):
        return ['not_finite']
    offsets = train_world_T_camera_N44[:, :3, 3] - world_T_camera[:3, 3]
    if np.sqrt((offsets**2).sum(axis=1).min()) > settings.max_distance_m:
        return ['outside_map']
    return []
