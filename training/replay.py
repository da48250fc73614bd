"""A bag through the real node: what was sent, what came back, how far from the truth."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pose_reloc.errors import CameraError
from pose_reloc.ros.messages import MessageError, camera_for_image
from pose_reloc.ros.transforms import TransformError
from pose_reloc.scene import SceneModel
from training.datasets.bag import Bag, Truth, camera_info_topic
from training.evaluate import Evaluation, Frame, RetrievalBaseline, baselines

# The node's own word for what became of an image -> ours.
_STATUS = {'failed': 'unreadable', 'refused': 'LOST'}


@dataclass(frozen=True)
class ReplaySettings:
    """How a bag is played and read."""

    rate: float = 1.0  # 2.0 plays twice as fast
    image_topic: str | None = None  # None: the only one there is
    truth_topic: str | None = None  # None: a topic named like truth, else TF map -> base
    map_frame: str = 'map'
    base_frame: str = 'base_link'
    node: str | None = None  # name of a running node; None starts one
    domain_id: int | None = None  # ROS domain of the node started; None: one of its own
    device: str = 'auto'


@dataclass(frozen=True)
class Replay:
    """The result, and what was picked.

    Attributes:
        evaluation: a frame for every image in the bag; poses of the base in the map.
        notes: what was picked and assumed, for people.
        image: frame name to its uint8 RGB image.
        camera_T_base: (4, 4) how the camera is mounted.
    """

    evaluation: Evaluation
    notes: list[str]
    image: dict[str, Callable[[], np.ndarray]]
    camera_T_base: np.ndarray


def replay(bag_path: Path, scene_path: Path, settings: ReplaySettings = ReplaySettings()) -> Replay:
    """Plays a bag to the node and compares its answers with the truth.

    Raises:
        BagError, SceneError, PlayerError: the bag, the scene or the node cannot be used.
    """
    scene = SceneModel.load(scene_path)
    with Bag(bag_path) as bag:
        topic = bag.image_topic(settings.image_topic)
        tree = bag.transforms()
        notes = [f'images: {topic.name} ({topic.count})']
        base, camera_T_base = _mounting(bag, topic.name, tree, settings.base_frame, notes)
        body = base or bag.frame_id(topic.name)
        truth = bag.truth(settings.map_frame, body, settings.truth_topic, tree)
        notes.append(f'truth: {truth.source}' if truth else 'truth: none in this bag')
        playback, times = _play(bag, topic, scene_path, base, settings)
        frames = _frames(playback, times, truth)
        evaluation = Evaluation(frames, _baselines(bag, topic.name, scene, truth, camera_T_base))
    images = {f'{stamp}': _Image(bag_path, topic.name, time) for stamp, time in times}
    return Replay(evaluation, notes, images, camera_T_base)


@dataclass(frozen=True)
class _Image:
    """Reads one image of a bag when it is called."""

    bag_path: Path
    topic: str
    time: int

    def __call__(self) -> np.ndarray:
        with Bag(self.bag_path) as bag:
            return bag.image_at(self.topic, self.time)


def _mounting(bag: Bag, topic: str, tree, base_frame: str, notes: list[str]):
    """Base frame to use and camera_T_base; the camera itself where TF does not know its mount."""
    camera_frame = bag.frame_id(topic)
    try:
        camera_T_base = tree.lookup(camera_frame, base_frame)
        notes.append(f'mounting: {base_frame} -> {camera_frame} from TF')
        return base_frame, camera_T_base
    except TransformError:
        notes.append(
            f"mounting: TF does not connect {base_frame} and '{camera_frame}', "
            'so poses are those of the camera'
        )
        return '', np.eye(4)


def _play(bag: Bag, topic, scene_path: Path, base: str, settings: ReplaySettings):
    """What came back, and (stamp, time of recording) in nanoseconds of every image in the bag."""
    # rclpy only where a node is talked to: reading bags needs no ROS.
    from pose_reloc.ros.player import NODE_NAME, NodeProcess, Player

    plain = topic.name.removesuffix('/compressed')
    wanted = {topic.name, camera_info_topic(topic.name), '/tf', '/tf_static'}
    types = {t.name: t.type for t in bag.topics if t.name in wanted}
    times = []

    def messages():
        for message in bag.messages(types):
            if message.topic == topic.name:
                times.append((message.stamp, message.time))
            yield message

    # A replayed /clock and /tf must not reach a robot that happens to share our network: unless a
    # running node is asked for, everything stays on this machine, in a domain of its own.
    where = contextlib.nullcontext() if settings.node else _isolated(settings.domain_id)
    with (
        where,
        Player(topic.name, types, settings.node or NODE_NAME) as player,
        tqdm(total=topic.count, desc='replaying', unit='img', disable=None) as bar,
    ):

        def play(alive=lambda: None):
            player.wait_until_ready(alive)
            return player.play(messages(), settings.rate, bar.update, alive), times

        if settings.node:
            return play()
        parameters = {
            'scene': str(Path(scene_path).expanduser().resolve()),
            'image_transport': 'raw' if plain == topic.name else 'compressed',
            'reliability': 'reliable',  # every frame must be accounted for
            'base_frame': base,
            'map_frame': settings.map_frame,
            'device': settings.device,
        }
        with NodeProcess(parameters, {'image': plain}) as process:
            return play(process.check)


@contextlib.contextmanager
def _isolated(domain_id: int | None):
    """Lets ROS, here and in child processes, see only this machine and one domain of it."""
    if domain_id is None:
        domain_id = random.SystemRandom().randint(1, 100)
    values = {'ROS_DOMAIN_ID': f'{domain_id}', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _frames(playback, times: list[tuple[int, int]], truth: Truth | None) -> list[Frame]:
    frames = []
    for stamp, _ in times:
        pose = covariance = latency = None
        status, reasons = playback.outcomes.get(stamp, ('no answer', ()))
        status = _STATUS.get(status, status)
        if stamp in playback.received:
            received, pose, covariance = playback.received[stamp]
            latency = received - playback.sent[stamp]
        frames.append(
            Frame(
                f'{stamp}',
                stamp / 1e9,
                truth.at(stamp) if truth else None,
                pose,
                covariance,
                status,
                reasons,
                latency,
            )
        )
    return frames


def _baselines(bag: Bag, topic: str, scene: SceneModel, truth: Truth | None, camera_T_base):
    """The baselines on the same images, in the same frame as the truth."""
    if truth is None:
        return {}
    retrieval = RetrievalBaseline(scene)
    try:
        camera = bag.camera(topic) or scene.header.camera
    except CameraError:  # the node does the same, and says so
        camera = scene.header.camera
    features, truths = [], []
    for message in tqdm(bag.messages([topic]), 'baselines', unit='img', disable=None):
        pose = truth.at(message.stamp)
        if pose is None:
            continue
        try:
            image = bag.image(message)
            features.append(retrieval.describe(image, camera_for_image(camera, image)))
        except (MessageError, CameraError):
            continue
        truths.append(pose)
    return baselines(retrieval, features, truths, scene.map_T_scene, camera_T_base)
