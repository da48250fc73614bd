"""Bags for tests: a short recording, and copies of it with something changed. And a browser."""

from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from training.datasets.bag import Recording, write_bag

IMAGE_TOPIC = '/camera/image_raw/compressed'
FIRST, PERIOD = 1_700_000_000_000_000_000, 100_000_000


def make_recordings(count=5, size=(120, 160)):
    """Frames of smooth coloured images and random poses."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[0 : size[0], 0 : size[1]]
    frames = []
    for i in range(count):
        image = np.dstack([u, v, 0 * u + 20 * i]).clip(0, 255).astype(np.uint8)
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=i).as_matrix()
        pose[:3, 3] = rng.uniform(-1, 1, 3)
        frames.append(Recording(FIRST + i * PERIOD, image, pose))
    return frames


CAMERA = Camera(160, 120, 130.0, 131.0, 80.0, 60.0, (0.1, -0.05, 0.001, 0.002, 0.0))
BASE_T_CAMERA = np.array([[0.0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.5], [0, 0, 0, 1]])


@pytest.fixture
def recordings():
    return make_recordings()


@pytest.fixture
def bag_path(tmp_path, recordings):
    """A bag of five frames, written by `write_bag`."""
    path = tmp_path / 'recorded'
    write_bag(path, recordings, CAMERA, BASE_T_CAMERA)
    return path


def copy(source, target, change=None, storage='MCAP', rename=None, drop=(), extra=()):
    """A copy of a bag.

    Args:
        change: change(topic, index on the topic, bytes) -> bytes.
        storage: 'MCAP' or 'SQLITE3'.
        rename: topic names, old to new.
        drop: topics to leave out.
        extra: (topic, type, time, message, typestore) of messages to add.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    counts, connections = {}, {}
    with (
        Reader(source) as reader,
        Writer(target, version=9, storage_plugin=StoragePlugin[storage]) as writer,
    ):
        for c in reader.connections:
            if c.topic not in drop:
                name = (rename or {}).get(c.topic, c.topic)
                connections[c.topic] = writer.add_connection(name, c.msgtype, typestore=store)
        for connection, time, data in reader.messages():
            topic = connection.topic
            if topic in drop:
                continue
            index = counts[topic] = counts.get(topic, -1) + 1
            data = change(topic, index, bytes(data)) if change else data
            writer.write(connections[topic], time, data)
        for topic, kind, time, message, types in extra:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=types)
            writer.write(connections[topic], time, types.serialize_cdr(message, kind))
    return target


@pytest.fixture
def copy_bag():
    """The function `copy`."""
    return copy


