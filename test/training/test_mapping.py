"""Landmark maps of the built-in room: poses agree, landmarks lie on surfaces, answers in cm."""

from dataclasses import replace

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.geometry import invert_pose, perturb_pose, pose_error
from pose_reloc.network import NetworkSettings
from pose_reloc.relocalizer import PosePrior, Relocalizer, Status
from pose_reloc.scene import SceneModel
from training.build import build_scene, with_landmarks
from training.datasets import open_dataset
from training.mapping import MappingSettings, build_landmarks
from training.pose_adjustment import Observations, adjust_poses
from training.settings import TrainSettings

TINY = TrainSettings(
    network=NetworkSettings('resnet18', hidden=16),
    backbone_weights='none',
    short_side=48,
    points=32,
    epochs=1,
    batch=8,
    normalize_translation=True,
    device='cpu',
    precision='float32',
)


@pytest.fixture(scope='module')
def dataset(room):
    return open_dataset('7scenes', room)


@pytest.fixture(scope='module')
def scene(dataset):
    built = build_scene(dataset, TINY, 'room', '')
    return with_landmarks(built.scene, dataset.train, MappingSettings())


def test_landmarks_lie_on_the_surfaces_that_other_views_see(dataset, scene):
    landmarks = scene.landmarks
    assert 2 <= len(landmarks) <= len(dataset.train)
    start, end = landmarks.starts[0], landmarks.starts[1]
    other = dataset.train[landmarks.frames[0] + 1]
    points = landmarks.points[start:end].astype(float)
    c_T_w = invert_pose(other.world_T_camera)
    local = points @ c_T_w[:3, :3].T + c_T_w[:3, 3]
    uv = np.rint(np.nan_to_num(other.camera.project(local), nan=-1)).astype(int)
    inside = ((uv >= 0) & (uv < (other.camera.width, other.camera.height))).all(1)
    depth = other.load_depth()[uv[inside, 1], uv[inside, 0]]
    assert np.median(np.abs(depth - local[inside, 2])[depth > 0]) < 0.01


def test_the_test_walk_is_answered_in_centimetres(dataset, scene, tmp_path):
    path = tmp_path / 'room.scene'
    scene.save(path)
    relocalizer = Relocalizer(SceneModel.load(path), 'cpu')
    answers = [relocalizer.localize(s.load_image(), s.camera) for s in dataset.test]
    errors = [
        pose_error(s.world_T_camera, a.world_T_camera)
        for s, a in zip(dataset.test, answers, strict=True)
        if a.status is Status.REFINED
    ]
    assert len(errors) >= 0.8 * len(answers)
    metres, radians = np.median(errors, axis=0)
    assert metres < 0.01 and np.degrees(radians) < 0.2
    for answer in answers:
        assert np.linalg.eigvalsh(answer.covariance_66)[0] > 0
        if answer.status is Status.REFINED:
            assert answer.inliers == len(answer.matches.uv) >= 25


def test_a_prior_that_contradicts_the_image_refuses_it(dataset, scene):
    relocalizer = Relocalizer(scene, 'cpu')
    sample = dataset.train[5]
    image, tight = sample.load_image(), np.eye(6) * 1e-4
    right = relocalizer.localize(image, sample.camera, PosePrior(sample.world_T_camera, tight))
    assert right.status is Status.REFINED
    elsewhere = sample.world_T_camera.copy()
    elsewhere[:3, 3] += 1.0
    wrong = relocalizer.localize(image, sample.camera, PosePrior(elsewhere, tight))
    assert wrong.status is Status.LOST and 'contradicts_prior' in wrong.reasons


def test_without_depth_landmarks_are_triangulated(dataset):
    samples = [replace(s, depth_loader=None, points_loader=None) for s in dataset.train]
    landmarks = build_landmarks(samples, MappingSettings())
    # Rendered poses are exact: the points of a view must agree with its depth image.
    frame = landmarks.frames[0]
    c_T_w = invert_pose(dataset.train[frame].world_T_camera)
    points = landmarks.points[: landmarks.starts[1]].astype(float)
    local = points @ c_T_w[:3, :3].T + c_T_w[:3, 3]
    uv = np.rint(dataset.train[frame].camera.project(local)).astype(int)
    depth = dataset.train[frame].load_depth()[uv[:, 1], uv[:, 0]]
    assert np.median(np.abs(depth / local[:, 2] - 1)) < 0.02


def test_drifting_poses_come_to_agree():
    rng = np.random.default_rng(0)
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
    points = rng.uniform((-2, -1.5, 3), (2, 1.5, 5), (300, 3))
    poses = perturb_pose(np.tile(np.eye(4), (6, 1, 1)), rng.normal(size=(6, 6)) * 0.1)
    drift = rng.normal(size=(6, 6)) * np.r_[np.full(3, 0.03), np.full(3, 0.02)]
    given = perturb_pose(poses, drift)
    local = [(points - T[:3, 3]) @ T[:3, :3] for T in poses]
    observations = []
    for n in range(6):
        others = [k for k in range(6) if k != n]
        uv = np.concatenate([camera.project(local[n])] * 5)
        observations.append(
            Observations(uv, np.repeat(others, 300), np.concatenate([local[k] for k in others]))
        )
    adjusted = adjust_poses(given, observations, camera)

    def disagreement(T):
        pairs = [(i, j) for i in range(6) for j in range(i)]
        errors = [
            pose_error(invert_pose(poses[i]) @ poses[j], invert_pose(T[i]) @ T[j]) for i, j in pairs
        ]
        return np.mean(errors, axis=0)

    assert (disagreement(adjusted) < 0.05 * disagreement(given)).all()
    # The prior keeps the frame: the mean of all poses hardly moves.
    assert np.linalg.norm((adjusted - given)[:, :3, 3].mean(0)) < 0.02
