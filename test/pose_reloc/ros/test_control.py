"""What the node is told over DDS: services, ~/trigger; and what is published when it matters."""

import re

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose
from pose_reloc.ros.messages import image_from_message, matrix_from_pose, pose_message, stamp_ns

pytest.importorskip('rclpy', reason='needs rclpy')

# Correlated, and some correlations are negative.
A = np.random.default_rng(0).normal(size=(6, 6))
COVARIANCE = (A @ A.T) * 1e-4
LOST = 254
SECOND = 1_000_000_000


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(21)
    return [random_pose(rng) for _ in range(8)]


@pytest.fixture
def start(make_system, make_fake, poses):
    """start(map_T_scene, **parameters): an active node that answers when it is asked."""

    def make(map_T_scene=None, **parameters):
        defaults = {'max_image_age': 0.0, 'base_frame': '', 'mode': 'on_demand'}
        system = make_system(make_fake(poses, COVARIANCE, map_T_scene), **defaults | parameters)
        system.start()
        return system

    return make


@pytest.fixture
def ask(wait):
    """ask(system): calls ~/relocalize, waits until the node knows, and returns the future."""
    from std_srvs.srv import Trigger

    def call(system):
        known = len(system.node.demand._waiting)
        future = system.call_async(Trigger, 'relocalize', Trigger.Request())
        wait(lambda: len(system.node.demand._waiting) > known)
        return future

    return call


def enable(system, on):
    from std_srvs.srv import SetBool

    response = system.call(SetBool, 'enable', SetBool.Request(data=on))
    assert response.success
    return response.message


def reasons(status):
    return {v.key: v.value for v in status.values}['reasons']


def test_relocalize_waits_for_the_next_image_and_tells_its_pose(start, poses, ask, wait):
    system = start()
    outcome, status = system.outcome(system.send(1))
    assert (outcome, reasons(status)) == ('skipped', 'not asked for')
    future, other = ask(system), ask(system)
    assert system.state() == 'active', 'the node goes on while a caller waits'
    assert not future.done()
    stamp = system.send(2)
    wait(lambda: future.done() and other.done())
    response = future.result()
    assert response.success
    assert other.result().message == response.message, 'one image serves both'
    np.testing.assert_allclose(system.pose(stamp)[1], poses[2], atol=1e-9)

    numbers = [float(x) for x in re.findall(r'-?\d+\.\d+', response.message)]
    np.testing.assert_allclose(numbers[:3], poses[2][:3, 3], atol=5e-4)
    std = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_allclose(numbers[6:9], std[:3], atol=5e-4)
    np.testing.assert_allclose(numbers[9:12], np.degrees(std[3:]), atol=5e-3)
    assert f'stamp {stamp // SECOND}.{stamp % SECOND:09d}' in response.message
    assert system.outcome(system.send(3))[0] == 'skipped', 'one request is one image'
    assert system.relocalizer.seen == [2]


def test_relocalize_says_why_there_is_no_pose(start, ask, wait):
    from std_srvs.srv import Trigger

    system = start(relocalize_timeout=0.3)
    future = ask(system)
    system.send(LOST)
    wait(future.done)
    assert not future.result().success and 'dark' in future.result().message

    future = ask(system)
    wait(future.done)
    assert not future.result().success
    assert 'no image could be answered within 0.3 s' in future.result().message

    assert system.set_parameter('relocalize_timeout', 60.0)[0]
    future = ask(system)
    assert system.transition('deactivate')
    wait(future.done)
    assert 'deactivated' in future.result().message
    response = system.call(Trigger, 'relocalize', Trigger.Request())
    assert not response.success and 'not active' in response.message


def test_an_image_too_old_does_not_answer_a_request(start, ask, wait):
    system = start(max_image_age=1.0)
    future = ask(system)
    now = system.node.get_clock().now().nanoseconds
    assert system.outcome(system.send(1, now - 60 * SECOND))[0] == 'dropped'
    assert not future.done()
    system.send(1, system.node.get_clock().now().nanoseconds)
    wait(future.done)
    assert future.result().success


