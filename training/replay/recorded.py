"""What is picked from a bag for a replay: images, how the camera is mounted, the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pose_reloc.ros.messages import is_rectified
from pose_reloc.ros.transforms import TransformError, TransformTree
from training.align import read_trajectory
from training.datasets.bag import Bag, Topic, Truth
from training.replay.settings import ReplaySettings


@dataclass(frozen=True)
class Recorded:
    """What was picked.

    Attributes:
        topic: of the images.
        camera_frame: that they name.
        base: the frame whose poses are compared; empty: the camera itself.
        camera_T_base: (4, 4) how the camera is mounted.
        tree: all of TF.
        truth: poses of the base (or of the camera) in the map; None where unknown.
        notes: what was picked and assumed, for people.
    """

    topic: Topic
    camera_frame: str
    base: str
    camera_T_base: np.ndarray
    tree: TransformTree
    truth: Truth | None
    notes: list[str]

    @property
    def body(self) -> str:
        """Whose poses are compared, for people."""
        return self.base or self.camera_frame

    def node_parameters(self, settings: ReplaySettings) -> dict:
        """Parameters of the node that both modes share."""
        return {
            'base_frame': self.base,
            'map_frame': settings.map_frame,
            'device': settings.device,
            'rectified': is_rectified(self.topic.name),
        }


def pick(bag: Bag, settings: ReplaySettings) -> Recorded:
    """Picks from a bag what the settings ask for, or the only sensible choice.

    Raises:
        BagError, DatasetError, AlignError: there is none, or several to choose from.
    """
    topic = bag.image_topic(settings.image_topic)
    notes = [*bag.notes, f'images: {topic.name} ({topic.count})']
    tree, camera_frame = bag.transforms(), bag.frame_id(topic.name)
    try:
        base, camera_T_base = settings.base_frame, tree.lookup(camera_frame, settings.base_frame)
        notes.append(f'mounting: {base} -> {camera_frame} from TF')
    except TransformError:
        base, camera_T_base = '', np.eye(4)
        notes.append(
            f"mounting: TF does not connect {settings.base_frame} and '{camera_frame}', so poses "
            'are those of the camera'
        )
    recorded = Recorded(topic, camera_frame, base, camera_T_base, tree, None, notes)
    truth = _truth(bag, recorded, settings)
    if truth is None:
        notes.append('truth: none in this bag')
    return replace(recorded, truth=truth)


def _truth(bag: Bag, recorded: Recorded, settings: ReplaySettings) -> Truth | None:
    """The truth, with a note on what it is taken for."""
    body, map_frame, notes = recorded.body, settings.map_frame, recorded.notes
    if settings.truth_tum:
        truth = read_trajectory(settings.truth_tum)
        notes.append(f'truth: {truth.source}, taken as poses of {body} in {map_frame}')
        return truth
    truth = bag.truth(map_frame, body, settings.truth_topic, recorded.tree)
    if truth is None:
        return None
    first = bag.first(truth.source)  # None for TF, which says itself whose poses it holds
    child = getattr(first, 'child_frame_id', '').removeprefix('/')
    frame = first.header.frame_id.removeprefix('/') if first else map_frame
    text = f'truth: {truth.source}'
    if child and child != body and _connected(recorded.tree, child, body):
        truth = replace(truth, carried=Truth('TF', recorded.tree, child, body))
        text += f', poses of {child}, carried to {body} by TF'
    elif first:
        text += f', taken as poses of {body}'
    if frame != map_frame:
        text += (
            f"; its frame is '{frame}', taken for '{map_frame}' (where they differ: --align se3)"
        )
    notes.append(text)
    return truth


def _connected(tree: TransformTree, target: str, source: str) -> bool:
    return {target, source} <= tree.frames() and tree.can_connect(target, source)
