"""Bundle adjustment: against a general optimiser, and against the truth."""

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import perturb_pose, pose_residual
from training.bundle_adjustment import (
    BundleSettings,
    Observations,
    adjust_bundle,
    refine_points,
)

FX, FY, CX, CY = 500.0, 510.0, 320.0, 240.0
K = np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1.0]])


def _project(pose, points):
    """OpenCV's projection of world points (M, 3)."""
    R = pose[:3, :3].T
    uv, _ = cv2.projectPoints(points, cv2.Rodrigues(R)[0], -R @ pose[:3, 3], K, None)
    return uv[:, 0]


def _scene(rng, cameras, count, noise_px):
    """Cameras beside each other, all of which see all points."""
    points = rng.uniform((-1.5, -1, 3), (1.5, 1, 5), size=(count, 3))
    residual = rng.normal(size=(cameras, 6)) * (0.4, 0.2, 0.1, 0.05, 0.05, 0.1)
    poses = perturb_pose(np.tile(np.eye(4), (cameras, 1, 1)), residual)
    uv = np.stack([_project(pose, points) for pose in poses], axis=1).reshape(-1, 2)
    uv += rng.normal(size=uv.shape) * noise_px
    seen = Observations(
        uv,
        np.tile(np.arange(cameras), count),
        np.repeat(np.arange(count), cameras),
        np.tile([FX, FY, CX, CY], (cameras, 1)),
    )
    return seen, poses, points


def _shifted(rng, poses, sigma_m, sigma_rad):
    scale = np.repeat([sigma_m, sigma_rad], 3)
    return perturb_pose(poses, rng.normal(size=(len(poses), 6)) * scale)


def _cost(seen, poses, points, given, settings):
    """What the adjustment minimises, written with OpenCV and scipy alone."""
    total = 0.0
    for n, (pose, prior) in enumerate(zip(poses, given)):
        mine = seen.image == n
        r = _project(pose, points[seen.track[mine]]) - seen.uv[mine]
        total += settings.loss_px**2 * np.log1p((r**2).sum(1) / settings.loss_px**2).sum()
        turn = Rotation.from_matrix(pose[:3, :3] @ prior[:3, :3].T).as_rotvec()
        total += ((pose[:3, 3] - prior[:3, 3]) ** 2).sum() / settings.sigma_m**2
        total += (turn**2).sum() / settings.sigma_rad**2
    return total


def test_no_general_optimiser_finds_a_better_state():
    rng = np.random.default_rng(0)
    seen, poses, points = _scene(rng, cameras=4, count=8, noise_px=0.5)
    seen.uv[::9] += 30  # outliers
    given = _shifted(rng, poses, 0.02, 0.01)
    settings = BundleSettings(iterations=6)
    start = points + rng.normal(size=points.shape) * 0.02
    adjusted, refined = adjust_bundle(seen, given, start, settings)
    reached = _cost(seen, adjusted, refined, given, settings)
    assert reached < 0.5 * _cost(seen, given, start, given, settings)

    def cost(x):
        moved = perturb_pose(adjusted, x[: 6 * 4].reshape(4, 6) * 0.01)
        return _cost(seen, moved, refined + x[6 * 4 :].reshape(-1, 3) * 0.01, given, settings)

    best = minimize(cost, np.zeros(6 * 4 + 3 * 8), method='BFGS', options={'maxiter': 60})
    assert best.fun > 0.9995 * reached


def test_poses_that_are_off_come_back():
    rng = np.random.default_rng(1)
    seen, poses, points = _scene(rng, cameras=12, count=150, noise_px=0.3)
    wrong = rng.random(len(seen.uv)) < 0.1
    seen.uv[wrong] += rng.normal(size=(wrong.sum(), 2)) * 50
    given = _shifted(rng, poses, 0.02, 0.01)
    start = refine_points(seen, given, points + 0.05, np.ones(len(seen.uv)), loss_px=10.0)
    adjusted, _ = adjust_bundle(seen, given, start)
    # Relative poses: where the whole stands, its size included, only the given poses tell.
    before, after = (_relative_error(poses, p) for p in (given, adjusted))
    assert before > 0.010 and after < 0.002


def _relative_error(truth, poses):
    """Median error in rad of the rotations from each camera to the next."""
    turns = [
        p[:-1, :3, :3].transpose(0, 2, 1) @ p[1:, :3, :3]
        for p in (np.asarray(truth), np.asarray(poses))
    ]
    difference = Rotation.from_matrix(turns[0].transpose(0, 2, 1) @ turns[1])
    return np.median(difference.magnitude())


def test_exact_poses_stay():
    seen, poses, points = _scene(np.random.default_rng(2), cameras=6, count=60, noise_px=0.0)
    adjusted, refined = adjust_bundle(seen, poses, points)
    assert np.abs(pose_residual(adjusted, poses)).max() < 1e-6
    assert np.allclose(refined, points, atol=1e-6)


def test_a_camera_that_sees_nothing_stays_and_points_behind_do_no_harm():
    rng = np.random.default_rng(3)
    seen, poses, points = _scene(rng, cameras=5, count=50, noise_px=0.2)
    keep = seen.image != 2
    seen = Observations(seen.uv[keep], seen.image[keep], seen.track[keep], seen.intrinsics)
    start = points.copy()
    start[7] = [0, 0, -4]
    adjusted, refined = adjust_bundle(seen, poses, start)
    assert np.abs(pose_residual(adjusted[2], poses[2])).max() < 1e-6
    others = np.arange(50) != 7
    assert np.linalg.norm(refined - points, axis=1)[others].max() < 0.05
    assert np.isfinite(refined).all()


def test_a_point_behind_a_camera_fits_no_pixel():
    seen = Observations(
        np.array([[CX, CY]]), np.array([0]), np.array([0]), np.array([[FX, FY, CX, CY]])
    )
    for z, error in ((2.0, 0), (-2.0, 100)):
        r, _ = seen.residuals(np.eye(4)[None], np.array([[0, 0, z]]))
        assert np.linalg.norm(r) >= error and (z < 0 or np.allclose(r, 0))


def test_refined_points_are_the_least_squares_solution():
    rng = np.random.default_rng(4)
    seen, poses, points = _scene(rng, cameras=5, count=40, noise_px=1.0)
    weight = np.ones(len(seen.uv))
    refined = refine_points(seen, poses, points + 0.1, weight, loss_px=1e4, steps=15)
    for p, track in ((refined[t], t) for t in range(0, 40, 8)):
        uv = seen.uv[seen.track == track]

        def cost(x, uv=uv):
            return sum(((_project(T, x[None])[0] - z) ** 2).sum() for T, z in zip(poses, uv))

        best = minimize(cost, points[track], method='Nelder-Mead', options={'xatol': 1e-7})
        assert np.allclose(p, best.x, atol=1e-4)
