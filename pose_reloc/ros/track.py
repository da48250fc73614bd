"""The parameter `track`: consecutive answers confirm or refuse each other. ROS-free."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from pose_reloc.geometry import invert_pose, pose_error
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.prior import drift_variances
from pose_reloc.ros.transforms import TransformError, lookup_near
from pose_reloc.uncertainty import propagate_lever_arm, rotate_covariance


class Track:
    """A `Tracker` that TF tells how the camera has moved. Safe to use from several threads.

    Args:
        settings: the node's.
        lookup: lookup(target, source, stamp_ns or None) -> target_T_source, without waiting.
    """

    def __init__(
        self,
        settings: NodeSettings,
        lookup: Callable[[str, str, int | None], np.ndarray],
    ):
        from pose_reloc.tracking import Tracker  # torch: loaded with the scene by now

        self._odom, self._base = settings.odom_frame, settings.base_frame
        self._lookup = lookup
        self._lock = threading.Lock()
        self._tracker = Tracker()
        # odom_T_base and camera_T_base at the image before: a head may have turned since.
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def forget(self) -> None:
        """Starts anew, as after a jump of the clock."""
        with self._lock:
            self._tracker.forget()
            self._last = None

    def predict(self, stamp: int, camera_T_base: np.ndarray | None):
        """The `PosePrior` of the camera in the scene for an image of `stamp` (ns), or None.

        Args:
            camera_T_base: (4, 4); None where it is not known or odometry is not to be used.
        """
        with self._lock:
            return self._tracker.predict(stamp / 1e9, self._motion(stamp, camera_T_base))

    def judge(self, estimate) -> str:
        """Takes the answer to the image of `predict`: why not to believe it, empty if confirmed."""
        with self._lock:
            verdict = self._tracker.judge(estimate).value
        return {'CONFIRMED': '', 'WAITING': 'waiting', 'REFUSED': 'contradicts_track'}[verdict]

    def counts(self, estimate) -> bool:
        """Whether the answer, though it is not confirmed, may help others to be: see `tracking`."""
        from pose_reloc.tracking import is_candidate

        return is_candidate(estimate)

    def _motion(self, stamp: int, camera_T_base: np.ndarray | None):
        """What odometry says of the camera since the image before; None where it says nothing."""
        from pose_reloc.tracking import Motion

        before, self._last = self._last, None
        if camera_T_base is None:
            return None
        try:
            odom_T_base = lookup_near(self._lookup, self._odom, self._base, stamp)
        except TransformError:
            return None
        self._last = odom_T_base, camera_T_base
        if before is None:
            return None
        odom_T_then, camera_T_then = before
        then_T_now = invert_pose(odom_T_then) @ odom_T_base  # of the base
        base_T_camera = invert_pose(camera_T_base)
        drift = np.diag(drift_variances(*pose_error(odom_T_then, odom_T_base)))
        drift = propagate_lever_arm(drift, then_T_now, base_T_camera)
        return Motion(
            camera_T_then @ then_T_now @ base_T_camera,
            rotate_covariance(drift, camera_T_then[:3, :3]),
        )
