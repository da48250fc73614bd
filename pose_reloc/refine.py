"""From a rough idea of the pose to centimetres: match landmarks, then PnP.

A query's features are matched with the landmarks of a few keyframes (mutual nearest neighbours with
a ratio test, keyframe by keyframe), LO-RANSAC finds the pose that explains most of them (poselib),
the keyframes nearest to that pose are matched too, and the pose is found again and optimised over
their matches alone: where the search started does not change where it ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pose_reloc.camera import Camera
from pose_reloc.features import Features, open_features
from pose_reloc.gates import GateSettings
from pose_reloc.geometry import invert_pose, quaternion_from_rotation
from pose_reloc.landmarks import LandmarkMap, global_descriptor
from pose_reloc.pnp import FAR, CameraFit, PnpProblem, robust_sigma


@dataclass(frozen=True)
class RefineSettings:
    """How a pose is refined; angles of reprojection are pixels of a camera with f = 500."""

    near: int = 2  # keyframes by view overlap with each guess
    alike: int = 2  # keyframes by global descriptor
    second_try: int = 4  # times as many of both, where these do not give a pose
    around: int = 4  # keyframes by view overlap with the first solution
    ratio: float = 0.9  # nearest over second nearest descriptor distance
    max_error_px: float = 8.0  # reprojection error of an inlier, at f = 500
    loss_px: float = 3.0  # scale of the Cauchy loss of the final optimisation, at f = 500
    min_inliers: int = GateSettings.min_inliers  # fewer prove nothing
    min_points: int = 20  # distinct pixels among the inliers: one may match many keyframes
    min_point_ratio: float = 0.05  # of these to all features: of more, more agree by chance
    min_inlier_ratio: float = 0.1  # of the matches with the best keyframes


@dataclass(frozen=True)
class Refinement:
    """A pose computed from landmarks.

    Attributes:
        world_T_camera: (4, 4) in the frame of the landmarks.
        covariance_66: of the PnP problem, not yet calibrated, in that frame.
        camera: the same with the calibration of the query's camera free.
        uv, points: pixels (M, 2) of the inliers in the given image and their landmarks (M, 3).
        keyframe: the keyframe with most inliers.
        matches: number of matches that were tried.
        timings: seconds: 'features', 'match', 'pnp'.
    """

    world_T_camera: np.ndarray
    covariance_66: np.ndarray
    camera: CameraFit
    uv: np.ndarray
    points: np.ndarray
    keyframe: int
    matches: int
    timings: dict[str, float]

    def covariance(self, spread_66: np.ndarray, scale: float) -> np.ndarray:
        """Of the pose (6, 6) after it was carried to the frame of the answers.

        Where the calibration of the camera looks wrong, the pose with the calibration free is as
        good an answer: the difference, and the covariance of both, are held.

        Args:
            spread_66: of the correction, see `drift.DriftField`.
            scale: `scene.Calibration.refined_scale`.
        """
        covariance = scale * (self.covariance_66 + spread_66)
        if self.camera.looks_wrong:
            change = self.camera.pose_change
            covariance += scale * self.camera.covariance_66 + np.outer(change, change)
        return covariance


@dataclass(frozen=True)
class Evidence:
    """What speaks for an image being one of this place, also where it could not be refined.

    Attributes:
        likeness: to the most similar keyframe: cosine of the global descriptors.
        vote: the pose (4, 4) that most matches agree on, in the frame of the landmarks. It proves
            nothing without a refinement. None where there are too few matches.
    """

    likeness: float
    vote: np.ndarray | None = None


class Refiner:
    """Refines poses with one landmark map. For one caller at a time."""

    def __init__(
        self,
        landmarks: LandmarkMap,
        settings: RefineSettings = RefineSettings(),
        device: torch.device = torch.device('cpu'),
    ):
        self.landmarks, self.settings = landmarks, settings
        self._features = open_features(landmarks.features, device)

    def refine(
        self,
        image_HW3: np.ndarray,
        camera: Camera,
        guesses: list[np.ndarray],
        usable: np.ndarray | None = None,
    ) -> tuple[Refinement | None, Evidence]:
        """Computes the pose of an image from landmarks.

        Args:
            image_HW3: uint8 RGB.
            camera: that took it, with distortion.
            guesses: poses (4, 4) near which to look, in the frame of the landmarks.
            usable: mask (K,) of the keyframes that may be used; None means all.

        Returns:
            The refinement, None where too few landmarks agree, and the evidence.
        """
        clock = _Clock()
        features = self._features.extract(image_HW3)
        clock.lap('features')
        vlad = global_descriptor(features.descriptors, self.landmarks.vocabulary)
        alike = _allowed(self.landmarks.alike(vlad, len(self.landmarks)), usable)
        likeness = float(self.landmarks.vlad[alike[0]].astype(np.float32) @ vlad) if alike else 0.0
        query = _Query(features, camera)
        if len(query.features) < self.settings.min_inliers or not alike:
            return None, Evidence(likeness)
        near = [
            _allowed(self.landmarks.near(guess, camera, len(self.landmarks)), usable)
            for guess in guesses
        ]
        matches, found = _Matches.none(), None
        for times in (1, self.settings.second_try):
            candidates = [k for n in near for k in n[: times * self.settings.near]]
            candidates += alike[: times * self.settings.alike]
            matches = self._match(query, candidates, matches)
            clock.lap('match')
            found = self._solve(query, matches)
            clock.lap('pnp')
            if self._proves(found):
                break
        else:
            return None, Evidence(likeness, found[0] if found else None)
        around = _allowed(self.landmarks.near(found[0], camera, self.settings.around), usable)
        matches = self._match(query, around, matches)
        clock.lap('match')
        pose = found[0]
        for chosen in (matches.with_keyframes(around), matches):
            again = self._solve(query, chosen, found[0])
            if not self._proves(again):
                continue
            pose, problem = self._optimise(query, chosen, again[0])
            inlier = problem.error_N <= self.settings.max_error_px * query.pixel
            inlier &= self._faces(chosen, pose)
            uv = query.given_uv[chosen.query[inlier]]
            if self._suffices(query, uv):
                break
        else:
            return None, Evidence(likeness, pose)
        covariance, camera_fit = problem.covariance(), problem.camera_fit()
        clock.lap('pnp')
        refinement = Refinement(
            pose,
            covariance,
            camera_fit,
            uv,
            self.landmarks.points[chosen.landmark[inlier]],
            int(np.bincount(chosen.keyframe[inlier]).argmax()),
            len(inlier),
            clock.laps,
        )
        return refinement, Evidence(likeness, pose)

    def _suffices(self, query: _Query, inlier_uv_M2: np.ndarray) -> bool:
        """Whether so many inliers, in so many places of the image, prove the pose."""
        settings = self.settings
        least = max(settings.min_points, settings.min_point_ratio * len(query.features))
        distinct = np.unique(inlier_uv_M2, axis=0)
        return len(inlier_uv_M2) >= settings.min_inliers and len(distinct) >= least

    def _match(self, query: _Query, keyframes: list[int], before: _Matches) -> _Matches:
        """Adds the matches with these keyframes to those that were found before."""
        fresh = [k for k in dict.fromkeys(keyframes) if k not in before.tried]
        if not fresh:
            return before
        others = [self.landmarks.seen_from(k, query.camera) for k in fresh]
        size = (query.camera.width, query.camera.height)
        found = self._features.match(query.features, others, size, self.settings.ratio)
        starts = self.landmarks.starts[fresh]
        return _Matches(
            np.concatenate([before.query, *(row for row, _ in found)]),
            np.concatenate([before.landmark, *(s + c for s, (_, c) in zip(starts, found))]),
            np.concatenate([before.keyframe, np.repeat(fresh, [len(row) for row, _ in found])]),
            before.tried | set(fresh),
        )

    def _solve(self, query: _Query, matches: _Matches, start: np.ndarray | None = None):
        """LO-RANSAC: pose and mask of inliers, or None."""
        import poselib

        settings = self.settings
        if len(matches) < settings.min_inliers:
            return None
        initial = None if start is None else _poselib_pose(start)
        found, info = poselib.estimate_absolute_pose(
            query.features.uv[matches.query],
            self.landmarks.points[matches.landmark].astype(np.float64),
            query.camera_dict,
            {
                'max_reproj_error': settings.max_error_px * query.pixel,
                'min_iterations': 50 if start is None else 10,
                'max_iterations': 2000 if start is None else 100,
            },
            {},
            initial,
        )
        camera_T_world = np.eye(4)
        camera_T_world[:3] = found.Rt
        return invert_pose(camera_T_world), np.array(info['inliers'], dtype=bool)

    def _proves(self, found: tuple[np.ndarray, np.ndarray] | None) -> bool:
        """Whether so many matches agree on a pose that it cannot be chance."""
        if found is None:
            return False
        inlier, settings = found[1], self.settings
        return inlier.sum() >= max(settings.min_inliers, settings.min_inlier_ratio * len(inlier))

    def _faces(self, matches: _Matches, pose: np.ndarray) -> np.ndarray:
        """Which matches (M,) are seen from the side that their keyframe saw.

        Surfaces are opaque: from behind, as a mirrored image would have it, nobody sees them.
        """
        points = self.landmarks.points[matches.landmark]
        there = points - self.landmarks.poses[matches.keyframe, :3, 3]
        here = points - pose[:3, 3]
        return np.einsum('mi,mi->m', there, here) > 0

    def _optimise(self, query: _Query, matches: _Matches, pose: np.ndarray):
        """Robust optimisation: the pose, and the problem that it solves.

        Matches that are far off already are left out: where they are the most, as of an image that
        is half covered, even a robust loss would follow them.
        """
        import poselib

        settings = self.settings
        uv = query.features.uv[matches.query]
        points = self.landmarks.points[matches.landmark].astype(np.float64)
        scale = settings.loss_px * query.pixel
        problem = PnpProblem(uv, points, pose, query.camera, scale)
        for _ in range(2):
            near = problem.error_N < FAR * scale
            found, _ = poselib.refine_absolute_pose(
                uv[near],
                points[near],
                _poselib_pose(pose),
                query.camera_dict,
                {'loss_type': 'CAUCHY', 'loss_scale': scale},
            )
            camera_T_world = np.eye(4)
            camera_T_world[:3] = found.Rt
            pose = invert_pose(camera_T_world)
            problem = PnpProblem(uv, points, pose, query.camera, scale)
            # A precise map deserves a tighter loss: three times the typical error of its matches.
            scale = min(scale, max(3 * robust_sigma(problem.error_N, scale), 0.5))
        return pose, problem


class _Query:
    """Features of the query as its pinhole camera would see them, without those at the far rim.

    Attributes:
        features: in pixels of the pinhole.
        given_uv: their pixels (N, 2) in the image as it was given.
    """

    def __init__(self, features: Features, camera: Camera):
        self.camera = camera.undistorted()
        uv, usable = camera.undistort(features.uv)
        self.given_uv = features.uv[usable]
        self.features = Features(uv[usable], features.descriptors[usable])
        self.pixel = camera.fx / 500  # pixels of this camera in one pixel at f = 500
        self.camera_dict = {
            'model': 'PINHOLE',
            'width': camera.width,
            'height': camera.height,
            'params': [camera.fx, camera.fy, camera.cx, camera.cy],
        }


@dataclass(frozen=True)
class _Matches:
    query: np.ndarray  # (M,) index of the feature
    landmark: np.ndarray  # (M,) index of the landmark
    keyframe: np.ndarray  # (M,) that the landmark belongs to
    tried: set[int]

    def __len__(self) -> int:
        return len(self.query)

    def with_keyframes(self, keyframes: list[int]) -> _Matches:
        """Those with landmarks of these keyframes."""
        those = np.isin(self.keyframe, keyframes)
        return _Matches(self.query[those], self.landmark[those], self.keyframe[those], self.tried)

    @classmethod
    def none(cls) -> _Matches:
        return cls(*(np.zeros(0, dtype=np.int64) for _ in range(3)), set())


class _Clock:
    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _poselib_pose(world_T_camera: np.ndarray):
    import poselib

    camera_T_world = invert_pose(world_T_camera)
    pose = poselib.CameraPose()
    pose.q = quaternion_from_rotation(camera_T_world[:3, :3])
    pose.t = camera_T_world[:3, 3]
    return pose


def _allowed(keyframes: np.ndarray, usable: np.ndarray | None) -> list[int]:
    return [int(k) for k in keyframes if usable is None or usable[k]]
