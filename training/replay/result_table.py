"""A line of comma-separated values for every image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose_reloc.geometry import quaternion_from_rotation, xyzw_from_wxyz
from training.evaluate import Frame

_POSE = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')
_SIGMA = ('sigma_x', 'sigma_y', 'sigma_z', 'sigma_rot_x', 'sigma_rot_y', 'sigma_rot_z')
COLUMNS = (
    'name', 'time_s', 'status', 'reasons', 'latency_ms', 'position_error_m', 'rotation_error_deg',
    'nees', *_POSE, *_SIGMA, *(f'truth_{name}' for name in _POSE),
)  # fmt: skip


def write_csv(path: Path, frames: Sequence[Frame]) -> None:
    """Writes `COLUMNS`: metres and degrees, empty where unknown."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_row(frame) for frame in frames)


def _row(frame: Frame) -> list:
    errors = ('', '')
    if frame.truth is not None and frame.estimate is not None:
        errors = frame.error()
    nees = frame.nees()
    return [
        frame.name,
        f'{frame.time_s:.6f}',
        frame.status,
        ' '.join(frame.reasons),
        '' if frame.latency_s is None else 1e3 * frame.latency_s,
        *errors,
        '' if nees is None else nees,
        *_pose(frame.estimate),
        *_sigma(frame.covariance_66),
        *_pose(frame.truth),
    ]


def _pose(a_T_b: np.ndarray | None) -> list:
    if a_T_b is None:
        return [''] * len(_POSE)
    q_xyzw = xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3]))
    return [float(value) for value in (*a_T_b[:3, 3], *q_xyzw)]


def _sigma(covariance_66: np.ndarray | None) -> list:
    if covariance_66 is None:
        return [''] * len(_SIGMA)
    sigma = np.sqrt(np.diag(covariance_66))
    return [*sigma[:3].tolist(), *np.rad2deg(sigma[3:]).tolist()]
