"""A scene without some of its images knows nothing of them; and what images without depth see."""

from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.features import FeatureSettings
from pose_reloc.landmarks import LandmarkMap
from training.datasets import Sample
from training.seen_points import with_seen_points
from training.unseen import scene_without


def test_nothing_of_the_images_is_left(small_scene):
    scene, landmarks = small_scene, small_scene.landmarks  # keyframes 0 and 3, anchor 1
    less = scene_without(scene, np.array([True, False, False, False, False]))
    np.testing.assert_array_equal(less.train_world_T_camera, scene.train_world_T_camera[1:])
    np.testing.assert_array_equal(less.start_features, scene.start_features[1:])
    np.testing.assert_array_equal(less.train_features, scene.train_features[1:])
    assert less.train_frames.tolist() == [0, 2, 3]
    assert less.landmarks.frames.tolist() == [2]
    assert less.landmarks.anchor_frames.tolist() == [0]
    np.testing.assert_array_equal(less.landmarks.points, landmarks.points[2:])
    np.testing.assert_array_equal(less.landmarks.descriptors, landmarks.descriptors[2:])
    np.testing.assert_array_equal(less.landmarks.vlad, landmarks.vlad[1:])
    assert less.landmarks.starts.tolist() == [0, 1]


def test_without_its_last_anchor_a_scene_has_no_landmarks(small_scene):
    assert scene_without(small_scene, np.arange(5) == 1).landmarks is None


def test_an_image_sees_the_landmarks_before_it_and_no_others():
    camera = Camera(64, 48, 60.0, 60.0, 31.5, 23.5, (0.1, 0.0, 0.0, 0.0))
    ahead = np.array([[0.0, 0, 4], [0.5, 0.2, 5], [9, 0, 4]])  # the last is out of view
    behind = -ahead
    away = np.diag([-1.0, 1, -1, 1])  # looks along -z
    rng = np.random.default_rng(0)
    landmarks = LandmarkMap(
        FeatureSettings(),
        poses=np.array([np.eye(4), away]),
        frames=np.array([0, 1]),
        starts=np.array([0, 3, 6]),
        points=np.concatenate([ahead, behind]).astype(np.float32),
        descriptors=rng.integers(0, 255, (6, 128)).astype(np.uint8),
        vocabulary=np.ones((1, 128), np.float32),
        vlad=np.ones((2, 128), np.float16),
        anchor_frames=np.array([0]),
        anchor_poses=np.eye(4)[None],
    )
    samples = [Sample(Path('a'), camera, np.eye(4)), Sample(Path('b'), camera, away)]
    first, second = with_seen_points(samples, landmarks)
    np.testing.assert_allclose(first.load_points(), ahead[:2], atol=1e-6)
    np.testing.assert_allclose(second.load_points(), behind[:2], atol=1e-6)
