"""LandmarkMap: keyframes with local features and their 3D points, and how to find keyframes.

Two independent cues name the keyframes a query is compared with: a pose (the regressed one, or a
prior), through the overlap of the views, and a global descriptor of the query's own features (VLAD,
Jegou et al. 2010, with intra-normalisation, Arandjelovic & Zisserman 2013).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from pose_reloc.camera import Camera
from pose_reloc.drift import DriftField
from pose_reloc.errors import SceneError, SettingsError
from pose_reloc.features import (
    DESCRIPTOR_TYPES,
    Features,
    FeatureSettings,
    unit_descriptors,
)
from pose_reloc.geometry import is_rigid

_SAMPLES = 32  # landmarks of a keyframe that stand for its view when views are compared
_LEAST_OVERLAP = 0.01  # see `view_overlap`; keyframes below are of no use
# So many times farther away than from their keyframe, landmarks overlap less than that.
_FARTHEST = 2 ** np.sqrt(-np.log(_LEAST_OVERLAP))


@dataclass(frozen=True)
class LandmarkMap:
    """K keyframes with P landmarks in all, strongest first within a keyframe.

    Attributes:
        features: settings of the features; not a tensor.
        poses: keyframe poses world_T_camera (K, 4, 4) in the frame of the landmarks.
        frames: which training image each keyframe is (K,), an index into the scene's poses.
        starts: first landmark of each keyframe, and P at the end (K + 1,).
        points: landmarks (P, 3) float32 in their own world, metres.
        descriptors: bytes (P, 128), see `features.quantised`.
        vocabulary: visual words (V, 128) float32, unit length.
        vlad: global descriptors (K, V * 128) float16, unit length.
        anchor_frames, anchor_poses: training images (M,) and their adjusted poses (M, 4, 4), see
            `drift.DriftField`.
    """

    features: FeatureSettings
    poses: np.ndarray
    frames: np.ndarray
    starts: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray
    vocabulary: np.ndarray
    vlad: np.ndarray
    anchor_frames: np.ndarray
    anchor_poses: np.ndarray

    def __post_init__(self):
        K, P, V = len(self.poses), len(self.points), len(self.vocabulary)
        M = len(self.anchor_poses)
        expected = {
            'poses': ((K, 4, 4), np.floating),
            'frames': ((K,), np.signedinteger),
            'starts': ((K + 1,), np.signedinteger),
            'points': ((P, 3), np.floating),
            'descriptors': ((P, 128), DESCRIPTOR_TYPES[self.features.kind]),
            'vocabulary': ((V, 128), np.float32),
            'vlad': ((K, V * 128), np.floating),
            'anchor_frames': ((M,), np.signedinteger),
            'anchor_poses': ((M, 4, 4), np.floating),
        }
        for name, (shape, kind) in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise SceneError(f'landmarks.{name} has shape {array.shape}, expected {shape}')
            if not np.issubdtype(array.dtype, kind):
                raise SceneError(f'landmarks.{name} holds {array.dtype}, not {kind.__name__}')
            if array.dtype.kind == 'f' and not np.isfinite(array).all():
                raise SceneError(f'landmarks.{name} holds NaN or infinity')
        for name in ('poses', 'anchor_poses'):
            if not is_rigid(getattr(self, name)):
                raise SceneError(f'landmarks.{name} are no rigid poses')
        starts = self.starts
        if V == 0 or M == 0:
            raise SceneError('landmarks.vocabulary or landmarks.anchor_poses is empty')
        if K == 0 or starts[0] != 0 or starts[-1] != P or (np.diff(starts) < 1).any():
            raise SceneError(f'landmarks.starts does not divide {P} landmarks among {K} keyframes')
        sampled = [
            np.linspace(a, b - 1, _SAMPLES).astype(int)
            for a, b in zip(starts[:-1], starts[1:], strict=True)
        ]
        object.__setattr__(self, '_vlad_KF', torch.from_numpy(self.vlad.astype(np.float32)))
        # Landmarks are sorted by strength, so that evenly spaced ones are a fair sample.
        sampled_KS3 = self.points[np.array(sampled)].astype(np.float64)
        object.__setattr__(self, '_sampled_KS3', sampled_KS3)
        object.__setattr__(self, '_reach', _Reach.of(sampled_KS3, self.poses))

    def __len__(self) -> int:
        return len(self.poses)

    def drift(self, train_world_T_camera: np.ndarray) -> DriftField:
        """The field from the landmarks' frame to that of the training poses (N, 4, 4).

        Raises:
            SceneError: a keyframe or an anchor is no training image.
        """
        for name in ('frames', 'anchor_frames'):
            index = getattr(self, name)
            if index.min() < 0 or index.max() >= len(train_world_T_camera):
                raise SceneError(f'landmarks.{name} names images that the scene does not have')
        return DriftField(self.anchor_poses, train_world_T_camera[self.anchor_frames])

    def seen_from(self, keyframe: int, camera: Camera) -> Features:
        """The landmarks of a keyframe as a pinhole camera in its place would see them."""
        part = slice(*self.starts[keyframe : keyframe + 2])
        pose = self.poses[keyframe]
        local = (self.points[part] - pose[:3, 3]) @ pose[:3, :3]
        return Features(camera.project(local), self.descriptors[part])

    def viewing_distance(self) -> float:
        """From how far keyframes see their landmarks (median), metres."""
        offset_KS3 = self._sampled_KS3 - self.poses[:, None, :3, 3]
        return float(np.median(np.linalg.norm(offset_KS3, axis=2)))

    def near(self, world_T_camera: np.ndarray, camera: Camera, count: int) -> np.ndarray:
        """Keyframes (at most `count`) that see what this view sees, best first."""
        some = self._reach.candidates(world_T_camera, camera)
        score = view_overlap(self._sampled_KS3[some], self.poses[some], world_T_camera, camera)
        best = np.argsort(-score, kind='stable')[:count]
        return some[best[score[best] > _LEAST_OVERLAP]]

    def alike(self, vlad_F: np.ndarray, count: int) -> np.ndarray:
        """Keyframes whose global descriptor is most alike, best first."""
        similarity = self._vlad_KF @ torch.from_numpy(vlad_F)
        return np.argsort(-similarity.numpy(), kind='stable')[:count]

    def reachable(self, world_T_camera: np.ndarray, covariance_66: np.ndarray) -> np.ndarray:
        """Mask (K,) of the keyframes that can show what a camera at an uncertain pose sees.

        Such a keyframe is no farther from the camera (3 sigma) than it is from its landmarks. Where
        there is none the pose excludes nothing: something is wrong with it, which a gate will say.
        """
        own = np.linalg.norm(self._sampled_KS3 - self.poses[:, None, :3, 3], axis=2).max(axis=1)
        away = np.linalg.norm(self.poses[:, :3, 3] - world_T_camera[:3, 3], axis=1)
        sigma = np.sqrt(np.linalg.eigvalsh(covariance_66[:3, :3])[-1])
        mask = away <= own + 3 * sigma
        return mask if mask.any() else np.ones(len(self), dtype=bool)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The arrays as they are stored in a scene file."""
        names = [f.name for f in fields(self) if f.name != 'features']
        return {f'landmarks.{name}': getattr(self, name) for name in names}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray], features: dict) -> LandmarkMap:
        """From the arrays, by field name, and the settings of the features.

        Raises:
            SceneError: a tensor is missing, unknown, of the wrong shape or type.
        """
        try:
            return cls(FeatureSettings(**features), **tensors)
        except (TypeError, SettingsError) as error:
            raise SceneError(f'the landmark map is malformed: {error}') from error


