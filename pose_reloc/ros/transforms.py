"""The tree of coordinate frames: a ROS-free `TransformTree`, and its feeding from /tf.

`open_transforms(node)` gives tf2_ros where it is installed, otherwise the same behaviour from our
own subscriptions: both answer `lookup(target, source, stamp) -> target_T_source`.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort

import numpy as np

from pose_reloc.errors import PoseRelocError
from pose_reloc.geometry import interpolate_pose, invert_pose
from pose_reloc.ros.messages import (
    MessageError,
    matrix_from_transform,
    stamp_ns,
    transform_message,
)

_TF_QUEUE = 100


class TransformError(PoseRelocError):
    """Two frames are not connected, or not at the time asked for.

    Attributes:
        late: True when the transform exists but its data for this time has not arrived yet, so
            that waiting can help.
    """

    def __init__(self, message: str, late: bool = False):
        super().__init__(message)
        self.late = late


class TransformGapError(TransformError):
    """The time asked for lies between two transforms that are too far apart to interpolate."""


class _Edge:
    """One child's transform to its parent over time."""

    def __init__(self, parent: str, static: bool):
        self.parent = parent
        self.static = static
        self.stamps: list[int] = []
        self.poses: dict[int, np.ndarray] = {}

    def add(self, stamp: int, parent_T_child: np.ndarray, history: int | None) -> None:
        if self.static:
            self.stamps, self.poses = [stamp], {stamp: parent_T_child}
            return
        if stamp not in self.poses:
            if not self.stamps or stamp > self.stamps[-1]:
                self.stamps.append(stamp)
            else:
                insort(self.stamps, stamp)
        self.poses[stamp] = parent_T_child
        if history is not None:
            keep = bisect_left(self.stamps, self.stamps[-1] - history)
            for old in self.stamps[:keep]:
                del self.poses[old]
            del self.stamps[:keep]

    def at(self, stamp: int, tolerance: int, max_gap: int | None, child: str) -> np.ndarray:
        """parent_T_child (4, 4) at `stamp`, interpolated; at most `tolerance` beyond the data."""
        if self.static:
            return self.poses[self.stamps[0]]
        first, last = self.stamps[0], self.stamps[-1]
        if stamp > last + tolerance or stamp < first - tolerance:
            late = stamp > last
            beyond = (stamp - last if late else first - stamp) / 1e9
            raise TransformError(
                f"transform '{self.parent}' -> '{child}' is known until {last / 1e9:.3f} and would "
                f'have to be extrapolated by {beyond:.3f} s'
                if late
                else f"transform '{self.parent}' -> '{child}' is known only from "
                f'{first / 1e9:.3f} on, {beyond:.3f} s after the time asked for',
                late,
            )
        i = bisect_left(self.stamps, min(max(stamp, first), last))
        after = self.stamps[i]
        if i == 0 or stamp >= after:
            return self.poses[after]
        before = self.stamps[i - 1]
        if max_gap is not None and after - before > max_gap:
            raise TransformGapError(
                f"transform '{self.parent}' -> '{child}' has a gap of {(after - before) / 1e9:.3f} "
                f's after {before / 1e9:.3f}'
            )
        alpha = (stamp - before) / (after - before)
        return interpolate_pose(self.poses[before], self.poses[after], alpha)


