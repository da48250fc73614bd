"""Plays recorded messages to a running node and collects what it answers.

Messages are published as the bytes they were recorded as, in recorded time, with /clock. An image
is known by its stamp: the node answers with a pose of the same stamp, and says on ~/status what
became of every image it received.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.validate_topic_name import validate_topic_name
from rosgraph_msgs.msg import Clock

from pose_reloc.errors import PoseRelocError
from pose_reloc.ros.messages import matrix_from_pose, stamp_message, stamp_ns
from pose_reloc.ros.transforms import static_qos

NODE_NAME = 'pose_reloc'
_START_TIMEOUT_S = 90.0
_CLOCK_PERIOD_S = 0.01
# After the last image: how long answers may still come.
_LINGER_S = 5.0


class PlayerError(PoseRelocError):
    """The node did not start, ended, or does not listen."""


@dataclass(frozen=True)
class Account:
    """What the node says on ~/status became of an image.

    Attributes:
        outcome: a value of `diagnostics.Outcome`.
        reasons: short names; empty for an answer.
        estimate: REFINED, COARSE or LOST; empty for an image that was not localized.
        work_s: from its turn to the answer; None for an image that was not localized.
    """

    outcome: str
    reasons: tuple[str, ...] = ()
    estimate: str = ''
    work_s: float | None = None


@dataclass
class Playback:
    """What was sent and what came back, by image stamp (nanoseconds).

    Attributes:
        sent: time.perf_counter() at publication.
        received: time.perf_counter() when the pose arrived, pose (4, 4), covariance (6, 6).
        accounts: what the node says became of the image.
    """

    sent: dict[int, float] = field(default_factory=dict)
    received: dict[int, tuple[float, np.ndarray, np.ndarray]] = field(default_factory=dict)
    accounts: dict[int, Account] = field(default_factory=dict)


class NodeProcess:
    """`reloc_node` as a process of its own, with simulated time. Ends it when the `with` ends.

    Args:
        parameters: node parameters by name.
        remappings: topic names, from to.

    Raises:
        PlayerError: from `check`, once the process has ended.
    """

    def __init__(self, parameters: dict, remappings: dict[str, str]):
        self._previous = None
        command = [sys.executable, '-m', 'pose_reloc.ros.process', '--ros-args']
        for name, value in {'use_sim_time': True, **parameters}.items():
            text = str(value).lower() if isinstance(value, bool) else f'{value}'
            command += ['-p', f'{name}:={text!r}' if isinstance(value, str) else f'{name}:={text}']
        for source, target in remappings.items():
            command += ['-r', f'{source}:={target}']
        command += ['--log-level', f'{NODE_NAME}:=warn']
        self._command = command

    def __enter__(self) -> NodeProcess:
        # Told to end, by `timeout` or a service manager, we must not leave the node behind.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, _exit)
        # A session of its own: Ctrl-C reaches the node through us, once, after we have stopped.
        self._process = subprocess.Popen(self._command, start_new_session=True)
        return self

    def __exit__(self, *_) -> None:
        try:
            # Not SIGINT: a node that still imports its modules would answer with a traceback.
            self._process.terminate()
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when Ctrl-C interrupts the waiting
            self._process.kill()
            self._process.wait()
            if self._previous is not None:
                signal.signal(signal.SIGTERM, self._previous)

    def check(self) -> None:
        """Raises PlayerError when the node has ended."""
        code = self._process.poll()
        if code is not None:
            raise PlayerError(f'reloc_node ended with exit code {code}; its own message is above')


def _exit(number, frame):
    raise SystemExit(128 + number)


class Player:
    """Publishes recorded messages and listens to the node. Use it in a `with` statement.

    Args:
        image_topic: whose messages are the images.
        types: topic to message type, such as 'sensor_msgs/msg/Image', of all that will be played.
        node: name of the relocalization node, with its namespace.

    Raises:
        PlayerError: no node can have this name.
    """

    def __init__(self, image_topic: str, types: dict[str, str], node: str = NODE_NAME):
        node = f'/{node.strip("/")}'
        try:
            validate_topic_name(node)
        except InvalidTopicNameException as error:
            raise PlayerError(f'no node can be named {node!r}: {error}') from error
        self._image_topic = image_topic
        self.playback = Playback()
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(f'pose_reloc_player_{os.getpid()}', context=self._context)
        create = self._node.create_publisher
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = {
            topic: create(_message_class(kind), topic, _qos(topic, reliable))
            for topic, kind in types.items()
        }
        self._clock = create(Clock, '/clock', 10)
        listen = self._node.create_subscription
        listen(PoseWithCovarianceStamped, f'{node}/pose', self._on_pose, 100)
        listen(DiagnosticArray, f'{node}/status', self._on_status, 100)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = Future()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_) -> None:
        self._stop.set_result(None)
        self._thread.join(5)
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until_ready(self, alive: Callable[[], None] = lambda: None) -> None:
        """Waits until the node listens to the images and to the clock, and is heard.

        Args:
            alive: raises when there is no point in waiting on.

        Raises:
            PlayerError: nobody listens after 90 s.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        images = self._publishers[self._image_topic]
        while images.get_subscription_count() == 0 or self._clock.get_subscription_count() == 0:
            alive()
            if time.monotonic() > deadline:
                raise PlayerError(
                    f'no node with use_sim_time listens to {self._image_topic} after '
                    f'{_START_TIMEOUT_S:.0f} s; is it active, and is the topic remapped to it?'
                )
            time.sleep(0.02)
        # Discovery is not symmetric: our subscriptions may be found a moment later.
        time.sleep(0.5)

    def play(
        self,
        messages: Iterable,
        rate: float = 1.0,
        progress: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> Playback:
        """Publishes messages (with topic, time, stamp and cdr) in recorded time.

        Args:
            messages: in the order of their time.
            rate: 2.0 plays twice as fast.
            progress: called after every image.
            alive: raises when there is no point in going on.

        Returns:
            What was sent and what came back.
        """
        first = start = None
        last = 0
        for message in messages:
            if first is None:
                first, start = message.time, time.perf_counter()
            self._wait_until(start, first, message.time, rate)
            last = message.time
            if message.topic == self._image_topic:
                alive()
                self.playback.sent[message.stamp] = time.perf_counter()
            self._publishers[message.topic].publish(bytes(message.cdr))
            if message.topic == self._image_topic:
                progress()
        self._linger(last, rate, alive)
        return self.playback

    def _wait_until(self, start: float, first: int, moment: int, rate: float) -> None:
        """Sleeps until a recorded moment is due; /clock goes on meanwhile."""
        due = start + (moment - first) / 1e9 / rate
        while (left := due - time.perf_counter()) > _CLOCK_PERIOD_S:
            self._tick(moment - int(left * 1e9 * rate))
            time.sleep(_CLOCK_PERIOD_S)
        if left > 0:
            time.sleep(left)
        self._tick(moment)

    def _linger(self, last: int, rate: float, alive) -> None:
        """Lets the clock go on until every image has been accounted for, or 5 s are over."""
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < _LINGER_S:
            done = self.playback.accounts.keys() | self.playback.received.keys()
            if self.playback.sent.keys() <= done:
                time.sleep(0.2)  # the pose of the last outcome may still be on its way
                return
            alive()
            self._tick(last + int(passed * 1e9 * rate))
            time.sleep(_CLOCK_PERIOD_S)

    def _tick(self, moment: int) -> None:
        self._clock.publish(Clock(clock=stamp_message(moment)))

    def _on_pose(self, message) -> None:
        now = time.perf_counter()
        pose = matrix_from_pose(message.pose.pose)
        covariance = np.array(message.pose.covariance).reshape(6, 6)
        self.playback.received[stamp_ns(message.header.stamp)] = (now, pose, covariance)

    def _on_status(self, message) -> None:
        for status in message.status:
            self.playback.accounts[stamp_ns(message.header.stamp)] = _account(status)

    def _spin(self) -> None:
        try:
            self._executor.spin_until_future_complete(self._stop)
        except ExternalShutdownException:
            pass


def _account(status) -> Account:
    """The account that a diagnostic_msgs/DiagnosticStatus on ~/status gives."""
    values = {item.key: item.value for item in status.values}
    reasons = tuple(r for r in values.get('reasons', '').split(', ') if r)
    estimate = values.get('estimate', '')
    work_s = None
    if estimate and 'total (ms)' in values:
        work_s = (float(values['total (ms)']) - float(values['wait (ms)'])) / 1e3
    return Account(status.name.rsplit(': ', 1)[-1], reasons, estimate, work_s)


def _message_class(kind: str):
    """The Python class of a type such as 'sensor_msgs/msg/Image'."""
    package, _, name = kind.split('/')
    return getattr(import_module(f'{package}.msg'), name)


def _qos(topic: str, default: QoSProfile) -> QoSProfile:
    return static_qos() if topic == '/tf_static' else default
