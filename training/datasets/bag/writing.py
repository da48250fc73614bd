"""Writes bags (rosbag2, MCAP): messages of any type, or all that a robot would record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError
from training.datasets.bag import messages
from training.datasets.bag.reading import CAMERA_TYPE, IMAGE_TYPES, STORE, TF_TYPE

TRUTH_TOPIC = '/ground_truth/pose'


class BagOutput:
    """A bag that is being written: a topic comes into being with its first message."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._connections: dict[str, object] = {}

    def raw(self, topic: str, kind: str, time: int, cdr: bytes) -> None:
        """Writes the bytes of a message, recorded at `time` (ns)."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=STORE)
        self._writer.write(self._connections[topic], time, cdr)

    def message(self, topic: str, kind: str, time: int, message) -> None:
        """Writes a message, recorded at `time` (ns)."""
        self.raw(topic, kind, time, STORE.serialize_cdr(message, kind))


@contextmanager
def new_bag(path: Path) -> Iterator[BagOutput]:
    """Writes a bag.

    Args:
        path: of the bag's folder, which must not exist.

    Raises:
        BagError: the folder exists or cannot be written.
    """
    try:
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            yield BagOutput(writer)
    except (OSError, WriterError) as error:
        raise BagError(f'cannot write the bag {path}: {error}') from error


@dataclass(frozen=True)
class Recording:
    """What `write_bag` needs to know of one frame.

    Attributes:
        stamp: nanoseconds.
        image: uint8 RGB (H, W, 3).
        map_T_base: true pose (4, 4) of the robot's base in the map.
    """

    stamp: int
    image: np.ndarray
    map_T_base: np.ndarray


def write_bag(
    path: str | Path, frames: Iterable[Recording], camera: Camera, base_T_camera: np.ndarray
) -> None:
    """Writes a bag as a robot would record it.

    Topics: /camera/image_raw/compressed (JPEG), /camera/camera_info, /tf_static
    (base_link -> camera_optical_frame), and the truth on /ground_truth/pose.

    Args:
        path: of the bag's folder, which must not exist.
        frames: in the order of time.
        camera: pinhole or plumb_bob.
        base_T_camera: mounting (4, 4) of the optical frame on base_link.

    Raises:
        BagError: the folder exists or cannot be written.
    """
    mounted = False
    with new_bag(Path(path)) as bag:
        for frame in frames:
            stamp = frame.stamp
            header = messages.header(stamp, 'camera_optical_frame')
            if not mounted:
                mounting = messages.transform(stamp, 'base_link', header.frame_id, base_T_camera)
                bag.message('/tf_static', TF_TYPE, stamp, mounting)
                mounted = True
            info = _camera_info(camera, header)
            bag.message('/camera/camera_info', CAMERA_TYPE, stamp, info)
            image = messages.new(IMAGE_TYPES[1], header, 'jpeg', _jpeg(frame.image))
            bag.message('/camera/image_raw/compressed', IMAGE_TYPES[1], stamp, image)
            truth = messages.pose_stamped(stamp, 'map', frame.map_T_base)
            bag.message(TRUTH_TOPIC, messages.POSE_TYPE, stamp, truth)


def _camera_info(camera: Camera, header):
    """sensor_msgs/CameraInfo."""
    D = np.array(camera.distortion or (0.0,) * 5)
    P = np.hstack([camera.K, np.zeros((3, 1))])
    roi = messages.new('sensor_msgs/msg/RegionOfInterest', 0, 0, 0, 0, False)
    return messages.new(
        CAMERA_TYPE, header, camera.height, camera.width, camera.distortion_model, D,
        camera.K.ravel(), np.eye(3).ravel(), P.ravel(), 0, 0, roi,
    )  # fmt: skip


def _jpeg(image: np.ndarray) -> np.ndarray:
    import cv2

    ok, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return data.ravel()