@pytest.fixture(scope='module')
def browser():
    """Headless Chromium; tests that ask for it skip where there is none."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    chromium = Path('/usr/bin/chromium')
    if not chromium.is_file():
        pytest.skip(f'there is no browser at {chromium}')
    quiet = (
        'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
        'disable-background-networking', 'disable-component-update', 'disable-sync',
        'use-fake-device-for-media-stream', 'use-fake-ui-for-media-stream',
    )  # fmt: skip
    with playwright.sync_playwright() as driver:
        program = driver.chromium.launch(
            executable_path=str(chromium), args=[f'--{name}' for name in quiet]
        )
        yield program
        program.close()


@pytest.fixture
def open_page(browser):
    """A function that opens an address in a window; it fails on any error in the page.

    The page that it gives has a list `requests` of what was fetched.
    """
    contexts, errors = [], []

    def open_page(address, width=1280, scheme='light'):
        context = browser.new_context(
            viewport={'width': width, 'height': 800}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        page = context.new_page()
        page.requests = []
        page.on('request', lambda r: page.requests.append(r.url))
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
        page.goto(address)
        return page

    open_page.errors = errors
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


class BagBuilder:
    """Collects messages and writes them as a bag of any kind."""

    def __init__(self):
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.messages = []  # (time, topic, type, message)

    def type(self, name):
        return self.store.types[name]

    def add(self, topic, kind, stamp, message, recorded=None):
        self.messages.append((stamp if recorded is None else recorded, topic, kind, message))

    def header(self, stamp, frame):
        time = self.type('builtin_interfaces/msg/Time')(stamp // 10**9, stamp % 10**9)
        return self.type('std_msgs/msg/Header')(time, frame)

    def image(self, topic, stamp, image, frame='camera_optical_frame', recorded=None):
        """uint8 RGB (H, W, 3), 16-bit (H, W), or float32 (H, W)."""
        encoding = {'uint8': 'rgb8', 'uint16': '16UC1', 'float32': '32FC1'}[image.dtype.name]
        height, width = image.shape[:2]
        data = np.ascontiguousarray(image).view(np.uint8).ravel()
        message = self.type('sensor_msgs/msg/Image')(
            self.header(stamp, frame), height, width, encoding, 0, len(data) // height, data
        )
        self.add(topic, 'sensor_msgs/msg/Image', stamp, message, recorded)

    def compressed(self, topic, stamp, data, format, frame='camera_optical_frame'):
        """Bytes as they are."""
        kind = 'sensor_msgs/msg/CompressedImage'
        data = np.frombuffer(data, np.uint8)
        self.add(topic, kind, stamp, self.type(kind)(self.header(stamp, frame), format, data))

    def info(self, topic, stamp, camera, frame='camera_optical_frame', P=None):
        kind = 'sensor_msgs/msg/CameraInfo'
        K = np.array(camera.K, dtype=np.float64)
        P = np.hstack([K, np.zeros((3, 1))]) if P is None else P
        D = np.array(camera.distortion or (0.0,) * 5)
        roi = self.type('sensor_msgs/msg/RegionOfInterest')(0, 0, 0, 0, False)
        message = self.type(kind)(
            self.header(stamp, frame), camera.height, camera.width, camera.distortion_model, D,
            K.ravel(), np.eye(3).ravel(), P.ravel(), 0, 0, roi,
        )  # fmt: skip
        self.add(topic, kind, stamp, message)

    def transform(self, parent, child, stamp, parent_T_child, static=False, topic=None):
        t, q = self._parts(parent_T_child)
        transform = self.type('geometry_msgs/msg/Transform')(
            self.type('geometry_msgs/msg/Vector3')(*t), q
        )
        item = self.type('geometry_msgs/msg/TransformStamped')(
            self.header(stamp, parent), child, transform
        )
        kind = 'tf2_msgs/msg/TFMessage'
        self.add(topic or ('/tf_static' if static else '/tf'), kind, stamp, self.type(kind)([item]))

    def pose(self, topic, stamp, pose, frame='map', kind='PoseStamped', child='base_link'):
        t, q = self._parts(pose)
        pose = self.type('geometry_msgs/msg/Pose')(self.type('geometry_msgs/msg/Point')(*t), q)
        header = self.header(stamp, frame)
        if kind != 'PoseStamped':
            covariance = self.type('geometry_msgs/msg/PoseWithCovariance')
            pose = covariance(pose, np.zeros(36))
        if kind == 'Odometry':
            zero = self.type('geometry_msgs/msg/Vector3')(0.0, 0.0, 0.0)
            twist = self.type('geometry_msgs/msg/Twist')(zero, zero)
            twist = self.type('geometry_msgs/msg/TwistWithCovariance')(twist, np.zeros(36))
            name = 'nav_msgs/msg/Odometry'
            message = self.type(name)(header, child, pose, twist)
        else:
            name = f'geometry_msgs/msg/{kind}'
            message = self.type(name)(header, pose)
        self.add(topic, name, stamp, message)

    def _parts(self, pose):
        q = Rotation.from_matrix(pose[:3, :3]).as_quat()
        return pose[:3, 3].tolist(), self.type('geometry_msgs/msg/Quaternion')(*q.tolist())

    def write(self, path, storage='MCAP'):
        """Writes 'MCAP', 'SQLITE3' or 'ROS1' in the order of recording; returns the path."""
        if storage == 'ROS1':
            return self._write_ros1(path.with_suffix('.bag'))
        connections = {}
        with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
            for time, topic, kind, message in sorted(self.messages, key=lambda m: m[0]):
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=self.store)
                writer.write(connections[topic], time, self.store.serialize_cdr(message, kind))
        return path

    def _write_ros1(self, path):
        store = get_typestore(Stores.ROS1_NOETIC)
        store.register(
            get_types_from_msg(
                'geometry_msgs/TransformStamped[] transforms', 'tf2_msgs/msg/TFMessage'
            )
        )
        connections = {}
        with Ros1Writer(path) as writer:
            for time, topic, kind, message in sorted(self.messages, key=lambda m: m[0]):
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=store)
                cdr = self.store.serialize_cdr(message, kind)
                writer.write(connections[topic], time, self.store.cdr_to_ros1(cdr, kind))
        return path


@pytest.fixture
def new_builder():
    """Makes an empty BagBuilder."""
    return BagBuilder


@pytest.fixture
def builder():
    """An empty BagBuilder."""
    return BagBuilder()
