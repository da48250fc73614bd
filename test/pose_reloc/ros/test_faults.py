"""What drivers, networks, operators and GPUs do to the node on a bad day, over real DDS.

Whatever comes in, the node goes on, and every pose that comes out is finite, with a unit quaternion
and a positive-definite covariance: `make_robot` checks all that was published when a test ends.
"""

import math
import os
import threading
import time

import numpy as np
import pytest

from pose_reloc.geometry import pose_matrix
from pose_reloc.ros.messages import stamp_message, stamp_ns
from pose_reloc.ros.transforms import TransformError

pytest.importorskip('rclpy', reason='needs rclpy')

SECOND = 1_000_000_000
COVARIANCE = np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.003])
# Seconds of the long run, `make soak`; the short one is part of `make test`.
SOAK_S = float(os.environ.get('POSE_RELOC_SOAK_S', 0))


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(21)
    return [random_pose(rng) for _ in range(8)]


@pytest.fixture
def make_robot(make_system, make_fake, poses, check_pose, check_rigid):
    """make_robot(fake, **parameters): an active node, checked at the end of the test."""
    from geometry_msgs.msg import PoseWithCovarianceStamped

    heard = []

    def make(fake=None, **parameters):
        fake = fake or make_fake(poses, COVARIANCE)
        settings = {'max_image_age': 0.0, 'base_frame': '', 'tf_timeout': 0.0}
        system = make_system(fake, **settings | parameters)
        heard.append((system, [
            system.poses,
            system.camera_poses,
            system.listen(PoseWithCovarianceStamped, '/pose_reloc/pose_raw'),
            system.listen(PoseWithCovarianceStamped, 'initial_pose'),
        ]))  # fmt: skip
        system.start()
        return system

    yield make
    for system, topics in heard:
        for messages in topics:
            for message in list(messages):
                check_pose(message)
        ours = {'base_link_reloc', 'odom', 'base_link'}
        for sent in [t for t in list(system.transforms) if t.header.frame_id == 'map']:
            assert sent.child_frame_id in ours
            check_rigid(sent.transform.translation, sent.transform.rotation)
        assert system.node.statistics.snapshot().received > 0, 'or nothing was tested'


def diagnosed(system, level, words):
    """Whether a diagnostic of this level that says these words has come."""
    statuses = [array.status[0] for array in list(system.diagnostics)]
    return any(s.level == level and words in s.message for s in statuses)


def answers(system):
    """Whether the next good image is answered."""
    return system.outcome(system.send(1))[0] == 'answered'


# Images


def hostile(system, rng):
    """An image message with one to three fields that lie."""
    lies = {
        'height': [0, 1, 23, 25, 65_535, 2**32 - 1],
        'width': [0, 1, 31, 33, 65_535, 2**32 - 1],
        'step': [0, 1, 95, 97, 2**32 - 1],
        'encoding': ['', 'rgb8 ', 'RGB8', 'mono16', 'bgra8', 'yuv422', 'bayer_rggb8', '32FC1',
                     'nv21', 'x' * 1000, 'ä'],
        'is_bigendian': [1, 255],
        'data': [b'', b'\0', bytes(96 * 24 - 1), bytes(96 * 24 + 1), bytes(50_000)],
    }  # fmt: skip
    message = system.image(1, system.next_stamp())
    for name in rng.choice(list(lies), rng.integers(1, 4), replace=False):
        setattr(message, name, lies[name][rng.integers(len(lies[name]))])
    message.header.frame_id = str(rng.choice(['camera', '', '/camera', 'a b', 'ä' * 300]))
    return message


def test_images_that_lie_are_failures_and_nothing_more(make_robot):
    system = make_robot()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000 if SOAK_S else 120):
        message = hostile(system, rng)
        system.image_publisher.publish(message)
        outcomes.add(system.outcome(stamp_ns(message.header.stamp))[0])
        system.statuses.clear()
    assert outcomes == {'failed', 'answered'}, 'some lies are harmless'
    assert answers(system)
    snapshot = system.node.statistics.snapshot()
    assert 'internal error' not in snapshot.reasons, 'every lie is told by name'