@dataclass(frozen=True)
class _Reach:
    """Balls around the landmarks of each keyframe: in a large scene most are out of sight.

    Attributes:
        centre_K3, radius_K: of the balls, metres.
        limit_K: from a camera farther away from the centre, the overlap is below _LEAST_OVERLAP.
    """

    centre_K3: np.ndarray
    radius_K: np.ndarray
    limit_K: np.ndarray

    @classmethod
    def of(cls, points_KS3: np.ndarray, poses_K44: np.ndarray) -> _Reach:
        centre_K3 = points_KS3.mean(axis=1)
        radius_K = np.linalg.norm(points_KS3 - centre_K3[:, None], axis=2).max(axis=1)
        own_K = np.linalg.norm(points_KS3 - poses_K44[:, None, :3, 3], axis=2).max(axis=1)
        return cls(centre_K3, radius_K, radius_K + _FARTHEST * own_K)

    def candidates(self, world_T_camera: np.ndarray, camera: Camera) -> np.ndarray:
        """Keyframes whose ball is near enough and touches the cone around the image, ascending."""
        offset_K3 = self.centre_K3 - world_T_camera[:3, 3]
        near = np.flatnonzero((offset_K3**2).sum(axis=1) < self.limit_K**2)
        distance = np.maximum(np.linalg.norm(offset_K3[near], axis=1), 1e-9)
        angle = np.arccos(np.clip(offset_K3[near] @ world_T_camera[:3, 2] / distance, -1, 1))
        ball = np.arcsin(np.minimum(self.radius_K[near] / distance, 1))
        inside = distance < self.radius_K[near]
        return near[inside | (angle - ball < _half_angle(camera))]


