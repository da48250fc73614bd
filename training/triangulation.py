"""Landmarks where there is no depth: 3D points from posed images with local features.

    pairs that see the same from elsewhere -> matches along epipolar planes -> tracks
    -> points -> poses and points adjusted to each other -> the same again, with tight tolerances

Pairs are few per image, so that cost grows linearly. A track joins features of different images;
its point is the one on which most of its rays agree, features that disagree are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.features import Features
from training.bundle_adjustment import (
    BundleSettings,
    Observations,
    adjust_bundle,
    refine_points,
)
from training.epipolar_matching import Matches, Rays, match_rays

_PEELINGS = 3  # times that a track may be split: what does not fit its point may be another one
_HYPOTHESES = 12  # pairs of rays that are tried for the point of a track


@dataclass(frozen=True)
class TriangulationSettings:
    """How points are found and which are kept."""

    partners: int = 8  # images that an image is matched with
    ratio: float = 0.85  # nearest over second nearest descriptor distance
    pose_error_px: float = 8.0  # tolerance while the given poses are used
    feature_error_px: float = 2.0  # tolerance once the poses agree
    min_angle_deg: float = 1.5  # largest angle between two rays of a point
    min_views: int = 2  # images that see a point
    bundle: BundleSettings = field(default_factory=BundleSettings)
    seed: int = 0


@dataclass(frozen=True)
class Triangulation:
    """P points seen from N images.

    Attributes:
        world_T_camera: the adjusted poses (N, 4, 4) with which the points agree.
        positions: points (P, 3) in the world.
        views: number of images (P,) that see each point.
        angle: largest angle (P,) between two of its rays, radians.
        error_px: mean reprojection error (P,).
        track_id: for each image the point of each of its features (N_i,), -1 where it has none.
        seen: the same as observations of the points.
    """

    world_T_camera: np.ndarray
    positions: np.ndarray
    views: np.ndarray
    angle: np.ndarray
    error_px: np.ndarray
    track_id: list[np.ndarray]
    seen: Observations

    def points(self, image: int) -> np.ndarray:
        """The point (N_i, 3) of each feature of an image, NaN where it has none."""
        known = np.concatenate([self.positions, np.full((1, 3), np.nan)])
        return known[self.track_id[image]]  # -1 is the last row

    def placed_without(
        self, hidden_N: np.ndarray, settings: TriangulationSettings
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the other images place the points, with the poses as they are.

        Args:
            hidden_N: mask of the images whose rays do not count.
            settings: what a point must have to be kept, as when it was found.

        Returns:
            The points (P, 3), and which of them (P,) the other images suffice for.
        """
        shown_M = ~hidden_N[self.seen.image]
        views_P = np.bincount(self.seen.track, shown_M, minlength=len(self.positions))
        moves_P = (views_P < self.views) & (views_P >= settings.min_views)
        rows = np.flatnonzero(shown_M & moves_P[self.seen.track])
        seen = Observations(
            self.seen.uv[rows],
            self.seen.image[rows],
            (np.cumsum(moves_P) - 1)[self.seen.track[rows]],
            self.seen.intrinsics,
        )
        positions, kept_P = self.positions.copy(), views_P == self.views
        if len(rows):
            every = np.ones(len(rows), dtype=bool)
            points = positions[moves_P]
            loss_px = settings.feature_error_px / 2
            points = refine_points(seen, self.world_T_camera, points, every, loss_px)
            angle = _widest_angle(seen, self.world_T_camera, points, every)
            positions[moves_P] = points
            kept_P[moves_P] = angle >= np.deg2rad(settings.min_angle_deg)
        return positions, kept_P


def triangulate(
    features: list[Features],
    cameras: list[Camera],
    world_T_camera_N44: np.ndarray,
    settings: TriangulationSettings = TriangulationSettings(),
) -> Triangulation:
    """Finds points that several images see, and adjusts the poses so that they agree.

    Args:
        features: of each image, in pixels of its camera.
        cameras: of each image, pinhole.
        world_T_camera_N44: poses in metres, right to some pixels (`pose_error_px`).
        settings: see TriangulationSettings.
    """
    scene = _Scene(features, cameras, settings)
    depth = _typical_depth(scene, world_T_camera_N44)
    pairs = _choose_pairs(cameras, world_T_camera_N44, depth, settings.partners)
    tolerance = settings.pose_error_px
    matches = scene.match(world_T_camera_N44, pairs, tolerance)
    # Wrong matches of two images meet somewhere too; a third image must confirm before poses move.
    rough = scene.points(world_T_camera_N44, matches, tolerance, max(3, settings.min_views))
    if len(rough.positions) == 0:
        return rough
    adjusted = world_T_camera_N44
    # Poses that agree to a fraction of the tolerance (from SfM, or rendered) are better left alone.
    if np.median(rough.error_px) > settings.feature_error_px / 2:
        adjusted, _ = adjust_bundle(rough.seen, adjusted, rough.positions, settings.bundle)
    tolerance = settings.feature_error_px
    matches = scene.match(adjusted, pairs, tolerance)
    return scene.points(adjusted, matches, tolerance, settings.min_views)


