"""Recorded bags, read and written without ROS: rosbag2 in MCAP or sqlite3, through `rosbags`.

`Bag` lists topics, decodes images and cameras, builds the tree of frames from /tf, and finds the
true poses of a recording. Stamps are nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from rosbags.rosbag2 import Reader, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, PoseRelocError
from pose_reloc.geometry import quaternion_from_rotation, xyzw_from_wxyz
from pose_reloc.ros.messages import (
    MessageError,
    camera_from_info,
    image_from_message,
    matrix_from_pose,
    stamp_ns,
)
from pose_reloc.ros.transforms import TransformError, TransformTree

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
CAMERA_TYPE = 'sensor_msgs/msg/CameraInfo'
TF_TYPE = 'tf2_msgs/msg/TFMessage'
# Message type -> how to reach its geometry_msgs/Pose.
_POSE_TYPES = {
    'geometry_msgs/msg/PoseStamped': lambda m: m.pose,
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda m: m.pose.pose,
    'nav_msgs/msg/Odometry': lambda m: m.pose.pose,
}
# The types above are the same in every distribution. Reading them by this store, not by what the
# bag says, keeps a bag readable that also holds types with damaged or unusual definitions.
_STORE = get_typestore(Stores.ROS2_JAZZY)
# A true pose may be this much older or newer than the image it is used for.
_TRUTH_TOLERANCE_S = 0.02


@dataclass(frozen=True)
class Topic:
    """One recorded topic."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class BagMessage:
    """One recorded message.

    Attributes:
        topic, type: of its topic.
        time: when it was recorded, nanoseconds.
        cdr: its bytes as ROS 2 sends them.
    """

    topic: str
    type: str
    time: int
    cdr: bytes

    @property
    def stamp(self) -> int:
        """The stamp in its header, or `time` if the message is cut off before it.

        Only for types that begin with a std_msgs/Header.
        """
        if len(self.cdr) < 12:
            return self.time
        sec, nanosec = struct.unpack_from('<iI' if self.cdr[1] & 1 else '>iI', self.cdr, 4)
        return sec * 1_000_000_000 + nanosec


@dataclass(frozen=True)
class Truth:
    """True poses of a recording over time.

    Attributes:
        source: where they come from, for people.
        tree, parent, child: the pose is that of `child` in `parent`.
    """

    source: str
    tree: TransformTree
    parent: str
    child: str

    def at(self, stamp: int) -> np.ndarray | None:
        """The pose (4, 4) at this time, interpolated; None where the recording does not know."""
        try:
            return self.tree.lookup(self.parent, self.child, stamp, tolerance=_TRUTH_TOLERANCE_S)
        except TransformError:
            return None


