"""`Bag`: an open bag of any kind, its topics and its messages."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader as Ros2Reader
from rosbags.typesys import Stores, get_typestore

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, PoseRelocError
from pose_reloc.ros.messages import (
    MessageError,
    camera_from_info,
    image_from_message,
    is_rectified,
    plain_name,
    stamp_ns,
)
from pose_reloc.ros.transforms import TransformError, TransformTree
from training.datasets.bag.mending import MendedMcap
from training.datasets.bag.poses import (
    POSE_TYPES,
    PoseTopic,
    Truth,
    topic_named_truth,
)
from training.datasets.files import natural_order

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
CAMERA_TYPE = 'sensor_msgs/msg/CameraInfo'
TF_TYPE = 'tf2_msgs/msg/TFMessage'
# The types above are the same in every distribution. Reading them by this store, not by what the
# bag says, keeps a bag readable that also holds types with damaged or unusual definitions.
STORE = get_typestore(Stores.ROS2_JAZZY)
_RENAMED = {'tf/msg/tfMessage': TF_TYPE}  # of ROS 1


@dataclass(frozen=True)
class Topic:
    """One recorded topic."""

    name: str
    type: str
    count: int

    @property
    def is_image(self) -> bool:
        """It holds pictures (or depth)."""
        return self.type in IMAGE_TYPES and self.count > 0

    @property
    def is_depth(self) -> bool:
        """It holds images whose name says that they are depth."""
        return self.is_image and 'depth' in self.name


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
        """The stamp in its header, or `time` if the message is cut off before it or has none (0).

        Only for types that begin with a std_msgs/Header.
        """
        if len(self.cdr) < 12:
            return self.time
        sec, nanosec = struct.unpack_from(f'{self._order}iI', self.cdr, 4)
        return sec * 1_000_000_000 + nanosec or self.time

    @property
    def frame_id(self) -> str:
        """The frame in its header; empty if it names none. Only for types with a Header."""
        if len(self.cdr) < 16:
            return ''
        (length,) = struct.unpack_from(f'{self._order}I', self.cdr, 12)
        return bytes(self.cdr[16 : 16 + length]).rstrip(b'\0').decode(errors='replace')

    @property
    def _order(self) -> str:
        return '<' if self.cdr[1] & 1 else '>'


class Bag:
    """An open bag. Use it in a `with` statement.

    Takes the folder of a rosbag2, one of its files (.mcap, .db3), or a bag of ROS 1 (.bag). A
    recording that was cut off (no metadata.yaml, an MCAP file without its end) is read as far as
    it goes.

    Attributes:
        path: as given.
        notes: what was wrong with it, for people.

    Raises:
        BagError: there is no bag, or it is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.notes: list[str] = []
        if not self.path.exists():
            raise BagError(f'no bag at {self.path}: there is no such file or folder')
        self._readers = self._open_readers()
        # A topic has several connections where several nodes published on it, and one in every
        # file of a bag that was split.
        self._connections: dict[str, list] = {}
        for reader in self._readers:
            for connection in reader.connections:
                self._connections.setdefault(connection.topic, []).append((reader, connection))

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its files."""
        for reader in self._readers:
            reader.close()

    def _open_readers(self) -> list:
        """One reader, or one for each file of a bag whose metadata.yaml cannot be used."""
        if self.path.is_file():
            return [self._open_file(self.path)]
        problem = 'it has no metadata.yaml (`ros2 bag reindex` makes one)'
        if (self.path / 'metadata.yaml').is_file():
            try:
                return [_opened(Ros2Reader(self.path))]
            except Exception as error:  # rosbags, sqlite3 and yaml each have their own
                problem = f'{error}'
        files = [p for p in self.path.iterdir() if p.suffix in ('.mcap', '.db3', '.bag')]
        if not files:
            raise BagError(f'{self.path} cannot be read as a bag: {problem}')
        self.notes.append(f'{self.path.name} is read file by file: {problem}')
        return [self._open_file(f) for f in sorted(files, key=lambda f: natural_order(f.name))]

    def _open_file(self, file: Path):
        if file.suffix not in ('.mcap', '.db3', '.bag'):
            raise BagError(f'{file} is not a bag: expected a folder, .mcap, .db3 or .bag')
        try:
            return _opened(Ros1Reader(file) if file.suffix == '.bag' else Ros2Reader(file))
        except Exception as error:  # whatever the storage raises on damaged data
            if file.suffix == '.mcap':
                return self._mended(file, error)
            repair = {
                '.db3': f'sqlite3 {file.name} .recover | sqlite3 repaired.db3',
                '.bag': f'rosbag reindex {file.name}',
            }[file.suffix]
            raise BagError(
                f'{file} cannot be read as a bag: {error}. A recording that was cut off can be '
                f'repaired with `{repair}`'
            ) from error

    def _mended(self, file: Path, error: Exception):
        try:
            mended = MendedMcap(file)
            reader = _opened(Ros2Reader(mended))
        except Exception:
            raise BagError(f'{file} cannot be read as a bag: {error}') from error
        self.notes.append(f'{file.name} was cut off: {mended.used} can be read')
        return reader

    @property
    def topics(self) -> list[Topic]:
        """Every topic, sorted by name."""
        return [
            Topic(name, _type(connections[0][1]), sum(c.msgcount for _, c in connections))
            for name, connections in sorted(self._connections.items())
        ]

    @property
    def duration_s(self) -> float:
        """Seconds from its first message to its last."""
        used = [reader for reader in self._readers if reader.message_count]
        if not used:
            return 0.0
        return (max(r.end_time for r in used) - min(r.start_time for r in used)) / 1e9

    def image_topic(self, chosen: str | None = None) -> Topic:
        """The topic of the images: the chosen one, or the only one there is.

        Raises:
            BagError: there is none, or several and none was chosen, or the chosen one is no image.
        """
        images = [t for t in self.topics if t.is_image]
        names = ', '.join(t.name for t in images)
        if chosen:
            for topic in images:
                if chosen in (topic.name, plain_name(topic.name)):
                    return topic
            raise BagError(
                f'{self.path} has no images on {chosen}; image topics: {names or "none"}'
            )
        if not images:
            others = ', '.join(f'{t.name} ({t.type})' for t in self.topics)
            raise BagError(f'{self.path} holds no images; its topics are: {others or "none"}')
        color = [t for t in images if not t.is_depth] or images  # '/depth_camera/image_raw'
        # A camera often records the same images raw and compressed: the raw ones are as good.
        plain = {plain_name(t.name) for t in color}
        if len(plain) != 1:
            raise BagError(f'{self.path} has several image topics: {names}; choose --image-topic')
        return color[0]

    @property
    def tf_topics(self) -> list[str]:
        """/tf_static and /tf; those of a namespace in a bag that has only these."""
        names = [t.name for t in self.topics if t.type == TF_TYPE]
        plain = [name for name in names if name in ('/tf', '/tf_static')]
        return sorted(plain or names, reverse=True)

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
        chosen = [pair for topic in topics for pair in self._connections.get(topic, ())]
        for reader in self._readers:
            connections = [connection for owner, connection in chosen if owner is reader]
            if not connections:
                continue
            ros1 = isinstance(reader, Ros1Reader)
            try:
                for connection, time, data in reader.messages(connections, start, stop):
                    kind = _type(connection)
                    data = STORE.ros1_to_cdr(data, kind) if ros1 else data
                    yield BagMessage(connection.topic, kind, time, data)
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
            return STORE.deserialize_cdr(message.cdr, message.type)
        except Exception as error:  # struct.error, IndexError, AssertionError, ...
            raise MessageError(f'a message on {message.topic} is damaged: {error}') from error

    def image(self, message: BagMessage) -> np.ndarray:
        """uint8 RGB (H, W, 3) of an image message.

        Raises:
            MessageError: it is damaged.
        """
        return image_from_message(self.decode(message))

    def message_at(self, topic: str, time: int, stamp: int | None = None) -> BagMessage:
        """The message recorded at this time, with this stamp if several were.

        Raises:
            BagError: there is none.
        """
        for message in self.messages([topic], time, time + 1):
            if stamp is None or message.stamp == stamp:
                return message
        raise BagError(f'{self.path} has no image on {topic} at {time}')

    def image_at(self, topic: str, time: int) -> np.ndarray:
        """uint8 RGB (H, W, 3) of the image recorded at this time.

        Raises:
            BagError, MessageError: there is none, or it is damaged.
        """
        return self.image(self.message_at(topic, time))

    def camera(self, image_topic: str) -> Camera | None:
        """The camera of an image topic from its sibling camera_info, or None without one.

        Raises:
            CameraError: the camera_info is that of no camera.
        """
        info = self.first(camera_info_topic(image_topic))
        return None if info is None else camera_from_info(info, is_rectified(image_topic))

    def frame_id(self, image_topic: str) -> str:
        """The frame that the first image names; empty if it names none."""
        image = self.first(image_topic)
        return '' if image is None else image.header.frame_id

    def first(self, topic: str):
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
        for message in self.messages(self.tf_topics):
            self.add_transforms(tree, message)
        return tree

    def add_transforms(self, tree: TransformTree, message: BagMessage) -> None:
        """Adds a message of `tf_topics` to a tree; impossible transforms are left out.

        Transforms without a stamp (0) get the time of their recording, as images do.
        """
        try:
            decoded = self.decode(message)
            for item in decoded.transforms:
                if stamp_ns(item.header.stamp) == 0:
                    item.header.stamp.sec, item.header.stamp.nanosec = divmod(message.time, 10**9)
            tree.add_message(decoded, message.topic.endswith('tf_static'))
        except (TransformError, MessageError):
            pass

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
            topic = topic_named_truth(t.name for t in self.topics if t.type in POSE_TYPES)
        if topic is not None:
            return self._truth_of_topic(topic)
        tree = tree or self.transforms()
        known = {map_frame, body_frame} <= tree.frames()
        if known and tree.can_connect(map_frame, body_frame):
            return Truth(f'TF {map_frame} -> {body_frame}', tree, map_frame, body_frame)
        return None

    def _truth_of_topic(self, topic: str) -> Truth:
        kind = next((t.type for t in self.topics if t.name == topic), None)
        if kind not in POSE_TYPES:
            poses = ', '.join(t.name for t in self.topics if t.type in POSE_TYPES) or 'none'
            raise BagError(f'{self.path} has no poses on {topic}; topics with poses: {poses}')
        poses = PoseTopic(topic)
        for message in self.messages([topic]):
            self.add_pose(poses, message)
        return poses.truth()

    def add_pose(self, poses: PoseTopic, message: BagMessage) -> None:
        """Adds a message of a pose topic; impossible poses are left out.

        Poses without a stamp (0) get the time of their recording, as images do.
        """
        try:
            poses.add(self.decode(message), message.type, message.stamp)
        except MessageError:
            pass


def camera_info_topic(image_topic: str) -> str:
    """The sibling `camera_info` of an image topic, raw or compressed."""
    return f'{plain_name(image_topic).rsplit("/", 1)[0]}/camera_info'


def largest_file(path: Path) -> Path:
    """The largest file of a bag, or the bag itself where it is a file."""
    if path.is_file():
        return path
    return max((p for p in path.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)


def shared_bag(path: Path) -> Bag:
    """The bag at this path, opened once in every thread of every process."""
    bags = vars(_OPEN).setdefault(os.getpid(), {})
    if path not in bags:
        bags[path] = Bag(path)
    return bags[path]


_OPEN = threading.local()


def _opened(reader):
    """The reader, open. What metadata.yaml says is believed by `rosbags` and checked here."""
    reader.open()
    numbers = [reader.message_count, reader.start_time, reader.end_time]
    numbers += [connection.msgcount for connection in reader.connections]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError('a count or a time is no whole number')
    names = [name for c in reader.connections for name in (c.topic, c.msgtype)]
    if not all(isinstance(name, str) for name in names):
        raise ValueError('the name of a topic or of its type is no text')
    return reader


def _type(connection) -> str:
    return _RENAMED.get(connection.msgtype, connection.msgtype)
