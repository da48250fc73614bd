"""Makes the poses of depth images agree with each other.

Poses recorded by SLAM drift by centimetres and degrees. Every frame carries points (features with
depth) that move rigidly with it; matched features of other frames say where those points should
appear. The poses that explain this best, and stay near the given ones, are found by Gauss-Newton:
a bundle adjustment in which depth takes the place of the points' own parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from pose_reloc.camera import Camera


@dataclass(frozen=True)
class AdjustmentSettings:
    """How far poses may move, and how much a match counts."""

    sigma_m: float = 0.1  # of a given position
    sigma_rad: float = 0.07  # of a given rotation
    loss_px: float = 4.0  # scale of the Cauchy loss
    gate_px: float = 60.0  # a match further off than this is wrong
    weight: float = 0.05  # of a match: those of one pair of frames share their errors
    iterations: int = 8


@dataclass(frozen=True)
class Observations:
    """Features of one frame matched with points of other frames.

    Attributes:
        uv: pinhole pixels (M, 2) in this frame.
        partner: the other frame of each match (M,), sorted.
        local: the matched points (M, 3) in the camera of that frame, metres.
    """

    uv: np.ndarray
    partner: np.ndarray
    local: np.ndarray


def adjust_poses(
    world_T_camera_N44: np.ndarray,
    observations: list[Observations],
    camera: Camera,
    settings: AdjustmentSettings = AdjustmentSettings(),
) -> np.ndarray:
    """Poses (N, 4, 4) that agree with each other.

    Args:
        world_T_camera_N44: as given.
        observations: of each frame.
        camera: the pinhole camera of all frames.
        settings: see AdjustmentSettings.
    """
    given, poses = world_T_camera_N44, world_T_camera_N44.copy()
    N = len(poses)
    prior = np.r_[np.full(3, settings.sigma_m**-2.0), np.full(3, settings.sigma_rad**-2.0)]
    for _ in tqdm(range(settings.iterations), 'adjusting poses', disable=None, leave=False):
        rows, columns, blocks = [], [], []
        gradient_N6 = np.zeros((N, 6))
        for n, seen in enumerate(observations):
            if len(seen.uv) == 0:
                continue
            r_M2, weight_M, Jn_M26, Jk_M26 = _linearised(poses, n, seen, camera, settings)
            first = np.flatnonzero(np.r_[True, np.diff(seen.partner) != 0])
            partners = seen.partner[first]
            weighted_n, weighted_k = (J * weight_M[:, None, None] for J in (Jn_M26, Jk_M26))
            gradient_N6[n] += np.einsum('mij,mi->j', weighted_n, r_M2)
            gradient_N6[partners] += np.add.reduceat(
                np.einsum('mij,mi->mj', weighted_k, r_M2), first
            )
            nk = np.add.reduceat(np.einsum('mij,mik->mjk', weighted_n, Jk_M26), first)
            kk = np.add.reduceat(np.einsum('mij,mik->mjk', weighted_k, Jk_M26), first)
            rows += [[n], np.full(len(partners), n), partners, partners]
            columns += [[n], partners, np.full(len(partners), n), partners]
            nn = np.einsum('mij,mik->jk', weighted_n, Jn_M26)[None]
            blocks += [nn, nk, nk.transpose(0, 2, 1), kk]
        turned = Rotation.from_matrix(poses[:, :3, :3] @ given[:, :3, :3].transpose(0, 2, 1))
        away_N6 = np.concatenate([poses[:, :3, 3] - given[:, :3, 3], turned.as_rotvec()], axis=1)
        rows.append(np.arange(N))
        columns.append(np.arange(N))
        blocks.append(np.broadcast_to(np.diag(prior), (N, 6, 6)))
        information = _sparse(np.concatenate(rows), np.concatenate(columns), blocks, N)
        gradient_N6 += away_N6 * prior
        step_N6 = -splu(information).solve(gradient_N6.ravel()).reshape(N, 6)
        poses[:, :3, 3] += step_N6[:, :3]
        poses[:, :3, :3] = Rotation.from_rotvec(step_N6[:, 3:]).as_matrix() @ poses[:, :3, :3]
        if np.abs(step_N6).max() < 1e-4:
            break
    return poses


def _linearised(poses, n: int, seen: Observations, camera: Camera, settings: AdjustmentSettings):
    """Residuals (M, 2), weights (M,), and derivatives (M, 2, 6) by the two frames' motions."""
    own, other = poses[n], poses[seen.partner]
    turned_M3 = np.einsum('mij,mj->mi', other[:, :3, :3], seen.local)
    offset_M3 = turned_M3 + other[:, :3, 3] - own[:3, 3]
    local = offset_M3 @ own[:3, :3]
    x, y, z = local[:, 0], local[:, 1], np.maximum(local[:, 2], 0.1)
    r_M2 = np.stack([x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy], 1) - seen.uv
    error = np.linalg.norm(r_M2, axis=1)
    weight = settings.weight / (1 + (error / settings.loss_px) ** 2)
    weight[(error > settings.gate_px) | (local[:, 2] < 0.1)] = 0
    zero = np.zeros_like(z)
    project_M23 = np.stack(
        [
            np.stack([camera.fx / z, zero, -camera.fx * x / z**2], 1),
            np.stack([zero, camera.fy / z, -camera.fy * y / z**2], 1),
        ],
        axis=1,
    )
    to_world_M23 = project_M23 @ own[:3, :3].T  # derivative by the point in the world
    # Frame k moves its point by t + w x turned; frame n moves it by -(t + w x offset) in its view.
    Jk = np.concatenate([to_world_M23, np.cross(turned_M3[:, None], to_world_M23)], axis=2)
    Jn = -np.concatenate([to_world_M23, np.cross(offset_M3[:, None], to_world_M23)], axis=2)
    return r_M2, weight, Jn, Jk


def _sparse(rows, columns, blocks, N: int):
    """The symmetric matrix (6 N, 6 N) of all blocks; blocks of the same place are added."""
    blocks = np.concatenate(blocks)
    inner = np.arange(6)
    i = (rows[:, None, None] * 6 + inner[:, None]) + 0 * inner
    j = (columns[:, None, None] * 6 + inner) + 0 * inner[:, None]
    return coo_matrix((blocks.ravel(), (i.ravel(), j.ravel())), shape=(6 * N, 6 * N)).tocsc()
