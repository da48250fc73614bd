"""SE(3) for numpy and torch: quaternions, rotation matrices, pose errors, interpolation.

Conventions
    `a_T_b` (4x4) maps coordinates in b to coordinates in a; `world_T_camera` is the camera's pose.
    Quaternions are `q_wxyz`, Hamilton, unit; `xyzw` exists only in ROS messages and scipy.
    Metres and radians. Functions accept leading batch dimensions `(...)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    import torch


def wxyz_from_xyzw(q_xyzw):
    """Reorders quaternions (..., 4) from (x, y, z, w) to (w, x, y, z)."""
    return np.roll(np.asarray(q_xyzw), 1, axis=-1)


def xyzw_from_wxyz(q_wxyz):
    """Reorders quaternions (..., 4) from (w, x, y, z) to (x, y, z, w)."""
    return np.roll(np.asarray(q_wxyz), -1, axis=-1)


def rotation_from_quaternion(q_wxyz):
    """Rotation matrices (..., 3, 3) of quaternions (..., 4), which are normalised first.

    Raises:
        ValueError: a quaternion is zero or not finite.
    """
    q_wxyz = np.asarray(q_wxyz, dtype=np.float64)
    if q_wxyz.ndim == 1:
        # In Python's numbers: with the caches full of a network, arrays take three times as long.
        q = q_wxyz.tolist()
        norm = math.hypot(*q)
        if 1e-12 <= norm < math.inf:
            return np.array(_rotation_rows(*(x / norm for x in q)))
    norm = np.linalg.norm(q_wxyz, axis=-1, keepdims=True)
    if not np.all((norm >= 1e-12) & (norm < np.inf)):
        raise ValueError(f'expected finite non-zero quaternions, got {q_wxyz!r}')
    rows = _rotation_rows(*np.moveaxis(q_wxyz / norm, -1, 0))
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rotation_rows(w, x, y, z):
    """The rows of the rotation matrix of a unit quaternion: of numbers, arrays or tensors."""
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def quaternion_from_rotation(R):
    """Unit quaternions `q_wxyz` (..., 4) with w >= 0 of rotation matrices (..., 3, 3)."""
    q_wxyz = wxyz_from_xyzw(_each(lambda R: Rotation.from_matrix(R).as_quat(), R, 2, (4,)))
    return np.where(q_wxyz[..., :1] < 0, -q_wxyz, q_wxyz)


def _each(convert, values, dimensions: int, shape: tuple[int, ...]):
    """convert(values (N, ...)) -> (N, *shape) for any leading dimensions, also for N = 0.

    Args:
        convert: by scipy, whose rotations refuse N = 0 and arrays that cannot be written (1.11),
            and more than one leading dimension.
        values: to convert.
        dimensions: of one of the values.
        shape: of one of the results.
    """
    values = np.array(values, dtype=np.float64)
    batch, one = values.shape[:-dimensions], values.shape[-dimensions:]
    if not values.size:
        return np.zeros((*batch, *shape))
    return convert(values.reshape(-1, *one)).reshape(*batch, *shape)


def project_to_so3(M):
    """The rotation matrices (..., 3, 3) nearest to M in the Frobenius norm.

    Files with few digits hold rotations that are not orthonormal (7-Scenes: up to 4e-4), which
    alone puts a false floor of about 1 deg under angle errors.

    Raises:
        ValueError: M is not finite or is far from every rotation (reflection or zero).
    """
    M = np.asarray(M, dtype=np.float64)
    if not np.all(np.isfinite(M)):
        raise ValueError('the rotation matrix holds NaN or infinity')
    U, s, Vt = np.linalg.svd(M)
    if np.any(s < 0.5) or np.any(s > 2.0) or np.any(np.linalg.det(U @ Vt) < 0):
        raise ValueError(f'the matrix is far from a rotation (singular values {s})')
    return U @ Vt


def pose_matrix(R, t):
    """Poses (..., 4, 4) from rotations (..., 3, 3) and translations (..., 3)."""
    R, t = np.asarray(R, dtype=np.float64), np.asarray(t, dtype=np.float64)
    T = np.zeros(np.broadcast(R[..., 0], t).shape[:-1] + (4, 4))
    T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = R, t, 1.0
    return T


def invert_pose(a_T_b):
    """`b_T_a` (..., 4, 4) of rigid `a_T_b` (..., 4, 4)."""
    a_T_b = np.asarray(a_T_b, dtype=np.float64)
    b_R_a = np.swapaxes(a_T_b[..., :3, :3], -1, -2)
    return pose_matrix(b_R_a, -np.einsum('...ij,...j->...i', b_R_a, a_T_b[..., :3, 3]))


def is_rigid(a_T_b, tolerance: float = 1e-3) -> bool:
    """Whether matrices (..., 4, 4) are poses: finite, a rotation to the tolerance, and 0 0 0 1."""
    a_T_b = np.asarray(a_T_b, dtype=np.float64)
    if not np.all(np.isfinite(a_T_b)):
        return False
    R = a_T_b[..., :3, :3]
    error = np.abs(np.swapaxes(R, -1, -2) @ R - np.eye(3)).max(initial=0)
    error = max(error, np.abs(a_T_b[..., 3, :] - (0, 0, 0, 1)).max(initial=0))
    return bool(error < tolerance and np.all(np.linalg.det(R) > 0))


def pose_from_network(w_t_c, c_q_w):
    """`world_T_camera` (..., 4, 4) from what the papers' networks predict.

    Args:
        w_t_c: camera centres in the world (..., 3), metres.
        c_q_w: world-to-camera quaternions (..., 4), wxyz, of any non-zero norm.
    """
    return pose_matrix(np.swapaxes(rotation_from_quaternion(c_q_w), -1, -2), w_t_c)


def network_from_pose(world_T_camera):
    """Inverse of `pose_from_network`: `w_t_c` (..., 3) and unit `c_q_w` (..., 4) with w >= 0."""
    world_T_camera = np.asarray(world_T_camera, dtype=np.float64)
    c_R_w = np.swapaxes(world_T_camera[..., :3, :3], -1, -2)
    return world_T_camera[..., :3, 3].copy(), quaternion_from_rotation(c_R_w)


def rotation_angle(R):
    """Angles (...) in radians, in [0, pi], of rotation matrices (..., 3, 3)."""
    R = np.asarray(R, dtype=np.float64)
    # atan2 keeps full precision near 0 and near pi, where acos of the trace loses half the digits.
    skew = np.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], -1
    )
    return np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(R, axis1=-2, axis2=-1) - 1.0)


def pose_error(a_T_true, a_T_estimate):
    """Distance of the origins (...) in metres and rotation angle (...) in radians."""
    a_T_true = np.asarray(a_T_true, dtype=np.float64)
    a_T_estimate = np.asarray(a_T_estimate, dtype=np.float64)
    distance = np.linalg.norm(a_T_true[..., :3, 3] - a_T_estimate[..., :3, 3], axis=-1)
    R_true_T = np.swapaxes(a_T_true[..., :3, :3], -1, -2)
    return distance, rotation_angle(R_true_T @ a_T_estimate[..., :3, :3])


def pose_residual(a_T_true, a_T_estimate):
    """The 6-vector error (..., 6) that a pose covariance of this project describes.

    (x, y, z) of the true minus the estimated origin, and the rotation vector w with
    R_true = exp(w) R_estimate, both along the fixed axes of frame a: the order and frame of
    geometry_msgs/PoseWithCovariance.
    """
    a_T_true = np.asarray(a_T_true, dtype=np.float64)
    a_T_estimate = np.asarray(a_T_estimate, dtype=np.float64)
    dR = a_T_true[..., :3, :3] @ np.swapaxes(a_T_estimate[..., :3, :3], -1, -2)
    w = _each(lambda R: Rotation.from_matrix(R).as_rotvec(), dR, 2, (3,))
    return np.concatenate([a_T_true[..., :3, 3] - a_T_estimate[..., :3, 3], w], axis=-1)


def network_offset(w_t_c_K3, c_q_w_K4, w_t_c, c_q_w) -> np.ndarray:
    """How some poses differ from one, as networks predict them: (K, 6), along the world's axes.

    The differences of the camera centres and, of the rotations R R_one^T by an angle a about the
    unit vector v, 2 sin(a / 2) v or its opposite: for small angles as in `pose_residual`, but for
    the sign. It is linear in the quaternions.

    Args:
        w_t_c_K3, w_t_c: camera centres in the world.
        c_q_w_K4, c_q_w: world-to-camera quaternions, wxyz; the former of unit, the latter of any
            non-zero norm.
    """
    w, x, y, z = map(float, c_q_w)
    # R R_one^T = c_R_w^T c_R_w_one: the vector part of conj(q) q_one.
    product = np.array([[x, -w, -z, y], [y, z, -w, -x], [z, -y, x, -w]])
    turn_K3 = np.asarray(c_q_w_K4) @ (product.T * (2 / math.hypot(w, x, y, z)))
    return np.concatenate([np.asarray(w_t_c_K3) - w_t_c, turn_K3], axis=1)


def perturb_pose(a_T_estimate, residual):
    """Inverse of `pose_residual`: the pose (..., 4, 4) that has this residual (..., 6)."""
    residual = np.asarray(residual, dtype=np.float64)
    a_T_estimate = np.asarray(a_T_estimate, dtype=np.float64)
    dR = _each(lambda w: Rotation.from_rotvec(w).as_matrix(), residual[..., 3:], 1, (3, 3))
    return pose_matrix(dR @ a_T_estimate[..., :3, :3], a_T_estimate[..., :3, 3] + residual[..., :3])


def interpolate_pose(a_T_b0, a_T_b1, alpha):
    """Pose (4, 4) at fraction `alpha` in [0, 1]: linear in position, geodesic in rotation."""
    a_T_b0, a_T_b1 = np.asarray(a_T_b0, float), np.asarray(a_T_b1, float)
    R0 = Rotation.from_matrix(a_T_b0[:3, :3])
    step = (R0.inv() * Rotation.from_matrix(a_T_b1[:3, :3])).as_rotvec()
    R = (R0 * Rotation.from_rotvec(alpha * step)).as_matrix()
    return pose_matrix(R, (1 - alpha) * a_T_b0[:3, 3] + alpha * a_T_b1[:3, 3])


def rotation_from_quaternion_torch(q_B4: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., 3, 3) of wxyz quaternions (..., 4), which are normalised first."""
    import torch

    rows = _rotation_rows(*torch.nn.functional.normalize(q_B4, dim=-1).unbind(-1))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotation_from_6d_torch(a_B6: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., 3, 3) from the continuous 6D form (Zhou et al. 2019, eq. 8).

    The first two rows are the two 3-vectors after Gram-Schmidt, the third is their cross product.
    """
    import torch

    first = torch.nn.functional.normalize(a_B6[..., :3], dim=-1)
    second = a_B6[..., 3:] - (first * a_B6[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def quaternion_from_rotation_torch(R: torch.Tensor) -> torch.Tensor:
    """Unit wxyz quaternions (..., 4) of rotation matrices (..., 3, 3); differentiable everywhere.

    Of the four ways to write the quaternion, the one with the largest divisor is taken
    (Shepperd 1978), so no gradient passes through a vanishing square root.
    """
    import torch

    m00, m01, m02, m10, m11, m12, m20, m21, m22 = R.flatten(-2).unbind(-1)
    squares = torch.stack(  # 4w^2, 4x^2, 4y^2, 4z^2
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, squares[..., 1], m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, squares[..., 2], m12 + m21], -1),
            torch.stack([m10 - m01, m20 + m02, m21 + m12, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return torch.nn.functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
