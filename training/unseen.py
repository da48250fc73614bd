"""A scene as it would be if it had never seen some of its training images.

The network is not trained on held-out frames, but keyframes, anchors and the baseline come from all
frames. Without these, held-out frames are as new to the scene as those of another visit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pose_reloc.landmarks import LandmarkMap
from pose_reloc.scene import SceneModel


def scene_without(scene: SceneModel, left_out: np.ndarray) -> SceneModel:
    """The scene without the training images of a mask (N,), which its network must not know.

    It has no landmarks where none are left. What is measured with it is what it is calibrated on:
    the header stays.
    """
    number = np.cumsum(~left_out) - 1  # of each training image that stays
    trained = ~left_out[scene.train_frames]
    return replace(
        scene,
        train_world_T_camera=scene.train_world_T_camera[~left_out],
        start_features=scene.start_features[~left_out],
        train_features=scene.train_features[trained],
        train_frames=number[scene.train_frames[trained]].astype(np.int32),
        landmarks=_landmarks_without(scene.landmarks, left_out, number),
    )


def _landmarks_without(
    landmarks: LandmarkMap | None, left_out: np.ndarray, number: np.ndarray
) -> LandmarkMap | None:
    if landmarks is None:
        return None
    kept = ~left_out[landmarks.frames]
    anchors = ~left_out[landmarks.anchor_frames]
    if not kept.any() or not anchors.any():
        return None
    counts = np.diff(landmarks.starts)
    points = np.repeat(kept, counts)
    return replace(
        landmarks,
        poses=landmarks.poses[kept],
        frames=number[landmarks.frames[kept]],
        starts=np.concatenate([[0], np.cumsum(counts[kept])]),
        points=landmarks.points[points],
        descriptors=landmarks.descriptors[points],
        vlad=landmarks.vlad[kept],
        anchor_frames=number[landmarks.anchor_frames[anchors]],
        anchor_poses=landmarks.anchor_poses[anchors],
    )
