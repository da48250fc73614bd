"""Where the robot is believed to be before an image is looked at. ROS-free.

Either somebody says so on ~/trigger, or odometry has carried the last refined answer on. The
relocalizer looks there first, and refuses an answer that contradicts it. So a prior must rather be
too vague than too certain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pose_reloc.geometry import invert_pose, pose_error
from pose_reloc.ros.messages import MessageError, matrix_from_pose
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.transforms import TransformError, lookup_near
from pose_reloc.uncertainty import checked_covariance, propagate_lever_arm

# Odometry of a wheeled robot or of a tracking camera drifts by a few percent of the way: standard
# deviations per metre and per radian travelled.
_DRIFT_M_PER_M = 0.05
_DRIFT_RAD_PER_M = 0.03
_DRIFT_RAD_PER_RAD = 0.05
# Of a robot that stands still: stamps are a little off, mountings give, covariances are optimistic.
_LEAST_DRIFT_STD = np.array([0.05] * 3 + [np.radians(2.0)] * 3)
# Odometry does not notice that the robot is lifted and carried away: after this many refusals since
# the last refined answer that answer says nothing any more. Coarse answers in between are too vague
# to tell whether it still holds.
_REFUSALS = 5
# Hints come from people who point at a map, and from trackers that have lost their way. What RViz
# writes for x, y and yaw is taken for the least of all: 0.5 m, 15 deg.
_LEAST_HINT_STD = np.array([0.5] * 3 + [np.radians(15.0)] * 3)


@dataclass(frozen=True)
class BasePrior:
    """A belief about the base before an image is looked at.

    Attributes:
        map_T_base: pose (4, 4).
        covariance_66: (6, 6), order (x, y, z, rotX, rotY, rotZ), fixed axes of the map.
    """

    map_T_base: np.ndarray
    covariance_66: np.ndarray


def prior_from_message(message, map_frame: str) -> BasePrior:
    """The prior that a geometry_msgs/PoseWithCovarianceStamped states.

    Standard deviations below 0.5 m and 15 deg, zeros included, are raised to these.

    Raises:
        MessageError: another frame than `map_frame`, no pose, or no covariance.
    """
    frame = message.header.frame_id.lstrip('/')
    if frame != map_frame:
        raise MessageError(f"its frame_id must be '{map_frame}', got '{frame}'")
    try:
        covariance = checked_covariance(np.reshape(message.pose.covariance, (6, 6)))
    except ValueError as error:
        raise MessageError(f'its covariance {error}') from error
    missing = np.maximum(_LEAST_HINT_STD**2 - np.diag(covariance), 0.0)
    return BasePrior(matrix_from_pose(message.pose.pose), covariance + np.diag(missing))


class OdometryPrior:
    """Carries the last answer on by TF odom_frame -> base_frame. Safe to use from several threads.

    Args:
        settings: the node's.
        lookup: lookup(target, source, stamp_ns or None) -> target_T_source, without waiting.
    """

    def __init__(
        self,
        settings: NodeSettings,
        lookup: Callable[[str, str, int | None], np.ndarray],
    ):
        self._odom, self._base = settings.odom_frame, settings.base_frame
        self._lookup = lookup
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets the last answer."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._answer: tuple[int, np.ndarray, np.ndarray] | None = None
        self._start: np.ndarray | None = None  # odom_T_base at the last answer
        self._seen: np.ndarray | None = None  # odom_T_base when `at` was called last
        self._metres = self._radians = 0.0
        self._refusals = 0

    def accepted(self, stamp: int, map_T_base: np.ndarray, covariance_66: np.ndarray) -> None:
        """A refined answer was published; `stamp` in nanoseconds."""
        with self._lock:
            self._forget()
            self._answer = (stamp, map_T_base, covariance_66)

    def refused(self) -> None:
        """An image was refused."""
        with self._lock:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self._forget()

    def at(self, stamp: int) -> BasePrior | None:
        """The prior for an image of `stamp` (ns); None without an answer or without odometry."""
        with self._lock:
            if self._answer is None:
                return None
            answered, map_T_base, covariance = self._answer
            try:
                if self._start is None:
                    self._start = self._seen = self._lookup(self._odom, self._base, answered)
                odom_T_base = lookup_near(self._lookup, self._odom, self._base, stamp)
            except TransformError:
                return None
            metres, radians = pose_error(self._seen, odom_T_base)
            self._seen = odom_T_base
            self._metres += float(metres)
            self._radians += float(radians)
            then_T_now = invert_pose(self._start) @ odom_T_base
            carried = propagate_lever_arm(covariance, map_T_base, then_T_now)
            drift = _LEAST_DRIFT_STD**2 + drift_variances(self._metres, self._radians)
            return BasePrior(map_T_base @ then_T_now, carried + np.diag(drift))


def drift_variances(metres: float, radians: float) -> np.ndarray:
    """How far odometry may be off after a way (6,): of x y z, and of the rotation about them."""
    position = _DRIFT_M_PER_M * metres
    rotation = _DRIFT_RAD_PER_M * metres + _DRIFT_RAD_PER_RAD * radians
    return np.repeat([position**2, rotation**2], 3)