class TransformTree:
    """Frames, each with at most one parent, over time. Safe to use from several threads.

    Args:
        history: seconds of dynamic transforms to keep behind the newest; None keeps everything.
    """

    def __init__(self, history: float | None = 10.0):
        self._history = None if history is None else int(history * 1e9)
        self._edges: dict[str, _Edge] = {}
        self._changed = threading.Condition()

    def set(self, parent: str, child: str, stamp: int, parent_T_child, static=False) -> None:
        """Adds one transform.

        Args:
            parent, child: frame names; a leading '/' is ignored.
            stamp: nanoseconds.
            parent_T_child: pose (4, 4).
            static: valid at all times.

        Raises:
            TransformError: empty names, or the child would become its own ancestor.
        """
        parent, child = _frame(parent), _frame(child)
        if not parent or not child or parent == child:
            raise TransformError(f"a transform cannot go from '{parent}' to '{child}'")
        with self._changed:
            if child in self._path_to_root(parent):
                raise TransformError(
                    f"transform '{parent}' -> '{child}' would make a loop in the tree of frames"
                )
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent or edge.static != static:
                edge = self._edges[child] = _Edge(parent, static)
            edge.add(stamp, np.asarray(parent_T_child, dtype=np.float64), self._history)
            self._changed.notify_all()

    def add_message(self, message, static: bool) -> None:
        """Adds the transforms of a tf2_msgs/TFMessage.

        Raises:
            TransformError, MessageError: one of them is impossible; the others were added.
        """
        problem = None
        for item in message.transforms:
            try:
                pose = matrix_from_transform(item.transform)
                stamp = stamp_ns(item.header.stamp)
                self.set(item.header.frame_id, item.child_frame_id, stamp, pose, static)
            except (TransformError, MessageError) as error:
                problem = error
        if problem is not None:
            raise problem

    def lookup(
        self,
        target: str,
        source: str,
        stamp: int | None = None,
        timeout: float = 0.0,
        tolerance: float = 0.0,
        max_gap: float | None = None,
    ) -> np.ndarray:
        """target_T_source (4, 4): the pose of `source` in `target`.

        Args:
            target, source: frame names.
            stamp: nanoseconds; None takes the newest time at which all parts are known.
            timeout: seconds to wait for it to become known.
            tolerance: seconds that a transform may be used before or after its known times.
            max_gap: seconds between two transforms that are still interpolated; None for any.

        Raises:
            TransformError: not connected, or not known at that time.
        """
        deadline = time.monotonic() + timeout
        within = int(tolerance * 1e9), None if max_gap is None else int(max_gap * 1e9)
        with self._changed:
            while True:
                try:
                    return self._lookup(_frame(target), _frame(source), stamp, *within)
                except TransformError:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise
                    self._changed.wait(left)

    def can_connect(self, target: str, source: str) -> bool:
        """True when a path joins the two frames, at whatever time."""
        with self._changed:
            target_path = self._path_to_root(_frame(target))
            return target_path[-1] == self._path_to_root(_frame(source))[-1]

    def stamps(self, target: str, source: str) -> list[int]:
        """All times (ns, sorted) at which a dynamic transform between the frames was given."""
        with self._changed:
            found: set[int] = set()
            for child, _ in self._edges_between(_frame(target), _frame(source)):
                if not self._edges[child].static:
                    found.update(self._edges[child].stamps)
            return sorted(found)

    def parents(self) -> dict[str, str]:
        """Every child frame and its parent."""
        with self._changed:
            return {child: edge.parent for child, edge in self._edges.items()}

    def frames(self) -> set[str]:
        """Every frame that is a parent or a child."""
        with self._changed:
            return set(self._edges) | {edge.parent for edge in self._edges.values()}

    def clear(self) -> None:
        """Forgets dynamic transforms, as tf2 does when the clock jumps back; keeps static ones."""
        with self._changed:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def _path_to_root(self, frame: str) -> list[str]:
        path = [frame]
        while frame in self._edges:
            frame = self._edges[frame].parent
            path.append(frame)
        return path

    def _edges_between(self, target: str, source: str) -> list[tuple[str, bool]]:
        """(child, upward) of every edge on the way from source to target."""
        up, down = self._path_to_root(source), self._path_to_root(target)
        if up[-1] != down[-1]:
            known = set(self._edges) | {edge.parent for edge in self._edges.values()}
            missing = [name for name in (target, source) if name not in known]
            if missing:
                names = ', '.join(sorted(known)) or 'none'
                raise TransformError(f"frame '{missing[0]}' is not on TF (frames: {names})")
            raise TransformError(
                f"frames '{target}' (below '{down[-1]}') and '{source}' (below '{up[-1]}') are not "
                'connected on TF'
            )
        while len(up) > 1 and len(down) > 1 and up[-2] == down[-2]:
            up.pop()
            down.pop()
        return [(child, True) for child in up[:-1]] + [(child, False) for child in down[-2::-1]]

    def _lookup(
        self,
        target: str,
        source: str,
        stamp: int | None,
        tolerance: int,
        max_gap: int | None,
    ) -> np.ndarray:
        if target == source:
            return np.eye(4)
        path = self._edges_between(target, source)
        if stamp is None:
            newest = [self._edges[c].stamps[-1] for c, _ in path if not self._edges[c].static]
            stamp = min(newest, default=0)
        ancestor_T_source, target_T_ancestor = np.eye(4), np.eye(4)
        for child, upward in path:
            parent_T_child = self._edges[child].at(stamp, tolerance, max_gap, child)
            if upward:
                ancestor_T_source = parent_T_child @ ancestor_T_source
            else:
                target_T_ancestor = invert_pose(parent_T_child) @ target_T_ancestor
        return target_T_ancestor @ ancestor_T_source


