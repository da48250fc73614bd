"""Calibration of regressed poses, with networks whose errors and features are known."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, f

from pose_reloc.geometry import (
    network_from_pose,
    network_offset,
    perturb_pose,
    pose_matrix,
    pose_residual,
)
from pose_reloc.network import PosePrediction
from pose_reloc.uncertainty import CoarseCalibration
from training.calibration import (
    bounded_mean,
    calibrate_coarse,
    cautious_mean,
    conformal_quantile,
    fit_coarse,
    know_nothing,
)
from training.metrics import nees

N, BLOCK = 400, 10
HELD_OUT = np.arange(N) // BLOCK % 2 == 1
BLOCKS = np.arange(N) // BLOCK


class KnownNetwork:
    """Reads the frame's number from its image; its features turn away from the first axis.

    Those of odd frames point the other way, so that their mean is what all have in common: the
    third axis.
    """

    def __init__(self, world_T_camera, angle):
        w_t_c, c_q_w = network_from_pose(world_T_camera)
        self.answers = torch.from_numpy(np.concatenate([w_t_c, c_q_w], axis=1))
        self.angle = torch.from_numpy(angle)

    def features(self, image_B3HW):
        # Back from ImageNet's normalisation: the red of one pixel counts ones, its green 100s.
        mean, std = torch.tensor([0.485, 0.456]), torch.tensor([0.229, 0.224])
        ones, hundreds = ((image_B3HW[:, :2, 0, 0] * std + mean) * 255).round().long().T
        self.frames = hundreds * 100 + ones
        angle = self.angle[self.frames] + torch.pi * (self.frames % 2)
        return 3 * torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 5.0)], dim=1)

    def pose(self, features_BF):
        answer = self.answers[self.frames]
        return PosePrediction(answer[:, :3], answer[:, 3:])


def frames():
    image = np.zeros((N, 2, 2, 3), dtype=np.uint8)
    image[..., 0] = (np.arange(N) % 100)[:, None, None]
    image[..., 1] = (np.arange(N) // 100)[:, None, None]
    return image, pose_matrix(np.eye(3), np.random.default_rng(0).normal(size=(N, 3)))


def test_known_errors_are_found():
    """Held-out frames are 60 deg away in features: cosine 1/2. The others are like each other."""
    image, truth = frames()
    residual = np.random.default_rng(1).normal(size=(N, 6)) * ([0.3] * 3 + [0.04] * 3)
    residual[~HELD_OUT] *= 0.1  # learnt by heart
    # The network answers x, the truth is exp(residual) x.
    answers = perturb_pose(truth, residual)
    network = KnownNetwork(answers, np.where(HELD_OUT, np.pi / 3, -1e-4 * np.arange(N)))
    found = calibrate_coarse(network, image, truth, HELD_OUT, BLOCKS)
    assert found.calibration.usual_distance == pytest.approx(0.25, abs=1e-3)  # median of 0 and 0.5
    # Every held-out image is most like the first ones that were trained on, even or odd as it is.
    even = np.array([0, 2, 4, 6, 8, 20, 22, 24, 26, 28])
    offsets = [
        network_offset(*network_from_pose(truth[even + i % 2]), *network_from_pose(answers[i]))
        for i in np.flatnonzero(HELD_OUT)
    ]
    covariance = np.array([found.calibration.covariance(0.5, e) for e in offsets])
    squared = nees(residual[HELD_OUT], covariance)
    assert squared.mean() == pytest.approx(6, rel=0.1)
    assert nees(residual[HELD_OUT, :3], covariance[:, :3, :3]).mean() == pytest.approx(3, rel=0.1)
    np.testing.assert_array_equal(found.train_frames, np.flatnonzero(~HELD_OUT))
    assert found.train_features.dtype == np.float16
    np.testing.assert_allclose(found.feature_mean, [0, 0, 15], atol=1e-3)
    turned = np.pi * (found.train_frames % 2) - 1e-4 * found.train_frames
    expected = np.stack([np.cos(turned), np.sin(turned), 0 * turned], axis=1)
    np.testing.assert_allclose(found.train_features, expected, atol=1e-3)


def test_frames_are_compared_with_other_blocks_only():
    """Every block looks one way, and the opposite one, 9 deg from the block before it."""
    image, truth = frames()
    network = KnownNetwork(truth, np.deg2rad(9.0) * (BLOCKS % 20))
    held_out = BLOCKS % 20 == 19
    found = calibrate_coarse(network, image, truth, held_out, BLOCKS % 20)
    assert found.calibration.usual_distance == pytest.approx(1 - np.cos(np.deg2rad(9)), abs=1e-3)


def test_where_all_is_one_block_the_held_out_half_is_what_is_new():
    image, _ = frames()
    truth, residual = np.tile(np.eye(4), (N, 1, 1)), np.full((N, 6), 0.2)
    network = KnownNetwork(perturb_pose(truth, residual), np.where(HELD_OUT, np.pi / 3, 0.0))
    found = calibrate_coarse(network, image, truth, HELD_OUT, np.zeros(N, int)).calibration
    assert found.usual_distance == pytest.approx(0.5, abs=1e-3)
    # Five times the variance at the usual distance, and ten along the usual offset, on which the
    # errors lie; three times as much from one block: 3 / (3 - 2).
    assert found.usual_offset_m == pytest.approx(0.2 * np.sqrt(3))
    assert found.position_m == pytest.approx(0.2 * np.sqrt(3 / 15), rel=1e-3)


def test_a_perfect_network_is_not_trusted_without_end():
    image, truth = frames()
    found = calibrate_coarse(KnownNetwork(truth, np.zeros(N)), image, truth, HELD_OUT, BLOCKS)
    covariance = found.calibration.covariance(0.0, np.zeros((1, 6)))
    assert np.linalg.eigvalsh(covariance).min() >= 0.99e-6


def test_without_held_out_frames_the_answer_is_any_pose_of_the_scene():
    """Even of a network that knows every training image by heart, and of a new image like these."""
    image, truth = frames()
    network = KnownNetwork(truth, np.zeros(N))
    found = calibrate_coarse(network, image, truth, np.zeros(N, bool), BLOCKS)
    shuffled = truth[np.random.default_rng(1).permutation(N)]
    residual = pose_residual(truth, shuffled)[:, :3]
    sigma = np.sqrt(np.diag(found.calibration.covariance(0.1, np.zeros((1, 6)))))
    far = np.sqrt(np.diag(found.calibration.covariance(2.0, np.full((1, 6), 3.0))))
    np.testing.assert_allclose(far, sigma, rtol=1e-6)
    assert sigma[0] == pytest.approx(np.sqrt((residual**2).mean() + 0.25**2), rel=0.05)
    # Equal directions do not mean that the next visit looks the same way.
    assert sigma[3] == pytest.approx(np.deg2rad(10), rel=0.02)
    assert len(found.train_features) == N


def test_what_nothing_is_known_of_by_hand():
    poses = pose_matrix(np.eye(3), [[1.0, 2, 0], [-1, -2, 0], [1, -2, 0], [-1, 2, 0]])
    assert know_nothing(poses).position_m == pytest.approx(np.sqrt(2 * 5 / 3 + 0.25**2))


def test_a_network_that_answers_nan_is_refused():
    image, truth = frames()
    angle = np.where(np.arange(N) == 5, np.nan, 0.0)
    with pytest.raises(ValueError, match='NaN'):
        calibrate_coarse(KnownNetwork(truth, angle), image, truth, HELD_OUT, BLOCKS)


def test_training_frames_are_needed():
    image, truth = frames()
    with pytest.raises(ValueError, match='training frames'):
        calibrate_coarse(KnownNetwork(truth, np.zeros(N)), image, truth, np.full(N, True), BLOCKS)


TRUTH = CoarseCalibration(0.2, 0.05, 0.03, 0.4, 0.3)


def recording(rng, blocks, per_block=10, dof=None, common=0.0):
    """Residuals, distances and offsets of an image sequence whose errors grow as TRUTH says.

    Args:
        dof: degrees of freedom of Student's t with the same variance; None: Gaussian.
        common: share of the variance that all frames of a block have in common.
    """
    frames = blocks * per_block
    distance = rng.lognormal(np.log(0.03), 0.8, size=frames)
    unit = np.sqrt(1 - common) * rng.normal(size=(frames, 6))
    unit += np.sqrt(common) * np.repeat(rng.normal(size=(blocks, 6)), per_block, axis=0)
    if dof:
        unit *= np.sqrt((dof - 2) / rng.chisquare(dof, size=(frames, 1)))
    # The median of |x|^2 of three Gaussians is that of a chi2.
    offset = rng.normal(size=(frames, 1, 6)) * ([0.4] * 3 + [0.3] * 3) / np.sqrt(chi2.median(3))
    half = np.linalg.cholesky(covariances(TRUTH, distance, offset))
    return (half @ unit[..., None])[..., 0], distance, offset


def covariances(calibration, distance, offset):
    return np.array([calibration.covariance(*of) for of in zip(distance, offset, strict=True)])


def squared_errors(calibration, residual, distance, offset):
    return nees(residual, covariances(calibration, distance, offset))


def everything(count):
    return np.full(count, True)


def test_gaussian_errors():
    """NEES is 6 on new frames, also on those much less familiar than the calibration's."""
    rng = np.random.default_rng(1)
    found = fit_coarse(*recording(rng, 600), everything(6000), 600)
    assert found.position_m == pytest.approx(0.2, rel=0.06)
    assert found.rotation_rad == pytest.approx(0.05, rel=0.06)
    assert found.usual_offset_m == pytest.approx(0.4, rel=0.03)
    residual, distance, offset = recording(rng, 600)
    squared = squared_errors(found, residual, distance, offset)
    assert squared.mean() == pytest.approx(6, abs=0.4)
    assert squared[distance > 0.06].mean() == pytest.approx(6, abs=0.5)
    far = np.linalg.norm(offset[:, 0, :3], axis=1) > 0.6
    assert squared[far].mean() == pytest.approx(6, abs=0.5)
    assert np.mean(squared < chi2.ppf(0.9, 6)) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize('blocks', [2, 3, 9])
