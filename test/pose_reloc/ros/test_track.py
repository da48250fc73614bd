"""The parameter `track`, over DDS: a known path, an image that looks like another place."""

from dataclasses import replace

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix
from pose_reloc.ros.messages import stamp_ns
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.track import Track
from pose_reloc.ros.transforms import TransformTree

pytest.importorskip('rclpy', reason='needs rclpy')

STD = np.array([0.02] * 3 + [0.01] * 3)
OUTLIER = 200


def way(count):
    """Poses of the base on a circle, half a metre a step: only odometry explains such a speed."""
    steps = np.repeat([[0.5, 0.0, 0.0, 0.0, 0.0, 0.2]], count, axis=0)
    poses = [np.eye(4)]
    for step in steps:
        poses.append(poses[-1] @ perturb_pose(np.eye(4), step))
    return poses


@pytest.fixture
def drive(make_system, make_fake, random_pose):
    """drive(**parameters): a system that tracks, the true poses of its base, and `step`."""
    from pose_reloc.relocalizer import Status

    def make(**parameters):
        rng = np.random.default_rng(6)
        base_T_camera, odom_T_map, map_T_scene = (random_pose(rng) for _ in range(3))
        truths = way(20)
        seen = [invert_pose(map_T_scene) @ truth @ base_T_camera for truth in truths]
        fake = make_fake(seen, np.diag(STD**2), map_T_scene)
        away = pose_matrix(np.eye(3), [0.0, 3.0, 0.0])
        localize = fake.localize

        def answer(image, camera=None, prior=None):
            index = int(image[0, 0, 0])
            estimate = localize(image * 0 + index % 100, camera, prior)
            pose = estimate.world_T_camera
            return replace(
                estimate,
                status=Status.REFINED,
                world_T_camera=away @ pose if index >= 100 else pose,
            )

        fake.localize = answer
        system = make_system(fake, max_image_age=0.0, track=True, **parameters)
        system.start()
        system.send_transform('base_link', 'camera', base_T_camera, static=True)

        def step(number, wrong=False, odometry=True):
            """Sends this image, answered 3 m off if `wrong`; returns stamp, outcome, reasons."""
            stamp = system.next_stamp()
            if odometry:
                odom_T_base = odom_T_map @ truths[number]
                system.send_transform('odom', 'base_link', odom_T_base, stamp)
                system.node._transforms.lookup('odom', 'base_link', stamp, 10.0)  # waits for it
            system.send(number + 100 * wrong, stamp)
            outcome, status = system.outcome(stamp)
            reasons = next(v.value for v in status.values if v.key == 'reasons')
            return stamp, outcome, reasons

        return system, truths, step

    return make


def test_three_answers_must_agree_and_an_outlier_is_refused(drive):
    system, truths, step = drive()
    found = [step(i, wrong=i in (1, 6)) for i in range(10)]
    told = [(outcome, reasons) for _, outcome, reasons in found]
    assert told[:3] == [('refused', 'waiting')] * 3, 'one of the three was the outlier'
    assert told[6] == ('refused', 'contradicts_track')
    assert told[3:6] + told[7:] == [('answered', '')] * 6
    for i in (3, 4, 5, 7, 8, 9):
        _, map_T_base = system.pose(found[i][0])
        np.testing.assert_allclose(map_T_base, truths[i], atol=1e-9)
    published = {stamp_ns(m.header.stamp) for m in system.poses}
    assert published == {found[i][0] for i in (3, 4, 5, 7, 8, 9)}
    # The prior was where odometry had carried the camera.
    prior, camera = system.relocalizer.priors[-1], system.relocalizer.poses[9]
    np.testing.assert_allclose(prior.world_T_camera, camera, atol=1e-6)


def test_without_odometry_so_fast_a_robot_is_not_believed(drive):
    _, _, step = drive()
    told = [step(i, odometry=False)[1:] for i in range(5)]
    assert told == [('refused', 'waiting')] * 5


def test_a_robot_that_was_carried_away_is_followed_after_three_answers(drive):
    _, _, step = drive()
    told = [step(i, wrong=i > 4)[1:] for i in range(10)]
    assert told[2:5] == [('answered', '')] * 3
    assert told[5:7] == [('refused', 'contradicts_track')] * 2
    assert told[7:] == [('answered', '')] * 3


def test_a_head_that_turns_is_part_of_the_way(random_pose):
    """The base stands or drives, the camera turns on it by 12 degrees an image; TF tells all."""
    from pose_reloc.relocalizer import PoseEstimate, Status

    rng = np.random.default_rng(9)
    base_T_camera, turn = random_pose(rng), perturb_pose(np.eye(4), [0, 0, 0, 0, 0, 0.21])
    tree, truths = TransformTree(), way(4)
    track = Track(NodeSettings(track=True), tree.lookup)
    for i, map_T_base in enumerate(truths):
        stamp = (1 + i) * 100_000_000
        tree.set('odom', 'base_link', stamp, map_T_base)
        base_T_camera = base_T_camera @ turn
        prior = track.predict(stamp, invert_pose(base_T_camera))
        map_T_camera = map_T_base @ base_T_camera
        if prior is not None:
            np.testing.assert_allclose(prior.world_T_camera, map_T_camera, atol=1e-9)
        doubt = track.judge(PoseEstimate(Status.REFINED, map_T_camera, np.diag(STD**2)))
        assert doubt == ('waiting' if i < 2 else '')
    assert prior is not None


def test_a_request_waits_until_its_answer_is_confirmed(drive, wait):
    from std_srvs.srv import Trigger

    system, _, step = drive(mode='on_demand')
    assert step(0)[1:] == ('skipped', 'not asked for')
    future = system.call_async(Trigger, 'relocalize', Trigger.Request())
    wait(lambda: system.node.demand._waiting)
    assert [step(i)[1] for i in (1, 2, 3)] == ['refused', 'refused', 'answered']
    wait(future.done)
    assert future.result().success and 'REFINED in map' in future.result().message
    assert step(4)[1:] == ('skipped', 'not asked for')
