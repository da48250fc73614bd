"""Relocalizer and its gates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pose_reloc.backends import choose_device
from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, SettingsError
from pose_reloc.gates import OPEN, GateSettings, image_reasons, pose_reasons
from pose_reloc.geometry import pose_from_network, pose_residual
from pose_reloc.preprocess import IMAGENET_MEAN, IMAGENET_STD, to_network_image
from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.uncertainty import CoarseCalibration


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)


def test_answers_what_the_network_says(tiny_scene, image):
    answer = Relocalizer(tiny_scene, 'cpu').localize(image)
    assert answer.status is Status.COARSE and answer.reasons == ()
    camera = tiny_scene.header.camera
    small = to_network_image(image, camera, tiny_scene.header.network_camera)
    # The same by hand: CHW in [0, 1], torchvision's normalisation.
    x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    network = tiny_scene.build_network()
    with torch.no_grad():
        w_t_c, c_q_w = (t.numpy()[0] for t in network(x))
        feature = network.features(x).double().numpy()[0]
    assert np.allclose(answer.world_T_camera, pose_from_network(w_t_c, c_q_w), atol=1e-4)
    own = feature - tiny_scene.feature_mean
    cosines = tiny_scene.train_features @ own / np.linalg.norm(own)
    # The turns are small: their rotation vectors are almost twice the sine of half the angle.
    similar = tiny_scene.train_world_T_camera[tiny_scene.train_frames]
    offset = pose_residual(similar, answer.world_T_camera)
    angle = np.linalg.norm(offset[:, 3:], axis=1, keepdims=True)
    offset[:, 3:] *= 2 * np.sin(angle / 2) / angle
    expected = tiny_scene.header.coarse.covariance(1 - cosines.max(), offset)
    np.testing.assert_allclose(answer.covariance_66, expected, rtol=1e-3, atol=1e-7)
    assert np.array_equal(answer.regressed_covariance_66, answer.covariance_66)
    assert answer.timings['total'] >= answer.timings['infer'] > 0


def test_same_answer_from_file(tiny_scene, image, tmp_path):
    tiny_scene.save(tmp_path / 'tiny.scene')
    loaded = Relocalizer.load(tmp_path / 'tiny.scene', 'cpu').localize(image)
    direct = Relocalizer(tiny_scene, 'cpu').localize(image)
    assert np.array_equal(loaded.world_T_camera, direct.world_T_camera)


@pytest.mark.parametrize(('level', 'reason'), [(0, 'too_dark'), (200, 'empty')])
def test_an_image_without_content_is_lost(tiny_scene, level, reason):
    blank = np.full((120, 160, 3), level, dtype=np.uint8)
    answer = Relocalizer(tiny_scene, 'cpu').localize(blank)
    assert answer.status is Status.LOST and answer.reasons == (reason,)


def test_a_pose_far_from_every_training_image_is_lost(tiny_scene, image):
    tiny_scene.weights['head.5.bias'][:3] = 100.0
    sure = CoarseCalibration(0.1, 0.05, 1.0, 100.0, 1.0)
    scene = replace(tiny_scene, header=replace(tiny_scene.header, coarse=sure))
    answer = Relocalizer(scene, 'cpu').localize(image)
    assert answer.status is Status.LOST and answer.reasons == ('outside_map',)


def test_open_gates_answer_every_image(tiny_scene):
    """Of a campus, of whose network nothing is known, and black."""
    tiny_scene.weights['head.5.bias'][:3] = 1000.0
    campus = CoarseCalibration(300.0, 1.0, 2.0, 300.0, 1.0)
    scene = replace(tiny_scene, header=replace(tiny_scene.header, coarse=campus))
    black = np.zeros((120, 160, 3), dtype=np.uint8)
    assert Relocalizer(scene, 'cpu').localize(black).status is Status.LOST
    assert Relocalizer(scene, 'cpu', gate_settings=OPEN).localize(black).status is Status.COARSE


def test_gates_pass_what_is_good(image):
    exact, centres = np.zeros((6, 6)), np.zeros((2, 3))
    assert image_reasons(image, GateSettings()) == []
    assert pose_reasons(np.eye(4), exact, centres, 3.0) == []
    assert pose_reasons(np.full((4, 4), np.nan), exact, centres, 3.0) == ['not_finite']


def test_image_of_another_size_than_its_camera_is_refused(tiny_scene, image):
    with pytest.raises(CameraError, match='160x120'):
        Relocalizer(tiny_scene, 'cpu').localize(image, Camera(320, 240, 1, 1, 1, 1))


def test_unknown_device_and_precision_are_settings_errors(tiny_scene):
    with pytest.raises(SettingsError, match='auto'):
        choose_device('tpu9')
    with pytest.raises(SettingsError, match='precision'):
        Relocalizer(tiny_scene, 'cpu', 'float7')
