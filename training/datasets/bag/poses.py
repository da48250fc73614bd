"""`Truth`: the poses of a recording over time, from TF, from a topic, or from both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pose_reloc.ros.messages import matrix_from_pose, stamp_ns
from pose_reloc.ros.transforms import TransformError, TransformTree

# Message type -> how to reach its geometry_msgs/Pose.
POSE_TYPES = {
    'geometry_msgs/msg/PoseStamped': lambda m: m.pose,
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda m: m.pose.pose,
    'nav_msgs/msg/Odometry': lambda m: m.pose.pose,
}
# Stamps that went through seconds as a floating-point number are off by less than this.
_ROUNDING_S = 1e-3
MAX_GAP_S = 0.3


@dataclass(frozen=True)
class Truth:
    """True poses of a recording over time.

    Attributes:
        source: where they come from, for people.
        tree, parent, child: the pose is that of `child` in `parent`.
        max_gap_s: nothing is interpolated between transforms that are further apart.
        carried: what is mounted on `child` and whose pose is wanted instead.
    """

    source: str
    tree: TransformTree
    parent: str
    child: str
    max_gap_s: float = MAX_GAP_S
    carried: Truth | None = None

    def lookup(self, stamp: int) -> np.ndarray:
        """The pose (4, 4) at this time, interpolated.

        Raises:
            TransformError: the recording does not know it.
        """
        pose = self.tree.lookup(
            self.parent, self.child, stamp, tolerance=_ROUNDING_S, max_gap=self.max_gap_s
        )
        return pose if self.carried is None else pose @ self.carried.lookup(stamp)

    def at(self, stamp: int) -> np.ndarray | None:
        """The pose (4, 4) at this time, interpolated; None where the recording does not know."""
        try:
            return self.lookup(stamp)
        except TransformError:
            return None

    def stamps(self) -> list[int]:
        """Times (ns, sorted) at which poses were recorded; empty where nothing moves."""
        return self.tree.stamps(self.parent, self.child)


@dataclass
class PoseTopic:
    """The poses of one topic.

    Attributes:
        name: of the topic.
        frame: in which the poses are, as its first message says; None without any.
        child: whose poses they are; empty where the messages do not say.
        tree: the poses of 'body' in 'world'.
    """

    name: str
    frame: str | None = None
    child: str = ''
    tree: TransformTree = field(default_factory=lambda: TransformTree(history=None))

    def add(self, message, kind: str) -> None:
        """Adds a decoded message of a type of `POSE_TYPES`.

        Raises:
            MessageError: its pose is impossible.
        """
        pose = matrix_from_pose(POSE_TYPES[kind](message))
        if self.frame is None:
            self.frame = message.header.frame_id.removeprefix('/')
            self.child = getattr(message, 'child_frame_id', '').removeprefix('/')
        self.tree.set('world', 'body', stamp_ns(message.header.stamp), pose)

    def truth(self, max_gap_s: float = MAX_GAP_S, carried: Truth | None = None) -> Truth:
        """The poses over time."""
        return Truth(self.name, self.tree, 'world', 'body', max_gap_s, carried)


def topic_named_truth(names: Iterable[str]) -> str | None:
    """The first name that says that it is the truth."""
    return next((name for name in names if 'truth' in name or '/gt' in name), None)
