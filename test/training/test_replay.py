"""The whole way: train, start the real node, replay a bag over real DDS, read pose and TF back."""

import os
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose
from pose_reloc.network import NetworkSettings
from pose_reloc.relocalizer import Relocalizer
from pose_reloc.ros.messages import matrix_from_pose, matrix_from_transform, stamp_ns
from training.replay import ReplaySettings, replay

pytest.importorskip('rclpy', reason='needs rclpy')

TOPIC = '/camera/image_raw/compressed'
BASE_T_CAMERA = np.array([[0.0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.5], [0, 0, 0, 1]])
FRAMES, BROKEN = 10, 4
# Slow enough for a busy machine to answer every image before the next one takes its place.
CALM = ReplaySettings(rate=0.5, device='cpu')


@pytest.fixture
def calm(monkeypatch):
    """CALM in the domain in which this test listens; no node of an earlier test is heard there."""
    domain = random.SystemRandom().randint(1, 100)
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    return replace(CALM, domain_id=domain)


@pytest.fixture(scope='module')
def samples(room):
    from training.datasets import open_dataset

    return open_dataset('7scenes', room)


@pytest.fixture(scope='module')
def scene_path(samples, tmp_path_factory):
    """A scene trained for a few steps."""
    from training.build import build_scene
    from training.settings import TrainSettings

    settings = TrainSettings(
        network=NetworkSettings('resnet18', hidden=64),
        backbone_weights='none',
        short_side=48,
        points=64,
        epochs=3,
        batch=8,
        learning_rate=1e-3,
        normalize_translation=True,
        device='cpu',
        precision='float32',
    )
    path = tmp_path_factory.mktemp('scene') / 'room.scene'
    build_scene(samples, settings, 'room', 'test').scene.save(path)
    return path


@pytest.fixture(scope='module')
def bag_path(samples, tmp_path_factory):
    """The test walk as a bag."""
    from training.datasets.bag import Recording, write_bag

    path = tmp_path_factory.mktemp('bag') / 'walk'
    camera_T_base = invert_pose(BASE_T_CAMERA)
    frames = [
        Recording(
            1_700_000_000_000_000_000 + i * 200_000_000,
            sample.load_image(),
            sample.world_T_camera @ camera_T_base,
        )
        for i, sample in enumerate(samples.test[:FRAMES])
    ]
    write_bag(path, frames, samples.test[0].camera, BASE_T_CAMERA)
    return path


class Listener:
    """Another ROS node: what anybody hears of the relocalization."""

    def __init__(self):
        import rclpy
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from rclpy.task import Future
        from tf2_msgs.msg import TFMessage

        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('listener', context=self._context)
        self.poses, self.transforms = {}, {}
        self._node.create_subscription(
            PoseWithCovarianceStamped, '/pose_reloc/pose', self._on_pose, 100
        )
        self._node.create_subscription(TFMessage, '/tf', self._on_tf, 100)
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self._node)
        self._stop = Future()
        self._thread = threading.Thread(
            target=executor.spin_until_future_complete, args=(self._stop,), daemon=True
        )
        self._thread.start()

    def _on_pose(self, message):
        self.poses[stamp_ns(message.header.stamp)] = message

    def _on_tf(self, message):
        for item in message.transforms:
            self.transforms[stamp_ns(item.header.stamp)] = item

    def wait_for(self, stamp):
        """Waits until pose and transform of this time have come, at most 20 s."""
        deadline = time.monotonic() + 20
        while not (stamp in self.poses and stamp in self.transforms):
            assert time.monotonic() < deadline, 'the last answer did not reach the listener'
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        import rclpy

        self._stop.set_result(None)
        self._thread.join(20)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


def own_answers(bag_path, scene_path):
    """Stamp -> (map_T_base, true map_T_base) by the relocalizer in this process, without ROS."""
    from training.datasets.bag import Bag

    relocalizer, answers = Relocalizer.load(scene_path, 'cpu'), {}
    with Bag(bag_path) as bag:
        camera, truth = bag.camera(TOPIC), bag.truth('map', 'base_link')
        for message in bag.messages([TOPIC]):
            estimate = relocalizer.localize(bag.image(message), camera)
            pose = estimate.world_T_camera @ invert_pose(BASE_T_CAMERA)
            answers[message.stamp] = (estimate.status.value, pose, truth.at(message.stamp))
    return answers


