"""The reasons to refuse an estimate, each a named rule. LOST is an answer, not a failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of the gates; one default each, all overridable."""

    min_brightness: float = 6.0  # mean grey level (0..255) below which an image is too dark
    min_contrast: float = 3.0  # standard deviation of the grey levels below which it is empty
    max_distance_m: float = 3.0  # from the nearest training camera; beyond lies unmapped space


def image_reasons(image_HW3: np.ndarray, settings: GateSettings) -> list[str]:
    """Why this image (uint8 RGB, the network's input) cannot be localised; empty if it can."""
    grey = image_HW3.mean(axis=2)
    reasons = []
    if grey.mean() < settings.min_brightness:
        reasons.append('too_dark')
    elif grey.std() < settings.min_contrast:
        reasons.append('empty')
    return reasons


def pose_reasons(world_T_camera, train_world_T_camera_N44, settings: GateSettings) -> list[str]:
    """Why this camera pose (4, 4) cannot be believed; empty if it can."""
    if not np.all(np.isfinite(world_T_camera)):
        return ['not_finite']
    offsets = train_world_T_camera_N44[:, :3, 3] - world_T_camera[:3, 3]
    if np.sqrt((offsets**2).sum(axis=1).min()) > settings.max_distance_m:
        return ['outside_map']
    return []
