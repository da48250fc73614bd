"""Covariances against sampling: what they say of the errors must be what the errors do."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix, pose_residual
from pose_reloc.uncertainty import (
    CoarseCalibration,
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


CALIBRATION = CoarseCalibration(0.2, 0.05, 0.03, usual_offset_m=0.5, usual_offset_rad=0.1)


def test_coarse_covariance_grows_with_the_distance():
    covariances = [CALIBRATION.covariance(d, np.zeros((1, 6))) for d in (0.0, 0.03, 0.96)]
    # 32 times the usual distance: 32^1.6 = 2^8.
    np.testing.assert_allclose([c[0, 0] for c in covariances], 0.04 * np.array([1, 5, 1025]))
    assert covariances[2][5, 5] == pytest.approx(0.05**2 * 1025)
    assert np.count_nonzero(covariances[2]) == 6


def test_coarse_covariance_grows_towards_the_most_similar_images():
    offset = np.array([0.6, 0.8, 0, 0, 0, -0.2])  # twice the usual ones
    covariance = CALIBRATION.covariance(0.0, offset[None])
    # 1 + 10 x 2^2 times the variance along the offset, 1 across it.
    along, across = np.array([0.6, 0.8, 0]), np.array([0.8, -0.6, 0])
    np.testing.assert_allclose(covariance[:3, :3] @ along, 41 * 0.2**2 * along)
    np.testing.assert_allclose(covariance[:3, :3] @ across, 0.2**2 * across, atol=1e-15)
    np.testing.assert_allclose(np.diag(covariance)[3:], 0.05**2 * np.array([1, 1, 41]))
    np.testing.assert_array_equal(covariance[:3, 3:], 0)
    np.testing.assert_array_equal(CALIBRATION.covariance(0.0, -offset[None]), covariance)


def test_of_several_images_the_mean_counts():
    """Two of four on opposite sides of the answer and turned one way, two where it is."""
    offsets = np.array([[0.5, 0, 0, 0, 0.1, 0], [-0.5, 0, 0, 0, 0.1, 0], [0.0] * 6, [0.0] * 6])
    covariance = CALIBRATION.covariance(0.0, offsets)
    np.testing.assert_allclose(np.diag(covariance)[:3], 0.04 * np.array([6, 1, 1]))
    np.testing.assert_allclose(np.diag(covariance)[3:], 0.0025 * np.array([1, 6, 1]))


@pytest.mark.parametrize('distance, offset', [(np.nan, 0.0), (0.0, np.nan), (np.inf, np.inf)])
def test_what_cannot_be_told_counts_as_the_worst(distance, offset):
    unknown = CALIBRATION.covariance(distance, np.full((2, 6), offset))
    np.testing.assert_array_equal(unknown, CALIBRATION.covariance(2.0, np.zeros((1, 6))))


@pytest.mark.parametrize('values', [(0.0, 1, 1, 1, 1), (1, -1, 1, 1, 1), (1, 1, 0, 1, 1),
                                    (1, 1, 1, np.inf, 1), (1, 1, 1, 1, np.nan)])  # fmt: skip
def test_a_calibration_of_nothing_or_everything_is_refused(values):
    with pytest.raises(ValueError, match='positive and finite'):
        CoarseCalibration(*values)
