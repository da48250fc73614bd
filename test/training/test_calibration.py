"""Calibration of regressed poses, with networks whose errors and features are known."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from pose_reloc.geometry import network_from_pose, perturb_pose, pose_matrix
from pose_reloc.network import PosePrediction
from pose_reloc.uncertainty import CoarseCalibration
from training.calibration import calibrate_coarse, conformal_quantile, fit_coarse, pose_spread

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


LIMITS = (1.5, 0.6)
TRUE_CALIBRATION = CoarseCalibration(0.2, 0.05, 0.03, *LIMITS)


def coarse_errors(N, seed, dof=None):
    """Errors that grow with the distance as stated: Gaussian, or Student's t of equal variance."""
    rng = np.random.default_rng(seed)
    distance = rng.lognormal(np.log(0.03), 0.8, size=N)
    unit = rng.normal(size=(N, 6))
    if dof:
        unit *= np.sqrt((dof - 2) / rng.chisquare(dof, size=(N, 1)))
    sigma = np.sqrt([np.diag(TRUE_CALIBRATION.covariance(d)) for d in distance])
    return unit * sigma, distance


def coarse_nees(calibration, residual, distance):
    covariance = np.stack([calibration.covariance(d) for d in distance])
    return np.einsum('ni,nij,nj->n', residual, np.linalg.inv(covariance), residual)


def test_coarse_calibration_of_gaussian_errors():
    """NEES is 6 on new frames, also on those much less familiar than the calibration's."""
    found = fit_coarse(*coarse_errors(6000, 1), LIMITS)
    assert found.position_m == pytest.approx(0.2, rel=0.06)
    assert found.rotation_rad == pytest.approx(0.05, rel=0.06)
    residual, distance = coarse_errors(6000, 2)
    squared = coarse_nees(found, residual, distance)
    far = distance > 0.06
    assert squared.mean() == pytest.approx(6, abs=0.5)
    assert squared[far].mean() == pytest.approx(6, abs=0.6)
    assert 0.88 < np.mean(squared < chi2.ppf(0.9, 6)) < 0.94


def test_coarse_calibration_covers_heavy_tails():
    found = fit_coarse(*coarse_errors(4000, 3, dof=3), LIMITS)
    squared = coarse_nees(found, *coarse_errors(4000, 4, dof=3))
    assert np.mean(squared < chi2.ppf(0.9, 6)) > 0.88


@pytest.mark.parametrize('frames', [1, 2, 5])
def test_coarse_calibration_of_few_frames_covers_their_worst(frames):
    """No frame used for the calibration lies outside the 90 % ellipsoid of either three axes."""
    residual, distance = coarse_errors(frames, 5)
    found = fit_coarse(residual, distance, LIMITS)
    variance = np.stack([np.diag(found.covariance(d)) for d in distance])
    squared = (residual**2 / variance).reshape(frames, 2, 3).sum(axis=2)
    assert np.all(squared <= chi2.ppf(0.9, 3) * (1 + 1e-9))


@pytest.mark.parametrize('distance', [0.0, 1e-9, 0.03, 2.0, np.nan, np.inf])
@pytest.mark.parametrize('error', [0.0, 1e-9, 1.0])
def test_coarse_covariance_is_positive_definite_and_finite(distance, error):
    """Whatever it was measured on: equal images, no errors; never better than 1 mm, 0.06 deg."""
    found = fit_coarse(np.full((4, 6), error), np.zeros(4), LIMITS).covariance(distance)
    assert np.all(np.isfinite(found))
    assert np.linalg.eigvalsh(found).min() >= 0.99e-6


@pytest.mark.parametrize('residual, distance', [([], []), ([[np.nan] * 6], [0.1])])
def test_no_coarse_calibration_of_nothing(residual, distance):
    with pytest.raises(ValueError, match='at least one|NaN'):
        fit_coarse(np.reshape(residual, (-1, 6)), np.array(distance), LIMITS)


def test_errors_beyond_the_limit_ask_for_the_limit():
    found = fit_coarse(np.full((20, 6), 2.0), np.full(20, 0.1), (0.5, 0.3))
    sigma = np.sqrt(np.diag(found.covariance(0.1)))
    assert sigma == pytest.approx([0.5] * 3 + [0.3] * 3, rel=0.01)


def test_the_spread_of_poses_by_hand():
    poses = pose_matrix(np.eye(3), [[1.0, 2, 0], [-1, -2, 0], [1, -2, 0], [-1, 2, 0]])
    metres, radians = pose_spread(poses)
    assert metres == pytest.approx(np.sqrt(5 / 3 + 0.25**2))
    # Equal directions do not mean that the next visit looks the same way.
    assert radians == pytest.approx(np.deg2rad(10))


@pytest.mark.parametrize('count', [9, 30, 100])
def test_a_conformal_quantile_holds_for_the_next_value(count):
    """Over many draws the next value keeps the bound with at least the stated probability."""
    values = np.random.default_rng(0).standard_t(2, size=(4000, count + 1)) ** 2
    kept = [row[-1] <= conformal_quantile(row[:-1], 0.9) for row in values]
    expected = np.ceil(0.9 * (count + 1)) / (count + 1)
    assert np.mean(kept) == pytest.approx(expected, abs=0.02) and expected >= 0.9
