"""A bag played in recorded time to the real node over ROS, and what came back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pose_reloc.errors import SettingsError
from pose_reloc.ros.diagnostics import Outcome
from pose_reloc.ros.isolation import isolated
from training.datasets.bag import Bag, BagMessage, camera_info_topic
from training.replay.recorded import Recorded
from training.replay.reply import Reply, status_name
from training.replay.settings import ReplaySettings


def answer_live(
    bag: Bag, recorded: Recorded, scene_path: Path, settings: ReplaySettings
) -> list[Reply]:
    """What becomes of every image of the bag.

    Args:
        bag: opened.
        recorded: what was picked from it.
        scene_path: the scene file, for the node that is started.
        settings: of the replay.

    Raises:
        SettingsError: there is no ROS 2 here.
        PlayerError: the node does not start, ends, or does not listen.
    """
    try:  # rclpy only where a node is talked to: reading bags needs no ROS
        from pose_reloc.ros.player import NODE_NAME, NodeProcess, Player
    except ImportError as error:
        raise SettingsError(
            f'a replay over ROS needs ROS 2, which cannot be imported ({error}): source a ROS 2 '
            'distribution, or give --offline, which needs none'
        ) from error

    topic = recorded.topic
    plain = topic.name.removesuffix('/compressed')
    # The node listens to TF where it always is, also when it was recorded in a namespace.
    played = {name: f'/{name.rsplit("/", 1)[-1]}' for name in bag.tf_topics}
    played |= {name: name for name in (topic.name, camera_info_topic(topic.name))}
    types = {played[t.name]: t.type for t in bag.topics if t.name in played}
    images: list[tuple[int, int]] = []
    # A replayed /clock and /tf must not reach a robot that happens to share our network: unless a
    # running node is asked for, everything stays on this machine, in a domain of its own.
    where = contextlib.nullcontext() if settings.node else isolated(settings.domain_id)
    with (
        where,
        Player(topic.name, types, settings.node or NODE_NAME) as player,
        tqdm(total=topic.count, desc='replaying', unit='img', disable=None) as bar,
    ):

        def play(alive=lambda: None):
            player.wait_until_ready(alive)
            messages = _noting(bag.messages(played), topic.name, images)
            messages = (replace(message, topic=played[message.topic]) for message in messages)
            return player.play(messages, settings.rate, bar.update, alive)

        if settings.node:
            return _replies(play(), images)
        parameters = recorded.node_parameters(settings) | {
            'scene': str(Path(scene_path).expanduser().resolve()),
            'image_transport': 'raw' if plain == topic.name else 'compressed',
            # Every image must reach the node: which one it has no time for, it shall say itself.
            'reliability': 'reliable',
            'queue_depth': 100,
        }
        with NodeProcess(parameters, {'image': plain}) as process:
            return _replies(play(process.check), images)


def _noting(
    messages: Iterable[BagMessage], topic: str, images: list[tuple[int, int]]
) -> Iterator[BagMessage]:
    """The messages, with the stamps and times of those on `topic` added to `images`."""
    for message in messages:
        if message.topic == topic:
            images.append((message.stamp, message.time))
        yield message


def _replies(playback, images: list[tuple[int, int]]) -> list[Reply]:
    """What came back for each image (stamp, time of recording).

    ROS knows an image by its stamp: of several with one stamp, the first stands for all.
    """
    replies, seen = [], set()
    for stamp, time in images:
        if stamp in seen:
            replies.append(Reply(stamp, time, 'same stamp'))
            continue
        seen.add(stamp)
        # An image without a stamp has the time of its recording here, and 0 at the node.
        account = playback.accounts.get(stamp) or playback.accounts.get(0)
        received, pose, covariance = playback.received.get(stamp, (None, None, None))
        reply = Reply(stamp, time)
        if account:
            status = status_name(account.outcome, account.estimate)
            reply = Reply(stamp, time, status, account.reasons, work_s=account.work_s)
        if pose is not None:
            status = reply.status if account else Outcome.ANSWERED.value
            latency = received - playback.sent[stamp]
            reply = replace(
                reply, status=status, pose=pose, covariance_66=covariance, latency_s=latency
            )
        replies.append(reply)
    return replies
