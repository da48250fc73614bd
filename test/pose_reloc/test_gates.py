"""The gates, one by one, and the refusal of what is not of the scene."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.gates import (
    GateSettings,
    estimate_reasons,
    image_reasons,
    mahalanobis,
    max_distance,
    pose_reasons,
    sharpness,
    unconfirmed_reasons,
    unrefined_reasons,
)
from pose_reloc.geometry import perturb_pose, pose_matrix
from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.scene import Calibration
from training.datasets import open_dataset
from training.mapping import MappingSettings, build_landmarks
from training.rehearsal import rehearse

SETTINGS = GateSettings()


def image_of(mean, spread):
    pattern = np.where(np.indices((60, 80)).sum(axis=0) % 2, mean + spread, mean - spread)
    return np.repeat(pattern[..., None], 3, axis=2).astype(np.uint8)


def test_dark_and_empty_images_are_named():
    assert image_reasons(image_of(4, 4), SETTINGS) == ['too_dark']
    assert image_reasons(image_of(200, 2), SETTINGS) == ['empty']
    assert image_reasons(image_of(200, 4), SETTINGS) == []
    assert image_reasons(image_of(200, 2), replace(SETTINGS, min_contrast=1.0)) == []


def test_sharpness_of_a_checkerboard_of_pixels_is_eight():
    # Every pixel differs from its four neighbours by 2 standard deviations.
    assert sharpness(image_of(100, 20)) == pytest.approx(8.0)


def test_sharpness_does_not_depend_on_the_contrast_and_falls_with_blur():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3)).astype(np.uint8), (0, 0), 1.0)
    assert sharpness(image // 2) == pytest.approx(sharpness(image), rel=0.05)
    values = [sharpness(cv2.GaussianBlur(image, (0, 0), s)) for s in (0.5, 1, 2, 4)]
    assert (np.diff(values) < 0).all()


def test_without_landmarks_found_an_image_must_be_sharp_and_familiar():
    sharp, flat = image_of(100, 20), np.full((60, 80, 3), 100, np.uint8)
    assert unrefined_reasons(sharp, 0.41, 0.4, SETTINGS) == []
    assert unrefined_reasons(sharp, 0.39, 0.4, SETTINGS) == ['unfamiliar']
    assert unrefined_reasons(flat, 0.41, 0.4, SETTINGS) == ['blurred']


def test_vague_estimates_and_contradicted_priors_are_named():
    pose, small = np.eye(4), np.diag([0.01] * 6)
    vague = np.diag([0.01, 101.0, 0.01, 0.01, 0.01, 0.01])
    assert estimate_reasons(pose, small, None, None, SETTINGS) == []
    assert estimate_reasons(pose, vague, None, None, SETTINGS) == ['too_vague']
    # sigma of the difference: sqrt(0.01 + 0.01) = 0.1414 m; the bound is 5 of them.
    for metres, reasons in ((0.70, []), (0.72, ['contradicts_prior'])):
        prior = perturb_pose(pose, [metres, 0, 0, 0, 0, 0])
        assert estimate_reasons(pose, small, prior, small, SETTINGS) == reasons


def test_mahalanobis_of_two_estimates_of_one_pose_is_chi_square():
    rng = np.random.default_rng(3)
    A = np.diag([0.04, 0.01, 0.02, 0.001, 0.002, 0.003])
    B = 2 * A
    count = 2000
    truth = perturb_pose(np.eye(4), [1, 2, 3, 0.5, -0.2, 1.0])
    a, b = (
        perturb_pose(np.tile(truth, (count, 1, 1)), rng.multivariate_normal(np.zeros(6), C, count))
        for C in (A, B)
    )
    squared = [mahalanobis(x, A, y, B) ** 2 for x, y in zip(a, b, strict=True)]
    assert np.mean(squared) == pytest.approx(6, abs=0.3)  # standard error 0.08


@pytest.mark.parametrize(('degrees', 'reasons'), [(0, []), (29, []), (31, ['unconfirmed'])])
def test_landmarks_and_network_confirm_each_other(degrees, reasons):
    vote = perturb_pose(np.eye(4), [5, 0, 0, 0, np.deg2rad(degrees), 0])
    assert unconfirmed_reasons(vote, np.eye(4), SETTINGS) == reasons
    assert unconfirmed_reasons(None, np.eye(4), SETTINGS) == ['unconfirmed']


def test_a_pose_by_chance_is_not_confirmed():
    """Random directions agree within 30 deg less than once in 100 times."""
    random = pose_matrix(Rotation.random(4000, random_state=0).as_matrix(), np.zeros(3))
    passed = [unconfirmed_reasons(pose, np.eye(4), SETTINGS) == [] for pose in random]
    assert 0 < np.mean(passed) < 0.012


def test_unmapped_space_is_named():
    train, vague = np.zeros((3, 3)), np.diag(np.r_[np.full(3, 4 / 3), np.zeros(3)])
    for metres, covariance, reasons in (
        (2.9, np.zeros((6, 6)), []),
        (3.1, np.zeros((6, 6)), ['outside_map']),
        (4.9, vague, []),
        (5.1, vague, ['outside_map']),
    ):
        pose = perturb_pose(np.eye(4), [0, 0, metres, 0, 0, 0])
        assert pose_reasons(pose, covariance, train, 3.0) == reasons


def test_mapped_space_reaches_as_far_as_landmarks_were_seen_from():
    """In a courtyard of 40 m an image may be taken 6 m beside all others, in a room 3 m."""
    assert max_distance(0.0, SETTINGS) == max_distance(1.9, SETTINGS) == 3.0
    assert max_distance(37.0, SETTINGS) == 37.0
    assert max_distance(37.0, replace(SETTINGS, max_distance_m=1.0)) == 1.0


@pytest.fixture(scope='module')
def landmarks(room):
    return build_landmarks(open_dataset('7scenes', room).train, MappingSettings(frames=24))


@pytest.fixture(scope='module')
def calibration(room, landmarks):
    samples = open_dataset('7scenes', room).train
    return rehearse(landmarks, samples).calibration()


@pytest.fixture
def relocalizer(room, landmarks, calibration, tiny_scene):
    """A calibrated map of the room behind a network whose answers all lie inside of it."""
    samples = open_dataset('7scenes', room).train
    poses = np.array([sample.world_T_camera for sample in samples])
    tiny_scene.weights['head.5.bias'][:3] = poses[0, :3, 3]
    camera = samples[0].camera
    header = replace(
        tiny_scene.header,
        camera=camera,
        network_camera=camera.scaled(320, 240),
        calibration=calibration,
    )
    scene = replace(
        tiny_scene,
        header=header,
        train_world_T_camera=poses,
        start_features=np.tile(tiny_scene.start_features[:1], (len(poses), 1)),
        landmarks=landmarks,
    )
    return Relocalizer(scene, 'cpu')


def test_images_of_the_room_are_answered(relocalizer, room):
    answers = [
        relocalizer.localize(sample.load_image(), sample.camera)
        for sample in open_dataset('7scenes', room).test[::2]
    ]
    refined = [answer for answer in answers if answer.status is Status.REFINED]
    assert len(refined) >= len(answers) - 1  # this map has a view every 15 deg, and one gap
    assert all(answer.reasons == () for answer in refined)


def foreign_images(room):
    """Name to an image that does not show the room as it was mapped."""
    rng = np.random.default_rng(5)
    sample = open_dataset('7scenes', room).test[3]
    image = sample.load_image()
    coarse = cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), 4) * 500 + 128
    images = {
        'black': np.zeros_like(image),
        'white': np.full_like(image, 255),
        'noise': rng.integers(0, 256, image.shape, dtype=np.uint8),
        'clouds': coarse.clip(0, 255).astype(np.uint8),
        'blurred': cv2.GaussianBlur(image, (0, 0), 12),
    }
    return images


def test_images_of_something_else_are_lost(relocalizer, room):
    reasons = {}
    for name, image in foreign_images(room).items():
        answer = relocalizer.localize(image)
        assert answer.status is Status.LOST, (name, answer.likeness)
        assert answer.inliers == 0 and answer.matches is None
        reasons[name] = answer.reasons[0]
    assert reasons['black'] == 'too_dark'
    assert reasons['white'] == 'empty'
    assert reasons['blurred'] == 'blurred'
    assert reasons['noise'] == reasons['clouds'] == 'unfamiliar'


def test_gates_may_be_set_between_two_images(relocalizer, room):
    image = open_dataset('7scenes', room).test[0].load_image()
    assert relocalizer.localize(image).status is Status.REFINED
    for strict in (
        replace(SETTINGS, min_inliers=10**6), replace(SETTINGS, max_distance_m=0.01),
        replace(SETTINGS, max_sigma_m=1e-9), replace(SETTINGS, min_contrast=200.0),
    ):  # fmt: skip
        relocalizer.gate_settings = strict
        assert relocalizer.localize(image).status is not Status.REFINED, strict
    relocalizer.gate_settings = SETTINGS
    assert relocalizer.localize(image).status is Status.REFINED


def test_the_room_in_a_mirror_is_never_refined(relocalizer, room):
    # Familiar in all its parts, but no pose explains how they are arranged.
    for sample in open_dataset('7scenes', room).test[::4]:
        answer = relocalizer.localize(np.ascontiguousarray(sample.load_image()[:, ::-1]))
        assert answer.status is not Status.REFINED


def test_a_coarse_answer_says_why_it_is_not_refined(relocalizer, room):
    gentle = replace(relocalizer.scene.header, calibration=Calibration(least_likeness=0.0))
    scene = replace(relocalizer.scene, header=gentle)
    noise = np.random.default_rng(5).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    refused = Relocalizer(scene, 'cpu').localize(noise)
    assert refused.status is Status.LOST and refused.reasons == ('unconfirmed',)
    gullible = GateSettings(max_disagreement_rad=np.pi)
    answer = Relocalizer(scene, 'cpu', gate_settings=gullible).localize(noise)
    assert answer.status is Status.COARSE and answer.reasons == ('too_few_inliers',)
    # What the landmarks do not confirm is worth less than what nobody looked at.
    np.testing.assert_allclose(answer.covariance_66, 2 * answer.regressed_covariance_66)