def test_compressed_images_that_lie(make_robot):
    import cv2
    from sensor_msgs.msg import CompressedImage

    system = make_robot(image_transport='compressed')
    rng = np.random.default_rng(1)
    good = {
        kind: cv2.imencode(f'.{kind}', np.full((24, 32, 3), 1, np.uint8))[1] for kind in
        ('jpg', 'png', 'bmp', 'webp')
    }  # fmt: skip
    for _ in range(2000 if SOAK_S else 80):
        data = good[str(rng.choice(list(good)))].copy()
        data[rng.integers(0, len(data), rng.integers(0, 6))] = rng.integers(0, 256)
        message = CompressedImage(format='jpeg', data=data[: rng.integers(0, len(data) + 1)])
        message.header.stamp = stamp_message(system.next_stamp())
        system.compressed_publisher.publish(message)
        assert system.outcome(stamp_ns(message.header.stamp))[0] in ('failed', 'answered')
        system.statuses.clear()
    assert 'internal error' not in system.node.statistics.snapshot().reasons


def test_a_camera_info_that_lies_is_not_used(make_robot, wait):
    from sensor_msgs.msg import CameraInfo

    system = make_robot()
    system.outcome(system.send(1))
    nan, inf = math.nan, math.inf
    for lie in (
        {'k': [nan] * 9},
        {'k': [inf, 0.0, 16.0, 0.0, 30.0, 12.0, 0.0, 0.0, 1.0]},
        {'k': [0.0] * 9},
        {'k': [-30.0, 0.0, 16.0, 0.0, 30.0, 12.0, 0.0, 0.0, 1.0]},
        {'d': [nan] * 5},
        {'d': [0.1, 0.2]},
        {'distortion_model': 'fish', 'd': [0.1] * 5},
        {'width': 0},
        {'binning_x': 2**32 - 1},
    ):
        good = {'k': [30.0, 0.0, 16.0, 0.0, 30.0, 12.0, 0.0, 0.0, 1.0], 'd': [0.0] * 5}
        info = {'width': 32, 'height': 24, 'distortion_model': 'plumb_bob'} | good
        system.info_publisher.publish(CameraInfo(**info))
        wait(lambda: system.node._pipeline.camera._camera)
        system.info_publisher.publish(CameraInfo(**info | lie))
        wait(lambda: system.node._pipeline.camera._camera is None)
        assert answers(system), lie
        assert system.relocalizer.cameras[-1] == system.relocalizer.scene.header.camera
        assert any('camera_info is not used' in said for said in system.node._said.sentences())


def test_stamps_that_cannot_be(make_robot):
    system = make_robot(max_image_age=5.0)
    now = system.node.get_clock().now().nanoseconds
    told = [system.outcome(system.send(1, now + offset))[0] for offset in (
        0, -SECOND, -2 * SECOND, -60 * SECOND, 60 * SECOND, 10**9 * SECOND - now, -now,
    )]  # fmt: skip
    assert told == ['answered'] * 3 + ['dropped'] * 4
    system.send(1, -SECOND)
    assert answers_now(system)


def answers_now(system):
    now = system.node.get_clock().now().nanoseconds
    return system.outcome(system.send(1, now))[0] == 'answered'


