"""The correction from the landmarks' frame to that of the given poses."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pose_reloc.drift import DriftField
from pose_reloc.geometry import perturb_pose, pose_error, pose_matrix, pose_residual


def _matern(a, b):
    metres, radians = pose_error(a, b)
    r = np.sqrt(3 * ((metres / 0.85) ** 2 + (radians / np.deg2rad(60)) ** 2))
    return (1 + r) * np.exp(-r)


def test_drift_is_gaussian_process_regression():
    """Against Rasmussen & Williams 2006, eq. 2.25, 2.26 and 2.30, by inverses, Matern 3/2."""
    rng = np.random.default_rng(11)
    adjusted = perturb_pose(np.tile(np.eye(4), (12, 1, 1)), rng.normal(size=(12, 6)) * 0.4)
    residual = rng.normal(size=(12, 6)) * 0.03
    given = perturb_pose(adjusted, residual)
    query = perturb_pose(np.eye(4), rng.normal(size=6) * 0.3)

    K = np.array([[_matern(a, b) for b in adjusted] for a in adjusted])
    k = np.array([_matern(query, a) for a in adjusted])

    def log_likelihood(noise):
        # Eq. 2.30 axis by axis, each with the variance that makes it greatest, by scipy.
        total = 0.0
        for y in residual.T:
            covariance = K + noise * np.eye(12)
            covariance *= y @ np.linalg.solve(covariance, y) / 12
            total += multivariate_normal(np.zeros(12), covariance).logpdf(y)
        return total

    noise = max(np.geomspace(0.01, 1.0, 5), key=log_likelihood)
    inverse = np.linalg.inv(K + noise * np.eye(12))
    field = DriftField(adjusted, given)
    moved, covariance = field.to_given(query)
    assert pose_residual(moved, query) == pytest.approx(k @ inverse @ residual, abs=1e-9)
    variance = np.array([y @ inverse @ y / 12 for y in residual.T])
    expected = variance * (1 + noise - k @ inverse @ k)
    assert np.diag(covariance) == pytest.approx(expected, rel=1e-6)
    # Without any anchor nothing is carried and nothing is made up.
    none = field.without(np.ones(12, bool))
    assert np.array_equal(none.to_given(query)[0], query)
    assert np.isfinite(none.to_given(query)[1]).all()


def test_noise_is_not_taken_for_drift():
    """White noise far from all anchors: the stated variance is that of the noise, not 25 times."""
    rng = np.random.default_rng(13)
    t = np.linspace(0, 1, 200)
    adjusted = pose_matrix(np.eye(3), np.stack([2 * np.cos(6 * t), 2 * np.sin(6 * t), 0 * t], 1))
    noisy = perturb_pose(adjusted, rng.normal(size=(200, 6)) * 0.01)
    far = pose_matrix(np.eye(3), [0.0, 0, 9])
    stated = np.diag(DriftField(adjusted, noisy).to_given(far)[1])
    assert np.all(stated < 3 * 0.01**2) and np.all(stated > 0.7 * 0.01**2)
    # Drift that neighbours share stays drift.
    K = np.array([_matern(pose, adjusted) for pose in adjusted]) + 0.01 * np.eye(200)
    drift = 0.03 * np.linalg.cholesky(K) @ rng.normal(size=(200, 6))
    stated = np.diag(DriftField(adjusted, perturb_pose(adjusted, drift)).to_given(far)[1])
    assert np.all(stated > 0.03**2 / 3) and np.all(stated < 0.03**2 * 3)