class _Scene:
    """All features of all images, numbered through."""

    def __init__(
        self, features: list[Features], cameras: list[Camera], settings: TriangulationSettings
    ):
        self.features, self.settings = features, settings
        self.starts = np.concatenate([[0], np.cumsum([len(f) for f in features])])
        self.image = np.repeat(np.arange(len(features)), np.diff(self.starts))
        self.uv = np.concatenate([f.uv for f in features]).astype(np.float64)
        self.intrinsics = np.array([(c.fx, c.fy, c.cx, c.cy) for c in cameras])

    def rays(self, image: int, pose: np.ndarray) -> Rays:
        """The rays of one image from this pose."""
        fx, fy, cx, cy = self.intrinsics[image]
        xy = (self.features[image].uv - (cx, cy)) / (fx, fy)
        d = np.concatenate([xy, np.ones((len(xy), 1))], axis=1) @ pose[:3, :3].T
        descriptors = self.features[image].descriptors.astype(np.float32)
        length = np.linalg.norm(descriptors, axis=1, keepdims=True)
        return Rays(
            pose[:3, 3],
            d / np.linalg.norm(d, axis=1, keepdims=True),
            descriptors / np.maximum(length, 1e-9),
        )

    def match_each(
        self, poses: np.ndarray, pairs: np.ndarray, tolerance_px: float, ratio: float
    ) -> Iterator[Matches]:
        """Matches of every pair (P, 2), sorted by the first image, with indices in the image."""

        def match(group: np.ndarray) -> list[Matches]:
            i = group[0, 0]
            first = self.rays(i, poses[i])
            tolerance = tolerance_px / self.intrinsics[i, 0]
            return [
                match_rays(first, self.rays(j, poses[j]), tolerance, ratio) for j in group[:, 1]
            ]

        groups = np.split(pairs, np.flatnonzero(np.diff(pairs[:, 0])) + 1) if len(pairs) else []
        with _one_thread_each(), ThreadPoolExecutor(os.cpu_count()) as pool:
            with tqdm(total=len(pairs), desc='matching', unit='pair', disable=None) as bar:
                for found in pool.map(match, groups):
                    bar.update(len(found))
                    yield from found

    def match(self, poses: np.ndarray, pairs: np.ndarray, tolerance_px: float) -> np.ndarray:
        """Features (M, 2) that match, numbered through, surest first."""
        found = list(self.match_each(poses, pairs, tolerance_px, self.settings.ratio))
        if not found:
            return np.zeros((0, 2), dtype=np.int64)
        rows = [
            np.stack([m.first + self.starts[i], m.second + self.starts[j]], axis=1)
            for m, (i, j) in zip(found, pairs, strict=True)
        ]
        order = np.argsort(np.concatenate([m.ratio for m in found]), kind='stable')
        return np.concatenate(rows)[order]

    def points(
        self, poses: np.ndarray, matches: np.ndarray, tolerance_px: float, min_views: int
    ) -> Triangulation:
        """Joins matches to tracks and finds their points, while the poses stay as they are."""
        rng = np.random.default_rng(self.settings.seed)
        track = np.full(len(self.image), -1)
        rows: list[np.ndarray] = []
        for _ in range(_PEELINGS):
            feature, label = _join(matches, self.image)
            if len(feature) == 0:
                break
            seen = Observations(self.uv[feature], self.image[feature], label, self.intrinsics)
            found = _robust_points(seen, poses, tolerance_px, rng)
            good = found.views >= min_views
            good &= found.angle >= np.deg2rad(self.settings.min_angle_deg)
            number = np.where(good, np.cumsum(good) - 1 + sum(map(len, rows)), -1)
            taken = found.inlier & good[label]
            track[feature[taken]] = number[label[taken]]
            columns = (found.positions, found.views, found.angle, found.error_px)
            rows.append(np.column_stack(columns)[good])
            # Where nothing was found, nothing will be.
            spent = np.zeros(len(self.image), dtype=bool)
            spent[feature] = taken | ~good[label]
            matches = matches[~spent[matches].any(axis=1)]
        table = np.concatenate(rows) if rows else np.zeros((0, 6))
        return Triangulation(
            poses,
            table[:, :3],
            table[:, 3].astype(np.int64),
            table[:, 4],
            table[:, 5],
            np.split(track, self.starts[1:-1]),
            self._observations(track),
        )

    def _observations(self, track: np.ndarray) -> Observations:
        """Which features see the points, from the point of each feature."""
        order = np.argsort(track, kind='stable')
        order = order[track[order] >= 0]
        return Observations(self.uv[order], self.image[order], track[order], self.intrinsics)