def test_a_flood_at_200_hz_is_answered_with_the_newest(make_robot, make_fake, poses, wait):
    fake = make_fake(poses, COVARIANCE)
    localize = fake.localize
    fake.localize = lambda *args: (time.sleep(0.05), localize(*args))[1]
    system = make_robot(fake)
    threads = threading.active_count()
    due, stamps = time.monotonic(), []
    for i in range(400):
        stamps.append(system.send(i % 8))
        due += 0.005
        time.sleep(max(due - time.monotonic(), 0.0))
    assert system.outcome(stamps[-1])[0] == 'answered'
    snapshot = system.node.statistics.snapshot()
    outcomes = {k.value: v for k, v in snapshot.outcomes.items()}
    assert sum(outcomes.values()) == snapshot.received <= 400, 'every image is accounted for'
    assert set(outcomes) == {'answered', 'dropped'}
    assert 1 < outcomes['answered'] < 100, 'a slow device answers what it can'
    assert threading.active_count() <= threads
    newest = [stamp_ns(m.header.stamp) for m in list(system.poses)]
    assert newest == sorted(newest), 'never back to an older image'


def test_a_camera_that_falls_silent_and_speaks_again(make_robot, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    system = make_robot(image_timeout=0.3)
    assert answers(system)
    wait(lambda: diagnosed(system, DiagnosticStatus.WARN, "no image on '/image' for"))
    system.diagnostics.clear()
    stop = threading.Event()

    def camera():
        while not stop.wait(0.1):
            system.send(1)

    thread = threading.Thread(target=camera)
    thread.start()
    try:
        wait(lambda: any(
            'no image on' not in array.status[0].message for array in list(system.diagnostics)
        ))  # fmt: skip
    finally:
        stop.set()
        thread.join()
    assert answers(system)


# Transforms and hints


def test_tf_lost_and_back(make_robot, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    system = make_robot(base_frame='base_link', tf_mode='map_to_odom')
    system.send_transform('base_link', 'camera', np.eye(4), static=True)
    wait(lambda: system.node._transforms.tree.can_connect('base_link', 'camera'))

    def drive(stamp):
        system.send_transform('odom', 'base_link', np.eye(4), stamp)
        system.node._transforms.lookup('odom', 'base_link', stamp, 10.0)

    def sent():
        return len([t for t in list(system.transforms) if t.header.frame_id == 'map'])

    stamp = system.next_stamp()
    drive(stamp)
    assert system.outcome(system.send(1, stamp))[0] == 'answered'
    wait(sent)
    assert system.outcome(system.send(2))[0] == 'answered', '~/pose needs no odometry'
    wait(lambda: diagnosed(system, DiagnosticStatus.WARN, "needs the transform 'odom'"))
    before = sent()
    wait(lambda: sent() > before)  # what is known is said on
    stamp = system.next_stamp()
    drive(stamp)
    system.diagnostics.clear()
    assert system.outcome(system.send(3, stamp))[0] == 'answered'
    wait(lambda: any(
        'needs the transform' not in a.status[0].message for a in list(system.diagnostics)
    ))  # fmt: skip


def test_transforms_and_hints_that_lie(make_robot):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    system = make_robot(base_frame='base_link', tf_mode='map_to_base', tf_force=True)
    system.send_transform('base_link', 'camera', np.eye(4), static=True)
    nan = pose_matrix(np.eye(3), [math.nan, 0.0, 0.0])
    for parent, child in (('base_link', 'camera'), ('', ''), ('a', 'a'), ('camera', 'base_link')):
        for pose in (nan, np.eye(4)):
            system.send_transform(parent, child, pose, system.next_stamp())
    from tf2_msgs.msg import TFMessage

    from pose_reloc.ros.messages import transform_message

    zero = transform_message(0, 'base_link', 'camera', np.eye(4))
    zero.transform.rotation.w = 0.0
    system.tf_publisher.publish(TFMessage(transforms=[zero]))
    hints = system.client.create_publisher(PoseWithCovarianceStamped, '/pose_reloc/trigger', 10)
    for frame in ('map', 'odom', ''):
        for value in (math.nan, math.inf, -1.0, 0.0, 1e308):
            hint = PoseWithCovarianceStamped()
            hint.header.frame_id = frame
            hint.pose.pose.position.x = value
            hint.pose.covariance = [value] * 36
            hints.publish(hint)
    for _ in range(5):
        assert system.outcome(system.send(1))[0] in ('answered', 'unmounted')
    assert 'internal error' not in system.node.statistics.snapshot().reasons


# Operators


def test_parameters_out_of_range_while_it_runs(make_robot):
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    system = make_robot()
    lies = {
        'max_image_age': [-1.0, math.nan, math.inf, 1e9, 'old', 1],
        'rate_limit': [-5.0, 'fast'],
        'mode': ['sometimes', True, ''],
        'queue_depth': [0, 10**9],
        'scene': ['another.scene'],
        'tf_mode': ['everything'],
        'no such parameter': [1],
    }
    request = SetParameters.Request(
        parameters=[
            Parameter(name, value=value).to_parameter_msg()
            for name, values in lies.items()
            for value in values
        ]
    )
    before = system.node.settings
    results = system.call(SetParameters, 'set_parameters', request).results
    assert [result.successful for result in results] == [False] * len(request.parameters)
    assert all(result.reason for result in results)
    assert system.node.settings == before
    assert answers(system)


def test_two_nodes_with_one_name_both_live_and_say_so(make_robot, wait):
    from diagnostic_msgs.msg import DiagnosticStatus

    first = make_robot(base_frame='camera', tf_mode='map_to_odom')
    second = make_robot(base_frame='camera', tf_mode='map_to_odom')

    def drive():
        stamp = first.next_stamp()
        first.send_transform('odom', 'camera', np.eye(4), stamp)
        try:
            for system in (first, second):
                system.node._transforms.lookup('odom', 'camera', stamp, 0.5)
        except TransformError:  # a node that had not found the sender yet; it is sent again
            return False
        first.send(1, stamp)
        return diagnosed(first, DiagnosticStatus.ERROR, 'another node publishes the transform')

    wait(drive)
    for system in (first, second):
        assert system.node.statistics.snapshot().outcomes


def test_configured_activated_and_torn_down_again_and_again(make_robot, wait):
    system = make_robot()
    files = count_files()
    for _ in range(20 if SOAK_S else 4):
        assert system.transition('deactivate') and system.transition('cleanup')
        assert system.transition('configure') and system.transition('activate')
    system.wait_connected()
    assert answers(system)
    assert [t.name for t in threading.enumerate()].count('inference') == 1
    wait(lambda: count_files() <= files + 2)


def count_files():
    return len(os.listdir('/proc/self/fd'))


# The GPU


def test_a_device_that_is_not_there_is_no_failure_of_one():
    from pose_reloc.errors import DeviceError, SettingsError
    from pose_reloc.ros.pipeline import is_gpu_error

    assert all(is_gpu_error(error) for error in gpu_errors())
    assert is_gpu_error(DeviceError("device 'cuda' cannot be used here"))
    assert not is_gpu_error(SettingsError("device 'cuda' cannot be used: no CUDA here"))
    assert not is_gpu_error(RuntimeError('something else'))


def gpu_errors():
    import torch

    return [
        torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'),
        RuntimeError('CUDA error: unspecified launch failure'),
        type('Fail', (Exception,), {})('CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR'),
        RuntimeError('Unable to find a valid cuDNN algorithm to run convolution'),
        RuntimeError('GET was unable to find an engine to execute this computation'),
        RuntimeError('cublas error'),
        type('Fail', (Exception,), {})(
            'BFCArena: Failed to allocate memory for a buffer of 12582912'
        ),
    ]


@pytest.mark.parametrize(
    'number, when', [(0, 'loading'), (0, 'running'), (1, 'running'), (2, 'running')]
)
def test_a_gpu_that_fails_is_replaced_by_the_cpu(
    make_system, make_fake, poses, wait, check_pose, number, when
):
    from diagnostic_msgs.msg import DiagnosticStatus

    broken, loaded = [when == 'loading'], []

    def fail(*_):
        if broken[0]:
            raise gpu_errors()[number]

    def load(settings):
        loaded.append(settings.device)
        fake = make_fake(poses, COVARIANCE)
        if settings.device != 'cpu':
            localize = fake.localize
            fake.warm_up = fail
            fake.localize = lambda *args: (fail(), localize(*args))[1]
        return fake

    system = make_system(None, load=load, max_image_age=0.0, base_frame='')
    system.start()
    if when == 'running':
        assert answers(system)
        broken[0] = True
    stamp = system.send(2)
    assert system.outcome(stamp)[0] == 'answered', 'not even this image is lost'
    check_pose(system.pose(stamp)[0])
    assert loaded == ['auto', 'cpu']
    wait(lambda: diagnosed(system, DiagnosticStatus.WARN, 'the CPU is used instead'))
    broken[0] = False
    assert system.transition('deactivate') and system.transition('activate')
    assert loaded == ['auto', 'cpu', 'auto'], 'then the GPU gets another chance'


@pytest.mark.parametrize('device', ['auto', 'cuda'])
def test_a_gpu_that_is_full_before_anything_is_loaded_is_replaced_too(
    make_system, tiny_scene, tmp_path, wait, monkeypatch, device
):
    import torch
    from diagnostic_msgs.msg import DiagnosticStatus

    from pose_reloc.ros.node import load_relocalizer

    ones = torch.ones

    def full(*shape, device=None, **how):
        if device and torch.device(device).type == 'cuda':
            raise RuntimeError('CUDA error: out of memory\nand more')
        return ones(*shape, device=device, **how)

    monkeypatch.setattr(torch, 'ones', full)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    tiny_scene.save(tmp_path / 'tiny.scene')
    system = make_system(
        None, load=load_relocalizer, scene=str(tmp_path / 'tiny.scene'), device=device
    )
    system.start()
    assert ', float32 on cpu' in system.node._facts['network']
    wait(lambda: diagnosed(system, DiagnosticStatus.WARN, 'the CPU is used instead'))
    assert diagnosed(system, DiagnosticStatus.WARN, '(CUDA error: out of memory)')


def test_a_cpu_that_comes_too_late_is_not_kept(make_system, make_fake, poses, wait, monkeypatch):
    """The node is deactivated, and active anew, while the place of a failed GPU is being filled."""
    import gc
    import weakref

    from pose_reloc.ros.worker import Worker

    monkeypatch.setattr(Worker.stop, '__defaults__', (0.1,))
    broken, loading, go, late = [True], threading.Event(), threading.Event(), []

    def load(settings):
        fake = make_fake(poses, COVARIANCE)
        if settings.device == 'cpu':
            late.append(weakref.ref(fake))
            fake.describe = lambda: 'too late'
            loading.set()
            assert go.wait(20)
        elif broken[0]:
            fake.localize = lambda *_: (_ for _ in ()).throw(gpu_errors()[0])
        return fake

    system = make_system(None, load=load, max_image_age=0.0, base_frame='')
    system.start()
    system.send(1)
    assert loading.wait(20)
    assert system.transition('deactivate')
    broken[0] = False
    assert system.transition('activate')
    go.set()
    wait(lambda: [t.name for t in threading.enumerate()].count('inference') == 1)
    gc.collect()
    assert late[0]() is None, 'nobody refers to it any more'
    assert system.node._facts['network'] == 'nothing at all'
    system.wait_connected()
    assert answers(system)


def test_where_nothing_computes_it_is_an_error_and_the_node_lives(
    make_system, make_fake, poses, wait
):
    from diagnostic_msgs.msg import DiagnosticStatus

    fake = make_fake(poses, COVARIANCE)
    localize, broken = fake.localize, [True]

    def fail(*args):
        if broken[0]:
            raise gpu_errors()[0]
        return localize(*args)

    fake.localize = fail
    system = make_system(fake, max_image_age=0.0, base_frame='')
    system.start()
    for _ in range(4):
        assert system.outcome(system.send(1))[0] == 'failed'
    wait(lambda: diagnosed(system, DiagnosticStatus.ERROR, 'images could be used'))
    assert not system.poses
    broken[0] = False
    assert answers(system)