def test_every_frame_comes_back_over_ros(bag_path, scene_path, calm):
    with Listener() as listener:
        result = replay(bag_path, scene_path, calm)
        frames = result.evaluation.frames
        answered = [f for f in frames if f.estimate is not None]
        assert len(answered) >= FRAMES // 2
        stamps = [int(f.name) for f in answered]
        listener.wait_for(stamps[-1])
    expected = own_answers(bag_path, scene_path)
    assert [frame.name for frame in frames] == [str(stamp) for stamp in expected]
    for frame, (stamp, (status, pose, truth)) in zip(frames, expected.items()):
        np.testing.assert_allclose(frame.truth, truth, atol=1e-9)
        if status == 'LOST':
            assert frame.status == 'LOST' and frame.reasons and frame.estimate is None
            continue
        assert frame.status == status
        np.testing.assert_allclose(frame.estimate, pose, atol=1e-4)
        assert 0 < frame.latency_s < 60

    # Anybody else hears the same: all of it, from the moment that DDS has connected them.
    for heard in (listener.poses, listener.transforms):
        assert sorted(heard) == stamps[-len(heard) :]
    for stamp, message in listener.poses.items():
        assert message.header.frame_id == 'map'
        pose = matrix_from_pose(message.pose.pose)
        np.testing.assert_allclose(pose, expected[stamp][1], atol=1e-4)
    for stamp, item in listener.transforms.items():
        assert (item.header.frame_id, item.child_frame_id) == ('map', 'base_link_reloc')
        pose = matrix_from_transform(item.transform)
        np.testing.assert_allclose(pose, expected[stamp][1], atol=1e-4)

    summary = result.evaluation.summary()
    assert (summary['frames'], summary['answered']) == (FRAMES, len(answered))
    errors = [np.linalg.norm((f.estimate - f.truth)[:3, 3]) for f in answered]
    np.testing.assert_allclose(summary['median_position_m'], np.median(errors), atol=1e-6)
    assert set(summary['baselines']) == {'retrieval', 'mean_pose'}
    assert result.image[frames[3].name]().shape == (480, 640, 3)
    assert any('TF' in note for note in result.notes)


def test_damaged_images_are_counted_and_the_rest_is_answered(
    bag_path, scene_path, copy_bag, tmp_path
):
    def change(topic, index, data):
        if topic != TOPIC or index != BROKEN:
            return data
        # The picture is its last field: noise in place of its second half, with its length kept.
        half = len(data) // 2
        return data[:half] + bytes(len(data) - half)

    renamed = {'/tf_static': '/robot1/tf_static'}
    path = copy_bag(bag_path, tmp_path / 'damaged', change, 'SQLITE3', renamed)
    frames = replay(path, scene_path, CALM).evaluation.frames
    assert len(frames) == FRAMES
    assert frames[BROKEN].status == 'unreadable'
    assert frames[BROKEN].reasons == ('bad image',)
    expected = [s for s, _, _ in own_answers(bag_path, scene_path).values()]
    for i in set(range(FRAMES)) - {BROKEN}:
        assert (frames[i].estimate is None) == (expected[i] == 'LOST')


def test_messages_cut_off_do_not_stop_the_replay(
    bag_path, scene_path, copy_bag, tmp_path, monkeypatch
):
    # Their answers will never come.
    monkeypatch.setattr('pose_reloc.ros.player._LINGER_S', 2.0)

    def change(topic, index, data):
        cut = {2: 6, 3: 30}.get(index) if topic == TOPIC else None
        return data[:cut] if cut else data

    path = copy_bag(bag_path, tmp_path / 'cut', change)
    frames = replay(path, scene_path, CALM).evaluation.frames
    assert len(frames) == FRAMES
    for i in (2, 3):
        assert frames[i].estimate is None and frames[i].status in ('no answer', 'unreadable')
    assert frames[FRAMES - 1].status not in ('no answer', 'unreadable')


def test_the_camera_is_the_base_where_tf_does_not_know_it(bag_path, scene_path, copy_bag, tmp_path):
    path = copy_bag(bag_path, tmp_path / 'no_tf', drop=['/tf_static'])
    result = replay(path, scene_path, CALM)
    assert any('poses are those of the camera' in note for note in result.notes)
    assert result.evaluation.summary()['answered'] >= FRAMES // 2
    relocalizer = Relocalizer.load(scene_path, 'cpu')
    for frame in result.evaluation.frames:
        if frame.estimate is not None:
            own = relocalizer.localize(result.image[frame.name]())
            np.testing.assert_allclose(frame.estimate, own.world_T_camera, atol=1e-4)


def test_a_node_that_cannot_start_is_an_error_and_leaves_no_process(bag_path, tiny_scene, tmp_path):
    from pose_reloc.ros.player import PlayerError

    tiny_scene.save(tmp_path / 'tiny.scene')
    before = children()
    with pytest.raises(PlayerError, match='exit code 2'):
        replay(bag_path, tmp_path / 'tiny.scene', ReplaySettings(device='cuda:77'))
    assert children() == before


def children():
    """Process numbers of the children of this process."""
    found = set()
    for task in os.listdir('/proc/self/task'):
        with open(f'/proc/self/task/{task}/children') as file:
            found |= set(file.read().split())
    return found