def test_few_blocks_make_it_as_cautious_as_they_are_few(blocks):
    """Over many recordings of one frame a block the NEES of the next image is 6 on average.

    The expectation of v / chi2_v is v / (v - 2): without the factor it would be 12 for 2 blocks.
    """
    rng = np.random.default_rng(2)
    expected = []
    for residual in rng.normal(size=(8000, blocks, 6)):
        distance, offset = np.full(blocks, 0.1), np.zeros((blocks, 1, 6))
        found = fit_coarse(residual, distance, offset, everything(blocks), blocks)
        expected.append((1 / np.diag(found.covariance(0.1, offset[0]))).sum())
    assert np.mean(expected) == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize(('dof', 'common'), [(None, 0.5), (5, 0.5), (3, 0.0), (3, 0.5)])
def test_coverage_of_a_new_visit_over_many_scenes(dof, common):
    """5 held-out blocks of 40 and heavy tails: the ellipsoid holds what that of the truth would.

    r^T C^-1 r / 6 of Student's t with v degrees of freedom and covariance C is v / (v - 2) times
    less than Fisher's F(6, v).
    """
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(300):
        seen = recording(rng, 40, dof=dof, common=common)
        found = fit_coarse(*seen, np.repeat(np.arange(40) % 8 == 4, 10), 5)
        squared = squared_errors(found, *recording(rng, 10, dof=dof))
        inside.append(np.mean(squared < chi2.ppf(0.9, 6)))
    bound = chi2.ppf(0.9, 6) / 6
    ideal = f.cdf(bound * dof / (dof - 2), 6, dof) if dof else 0.9
    assert ideal - 0.02 < np.mean(inside) < ideal + 0.06


