"""Images as cameras send them, over DDS: every encoding, and more than the machine can take."""

import time
from array import array

import numpy as np
import pytest

from pose_reloc.ros.messages import stamp_message

pytest.importorskip('rclpy', reason='needs rclpy')

GREY = 5
YUV_GREY = 76  # of BT.601 with Y = 81, U = V = 128: 1.164 * (81 - 16)


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(31)
    return [random_pose(rng) for _ in range(100)]


@pytest.fixture
def start(make_system, make_fake, poses):
    def make(**parameters):
        fake = make_fake(poses, np.eye(6))
        system = make_system(fake, **{'max_image_age': 0.0, 'base_frame': ''} | parameters)
        system.start()
        return system

    return make


def uniform(encoding):
    """A row of 32 pixels, all the same grey, and the level that must come out."""
    if encoding in ('yuv422', 'uyvy'):
        return bytes([128, 81] * 32), YUV_GREY
    if encoding in ('yuv422_yuy2', 'yuyv'):
        return bytes([81, 128] * 32), YUV_GREY
    channels = {'rgba8': 4, 'bgra8': 4, '8UC4': 4, 'rgb8': 3, 'bgr8': 3, '8UC3': 3}
    channels |= {'rgb16': 3, 'bgr16': 3}
    # A 16-bit level of 257 v is 8-bit level v, in either byte order.
    width = 2 if '16' in encoding else 1
    return bytes([GREY]) * (32 * width * channels.get(encoding, 1)), GREY


def test_every_encoding_is_localized(start, poses):
    from pose_reloc.ros.messages import _LAYOUTS

    system = start()
    for padding in (0, 7):
        for encoding in _LAYOUTS:
            row, level = uniform(encoding)
            message = system.image(0, system.next_stamp())
            message.encoding, message.step = encoding, len(row) + padding
            message.data = array('B', (row + b'\xaa' * padding) * 24)
            system.image_publisher.publish(message)
            stamp = system._stamp
            np.testing.assert_allclose(system.pose(stamp)[1], poses[level], atol=1e-9)


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096


def test_a_slow_device_answers_the_newest_of_100_images_a_second(start, wait):
    """Nothing is queued: not in memory, and not in time."""
    system = start()
    fake = system.relocalizer
    localize = fake.localize
    fake.localize = lambda *args: (time.sleep(0.1), localize(*args))[1]
    message = system.image(1, 0)
    message.height, message.width, message.step = 480, 640, 3 * 640
    message.data = array('B', bytes([1]) * (480 * 640 * 3))
    before = None
    for number in range(250):
        if number == 50:
            before = resident_bytes()
        stamp = system.next_stamp()
        message.header.stamp = stamp_message(stamp)
        system.image_publisher.publish(message)
        time.sleep(0.01)
    # The last image is the newest one: nothing may displace it.
    assert system.outcome(stamp)[0] == 'answered'
    statistics = system.node.statistics
    numbers = statistics.snapshot()
    outcomes = {outcome.value: count for outcome, count in numbers.outcomes.items()}
    assert outcomes['dropped'] > outcomes['answered']
    assert sum(outcomes.values()) == numbers.received
    assert len(fake.seen) == outcomes['answered']
    # Two hundred images more are 184 MB; a few may be anywhere on the way.
    assert resident_bytes() - before < 40e6
