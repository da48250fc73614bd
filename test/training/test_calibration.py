"""Calibration of regressed poses, with networks whose errors and features are known."""

import numpy as np
import pytest
import torch

from pose_reloc.geometry import network_from_pose, perturb_pose, pose_matrix
from pose_reloc.network import PosePrediction
from training.calibration import calibrate_coarse

N = 400


class KnownNetwork:
    """Reads the frame's number from its image; its features turn away from the first axis."""

    def __init__(self, world_T_camera, angle):
        w_t_c, c_q_w = network_from_pose(world_T_camera)
        self.answers = torch.from_numpy(np.concatenate([w_t_c, c_q_w], axis=1))
        self.angle = torch.from_numpy(angle)

    def features(self, image_B3HW):
        # Back from ImageNet's normalisation: the red of one pixel counts ones, its green 100s.
        mean, std = torch.tensor([0.485, 0.456]), torch.tensor([0.229, 0.224])
        ones, hundreds = ((image_B3HW[:, :2, 0, 0] * std + mean) * 255).round().long().T
        self.frames = hundreds * 100 + ones
        angle = self.angle[self.frames]
        return 3 * torch.stack([angle.cos(), angle.sin()], dim=1)

    def pose(self, features_BF):
        answer = self.answers[self.frames]
        return PosePrediction(answer[:, :3], answer[:, 3:])


def frames():
    image = np.zeros((N, 2, 2, 3), dtype=np.uint8)
    image[..., 0] = (np.arange(N) % 100)[:, None, None]
    image[..., 1] = (np.arange(N) // 100)[:, None, None]
    truth = pose_matrix(np.eye(3), np.random.default_rng(0).normal(size=(N, 3)))
    held_out = np.arange(N) >= 40
    return image, truth, held_out


def test_known_errors_are_found():
    """All held-out frames are 60 deg away in features: cosine 1/2, twice the variance of d = 0."""
    image, truth, held_out = frames()
    residual = np.random.default_rng(1).normal(size=(N, 6)) * ([0.3] * 3 + [0.04] * 3)
    # The network answers x, the truth is exp(residual) x.
    estimate = perturb_pose(truth, residual)
    network = KnownNetwork(estimate, np.where(held_out, np.pi / 3, 0.0))
    found = calibrate_coarse(network, image, truth, held_out)
    assert found.calibration.usual_distance == pytest.approx(0.5, abs=1e-3)
    sigma = np.sqrt(np.diag(found.calibration.covariance(0.5)))
    np.testing.assert_allclose(sigma, [0.3] * 3 + [0.04] * 3, rtol=0.12)
    assert found.train_features.dtype == np.float16
    np.testing.assert_allclose(found.train_features, [[1, 0]] * 40, atol=1e-3)


def test_a_perfect_network_is_not_trusted_without_end():
    image, truth, held_out = frames()
    found = calibrate_coarse(KnownNetwork(truth, np.zeros(N)), image, truth, held_out)
    assert np.linalg.eigvalsh(found.calibration.covariance(0.0)).min() >= 0.99e-6


@pytest.mark.parametrize('everything', [False, True])
def test_held_out_and_training_frames_are_needed(everything):
    image, truth, _ = frames()
    with pytest.raises(ValueError, match='held-out frames and training frames'):
        calibrate_coarse(KnownNetwork(truth, np.zeros(N)), image, truth, np.full(N, everything))
