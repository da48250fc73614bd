"""`replay`: a bag through a scene, in either mode, with the errors of what came back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pose_reloc.errors import CameraError
from pose_reloc.ros.messages import MessageError, camera_for_image
from pose_reloc.scene import SceneModel
from training.datasets.bag import Bag
from training.datasets.bag.reading import shared_bag
from training.evaluate import Errors, Evaluation, Frame, RetrievalBaseline, baselines
from training.replay.alignment import fit
from training.replay.live import answer_live
from training.replay.offline import answer_offline
from training.replay.recorded import Recorded, pick
from training.replay.reply import Reply, pace
from training.replay.settings import ReplaySettings


@dataclass(frozen=True)
class Replay:
    """The result, and what was picked.

    Attributes:
        evaluation: a frame for every image in the bag, in its order; poses of the base in the map.
        replies: the same before any alignment, with the stamps in nanoseconds.
        recorded: what was picked from the bag.
        notes: what was picked and assumed, for people.
        image: frame name to its uint8 RGB image.
        scene: that answered; moved with its answers where these were aligned.
        bag_path, settings: as given.
    """

    evaluation: Evaluation
    replies: list[Reply]
    recorded: Recorded
    notes: list[str]
    image: dict[str, Callable[[], np.ndarray]]
    scene: SceneModel
    bag_path: Path
    settings: ReplaySettings

    @property
    def camera_T_base(self) -> np.ndarray:
        """(4, 4) how the camera is mounted."""
        return self.recorded.camera_T_base


def replay(bag_path: Path, scene_path: Path, settings: ReplaySettings = ReplaySettings()) -> Replay:
    """Has every image of a bag answered and compares the answers with the truth.

    Raises:
        BagError, SceneError, SettingsError: the bag, the scene or a setting cannot be used.
        PlayerError: live, the node cannot be used.
        AlignError: the answers do not determine the alignment that was asked for.
    """
    scene = SceneModel.load(scene_path)
    with Bag(bag_path) as bag:
        recorded = pick(bag, settings)
        if settings.live:
            replies = answer_live(bag, recorded, scene_path, settings)
        else:
            replies = answer_offline(bag, recorded, scene, settings)
        notes = recorded.notes
        frames = _frames(replies, recorded)
        if settings.align:
            alignment = fit(frames, settings.align)
            notes.append(str(alignment))
            frames = [alignment.frame(frame) for frame in frames]
            scene = alignment.scene(scene)
        evaluation = Evaluation(frames, _baselines(bag, recorded, scene))
    if slow := pace(replies, settings):
        notes.append(slow)
    topic = recorded.topic.name
    images = {f.name: _Image(bag_path, topic, r.time, r.stamp) for f, r in zip(frames, replies)}
    return Replay(evaluation, replies, recorded, notes, images, scene, bag_path, settings)


@dataclass(frozen=True)
class _Image:
    """Reads one image of a bag when it is called."""

    bag_path: Path
    topic: str
    time: int
    stamp: int

    def __call__(self) -> np.ndarray:
        bag = shared_bag(self.bag_path)
        return bag.image(bag.message_at(self.topic, self.time, self.stamp))


def _frames(replies: list[Reply], recorded: Recorded) -> list[Frame]:
    """A frame named by its stamp for every image."""
    frames, counts = [], {}
    for reply in replies:
        number = counts[reply.stamp] = counts.get(reply.stamp, 0) + 1
        frames.append(
            Frame(
                f'{reply.stamp}' if number == 1 else f'{reply.stamp}#{number}',
                reply.stamp / 1e9,
                recorded.truth.at(reply.stamp) if recorded.truth else None,
                reply.pose,
                reply.covariance_66,
                reply.status,
                reply.reasons,
                reply.latency_s,
            )
        )
    return frames


def _baselines(bag: Bag, recorded: Recorded, scene: SceneModel) -> dict[str, Errors]:
    """The baselines on the same images, in the same frame as the truth."""
    if recorded.truth is None:
        return {}
    topic = recorded.topic.name
    retrieval = RetrievalBaseline(scene)
    try:
        camera = bag.camera(topic) or scene.header.camera
    except CameraError:  # the node does the same, and says so
        camera = scene.header.camera
    features, truths = [], []
    for message in tqdm(bag.messages([topic]), 'baselines', unit='img', disable=None):
        pose = recorded.truth.at(message.stamp)
        if pose is None:
            continue
        try:
            image = bag.image(message)
            features.append(retrieval.describe(image, camera_for_image(camera, image)))
        except (MessageError, CameraError):
            continue
        truths.append(pose)
    return baselines(retrieval, features, truths, scene.map_T_scene, recorded.camera_T_base)
