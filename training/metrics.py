"""How far estimated poses are from the truth: medians, recall, reprojection, calibration.

Poses are `world_T_camera` (N, 4, 4) in metres, the truth first. Angles are in degrees here, because
these numbers are for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from pose_reloc.camera import Camera
from pose_reloc.geometry import (
    invert_pose,
    pose_error,
    pose_matrix,
    quaternion_from_rotation,
    xyzw_from_wxyz,
)

# (metres, degrees): Boittiaux et al. 2022 use 0.25/10 and 0.5/15 (7-Scenes), 2/2 and 3/5
# (Cambridge); Kendall and Cipolla 2017 2/5; the small ones are those of today's structure methods.
RECALL_THRESHOLDS = (
    (0.01, 1),
    (0.02, 2),
    (0.05, 5),
    (0.1, 5),
    (0.25, 10),
    (0.5, 15),
    (2, 2),
    (2, 5),
    (3, 5),
)
REPROJECTION_CLIP_PX = 1000.0


def per_frame_errors(world_T_camera_true_N44, world_T_camera_estimate_N44):
    """Position errors (N,) in metres and rotation errors (N,) in degrees, in [0, 180].

    Raises:
        ValueError: the two are not the same number of 4x4 poses.
    """
    true, estimate = _poses(world_T_camera_true_N44), _poses(world_T_camera_estimate_N44)
    if len(true) != len(estimate):
        raise ValueError(f'{len(true)} true poses but {len(estimate)} estimates')
    position_m, rotation_rad = pose_error(true, estimate)
    return position_m, np.rad2deg(rotation_rad)


def pose_metrics(world_T_camera_true_N44, world_T_camera_estimate_N44) -> dict:
    """`error_metrics` of poses."""
    return error_metrics(*per_frame_errors(world_T_camera_true_N44, world_T_camera_estimate_N44))


def error_metrics(position_m, rotation_deg) -> dict:
    """Statistics of pose errors as plain JSON types.

    Args:
        position_m, rotation_deg: errors (N,), both infinite for a frame that got no answer.

    Returns:
        `frames`; `median_`, `mean_`, `p90_`, `p99_` and `max_` of `position_m` and `rotation_deg`
        over the frames that got an answer (None without any); `recall`, a mapping such as
        '0.05m_5deg' to the fraction of all frames within both bounds (0 without frames), so that
        silence is not rewarded.
    """
    position_m, rotation_deg = np.asarray(position_m), np.asarray(rotation_deg)
    result = {'frames': len(position_m)}
    for name, error in (('position_m', position_m), ('rotation_deg', rotation_deg)):
        for key, value in _statistics(error[np.isfinite(error)]).items():
            result[f'{key}_{name}'] = value
    result['recall'] = {
        recall_key(*bounds): _fraction((position_m <= bounds[0]) & (rotation_deg <= bounds[1]))
        for bounds in RECALL_THRESHOLDS
    }
    return result


def recall_key(metres: float, degrees: float) -> str:
    """The name under which `error_metrics` keeps the recall within both bounds."""
    return f'{metres}m_{degrees}deg'


class Reprojection(NamedTuple):
    """How far the points of one image move in it when its pose is estimated.

    Attributes:
        px: mean distance in pixels.
        points: how many points that is the mean of, at least one.
    """

    px: float
    points: int


def reprojection(
    points_K3, camera: Camera, world_T_camera_true, world_T_camera_estimate
) -> Reprojection | None:
    """Reprojection error of one image as in Table I of Boittiaux et al. 2022.

    The points are projected with the true and the estimated pose (4, 4) into the undistorted image
    of the original size, and each distance is clipped at 1000 px. A point behind the estimated
    camera counts 1000 px.

    Args:
        points_K3: world points (K, 3) that the image sees.
        camera: of the image, at its original size.

    Returns:
        None where no point lies in front of the true camera.
    """
    pinhole = camera.undistorted()
    true, estimate = (
        pinhole.project(_transform(invert_pose(pose), points_K3))
        for pose in (world_T_camera_true, world_T_camera_estimate)
    )
    seen = np.isfinite(true).all(axis=1)
    if not seen.any():
        return None
    distance = np.linalg.norm(estimate[seen] - true[seen], axis=1)
    clipped = np.nan_to_num(distance, nan=np.inf).clip(max=REPROJECTION_CLIP_PX)
    return Reprojection(float(clipped.mean()), len(clipped))


def mean_reprojection_px(reprojections: Iterable[Reprojection | None]) -> float | None:
    """Mean in pixels over all points of all images together; None without any point."""
    known = [r for r in reprojections if r is not None]
    if not known:
        return None
    px, points = zip(*known)
    return float(np.average(px, weights=points))


def nees(residual_ND, covariance) -> np.ndarray:
    """Normalised estimation error squared r^T C^-1 r (N,): D on average for an honest covariance.

    Args:
        residual_ND: errors (N, D): of `geometry.pose_residual` D = 6, of a part of it 3.
        covariance: (D, D) or one per frame (N, D, D), positive definite.
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    D = covariance.shape[-1]
    residual_ND = np.asarray(residual_ND, dtype=np.float64).reshape(-1, D)
    covariance = np.broadcast_to(covariance, (len(residual_ND), D, D))
    solved = np.linalg.solve(covariance, residual_ND[..., None])[..., 0]
    return np.einsum('ni,ni->n', residual_ND, solved)