def test_frames_it_was_trained_on_make_it_more_cautious_only():
    """Lucky held-out frames do not count for more than the others; learnt ones not at all."""
    rng = np.random.default_rng(4)
    residual, distance, offset = recording(rng, 60)
    held_out = np.repeat(np.arange(60) % 6 == 3, 10)

    def sigma(held, trained):
        scaled = residual * np.where(held_out, held, trained)[:, None]
        return fit_coarse(scaled, distance, offset, held_out, 10).position_m

    honest = sigma(1.0, 1.0)
    assert sigma(1.0, 0.01) == pytest.approx(honest, rel=0.1)
    assert sigma(0.3, 1.0) > 0.85 * honest
    assert sigma(1.0, 3.0) > 2.5 * honest


def test_one_frame_that_went_wrong_does_not_decide():
    values = np.random.default_rng(5).chisquare(3, size=200)
    wrong = values.copy()
    wrong[0] = 1e6
    assert bounded_mean(wrong) < 1.1 * values.mean()
    assert bounded_mean(values) == pytest.approx(values.mean(), rel=0.02)
    # Of few values none can be told to be wrong.
    assert bounded_mean(np.array([1.0, 1.0, 100.0])) == 34.0


def test_few_blocks_make_a_mean_cautious():
    """A quarter of what the means of many samples spread by; copies of a value change nothing."""
    rng = np.random.default_rng(6)
    samples = rng.chisquare(6, size=(3000, 40))
    means = np.array([bounded_mean(sample) for sample in samples])
    added = np.array([cautious_mean(sample, np.arange(40)) for sample in samples]) - means
    assert added.mean() == pytest.approx(means.std() / 4, rel=0.05)
    values, blocks = rng.uniform(size=40), np.arange(40)
    once, copies = cautious_mean(values, blocks), np.repeat(values, 10)
    assert cautious_mean(copies, np.repeat(blocks, 10)) == pytest.approx(once)
    assert cautious_mean(copies, np.arange(400)) < 0.99 * once


