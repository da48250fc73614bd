"""The node over real DDS, with a relocalizer whose answers are known."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from pose_reloc.errors import SceneError
from pose_reloc.geometry import invert_pose, perturb_pose, pose_residual
from pose_reloc.ros.messages import matrix_from_transform, stamp_message, stamp_ns

pytest.importorskip('rclpy', reason='needs rclpy')

COVARIANCE = np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.003])
LOST, CRASH = 254, 255
SECOND = 1_000_000_000


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(1)
    return [random_pose(rng) for _ in range(8)]


@pytest.fixture
def start(make_system, make_fake, poses):
    """start(**parameters): an active node whose camera is its base, without a check of age."""

    def make(fake=None, **parameters):
        fake = fake or make_fake(poses, COVARIANCE)
        system = make_system(fake, **{'max_image_age': 0.0, 'base_frame': ''} | parameters)
        system.start()
        return system

    return make


def sent_to(system, child):
    """The transforms to `child` that the client has seen on /tf."""
    return [t for t in list(system.transforms) if t.child_frame_id == child]


def levels(system, level):
    """The sentences of the diagnostics of this level that have come so far."""
    statuses = [array.status[0] for array in list(system.diagnostics)]
    return [s.message for s in statuses if s.level == level]


def test_pose_and_covariance_of_the_base(make_fake, start, poses, random_pose):
    rng = np.random.default_rng(2)
    map_T_scene, base_T_camera = random_pose(rng), random_pose(rng)
    system = start(make_fake(poses, COVARIANCE, map_T_scene), base_frame='base_link')
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
    covariance = np.array(message.pose.covariance).reshape(6, 6)
    np.testing.assert_allclose(covariance, sampled, atol=0.03 * sampled.max())
    np.testing.assert_array_equal(covariance, covariance.T)

    _, map_T_camera = system.pose(stamp, system.camera_poses)
    np.testing.assert_allclose(map_T_camera, map_T_scene @ poses[3], atol=1e-9)


def test_every_image_on_a_path_gets_its_own_pose_and_leaf_transform(start, poses, wait):
    system = start()
    for index, pose in enumerate(poses):
        stamp = system.send(index)
        _, found = system.pose(stamp)
        np.testing.assert_allclose(found, pose, atol=1e-9)
    leaves = wait(lambda: len(sent_to(system, 'base_link_reloc')) == len(poses) and system)
    for transform, pose in zip(sent_to(leaves, 'base_link_reloc'), poses):
        assert transform.header.frame_id == 'map'
        np.testing.assert_allclose(matrix_from_transform(transform.transform), pose, atol=1e-9)
    assert {t.child_frame_id for t in system.transforms} == {'base_link_reloc'}


@pytest.mark.parametrize('mode', ['map_to_odom', 'map_to_base', 'none'])
def test_what_each_tf_mode_sends(start, poses, random_pose, wait, mode):
    rng = np.random.default_rng(3)
    base_T_camera, odom_T_before, odom_T_after = (random_pose(rng) for _ in range(3))
    system = start(tf_mode=mode, base_frame='base_link', tf_tolerance=0.25, tf_timeout=2.0)
    system.send_transform('base_link', 'camera', base_T_camera, static=True)
    stamp = system.next_stamp()
    if mode == 'map_to_odom':
        system.send_transform('odom', 'base_link', odom_T_before, stamp - SECOND)
    system.send(2, stamp)
    truth = poses[2] @ invert_pose(base_T_camera)
    if mode == 'map_to_odom':
        # The odometry of the image's moment comes after the answer: the node waits for it.
        time.sleep(0.1)
        system.send_transform('odom', 'base_link', odom_T_after, stamp)
        wait(lambda: len(sent_to(system, 'odom')) >= 5)
        stamps = [stamp_ns(t.header.stamp) for t in sent_to(system, 'odom')]
        assert stamps == sorted(set(stamps))
        now = system.node.get_clock().now().nanoseconds
        assert now - SECOND < stamps[-1] - SECOND // 4 <= now
        for sent in sent_to(system, 'odom'):
            map_T_odom = matrix_from_transform(sent.transform)
            np.testing.assert_allclose(map_T_odom @ odom_T_after, truth, atol=1e-9)
    elif mode == 'map_to_base':
        sent = wait(lambda: sent_to(system, 'base_link'))[0]
        assert (sent.header.frame_id, stamp_ns(sent.header.stamp)) == ('map', stamp)
        np.testing.assert_allclose(matrix_from_transform(sent.transform), truth, atol=1e-9)
    else:
        system.pose(stamp)
        assert system.outcome(stamp)[0] == 'answered'
        assert [t for t in system.transforms if t.header.frame_id == 'map'] == []


def test_map_to_odom_gives_way_to_another_owner(start, poses, wait):
    system = start(tf_mode='map_to_odom', base_frame='camera')
    system.send_transform('map', 'odom', np.eye(4), SECOND)
    wait(lambda: system.node._tf_output.conflict())
    stamp = system.send(1)
    system.send_transform('odom', 'camera', np.eye(4), stamp)
    leaf = wait(lambda: sent_to(system, 'base_link_reloc'))[0]
    np.testing.assert_allclose(matrix_from_transform(leaf.transform), poses[1], atol=1e-9)
    from diagnostic_msgs.msg import DiagnosticStatus

    errors = wait(lambda: levels(system, DiagnosticStatus.ERROR))
    assert "another node publishes the transform 'map' -> 'odom'" in errors[0]
    assert [stamp_ns(t.header.stamp) for t in sent_to(system, 'odom')] == [SECOND]


def test_lost_is_silent_and_said_on_status(start):
    system = start()
    stamp = system.send(LOST)
    outcome, status = system.outcome(stamp)
    assert outcome == 'refused'
    assert {v.key: v.value for v in status.values}['reasons'] == 'dark'
    last = system.send(0)
    system.pose(last)
    system.pose(last, system.camera_poses)
    assert [stamp_ns(m.header.stamp) for m in system.poses] == [last]
    assert [stamp_ns(m.header.stamp) for m in system.camera_poses] == [last]


def test_bad_images_are_counted_and_survived(start):
    system = start()

    def broken(**fields):
        message = system.image(0, system.next_stamp())
        for name, value in fields.items():
            setattr(message, name, value)
        system.image_publisher.publish(message)
        return stamp_ns(message.header.stamp)

    for fields in (
        {'encoding': 'no such encoding'},
        {'data': b''},
        {'height': 4_000_000_000, 'width': 4_000_000_000},
        {'step': 1},
        {'height': 0},
    ):
        assert system.outcome(broken(**fields))[0] == 'failed'
    assert system.outcome(system.send(CRASH))[0] == 'failed'
    assert system.outcome(system.send(0, stamp=0))[0] == 'dropped'
    assert system.outcome(system.send(1))[0] == 'answered'
    outcomes = system.node.statistics.snapshot().outcomes
    assert {k.value: v for k, v in outcomes.items()} == {'failed': 6, 'dropped': 1, 'answered': 1}


def test_compressed_images(start, poses):
    import cv2
    from sensor_msgs.msg import CompressedImage

    system = start(image_transport='compressed')
    stamps = []
    good = cv2.imencode('.png', np.full((24, 32, 3), 5, np.uint8))[1].tobytes()
    for data in (good[:-20], b'not an image', b'', good):
        message = CompressedImage(format='png', data=data)
        stamps.append(system.next_stamp())
        message.header.stamp = stamp_message(stamps[-1])
        system.compressed_publisher.publish(message)
        outcome, _ = system.outcome(stamps[-1])
        assert outcome == ('answered' if data is good else 'failed')
    np.testing.assert_allclose(system.pose(stamps[-1])[1], poses[5], atol=1e-9)


def test_only_the_newest_image_is_localized(make_fake, start, poses):
    gate = threading.Event()
    fake = make_fake(poses, COVARIANCE, gate=gate)
    system = start(fake)
    first = system.send(0)
    stamps = [first]
    deadline = time.monotonic() + 20
    while not fake.seen and time.monotonic() < deadline:
        time.sleep(0.005)
    for index in range(1, 6):
        stamps.append(system.send(index))
        while system.node.statistics.snapshot().received <= index:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    gate.set()
    outcomes = [system.outcome(stamp)[0] for stamp in stamps]
    assert outcomes == ['answered'] + ['dropped'] * 4 + ['answered']
    assert fake.seen == [0, 5]


def test_the_reliability_of_the_publishers_is_asked_for(start, wait):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    system = start(reliability='auto')
    wait(lambda: system.node._images.reliability == 'reliable')
    best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    other = system.client.create_publisher(Image, 'image', best_effort)
    wait(lambda: system.node._images.reliability == 'best_effort')
    for publisher in (system.image_publisher, other):
        wait(lambda: publisher.get_subscription_count() == 1)  # noqa: B023
        stamp = system.next_stamp()
        publisher.publish(system.image(1, stamp))
        assert system.outcome(stamp)[0] == 'answered'
    system.client.destroy_publisher(other)
    wait(lambda: system.node._images.reliability == 'reliable')


def test_old_and_future_images_are_dropped_with_a_reason(start):
    system = start(max_image_age=1.0)
    now = system.node.get_clock().now().nanoseconds
    for offset, reason in ((-5, 'too old'), (60, 'in the future'), (0, '')):
        stamp = now + offset * SECOND
        system.send(0, stamp)
        outcome, status = system.outcome(stamp)
        assert {v.key: v.value for v in status.values}['reasons'] == reason
        assert outcome == ('dropped' if reason else 'answered')


def test_camera_info_is_used_and_its_change_noticed(start, wait):
    from sensor_msgs.msg import CameraInfo

    system = start()
    system.outcome(system.send(0))
    seen = system.relocalizer.cameras
    assert seen[-1] == system.relocalizer.scene.header.camera
    for fx in (40.0, 50.0):
        info = CameraInfo(width=64, height=48, distortion_model='plumb_bob')
        info.k = [fx, 0.0, 32.0, 0.0, fx, 24.0, 0.0, 0.0, 1.0]
        info.d = [0.1, 0.0, 0.0, 0.0, 0.0]
        system.info_publisher.publish(info)
        wait(lambda: getattr(system.node._pipeline.camera._camera, 'fx', 0) == fx)  # noqa: B023
        system.outcome(system.send(0))
        # The images are half the size of the camera_info: the camera is scaled to them.
        assert (seen[-1].width, seen[-1].height, seen[-1].fx) == (32, 24, fx / 2)
        assert seen[-1].distortion[0] == 0.1


def test_a_camera_info_that_was_sent_once_is_received(make_system, make_fake, poses, wait):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import CameraInfo

    system = make_system(make_fake(poses, COVARIANCE), max_image_age=0.0, base_frame='')
    kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    latched = system.client.create_publisher(CameraInfo, 'camera_info', kept)
    info = CameraInfo(width=32, height=24)
    info.k = [20.0, 0.0, 15.5, 0.0, 20.0, 11.5, 0.0, 0.0, 1.0]
    latched.publish(info)
    system.start()
    wait(lambda: system.node._pipeline.camera._camera)
    assert system.outcome(system.send(0))[0] == 'answered'
    assert system.relocalizer.cameras[-1].fx == 20.0
    # And those who keep nothing are still heard.
    info.k[0] = 25.0
    system.info_publisher.publish(info)
    wait(lambda: system.node._pipeline.camera._camera.fx == 25.0)


def test_a_rectified_topic_is_known_by_its_name(make_system, make_fake, poses, wait):
    from sensor_msgs.msg import CameraInfo

    arguments = ('-r', 'image:=image_rect')
    system = make_system(make_fake(poses, COVARIANCE), base_frame='', arguments=arguments)
    assert system.node.start()
    wait(lambda: system.info_publisher.get_subscription_count() > 0)
    info = CameraInfo(width=32, height=24, distortion_model='plumb_bob', d=[-0.3, 0.1, 0, 0, 0.0])
    info.k = [30.0, 0.0, 15.5, 0.0, 30.0, 11.5, 0.0, 0.0, 1.0]
    info.p = [24.0, 0.0, 15.5, 0.0, 0.0, 24.0, 11.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    system.info_publisher.publish(info)
    wait(lambda: any("'/image_rect'" in said for said in system.node._said.sentences()))


def test_a_coarse_answer_leaves_map_to_odom_to_odometry(make_fake, start, wait):
    near, off = np.eye(4), np.eye(4)
    off[0, 3] = 0.8
    fake = make_fake([near, off], np.eye(6) * 1e-4)
    system = start(fake, tf_mode='map_to_odom', base_frame='camera')
    for index, status, variance in ((0, 'REFINED', 1e-4), (1, 'COARSE', 0.16)):
        fake.status, fake.covariance_66 = status, np.eye(6) * variance
        stamp = system.next_stamp()
        system.send_transform('odom', 'camera', np.eye(4), stamp)
        _, pose = system.pose(system.send(index, stamp))
        np.testing.assert_allclose(pose, fake.poses[index], atol=1e-9)
        before = len(sent_to(system, 'odom'))
        wait(lambda: len(sent_to(system, 'odom')) > before + 1)  # noqa: B023
    for sent in sent_to(system, 'odom')[1:]:
        np.testing.assert_allclose(matrix_from_transform(sent.transform), near, atol=1e-9)


def test_a_missing_mounting_is_said_and_found_later(start, poses, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    system = start(base_frame='base_link', tf_timeout=0.0)
    system.send_transform('base_link', 'wheel', np.eye(4), static=True)
    stamp = system.send(4)
    outcome, status = system.outcome(stamp)
    assert outcome == 'unmounted'
    assert "no transform 'base_link' -> 'camera'" in status.message
    np.testing.assert_allclose(system.pose(stamp, system.camera_poses)[1], poses[4], atol=1e-9)
    assert 'mounting' in wait(lambda: levels(system, DiagnosticStatus.WARN))[-1]
    system.send_transform('base_link', 'camera', np.eye(4), static=True)
    wait(lambda: system.outcome(system.send(4))[0] == 'answered')
    assert stamp not in [stamp_ns(m.header.stamp) for m in system.poses]


def test_without_any_tf_the_camera_becomes_the_base(start, poses, wait):
    system = start(base_frame='base_link', mounting_timeout=0.3, tf_timeout=0.0)
    assert system.outcome(system.send(6))[0] == 'unmounted'
    wait(lambda: system.outcome(system.send(6))[0] == 'answered')
    np.testing.assert_allclose(system.pose(system.send(7))[1], poses[7], atol=1e-9)


def test_lifecycle_twice_round(make_system, make_fake, poses, wait):
    loaded = []

    def load(settings):
        fake = make_fake(poses, COVARIANCE)
        loaded.append(weakref.ref(fake))
        return fake

    system = make_system(None, load=load, max_image_age=0.0, base_frame='')
    for _ in range(2):
        assert system.state() == 'unconfigured'
        assert system.transition('configure')
        for _ in range(2):
            assert system.transition('activate')
            system.wait_connected()
            assert system.outcome(system.send(1))[0] == 'answered'
            assert system.transition('deactivate')
            wait(lambda: system.image_publisher.get_subscription_count() == 0)
            gc.collect()
            assert loaded[-1]() is None, 'the memory of the scene is freed'
        assert system.transition('cleanup')
    assert len(loaded) == 4
    assert [t.name for t in threading.enumerate()].count('inference') == 0


def test_a_scene_that_cannot_be_loaded_leaves_a_clean_node(make_system, make_fake, poses, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    broken = [True]

    def load(settings):
        if broken[0]:
            raise SceneError('the scene is torn')
        return make_fake(poses, COVARIANCE)

    def check(settings):
        if not settings.scene:
            raise SceneError('there is no scene')

    system = make_system(None, check=check, load=load, max_image_age=0.0, base_frame='')
    assert not system.transition('configure')
    assert system.state() == 'unconfigured'
    assert wait(lambda: levels(system, DiagnosticStatus.ERROR))[0] == 'there is no scene'
    assert system.set_parameter('scene', 'some file')[0]
    assert system.transition('configure')
    assert not system.transition('activate')
    assert system.state() == 'inactive'
    wait(lambda: 'the scene is torn' in levels(system, DiagnosticStatus.ERROR))
    assert system.image_publisher.get_subscription_count() == 0
    broken[0] = False
    assert system.transition('activate')
    system.wait_connected()
    assert system.outcome(system.send(1))[0] == 'answered'


def test_a_looped_clock_starts_again_from_nothing(make_fake, start, poses, wait):
    gate = threading.Event()
    gate.set()
    system = start(
        make_fake(poses, COVARIANCE, gate=gate),
        use_sim_time=True,
        max_image_age=1.0,
        base_frame='base_link',
        tf_timeout=0.0,
    )
    wait(lambda: system.clock_publisher.get_subscription_count() > 0)

    def turn_to(moment):
        system.tick(moment)
        wait(lambda: system.node.get_clock().now().nanoseconds == moment)

    def outcome_at(moment):
        system.statuses.clear()
        system.send(1, moment)
        return system.outcome(moment)[0]

    origin = 1000 * SECOND
    for _ in range(2):
        turn_to(origin)
        # The mounting is dynamic here: what was said of this time before the loop must not count.
        assert outcome_at(origin + 1) == 'unmounted'
        for moment in (origin, origin + 9 * SECOND):
            system.send_transform('base_link', 'camera', np.eye(4), moment)
        wait(lambda: outcome_at(origin + 2) == 'answered')
        turn_to(origin + 9 * SECOND)
        assert outcome_at(origin + 3) == 'dropped', 'the clock has gone on'

    # An image that is being localized while the clock jumps belongs to the past.
    gate.clear()
    moment = origin + 9 * SECOND
    system.statuses.clear()
    seen = len(system.relocalizer.seen)
    system.send(2, moment)
    wait(lambda: len(system.relocalizer.seen) > seen)
    turn_to(origin)
    gate.set()
    outcome, status = system.outcome(moment)
    assert outcome == 'dropped'
    assert 'clock jump' in status.message


def test_transforms_that_a_loop_of_the_clock_overtakes_do_no_lasting_harm(start, wait):
    system = start(use_sim_time=True, base_frame='base_link', tf_timeout=0.0)
    wait(lambda: system.clock_publisher.get_subscription_count() > 0)
    for moment in (1000 * SECOND, 900 * SECOND):
        system.tick(moment)
        wait(lambda: system.node.get_clock().now().nanoseconds == moment)  # noqa: B023
    system.send_transform('base_link', 'camera', np.eye(4), 1001 * SECOND)
    wait(system.node._transforms.tree.frames)
    moments = iter(range(900 * SECOND, 1000 * SECOND, SECOND // 10))

    def drive():
        moment = next(moments)
        system.tick(moment)
        system.send_transform('base_link', 'camera', np.eye(4), moment)
        system.send(1, moment)
        return system.outcome(moment)[0] == 'answered'

    wait(drive)


def test_another_source_of_time_starts_again_from_nothing(start, wait):
    system = start(base_frame='camera', tf_mode='map_to_odom', tf_timeout=0.0)
    moments = iter(range(1000 * SECOND, 2000 * SECOND, SECOND // 10))

    def drive(stamp):
        system.send_transform('odom', 'camera', np.eye(4), stamp)
        system.outcome(system.send(1, stamp))
        stamps = [stamp_ns(sent.header.stamp) for sent in sent_to(system, 'odom')]
        return bool(stamps) and abs(stamps[-1] - stamp) < 10 * SECOND

    wait(lambda: drive(system.node.get_clock().now().nanoseconds))
    assert system.set_parameter('use_sim_time', True)[0]
    wait(lambda: system.clock_publisher.get_subscription_count() > 0)

    def replay():
        moment = next(moments)
        system.tick(moment)
        return drive(moment)

    wait(replay)


def test_parameters_while_active(start):
    system = start(max_image_age=0.0)
    assert system.outcome(system.send(1))[0] == 'answered'
    assert system.set_parameter('max_image_age', 1.0)[0]
    assert system.outcome(system.send(1))[0] == 'dropped'
    ok, reason = system.set_parameter('tf_mode', 'none')
    assert not ok and "'tf_mode' cannot change while active" in reason
    assert system.set_parameter('tf_mode', 'separate')[0], 'no change is no harm'


@pytest.mark.parametrize(
    'rules, transport, topics',
    [
        ((), 'raw', ('/image', '/camera_info')),
        ((), 'compressed', ('/image/compressed', '/camera_info')),
        (('image:=/front/image_raw',), 'raw', ('/front/image_raw', '/front/camera_info')),
        (
            ('image:=/front/image_raw',),
            'compressed',
            ('/front/image_raw/compressed', '/front/camera_info'),
        ),
        (('image:=/a', 'camera_info:=/calibration'), 'raw', ('/a', '/calibration')),
        (
            ('image:=/front/image_raw', 'image/camera_info:=/camera_info'),
            'raw',
            ('/front/image_raw', '/camera_info'),
        ),
        (
            ('__ns:=/robot1', 'image:=front/image', 'image/camera_info:=camera_info'),
            'compressed',
            ('/robot1/front/image/compressed', '/robot1/camera_info'),
        ),
        (('image/compressed:=/jpeg',), 'compressed', ('/jpeg', '/camera_info')),
        (
            ('__ns:=/robot1', 'image:=front/image'),
            'raw',
            ('/robot1/front/image', '/robot1/front/camera_info'),
        ),
    ],
)
def test_topics_follow_a_remapped_image(make_system, make_fake, poses, rules, transport, topics):
    from pose_reloc.ros.subscription import image_topics

    arguments = [x for rule in rules for x in ('-r', rule)]
    system = make_system(make_fake(poses, COVARIANCE), arguments=arguments)
    assert image_topics(system.node, transport) == topics


def test_diagnostics_come_by_themselves_and_count(start, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    system = start()
    for _ in range(3):
        assert system.outcome(system.send(1))[0] == 'answered'
    assert system.outcome(system.send(CRASH))[0] == 'failed'
    system.diagnostics.clear()

    def counted():
        for array in list(system.diagnostics):
            table = {v.key: v.value for v in array.status[0].values}
            if table['images received'] == '4':
                return array.status[0], table
        return None

    status, table = wait(counted)
    assert status.level == DiagnosticStatus.WARN, 'no camera_info, and an image that failed'
    assert (table['images answered'], table['images failed']) == ('3', '1')
    assert (table['scene'], table['network']) == ('fake', 'nothing at all')
    p50, p95, worst = (float(x) for x in table['total p50/p95/max (ms)'].split(' / '))
    assert 0 < p50 <= p95 <= worst
