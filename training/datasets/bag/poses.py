"""`Truth`: the poses of a recording over time, from TF, from a topic, or from both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pose_reloc.geometry import pose_residual
from pose_reloc.ros.messages import matrix_from_pose
from pose_reloc.ros.transforms import TransformError, TransformTree
from training.datasets.jumps import JUMP, is_jump

# Message type -> how to reach its geometry_msgs/Pose.
POSE_TYPES = {
    'geometry_msgs/msg/PoseStamped': lambda m: m.pose,
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda m: m.pose.pose,
    'nav_msgs/msg/Odometry': lambda m: m.pose.pose,
}
# Stamps that went through seconds as a floating-point number are off by less than this.
_ROUNDING_S = 1e-3
MAX_GAP_S = 0.3
# Words in the name of a topic that holds the truth; 'ground_truth' is two words.
_TRUTH = {'truth', 'groundtruth', 'gt'}
_TICK = 1_000_000  # nanoseconds over which a velocity is measured


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

    def lookup(self, stamp: int, tolerance: float = _ROUNDING_S) -> np.ndarray:
        """The pose (4, 4) at this time, interpolated; at most `tolerance` seconds beyond the data.

        Raises:
            TransformError: the recording does not know it.
        """
        pose = self.tree.lookup(
            self.parent, self.child, stamp, tolerance=tolerance, max_gap=self.max_gap_s
        )
        return pose if self.carried is None else pose @ self.carried.lookup(stamp, tolerance)

    def at(self, stamp: int) -> np.ndarray | None:
        """The pose (4, 4) at this time, interpolated; None where the recording does not know."""
        try:
            return self.lookup(stamp)
        except TransformError:
            return None

    def jumps_at(self, stamp: int) -> bool:
        """True inside a step between two poses that is a jump, not a motion."""
        after = self._velocity(stamp)
        speed = _norms(after)
        if not (speed > JUMP).any():
            return False
        # Where the velocity changes, a pose was measured: that is not inside a step.
        change = _norms(after - self._velocity(stamp - _TICK))
        # No step is longer than `gap`.
        gap = round(self.max_gap_s * 1e9) + _TICK
        around = [_norms(self._velocity(stamp + side)) for side in (-gap, gap)]
        jump = is_jump(speed, *around) & (change < speed / 2)
        return bool(jump.any())

    def _velocity(self, start: int) -> np.ndarray:
        """Linear and angular velocity (2, 3) from `start` on; NaN where it is unknown."""
        try:
            first, second = (self.lookup(t, tolerance=0.0) for t in (start, start + _TICK))
        except TransformError:
            return np.full((2, 3), np.nan)
        return pose_residual(second, first).reshape(2, 3) / (_TICK / 1e9)

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

    def add(self, message, kind: str, stamp: int) -> None:
        """Adds a decoded message of a type of `POSE_TYPES`.

        Args:
            message: decoded.
            kind: its type.
            stamp: nanoseconds.

        Raises:
            MessageError: its pose is impossible.
        """
        pose = matrix_from_pose(POSE_TYPES[kind](message))
        if self.frame is None:
            self.frame = message.header.frame_id.removeprefix('/')
            self.child = getattr(message, 'child_frame_id', '').removeprefix('/')
        self.tree.set('world', 'body', stamp, pose)

    def truth(self, max_gap_s: float = MAX_GAP_S, carried: Truth | None = None) -> Truth:
        """The poses over time."""
        return Truth(self.name, self.tree, 'world', 'body', max_gap_s, carried)


def _norms(velocity_23: np.ndarray) -> np.ndarray:
    return np.linalg.norm(velocity_23, axis=1)


def topic_named_truth(names: Iterable[str]) -> str | None:
    """The first name with a word that says that it is the truth: not '/gtsam/pose'."""
    return next((n for n in names if _TRUTH & set(re.findall('[a-z]+', n.lower()))), None)
