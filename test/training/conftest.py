"""Bags for tests: a short recording, and copies of it with something changed."""

import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
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