@pytest.mark.parametrize('distance', [0.0, 1e-9, 0.03, 2.0, np.nan, np.inf])
@pytest.mark.parametrize('error', [0.0, 1e-9, 1.0])
@pytest.mark.parametrize('offset', [0.0, 1e-9, 100.0])
def test_positive_definite_and_finite(distance, error, offset):
    """Whatever it was measured on: equal images, no errors; never better than 1 mm, 0.06 deg."""
    offsets = np.full((4, 1, 6), offset)
    found = fit_coarse(np.full((4, 6), error), np.zeros(4), offsets, everything(4), 1)
    covariance = found.covariance(distance, np.ones((1, 6)))
    assert np.all(np.isfinite(covariance))
    assert np.linalg.eigvalsh(covariance).min() >= 0.99e-6


@pytest.mark.parametrize('residual, held_out', [([[0.0] * 6], False), ([[np.nan] * 6], True)])
def test_no_calibration_of_nothing(residual, held_out):
    with pytest.raises(ValueError, match='at least one|NaN'):
        fit_coarse(np.array(residual), np.ones(1), np.zeros((1, 1, 6)), np.array([held_out]), 1)


@pytest.mark.parametrize('count', [9, 30, 100])
def test_a_conformal_quantile_holds_for_the_next_value(count):
    """Over many draws the next value keeps the bound with at least the stated probability."""
    values = np.random.default_rng(0).standard_t(2, size=(4000, count + 1)) ** 2
    kept = [row[-1] <= conformal_quantile(row[:-1], 0.9) for row in values]
    expected = np.ceil(0.9 * (count + 1)) / (count + 1)
    assert np.mean(kept) == pytest.approx(expected, abs=0.02) and expected >= 0.9


def test_a_long_recording_is_thinned_evenly(monkeypatch):
    """What is stored, and what the robot compares with, does not grow with the recording."""
    monkeypatch.setattr('training.calibration._MOST_FEATURES', 10)
    image, truth = frames()
    turns = np.linspace(0, np.pi / 2, N)
    found = calibrate_coarse(KnownNetwork(truth, turns), image, truth, HELD_OUT, BLOCKS)
    assert len(found.train_features) == 10
    np.testing.assert_allclose(found.train_frames, np.linspace(0, N - BLOCK, 10), atol=BLOCK)
