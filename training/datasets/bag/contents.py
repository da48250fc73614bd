"""What a bag holds apart from pictures, read in one pass: stamps, cameras, frames and poses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pose_reloc.errors import BagError
from pose_reloc.ros.messages import MessageError, image_from_message
from pose_reloc.ros.transforms import TransformTree
from training.datasets.bag.depth import depth_from_message
from training.datasets.bag.poses import POSE_TYPES, PoseTopic
from training.datasets.bag.reading import (
    CAMERA_TYPE,
    IMAGE_TYPES,
    Bag,
    BagMessage,
    Topic,
    camera_info_topic,
)

_COMPRESSED = IMAGE_TYPES[1]
_HEAD = 256  # bytes of a message within which the picture begins
_TAIL = 4096  # and, with padding, ends
_MARKERS = ((b'\xff\xd8\xff', b'\xff\xd9'), (b'\x89PNG', b'IEND'))  # of JPEG and PNG


@dataclass
class ImageTopic:
    """The images of one topic, in the order of their recording, without those that are torn.

    Attributes:
        topic: its name, type and count.
        frame: the frame of its first image; empty if it names none.
        times: when each image was recorded, nanoseconds.
        stamps: when each was taken, nanoseconds.
        torn: how many were left out because they were cut off.
    """

    topic: Topic
    frame: str = ''
    times: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    torn: int = 0


@dataclass
class BagContents:
    """All of a bag but its pictures.

    Attributes:
        path: of the bag.
        topics: all of them.
        duration_s: from the first message to the last.
        images: topic name to its images, depth included.
        infos: topic name to its first CameraInfo.
        tree: all of TF.
        poses: topic name to its poses.
        notes: what was wrong with the file.
    """

    path: Path
    topics: list[Topic]
    duration_s: float
    images: dict[str, ImageTopic]
    infos: dict[str, object]
    tree: TransformTree
    poses: dict[str, PoseTopic]
    notes: list[str]

    def info_of(self, image_topic: str):
        """The CameraInfo that belongs to an image topic, or None."""
        return self.infos.get(camera_info_topic(image_topic))


def read_contents(path: Path) -> BagContents:
    """Goes through a bag once. Damage in the middle ends it early, with a note.

    Raises:
        BagError: it cannot be opened.
    """
    with Bag(path) as bag:
        contents = BagContents(
            path,
            bag.topics,
            bag.duration_s,
            {t.name: ImageTopic(t) for t in bag.topics if t.is_image},
            {},
            TransformTree(history=None),
            {t.name: PoseTopic(t.name) for t in bag.topics if t.type in POSE_TYPES},
            list(bag.notes),
        )
        _fill(contents, bag)
    return contents


def _fill(contents: BagContents, bag: Bag) -> None:
    cameras = {t.name for t in contents.topics if t.type == CAMERA_TYPE}
    transforms = set(bag.tf_topics)
    wanted = [*transforms, *contents.images, *cameras, *contents.poses]
    first = last = None
    try:
        for message in bag.messages(wanted):
            last = message.time
            first = last if first is None else first
            if message.topic in contents.images:
                _add_image(contents.images[message.topic], bag, message)
            elif message.topic in transforms:
                bag.add_transforms(contents.tree, message)
            elif message.topic in contents.poses:
                bag.add_pose(contents.poses[message.topic], message)
            elif message.topic not in contents.infos:
                try:
                    contents.infos[message.topic] = bag.decode(message)
                except MessageError:
                    continue
    except BagError as error:
        if last is None:
            raise
        contents.notes.append(f'{error}; the {(last - first) / 1e9:.1f} s before that are used')
    for name, images in contents.images.items():
        if images.torn:
            count = images.torn + len(images.times)
            contents.notes.append(
                f'{images.torn} of {count} images on {name} are damaged (cut off): left out'
            )


def _add_image(images: ImageTopic, bag: Bag, message: BagMessage) -> None:
    if _is_torn(bag, message):
        images.torn += 1
        return
    images.times.append(message.time)
    images.stamps.append(message.stamp)
    images.frame = images.frame or message.frame_id.removeprefix('/')


def _is_torn(bag: Bag, message: BagMessage) -> bool:
    """True for a picture or depth that was cut off; what looks whole is not decoded for it."""
    if message.type != _COMPRESSED:
        return False
    head, tail = bytes(message.cdr[:_HEAD]), bytes(message.cdr[-_TAIL:]).rstrip(b'\0')[-64:]
    cut = any(begin in head and end not in tail for begin, end in _MARKERS)
    if not (cut or len(head) < _HEAD):
        return False
    for read in (image_from_message, depth_from_message):
        try:
            read(bag.decode(message))
            return False
        except MessageError:
            continue
    return True
