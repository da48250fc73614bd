"""Times a node from outside, from an image published to its pose received; and the floor of that.

The floor is `python -m pose_reloc.ros.probe`: a bare rclpy node that answers every image with an
empty pose.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from array import array
from dataclasses import dataclass

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from pose_reloc.ros.messages import image_message, stamp_ns
from pose_reloc.ros.player import PlayerError

FLOOR_NAME = 'floor'
_START_TIMEOUT_S = 90.0
_LINGER_S = 1.0
# Where a message that begins with a header has its stamp, behind the 4 bytes of encapsulation.
_STAMP_OFFSET = 4


@dataclass(frozen=True)
class Round:
    """What came back of images sent for some seconds.

    Attributes:
        sent: number of images.
        latency_s: from publication to reception of the pose (N,), of the answered ones.
        localize_s: of it in `Relocalizer.localize` (N,); NaN where the node does not say.
        seconds: how long images were sent.
    """

    sent: int
    latency_s: np.ndarray
    localize_s: np.ndarray
    seconds: float


class FloorProcess:
    """The floor as a process, answering images on `topic`. Ends it when the `with` ends."""

    def __init__(self, topic: str, compressed: bool):
        self._command = [sys.executable, '-m', 'pose_reloc.ros.probe', topic, str(int(compressed))]

    def __enter__(self) -> FloorProcess:
        self._process = subprocess.Popen(self._command, start_new_session=True)
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()


class Probe:
    """Publishes one image again and again. Use it in a `with` statement.

    Args:
        image_HW3: uint8 RGB.
        compressed: send it as JPEG.
        topics: node name to the topic of its images, for every node to be timed.
    """

    def __init__(self, image_HW3: np.ndarray, compressed: bool, topics: dict[str, str]):
        message = _jpeg_message(image_HW3) if compressed else image_message(0, '', image_HW3)
        self._cdr = bytearray(serialize_message(message))
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('pose_reloc_probe', context=self._context)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = {
            name: self._node.create_publisher(type(message), topic, qos)
            for name, topic in topics.items()
        }
        self._sent: dict[int, float] = {}
        self._received: dict[int, float] = {}
        self._localize: dict[int, float] = {}
        listen = self._node.create_subscription
        for name in topics:
            listen(PoseWithCovarianceStamped, f'/{name}/pose', self._on_pose, 100)
            listen(DiagnosticArray, f'/{name}/status', self._on_status, 100)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = Future()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_) -> None:
        self._stop.set_result(None)
        self._thread.join(5)
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until_ready(self) -> None:
        """Waits until every node answers.

        Raises:
            PlayerError: one does not within 90 s.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        for name in self._publishers:
            while not len(self.measure(name, 10.0, 0.3).latency_s):
                if time.monotonic() > deadline:
                    raise PlayerError(f'{name} answers no image within {_START_TIMEOUT_S:.0f} s')

    def measure(self, name: str, rate: float, seconds: float) -> Round:
        """Sends images to one node at `rate` (Hz) for some seconds."""
        self._sent, self._received, self._localize = {}, {}, {}
        sent, start = self._sent, time.perf_counter()
        due = start
        for _ in range(max(round(rate * seconds), 1)):
            time.sleep(max(due - time.perf_counter(), 0.0))
            stamp = time.time_ns()
            struct.pack_into('<iI', self._cdr, _STAMP_OFFSET, *divmod(stamp, 10**9))
            cdr = bytes(self._cdr)
            sent[stamp] = time.perf_counter()
            self._publishers[name].publish(cdr)
            # A machine too slow for the rate takes longer.
            due = max(due + 1 / rate, time.perf_counter())
        elapsed = due - start
        deadline = time.perf_counter() + _LINGER_S
        while len(self._received) < len(sent) and time.perf_counter() < deadline:
            time.sleep(0.01)
        answered = [stamp for stamp in sent if stamp in self._received]
        latency = np.array([self._received[stamp] - sent[stamp] for stamp in answered])
        localize = np.array([self._localize.get(stamp, np.nan) for stamp in answered])
        return Round(len(sent), latency, localize, elapsed)

    def _on_pose(self, message) -> None:
        self._received[stamp_ns(message.header.stamp)] = time.perf_counter()

    def _on_status(self, message) -> None:
        table = {item.key: item.value for item in message.status[0].values}
        if 'localize (ms)' in table:
            self._localize[stamp_ns(message.header.stamp)] = float(table['localize (ms)']) / 1e3

    def _spin(self) -> None:
        try:
            self._executor.spin_until_future_complete(self._stop)
        except ExternalShutdownException:
            pass


def _jpeg_message(image_HW3: np.ndarray) -> CompressedImage:
    import cv2

    data = cv2.imencode('.jpg', cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))[1]
    return CompressedImage(format='jpeg', data=array('B', data.tobytes()))


def main(topic: str, compressed: bool) -> None:
    """Runs the floor until it is killed."""
    rclpy.init()
    node = rclpy.create_node(FLOOR_NAME)
    publisher = node.create_publisher(PoseWithCovarianceStamped, '~/pose', 10)

    def answer(message) -> None:
        publisher.publish(PoseWithCovarianceStamped(header=message.header))

    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
    node.create_subscription(CompressedImage if compressed else Image, topic, answer, qos)
    rclpy.spin(node)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2] == '1')