@contextmanager
def _one_thread_each():
    """Keeps torch from starting threads inside of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _typical_depth(scene: _Scene, poses: np.ndarray, images: int = 24) -> float | None:
    """Median distance of what the images see, from sure matches; None where nothing meets.

    What a good partner is depends on the distance of the scene, which the poses do not tell: here
    some images are matched with their 1st, 2nd, 4th, 8th, ... nearest that look the same way.
    """
    pairs = []
    for i in np.unique(np.linspace(0, len(poses) - 1, images).astype(int)):
        alike = np.flatnonzero(poses[:, :3, 2] @ poses[i, :3, 2] > np.cos(np.deg2rad(45)))
        alike = alike[alike != i]
        gap = np.linalg.norm(poses[alike, :3, 3] - poses[i, :3, 3], axis=1)
        ranks = 2 ** np.arange(16) - 1
        nearest = alike[np.argsort(gap, kind='stable')][ranks[ranks < len(alike)]]
        pairs += [(i, j) for j in nearest]
    tolerance = scene.settings.pose_error_px
    matches = scene.match_each(poses, np.array(pairs), tolerance, ratio=0.7) if pairs else []
    wide = np.deg2rad(2 * scene.settings.min_angle_deg)
    found = np.concatenate([[], *(m.distance[m.angle > wide] for m in matches)])
    return float(np.median(found)) if len(found) else None


def _choose_pairs(
    cameras: list[Camera], poses: np.ndarray, depth: float | None, partners: int
) -> np.ndarray:
    """Pairs (P, 2) of images, i < j, sorted, that see the same from different places.

    Args:
        depth: typical distance of the scene; None gives no pairs.
    """
    pairs: set[tuple[int, int]] = set()
    if depth is None:
        return np.zeros((0, 2), dtype=np.int64)
    for i in range(len(poses)):
        middle = poses[i, :3, 3] + depth * poses[i, :3, 2]
        to_camera = poses[:, :3, 3] - middle
        to_camera /= np.maximum(np.linalg.norm(to_camera, axis=1, keepdims=True), 1e-9)
        angle = np.arccos(np.clip(to_camera @ to_camera[i], -1, 1))
        # Best are 8 to 24 deg between the views: less says little about distance, with more the
        # descriptors no longer match.
        good = np.deg2rad(8)
        value = _overlap(cameras, poses, i, depth)
        value *= np.minimum(angle / good, 1) * np.minimum(3 * good / np.maximum(angle, 1e-9), 1)
        value[i] = 0
        for _ in range(partners):
            j = int(value.argmax())
            if value[j] < 0.05:
                break
            pairs.add((min(i, j), max(i, j)))
            # Another image from nearly the same place adds little.
            apart = np.arccos(np.clip(to_camera @ to_camera[j], -1, 1))
            value *= np.minimum(apart / np.deg2rad(2), 1)
            value[j] = 0
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _overlap(cameras: list[Camera], poses: np.ndarray, i: int, depth: float) -> np.ndarray:
    """Share (N,) of what image i sees, near the typical depth, that each image sees."""
    camera = cameras[i]
    u, v = np.meshgrid(np.linspace(0.1, 0.9, 4), np.linspace(0.1, 0.9, 3))
    uv = np.stack([u.ravel() * camera.width, v.ravel() * camera.height], axis=1)
    local = np.concatenate([camera.unproject(uv, np.full(12, f * depth)) for f in (0.6, 1, 1.7)])
    points = local @ poses[i, :3, :3].T + poses[i, :3, 3]
    there = np.einsum('nji,npj->npi', poses[:, :3, :3], points - poses[:, None, :3, 3])
    size = np.array([(c.width, c.height) for c in cameras])[:, None]
    intrinsics = np.array([(c.fx, c.fy, c.cx, c.cy) for c in cameras])[:, None]
    # What lies behind a camera ends up far outside of its image.
    pixel = there[..., :2] / np.maximum(there[..., 2:], 1e-9) * intrinsics[..., :2]
    pixel += intrinsics[..., 2:]
    return ((pixel > 0) & (pixel < size)).all(axis=2).mean(axis=1)


def _join(matches_M2: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tracks: matches joined, surest first, unless that puts two features of one image in a track.

    Returns:
        Features (K,) that belong to a track, and their tracks (K,), ascending from 0.
    """
    used, index = np.unique(matches_M2, return_inverse=True)
    parent = list(range(len(used)))
    images = [1 << int(n) for n in image[used]]  # the images of a track, as bits

    for a, b in index.reshape(-1, 2).tolist():
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and not images[a] & images[b]:
            parent[b] = a
            images[a] |= images[b]

    root = np.array(parent, dtype=np.int64)
    while (root != root[root]).any():
        root = root[root]
    size = np.bincount(root, minlength=len(root))
    joined = np.flatnonzero(size[root] >= 2)
    _, track = np.unique(root[joined], return_inverse=True)
    order = np.argsort(track, kind='stable')
    return used[joined[order]], track[order]