class Bag:
    """An open bag. Use it in a `with` statement.

    Raises:
        BagError: there is no bag, or it is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise BagError(f'no bag at {self.path}: there is no such file or folder')
        if self.path.is_dir() and not (self.path / 'metadata.yaml').is_file():
            raise BagError(
                f'{self.path} is not a bag: it has no metadata.yaml (`ros2 bag reindex` makes one '
                'for a recording that was cut off)'
            )
        if self.path.suffix == '.bag':
            raise BagError(
                f'{self.path} is a bag of ROS 1: turn it into one of ROS 2 with '
                f'`rosbags-convert --src {self.path.name} --dst {self.path.stem}`'
            )
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except Exception as error:  # rosbags, sqlite3 and yaml each have their own
            raise BagError(
                f'{self.path} cannot be read as a bag: {error} (`ros2 bag reindex` can repair a '
                'recording that was cut off)'
            ) from error
        # A topic has several connections where several nodes published on it.
        self._connections: dict[str, list] = {}
        for connection in self._reader.connections:
            self._connections.setdefault(connection.topic, []).append(connection)

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    @property
    def topics(self) -> list[Topic]:
        """Every topic, sorted by name."""
        return [
            Topic(name, connections[0].msgtype, sum(c.msgcount for c in connections))
            for name, connections in sorted(self._connections.items())
        ]

    def image_topic(self, chosen: str | None = None) -> Topic:
        """The topic of the images: the chosen one, or the only one there is.

        Raises:
            BagError: there is none, or several and none was chosen, or the chosen one is no image.
        """
        images = [t for t in self.topics if t.type in IMAGE_TYPES and t.count]
        names = ', '.join(t.name for t in images)
        if chosen:
            for topic in images:
                if chosen in (topic.name, topic.name.removesuffix('/compressed')):
                    return topic
            raise BagError(
                f'{self.path} has no images on {chosen}; image topics: {names or "none"}'
            )
        if not images:
            others = ', '.join(f'{t.name} ({t.type})' for t in self.topics)
            raise BagError(f'{self.path} holds no images; its topics are: {others or "none"}')
        color = [t for t in images if 'depth' not in t.name]
        # A camera often records the same images raw and compressed: the raw ones are as good.
        plain = {t.name.removesuffix('/compressed') for t in color}
        if len(plain) != 1:
            raise BagError(f'{self.path} has several image topics: {names}; choose --image-topic')
        return color[0]

    def messages(
        self, topics: Iterable[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[BagMessage]:
        """The messages of some topics in the order of their recording.

        Args:
            topics: their names; those that the bag does not have are left out.
            start, stop: only messages recorded at start <= time < stop, nanoseconds.

        Raises:
            BagError: the file is damaged from some point on.
        """
        connections = [c for topic in topics for c in self._connections.get(topic, ())]
        if not connections:
            return
        try:
            for connection, time, data in self._reader.messages(connections, start, stop):
                yield BagMessage(connection.topic, connection.msgtype, time, data)
        except PoseRelocError:
            raise
        except Exception as error:  # whatever the storage raises on damaged data
            raise BagError(f'{self.path} is damaged: {error}') from error

    def decode(self, message: BagMessage):
        """The message as an object with the fields of its type.

        Raises:
            MessageError: the bytes do not fit the type.
        """
        try:
            return _STORE.deserialize_cdr(message.cdr, message.type)
        except Exception as error:  # struct.error, IndexError, AssertionError, ...
            raise MessageError(f'a message on {message.topic} is damaged: {error}') from error

    def image(self, message: BagMessage) -> np.ndarray:
        """uint8 RGB (H, W, 3) of an image message.

        Raises:
            MessageError: it is damaged.
        """
        return image_from_message(self.decode(message))

    def image_at(self, topic: str, time: int) -> np.ndarray:
        """uint8 RGB (H, W, 3) of the image recorded at this time.

        Raises:
            BagError, MessageError: there is none, or it is damaged.
        """
        for message in self.messages([topic], time, time + 1):
            return self.image(message)
        raise BagError(f'{self.path} has no image on {topic} at {time}')

    def camera(self, image_topic: str) -> Camera | None:
        """The camera of an image topic from its sibling camera_info, or None without one.

        Raises:
            CameraError: the camera_info is that of no camera.
        """
        info = self._first(camera_info_topic(image_topic))
        return None if info is None else camera_from_info(info)

    def frame_id(self, image_topic: str) -> str:
        """The frame that the first image names; empty if it names none."""
        image = self._first(image_topic)
        return '' if image is None else image.header.frame_id

    def _first(self, topic: str):
        """The first message on a topic that can be decoded, or None."""
        for message in self.messages([topic]):
            try:
                return self.decode(message)
            except MessageError:
                continue
        return None

    def transforms(self) -> TransformTree:
        """All of /tf and /tf_static; impossible transforms are left out."""
        tree = TransformTree(history=None)
        for message in self.messages(['/tf_static', '/tf']):
            try:
                tree.add_message(self.decode(message), message.topic == '/tf_static')
            except (TransformError, MessageError):
                continue
        return tree

    def truth(
        self, map_frame: str, body_frame: str, topic: str | None = None, tree=None
    ) -> Truth | None:
        """The true poses of a body in the map, or None where the bag holds none.

        Args:
            map_frame, body_frame: frames to look for on TF.
            topic: of the poses; None takes one whose name says it is the truth, else TF.
            tree: of `transforms()`, if already known.

        Raises:
            BagError: the topic does not exist or holds no poses.
        """
        if topic is None:
            named = (t.name for t in self.topics if t.type in _POSE_TYPES and t.count)
            topic = next((n for n in named if 'truth' in n or '/gt' in n), None)
        if topic is not None:
            return self._truth_of_topic(topic)
        tree = tree or self.transforms()
        known = {map_frame, body_frame} <= tree.frames()
        if known and tree.can_connect(map_frame, body_frame):
            return Truth(f'TF {map_frame} -> {body_frame}', tree, map_frame, body_frame)
        return None

    def _truth_of_topic(self, topic: str) -> Truth:
        kind = next((t.type for t in self.topics if t.name == topic), None)
        if kind not in _POSE_TYPES:
            poses = ', '.join(t.name for t in self.topics if t.type in _POSE_TYPES) or 'none'
            raise BagError(f'{self.path} has no poses on {topic}; topics with poses: {poses}')
        tree = TransformTree(history=None)
        for message in self.messages([topic]):
            try:
                decoded = self.decode(message)
                pose = matrix_from_pose(_POSE_TYPES[kind](decoded))
                tree.set('world', 'body', stamp_ns(decoded.header.stamp), pose)
            except MessageError:
                continue
        return Truth(topic, tree, 'world', 'body')


def camera_info_topic(image_topic: str) -> str:
    """The sibling `camera_info` of an image topic, raw or compressed."""
    plain = image_topic.removesuffix('/compressed')
    return f'{plain.rsplit("/", 1)[0]}/camera_info'


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
    """Writes a rosbag2 (MCAP) as a robot would record it.

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
    import cv2

    path = Path(path)
    types = _STORE.types
    Time, Header = types['builtin_interfaces/msg/Time'], types['std_msgs/msg/Header']
    Vector, Quaternion = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Quaternion']
    Point, Pose = types['geometry_msgs/msg/Point'], types['geometry_msgs/msg/Pose']

    def header(stamp, frame):
        return Header(Time(stamp // 1_000_000_000, stamp % 1_000_000_000), frame)

    def rotation(a_T_b):
        return Quaternion(*xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3])).tolist())

    D = np.array(camera.distortion or (0.0,) * 5)
    P = np.hstack([camera.K, np.zeros((3, 1))])
    roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    try:
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:

            def connect(topic, kind):
                connection = writer.add_connection(topic, kind, typestore=_STORE)

                def write(stamp, message):
                    writer.write(connection, stamp, _STORE.serialize_cdr(message, kind))

                return types[kind], write

            Compressed, write_image = connect('/camera/image_raw/compressed', IMAGE_TYPES[1])
            Info, write_info = connect('/camera/camera_info', CAMERA_TYPE)
            TF, write_static = connect('/tf_static', TF_TYPE)
            PoseStamped, write_truth = connect(
                '/ground_truth/pose', 'geometry_msgs/msg/PoseStamped'
            )
            for index, frame in enumerate(frames):
                optical = header(frame.stamp, 'camera_optical_frame')
                if index == 0:
                    transform = types['geometry_msgs/msg/Transform'](
                        Vector(*base_T_camera[:3, 3].tolist()), rotation(base_T_camera)
                    )
                    mounting = types['geometry_msgs/msg/TransformStamped'](
                        header(frame.stamp, 'base_link'), 'camera_optical_frame', transform
                    )
                    write_static(frame.stamp, TF([mounting]))
                info = Info(
                    optical, camera.height, camera.width, camera.distortion_model, D,
                    camera.K.ravel(), np.eye(3).ravel(), P.ravel(), 0, 0, roi,
                )  # fmt: skip
                write_info(frame.stamp, info)
                ok, data = cv2.imencode(
                    '.jpg', frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]
                )
                write_image(frame.stamp, Compressed(optical, 'jpeg', data.ravel()))
                position = Point(*frame.map_T_base[:3, 3].tolist())
                pose = Pose(position, rotation(frame.map_T_base))
                write_truth(frame.stamp, PoseStamped(header(frame.stamp, 'map'), pose))
    except (OSError, WriterError) as error:
        raise BagError(f'cannot write the bag {path}: {error}') from error
