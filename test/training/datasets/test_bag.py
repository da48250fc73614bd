"""Bags: what is written comes back, in both storages, and what is wrong is said in a sentence."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, CameraError
from pose_reloc.ros.messages import MessageError
from training.datasets.bag import Bag, write_bag

TOPIC = '/camera/image_raw/compressed'
INFO = '/camera/camera_info'
TRUTH = '/ground_truth/pose'
# As in the fixture `bag_path`.
CAMERA = Camera(160, 120, 130.0, 131.0, 80.0, 60.0, (0.1, -0.05, 0.001, 0.002, 0.0))
BASE_T_CAMERA = np.array([[0.0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.5], [0, 0, 0, 1]])
STORE = get_typestore(Stores.ROS2_JAZZY)


@pytest.fixture(params=['MCAP', 'SQLITE3'])
def any_storage(request, bag_path, copy_bag, tmp_path):
    """The same bag in each storage."""
    if request.param == 'MCAP':
        return bag_path
    return copy_bag(bag_path, tmp_path / 'copied', storage='SQLITE3')


def test_round_trip(any_storage, recordings):
    with Bag(any_storage) as bag:
        assert {t.name: t.count for t in bag.topics} == {
            TOPIC: 5, INFO: 5, '/tf_static': 1, TRUTH: 5,
        }  # fmt: skip
        topic = bag.image_topic()
        assert (topic.name, topic.type) == (TOPIC, 'sensor_msgs/msg/CompressedImage')
        assert bag.camera(TOPIC) == CAMERA
        assert bag.frame_id(TOPIC) == 'camera_optical_frame'
        mounting = bag.transforms().lookup('base_link', 'camera_optical_frame')
        np.testing.assert_allclose(mounting, BASE_T_CAMERA, atol=1e-12)
        truth = bag.truth('map', 'base_link')
        assert truth.source == TRUTH
        messages = list(bag.messages([TOPIC]))
        assert [m.stamp for m in messages] == [r.stamp for r in recordings]
        for message, recording in zip(messages, recordings):
            assert np.abs(bag.image(message).astype(int) - recording.image).max() < 12
            np.testing.assert_allclose(truth.at(message.stamp), recording.map_T_base, atol=1e-9)


def test_one_image_by_its_time(any_storage, recordings):
    with Bag(any_storage) as bag:
        for recording in (recordings[3], recordings[0]):
            image = bag.image_at(TOPIC, recording.stamp)
            assert np.abs(image.astype(int) - recording.image).max() < 12
        with pytest.raises(BagError, match='no image'):
            bag.image_at(TOPIC, recordings[0].stamp + 1)


def test_truth_is_not_invented(bag_path, recordings):
    with Bag(bag_path) as bag:
        truth = bag.truth('map', 'base_link')
    between = truth.at((recordings[0].stamp + recordings[1].stamp) // 2)
    mean = (recordings[0].map_T_base[:3, 3] + recordings[1].map_T_base[:3, 3]) / 2
    np.testing.assert_allclose(between[:3, 3], mean, atol=1e-6)
    assert truth.at(recordings[0].stamp - 100_000_000) is None
    assert truth.at(recordings[-1].stamp + 100_000_000) is None


def transforms(poses):
    """Messages on /tf of map -> base_link."""
    t = STORE.types
    for recording in poses:
        stamp = t['builtin_interfaces/msg/Time'](recording.stamp // 10**9, recording.stamp % 10**9)
        q = Rotation.from_matrix(recording.map_T_base[:3, :3]).as_quat()
        transform = t['geometry_msgs/msg/Transform'](
            t['geometry_msgs/msg/Vector3'](*recording.map_T_base[:3, 3]),
            t['geometry_msgs/msg/Quaternion'](*q),
        )
        item = t['geometry_msgs/msg/TransformStamped'](
            t['std_msgs/msg/Header'](stamp, '/map'), 'base_link', transform
        )
        message = t['tf2_msgs/msg/TFMessage']([item])
        yield '/tf', 'tf2_msgs/msg/TFMessage', recording.stamp, message, STORE


def test_truth_from_tf(bag_path, copy_bag, tmp_path, recordings):
    path = copy_bag(bag_path, tmp_path / 'tf', drop=[TRUTH], extra=transforms(recordings))
    with Bag(path) as bag:
        truth = bag.truth('map', 'base_link')
        assert truth.source == 'TF map -> base_link'
        for recording in recordings:
            np.testing.assert_allclose(truth.at(recording.stamp), recording.map_T_base, atol=1e-9)
        body = bag.truth('map', 'camera_optical_frame')
        expected = recordings[2].map_T_base @ BASE_T_CAMERA
        np.testing.assert_allclose(body.at(recordings[2].stamp), expected, atol=1e-9)
        assert bag.truth('earth', 'base_link') is None
        with pytest.raises(BagError, match='no poses on /tf'):
            bag.truth('map', 'base_link', '/tf')


def test_a_type_that_nobody_knows_does_not_matter(bag_path, copy_bag, tmp_path):
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg('float64 volts\n', 'my_robot/msg/Battery'))
    message = types.types['my_robot/msg/Battery'](12.5)
    battery = ('/battery', 'my_robot/msg/Battery', 1_700_000_000_000_000_001, message, types)
    for storage in ('MCAP', 'SQLITE3'):
        path = copy_bag(bag_path, tmp_path / storage, storage=storage, extra=[battery])
        with Bag(path) as bag:
            assert '/battery' in [t.name for t in bag.topics]
            assert len([bag.image(m) for m in bag.messages([TOPIC])]) == 5


# Bags that cannot be used


def test_no_such_bag(tmp_path):
    with pytest.raises(BagError, match='no bag at .*nowhere'):
        Bag(tmp_path / 'nowhere')


def test_a_folder_that_is_no_bag(tmp_path):
    with pytest.raises(BagError, match='no metadata.yaml.*reindex'):
        Bag(tmp_path)


def test_something_that_is_no_bag(tmp_path):
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0\n')
    with pytest.raises(BagError, match='old.bag cannot be read.*rosbag reindex old.bag'):
        Bag(tmp_path / 'old.bag')
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(BagError, match='notes.txt is not a bag'):
        Bag(tmp_path / 'notes.txt')


@pytest.mark.parametrize('text', ['', 'x: [', '[]', 'rosbag2_bagfile_information: 3'])
def test_without_its_metadata_a_bag_is_read_file_by_file(any_storage, recordings, text):
    (any_storage / 'metadata.yaml').write_text(text)
    with Bag(any_storage) as bag:
        assert 'file by file' in bag.notes[0]
        assert [m.stamp for m in bag.messages([TOPIC])] == [r.stamp for r in recordings]
        assert bag.image_topic().count == 5


@pytest.mark.parametrize(
    ('key', 'value'), [('name', 'null'), ('name', '3'), ('type', '[1, 2]'), ('message_count', 'x')]
)
def test_metadata_that_cannot_be_is_not_believed(any_storage, recordings, key, value):
    file = any_storage / 'metadata.yaml'
    text = re.sub(rf'^( *(?:- )?{key}:).*$', rf'\1 {value}', file.read_text(), flags=re.M)
    file.write_text(text)
    with Bag(any_storage) as bag:
        assert 'file by file' in bag.notes[0]
        assert [m.stamp for m in bag.messages([TOPIC])] == [r.stamp for r in recordings]


def cut(path, part):
    """Keeps only the first part of the file of a bag."""
    file = next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])


@pytest.mark.parametrize('part', [0.0, 0.3, 0.8])
def test_a_database_that_was_cut_off(bag_path, copy_bag, tmp_path, part):
    path = copy_bag(bag_path, tmp_path / 'copied', storage='SQLITE3')
    cut(path, part)
    with pytest.raises(BagError, match='cannot be read.*sqlite3 copied.db3 .recover'):
        Bag(path)


def test_a_file_without_a_beginning(bag_path):
    cut(bag_path, 0.0)
    with pytest.raises(BagError, match='cannot be read as a bag: .*empty'):
        Bag(bag_path)


@pytest.mark.parametrize('compression', ['NONE', 'STORAGE'])
def test_a_recording_that_was_cut_off(tmp_path, compression):
    """Cut at any byte, it gives the messages that lie before the cut, and they can be found."""
    times = write_chunks(tmp_path / 'whole', compression)
    data = (tmp_path / 'whole' / 'whole.mcap').read_bytes()
    longest = 0
    for end in np.linspace(len(data) // 20, len(data) - 1, 20).astype(int):
        path = tmp_path / f'{end}.mcap'
        path.write_bytes(data[:end])
        with Bag(path) as bag:
            if not bag.topics:
                assert end < 1.1e6  # within the first chunk
                continue
            found = [m.time for m in bag.messages([TOPIC])]
            assert found == times[: len(found)]
            assert len(found) >= longest
            longest = len(found)
            assert bag.image_topic().count == longest
            assert 'was cut off' in bag.notes[0]
            assert all(bag.message_at(TOPIC, time).time == time for time in found[::9])
    assert longest == len(times)


def write_chunks(path, compression):
    """Writes images of noise in four chunks of about 1 MB; returns when they were recorded."""
    t = STORE.types
    kind = 'sensor_msgs/msg/CompressedImage'
    header = t['std_msgs/msg/Header'](t['builtin_interfaces/msg/Time'](1, 2), 'camera')
    times = list(range(1000, 1080))
    rng = np.random.default_rng(1)
    writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection(TOPIC, kind, typestore=STORE)
        for time in times:
            message = t[kind](header, 'jpeg', rng.integers(0, 255, 50_000, np.uint8))
            writer.write(connection, time, STORE.serialize_cdr(message, kind))
    return times


def test_a_missing_file(bag_path):
    next(bag_path.glob('*.mcap')).unlink()
    with pytest.raises(BagError, match='missing'):
        Bag(bag_path)


def test_damage_in_the_middle(bag_path):
    file = next(bag_path.glob('*.mcap'))
    data = bytearray(file.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    file.write_bytes(data)
    with pytest.raises((BagError, MessageError)), Bag(bag_path) as bag:
        for message in bag.messages([TOPIC]):
            bag.image(message)


def test_a_bag_without_images_names_its_topics(bag_path, copy_bag, tmp_path):
    path = copy_bag(bag_path, tmp_path / 'blind', drop=[TOPIC])
    with Bag(path) as bag:
        with pytest.raises(BagError, match='no images.*/camera/camera_info.*/ground_truth/pose'):
            bag.image_topic()


def image(topic, encoding='mono8', stamp=1_700_000_000_000_000_000):
    t = STORE.types
    header = t['std_msgs/msg/Header'](
        t['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9), 'camera'
    )
    message = t['sensor_msgs/msg/Image'](
        header, 2, 2, encoding, 0, 2, np.array([1, 2, 3, 4], np.uint8)
    )
    return topic, 'sensor_msgs/msg/Image', stamp, message, STORE


def test_two_cameras_must_be_chosen_from(bag_path, copy_bag, tmp_path):
    path = copy_bag(bag_path, tmp_path / 'two', extra=[image('/rear/image_raw')])
    with Bag(path) as bag:
        with pytest.raises(BagError, match=f'several.*{TOPIC}, /rear/image_raw.*--image-topic'):
            bag.image_topic()
        assert bag.image_topic('/rear/image_raw').name == '/rear/image_raw'
        assert bag.image_topic('/camera/image_raw').name == TOPIC
        assert bag.image_topic(TOPIC).name == TOPIC
        with pytest.raises(BagError, match='no images on /front.*image topics: .*/rear'):
            bag.image_topic('/front')
        with pytest.raises(BagError, match='no images on /tf_static'):
            bag.image_topic('/tf_static')
        assert bag.camera('/rear/image_raw') is None
        found = bag.image(next(bag.messages(['/rear/image_raw'])))
        np.testing.assert_array_equal(found[..., 0], [[1, 2], [3, 4]])


def test_raw_and_compressed_of_one_camera_are_one_choice(bag_path, copy_bag, tmp_path):
    extra = [image('/camera/image_raw'), image('/camera/depth/image_raw')]
    path = copy_bag(bag_path, tmp_path / 'both', extra=extra)
    with Bag(path) as bag:
        assert bag.image_topic().name == '/camera/image_raw'


def test_damaged_messages(bag_path, copy_bag, tmp_path, recordings):
    def change(topic, index, data):
        if topic == TOPIC:
            return [data[:6], data[:40], data[:-900], data, data][index]
        return data[:30] if topic == INFO and index == 0 else data

    path = copy_bag(bag_path, tmp_path / 'damaged', change)
    with Bag(path) as bag:
        messages = list(bag.messages([TOPIC]))
        assert [m.stamp for m in messages] == [r.stamp for r in recordings]
        for message in messages[:3]:
            with pytest.raises(MessageError):
                bag.image(message)
        assert bag.image(messages[3]).shape == (120, 160, 3)
        assert bag.frame_id(TOPIC) == 'camera_optical_frame'
        assert bag.camera(TOPIC) == CAMERA


def test_an_uncalibrated_camera(tmp_path, recordings):
    camera = SimpleNamespace(
        width=160, height=120, K=np.zeros((3, 3)), distortion=(), distortion_model='plumb_bob'
    )
    write_bag(tmp_path / 'bag', recordings[:1], camera, np.eye(4))
    with Bag(tmp_path / 'bag') as bag, pytest.raises(CameraError, match='calibrate'):
        bag.camera(TOPIC)


def test_a_bag_is_never_overwritten(bag_path, recordings):
    before = {p.name: p.read_bytes() for p in bag_path.iterdir()}
    with pytest.raises(BagError, match='cannot write the bag'):
        write_bag(bag_path, recordings, CAMERA, BASE_T_CAMERA)
    assert {p.name: p.read_bytes() for p in bag_path.iterdir()} == before


def test_an_empty_recording(tmp_path):
    write_bag(tmp_path / 'bag', [], CAMERA, BASE_T_CAMERA)
    with Bag(tmp_path / 'bag') as bag, pytest.raises(BagError, match='no images'):
        bag.image_topic()


def test_a_moved_bag_is_the_same(bag_path, tmp_path):
    moved = shutil.move(bag_path, tmp_path / 'elsewhere')
    with Bag(moved) as bag:
        assert bag.image_topic().count == 5


# The real ones


def test_real_query_bag(data):
    with Bag(data / 'bags' / 'redkitchen_query') as bag:
        topic = bag.image_topic()
        assert topic.count == 45
        camera = bag.camera(topic.name)
        first = next(bag.messages([topic.name]))
        assert bag.image(first).shape == (camera.height, camera.width, 3) == (480, 640, 3)
        tree = bag.transforms()
        assert tree.can_connect('odom', 'camera_optical_frame')
        assert not tree.can_connect('map', 'odom')
        truth = bag.truth('map', 'base_link')
        assert truth.source == TRUTH
        assert all(truth.at(m.stamp) is not None for m in bag.messages([topic.name]))


def test_real_mapping_bag_agrees_with_the_poses_of_the_dataset(data):
    """Distances between camera centres do not depend on the choice of the map frame."""
    with Bag(data / 'bags' / 'redkitchen_mapping') as bag:
        topic = bag.image_topic()
        assert topic.count == 385
        truth = bag.truth('map', bag.frame_id(topic.name))
        assert truth.source.startswith('TF map')
        stamps = [m.stamp for m in bag.messages([topic.name])]
        centres = np.array([truth.at(stamp)[:3, 3] for stamp in stamps])
    files = sorted((data / 'redkitchen').glob('seq-0[123]/*.pose.txt'))
    expected = np.array([np.loadtxt(f)[:3, 3] for f in files])
    step = np.linalg.norm(np.diff(centres[::40], axis=0), axis=1)
    # The two cameras of the sensor are 2.56 cm apart.
    np.testing.assert_allclose(
        step, np.linalg.norm(np.diff(expected[::40], axis=0), axis=1), atol=0.052
    )
