"""The metrics against numbers computed by hand, sampling and OpenCV."""

import json
import math

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix, pose_residual
from training.metrics import (
    RECALL_THRESHOLDS,
    coverage,
    error_metrics,
    mean_pose,
    mean_reprojection_px,
    nees,
    per_frame_errors,
    pose_metrics,
    reprojection,
    write_tum,
)


def random_poses(N, seed):
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(N, random_state=rng).as_matrix()
    return pose_matrix(rotation, rng.normal(scale=3, size=(N, 3)))


def off_by(poses, metres, degrees, seed=0):
    """The poses moved by given distances along, and turned by given angles about, random axes."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(2, len(poses), 3))
    along, about = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    turn = Rotation.from_rotvec(np.deg2rad(degrees)[:, None] * about).as_matrix()
    moved = poses[:, :3, 3] + np.asarray(metres)[:, None] * along
    return pose_matrix(poses[:, :3, :3] @ turn, moved)


def test_statistics_by_hand():
    metres = np.array([0.004, 0.04, 0.2, 0.4, 2.5])
    degrees = np.array([3, 170, 0.5, 12, 4.0])
    true = random_poses(5, 0)
    found = pose_metrics(true, off_by(true, metres, degrees))
    assert found['frames'] == 5
    assert found['median_position_m'] == pytest.approx(0.2)
    assert found['mean_position_m'] == pytest.approx(3.144 / 5)
    assert found['max_position_m'] == pytest.approx(2.5)
    assert found['p90_position_m'] == pytest.approx(0.4 + 0.6 * 2.1)  # linear between ranks 4 and 5
    assert found['p99_position_m'] == pytest.approx(0.4 + 0.96 * 2.1)
    assert found['median_rotation_deg'] == pytest.approx(4)
    assert found['mean_rotation_deg'] == pytest.approx(189.5 / 5)
    assert found['max_rotation_deg'] == pytest.approx(170)
    assert found['p90_rotation_deg'] == pytest.approx(12 + 0.6 * 158)
    assert found['recall'] == {
        '0.01m_1deg': 0,  # 4 mm, but 3 deg
        '0.02m_2deg': 0,
        '0.05m_5deg': 0.2,
        '0.1m_5deg': 0.2,
        '0.25m_10deg': 0.4,
        '0.5m_15deg': 0.6,
        '2m_2deg': 0.2,  # 0.2 m and 0.5 deg
        '2m_5deg': 0.4,
        '3m_5deg': 0.6,
    }
    assert json.loads(json.dumps(found)) == found


def test_tiny_and_opposite_rotations_keep_their_digits():
    degrees = np.array([0.0, 1e-6, 179.9999, 180.0])
    true = random_poses(4, 1)
    _, found = per_frame_errors(true, off_by(true, np.zeros(4), degrees))
    np.testing.assert_allclose(found, degrees, atol=1e-8)


def test_no_frames_are_well_defined():
    found = pose_metrics([], np.zeros((0, 4, 4)))
    assert found['frames'] == 0
    assert found['median_position_m'] is None and found['p99_rotation_deg'] is None
    assert len(found['recall']) == len(RECALL_THRESHOLDS)
    assert set(found['recall'].values()) == {0.0}
    assert json.loads(json.dumps(found)) == found


def test_silence_counts_in_recall_only():
    metres, degrees = np.array([0.04, np.inf, 0.3, np.inf]), np.array([1, np.inf, 12, np.inf])
    found = error_metrics(metres, degrees)
    assert found['median_position_m'] == pytest.approx(0.17)
    assert found['max_rotation_deg'] == 12
    assert found['recall']['0.05m_5deg'] == 0.25 and found['recall']['0.5m_15deg'] == 0.5
    silent = error_metrics(np.full(3, np.inf), np.full(3, np.inf))
    assert silent['median_position_m'] is None and set(silent['recall'].values()) == {0.0}


def test_different_numbers_of_poses_are_refused():
    with pytest.raises(ValueError, match='3 true poses but 2 estimates'):
        pose_metrics(random_poses(3, 0), random_poses(2, 0))
    with pytest.raises(ValueError, match=r'\(4, 4\)'):
        pose_metrics(np.eye(4), np.eye(4))


def test_reprojection_against_opencv():
    """Two images with 30 and 7 points: every point counts the same, not every image."""
    rng = np.random.default_rng(2)
    cameras = [Camera(640, 480, 525, 530, 320, 240), Camera(1920, 1080, 1600, 1650, 950, 545)]
    true = random_poses(2, 2)
    estimate = off_by(true, np.array([0.05, 0.2]), np.array([1.0, 4.0]))
    points, distances = [], []
    for camera, T, T_hat, K in zip(cameras, true, estimate, (30, 7)):
        local = rng.uniform((-1, -1, 2), (1, 1, 5), size=(K, 3))
        world = local @ T[:3, :3].T + T[:3, 3]
        uv = []
        for pose in (invert_pose(T), invert_pose(T_hat)):
            rvec = Rotation.from_matrix(pose[:3, :3]).as_rotvec()
            found, _ = cv2.projectPoints(world.reshape(-1, 1, 3), rvec, pose[:3, 3], camera.K, None)
            uv.append(found.reshape(-1, 2))
        points.append(world)
        distances += list(np.linalg.norm(uv[0] - uv[1], axis=1))
    assert max(distances) < 1000
    each = [reprojection(*image) for image in zip(points, cameras, true, estimate)]
    assert [r.points for r in each] == [30, 7]
    assert each[1].px == pytest.approx(np.mean(distances[30:]))
    assert mean_reprojection_px([*each, None]) == pytest.approx(np.mean(distances))


def test_reprojection_clips_each_point_and_counts_those_behind():
    camera = Camera(640, 480, 500, 500, 320, 240)
    true = np.eye(4)
    world = np.array([[0, 0, 2.0], [0, 0, 5.0], [0.1, 0, 5.0]])
    sideways = pose_matrix(np.eye(3), [0.04, 0, 0])  # 10, 4 and 4 px
    assert reprojection(world, camera, true, sideways).px == pytest.approx(6)
    far = pose_matrix(np.eye(3), [100.0, 0, 0])
    assert reprojection(world, camera, true, far).px == pytest.approx(1000)
    past = pose_matrix(np.eye(3), [0, 0, 3.0])  # the first point is behind, the third moves 15 px
    found = reprojection(world, camera, true, past)
    assert found.px == pytest.approx((1000 + 0 + 15) / 3)


def test_reprojection_is_in_the_undistorted_image():
    pinhole = Camera(640, 480, 500, 500, 320, 240)
    lens = Camera(640, 480, 500, 500, 320, 240, (-0.3, 0.1, 0, 0, 0))
    estimate = pose_matrix(np.eye(3), [0.1, 0, 0])
    world = np.array([[0.8, 0.6, 2.0]])
    for camera in (lens, pinhole):
        assert reprojection(world, camera, np.eye(4), estimate).px == pytest.approx(25)


def test_reprojection_without_points():
    camera = Camera(640, 480, 500, 500, 320, 240)
    for world in (np.zeros((0, 3)), np.array([[0, 0, -1.0]])):  # none, and one that is not seen
        assert reprojection(world, camera, np.eye(4), np.eye(4)) is None
    assert mean_reprojection_px([]) is None
    assert mean_reprojection_px([None]) is None


def test_nees_and_coverage_of_samples():
    """Errors drawn from a covariance have NEES 6 and fill its ellipsoids to the stated level."""
    rng = np.random.default_rng(3)
    A = rng.normal(size=(6, 6)) * np.array([0.1, 0.1, 0.2, 0.02, 0.01, 0.01])
    covariance = A.T @ A + 1e-6 * np.eye(6)
    estimate = random_poses(1, 3)
    drawn = rng.multivariate_normal(np.zeros(6), covariance, size=20000)
    drawn = drawn[np.linalg.norm(drawn[:, 3:], axis=1) < 3]
    residual = pose_residual(perturb_pose(np.repeat(estimate, len(drawn), 0), drawn), estimate)
    values = nees(residual, covariance)
    assert values.mean() == pytest.approx(6, abs=0.12)
    inside = coverage(values)
    assert list(inside) == ['0.5', '0.9', '0.95']
    for level, fraction in inside.items():
        assert fraction == pytest.approx(float(level), abs=0.015)
    overconfident = coverage(nees(residual, covariance / 4))
    assert overconfident['0.9'] < 0.3


def test_nees_by_hand():
    covariance = np.diag([0.04, 1, 1, 1, 1, 0.01])
    residual = np.array([[0.4, 0, 0, 0, 0, 0.1], [0, 2, 0, 0, 0, 0]])
    np.testing.assert_allclose(nees(residual, covariance), [5, 4])
    each = np.stack([covariance, 4 * covariance])
    np.testing.assert_allclose(nees(residual, each), [5, 1])
    assert coverage([], levels=(0.5,)) == {'0.5': None}


def test_mean_pose_of_rotations_about_one_axis():
    angles = np.array([10, 20, 60.0])
    R = Rotation.from_euler('z', angles[:, None], degrees=True).as_matrix()
    poses = pose_matrix(R, [[0, 0, 1], [3, 0, 1], [0, 6, 4]])
    # Among rotations about z, sum |R - R_i|^2 is least where the sines of the differences cancel.
    expected = math.degrees(
        math.atan2(np.sin(np.deg2rad(angles)).sum(), np.cos(np.deg2rad(angles)).sum())
    )
    mean = mean_pose(poses)
    np.testing.assert_allclose(mean[:3, 3], [1, 2, 2])
    found = Rotation.from_matrix(mean[:3, :3]).as_euler('xyz', degrees=True)
    np.testing.assert_allclose(found, [0, 0, expected], atol=1e-9)
    with pytest.raises(ValueError, match='no poses'):
        mean_pose([])


def test_tum_file_reads_back(tmp_path):
    poses = random_poses(20, 4)
    stamps = 1_700_000_000 + np.arange(20) / 30
    path = tmp_path / 'trajectory.txt'
    write_tum(path, stamps, poses)
    rows = np.loadtxt(path)
    np.testing.assert_allclose(rows[:, 0], stamps, rtol=0, atol=1e-6)
    back = pose_matrix(Rotation.from_quat(rows[:, 4:]).as_matrix(), rows[:, 1:4])
    np.testing.assert_allclose(back, poses, atol=1e-8)
    with pytest.raises(ValueError):
        write_tum(path, stamps[:3], poses)


def test_tum_columns_by_hand(tmp_path):
    """90 deg about z: qz = qw = sqrt(1/2), and w comes last."""
    R = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    path = tmp_path / 'one.txt'
    write_tum(path, [1.5], pose_matrix(R, [[1, 2, 3]]))
    half = math.sqrt(0.5)
    np.testing.assert_allclose(np.loadtxt(path), [1.5, 1, 2, 3, 0, 0, half, half], atol=1e-9)
