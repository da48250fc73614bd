"""A camera with a wrong calibration is named, one with the right calibration is left in peace."""

from dataclasses import replace

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.camera_check import CameraCheck
from pose_reloc.geometry import perturb_pose
from pose_reloc.pnp import CameraFit, PnpProblem

CAMERA = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)


def _fits(told, count, rng, noise_px=0.7):
    """What answers computed with the camera `told` say; CAMERA took the images."""
    for _ in range(count):
        uv = rng.uniform((5, 5), (635, 475), (300, 2))
        points = CAMERA.unproject(uv, rng.uniform(2, 6, 300))
        yield PnpProblem(
            uv + rng.normal(size=uv.shape) * noise_px, points, np.eye(4), told, 3.0
        ).camera_fit()


def _said(check, told, fits):
    return [check.add(told, fit) for fit in fits]


def test_the_right_calibration_is_left_in_peace():
    assert not any(_said(CameraCheck(), CAMERA, _fits(CAMERA, 60, np.random.default_rng(0))))


@pytest.mark.parametrize('changed', [{'fx': 515.0, 'fy': 515.0}, {'cx': 330.0}, {'fy': 488.0}])
def test_a_wrong_calibration_is_named_with_what_would_fit(changed):
    told = replace(CAMERA, **changed)
    said = _said(CameraCheck(), told, _fits(told, 31, np.random.default_rng(1)))
    assert not any(said[:29])  # a few answers are no proof
    would = said[-1].split('does not fit the map, ')[1].split(' would')[0]
    numbers = [float(part.split()[1]) for part in would.split(', ')]
    assert numbers == pytest.approx([500, 500, 320, 240], abs=2)


def test_another_camera_starts_anew():
    told, check, rng = replace(CAMERA, fx=515.0, fy=515.0), CameraCheck(), np.random.default_rng(2)
    assert _said(check, told, _fits(told, 30, rng))[-1]
    assert not any(_said(check, CAMERA, _fits(CAMERA, 30, rng)))


def test_a_rough_map_where_half_of_the_answers_object_is_no_proof():
    objects = CameraFit(np.array([0.02, 0.02, 0, 0]), 100.0, np.zeros(6), np.eye(6))
    agrees = CameraFit(np.array([0.02, 0.02, 0, 0]), 20.0, np.zeros(6), np.eye(6))
    assert not any(_said(CameraCheck(), CAMERA, [objects, agrees] * 30))
    check = CameraCheck()
    assert _said(check, CAMERA, [objects] * 30)[-1]
    assert not _said(check, CAMERA, [agrees] * 30)[-1]  # it calms down again


def test_a_change_too_small_to_matter_is_not_said():
    tiny = CameraFit(np.array([0.002, 0.002, 0.001, 0]), 500.0, np.zeros(6), np.eye(6))
    assert not any(_said(CameraCheck(), CAMERA, [tiny] * 40))


def test_the_pose_changes_back_with_the_calibration():
    """`pose_change` leads from the pose with the wrong camera to the true one."""
    rng, told = np.random.default_rng(3), replace(CAMERA, cx=330.0)
    fit = next(_fits(told, 1, rng, noise_px=0.05))
    # Seen from the identity, which is the true pose here, nothing needs to move.
    assert np.abs(fit.pose_change).max() < 5e-3
    assert perturb_pose(np.eye(4), fit.pose_change) == pytest.approx(np.eye(4), abs=5e-3)
