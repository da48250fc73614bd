"""`survey`: what a bag holds, what of it would be used for training, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.ros.transforms import TransformTree
from training.datasets.bag.contents import BagContents, read_contents
from training.datasets.bag.picking import BagSettings, Picked, pick
from training.datasets.bag.reading import Topic, camera_info_topic


@dataclass(frozen=True)
class Rhythm:
    """How regularly something was recorded.

    Attributes:
        count: of messages.
        rate_hz: typical, from the median interval; 0 for fewer than two.
        longest_s: the longest interval; 0 for fewer than two.
        longest_at_s: when that began, after the first image.
    """

    count: int
    rate_hz: float = 0.0
    longest_s: float = 0.0
    longest_at_s: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A frame on TF.

    Attributes:
        name: of the frame.
        depth: below its root.
        moving: when its pose in its parent was sent; None for a root and for static frames.
    """

    name: str
    depth: int
    moving: Rhythm | None


@dataclass(frozen=True)
class Survey:
    """What `survey` found.

    Attributes:
        path: of the bag.
        duration_s: from the first message to the last.
        topics: all of them.
        rhythms: topic name to its rhythm, for images and poses.
        frames: on TF, parents before their children.
        picked: what would be used.
        notes: what was wrong with the file.
        record: the command that records what training needs.
    """

    path: Path
    duration_s: float
    topics: list[Topic]
    rhythms: dict[str, Rhythm]
    frames: list[Frame]
    picked: Picked
    notes: list[str]
    record: str


def survey(path: Path, settings: BagSettings = BagSettings()) -> Survey:
    """Goes through a bag.

    Raises:
        BagError: it cannot be opened.
    """
    contents = read_contents(path)
    picked = pick(contents, settings)
    all_stamps = [min(images.stamps) for images in contents.images.values() if images.stamps]
    start = min(all_stamps, default=0)
    rhythms = {name: rhythm(images.stamps, start) for name, images in contents.images.items()}
    for name, poses in contents.poses.items():
        stamps = [] if poses.frame is None else poses.truth().stamps()
        rhythms[name] = rhythm(stamps, start)
    return Survey(
        path,
        contents.duration_s,
        contents.topics,
        rhythms,
        _frames(contents.tree, start),
        picked,
        contents.notes,
        _record_command(contents, picked),
    )


def rhythm(stamps: Sequence[int], start: int) -> Rhythm:
    """The rhythm of stamps in nanoseconds, counted from `start`."""
    if len(stamps) < 2:
        return Rhythm(len(stamps))
    stamps = np.sort(np.array(stamps, dtype=np.int64))
    step = np.diff(stamps) / 1e9
    longest = int(step.argmax())
    median = float(np.median(step))
    rate = 1 / median if median > 0 else 0.0
    return Rhythm(len(stamps), rate, float(step[longest]), float(stamps[longest] - start) / 1e9)


def _frames(tree: TransformTree, start: int) -> list[Frame]:
    parents = tree.parents()
    found = []

    def visit(name: str, depth: int) -> None:
        stamps = tree.stamps(parents[name], name) if name in parents else []
        found.append(Frame(name, depth, rhythm(stamps, start) if stamps else None))
        for child in sorted(c for c, parent in parents.items() if parent == name):
            visit(child, depth + 1)

    for root in sorted(set(parents.values()) - set(parents)):
        visit(root, 0)
    return found


def _record_command(contents: BagContents, picked: Picked) -> str:
    """Records what is used here, and what every training needs."""
    image = picked.images.topic.name if picked.images else '/camera/image_raw/compressed'
    topics = [image, camera_info_topic(image), '/tf', '/tf_static']
    if picked.depth:
        depth = picked.depth.images.topic.name
        topics += [depth, camera_info_topic(depth)]
    if picked.truth and picked.truth.source in contents.poses:
        topics.append(picked.truth.source)
    return f'ros2 bag record -s mcap -o my_bag {" ".join(dict.fromkeys(topics))}'