def coverage(nees_N, levels: Sequence[float] = (0.5, 0.9, 0.95)) -> dict[str, float | None]:
    """Fraction of frames inside the confidence ellipsoid of each level, which it should equal.

    Args:
        nees_N: values of `nees` (N,).
        levels: probabilities of a 6-dimensional Gaussian.

    Returns:
        Such as {'0.5': 0.48, '0.9': 0.91}; None without frames.
    """
    nees_N = np.asarray(nees_N, dtype=np.float64)
    return {
        f'{level:g}': _fraction(nees_N <= chi2.ppf(level, df=6)) if nees_N.size else None
        for level in levels
    }


def mean_pose(world_T_camera_N44) -> np.ndarray:
    """Mean position and mean rotation (chordal L2) of poses (N, 4, 4), as one pose (4, 4).

    The baseline of a regressor that has learnt nothing but where the camera usually is.

    Raises:
        ValueError: no poses.
    """
    poses = _poses(world_T_camera_N44)
    if len(poses) == 0:
        raise ValueError('the mean of no poses is not defined')
    rotation = Rotation.from_matrix(poses[:, :3, :3]).mean()
    return pose_matrix(rotation.as_matrix(), poses[:, :3, 3].mean(axis=0))


def write_tum(path: str | Path, timestamps, world_T_camera_N44) -> None:
    """Writes a trajectory that `evo_ape tum` reads: lines `t x y z qx qy qz qw`.

    Args:
        path: of the text file; an existing one is replaced.
        timestamps: seconds (N,), written to the nanosecond.
        world_T_camera_N44: poses (N, 4, 4), metres.

    Raises:
        ValueError: not as many timestamps as poses.
    """
    poses = _poses(world_T_camera_N44)
    q_xyzw = xyzw_from_wxyz(quaternion_from_rotation(poses[:, :3, :3]))
    rows = zip(timestamps, poses[:, :3, 3], q_xyzw, strict=True)
    lines = [
        f'{t:.9f} ' + ' '.join(f'{value:.9f}' for value in (*position, *q)) + '\n'
        for t, position, q in rows
    ]
    Path(path).write_text('# timestamp tx ty tz qx qy qz qw\n' + ''.join(lines))


def _poses(T) -> np.ndarray:
    T = np.asarray(T, dtype=np.float64)
    if T.size == 0:
        return np.zeros((0, 4, 4))
    if T.ndim != 3 or T.shape[1:] != (4, 4):
        raise ValueError(f'expected poses (N, 4, 4), got {T.shape}')
    return T


def _statistics(error_N) -> dict[str, float | None]:
    names = ('median', 'mean', 'p90', 'p99', 'max')
    if len(error_N) == 0:
        return dict.fromkeys(names)
    p90, p99 = np.percentile(error_N, (90, 99))
    values = (np.median(error_N), error_N.mean(), p90, p99, error_N.max())
    return {name: float(value) for name, value in zip(names, values)}


def _fraction(mask) -> float:
    return float(np.mean(mask)) if len(mask) else 0.0


def _transform(a_T_b, points_N3) -> np.ndarray:
    # Not `@`: BLAS shares so thin a product among threads that cost more than the product.
    return np.einsum('ij,nj->ni', a_T_b[:3, :3], points_N3) + a_T_b[:3, 3]
