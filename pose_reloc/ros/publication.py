"""What the node publishes about an image: poses, a picture, and what became of it."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image

from pose_reloc.ros.debug_image import draw
from pose_reloc.ros.diagnostics import Level, Outcome, array_message, status_message
from pose_reloc.ros.messages import image_message, pose_message
from pose_reloc.ros.pipeline import Answer

# Nav2 refuses an initial pose with a covariance beyond 1e9 or below 0.
_LARGEST_VARIANCE = 1e8


class Publication:
    """The topics of a lifecycle node; silent while it is not active.

    `initial_pose` says once where the robot is, to those who must know to begin (AMCL,
    slam_toolbox, cuVSLAM): the first pose after `arm` that somebody listens to, once the mounting
    of the camera is known.
    """

    def __init__(self, node):
        def create(kind, topic, depth=10):
            return node.create_lifecycle_publisher(kind, topic, depth)

        self.pose = create(PoseWithCovarianceStamped, '~/pose')
        self.camera_pose = create(PoseWithCovarianceStamped, '~/camera_pose')
        self.raw_pose = create(PoseWithCovarianceStamped, '~/pose_raw')
        self.initial_pose = create(PoseWithCovarianceStamped, 'initial_pose')
        self.debug_image = create(Image, '~/debug_image', 1)
        self.status = create(DiagnosticArray, '~/status', 50)
        self._node = node
        self._lock = threading.Lock()
        self._armed_since = math.inf

    def arm(self) -> None:
        """Lets `initial_pose` speak once, about an image received from now on."""
        with self._lock:
            self._armed_since = time.perf_counter()

    def publish(self, answer: Answer, map_frame: str, received: float) -> None:
        """The poses and the picture of an answer; `received` as in `Frame`."""
        if answer.map_T_base is not None:
            pose, covariance = answer.map_T_base, answer.base_covariance_66
            self.pose.publish(pose_message(answer.stamp, map_frame, pose, covariance))
            if answer.mounted:  # it is said only once, and moves the robot
                self._publish_initial(answer, map_frame, received)
        if answer.map_T_camera is not None:
            pose, covariance = answer.map_T_camera, answer.camera_covariance_66
            self.camera_pose.publish(pose_message(answer.stamp, map_frame, pose, covariance))
        if answer.raw_map_T_base is not None and self.raw_pose.get_subscription_count():
            pose, covariance = answer.raw_map_T_base, answer.raw_covariance_66
            self.raw_pose.publish(pose_message(answer.stamp, map_frame, pose, covariance))

    def publish_picture(self, answer: Answer) -> None:
        """The picture of an answer, if somebody wants to see it."""
        view = answer.view
        if view is not None and self.debug_image.get_subscription_count():
            picture = draw(view.image_HW3, view.camera, view.estimate)
            self.debug_image.publish(image_message(answer.stamp, view.frame, picture))

    def _publish_initial(self, answer: Answer, map_frame: str, received: float) -> None:
        with self._lock:
            if received < self._armed_since or not self.initial_pose.get_subscription_count():
                return
            self._armed_since = math.inf
        # Nav2 takes no negative entry anywhere, and correlations are negative half of the time.
        variances = np.clip(np.diag(answer.base_covariance_66), 0.0, _LARGEST_VARIANCE)
        self.initial_pose.publish(
            pose_message(answer.stamp, map_frame, answer.map_T_base, np.diag(variances))
        )
        self._node.get_logger().info('initial_pose was published')

    def publish_status(self, answer: Answer, scene: str) -> None:
        """What became of an image, if somebody listens."""
        if not self.status.get_subscription_count():
            return
        table = {'reasons': ', '.join(answer.reasons), 'estimate': answer.status}
        if answer.view is not None:
            table['inliers'] = str(answer.view.estimate.inliers)
            likeness = answer.view.estimate.likeness
            table['likeness'] = '' if likeness is None else f'{likeness:.3f}'
        table |= {f'{stage} (ms)': f'{s * 1e3:.2f}' for stage, s in answer.timings.items()}
        level = Level.OK if answer.outcome in (Outcome.ANSWERED, Outcome.SKIPPED) else Level.WARN
        name = f'{self._node.get_name()}: {answer.outcome.value}'
        status = status_message(level, name, answer.sentence, table, scene)
        self.status.publish(array_message(answer.stamp, status))


def describe(answer: Answer, map_frame: str) -> str:
    """One line for people: the pose and its standard deviations, or why there is none."""
    if answer.map_T_base is None:
        return answer.sentence
    x, y, z = answer.map_T_base[:3, 3]
    yaw, pitch, roll = Rotation.from_matrix(answer.map_T_base[:3, :3]).as_euler('ZYX', degrees=True)
    std = np.sqrt(np.diag(answer.base_covariance_66))
    metres = ' '.join(f'{v:.3f}' for v in std[:3])
    degrees = ' '.join(f'{v:.2f}' for v in np.degrees(std[3:]))
    return (
        f'{answer.status} in {map_frame}: x {x:.3f} y {y:.3f} z {z:.3f} m, roll {roll:.2f} '
        f'pitch {pitch:.2f} yaw {yaw:.2f} deg; sigma {metres} m, {degrees} deg; '
        f'stamp {answer.stamp // 10**9}.{answer.stamp % 10**9:09d}'
    )