def test_enable_switches_between_all_images_and_those_asked_for(start):
    system = start(mode='continuous')
    assert system.outcome(system.send(1))[0] == 'answered'
    assert enable(system, False) == 'mode on_demand'
    assert system.node.get_parameter('mode').value == 'on_demand'
    assert system.outcome(system.send(1))[0] == 'skipped'
    assert enable(system, True) == 'mode continuous'
    assert system.outcome(system.send(1))[0] == 'answered'
    # It holds for the next activation, and may be told before it.
    assert system.transition('deactivate')
    enable(system, False)
    assert system.transition('activate')
    system.wait_connected()
    assert system.outcome(system.send(1))[0] == 'skipped'


def test_rate_limit(start):
    system = start(mode='continuous', rate_limit=0.01)
    found = [system.outcome(system.send(1)) for _ in range(3)]
    assert [outcome for outcome, _ in found] == ['answered', 'skipped', 'skipped']
    assert reasons(found[-1][1]) == 'rate limit'


def test_trigger_tells_where_to_look(start, poses, random_pose, wait):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    rng = np.random.default_rng(3)
    map_T_scene, base_T_camera, map_T_base = (random_pose(rng) for _ in range(3))
    system = start(map_T_scene, base_frame='base_link')
    system.send_transform('base_link', 'camera', base_T_camera, static=True)
    publisher = system.client.create_publisher(PoseWithCovarianceStamped, '/pose_reloc/trigger', 10)
    wait(lambda: publisher.get_subscription_count() > 0)
    waiting = system.node.demand._waiting
    far = np.diag([1.0, 4.0, 9.0, 0.2, 0.4, 0.6])
    publisher.publish(pose_message(1, 'odom', poses[0], far))  # not the map: no request
    publisher.publish(pose_message(1, 'map', map_T_base, far))
    waiting = wait(lambda: list(system.node.demand._waiting))
    assert len(waiting) == 1
    np.testing.assert_allclose(waiting[0].prior.map_T_base, map_T_base, atol=1e-9)
    assert system.outcome(system.send(5))[0] == 'answered'

    prior = system.relocalizer.priors[-1]
    np.testing.assert_allclose(
        prior.world_T_camera, invert_pose(map_T_scene) @ map_T_base @ base_T_camera, atol=1e-9
    )
    # The camera hangs on a lever: its rotation is as uncertain as that of the base, turned into the
    # axes of the scene, and its position is more uncertain.
    scene_R_map = map_T_scene[:3, :3].T
    np.testing.assert_allclose(
        prior.covariance_66[3:, 3:], scene_R_map @ far[3:, 3:] @ scene_R_map.T, atol=1e-9
    )
    assert np.trace(prior.covariance_66[:3, :3]) > np.trace(far[:3, :3])
    assert system.outcome(system.send(5))[0] == 'skipped'


@pytest.mark.parametrize(
    ('wanted', 'status'), [(True, 'REFINED'), (False, 'REFINED'), (True, 'COARSE')]
)
def test_odometry_tells_where_to_look_next(start, poses, random_pose, wanted, status):
    rng = np.random.default_rng(4)
    odom_T_base = [random_pose(rng) for _ in range(2)]
    system = start(mode='continuous', base_frame='base_link', odometry_prior=wanted)
    system.relocalizer.status = status
    system.send_transform('base_link', 'camera', np.eye(4), static=True)
    stamps = [system.next_stamp() for _ in range(2)]
    for index, stamp in enumerate(stamps):
        system.send_transform('odom', 'base_link', odom_T_base[index], stamp)
        system.node._transforms.lookup('odom', 'base_link', stamp, timeout=20.0)
        assert system.outcome(system.send(index, stamp))[0] == 'answered'
    first, second = system.relocalizer.priors
    assert first is None, 'nothing is known before the first answer'
    if not wanted or status == 'COARSE':
        assert second is None
        return
    carried = poses[0] @ invert_pose(odom_T_base[0]) @ odom_T_base[1]
    np.testing.assert_allclose(second.world_T_camera, carried, atol=1e-9)


