"""Covariances against sampling: what they say of the errors must be what the errors do."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix, pose_residual
from pose_reloc.uncertainty import (
    CoarseCalibration,
    feature_distance,
    held_out_covariance,
    propagate_lever_arm,
    rotate_covariance,
)


def random_pose(seed):
    rng = np.random.default_rng(seed)
    return pose_matrix(Rotation.random(random_state=rng).as_matrix(), rng.normal(scale=2, size=3))


def random_covariance(seed, position=0.02, rotation=0.004):
    """Full, with correlations; errors of about `position` metres and `rotation` radians."""
    A = np.random.default_rng(seed).normal(size=(12, 6)) * ([position] * 3 + [rotation] * 3)
    return A.T @ A / 12


def samples(covariance, N, seed):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(6), covariance, size=N)


def standard(covariance):
    """Divides out the standard deviations, so that metres and radians compare."""
    sigma = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sigma, sigma)


def assert_same_covariance(found, expected, tolerance):
    np.testing.assert_allclose(np.sqrt(np.diag(found)), np.sqrt(np.diag(expected)), rtol=tolerance)
    np.testing.assert_allclose(standard(found), standard(expected), atol=tolerance)


@pytest.mark.parametrize('seed', range(3))
def test_lever_arm_against_sampling(seed):
    """Camera poses are drawn and the base rides along: its errors have the stated covariance."""
    map_T_camera, camera_T_base = random_pose(seed), random_pose(seed + 10)
    covariance = random_covariance(seed)
    true_camera = perturb_pose(map_T_camera, samples(covariance, 20000, seed))
    residual = pose_residual(true_camera @ camera_T_base, map_T_camera @ camera_T_base)
    found = propagate_lever_arm(covariance, map_T_camera, camera_T_base)
    assert_same_covariance(found, np.cov(residual.T), 0.04)
    # The lever is long enough to matter: the covariance of the camera would not do.
    assert not np.allclose(np.diag(found)[:3], np.diag(covariance)[:3], rtol=0.2)
    np.testing.assert_array_equal(found, found.T)


def test_lever_arm_by_hand():
    """A base 2 m behind a camera that may be turned by 0.01 rad about z moves 2 cm sideways."""
    covariance = np.diag([1e-6, 1e-6, 1e-6, 1e-12, 1e-12, 1e-4])
    found = propagate_lever_arm(covariance, np.eye(4), pose_matrix(np.eye(3), [-2, 0, 0]))
    np.testing.assert_allclose(np.diag(found)[:3], [1e-6, 1e-6 + 4e-4, 1e-6], rtol=1e-4)
    # Turned to the left (positive about z), the base behind goes to the right: -y.
    assert found[1, 5] == pytest.approx(-2e-4)
    np.testing.assert_array_equal(found[3:, 3:], covariance[3:, 3:])


def test_no_lever_changes_nothing_and_there_and_back_is_the_same():
    map_T_camera, camera_T_base = random_pose(3), random_pose(13)
    covariance = random_covariance(3)
    turned_only = pose_matrix(camera_T_base[:3, :3], np.zeros(3))
    same = propagate_lever_arm(covariance, map_T_camera, turned_only)
    np.testing.assert_allclose(same, covariance, rtol=1e-12)
    base = propagate_lever_arm(covariance, map_T_camera, camera_T_base)
    back = propagate_lever_arm(base, map_T_camera @ camera_T_base, invert_pose(camera_T_base))
    np.testing.assert_allclose(back, covariance, rtol=1e-9, atol=1e-12)


def test_rotated_covariance_against_sampling():
    """The same errors, written along the axes of another frame b."""
    estimate, b_T_a = random_pose(4), random_pose(14)
    covariance = random_covariance(4)
    true = perturb_pose(estimate, samples(covariance, 20000, 4))
    residual = pose_residual(b_T_a @ true, b_T_a @ estimate)
    found = rotate_covariance(covariance, b_T_a[:3, :3])
    assert_same_covariance(found, np.cov(residual.T), 0.04)


def gaussian_errors(covariance, N, seed):
    estimate = np.stack([random_pose(i) for i in range(50)])[np.arange(N) % 50]
    return perturb_pose(estimate, samples(covariance, N, seed)), estimate


def test_held_out_covariance_of_gaussian_errors():
    covariance = random_covariance(5, position=0.3, rotation=0.1)
    found = held_out_covariance(*gaussian_errors(covariance, 4000, 5))
    sigma, expected = np.sqrt(np.diag(found)), np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(sigma, expected, rtol=0.06)
    residual = pose_residual(*gaussian_errors(covariance, 4000, 6))
    nees = np.einsum('ni,ij,nj->n', residual, np.linalg.inv(found), residual)
    for level in (0.5, 0.9, 0.95):
        inside = np.mean(nees < chi2.ppf(level, 6))
        assert level - 0.04 < inside < level + 0.06
    # The errors are correlated, and so is what the robot is told.
    off = ~np.eye(6, dtype=bool)
    assert np.corrcoef(standard(found)[off], standard(covariance)[off])[0, 1] > 0.99


def test_held_out_covariance_holds_heavy_tails_and_bias():
    """95 % of the errors of every axis lie within 1.96 sigma, whatever their distribution."""
    rng = np.random.default_rng(7)
    residual = rng.standard_t(2.5, size=(800, 6)) * ([0.1] * 3 + [0.02] * 3)
    residual[:, 0] += 0.5
    residual[:, 3:] = np.clip(residual[:, 3:], -0.5, 0.5)
    estimate = np.repeat(random_pose(7)[None], 800, axis=0)
    found = held_out_covariance(perturb_pose(estimate, residual), estimate)
    inside = np.abs(residual) <= 1.96 * np.sqrt(np.diag(found))
    assert np.all(inside.mean(axis=0) >= 0.949)
    assert np.sqrt(found[0, 0]) > 0.5  # a bias is an error too


@pytest.mark.parametrize('frames', [1, 2, 5, 50])
@pytest.mark.parametrize('error', [0.0, 1e-9, 0.1])
def test_held_out_covariance_is_positive_definite(frames, error):
    """Few frames, or none that errs at all: still no infinite trust (1 mm, 0.06 deg at least)."""
    rng = np.random.default_rng(8)
    estimate = np.stack([random_pose(i) for i in range(frames)])
    residual = error * rng.normal(size=(frames, 6)) * [1, 0, 1, 1, 0, 1]  # two axes never err
    found = held_out_covariance(perturb_pose(estimate, residual), estimate)
    assert np.all(np.diag(found) >= 0.99e-6)
    assert np.linalg.eigvalsh(standard(found)).min() > 0.05
    np.testing.assert_allclose(found, found.T, rtol=1e-12)
    np.linalg.cholesky(found)


def test_no_frames_give_no_covariance():
    with pytest.raises(ValueError, match='at least one'):
        held_out_covariance(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))


def test_coarse_covariance_grows_with_the_distance_up_to_its_limit():
    calibration = CoarseCalibration(0.2, 0.05, usual_distance=0.03)
    variance = [calibration.covariance(d)[0, 0] for d in (0.0, 0.03, 0.3)]
    np.testing.assert_allclose(variance, [0.04, 0.08, 0.04 * 101], rtol=1e-3)
    unknown = calibration.covariance(np.nan)
    np.testing.assert_array_equal(unknown, calibration.covariance(2.0))
    limited = replace(calibration, greatest_position_m=0.2, greatest_rotation_rad=0.5)
    # At d = 0 both say 0.04 m^2: half of it is left; far away the limit alone.
    assert limited.covariance(0.0)[0, 0] == pytest.approx(0.02)
    assert np.sqrt(np.diag(limited.covariance(2.0))) == pytest.approx(
        [0.2] * 3 + [0.5] * 3, rel=0.03
    )


def test_feature_distance_by_hand():
    train = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float16)
    images = [[5, 0, 0], [1, 1, 0], [0, 0, 2], [-1, -1, 0], [0, 0, 0], [np.nan, 0, 0]]
    side = 1 - np.sqrt(0.5)
    expected = [0, side, 1, 2 - side, 1, np.nan]
    np.testing.assert_allclose(feature_distance(images, train), expected, atol=1e-6)