@dataclass(frozen=True)
class _Points:
    positions: np.ndarray  # (T, 3)
    views: np.ndarray  # (T,)
    angle: np.ndarray  # (T,) radians
    error_px: np.ndarray  # (T,)
    inlier: np.ndarray  # (M,) which observations agree


def _robust_points(
    seen: Observations, poses: np.ndarray, tolerance_px: float, rng: np.random.Generator
) -> _Points:
    """One point for each track: from some pairs of its rays, then from all rays that agree."""
    points = _best_of_pairs(seen, poses, 2 * tolerance_px, rng)
    for tolerance in (2 * tolerance_px, tolerance_px):
        agree = _errors(seen, poses, points) < tolerance
        points = refine_points(seen, poses, points, agree.astype(float), tolerance_px / 2)
    error = _errors(seen, poses, points)
    inlier = error < tolerance_px
    views = seen.by_track @ inlier
    mean = (seen.by_track @ (error * inlier)) / np.maximum(views, 1)
    return _Points(points, views, _widest_angle(seen, poses, points, inlier), mean, inlier)


def _errors(seen: Observations, poses: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(seen.residuals(poses, points)[0], axis=1)


def _best_of_pairs(seen: Observations, poses, tolerance_px: float, rng) -> np.ndarray:
    """Points (T, 3) nearest to two random rays of each track; the best of some tries.

    A point is better when more observations agree with it, and more closely (MSAC).
    """
    focal, centre = seen.intrinsics[seen.image, :2], seen.intrinsics[seen.image, 2:]
    rays = np.concatenate([(seen.uv - centre) / focal, np.ones((len(seen.uv), 1))], axis=1)
    rays = np.einsum('mij,mj->mi', poses[seen.image, :3, :3], rays)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    # Squared distance from ray i is |P_i (x - c_i)|^2 with the projector P_i = I - r_i r_i^T.
    projector = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    target = np.einsum('mij,mj->mi', projector, poses[seen.image, :3, 3])
    count = np.bincount(seen.track)
    start = np.cumsum(count) - count
    best, score = np.zeros((len(count), 3)), np.full(len(count), -1.0)
    for _ in range(_HYPOTHESES):
        first = rng.integers(count)
        i, j = start + first, start + (first + rng.integers(1, count)) % count
        H = projector[i] + projector[j] + 1e-12 * np.eye(3)
        points = np.linalg.solve(H, (target[i] + target[j])[..., None])[..., 0]
        agreement = np.maximum(1 - (_errors(seen, poses, points) / tolerance_px) ** 2, 0)
        total = seen.by_track @ agreement
        better = total > score
        best[better], score[better] = points[better], total[better]
    return best


def _widest_angle(seen: Observations, poses, points, inlier) -> np.ndarray:
    """Largest angle (T,) between two rays of each point, of those that agree; 0 for fewer."""
    rays = points[seen.track[inlier]] - poses[seen.image[inlier], :3, 3]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    track = seen.track[inlier]
    smallest, first = np.ones(len(points)), np.arange(len(track))
    for shift in range(1, len(track)):
        first = first[first < len(track) - shift]
        first = first[track[first] == track[first + shift]]
        if len(first) == 0:
            break
        cosine = np.einsum('mi,mi->m', rays[first], rays[first + shift])
        start = np.flatnonzero(np.diff(track[first], prepend=-1))
        of = track[first[start]]
        smallest[of] = np.minimum(smallest[of], np.minimum.reduceat(cosine, start))
    return np.arccos(np.clip(smallest, -1, 1))
