"""Every image of a bag through the code of the node, in order and in this process, without ROS."""

from __future__ import annotations

import time

from tqdm import tqdm

from pose_reloc.relocalizer import Relocalizer
from pose_reloc.ros.messages import MessageError
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.pipeline import Answer, CameraSource, Frame, Notices, Pipeline
from pose_reloc.scene import SceneModel
from training.datasets.bag import Bag, BagMessage, camera_info_topic
from training.replay.recorded import Recorded
from training.replay.reply import Reply, status_name
from training.replay.settings import ReplaySettings


def answer_offline(
    bag: Bag, recorded: Recorded, scene: SceneModel, settings: ReplaySettings
) -> list[Reply]:
    """What becomes of every image of the bag; repeats exactly on one machine.

    All of TF is known from the start: no image waits for a transform or is too old.

    Args:
        bag: opened.
        recorded: what was picked from it.
        scene: that answers.
        settings: of the replay.
    """
    relocalizer = Relocalizer(scene, settings.device)
    recorded.notes.append(f'network: {relocalizer.describe()}')
    relocalizer.warm_up()
    # Nothing arrives late here, and nothing is old.
    node = NodeSettings(
        tf_timeout=0.0,
        mounting_timeout=0.0,
        max_image_age=0.0,
        **recorded.node_parameters(settings),
    )
    notices = Notices(recorded.notes.append, recorded.notes.append)
    camera = CameraSource(node.rectified, notices, expected=lambda: False)
    info_topic = camera_info_topic(recorded.topic.name)
    if (info := bag.first(info_topic)) is not None:
        camera.update(info)
    clock = _Clock()
    pipeline = Pipeline(
        node, relocalizer, recorded.tree, camera, notices, clock.now, recorded.notes.append
    )
    replies = []
    with tqdm(total=recorded.topic.count, desc='answering', unit='img', disable=None) as bar:
        for message in bag.messages([recorded.topic.name, info_topic]):
            if message.topic == info_topic:
                _update(camera, bag, message)
                continue
            clock.stamp = message.stamp
            replies.append(_reply(bag, message, pipeline))
            bar.update()
    return replies


class _Clock:
    """Says that it is the time of the image at hand."""

    stamp = 0

    def now(self) -> int:
        """Nanoseconds."""
        return self.stamp


def _update(camera: CameraSource, bag: Bag, message: BagMessage) -> None:
    try:
        camera.update(bag.decode(message))
    except MessageError:  # the one before is still right
        pass


def _reply(bag: Bag, message: BagMessage, pipeline: Pipeline) -> Reply:
    try:
        image = bag.decode(message)
    except MessageError:
        return Reply(message.stamp, message.time, 'unreadable', ('bad image',))
    start = time.perf_counter()
    answer: Answer = pipeline.process(Frame(image, start))
    seconds = time.perf_counter() - start
    return Reply(
        message.stamp,
        message.time,
        status_name(answer.outcome, answer.status),
        answer.reasons,
        answer.map_T_base,
        answer.base_covariance_66,
        latency_s=None if answer.map_T_base is None else seconds,
        work_s=seconds if answer.status else None,
    )
