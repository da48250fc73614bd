"""Tracker: answers to consecutive images confirm or refuse each other. ROS-free.

One image can look like another place. The answers to several images of a moving robot, carried
along by odometry, cannot all be wrong in the same way by chance (those of one that stands can):
after a start or a loss N of M answers must agree before one is believed; from then on an answer
must agree with the belief, carried on to its time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from pose_reloc.gates import mahalanobis
from pose_reloc.relocalizer import PoseEstimate, PosePrior, Status
from pose_reloc.uncertainty import propagate_lever_arm


@dataclass(frozen=True)
class TrackerSettings:
    """When an answer is believed, and how fast a belief grows old."""

    agree: int = 3  # answers that must agree, the new one included, where nothing is believed ...
    among: int = 5  # ... of so many last ones
    max_distance: float = 5.0  # Mahalanobis distance of two poses that agree
    max_sigma_m: float = 2.0  # a belief vaguer than this is none
    # Standard deviations of the motion in one second where no odometry tells it: a robot's.
    speed_m_s: float = 0.7
    speed_rad_s: float = 0.7
    # And of what odometry, stamps and map leave unsaid between two images.
    least_m: float = 0.05
    least_rad: float = np.deg2rad(2.0)


@dataclass(frozen=True)
class Motion:
    """What odometry says of the way of the camera from one image to the next.

    Attributes:
        then_T_now: pose (4, 4) of the camera now in the camera then.
        covariance_66: (6, 6) of `geometry.pose_residual`, along the axes of the camera then.
    """

    then_T_now: np.ndarray
    covariance_66: np.ndarray


class Verdict(str, Enum):
    """What became of an answer."""

    CONFIRMED = 'CONFIRMED'  # agrees with the belief, or N of M agree: use it
    WAITING = 'WAITING'  # nothing is believed yet and too few answers agree so far
    REFUSED = 'REFUSED'  # contradicts the belief, or is no answer


class Tracker:
    """Follows one camera through a scene. For one caller at a time.

    Example:
        >>> prior = tracker.predict(time_s, motion)                    # doctest: +SKIP
        >>> answer = relocalizer.localize(image_rgb, camera, prior)    # doctest: +SKIP
        >>> if tracker.judge(answer) is Verdict.CONFIRMED: ...         # doctest: +SKIP
    """

    def __init__(self, settings: TrackerSettings = TrackerSettings()):
        self.settings = settings
        self.forget()

    def forget(self) -> None:
        """Starts anew, for example after a jump of the clock."""
        self._time_s: float | None = None
        self._belief: PosePrior | None = None
        self._recent: deque[PosePrior | None] = deque(maxlen=self.settings.among - 1)

    def predict(self, time_s: float, motion: Motion | None = None) -> PosePrior | None:
        """Carries everything on to the next image.

        Args:
            time_s: of the image, seconds, on any clock. A time before the last one starts anew.
            motion: of the camera since the image before; None where there is no odometry.

        Returns:
            The prior for `Relocalizer.localize`; None where nothing is believed.
        """
        if self._time_s is not None and time_s < self._time_s:
            self.forget()
        elapsed = 0.0 if self._time_s is None else time_s - self._time_s
        self._time_s = time_s
        motion = motion or self._unknown_motion(elapsed)
        self._recent = deque(
            (old and self._carried(old, motion) for old in self._recent), self._recent.maxlen
        )
        if self._belief:
            belief = self._carried(self._belief, motion)
            self._belief = belief if _sigma_m(belief) <= self.settings.max_sigma_m else None
        return self._belief

    def judge(self, answer: PoseEstimate) -> Verdict:
        """Takes the answer to the image that `predict` was called for.

        What was refused because of the prior alone may still count among the M, so that a camera
        that was carried away is found again: see `is_candidate`.
        """
        pose = _candidate(answer)
        verdict = self._verdict(pose)
        self._recent.append(pose)
        if verdict is Verdict.CONFIRMED and (
            not self._belief
            or not self._agree(pose, self._belief)
            or _sigma_m(pose) <= _sigma_m(self._belief)
        ):
            # Not averaged with the belief: the errors of a map do not average out.
            self._belief = pose
        return verdict

    def _verdict(self, pose: PosePrior | None) -> Verdict:
        if pose is None:
            return Verdict.REFUSED
        if self._belief and self._agree(pose, self._belief):
            return Verdict.CONFIRMED
        witnesses = sum(old is not None and self._agree(pose, old) for old in self._recent)
        if witnesses + 1 >= self.settings.agree:
            return Verdict.CONFIRMED
        return Verdict.REFUSED if self._belief else Verdict.WAITING

    def _agree(self, a: PosePrior, b: PosePrior) -> bool:
        distance = mahalanobis(a.world_T_camera, a.covariance_66, b.world_T_camera, b.covariance_66)
        return distance <= self.settings.max_distance

    def _carried(self, then: PosePrior, motion: Motion) -> PosePrior:
        R = np.kron(np.eye(2), then.world_T_camera[:3, :3])
        covariance = propagate_lever_arm(then.covariance_66, then.world_T_camera, motion.then_T_now)
        covariance = covariance + R @ motion.covariance_66 @ R.T
        least = np.repeat([self.settings.least_m, self.settings.least_rad], 3)
        # The floor is that of one way, however many images were taken on it.
        covariance += np.diag(np.maximum(least**2 - np.diag(covariance), 0.0))
        return PosePrior(then.world_T_camera @ motion.then_T_now, covariance)

    def _unknown_motion(self, elapsed_s: float) -> Motion:
        speed = np.repeat([self.settings.speed_m_s, self.settings.speed_rad_s], 3)
        return Motion(np.eye(4), np.diag((speed * elapsed_s) ** 2))


def is_candidate(answer: PoseEstimate) -> bool:
    """Whether an answer counts among the M.

    Of the LOST ones, those that only the prior spoke against and that landmarks speak for. A
    regressed pose is no such: a network errs alike in image after image, and would talk the tracker
    out of a belief that came from landmarks. Without landmarks, in the scene or with
    `refine=False`, the belief was a regressed pose too, and nothing else could end a wrong one.
    """
    if answer.status is not Status.LOST:
        return True
    landmarks = answer.likeness is not None
    return answer.reasons == ('contradicts_prior',) and (answer.refined or not landmarks)


def _candidate(answer: PoseEstimate) -> PosePrior | None:
    return PosePrior(answer.world_T_camera, answer.covariance_66) if is_candidate(answer) else None


def _sigma_m(pose: PosePrior) -> float:
    """Largest standard deviation of the position."""
    return float(np.sqrt(np.linalg.eigvalsh(pose.covariance_66[:3, :3])[-1]))
