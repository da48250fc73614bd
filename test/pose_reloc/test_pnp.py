"""Covariances of poses from points, against draws of known errors and an independent optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import chi2

from pose_reloc.camera import Camera
from pose_reloc.geometry import perturb_pose, pose_residual
from pose_reloc.pnp import CameraFit, PnpProblem
from pose_reloc.refine import Refinement

CAMERA = Camera(640, 480, 500.0, 505.0, 322.0, 238.0)
TRUTH = perturb_pose(np.eye(4), np.array([0.2, -0.1, 0.1, 0.05, -0.08, 0.03]))


def _points(rng, count):
    """World points all over the image, 2 to 5 m away."""
    uv = rng.uniform((5, 5), (635, 475), (count, 2))
    return CAMERA.unproject(uv, rng.uniform(2, 5, count)) @ TRUTH[:3, :3].T + TRUTH[:3, 3]


def _project(pose, points, camera=CAMERA):
    return camera.project((points - pose[:3, 3]) @ pose[:3, :3])


def _solve(uv, points, scale, camera=CAMERA, steps=1):
    """The pose of least Cauchy loss near the truth."""
    units = np.r_[np.full(3, 1e-3), np.full(3, 1e-3)]

    def loss(x, start):
        error = _project(perturb_pose(start, x * units), points, camera) - uv
        return np.log1p((error**2).sum(axis=1) / scale**2).sum()

    pose = TRUTH
    for _ in range(steps):
        pose = perturb_pose(pose, minimize(loss, np.zeros(6), (pose,)).x * units)
    return pose


def _nees(residual, covariance):
    return residual @ np.linalg.solve(covariance, residual)


def _answers(rng, errors, scale, draws, count=150):
    """Residuals of the poses and the problems, with errors (count, 2) = errors(uv) of each draw."""
    points = _points(rng, count)
    exact = _project(TRUTH, points)
    for _ in range(draws):
        uv = exact + errors(exact)
        pose = _solve(uv, points, scale)
        yield pose_residual(TRUTH, pose), PnpProblem(uv, points, pose, CAMERA, scale)


def test_covariance_of_pnp_is_that_of_many_draws():
    rng = np.random.default_rng(6)
    found = list(_answers(rng, lambda uv: rng.normal(size=uv.shape) * 0.8, 100.0, 80))
    drawn = np.cov(np.array([residual for residual, _ in found]).T)
    stated = np.mean([problem.covariance() for _, problem in found], axis=0)
    # 80 draws know a standard deviation to 8 %.
    assert np.sqrt(np.diag(stated)) == pytest.approx(np.sqrt(np.diag(drawn)), rel=0.25)


def test_heavy_tails_are_seen_in_the_matches():
    """A third of the matches are wrong by ten times the loss: NEES stays 6."""
    rng = np.random.default_rng(7)

    def errors(uv):
        sigma = np.where(rng.random(len(uv)) < 0.33, 8.0, 0.4)
        return rng.normal(size=uv.shape) * sigma[:, None]

    values = [_nees(r, p.covariance()) for r, p in _answers(rng, errors, 0.8, 60)]
    assert 4.5 < np.mean(values) < 9


def test_errors_shared_by_neighbours_are_counted_once():
    """Landmarks of one surface err alike. As if each were one draw, NEES would be dozens."""
    rng = np.random.default_rng(8)

    def errors(uv):
        shared = rng.normal(size=(16, 12, 2))
        column, row = (uv // 40).astype(int).T
        return shared[column, row] + 0.1 * rng.normal(size=uv.shape)

    stated, alone = [], []
    for residual, problem in _answers(rng, errors, 50.0, 40, count=1500):
        stated.append(_nees(residual, problem.covariance()))
        problem._cell_N = np.arange(1500)
        alone.append(_nees(residual, problem.covariance()))
    assert np.mean(alone) > 30
    # Of 192 cells the scatter is known roughly, which alone makes more than 6.
    assert 4 < np.mean(stated) < 12


def test_errors_are_those_of_the_projection():
    rng = np.random.default_rng(9)
    points = _points(rng, 50)
    uv = _project(TRUTH, points) + rng.normal(size=(50, 2))
    points[0] = TRUTH[:3, 3] - TRUTH[:3, 2]  # behind the camera
    problem = PnpProblem(uv, points, TRUTH, CAMERA, 3.0)
    expected = np.linalg.norm(uv - _project(TRUTH, points), axis=1)[1:]
    assert problem.error_N[1:] == pytest.approx(expected)
    assert np.isinf(problem.error_N[0])
    assert np.isfinite(problem.covariance()).all()


@pytest.mark.parametrize('noise', [0.0, 0.5])
def test_few_points_in_a_corner_still_give_a_covariance(noise):
    rng = np.random.default_rng(10)
    uv = rng.uniform((5, 5), (75, 75), (20, 2))
    points = CAMERA.unproject(uv, rng.uniform(2, 5, 20)) @ TRUTH[:3, :3].T + TRUTH[:3, 3]
    problem = PnpProblem(uv + noise * rng.normal(size=uv.shape), points, TRUTH, CAMERA, 3.0)
    assert np.linalg.eigvalsh(problem.covariance())[0] > 0
    assert np.isfinite(problem.camera_fit().distrust)


def test_a_pixel_that_matches_many_keyframes_errs_once():
    rng = np.random.default_rng(14)
    points = _points(rng, 60)
    uv = _project(TRUTH, points) + rng.normal(size=(60, 2))
    once = PnpProblem(uv, points, TRUTH, CAMERA, 1e6).covariance()
    five_times = PnpProblem(np.tile(uv, (5, 1)), np.tile(points, (5, 1)), TRUTH, CAMERA, 1e6)
    assert five_times.covariance() == pytest.approx(once, rel=1e-6)


def test_a_right_calibration_is_trusted():
    rng = np.random.default_rng(11)
    found = _answers(rng, lambda uv: rng.normal(size=uv.shape) * 0.8, 3.0, 40, count=300)
    fits = [problem.camera_fit() for _, problem in found]
    # chi2 of 4 degrees of freedom has the mean 4; a scatter known from 48 cells raises it.
    assert 3 < np.mean([fit.distrust for fit in fits]) < 8
    assert not any(fit.looks_wrong for fit in fits)


@pytest.mark.parametrize(
    ('wrong', 'change'),
    [
        ((1.03, 1.03, 0, 0), (-np.log(1.03), -np.log(1.03), 0, 0)),
        ((0.97, 0.97, 0, 0), (-np.log(0.97), -np.log(0.97), 0, 0)),
        ((1.02, 1.0, 0, 0), (-np.log(1.02), 0, 0, 0)),
        ((1.0, 1.0, 10, 0), (0, 0, -10 / 500, 0)),
        ((1.0, 1.0, 0, -10), (0, 0, 0, 10 / 505)),
    ],
)
def test_a_wrong_calibration_is_known_and_its_harm_stated(wrong, change):
    rng = np.random.default_rng(12)
    points = _points(rng, 400)
    fx, fy, du, dv = wrong
    told = Camera(640, 480, 500.0 * fx, 505.0 * fy, 322.0 + du, 238.0 + dv)
    blind, honest = [], []
    for _ in range(4):
        uv = _project(TRUTH, points) + rng.normal(size=(400, 2)) * 0.5
        pose = _solve(uv, points, 3.0, told, steps=3)
        residual, problem = pose_residual(TRUTH, pose), PnpProblem(uv, points, pose, told, 3.0)
        fit = problem.camera_fit()
        assert fit.looks_wrong
        assert fit.change == pytest.approx(change, abs=0.004)
        found = Refinement(pose, problem.covariance(), fit, uv, points, 0, 400, {})
        blind.append(_nees(residual, found.covariance_66))
        honest.append(_nees(residual, found.covariance(np.zeros((6, 6)), 1.0)))
    assert np.mean(blind) > 50
    assert np.mean(honest) < chi2.ppf(0.99, 6)


def test_a_trusted_camera_adds_nothing():
    fit = CameraFit(np.zeros(4), 49.0, np.ones(6), 9 * np.eye(6))
    found = Refinement(np.eye(4), np.eye(6), fit, np.zeros((0, 2)), np.zeros((0, 3)), 0, 0, {})
    assert found.covariance(np.eye(6), 2.0) == pytest.approx(4 * np.eye(6), abs=1e-7)


@pytest.mark.parametrize(('bend_m', 'tilt_deg'), [(0.0, 0), (0.0, 40), (0.003, 0), (0.003, 5)])
def test_one_flat_wall_blames_no_camera(bend_m, tilt_deg):
    """A plane has 8 numbers, the problem 10: the other two must not carry the pose away."""
    rng = np.random.default_rng(8)
    uv = rng.uniform((5, 5), (635, 475), (300, 2))
    depth = 3 / (1 + np.tan(np.deg2rad(tilt_deg)) * (uv[:, 0] - CAMERA.cx) / CAMERA.fx)
    points = CAMERA.unproject(uv, depth)
    points[:, 2] += bend_m * np.sin(2 * points[:, 0])
    points = points @ TRUTH[:3, :3].T + TRUTH[:3, 3]
    pose = _solve(uv, points, 1.5)
    problem = PnpProblem(uv, points, pose, CAMERA, 1.5)
    fit = problem.camera_fit()
    assert fit.distrust >= 0 and np.isfinite(fit.covariance_66).all()
    spread = np.zeros((6, 6))
    stated = Refinement(pose, problem.covariance(), fit, uv, points, 0, 300, {}).covariance(
        spread, 1.0
    )
    assert np.sqrt(np.linalg.eigvalsh(stated[:3, :3])[-1]) < 0.05