def _half_angle(camera: Camera) -> float:
    """Of the cone around the optical axis that holds the image, radians."""
    right, bottom = camera.width - 1, camera.height - 1
    corners = np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=float)
    rays = camera.undistorted().unproject(corners, np.ones(4))
    return float(np.arctan(np.linalg.norm(rays[:, :2], axis=1)).max())


def view_overlap(points_KS3, poses_K44, world_T_camera, camera: Camera) -> np.ndarray:
    """How well views show the same things (K,), in [0, 1], without a unit of length.

    Of the points that stand for each view, those that the camera at `world_T_camera` sees are
    counted, less when it sees them from another direction (20 deg) or another distance (factor 2).
    """
    K, S, _ = points_KS3.shape
    offset_KS3 = points_KS3 - world_T_camera[:3, 3]
    uv = camera.undistorted().project((offset_KS3 @ world_T_camera[:3, :3]).reshape(-1, 3))
    with np.errstate(invalid='ignore'):
        seen = ((uv >= 0) & (uv <= (camera.width - 1, camera.height - 1))).all(1).reshape(K, S)
    own_KS3 = points_KS3 - poses_K44[:, None, :3, 3]
    there = np.maximum(np.linalg.norm(offset_KS3, axis=2), 1e-6)
    own = np.maximum(np.linalg.norm(own_KS3, axis=2), 1e-6)
    cosine = (offset_KS3 * own_KS3).sum(2) / (there * own)
    angle = np.arccos(np.clip(cosine, -1, 1)) / np.deg2rad(20)
    return (seen * np.exp(-(angle**2) - np.log2(there / own) ** 2)).mean(axis=1)


def global_descriptor(descriptors_N128: np.ndarray, vocabulary_V128: np.ndarray) -> np.ndarray:
    """VLAD (V * 128,) float32 of unit length; zeros without features."""
    V = len(vocabulary_V128)
    if len(descriptors_N128) == 0:
        return np.zeros(V * 128, dtype=np.float32)
    # torch, because the threads of numpy's BLAS wait for each other on a busy processor.
    d_N128 = unit_descriptors(descriptors_N128)
    words_V128 = torch.from_numpy(vocabulary_V128)
    # Descriptors and words have unit length: the nearest word has the largest product.
    # numpy's argmax, which is eight times as fast here.
    word_N = torch.from_numpy((d_N128 @ words_V128.T).numpy().argmax(axis=1))
    sums = torch.zeros_like(words_V128).index_add_(0, word_N, d_N128 - words_V128[word_N])
    sums = torch.nn.functional.normalize(sums, dim=1, eps=1e-9).ravel()
    return torch.nn.functional.normalize(sums, dim=0, eps=1e-9).numpy()
