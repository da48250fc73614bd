"""ROS messages to be written into bags, without ROS. Stamps are nanoseconds, poses (4, 4)."""

from __future__ import annotations

import numpy as np

from pose_reloc.geometry import quaternion_from_rotation, xyzw_from_wxyz
from training.datasets.bag.reading import STORE, TF_TYPE

POSE_TYPE = 'geometry_msgs/msg/PoseStamped'
POSE_COVARIANCE_TYPE = 'geometry_msgs/msg/PoseWithCovarianceStamped'


def new(kind: str, *values):
    """A message of this kind with all its fields in order."""
    return STORE.types[kind](*values)


def header(stamp: int, frame: str):
    """std_msgs/Header."""
    time = new('builtin_interfaces/msg/Time', stamp // 1_000_000_000, stamp % 1_000_000_000)
    return new('std_msgs/msg/Header', time, frame)


def pose_stamped(stamp: int, frame: str, frame_T_body: np.ndarray):
    """geometry_msgs/PoseStamped."""
    return new(POSE_TYPE, header(stamp, frame), _pose(frame_T_body))


def pose_with_covariance(stamp: int, frame: str, frame_T_body, covariance_66):
    """geometry_msgs/PoseWithCovarianceStamped."""
    numbers = np.asarray(covariance_66, dtype=np.float64).ravel()
    pose = new('geometry_msgs/msg/PoseWithCovariance', _pose(frame_T_body), numbers)
    return new(POSE_COVARIANCE_TYPE, header(stamp, frame), pose)


def transform(stamp: int, parent: str, child: str, parent_T_child: np.ndarray):
    """tf2_msgs/TFMessage of one transform."""
    translation = new('geometry_msgs/msg/Vector3', *parent_T_child[:3, 3].tolist())
    moved = new('geometry_msgs/msg/Transform', translation, _quaternion(parent_T_child))
    kind = 'geometry_msgs/msg/TransformStamped'
    return new(TF_TYPE, [new(kind, header(stamp, parent), child, moved)])


def _pose(a_T_b: np.ndarray):
    position = new('geometry_msgs/msg/Point', *a_T_b[:3, 3].tolist())
    return new('geometry_msgs/msg/Pose', position, _quaternion(a_T_b))


def _quaternion(a_T_b: np.ndarray):
    q_xyzw = xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3]))
    return new('geometry_msgs/msg/Quaternion', *q_xyzw.tolist())
