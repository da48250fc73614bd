"""The node over real DDS, with a relocalizer whose answers are known."""

import threading

import numpy as np
import pytest

from pose_reloc.errors import SceneError
from pose_reloc.geometry import invert_pose, pose_error, pose_residual, perturb_pose
from pose_reloc.ros.messages import matrix_from_transform, stamp_ns

pytest.importorskip('rclpy', reason='needs rclpy')

COVARIANCE = np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.003])


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(1)
    return [random_pose(rng) for _ in range(8)]


def covariance_of(message):
    return np.array(message.pose.covariance).reshape(6, 6)


def test_pose_transform_and_covariance_of_the_base(make_system, make_fake, poses, random_pose):
    rng = np.random.default_rng(2)
    map_T_scene, base_T_camera = random_pose(rng), random_pose(rng)
    system = make_system(make_fake(poses, COVARIANCE, map_T_scene), max_image_age=0.0)
    system.start()
    system.send_transform('base_link', 'camera', base_T_camera, static=True)
    stamp = system.send(3)
    message, map_T_base = system.pose(stamp)
    truth = map_T_scene @ poses[3] @ invert_pose(base_T_camera)
    assert message.header.frame_id == 'map'
    np.testing.assert_allclose(map_T_base, truth, atol=1e-9)

    # Independent truth of the covariance: move the camera by drawn errors, look at the base.
    drawn = rng.multivariate_normal(np.zeros(6), COVARIANCE * 1e-4, 20000)
    moved = map_T_scene @ perturb_pose(poses[3], drawn) @ invert_pose(base_T_camera)
    sampled = np.cov(pose_residual(moved, truth).T) * 1e4
    np.testing.assert_allclose(covariance_of(message), sampled, atol=0.03 * sampled.max())

    _, map_T_camera = system.pose(stamp, system.camera_poses)
    np.testing.assert_allclose(map_T_camera, map_T_scene @ poses[3], atol=1e-9)


def test_separate_transform_is_a_leaf(make_system, make_fake, poses, wait):
    system = make_system(make_fake(poses, COVARIANCE), base_frame='', max_image_age=0.0)
    system.start()
    stamp = system.send(1)
    sent = wait(lambda: [t for t in system.transforms if stamp_ns(t.header.stamp) == stamp])
    assert (sent[0].header.frame_id, sent[0].child_frame_id) == ('map', 'base_link_reloc')
    np.testing.assert_allclose(matrix_from_transform(sent[0].transform), poses[1], atol=1e-9)
