"""The real node for a long time: memory, threads and handles stay what they were.

`POSE_RELOC_SOAK_S=1800` runs it for half an hour.
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pose_reloc.ros.messages import image_message, transform_message

pytest.importorskip('rclpy', reason='needs rclpy')

SECONDS = float(os.environ.get('POSE_RELOC_SOAK_S', 5))
RATE_HZ = 30
# What caches and a fragmented heap may add after the start; a leak of an image a second is more.
MOST_GROWTH_MB = 16


class Load:
    """A camera at 30 Hz, odometry, somebody who looks at the picture, and one who asks."""

    def __init__(self, context):
        import rclpy
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from std_srvs.srv import Trigger
        from tf2_msgs.msg import TFMessage

        from pose_reloc.ros.transforms import static_qos

        self.node = rclpy.create_node('load', context=context)
        self._tf_message, self._request = TFMessage, Trigger.Request
        create = self.node.create_publisher
        self.images, self._tf = create(Image, 'image', 2), create(TFMessage, '/tf', 50)
        self._static = create(TFMessage, '/tf_static', static_qos())
        self._ask = self.node.create_client(Trigger, '/pose_reloc/relocalize')
        self.poses, self.pictures, self.replies = [], 0, 0
        listen = self.node.create_subscription
        listen(PoseWithCovarianceStamped, '/pose_reloc/pose', self.poses.append, 10)
        listen(Image, '/pose_reloc/debug_image', self._on_picture, 1)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        mounting = transform_message(0, 'base_link', 'camera', np.eye(4))
        self._static.publish(TFMessage(transforms=[mounting]))
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        self._image = image_message(0, 'camera', picture)
        self.sent = 0

    def step(self):
        """One image, the odometry that belongs to it, and now and then a request."""
        self.sent += 1
        now = self.node.get_clock().now()
        odom_T_base = np.eye(4)
        odom_T_base[0, 3] = 0.01 * self.sent
        item = transform_message(now.nanoseconds, 'odom', 'base_link', odom_T_base)
        self._tf.publish(self._tf_message(transforms=[item]))
        self._image.header.stamp = now.to_msg()
        self.images.publish(self._image)
        if self.sent % (2 * RATE_HZ) == 0:
            self._ask.call_async(self._request()).add_done_callback(self._on_reply)

    def _on_picture(self, _):
        self.pictures += 1

    def _on_reply(self, future):
        self.replies += future.result().success

    def _spin(self):
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def close(self):
        self._stop.set()
        self._thread.join(10)
        self._executor.shutdown()
        self.node.destroy_node()


def footprint(pid):
    """(resident MB, threads, open files) of a process."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    status = dict(line.split(':', 1) for line in lines if ':' in line)
    files = len(os.listdir(f'/proc/{pid}/fd'))
    return int(status['VmRSS'].split()[0]) / 1024, int(status['Threads']), files


def test_nothing_grows(tmp_path, tiny_scene, wait, check_pose):
    import rclpy

    from pose_reloc.ros.player import NodeProcess

    scene = tmp_path / 'tiny.scene'
    tiny_scene.save(scene)
    parameters = {'scene': str(scene), 'use_sim_time': False, 'tf_mode': 'map_to_odom',
                  'reliability': 'reliable', 'max_image_age': 0.0}  # fmt: skip
    context = rclpy.Context()
    rclpy.init(context=context)
    load = Load(context)
    try:
        with NodeProcess(parameters, {}) as process:
            wait(lambda: load.images.get_subscription_count(), 90)
            wait(lambda: (load.step(), time.sleep(0.1), len(load.poses) > 20)[-1], 90)
            pid = process._process.pid
            start, seen = time.monotonic(), []
            first = load.sent
            next_look = start + 0.2 * SECONDS  # by then everything has been used once
            while (now := time.monotonic()) < start + SECONDS:
                load.step()
                if now >= next_look:
                    seen.append(footprint(pid))
                    next_look += max(SECONDS / 60, 0.5)
                due = start + (load.sent - first) / RATE_HZ
                time.sleep(max(due - time.monotonic(), 0.0))
                while len(load.poses) > 100:
                    check_pose(load.poses.pop(0))
            wait(lambda: load.replies)
            process.check()
    finally:
        load.close()
        rclpy.shutdown(context=context)
    memory, threads, files = (np.array(column) for column in zip(*seen))
    print(f'{SECONDS:.0f} s, {load.sent} images, {load.pictures} pictures, {load.replies} requests:'
          f' {memory[0]:.0f} to {memory[-1]:.0f} MB, {threads[0]} to {threads[-1]} threads,'
          f' {files[0]} to {files[-1]} files')  # fmt: skip
    for message in load.poses:
        check_pose(message)
    assert load.pictures, 'or the debug image was not part of it'
    assert memory[-1] - memory[0] < MOST_GROWTH_MB
    assert threads[-1] <= threads[0]
    assert files[-1] <= files[0]
