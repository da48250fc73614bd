"""`reloc_node` as a process: how it ends, and how it comes back."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

# The real process with a relocalizer that needs no scene.
WITH_FAKE = """
import sys
import numpy as np
from pose_reloc.ros import node, process

sys.path.insert(0, {folder!r})
from conftest import FakeRelocalizer

fake = FakeRelocalizer([np.eye(4)], np.eye(6))
init = node.RelocNode.__init__
node.RelocNode.__init__ = lambda self: init(self, load=lambda s: fake, check=lambda s: None)
process.main()
"""


def start(*arguments):
    """The process, once it waits for images."""
    code = WITH_FAKE.format(folder=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, '-c', code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    if 'waiting for images' not in line:
        process.kill()
        raise AssertionError(line + process.communicate()[0])
    return process


@pytest.mark.parametrize(
    ('signals', 'pause'),
    [
        ([signal.SIGINT] * 2, 0.0),
        ([signal.SIGINT] * 2, 0.1),
        ([signal.SIGINT, signal.SIGTERM] * 5, 0.03),
    ],
)
def test_signals_end_it_in_order_however_often_they_come(signals, pause):
    process = start()
    try:
        time.sleep(random.Random(len(signals)).uniform(0.0, 0.3))
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, '')


def test_a_node_that_ends_takes_leave(wait):
    """Or its services would seem to be there until DDS gives it up, after 20 s.

    DDS says farewell once, best effort; it may be lost, but not three times. Whose was lost is seen
    for a while, so that each has a name of its own.
    """
    import rclpy

    def leaves(name):
        context = rclpy.Context()
        rclpy.init(context=context)
        client = rclpy.create_node('client', context=context)
        process = start('--ros-args', '-r', f'__node:={name}')
        try:
            wait(lambda: name in client.get_node_names())
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            end = time.monotonic() + 10
            while name in client.get_node_names():
                if time.monotonic() > end:
                    return False
                time.sleep(0.01)
            return True
        finally:
            process.kill()
            client.destroy_node()
            rclpy.shutdown(context=context)

    assert any(leaves(f'leaver_{i}') for i in range(3))


def test_a_node_that_was_killed_is_simply_started_again(wait):
    """Those who publish images and receive poses need not be restarted with it."""
    import rclpy
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from sensor_msgs.msg import Image

    from pose_reloc.ros.messages import stamp_ns

    context = rclpy.Context()
    rclpy.init(context=context)
    client = rclpy.create_node('client', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(client)
    publisher = client.create_publisher(Image, 'image', 1)
    poses = []
    client.create_subscription(PoseWithCovarianceStamped, '/pose_reloc/pose', poses.append, 10)
    image = Image(height=24, width=32, encoding='rgb8', step=96, data=bytes(96 * 24))
    sent = []

    def answered_since(first):
        image.header.stamp = client.get_clock().now().to_msg()
        sent.append(stamp_ns(image.header.stamp))
        publisher.publish(image)
        executor.spin_once(timeout_sec=0.05)
        return any(stamp_ns(pose.header.stamp) >= first for pose in poses)

    process = None
    try:
        for _ in range(20 if os.environ.get('POSE_RELOC_SOAK_S') else 2):
            process = start('--ros-args', '-p', "base_frame:=''")
            first = client.get_clock().now().nanoseconds
            wait(lambda: answered_since(first), 60)  # noqa: B023
            process.kill()
            process.wait()
            process.stdout.close()
    finally:
        if process is not None:
            process.kill()
        client.destroy_node()
        executor.shutdown()
        rclpy.shutdown(context=context)
    assert {stamp_ns(pose.header.stamp) for pose in poses} <= set(sent)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['-p', 'scene:=/nowhere/a.scene'], 'no scene file at /nowhere/a.scene'),
        ([], "the parameter 'scene' is empty"),
        (['-p', 'queue_depth:=many'], "parameter 'queue_depth' must be a whole number"),
        (['-p', 'tf_rate:=-1.0'], "parameter 'tf_rate' must lie in"),
    ],
)
def test_what_it_cannot_start_with_is_said_in_a_sentence(arguments, sentence):
    process = subprocess.run(
        [sys.executable, '-m', 'pose_reloc.ros.process', '--ros-args', *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = process.stderr + process.stdout
    assert process.returncode == 2
    assert sentence in output
    assert 'Traceback' not in output


def test_without_ros_it_says_what_is_missing():
    code = (
        'import sys; sys.modules["rclpy"] = None; from pose_reloc.ros.process import main; main()'
    )
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2
    assert process.stderr.startswith('reloc_node: needs ROS 2, which cannot be imported (')
    assert 'Traceback' not in process.stderr
