"""The result of a replay as a bag, to look at in RViz or Foxglove."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from pose_reloc.errors import BagError
from pose_reloc.geometry import invert_pose, quaternion_from_rotation, xyzw_from_wxyz
from pose_reloc.ros.parameters import NodeSettings
from training.datasets.bag import TF_TYPE, Bag, camera_info_topic
from training.datasets.bag.reading import STORE
from training.replay.run import Replay

POSE_TOPIC, TRUTH_TOPIC = '/pose_reloc/pose', '/ground_truth/pose'
_POSE_TYPE = 'geometry_msgs/msg/PoseWithCovarianceStamped'
_TRUTH_TYPE = 'geometry_msgs/msg/PoseStamped'
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
    try:
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            bag = _Output(writer)
            _write_poses(bag, result)
            if with_images:
                _copy_images(bag, result)
    except (OSError, WriterError) as error:
        raise BagError(f'cannot write the bag {path}: {error}') from error


class _Output:
    """Writes messages of any type by topic."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._connections: dict[str, object] = {}

    def raw(self, topic: str, kind: str, time: int, cdr: bytes) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=STORE)
        self._writer.write(self._connections[topic], time, cdr)

    def message(self, topic: str, kind: str, time: int, message) -> None:
        self.raw(topic, kind, time, STORE.serialize_cdr(message, kind))


def _write_poses(bag: _Output, result: Replay) -> None:
    map_frame, recorded = result.settings.map_frame, result.recorded
    # The camera hangs on the answered base; where it is the base itself, its frame is the child.
    base_T_camera = invert_pose(recorded.camera_T_base)
    for i, (reply, frame) in enumerate(zip(result.replies, result.evaluation.frames)):
        if i == 0 and recorded.camera_frame:
            mounting = _transform(reply.stamp, _CHILD, recorded.camera_frame, base_T_camera)
            bag.message('/tf_static', TF_TYPE, reply.time, mounting)
        if frame.estimate is not None:
            pose = _new(
                _POSE_TYPE,
                _header(reply.stamp, map_frame),
                _new(
                    'geometry_msgs/msg/PoseWithCovariance',
                    _pose(frame.estimate),
                    np.asarray(frame.covariance_66, dtype=np.float64).ravel(),
                ),
            )
            bag.message(POSE_TOPIC, _POSE_TYPE, reply.time, pose)
            moved = _transform(reply.stamp, map_frame, _CHILD, frame.estimate)
            bag.message('/tf', TF_TYPE, reply.time, moved)
        if frame.truth is not None:
            truth = _new(_TRUTH_TYPE, _header(reply.stamp, map_frame), _pose(frame.truth))
            bag.message(TRUTH_TOPIC, _TRUTH_TYPE, reply.time, truth)


def _copy_images(bag: _Output, result: Replay) -> None:
    topic = result.recorded.topic.name
    with Bag(result.bag_path) as source:
        for message in source.messages([topic, camera_info_topic(topic)]):
            bag.raw(message.topic, message.type, message.time, bytes(message.cdr))


def _new(kind: str, *values):
    return STORE.types[kind](*values)


def _header(stamp: int, frame: str):
    time = _new('builtin_interfaces/msg/Time', stamp // 1_000_000_000, stamp % 1_000_000_000)
    return _new('std_msgs/msg/Header', time, frame)


def _quaternion(a_T_b: np.ndarray):
    q_xyzw = xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3]))
    return _new('geometry_msgs/msg/Quaternion', *q_xyzw.tolist())


def _pose(a_T_b: np.ndarray):
    position = _new('geometry_msgs/msg/Point', *a_T_b[:3, 3].tolist())
    return _new('geometry_msgs/msg/Pose', position, _quaternion(a_T_b))


def _transform(stamp: int, parent: str, child: str, parent_T_child: np.ndarray):
    """A TFMessage of one transform."""
    translation = _new('geometry_msgs/msg/Vector3', *parent_T_child[:3, 3].tolist())
    transform = _new('geometry_msgs/msg/Transform', translation, _quaternion(parent_T_child))
    stamped = _new('geometry_msgs/msg/TransformStamped', _header(stamp, parent), child, transform)
    return _new(TF_TYPE, [stamped])
