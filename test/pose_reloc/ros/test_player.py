"""The player over real DDS, against a node that only says what it heard."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from pose_reloc.ros.messages import pose_message, stamp_message, stamp_ns

pytest.importorskip('rclpy', reason='needs rclpy')

IMAGE, TF = '/camera/image_raw', '/tf_static'
TYPES = {IMAGE: 'sensor_msgs/msg/Image', TF: 'tf2_msgs/msg/TFMessage'}
FIRST, PERIOD, COUNT = 1_700_000_000_000_000_000, 50_000_000, 8


@dataclass(frozen=True)
class Message:
    topic: str
    time: int
    stamp: int
    cdr: bytes


class Echo:
    """Answers every image but the third with a pose that holds its number."""

    def __init__(self):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from rclpy.task import Future
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import Image
        from tf2_msgs.msg import TFMessage

        from pose_reloc.ros.transforms import static_qos

        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('echo', namespace='/robot1', context=self._context)
        self._pose = self._node.create_publisher(PoseWithCovarianceStamped, '~/pose', 10)
        self._status = self._node.create_publisher(DiagnosticArray, '~/status', 10)
        self.images, self.clock, self.transforms = [], [], []
        listen = self._node.create_subscription
        listen(Clock, '/clock', lambda m: self.clock.append(stamp_ns(m.clock)), 1000)
        listen(TFMessage, TF, lambda m: self.transforms.extend(m.transforms), static_qos())
        listen(Image, IMAGE, self._on_image, 100)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = Future()
        self._thread = threading.Thread(
            target=self._executor.spin_until_future_complete, args=(self._stop,), daemon=True
        )
        self._thread.start()

    def _on_image(self, message):
        from pose_reloc.ros.diagnostics import Level, array_message, status_message

        number, stamp = len(self.images), stamp_ns(message.header.stamp)
        self.images.append(message)
        pose = np.eye(4)
        pose[0, 3] = number
        answered = number != 2
        if answered:
            self._pose.publish(pose_message(stamp, 'map', pose, number * np.eye(6)))
        outcome, table = 'refused', {'reasons': 'dark, odd'}
        if answered:
            outcome = 'answered'
            table = {'estimate': 'REFINED', 'wait (ms)': '5.00', 'total (ms)': '25.00'}
        status = status_message(Level.OK, f'echo: {outcome}', '', table)
        self._status.publish(array_message(stamp, status))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        import rclpy

        self._stop.set_result(None)
        self._thread.join(20)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


def recording():
    """A transform and eight images, as the bytes that ROS sends."""
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import Image
    from tf2_msgs.msg import TFMessage

    from pose_reloc.ros.messages import transform_message

    mounting = TFMessage(transforms=[transform_message(FIRST, 'base', 'camera', np.eye(4))])
    messages = [Message(TF, FIRST, 0, serialize_message(mounting))]
    for i in range(COUNT):
        image = Image(height=1, width=1, encoding='mono8', step=1, data=bytes([i]))
        stamp = FIRST + i * PERIOD
        image.header.stamp = stamp_message(stamp)
        messages.append(Message(IMAGE, stamp + 1_000_000, stamp, serialize_message(image)))
    return messages


@pytest.mark.parametrize('rate', [1.0, 4.0])
def test_everything_arrives_and_every_answer_finds_its_image(rate):
    from pose_reloc.ros.player import Account, Player

    progress = []
    with Echo() as echo, Player(IMAGE, TYPES, 'robot1/echo/') as player:
        player.wait_until_ready()
        start = time.perf_counter()
        playback = player.play(recording(), rate, lambda: progress.append(1))
        stamps = [FIRST + i * PERIOD for i in range(COUNT)]
        assert list(playback.sent) == stamps
        assert len(progress) == COUNT
        assert [stamp_ns(m.header.stamp) for m in echo.images] == stamps
        assert [bytes(m.data)[0] for m in echo.images] == list(range(COUNT))
        assert [t.child_frame_id for t in echo.transforms] == ['camera']

    assert set(playback.received) == set(stamps) - {stamps[2]}
    for i, stamp in enumerate(stamps):
        if i == 2:
            assert playback.accounts[stamp] == Account('refused', ('dark', 'odd'))
            continue
        received, pose, covariance = playback.received[stamp]
        assert received > playback.sent[stamp]
        assert pose[0, 3] == i
        np.testing.assert_array_equal(covariance, i * np.eye(6))
        assert playback.accounts[stamp] == Account('answered', (), 'REFINED', 0.02)

    # Never earlier than recorded, and the clock tells the time of the recording.
    for i, sent in enumerate(playback.sent.values()):
        assert sent - start >= i * PERIOD / 1e9 / rate
    assert echo.clock == sorted(echo.clock)
    assert FIRST <= echo.clock[0] <= recording()[-1].time <= echo.clock[-1]


def test_an_answer_that_never_comes_does_not_hold_it_forever(monkeypatch):
    from pose_reloc.ros import player as module

    monkeypatch.setattr(module, '_LINGER_S', 0.3)
    monkeypatch.setattr(Echo, '_on_image', lambda self, message: self.images.append(message))
    with Echo() as echo, module.Player(IMAGE, TYPES, '/robot1/echo') as player:
        player.wait_until_ready()
        playback = player.play(recording(), 4.0)
        assert len(playback.sent) == COUNT == len(echo.images)
    assert playback.received == playback.accounts == {}


def test_nobody_listens(monkeypatch):
    from pose_reloc.ros import player as module

    monkeypatch.setattr(module, '_START_TIMEOUT_S', 0.2)
    with module.Player(IMAGE, TYPES) as player:
        with pytest.raises(module.PlayerError, match=f'no node .* listens to {IMAGE}'):
            player.wait_until_ready()


def test_a_node_that_ends_is_noticed(tmp_path):
    from pose_reloc.ros.player import NodeProcess, Player, PlayerError

    scene = {'scene': str(tmp_path / 'nowhere.scene')}
    with Player(IMAGE, TYPES) as player, NodeProcess(scene, {'image': IMAGE}) as node:
        with pytest.raises(PlayerError, match='exit code 2'):
            player.wait_until_ready(node.check)


def running(number):
    """Whether a process is there and not a zombie."""
    try:
        with open(f'/proc/{number}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, SystemExit])
def test_no_node_is_left_behind_by_an_exception(error):
    from pose_reloc.ros.player import NodeProcess

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error), NodeProcess({'autostart': False}, {}) as node:
        number = node._process.pid
        assert running(number)
        raise error
    assert not running(number)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_no_node_is_left_behind_by_a_signal(number):
    code = """
import time
from pose_reloc.ros.player import NodeProcess
with NodeProcess({'autostart': False}, {}) as node:
    print(node._process.pid, flush=True)
    time.sleep(100)
"""
    # As a program started by a shell: a background job of a script ignores SIGINT.
    parent = subprocess.Popen(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    child = int(parent.stdout.readline())
    try:
        os.kill(parent.pid, number)
        parent.communicate(timeout=60)
        assert not running(child)
    finally:
        parent.kill()
    assert parent.returncode in (128 + signal.SIGTERM, -signal.SIGINT)
