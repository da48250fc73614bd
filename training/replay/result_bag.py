"""The result of a replay as a bag, to look at in RViz or Foxglove."""

from __future__ import annotations

from pathlib import Path

from pose_reloc.geometry import invert_pose
from pose_reloc.ros.parameters import NodeSettings
from training.datasets.bag import TF_TYPE, Bag, camera_info_topic, messages
from training.datasets.bag.writing import TRUTH_TOPIC, BagOutput, new_bag
from training.replay.run import Replay

POSE_TOPIC = '/pose_reloc/pose'
_CHILD = NodeSettings().reloc_frame


def write_result_bag(path: Path, result: Replay, with_images: bool = False) -> None:
    """Writes a rosbag2 (MCAP) with what the node would have published, beside the truth.

    Topics: /pose_reloc/pose and /ground_truth/pose; on /tf map -> base_link_reloc, and on
    /tf_static the camera on it, so that its images can be shown where it was found to be.

    Args:
        path: of the bag's folder, which must not exist.
        result: of a replay.
        with_images: also copies the images and camera_info, byte for byte.

    Raises:
        BagError: the folder exists or cannot be written, or the bag that was replayed is gone.
    """
    with new_bag(path) as bag:
        _write_poses(bag, result)
        if with_images:
            _copy_images(bag, result)


def _write_poses(bag: BagOutput, result: Replay) -> None:
    map_frame, recorded = result.settings.map_frame, result.recorded
    # The camera hangs on the answered base; where it is the base itself, its frame is the child.
    base_T_camera = invert_pose(recorded.camera_T_base)
    for i, (reply, frame) in enumerate(zip(result.replies, result.evaluation.frames)):
        stamp, time = reply.stamp, reply.time
        if i == 0 and recorded.camera_frame:
            mounting = messages.transform(stamp, _CHILD, recorded.camera_frame, base_T_camera)
            bag.message('/tf_static', TF_TYPE, time, mounting)
        if frame.estimate is not None:
            pose = messages.pose_with_covariance(
                stamp, map_frame, frame.estimate, frame.covariance_66
            )
            bag.message(POSE_TOPIC, messages.POSE_COVARIANCE_TYPE, time, pose)
            moved = messages.transform(stamp, map_frame, _CHILD, frame.estimate)
            bag.message('/tf', TF_TYPE, time, moved)
        if frame.truth is not None:
            truth = messages.pose_stamped(stamp, map_frame, frame.truth)
            bag.message(TRUTH_TOPIC, messages.POSE_TYPE, time, truth)


def _copy_images(bag: BagOutput, result: Replay) -> None:
    topic = result.recorded.topic.name
    with Bag(result.bag_path) as source:
        for message in source.messages([topic, camera_info_topic(topic)]):
            bag.raw(message.topic, message.type, message.time, bytes(message.cdr))
