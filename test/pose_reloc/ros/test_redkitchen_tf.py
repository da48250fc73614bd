"""map -> base_link as a navigation stack sees it: a real recording, an odometry that drifts.

With the environment variable POSE_RELOC_SCENE=FILE it takes this scene of red kitchen, else
landmarks of some of its images, without a trained network. POSE_RELOC_RATE=1 plays at the recorded
speed. `-s` prints the numbers.
"""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import invert_pose, pose_error, pose_matrix
from pose_reloc.ros.messages import matrix_from_transform, stamp_ns
from pose_reloc.ros.transforms import TransformError, TransformTree, static_qos

pytest.importorskip('rclpy', reason='needs rclpy')

# Of the recorded speed, so that a machine that is busy with other things answers often enough.
RATE = float(os.environ.get('POSE_RELOC_RATE', 0.25))
# What is added to the recorded odometry, which drifts by less than 2 cm in these 3 seconds.
DRIFT_M_S, DRIFT_RAD_S = 0.1, np.deg2rad(3.0)


@pytest.fixture(scope='module')
def kitchen(data, tmp_path_factory):
    """A scene file of red kitchen."""
    if os.environ.get('POSE_RELOC_SCENE'):
        return os.environ['POSE_RELOC_SCENE']
    from training.benchmarks.workload import untrained_scene
    from training.datasets import open_dataset
    from training.mapping import MappingSettings, build_landmarks

    samples = open_dataset('7scenes', data / 'redkitchen').split('train')[::8]
    scene = untrained_scene(samples[0].camera, 128)
    scene = replace(
        scene,
        train_world_T_camera=np.array([sample.world_T_camera for sample in samples]),
        start_features=np.repeat(scene.start_features[:1], len(samples), axis=0),
        landmarks=build_landmarks(samples, MappingSettings()),
    )
    file = tmp_path_factory.mktemp('scene') / 'kitchen.scene'
    scene.save(file)
    return str(file)


def drifted(pose, seconds):
    """An odometry that turns and slides away, slowly."""
    turn = Rotation.from_rotvec([0.0, 0.0, DRIFT_RAD_S * seconds]).as_matrix()
    base = pose[:3, 3]
    # About the robot, not about the origin of odometry.
    return pose_matrix(turn @ pose[:3, :3], base + [DRIFT_M_S * seconds, 0.0, 0.0])


def recording(bag, types):
    """The messages of a bag, its odometry drifted."""
    from rosbags.typesys import Stores, get_typestore

    store, first = get_typestore(Stores.ROS2_JAZZY), None
    for message in bag.messages(types):
        first = message.time if first is None else first
        if message.topic == '/tf':
            decoded = bag.decode(message)
            for item in decoded.transforms:
                pose = matrix_from_transform(item.transform)
                moved = drifted(pose, (stamp_ns(item.header.stamp) - first) / 1e9)
                t, q = item.transform.translation, item.transform.rotation
                t.x, t.y, t.z = moved[:3, 3]
                q.x, q.y, q.z, q.w = Rotation.from_matrix(moved[:3, :3]).as_quat()
            cdr = bytes(store.serialize_cdr(decoded, message.type))
            message = replace(message, cdr=cdr)
        yield message


class Consumer:
    """Somebody who looks up map -> base_link again and again, at the newest odometry."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from tf2_msgs.msg import TFMessage

        self.tree, self.seen = TransformTree(history=None), []
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('consumer', context=self._context)
        listen = self._node.create_subscription
        listen(TFMessage, '/tf', lambda m: self.tree.add_message(m, False), 100)
        listen(TFMessage, '/tf_static', lambda m: self.tree.add_message(m, True), static_qos())
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (
            self._spin, self._look,
        )]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _spin(self):
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.05)

    def _look(self):
        while not self._stop.wait(0.02):
            try:
                stamp = self.tree.stamps('odom', 'base_link')[-1]
                self.seen.append((stamp, self.tree.lookup('map', 'base_link', stamp)))
            except TransformError:
                continue

    def close(self):
        import rclpy

        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


def test_map_to_base_stays_true_while_odometry_drifts(data, kitchen):
    from pose_reloc.ros.player import NodeProcess, Player
    from training.datasets.bag import Bag, camera_info_topic

    parameters = {
        'scene': kitchen,
        'image_transport': 'compressed',
        'tf_mode': 'map_to_odom',
        'reliability': 'reliable',
    }
    consumer = Consumer()
    try:
        with Bag(data / 'bags' / 'redkitchen_query') as bag:
            truth = bag.truth('map', 'base_link')
            image = bag.image_topic().name
            topics = {image, camera_info_topic(image), '/tf', '/tf_static'}
            types = {topic.name: topic.type for topic in bag.topics if topic.name in topics}
            plain = {'image': image.removesuffix('/compressed')}
            with Player(image, types) as player, NodeProcess(parameters, plain) as process:
                player.wait_until_ready(process.check)
                playback = player.play(recording(bag, types), RATE, alive=process.check)
                time.sleep(0.2)
    finally:
        consumer.close()

    errors, alone, start = [], [], None
    for stamp, map_T_base in consumer.seen:
        true, odom_T_base = truth.at(stamp), consumer.tree.lookup('odom', 'base_link', stamp)
        # Odometry alone: told exactly where it was when the first pose came.
        start = true @ invert_pose(odom_T_base) if start is None else start
        errors.append(pose_error(true, map_T_base)[0])
        alone.append(pose_error(true, start @ odom_T_base)[0])
    errors, alone = np.array(errors), np.array(alone)
    print(
        f'{len(playback.received)} of {len(playback.sent)} images answered; map -> base_link: '
        f'median {np.median(errors):.3f} m, within 10 cm {100 * (errors < 0.1).mean():.1f} % of '
        f'{len(errors)} lookups; odometry alone: median {np.median(alone):.3f} m, within 10 cm '
        f'{100 * (alone < 0.1).mean():.1f} %, at the end {alone[-1]:.3f} m'
    )
    assert len(playback.received) >= 5 and len(errors) > 50
    assert (errors < 0.1).mean() >= 0.9
    assert alone[-1] > 0.2, 'or the odometry does not drift'
