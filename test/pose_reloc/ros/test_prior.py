"""Priors: what a message states, and where odometry has carried the last answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix, pose_residual
from pose_reloc.ros.messages import MessageError
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.prior import OdometryPrior, prior_from_message
from pose_reloc.ros.transforms import TransformTree

SECOND = 1_000_000_000
COVARIANCE = np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.003])
# What is added for a robot that stands still: 5 cm and 2 deg.
STANDING = np.diag([0.05**2] * 3 + [(np.pi / 90) ** 2] * 3)


def message(frame='map', covariance=COVARIANCE, xyz=(1.0, 2.0, 3.0), xyzw=(0.0, 0.0, 0.6, 0.8)):
    position = SimpleNamespace(**dict(zip('xyz', xyz)))
    orientation = SimpleNamespace(**dict(zip('xyzw', xyzw)))
    pose = SimpleNamespace(position=position, orientation=orientation)
    with_covariance = SimpleNamespace(pose=pose, covariance=np.asarray(covariance).reshape(36))
    return SimpleNamespace(header=SimpleNamespace(frame_id=frame), pose=with_covariance)


def test_a_message_states_pose_and_covariance():
    prior = prior_from_message(message('/map', COVARIANCE * 100), 'map')
    np.testing.assert_allclose(prior.map_T_base[:3, 3], [1, 2, 3])
    # A turn about z with cos(a/2) = 0.8, sin(a/2) = 0.6: cos(a) = 0.28, sin(a) = 0.96.
    np.testing.assert_allclose(
        prior.map_T_base[:3, :3], [[0.28, -0.96, 0], [0.96, 0.28, 0], [0, 0, 1]], atol=1e-12
    )
    np.testing.assert_allclose(prior.covariance_66, COVARIANCE * 100)


def test_zeros_do_not_mean_infinite_trust():
    prior = prior_from_message(message(covariance=np.zeros((6, 6))), 'map')
    fifteen_degrees = np.pi / 12
    np.testing.assert_allclose(
        prior.covariance_66, np.diag([0.25] * 3 + [fifteen_degrees**2] * 3), rtol=1e-12
    )


@pytest.mark.parametrize(
    ('bad', 'word'),
    [
        (message(frame='odom'), "must be 'map', got 'odom'"),
        (message(frame=''), "must be 'map'"),
        (message(covariance=np.full((6, 6), np.nan)), 'NaN'),
        (message(covariance=-np.eye(6)), 'negative'),
        (message(xyzw=(0, 0, 0, 0)), 'quaternion'),
        (message(xyz=(np.inf, 0, 0)), 'position'),
    ],
)
def test_what_cannot_be_a_prior(bad, word):
    with pytest.raises(MessageError, match=word):
        prior_from_message(bad, 'map')


class Robot:
    """A robot whose odometry is on TF, and the prior it gives."""

    def __init__(self):
        self.tree = TransformTree()
        self.odometry = OdometryPrior(NodeSettings(), self.tree.lookup)

    def drive(self, second, odom_T_base):
        self.tree.set('odom', 'base_link', int(second * SECOND), odom_T_base)


@pytest.fixture
def robot():
    return Robot()


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(5)
    return [random_pose(rng) for _ in range(4)]


def test_odometry_carries_the_last_answer_on(robot, poses):
    map_T_odom, odom_T_base0, odom_T_base1, odom_T_base2 = poses
    for second, pose in ((1, odom_T_base0), (2, odom_T_base1), (3, odom_T_base2)):
        robot.drive(second, pose)
    assert robot.odometry.at(SECOND) is None, 'there was no answer yet'
    robot.odometry.accepted(SECOND, map_T_odom @ odom_T_base0, COVARIANCE)
    for second, odom_T_base in ((1, odom_T_base0), (2, odom_T_base1), (3, odom_T_base2)):
        prior = robot.odometry.at(second * SECOND)
        np.testing.assert_allclose(prior.map_T_base, map_T_odom @ odom_T_base, atol=1e-9)


def test_without_drift_the_covariance_is_that_of_the_moved_answer(robot, poses, monkeypatch):
    """Against draws: wrong answers, each carried on by the exact odometry."""
    monkeypatch.setattr('pose_reloc.ros.prior._DRIFT_M_PER_M', 0.0)
    monkeypatch.setattr('pose_reloc.ros.prior._DRIFT_RAD_PER_M', 0.0)
    monkeypatch.setattr('pose_reloc.ros.prior._DRIFT_RAD_PER_RAD', 0.0)
    monkeypatch.setattr('pose_reloc.ros.prior._LEAST_DRIFT_STD', np.zeros(6))
    map_T_base0, odom_T_base0, odom_T_base1, _ = poses
    robot.drive(1, odom_T_base0)
    robot.drive(2, odom_T_base1)
    small = COVARIANCE * 1e-4
    robot.odometry.accepted(SECOND, map_T_base0, small)
    prior = robot.odometry.at(2 * SECOND)
    drawn = np.random.default_rng(0).multivariate_normal(np.zeros(6), small, 20000)
    moved = perturb_pose(map_T_base0, drawn) @ invert_pose(odom_T_base0) @ odom_T_base1
    sampled = np.cov(pose_residual(moved, prior.map_T_base).T)
    np.testing.assert_allclose(prior.covariance_66, sampled, atol=0.03 * sampled.max())


def test_the_covariance_grows_with_the_way_not_with_the_distance(robot):
    """There and back again: the robot is where it was, but its odometry has drifted."""
    steps = [0.0, 1.0, 2.0, 1.0, 0.0]
    robot.odometry.accepted(0, np.eye(4), COVARIANCE)
    previous = -1.0
    for second, x in enumerate(steps):
        robot.drive(second, pose_matrix(np.eye(3), [x, 0, 0]))
        prior = robot.odometry.at(second * SECOND)
        spread = np.trace(prior.covariance_66)
        assert spread > previous
        previous = spread
    np.testing.assert_allclose(prior.map_T_base, np.eye(4), atol=1e-12)
    # Five centimetres at least, and four metres at five percent.
    np.testing.assert_allclose(prior.covariance_66[0, 0], COVARIANCE[0, 0] + 0.05**2 + 0.2**2)


def test_every_answer_is_a_new_beginning(robot, poses):
    """Neither the drift before it counts, nor where odometry was at the answer before."""
    map_T_base0, map_T_base1, odom_T_base0, odom_T_base1 = poses
    robot.drive(1, odom_T_base0)
    robot.drive(2, odom_T_base1)
    robot.odometry.accepted(SECOND, map_T_base0, COVARIANCE)
    robot.odometry.at(SECOND)
    robot.odometry.at(2 * SECOND)
    robot.odometry.accepted(2 * SECOND, map_T_base1, COVARIANCE)
    prior = robot.odometry.at(2 * SECOND)
    np.testing.assert_allclose(prior.map_T_base, map_T_base1, atol=1e-9)
    np.testing.assert_allclose(prior.covariance_66, COVARIANCE + STANDING, atol=1e-12)


def test_a_robot_that_stands_still_stays_certain(robot):
    for second in range(10):
        robot.drive(second, np.eye(4))
    robot.odometry.accepted(SECOND, np.eye(4), COVARIANCE)
    for second in range(2, 10):
        prior = robot.odometry.at(second * SECOND)
    np.testing.assert_allclose(prior.covariance_66, COVARIANCE + STANDING)


def test_late_odometry_is_not_waited_for(robot, poses):
    robot.drive(1, poses[0])
    robot.odometry.accepted(SECOND, poses[1], COVARIANCE)
    np.testing.assert_allclose(robot.odometry.at(9 * SECOND).map_T_base, poses[1], atol=1e-9)


def test_without_odometry_there_is_no_prior(robot, poses):
    robot.odometry.accepted(SECOND, poses[1], COVARIANCE)
    assert robot.odometry.at(SECOND) is None
    robot.tree.set('world', 'base_link', SECOND, poses[0])
    assert robot.odometry.at(SECOND) is None


def test_a_robot_that_was_carried_away_is_looked_for_everywhere(robot, poses):
    robot.drive(1, poses[0])
    robot.odometry.accepted(SECOND, poses[1], COVARIANCE)
    for _ in range(4):
        robot.odometry.refused()
    assert robot.odometry.at(SECOND) is not None
    robot.odometry.refused()
    assert robot.odometry.at(SECOND) is None
    robot.odometry.accepted(SECOND, poses[1], COVARIANCE)
    assert robot.odometry.at(SECOND) is not None
    robot.odometry.clear()
    assert robot.odometry.at(SECOND) is None
