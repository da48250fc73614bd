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
from pose_reloc.features import DESCRIPTOR_SCALE, FeatureSettings

_SAMPLES = 32  # landmarks of a keyframe that stand for its view when views are compared


@dataclass(frozen=True)
class LandmarkMap:
    """K keyframes with P landmarks in all, strongest first within a keyframe.

    Attributes:
        features: settings of the features; not a tensor.
        poses: keyframe poses world_T_camera (K, 4, 4) in the frame of the landmarks.
        frames: which training image each keyframe is (K,), an index into the scene's poses.
        starts: first landmark of each keyframe, and P at the end (K + 1,).
        points: landmarks (P, 3) float32 in their own world, metres.
        descriptors: uint8 (P, 128), see `features.Features`.
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
            'descriptors': ((P, 128), np.uint8),
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
        object.__setattr__(self, '_sampled_KS3', self.points[np.array(sampled)].astype(np.float64))

    def __len__(self) -> int:
        return len(self.poses)

    def drift(self, train_world_T_camera: np.ndarray) -> DriftField:
        """The field from the landmarks' frame to that of the training poses (N, 4, 4).

        Raises:
            SceneError: a keyframe or an anchor is no training image, or a pose is none.
        """
        for name in ('frames', 'anchor_frames'):
            index = getattr(self, name)
            if index.min() < 0 or index.max() >= len(train_world_T_camera):
                raise SceneError(f'landmarks.{name} names images that the scene does not have')
        try:
            return DriftField(self.anchor_poses, train_world_T_camera[self.anchor_frames])
        except ValueError as error:  # of scipy's Rotation
            raise SceneError(f'landmarks.anchor_poses are not rigid: {error}') from error

    def near(self, world_T_camera: np.ndarray, camera: Camera, count: int) -> np.ndarray:
        """Keyframes (at most `count`) that see what this view sees, best first."""
        score = view_overlap(self._sampled_KS3, self.poses, world_T_camera, camera)
        best = np.argsort(-score, kind='stable')[:count]
        return best[score[best] > 0]

    def alike(self, vlad_F: np.ndarray, count: int) -> np.ndarray:
        """Keyframes whose global descriptor is most alike, best first."""
        similarity = self._vlad_KF @ torch.from_numpy(vlad_F)
        return np.argsort(-similarity.numpy(), kind='stable')[:count]

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
    d_N128 = torch.from_numpy(descriptors_N128).float() / DESCRIPTOR_SCALE
    words_V128 = torch.from_numpy(vocabulary_V128)
    # Descriptors and words have unit length: the nearest word has the largest product.
    word_N = (d_N128 @ words_V128.T).argmax(dim=1)
    member_VN = (word_N == torch.arange(V)[:, None]).float()
    sums = member_VN @ d_N128 - member_VN.sum(dim=1, keepdim=True) * words_V128
    sums = torch.nn.functional.normalize(sums, dim=1, eps=1e-9).ravel()
    return torch.nn.functional.normalize(sums, dim=0, eps=1e-9).numpy()
