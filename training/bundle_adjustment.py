"""Bundle adjustment: poses and points that agree with each other and stay near the given poses.

Poses recorded by SLAM are off by centimetres and degrees, which is many pixels. Points and poses
are moved together until the points appear where features were found (Triggs et al. 2000):
Levenberg-Marquardt with a Cauchy loss; points are eliminated (Schur complement), and the system in
the poses is solved by conjugate gradients without being formed, so cost grows with observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import bsr_matrix, csr_matrix
from scipy.sparse.linalg import LinearOperator, cg

from pose_reloc.geometry import perturb_pose, pose_residual

_NEAR = 1e-3  # depth (in the unit of the poses) below which a point counts as behind the camera
_FAR_OFF_PX = 1e3  # error of a point behind the camera


@dataclass(frozen=True)
class BundleSettings:
    """How far poses may move, and how errors count."""

    sigma_m: float = 0.02  # of a given position
    sigma_rad: float = 0.01  # of a given rotation
    loss_px: float = 1.0  # scale of the Cauchy loss
    iterations: int = 10


@dataclass(frozen=True)
class Observations:
    """M pixels that see T points from N pinhole cameras.

    Attributes:
        uv: pixels (M, 2).
        image: which camera (M,).
        track: which point (M,), ascending, none left out.
        intrinsics: fx, fy, cx, cy of every camera (N, 4).
    """

    uv: np.ndarray
    image: np.ndarray
    track: np.ndarray
    intrinsics: np.ndarray

    @cached_property
    def by_image(self) -> csr_matrix:
        """(N, M): sums rows of observations for each camera."""
        return _summation(self.image, len(self.intrinsics))

    @cached_property
    def by_track(self) -> csr_matrix:
        """(T, M): sums rows of observations for each point."""
        return _summation(self.track, int(self.track[-1]) + 1)

    def residuals(self, world_T_camera_N44, points_T3) -> tuple[np.ndarray, np.ndarray]:
        """Projected minus seen pixels (M, 2), and points (M, 3) in their cameras."""
        poses = world_T_camera_N44[self.image]
        offset = points_T3[self.track] - poses[:, :3, 3]
        local = np.einsum('mji,mj->mi', poses[:, :3, :3], offset)
        focal, centre = self.intrinsics[self.image, :2], self.intrinsics[self.image, 2:]
        z = np.maximum(local[:, 2:], _NEAR)
        r_M2 = local[:, :2] / z * focal + centre - self.uv
        r_M2[local[:, 2] < _NEAR] = _FAR_OFF_PX
        return r_M2, local

    def derivatives(self, world_T_camera_N44, local_M3) -> np.ndarray:
        """Derivatives (M, 2, 3) of the residuals by the points in the world."""
        z = np.maximum(local_M3[:, 2], _NEAR)
        scale = self.intrinsics[self.image, :2] / z[:, None]
        project_M23 = np.zeros((len(z), 2, 3))
        project_M23[:, [0, 1], [0, 1]] = scale
        project_M23[:, :, 2] = -scale * local_M3[:, :2] / z[:, None]
        return np.einsum('mij,mkj->mik', project_M23, world_T_camera_N44[self.image, :3, :3])


def refine_points(seen: Observations, world_T_camera_N44, points_T3, weight_M, loss_px, steps=5):
    """Points (T, 3) that minimise the reprojection error while the poses stay as they are.

    Args:
        seen: the observations.
        world_T_camera_N44: poses.
        points_T3: where to start.
        weight_M: of each observation; 0 leaves it out.
        loss_px: scale of the Cauchy loss.
        steps: of Gauss-Newton.
    """
    for _ in range(steps):
        r_M2, local = seen.residuals(world_T_camera_N44, points_T3)
        J_M23 = seen.derivatives(world_T_camera_N44, local)
        weight = weight_M * _cauchy_weight(r_M2, loss_px)
        H_T33 = _sum(seen.by_track, np.einsum('m,mia,mib->mab', weight, J_M23, J_M23))
        g_T3 = _sum(seen.by_track, np.einsum('m,mia,mi->ma', weight, J_M23, r_M2))
        points_T3 = points_T3 - _solve(_damped(H_T33, 1e-6), g_T3)
    return points_T3


def adjust_bundle(
    seen: Observations,
    world_T_camera_N44: np.ndarray,
    points_T3: np.ndarray,
    settings: BundleSettings = BundleSettings(),
) -> tuple[np.ndarray, np.ndarray]:
    """Poses (N, 4, 4) and points (T, 3) that agree with each other.

    Args:
        seen: the observations.
        world_T_camera_N44: the given poses; each stays near its own.
        points_T3: where to start.
        settings: see BundleSettings.
    """
    given, poses, points = world_T_camera_N44, world_T_camera_N44, points_T3
    cost, damping = _cost(seen, poses, points, given, settings), 1e-4
    for _ in range(settings.iterations):
        system = _System(seen, poses, points, given, settings)
        while damping < 1e4:
            step_N6, step_T3 = system.solve(damping)
            moved, shifted = perturb_pose(poses, step_N6), points + step_T3
            new_cost = _cost(seen, moved, shifted, given, settings)
            if new_cost < cost:
                break
            damping *= 10
        else:
            break  # no step helps: this is the minimum
        small = cost - new_cost < 1e-3 * cost
        poses, points, cost, damping = moved, shifted, new_cost, max(damping / 10, 1e-8)
        if small:
            break
    return poses, points


class _System:
    """Normal equations at one state: U dc + W dp = -a for poses, W^T dc + V dp = -b for points."""

    def __init__(self, seen: Observations, poses, points, given, settings: BundleSettings):
        r_M2, local = seen.residuals(poses, points)
        Jp_M23 = seen.derivatives(poses, local)
        # Moving a camera by d and turning it by w about its centre (world axes) moves the point
        # o = point - centre in its view by -d - w x o.
        offset = points[seen.track] - poses[seen.image, :3, 3]
        Jc_M26 = np.concatenate([-Jp_M23, np.cross(Jp_M23, offset[:, None])], axis=2)
        weight = _cauchy_weight(r_M2, settings.loss_px)
        prior = _prior_information(settings)
        self.U = _sum(seen.by_image, np.einsum('m,mia,mib->mab', weight, Jc_M26, Jc_M26))
        self.U += np.diag(prior)
        self.a = _sum(seen.by_image, np.einsum('m,mia,mi->ma', weight, Jc_M26, r_M2))
        self.a += pose_residual(poses, given) * prior
        self.V = _sum(seen.by_track, np.einsum('m,mia,mib->mab', weight, Jp_M23, Jp_M23))
        self.b = _sum(seen.by_track, np.einsum('m,mia,mi->ma', weight, Jp_M23, r_M2))
        self.Wt = _blocks(seen, np.einsum('m,mia,mib->mab', weight, Jp_M23, Jc_M26))
        self.W = self.Wt.T.tocsr()

    def solve(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """The step of the poses (N, 6) and of the points (T, 3)."""
        U, V_inverse = _damped(self.U, damping), np.linalg.inv(_damped(self.V, damping))
        U_inverse = np.linalg.inv(U)

        def schur(x):
            return _times(U, x) - self.W @ _times(V_inverse, self.Wt @ x)

        size = (self.a.size, self.a.size)
        right = self.W @ _times(V_inverse, self.b.ravel()) - self.a.ravel()
        dc, _ = cg(
            LinearOperator(size, matvec=schur, dtype=np.float64),
            right,
            maxiter=150,
            M=LinearOperator(size, matvec=lambda x: _times(U_inverse, x), dtype=np.float64),
        )
        dp = -_times(V_inverse, self.b.ravel() + self.Wt @ dc)
        return dc.reshape(-1, 6), dp.reshape(-1, 3)


def _cost(seen, poses, points, given, settings: BundleSettings) -> float:
    r_M2, _ = seen.residuals(poses, points)
    squared = (r_M2**2).sum(axis=1) / settings.loss_px**2
    away = pose_residual(poses, given)
    return float(
        settings.loss_px**2 * np.log1p(squared).sum()
        + (away**2 * _prior_information(settings)).sum()
    )


def _prior_information(settings: BundleSettings) -> np.ndarray:
    return np.repeat([settings.sigma_m**-2.0, settings.sigma_rad**-2.0], 3)


def _cauchy_weight(r_M2: np.ndarray, scale: float) -> np.ndarray:
    return 1 / (1 + (r_M2**2).sum(axis=1) / scale**2)


def _summation(index_M: np.ndarray, count: int) -> csr_matrix:
    M = len(index_M)
    return csr_matrix((np.ones(M), (index_M, np.arange(M))), shape=(count, M))


def _sum(summation: csr_matrix, values: np.ndarray) -> np.ndarray:
    summed = summation @ values.reshape(len(values), -1)
    return summed.reshape(-1, *values.shape[1:])


def _blocks(seen: Observations, blocks_M36: np.ndarray) -> csr_matrix:
    """The sparse matrix (3 T, 6 N) of one block for each observation."""
    T, N = seen.by_track.shape[0], len(seen.intrinsics)
    first = np.searchsorted(seen.track, np.arange(T + 1))
    return bsr_matrix((blocks_M36, seen.image, first), shape=(3 * T, 6 * N)).tocsr()


def _damped(H: np.ndarray, damping: float) -> np.ndarray:
    """Symmetric blocks (B, n, n) with a larger diagonal, invertible even where H is singular."""
    diagonal = np.einsum('bii->bi', H)
    floor = 1e-6 * diagonal.max(axis=1, keepdims=True) + 1e-9
    return H + (damping * diagonal + floor)[:, :, None] * np.eye(H.shape[1])


def _times(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Block-diagonal matrix (B, n, n) times vector (B n,)."""
    return np.einsum('bij,bj->bi', blocks, x.reshape(len(blocks), -1)).ravel()


def _solve(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.linalg.solve(H, g[..., None])[..., 0]
