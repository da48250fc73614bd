"""A bag answered without ROS, and what is written of it: against the relocalizer and rosbags."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from pose_reloc import cli
from pose_reloc.errors import BagError
from pose_reloc.geometry import invert_pose
from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.uncertainty import propagate_lever_arm
from training.datasets.bag import Bag
from training.metrics import write_tum
from training.replay import ReplaySettings, replay, write_csv, write_result_bag

TOPIC = '/camera/image_raw/compressed'
FIRST, PERIOD, COUNT = 1_700_000_000_000_000_000, 100_000_000, 5
BASE_T_CAMERA = np.array([[0.0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.5], [0, 0, 0, 1]])
OFFLINE = ReplaySettings(live=False, device='cpu')
STORE = get_typestore(Stores.ROS2_JAZZY)


@pytest.fixture
def scene_path(tiny_scene, tmp_path):
    tiny_scene.save(tmp_path / 'tiny.scene')
    return tmp_path / 'tiny.scene'


@pytest.fixture(autouse=True)
def seeing(monkeypatch):
    """Answers that depend on image and camera: those of an untrained network hardly do."""
    localize = Relocalizer.localize

    def see(self, image, camera=None, prior=None):
        estimate = localize(self, image, camera, prior)
        if estimate.status is Status.LOST:
            return estimate
        turned = [image[..., 2].mean() / 100, camera.fx / 1000, sum(camera.distortion)]
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_rotvec(turned).as_matrix()
        pose[:3, 3] = turned[::-1]
        return replace(estimate, world_T_camera=pose)

    monkeypatch.setattr(Relocalizer, 'localize', see)


@pytest.fixture
def result(bag_path, scene_path):
    return replay(bag_path, scene_path, OFFLINE)


def test_every_image_gets_the_answer_of_the_relocalizer(result, bag_path, scene_path, recordings):
    relocalizer = Relocalizer.load(scene_path, 'cpu')
    with Bag(bag_path) as bag:
        camera = bag.camera(TOPIC)
        images = [bag.image(message) for message in bag.messages([TOPIC])]
    frames = result.evaluation.frames
    assert [f.name for f in frames] == [str(FIRST + i * PERIOD) for i in range(COUNT)]
    for frame, image, recorded in zip(frames, images, recordings):
        own = relocalizer.localize(image, camera)
        assert (frame.status, frame.reasons) == (own.status.value, own.reasons)
        camera_T_base = invert_pose(BASE_T_CAMERA)
        np.testing.assert_allclose(frame.estimate, own.world_T_camera @ camera_T_base, atol=1e-6)
        covariance = propagate_lever_arm(own.covariance_66, own.world_T_camera, camera_T_base)
        np.testing.assert_allclose(frame.covariance_66, covariance, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(frame.truth, recorded.map_T_base, atol=1e-9)
        assert frame.latency_s > 0
        np.testing.assert_array_equal(result.image[frame.name](), image)
    assert set(result.evaluation.baselines) == {'retrieval', 'mean_pose'}
    positions = [frame.estimate[2, 3] for frame in frames]
    assert len(set(positions)) == COUNT


def test_it_repeats_exactly(result, bag_path, scene_path):
    again = replay(bag_path, scene_path, OFFLINE)
    for one, other in zip(result.evaluation.frames, again.evaluation.frames):
        np.testing.assert_array_equal(one.estimate, other.estimate)
        np.testing.assert_array_equal(one.covariance_66, other.covariance_66)


def test_damaged_black_and_twin_images_are_accounted_for(
    bag_path, scene_path, copy_bag, tmp_path, recordings
):
    import cv2

    black = cv2.imencode('.jpg', np.zeros((120, 160, 3), np.uint8))[1].ravel()

    def change(topic, index, data):
        if topic != TOPIC:
            return data
        if index == 0:
            return data[:30]  # within the header
        if index == 1:
            return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        message = STORE.deserialize_cdr(data, 'sensor_msgs/msg/CompressedImage')
        if index == 2:
            message.data = black
        if index == 4:  # of the same moment as the one before
            stamp = FIRST + 3 * PERIOD
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        return bytes(STORE.serialize_cdr(message, 'sensor_msgs/msg/CompressedImage'))

    frames = replay(copy_bag(bag_path, tmp_path / 'odd', change), scene_path, OFFLINE).evaluation
    frames = frames.frames
    assert [f.status for f in frames] == ['unreadable', 'unreadable', 'LOST', 'COARSE', 'COARSE']
    assert frames[0].reasons == frames[1].reasons == ('bad image',)
    assert 'too_dark' in frames[2].reasons
    assert len({f.name for f in frames}) == COUNT
    # Both are answered; the truth is that of their common stamp.
    np.testing.assert_allclose(frames[4].truth, recordings[3].map_T_base, atol=1e-9)


def test_camera_info_that_comes_late_or_never(bag_path, scene_path, copy_bag, tmp_path, result):
    counts = {'info': 0}

    def change(topic, index, data):
        if topic != '/camera/camera_info':
            return data
        counts['info'] += 1
        return data if index == COUNT - 1 else data[:20]

    late = replay(copy_bag(bag_path, tmp_path / 'late', change), scene_path, OFFLINE)
    for frame, expected in zip(late.evaluation.frames, result.evaluation.frames):
        np.testing.assert_array_equal(frame.estimate, expected.estimate)
    assert counts['info'] == COUNT
    blind = copy_bag(bag_path, tmp_path / 'blind', drop=['/camera/camera_info'])
    never = replay(blind, scene_path, OFFLINE)
    assert any('no camera_info' in note for note in never.notes)
    assumed = never.evaluation.frames[0].estimate  # the camera of the scene, undistorted
    assert assumed is not None and not np.allclose(assumed, result.evaluation.frames[0].estimate)


def test_truth_from_a_tum_file(bag_path, scene_path, tmp_path, recordings):
    # Of every other image, and shifted: what is compared is the file, not the bag.
    stamps = [(FIRST + i * PERIOD) / 1e9 for i in (0, 2, 4)]
    poses = np.array([recordings[i].map_T_base for i in (0, 2, 4)])
    poses[:, 0, 3] += 1.0
    write_tum(tmp_path / 'truth.txt', stamps, poses)
    settings = ReplaySettings(live=False, device='cpu', truth_tum=tmp_path / 'truth.txt')
    result = replay(bag_path, scene_path, settings)
    for i, frame in enumerate(result.evaluation.frames):
        if i % 2 == 0:
            np.testing.assert_allclose(frame.truth, poses[i // 2], atol=1e-6)
        else:  # half way between
            expected = (poses[i // 2] + poses[i // 2 + 1])[:3, 3] / 2
            np.testing.assert_allclose(frame.truth[:3, 3], expected, atol=1e-4)
    assert any('truth.txt' in note and 'base_link in map' in note for note in result.notes)


def test_truth_of_another_body_is_carried_to_the_base(
    bag_path, scene_path, copy_bag, tmp_path, recordings
):
    types = STORE.types

    def odometry(i):
        """The truth of the camera, not of the base, in the frame of a motion capture system."""
        pose = recordings[i].map_T_base @ BASE_T_CAMERA
        stamp = FIRST + i * PERIOD
        time = types['builtin_interfaces/msg/Time'](*divmod(stamp, 10**9))
        header = types['std_msgs/msg/Header'](time, 'mocap')
        q = Rotation.from_matrix(pose[:3, :3]).as_quat()
        pose = types['geometry_msgs/msg/Pose'](
            types['geometry_msgs/msg/Point'](*pose[:3, 3]),
            types['geometry_msgs/msg/Quaternion'](*q),
        )
        zero = types['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
        twist = types['geometry_msgs/msg/TwistWithCovariance'](
            types['geometry_msgs/msg/Twist'](zero, zero), np.zeros(36)
        )
        pose = types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36))
        kind = 'nav_msgs/msg/Odometry'
        message = types[kind](header, 'camera_optical_frame', pose, twist)
        return ('/mocap/odom', kind, stamp, message, STORE)

    path = copy_bag(
        bag_path, tmp_path / 'mocap', drop=['/ground_truth/pose'], extra=map(odometry, range(COUNT))
    )
    settings = ReplaySettings(live=False, device='cpu', truth_topic='/mocap/odom')
    result = replay(path, scene_path, settings)
    for frame, recorded in zip(result.evaluation.frames, recordings):
        np.testing.assert_allclose(frame.truth, recorded.map_T_base, atol=1e-9)
    (note,) = [note for note in result.notes if note.startswith('truth')]
    assert 'carried to base_link by TF' in note and "'mocap'" in note and '--align' in note


def read(path):
    """Topic to [(time of recording, message)] of a bag, by rosbags alone."""
    messages = {}
    with Reader(path) as reader:
        for connection, time, data in reader.messages():
            message = STORE.deserialize_cdr(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((time, message))
    return messages


def matrix(position, q):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    pose[:3, 3] = position.x, position.y, position.z
    return pose


def stamp(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_the_result_bag_holds_the_same_poses(result, bag_path, tmp_path):
    write_result_bag(tmp_path / 'answers', result, with_images=True)
    written, frames = read(tmp_path / 'answers'), result.evaluation.frames
    for name, wanted in (('/pose_reloc/pose', 'estimate'), ('/ground_truth/pose', 'truth')):
        assert len(written[name]) == COUNT
        for frame, (_, message) in zip(frames, written[name]):
            assert stamp(message) == int(frame.name)
            assert message.header.frame_id == 'map'
            pose = message.pose.pose if wanted == 'estimate' else message.pose
            read_back = matrix(pose.position, pose.orientation)
            np.testing.assert_allclose(read_back, getattr(frame, wanted), atol=1e-9)
    for frame, (_, message) in zip(frames, written['/pose_reloc/pose']):
        covariance = message.pose.covariance.reshape(6, 6)
        np.testing.assert_array_equal(covariance, frame.covariance_66)
    for frame, (_, message) in zip(frames, written['/tf']):
        (item,) = message.transforms
        assert (item.header.frame_id, item.child_frame_id) == ('map', 'base_link_reloc')
        moved = matrix(item.transform.translation, item.transform.rotation)
        np.testing.assert_allclose(moved, frame.estimate, atol=1e-9)
    ((_, message),) = written['/tf_static']
    (item,) = message.transforms
    assert item.header.frame_id == 'base_link_reloc'
    mounting = matrix(item.transform.translation, item.transform.rotation)
    np.testing.assert_allclose(mounting, BASE_T_CAMERA, atol=1e-9)
    before = read(bag_path)
    for topic in (TOPIC, '/camera/camera_info'):
        assert [time for time, _ in written[topic]] == [time for time, _ in before[topic]]
    for (_, one), (_, other) in zip(written[TOPIC], before[TOPIC]):
        np.testing.assert_array_equal(one.data, other.data)
    assert item.child_frame_id == written[TOPIC][0][1].header.frame_id


def test_the_result_bag_is_a_bag_that_can_be_replayed(result, scene_path, tmp_path):
    write_result_bag(tmp_path / 'answers', result, with_images=True)
    settings = ReplaySettings(live=False, device='cpu', base_frame='base_link_reloc')
    again = replay(tmp_path / 'answers', scene_path, settings)
    for one, other in zip(result.evaluation.frames, again.evaluation.frames):
        np.testing.assert_allclose(one.estimate, other.estimate, atol=1e-9)
        np.testing.assert_allclose(one.truth, other.truth, atol=1e-9)


def test_an_existing_folder_is_not_overwritten(result, tmp_path):
    with pytest.raises(BagError, match='cannot write the bag'):
        write_result_bag(tmp_path, result)


def test_the_csv_says_the_same(result, tmp_path):
    write_csv(tmp_path / 'out.csv', result.evaluation.frames)
    with open(tmp_path / 'out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT
    for row, frame in zip(rows, result.evaluation.frames):
        assert (row['name'], row['status']) == (frame.name, frame.status)
        metres = np.linalg.norm(frame.truth[:3, 3] - frame.estimate[:3, 3])
        assert float(row['position_error_m']) == pytest.approx(metres)
        turned = Rotation.from_matrix(frame.truth[:3, :3].T @ frame.estimate[:3, :3])
        assert float(row['rotation_error_deg']) == pytest.approx(np.rad2deg(turned.magnitude()))
        for prefix, pose in (('', frame.estimate), ('truth_', frame.truth)):
            position = [float(row[f'{prefix}{axis}']) for axis in 'xyz']
            np.testing.assert_allclose(position, pose[:3, 3])
            q_xyzw = [float(row[f'{prefix}q{axis}']) for axis in 'xyzw']
            np.testing.assert_allclose(
                Rotation.from_quat(q_xyzw).as_matrix(), pose[:3, :3], atol=1e-9
            )
        assert float(row['sigma_y']) ** 2 == pytest.approx(frame.covariance_66[1, 1])
        sigma_yaw = np.deg2rad(float(row['sigma_rot_z']))
        assert sigma_yaw**2 == pytest.approx(frame.covariance_66[5, 5])


def test_the_command_writes_all_of_it(bag_path, scene_path, tmp_path, capsys):
    names = ('json', 'html', 'tum', 'csv')
    files = [tmp_path / f'out.{name}' for name in names]
    options = [text for name, file in zip(names, files) for text in (f'--{name}', str(file))]
    options += ['--result-bag', str(tmp_path / 'answers')]
    command = ['replay', '--bag', str(bag_path), '--scene', str(scene_path), '--offline']
    assert cli.main([*command, *options]) == 0
    said = capsys.readouterr().out
    assert '(offline, every image)' in said and '5 frames, 5 answered' in said
    assert all(file.stat().st_size > 0 for file in [*files, tmp_path / 'out.truth.tum'])
    assert len(read(tmp_path / 'answers')['/pose_reloc/pose']) == COUNT
    # A second time, nothing is computed only to be lost at the end.
    assert cli.main([*command, *options]) == 2
    assert 'exists already' in capsys.readouterr().err


HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in (
            'rclpy', 'rpyutils', 'geometry_msgs', 'sensor_msgs', 'diagnostic_msgs', 'std_msgs',
            'builtin_interfaces', 'tf2_msgs', 'rosgraph_msgs', 'rcl_interfaces', 'tf2_ros',
        ):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Hide())
from pose_reloc import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_offline_needs_no_ros(bag_path, scene_path):
    command = ['replay', '--bag', str(bag_path), '--scene', str(scene_path), '--offline']
    done = subprocess.run(
        [sys.executable, '-c', HIDDEN, *command],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert '5 frames, 5 answered' in done.stdout


def test_live_without_ros_says_what_to_do(bag_path, scene_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'pose_reloc.ros.player', None)  # importing it fails
    assert cli.main(['replay', '--bag', str(bag_path), '--scene', str(scene_path)]) == 2
    said = capsys.readouterr().err
    assert 'needs ROS 2' in said and '--offline' in said
