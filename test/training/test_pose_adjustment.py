"""The derivatives of the pose adjustment, against finite differences."""

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.geometry import perturb_pose
from training.pose_adjustment import AdjustmentSettings, Observations, _linearised

CAMERA = Camera(640, 480, 500.0, 505.0, 320.0, 240.0)
SETTINGS = AdjustmentSettings()


def _problem():
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -1.5, 3), (2, 1.5, 5), (20, 3))
    poses = perturb_pose(np.tile(np.eye(4), (2, 1, 1)), rng.normal(size=(2, 6)) * 0.1)
    local = [(points - T[:3, 3]) @ T[:3, :3] for T in poses]
    uv = CAMERA.project(local[0]) + rng.normal(size=(20, 2))
    return poses, Observations(uv, np.ones(20, int), local[1])


@pytest.mark.parametrize('frame', [0, 1])
def test_derivatives_are_finite_differences(frame):
    poses, seen = _problem()
    derivative = _linearised(poses, 0, seen, CAMERA, SETTINGS)[2 + frame]
    step = 1e-6
    for axis in range(6):
        residuals = []
        for sign in (1, -1):
            moved = poses.copy()
            moved[frame] = perturb_pose(poses[frame], sign * step * np.eye(6)[axis])
            residuals.append(_linearised(moved, 0, seen, CAMERA, SETTINGS)[0])
        expected = (residuals[0] - residuals[1]) / (2 * step)
        assert derivative[:, :, axis] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_far_off_matches_and_points_behind_have_no_weight():
    poses, seen = _problem()
    seen.uv[3] += 70
    seen.local[5, 2] *= -1
    weight = _linearised(poses, 0, seen, CAMERA, SETTINGS)[1]
    assert (np.flatnonzero(weight == 0) == [3, 5]).all()
    assert (weight <= SETTINGS.weight).all()
