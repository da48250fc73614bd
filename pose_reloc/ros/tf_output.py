"""What the node says on /tf, by `tf_mode`. ROS-free: it is given a function that sends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from pose_reloc.ros.messages import stamp_ns
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.transforms import TransformError

# A foreign publisher that has been silent for this long is taken to be gone.
_FOREIGN_MEMORY_S = 5.0
_OWN_MEMORY = 1000
# A clock that is set back by more is worth a word.
_CLOCK_STEP_S = 1.0


class TfOutput:
    """Sends the transform of `tf_mode`. Safe to use from several threads.

    map_to_odom and map_to_base give way to another publisher of the same child frame: two would
    make the robot jump between two poses. The answer then goes out as `separate`, unless
    `tf_force` is set. `separate` gives way to nobody, but says so too.

    Args:
        settings: the node's.
        send: send(parent, child, stamp_ns, parent_T_child).
        lookup: lookup(target, source, stamp_ns, timeout_s) -> target_T_source.
    """

    def __init__(
        self,
        settings: NodeSettings,
        send: Callable[[str, str, int, np.ndarray], None],
        lookup: Callable[[str, str, int, float], np.ndarray],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings = settings
        self._send_transform = send
        self._lookup = lookup
        self._clock = clock
        self._lock = threading.Lock()
        self._held: np.ndarray | None = None
        self._held_stamp = 0
        self._sent_at = 0
        self._own: deque = deque(maxlen=_OWN_MEMORY)
        self._foreign_until = -np.inf
        self._foreign = ''
        self._no_odometry = self._set_back = ''

    @property
    def problem(self) -> str:
        """A sentence while map_to_odom cannot be computed or sent, else empty."""
        return self._set_back or self._no_odometry  # the first may be why there is no odometry

    @property
    def child(self) -> str:
        """The frame whose parent this mode publishes; empty for none."""
        return {
            'none': '',
            'separate': self.settings.reloc_frame,
            'map_to_odom': self.settings.odom_frame,
            'map_to_base': self.settings.base_frame,
        }[self.settings.tf_mode]

    @property
    def can_conflict(self) -> bool:
        """True for the modes that publish a transform: others may publish it too."""
        return bool(self.child)

    def observe_message(self, message, static: bool) -> None:
        """Takes a tf2_msgs/TFMessage seen on /tf, or on /tf_static where `static`."""
        for item in message.transforms:
            if item.child_frame_id.lstrip('/') == self.child:
                parent, x = item.header.frame_id, item.transform.translation.x
                self.observe(parent, self.child, stamp_ns(item.header.stamp), x, static)

    def observe(self, parent: str, child: str, stamp: int, x: float, static: bool) -> None:
        """Takes a transform seen on /tf, our own included, and remembers foreign owners.

        Args:
            parent, child: its frames.
            stamp: nanoseconds.
            x: of its translation, which with the stamp tells our own messages from others.
            static: seen on /tf_static, so it will not be repeated.
        """
        with self._lock:
            if (stamp, x) in self._own:
                return
            if not self.settings.tf_force:
                self._held = None  # what was true before the other one came is not true after it
            self._foreign = f"'{parent}' -> '{child}'"
            self._foreign_until = np.inf if static else self._clock() + _FOREIGN_MEMORY_S

    def conflict(self) -> str:
        """A sentence while another node publishes our transform, else empty."""
        if not self.can_conflict:
            return ''
        with self._lock:
            if self._clock() >= self._foreign_until:
                return ''
            what = f'another node publishes the transform {self._foreign}'
        if self.settings.tf_mode == 'separate':
            return f'{what} too: give the parameter reloc_frame of one of them another name'
        if self.settings.tf_force:
            return f'{what}; tf_force is set, so both are published'
        return (
            f'{what}; tf_mode {self.settings.tf_mode} gives way and publishes '
            f"'{self.settings.map_frame}' -> '{self.settings.reloc_frame}' instead. Stop the other "
            'one (for Nav2: do not start AMCL), or set tf_mode to separate'
        )

    def answer(
        self,
        stamp: int,
        map_T_base: np.ndarray,
        now: int,
        carried_map_T_base: np.ndarray | None = None,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """Sends or holds a new pose of the base.

        Args:
            stamp, now: of the image, and the time (nanoseconds).
            map_T_base: the pose (4, 4).
            carried_map_T_base: a less uncertain one from odometry, for modes that move the robot:
                who reads TF sees no covariance.
            is_current: false once the clock has jumped back, which may be while this waits for
                odometry.
        """
        mode = self.settings.tf_mode
        believed = map_T_base if carried_map_T_base is None else carried_map_T_base
        if mode == 'none':
            return
        if mode == 'separate' or (self.conflict() and not self.settings.tf_force):
            self._send(self.settings.reloc_frame, stamp, map_T_base)
        elif mode == 'map_to_base':
            self._send(self.settings.base_frame, stamp, believed)
        elif carried_map_T_base is None or self._held is None:  # else odometry goes on as it is
            self._hold(stamp, believed, now, is_current)

    def _hold(self, stamp: int, map_T_base: np.ndarray, now: int, is_current) -> None:
        odom, base = self.settings.odom_frame, self.settings.base_frame
        try:
            base_T_odom = self._lookup(base, odom, stamp, self.settings.tf_timeout)
        except TransformError as error:
            self._no_odometry = (
                f"tf_mode map_to_odom needs the transform '{odom}' -> '{base}' at the time of the "
                f'image: {error}'
            )
            return
        self._no_odometry = ''
        with self._lock:
            if not is_current():
                return
            self._held = map_T_base @ base_T_odom
        self.tick(now)

    def tick(self, now: int) -> None:
        """Sends the held map_to_odom again, stamped ahead of `now` (ns) by tf_tolerance."""
        if self.settings.tf_mode != 'map_to_odom':
            return
        if self.conflict() and not self.settings.tf_force:
            return
        stamp = now + int(self.settings.tf_tolerance * 1e9)
        parent, odom = self.settings.map_frame, self.settings.odom_frame
        with self._lock:
            back = 0.0 if self._held is None else (self._sent_at - now) / 1e9
            self._set_back = ''
            if back > _CLOCK_STEP_S:  # no jump of simulated time: `clear` would have been called
                self._set_back = (
                    f"the clock was set back: '{parent}' -> '{odom}' is not sent for another "
                    f'{back:.0f} s, until it has caught up; start this node and those that listen '
                    'to TF again'
                )
            # A paused simulated clock would make TF listeners complain of repeated data.
            if self._held is None or stamp <= self._held_stamp:
                return
            self._held_stamp, self._sent_at = stamp, now
            held = self._held
        self._send(odom, stamp, held)

    def _send(self, child: str, stamp: int, map_T_child: np.ndarray) -> None:
        with self._lock:
            self._own.append((stamp, float(map_T_child[0, 3])))
        self._send_transform(self.settings.map_frame, child, stamp, map_T_child)

    def clear(self) -> None:
        """Forgets the held transform, as after a jump of the clock."""
        with self._lock:
            self._held, self._held_stamp, self._sent_at = None, 0, 0
            if self._foreign_until != np.inf:  # a static transform is not sent again
                self._foreign_until = -np.inf
