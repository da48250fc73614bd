"""`map_T_scene` from pairs of poses: the same body at the same times, in the scene and in the map.

Umeyama (1991), made robust by RANSAC, with the orientations counted too: in a corridor all
positions lie on one line, and only the orientations say how the floor lies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pose_reloc.errors import DatasetError, PoseRelocError
from pose_reloc.geometry import pose_matrix, pose_residual, wxyz_from_xyzw
from pose_reloc.ros.transforms import TransformTree
from training.datasets.bag import Truth
from training.datasets.text import read_lines
from training.umeyama import umeyama

_SAMPLE, _HYPOTHESES = 3, 100
_REFITS = 10
# Where the robot has hardly moved, noise alone would turn the map.
_LEAST_EXTENT_M = 0.5
_LEAST_SHARE = 0.3
# A map and a scene that are both metric differ by less.
SUSPICIOUS_SCALE = 0.03
# Poses that are written 100 times a second are not 100 independent witnesses.
_MOST_CORRELATED = 0.98


class AlignError(PoseRelocError):
    """The pairs of poses do not say how scene and map lie to each other."""


@dataclass(frozen=True)
class AlignSettings:
    """What counts as agreement of a pair."""

    inlier_m: float = 0.3
    inlier_deg: float = 10.0
    with_scale: bool = False  # sim3: the scene is not metric; its positions are scaled


@dataclass(frozen=True)
class Alignment:
    """How the scene lies in the map, and how well that is known.

    Attributes:
        map_T_scene: pose (4, 4).
        scale: metres of the map per metre of the scene, as measured; applied only if `with_scale`.
        covariance_66: of `map_T_scene`, see `geometry.pose_residual`, axes of the map.
        inliers: mask (N,) of the pairs that agree with it.
        residual_N6: `pose_residual` of every pair, metres and radians.
        with_scale: whether residuals are those of the scaled scene.
    """

    map_T_scene: np.ndarray
    scale: float
    covariance_66: np.ndarray
    inliers: np.ndarray
    residual_N6: np.ndarray
    with_scale: bool = False


def align(scene_T_body_N44, map_T_body_N44, settings: AlignSettings = AlignSettings()) -> Alignment:
    """The map_T_scene that most pairs agree on.

    Args:
        scene_T_body_N44, map_T_body_N44: poses of one body at the same N times, in order of time.

    Raises:
        AlignError: too few pairs agree, or the body hardly moved.
    """
    scene, map_ = np.asarray(scene_T_body_N44, float), np.asarray(map_T_body_N44, float)
    _check_positions(map_, 'of the pairs')
    best = _ransac(scene, map_, settings)
    for _ in range(_REFITS):
        before = best.inliers
        if before.sum() < _SAMPLE:
            break
        best = _fit(scene, map_, before, settings, *_sigmas(best))
        if np.array_equal(best.inliers, before):
            break
    agreeing = int(best.inliers.sum())
    if agreeing < max(_SAMPLE, _LEAST_SHARE * len(scene)):
        raise AlignError(
            f'only {agreeing} of {len(scene)} pairs agree within {settings.inlier_m:g} m and '
            f'{settings.inlier_deg:g} deg: do both describe the same body (the base, not the '
            'camera) at the same times, and is the scene in metres (if not: --sim3)?'
        )
    _check_positions(map_[best.inliers], 'that agree')
    return replace(best, covariance_66=_covariance(best, scene))


def _check_positions(map_T_body_N44, which: str) -> None:
    positions = map_T_body_N44[:, :3, 3]
    if len(positions) < _SAMPLE:
        raise AlignError(
            f'{len(positions)} pairs of poses {which} are too few: {_SAMPLE} are needed, at '
            'places far apart'
        )
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    if extent < _LEAST_EXTENT_M:
        raise AlignError(
            f'the positions {which} span only {extent:.2f} m, less than {_LEAST_EXTENT_M} m: '
            'drive the robot through the scene'
        )


def _ransac(scene, map_, settings: AlignSettings) -> Alignment:
    """The hypothesis of a few pairs that fits the others best (MSAC: truncated squares)."""
    rng = np.random.default_rng(0)
    best, best_cost = None, np.inf
    for _ in range(_HYPOTHESES):
        mask = np.zeros(len(scene), bool)
        mask[rng.choice(len(scene), _SAMPLE, replace=False)] = True
        bounds = settings.inlier_m, np.deg2rad(settings.inlier_deg)
        found = _fit(scene, map_, mask, settings, *bounds)
        cost = np.minimum(_distance(found.residual_N6, settings), 1.0).sum()
        if cost < best_cost:
            best, best_cost = found, cost
    return best


def _fit(scene, map_, mask, settings: AlignSettings, sigma_m: float, sigma_rad: float) -> Alignment:
    """The least-squares fit to the pairs of `mask`, and how all pairs agree with it.

    Args:
        sigma_m, sigma_rad: of a position and of a rotation; only their ratio matters.
    """
    # A pose as six points around its origin: fitting them fits orientations too. With this arm
    # positions and rotations have the weights of maximum likelihood.
    arm = np.sqrt(1.5) * sigma_m / sigma_rad
    a, b = scene[mask], map_[mask]
    R, t, _ = umeyama(_points(a, arm), _points(b, arm), with_scale=False)
    centred_a = (a[:, :3, 3] - a[:, :3, 3].mean(0)) @ R.T
    centred_b = b[:, :3, 3] - b[:, :3, 3].mean(0)
    scale = float((centred_a * centred_b).sum() / max((centred_a**2).sum(), 1e-12))
    if settings.with_scale:
        t = b[:, :3, 3].mean(0) - scale * R @ a[:, :3, 3].mean(0)
    found = Alignment(pose_matrix(R, t), scale, np.eye(6), mask, np.empty(0), settings.with_scale)
    residual = pose_residual(map_, moved(found, scene))
    inliers = _distance(residual, settings) <= 1.0
    return replace(found, inliers=inliers, residual_N6=residual)


def _points(a_T_b_N44, arm: float) -> np.ndarray:
    """(6 N, 3): the points at +-arm along the axes of each pose."""
    R, t = a_T_b_N44[:, :3, :3], a_T_b_N44[:, :3, 3]
    tips = np.concatenate([R, -R], axis=2).transpose(0, 2, 1) * arm
    return (t[:, None] + tips).reshape(-1, 3)


def _distance(residual_N6, settings: AlignSettings) -> np.ndarray:
    """Squared (N,): 1 where position or rotation is at its bound, whichever is nearer to it."""
    position = np.linalg.norm(residual_N6[:, :3], axis=1) / settings.inlier_m
    rotation = np.linalg.norm(residual_N6[:, 3:], axis=1) / np.deg2rad(settings.inlier_deg)
    return np.maximum(position, rotation) ** 2


def moved(alignment: Alignment, scene_T_body_N44) -> np.ndarray:
    """Poses of the scene (N, 4, 4) as poses in the map."""
    scene = np.array(scene_T_body_N44, dtype=float)
    if alignment.with_scale:
        scene[:, :3, 3] *= alignment.scale
    return alignment.map_T_scene @ scene


def _covariance(alignment: Alignment, scene) -> np.ndarray:
    """Gauss-Newton covariance (6, 6) from the residuals of the inliers.

    Neighbours in time share their errors: n of them count as n (1 - r) / (1 + r) for a correlation
    r of each residual with the next (an autoregressive process of first order).
    """
    residual = alignment.residual_N6[alignment.inliers]
    arms = moved(alignment, scene)[alignment.inliers, :3, 3] - alignment.map_T_scene[:3, 3]
    weights = np.repeat(1 / np.square(_sigmas(alignment)), 3)
    information = np.zeros((6, 6))
    for x, y, z in arms:
        # The body's position moves by w x arm, its rotation by w.
        J = np.eye(6)
        J[:3, 3:] = -np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        information += J.T * weights @ J
    r = _correlation(residual)
    return np.linalg.inv(information) * (1 + r) / (1 - r)


def _sigmas(alignment: Alignment) -> tuple[float, float]:
    """Standard deviations of the inliers along an axis: metres, radians."""
    residual = alignment.residual_N6[alignment.inliers]
    degrees_of_freedom = max(len(residual) - 1, 1)  # six numbers were fitted to six a pair
    m, rad = (
        float(np.sqrt((part**2).sum() / 3 / degrees_of_freedom))
        for part in (residual[:, :3], residual[:, 3:])
    )
    return max(m, 1e-4), max(rad, 1e-5)


def _correlation(residual_N6) -> float:
    """Of each residual with the next, position and rotation, whichever is the larger; in [0, 1)."""
    found = [0.0]
    for part in (residual_N6[:, :3], residual_N6[:, 3:]):
        power = (part**2).sum()
        if power > 0:
            found.append(float((part[1:] * part[:-1]).sum() / power))
    return min(max(found), _MOST_CORRELATED)


def read_trajectory(path: Path) -> Truth:
    """The poses of a TUM file: lines `time x y z qx qy qz qw`, seconds, also with commas.

    Raises:
        DatasetError: it cannot be read, a line is something else, or there is none.
    """
    tree = TransformTree(history=None)
    for line in read_lines(path):
        line = replace(line, text=line.text.replace(',', ' '))
        if line.number == 1 and not line.text[:1].isdigit():
            continue  # the header of a CSV file
        values = line.numbers(line.words('time x y z qx qy qz qw'))
        pose = line.pose(values[1:4], wxyz_from_xyzw(values[4:]), camera_to_world=True)
        tree.set('world', 'body', round(values[0] * 1e9), pose)
    if not tree.frames():
        raise DatasetError(f'{path} holds no poses')
    return Truth(str(path), tree, 'world', 'body')