def test_initial_pose_speaks_once_and_again_when_asked(start, poses, ask, wait):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    system = start(mode='continuous')
    assert system.outcome(system.send(0))[0] == 'answered', 'nobody listens yet: kept for later'
    came = system.listen(PoseWithCovarianceStamped, '/initial_pose')
    wait(lambda: system.node.publication.initial_pose.get_subscription_count() > 0)
    assert system.outcome(system.send(LOST))[0] == 'refused'
    stamp = system.send(1)
    first = wait(lambda: came and came[0])
    assert (first.header.frame_id, stamp_ns(first.header.stamp)) == ('map', stamp)
    np.testing.assert_allclose(matrix_from_pose(first.pose.pose), poses[1], atol=1e-9)
    covariance = np.array(first.pose.covariance).reshape(6, 6)
    assert (COVARIANCE < 0).any()
    np.testing.assert_array_equal(covariance, np.diag(np.diag(COVARIANCE)))

    assert system.outcome(system.send(2))[0] == 'answered'
    future = ask(system)
    last = system.send(3)
    wait(lambda: future.done() and len(came) > 1)
    assert [stamp_ns(message.header.stamp) for message in came] == [stamp, last]


def test_initial_pose_waits_until_the_mounting_is_known(start, poses, wait):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    system = start(mode='continuous', base_frame='base_link', mounting_timeout=0.1, tf_timeout=0.0)
    came = system.listen(PoseWithCovarianceStamped, '/initial_pose')
    wait(lambda: system.node.publication.initial_pose.get_subscription_count() > 0)
    # The camera is taken as the base, though robot_state_publisher may only be slow to start.
    wait(lambda: system.outcome(system.send(0))[0] == 'answered')
    system.send_transform('base_link', 'camera', poses[2], static=True)
    wait(lambda: system.node._transforms.tree.can_connect('base_link', 'camera'))
    for _ in range(2):
        system.pose(system.send(1))
    first = wait(lambda: came and came[0])
    truth = poses[1] @ invert_pose(poses[2])
    np.testing.assert_allclose(matrix_from_pose(first.pose.pose), truth, atol=1e-9)
    assert len(came) == 1


def test_the_raw_pose_is_not_gated(start, poses, wait):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    system = start(mode='continuous')
    came = system.listen(PoseWithCovarianceStamped, '/pose_reloc/pose_raw')
    wait(lambda: system.node.publication.raw_pose.get_subscription_count() > 0)
    stamp = system.send(LOST)
    assert system.outcome(stamp)[0] == 'refused'
    _, raw = system.pose(stamp, came)
    # The fake's network is a metre off along x.
    shifted = poses[LOST % len(poses)].copy()
    shifted[0, 3] += 1.0
    np.testing.assert_allclose(raw, shifted, atol=1e-9)
    assert system.poses == []


def test_the_picture_is_drawn_only_for_somebody(start, wait, monkeypatch):
    from sensor_msgs.msg import Image

    from pose_reloc.ros import publication

    drawn = []
    draw = publication.draw
    monkeypatch.setattr(publication, 'draw', lambda *args: drawn.append(1) or draw(*args))
    system = start(mode='continuous')
    assert system.outcome(system.send(100))[0] == 'answered'
    came = system.listen(Image, '/pose_reloc/debug_image')
    wait(lambda: system.node.publication.debug_image.get_subscription_count() > 0)
    assert drawn == []
    stamp = system.send(100, frame_id='front_camera')
    picture = wait(lambda: came and came[0])
    assert stamp_ns(picture.header.stamp) == stamp
    assert picture.header.frame_id == 'front_camera'
    image = image_from_message(picture)
    assert image.shape == (24, 32, 3)
    assert (image[0] == 100).all() and (image != 100).any(), 'the picture and its caption'
    assert len(drawn) == 1