def lookup_near(lookup, target: str, source: str, stamp: int) -> np.ndarray:
    """target_T_source (4, 4) at `stamp` (ns), or the newest before it: for what cannot wait.

    Args:
        lookup: lookup(target, source, stamp_ns or None) -> target_T_source, without waiting.
        target, source: frame names.
        stamp: nanoseconds.

    Raises:
        TransformError: there is none.
    """
    try:
        return lookup(target, source, stamp)
    except TransformError as error:
        if not error.late:
            raise
        return lookup(target, source, None)


def _frame(name: str) -> str:
    """tf2 frame names have no leading slash; ROS 1 habits and old bags have."""
    return name[1:] if name.startswith('/') else name


def static_qos():
    """The QoS of /tf_static: late subscribers get what was sent before."""
    from rclpy.qos import DurabilityPolicy, QoSProfile

    return QoSProfile(depth=_TF_QUEUE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TreeListener:
    """Feeds a TransformTree from /tf and /tf_static through `node`'s executor."""

    def __init__(self, node):
        from tf2_msgs.msg import TFMessage

        self._node = node
        self.tree = TransformTree()
        self._subscriptions = [
            node.create_subscription(TFMessage, '/tf', self._on_tf, _TF_QUEUE),
            node.create_subscription(TFMessage, '/tf_static', self._on_tf_static, static_qos()),
        ]

    def _on_tf(self, message) -> None:
        self._add(message, False)

    def _on_tf_static(self, message) -> None:
        self._add(message, True)

    def _add(self, message, static: bool) -> None:
        try:
            self.tree.add_message(message, static)
        except (TransformError, MessageError) as error:
            self._node.get_logger().warning(f'ignored on TF: {error}', throttle_duration_sec=10.0)

    def lookup(self, target, source, stamp=None, timeout=0.0) -> np.ndarray:
        """See `TransformTree.lookup`."""
        return self.tree.lookup(target, source, stamp, timeout)

    def is_empty(self) -> bool:
        """True while nothing has been received on TF."""
        return not self.tree.frames()

    def clear(self) -> None:
        """Forgets dynamic transforms."""
        self.tree.clear()

    def close(self) -> None:
        """Unsubscribes."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


class Tf2Listener:
    """The same through tf2_ros, where a ROS distribution has it."""

    _POLL_S = 0.005

    def __init__(self, node, tf2_ros):
        from rclpy.duration import Duration

        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=10))
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def lookup(self, target, source, stamp=None, timeout=0.0) -> np.ndarray:
        """See `TransformTree.lookup`."""
        from rclpy.time import Time

        when = Time() if stamp is None else Time(nanoseconds=stamp)
        deadline = time.monotonic() + timeout
        while True:
            try:
                # tf2's own timeout would block on this node's executor; it is polled instead.
                found = self._buffer.lookup_transform(_frame(target), _frame(source), when)
                return matrix_from_transform(found.transform)
            except self._tf2.TransformException as error:
                if time.monotonic() >= deadline:
                    late = isinstance(error, self._tf2.ExtrapolationException)
                    late = late and self._ends_before(stamp, target, source)
                    raise TransformError(str(error), late) from error
            time.sleep(self._POLL_S)

    def _ends_before(self, stamp, target, source) -> bool:
        """Whether what is known ends before `stamp`; tf2 says the same of what begins after it."""
        try:
            newest = self._buffer.get_latest_common_time(_frame(target), _frame(source))
        except self._tf2.TransformException:  # forgotten by now
            return False
        return stamp is not None and stamp > newest.nanoseconds

    def is_empty(self) -> bool:
        """True while nothing has been received on TF."""
        return not self._buffer.all_frames_as_yaml().strip(' \n[]{}')

    def clear(self) -> None:
        """Forgets dynamic transforms."""
        self._buffer.clear()

    def close(self) -> None:
        """Unsubscribes."""
        self._listener.unregister()


def open_transforms(node):
    """A listener to TF on `node`: tf2_ros where it is installed, else `TreeListener`."""
    try:
        import tf2_ros
    except ImportError:
        return TreeListener(node)
    return Tf2Listener(node, tf2_ros)


class TransformSender:
    """Publishes on /tf. Safe to use from several threads."""

    def __init__(self, node):
        from tf2_msgs.msg import TFMessage

        self._node = node
        self._type = TFMessage
        self._publisher = node.create_publisher(TFMessage, '/tf', _TF_QUEUE)

    def send(self, parent: str, child: str, stamp: int, parent_T_child) -> None:
        """One transform; `stamp` in nanoseconds."""
        message = transform_message(stamp, parent, child, parent_T_child)
        self._publisher.publish(self._type(transforms=[message]))

    def close(self) -> None:
        """Destroys the publisher."""
        self._node.destroy_publisher(self._publisher)
