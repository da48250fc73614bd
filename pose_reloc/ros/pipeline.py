"""One image message in, one `Answer` out: everything between subscription and publication.

ROS-free: it works on messages by their fields, on a source of transforms, and on a clock given to
it. The node publishes what comes out.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.camera_check import CameraCheck
from pose_reloc.errors import CameraError, DeviceError, PoseRelocError
from pose_reloc.gates import mahalanobis
from pose_reloc.geometry import invert_pose
from pose_reloc.ros.diagnostics import Notices, Outcome
from pose_reloc.ros.messages import (
    MessageError,
    camera_for_image,
    camera_from_info,
    image_from_message,
    is_rectified,
    stamp_ns,
)
from pose_reloc.ros.parameters import NodeSettings, transform_from_text
from pose_reloc.ros.prior import BasePrior, OdometryPrior
from pose_reloc.ros.track import Track
from pose_reloc.ros.transforms import TransformError, lookup_near
from pose_reloc.uncertainty import propagate_lever_arm, rotate_covariance

# Clocks of two machines differ a little; an image stamped later than this has a broken clock.
FUTURE_TOLERANCE_S = 0.5
# The first images may overtake the camera_info that belongs to them.
_CAMERA_INFO_WAIT_S = 0.3
_PATIENT_LOOKUPS = 5
# What PyTorch, ONNX Runtime and their libraries say where a GPU is out of memory or gone.
_GPU_ERRORS = ('cuda', 'cudnn', 'cublas', 'unable to find an engine', 'failed to allocate memory')


@dataclass(frozen=True)
class Frame:
    """An image message, when it was received, and how often the clock had jumped back then.

    Attributes:
        message: sensor_msgs/Image or CompressedImage.
        received: time.perf_counter(), seconds.
        epoch: number of backward jumps of the clock so far.
    """

    message: object
    received: float
    epoch: int = 0


@dataclass(frozen=True)
class View:
    """What was localized: for a picture of it.

    Attributes:
        image_HW3: uint8 RGB.
        camera: the `Camera` of this image.
        frame: of the image message.
        estimate: the `PoseEstimate`.
    """

    image_HW3: np.ndarray
    camera: Camera
    frame: str
    estimate: object


@dataclass(frozen=True)
class Answer:
    """What became of one image.

    Attributes:
        outcome: see `Outcome`.
        stamp: of the image, nanoseconds.
        reasons: short names for counters; empty for an answer.
        sentence: what to tell a person; empty for an answer.
        status: of the estimate: REFINED, COARSE or LOST; empty without an estimate.
        map_T_camera, camera_covariance_66: for ANSWERED and UNMOUNTED, else None.
        map_T_base, base_covariance_66: for ANSWERED, else None.
        carried_map_T_base: where odometry has carried the last refined answer, if that agrees with
            this one and is less uncertain; else None.
        raw_map_T_base, raw_covariance_66: what the network alone says, refused or not; None without
            an estimate or without a known mounting.
        view: for every outcome with an estimate, else None.
        timings: seconds by stage.
        undecided: the next images may confirm what is refused now.
        mounted: the mounting of the camera is known, and not assumed for want of any TF.
    """

    outcome: Outcome
    stamp: int
    reasons: tuple[str, ...] = ()
    sentence: str = ''
    status: str = ''
    map_T_camera: np.ndarray | None = None
    camera_covariance_66: np.ndarray | None = None
    map_T_base: np.ndarray | None = None
    base_covariance_66: np.ndarray | None = None
    carried_map_T_base: np.ndarray | None = None
    raw_map_T_base: np.ndarray | None = None
    raw_covariance_66: np.ndarray | None = None
    view: View | None = None
    timings: dict[str, float] = field(default_factory=dict)
    undecided: bool = False
    mounted: bool = False


class CameraSource:
    """The newest camera_info, or None while none came. Written by one thread, read by another."""

    def __init__(
        self,
        rectified: bool,
        notices: Notices,
        expected: Callable[[], bool],
        image_topic: str = '',
    ):
        """`expected()` tells whether somebody publishes camera_info at all.

        The name of `image_topic` says whether `rectified` can be meant.
        """
        self._rectified = rectified
        self._image_topic = image_topic
        self._notices = notices
        self._expected = expected
        self._raw = None
        self._camera: Camera | None = None
        self._arrived = threading.Event()
        self._waits = 3

    def update(self, message) -> None:
        """Takes a CameraInfo message; parses it only when it differs from the one before."""
        raw = (
            message.width, message.height, tuple(message.k), tuple(message.d), tuple(message.p),
            message.distortion_model, message.binning_x, message.binning_y, message.roi,
        )  # fmt: skip
        if raw == self._raw:
            return
        self._raw = raw
        try:
            self._camera = camera_from_info(message, self._rectified)
            self._notices.clear('bad camera_info', 'camera_info can be used now')
            self._compare_with_name(message)
        except CameraError as error:
            self._camera = None
            self._notices.set('bad camera_info', f'camera_info is not used: {error}')
        self._notices.clear('no camera_info', 'camera_info has come and is used from now on')
        self._arrived.set()

    def _compare_with_name(self, message) -> None:
        """Doubts `rectified: false` where the name of the topic does and it makes a difference."""
        if self._rectified or not is_rectified(self._image_topic):
            return
        differs = False
        with contextlib.suppress(CameraError):  # without a usable p there is no choice
            differs = camera_from_info(message, True) != self._camera
        if differs:
            self._notices.set(
                'rectified',
                f"the images of '{self._image_topic}' are rectified by their name, but the "
                'parameter rectified is false, so that k and d of camera_info are used: set it to '
                'true (rectified:=true) to use p',
            )
        else:
            self._notices.clear('rectified')

    def camera(self) -> Camera | None:
        """Waits a moment for the first message if somebody publishes it."""
        if not self._arrived.is_set() and self._waits > 0 and self._expected():
            self._waits -= 1
            self._arrived.wait(_CAMERA_INFO_WAIT_S)
        if not self._arrived.is_set():
            self._notices.set(
                'no camera_info',
                'no camera_info has come: the camera of the training images is assumed',
            )
        return self._camera


class Mounting:
    """camera_T_base from TF, or the camera itself as the base where there is no TF at all."""

    def __init__(self, settings: NodeSettings, transforms, notices: Notices):
        self._settings = settings
        self._transforms = transforms
        self._notices = notices
        self._failures = 0
        self._first_image: float | None = None
        self._camera_is_base = False

    @property
    def assumed(self) -> bool:
        """Whether the camera is taken as the base because there is no TF at all."""
        return self._camera_is_base

    def camera_T_base(self, camera_frame: str, stamp: int, timeout: float) -> np.ndarray:
        """Pose (4, 4) of the base in the camera at `stamp`.

        Raises:
            TransformError: not known; the sentence says what is missing.
        """
        base = self._settings.base_frame
        if not base:
            return np.eye(4)
        if self._first_image is None:
            self._first_image = time.monotonic()
        if not camera_frame:
            raise self._missing(
                'the images have no frame_id, so the mounting of the camera cannot be looked up; '
                'set the parameter camera_frame'
            )
        try:
            # Waiting for what has never been there would cost every image the whole timeout.
            patient = self._failures < _PATIENT_LOOKUPS
            found = self._transforms.lookup(camera_frame, base, stamp, timeout if patient else 0.0)
        except TransformError as error:
            # A transform that is merely late exists: waiting for it stays worth while.
            self._failures += 0 if error.late else 1
            if self._without_tf():
                return np.eye(4)
            raise self._missing(
                f"the mounting of the camera is unknown: no transform '{base}' -> "
                f"'{camera_frame}' ({error}); publish it (robot_state_publisher or "
                'static_transform_publisher), or set base_frame to an empty string to get the '
                'pose of the camera'
            ) from error
        self._failures, self._camera_is_base = 0, False
        self._notices.clear('mounting', f"the mounting '{base}' -> '{camera_frame}' is known now")
        return found

    def known(self, camera_frame: str, stamp: int) -> np.ndarray | None:
        """The same, or the newest before it, without waiting or a word; None while unknown."""
        if not self._settings.base_frame or self._camera_is_base:
            return np.eye(4)
        try:
            base = self._settings.base_frame
            return lookup_near(self._transforms.lookup, camera_frame, base, stamp)
        except TransformError:
            return None

    def _missing(self, sentence: str) -> TransformError:
        self._notices.set('mounting', f'~/pose is not published: {sentence}')
        return TransformError(sentence)

    def _without_tf(self) -> bool:
        timeout = self._settings.mounting_timeout
        waited = time.monotonic() - self._first_image
        if not self._camera_is_base and timeout and waited > timeout:
            self._camera_is_base = self._transforms.is_empty()
            if self._camera_is_base:
                self._notices.clear('mounting')
                self._notices.set(
                    'mounting',
                    f'nothing is published on TF: the camera itself is taken as '
                    f"'{self._settings.base_frame}', ~/pose is the pose of its optical frame, and "
                    'initial_pose waits for its mounting',
                )
        return self._camera_is_base


class Pipeline:
    """Turns frames into answers. `process` is for one thread; the rest may be called from any.

    Args:
        settings: the node's; `settings` may be replaced by one that differs in dynamic ones.
        relocalizer: a `pose_reloc.Relocalizer`.
        transforms: what `open_transforms` returns.
        camera: where the camera comes from.
        notices: where standing conditions go.
        now: the node's clock, nanoseconds.
        error: logs an unexpected error.
        on_cpu: loads the relocalizer on the CPU, for when a GPU fails; told what the error says.
    """

    def __init__(
        self,
        settings: NodeSettings,
        relocalizer,
        transforms,
        camera: CameraSource,
        notices: Notices,
        now: Callable[[], int],
        error: Callable[[str], None],
        on_cpu: Callable[[str], object] | None = None,
    ):
        self.settings = settings
        self.camera = camera
        self._relocalizer = relocalizer
        self._notices = notices
        self._mounting = Mounting(settings, transforms, notices)
        self._map_T_scene = relocalizer.scene.map_T_scene
        if settings.map_T_scene:
            self._map_T_scene = transform_from_text(settings.map_T_scene)
        self._odometry = OdometryPrior(settings, transforms.lookup)
        self._track = Track(settings, transforms.lookup) if settings.track else None
        self._camera_check = CameraCheck()
        self._now = now
        self._error = error
        self._on_cpu = on_cpu

    def forget(self) -> None:
        """Forgets the answers so far, as after a jump of the clock."""
        self._odometry.clear()
        if self._track:
            self._track.forget()

    def process(self, frame: Frame, prior: BasePrior | None = None) -> Answer:
        """Answers one image; looks first where `prior` says, or else odometry. Never raises."""
        timings = {'wait': time.perf_counter() - frame.received}
        stamp = 0
        try:
            stamp = stamp_ns(frame.message.header.stamp)
            dropped = self._drop(stamp, timings)
            return dropped or self._localize(frame.message, stamp, prior, timings)
        except MessageError as error:
            return Answer(Outcome.FAILED, stamp, ('bad image',), str(error), timings=timings)
        except CameraError as error:
            return Answer(Outcome.FAILED, stamp, ('wrong camera',), str(error), timings=timings)
        except PoseRelocError as error:
            return Answer(Outcome.FAILED, stamp, ('error',), str(error), timings=timings)
        except Exception as error:  # the node must outlive every image
            self._error(f'an image could not be processed: {traceback.format_exc()}')
            sentence = f'{type(error).__name__}: {error}'
            return Answer(Outcome.FAILED, stamp, ('internal error',), sentence, timings=timings)

    def _drop(self, stamp: int, timings: dict) -> Answer | None:
        """The refusal of an image whose stamp rules it out, or None."""
        if stamp == 0:
            sentence = 'the image has the stamp 0: its driver must stamp images when they are taken'
            return Answer(Outcome.DROPPED, stamp, ('stamp is zero',), sentence, timings=timings)
        limit = self.settings.max_image_age
        if not limit:
            return None
        now = self._now()
        if now == 0:
            sentence = 'use_sim_time is true but no time has come on /clock'
            return Answer(Outcome.DROPPED, stamp, ('no clock',), sentence, timings=timings)
        age = (now - stamp) / 1e9
        if age > limit:
            sentence = (
                f'the image is {age:.2f} s old, more than max_image_age ({limit:g} s): the node is '
                'too slow for it, or the clocks of camera and node differ'
            )
            return Answer(Outcome.DROPPED, stamp, ('too old',), sentence, timings=timings)
        if -age > FUTURE_TOLERANCE_S:
            sentence = f'the image is stamped {-age:.2f} s in the future: the clocks differ'
            return Answer(Outcome.DROPPED, stamp, ('in the future',), sentence, timings=timings)
        return None

    def _localize(self, message, stamp: int, prior: BasePrior | None, timings: dict) -> Answer:
        start = time.perf_counter()
        image = image_from_message(message)
        decoded = time.perf_counter()
        timings['decode'] = decoded - start
        camera = self.camera.camera() or self._relocalizer.scene.header.camera
        camera = camera_for_image(camera, image)
        camera_frame = self.settings.camera_frame or message.header.frame_id
        prior = self._prior(prior, camera_frame, stamp)
        located = time.perf_counter()
        estimate = self._estimate(image, camera, prior)
        self._check(camera, estimate)
        timings['localize'] = time.perf_counter() - located
        # Its parts by their own names; its total is what was measured here.
        timings |= {stage: s for stage, s in estimate.timings.items() if stage != 'total'}
        view = View(image, camera, message.header.frame_id, estimate)
        answer = Answer(
            Outcome.REFUSED, stamp, estimate.reasons, status=estimate.status.value, view=view,
            timings=timings, **self._raw(estimate, camera_frame, stamp),
        )  # fmt: skip
        lost = answer.status == 'LOST'
        if not lost and not _finite(estimate):
            return replace(
                answer, outcome=Outcome.FAILED, reasons=('not finite',),
                sentence='the estimate is not finite',
            )  # fmt: skip
        doubt = self._track.judge(estimate) if self._track else ''
        if lost:
            self._odometry.refused()
            sentence = f'no pose to trust: {", ".join(estimate.reasons)}'
            # The tracker counts such an answer among those that may overrule its belief.
            undecided = bool(doubt) and self._track.counts(estimate)
            return replace(answer, sentence=sentence, undecided=undecided)
        if doubt:
            sentence = f'{doubt}: answers to more images must agree'
            return replace(answer, reasons=(doubt,), sentence=sentence, undecided=True)
        return self._mounted(answer, camera_frame)

    def _estimate(self, image, camera: Camera, prior):
        """What the relocalizer says; on the CPU from now on if its GPU has just failed."""
        try:
            return self._gated().localize(image, camera, prior)
        except Exception as error:
            if not (is_gpu_error(error) and self._on_cpu):
                raise
            reason = str(error)
        self._relocalizer = self._on_cpu(reason)
        self._on_cpu = None
        return self._gated().localize(image, camera, prior)

    def _gated(self):
        """The relocalizer, with the gates as they are set now."""
        gates = self.settings.gates
        if self._relocalizer.gate_settings != gates:
            self._relocalizer.gate_settings = gates
        return self._relocalizer

    def _check(self, camera: Camera, estimate) -> None:
        """Says when many answers agree that the camera cannot be what camera_info says."""
        if estimate.camera_fit is None:
            return
        complaint = self._camera_check.add(camera, estimate.camera_fit)
        if complaint:
            self._notices.set('camera fit', complaint)
        else:
            self._notices.clear('camera fit', 'the calibration of the camera fits the map now')

    def _mounted(self, answer: Answer, camera_frame: str) -> Answer:
        """`answer` with the pose of the camera and, where its mounting is known, of the base."""
        estimate, map_T_scene = answer.view.estimate, self._map_T_scene
        map_T_camera = map_T_scene @ estimate.world_T_camera
        covariance = rotate_covariance(estimate.covariance_66, map_T_scene[:3, :3])
        answer = replace(answer, map_T_camera=map_T_camera, camera_covariance_66=covariance)
        try:
            camera_T_base = self._mounting.camera_T_base(
                camera_frame, answer.stamp, self.settings.tf_timeout
            )
        except TransformError as error:
            return replace(
                answer, outcome=Outcome.UNMOUNTED, reasons=('no mounting',), sentence=str(error)
            )
        map_T_base = map_T_camera @ camera_T_base
        base_covariance = propagate_lever_arm(covariance, map_T_camera, camera_T_base)
        carried = None
        # A coarse answer is too uncertain, and too uncertain of that, to judge the next by it.
        if answer.status == 'REFINED':
            self._odometry.accepted(answer.stamp, map_T_base, base_covariance)
        else:
            carried = self._carried(answer.stamp, map_T_base, base_covariance)
        return replace(
            answer, outcome=Outcome.ANSWERED, map_T_base=map_T_base,
            base_covariance_66=base_covariance, carried_map_T_base=carried,
            mounted=not self._mounting.assumed,
        )  # fmt: skip

    def _carried(self, stamp: int, map_T_base, covariance_66) -> np.ndarray | None:
        """`Answer.carried_map_T_base` for a coarse answer. Forgets it if they contradict."""
        carried = self._odometry.at(stamp) if self.settings.odometry_prior else None
        if carried is None:
            return None
        apart = mahalanobis(carried.map_T_base, carried.covariance_66, map_T_base, covariance_66)
        if apart > self.settings.max_prior_distance:
            # The track, or a person who pointed at the map, has overruled odometry.
            self._odometry.clear()
            return None
        less = carried.covariance_66[:3, :3].trace() < covariance_66[:3, :3].trace()
        return carried.map_T_base if less else None

    def _raw(self, estimate, camera_frame: str, stamp: int) -> dict[str, np.ndarray]:
        """The regressed pose as fields of an `Answer`; empty where there is none."""
        camera_T_base = self._mounting.known(camera_frame, stamp)
        if estimate.regressed_world_T_camera is None or camera_T_base is None:
            return {}
        map_T_camera = self._map_T_scene @ estimate.regressed_world_T_camera
        covariance = rotate_covariance(estimate.regressed_covariance_66, self._map_T_scene[:3, :3])
        return {
            'raw_map_T_base': map_T_camera @ camera_T_base,
            'raw_covariance_66': propagate_lever_arm(covariance, map_T_camera, camera_T_base),
        }

    def _prior(self, hint: BasePrior | None, camera_frame: str, stamp: int):
        """Where to look first, as a `PosePrior` of the camera in the scene, or None."""
        camera_T_base = self._mounting.known(camera_frame, stamp)
        if self._track:
            use_odometry = self.settings.odometry_prior
            tracked = self._track.predict(stamp, camera_T_base if use_odometry else None)
            if hint is None:
                return tracked
        elif hint is None and self.settings.odometry_prior:
            hint = self._odometry.at(stamp)
        if hint is None or camera_T_base is None:
            return None
        from pose_reloc.relocalizer import PosePrior  # torch: loaded with the scene by now

        scene_T_map = invert_pose(self._map_T_scene)
        base_T_camera = invert_pose(camera_T_base)
        covariance = propagate_lever_arm(hint.covariance_66, hint.map_T_base, base_T_camera)
        return PosePrior(
            scene_T_map @ hint.map_T_base @ base_T_camera,
            rotate_covariance(covariance, scene_T_map[:3, :3]),
        )


def is_gpu_error(error: Exception) -> bool:
    """Whether a GPU is out of memory or gone; every engine has its own exceptions for both."""
    if isinstance(error, PoseRelocError):
        return isinstance(error, DeviceError)
    said = str(error).lower()
    return any(words in said for words in _GPU_ERRORS)


def _finite(estimate) -> bool:
    pose, covariance = estimate.world_T_camera, estimate.covariance_66
    return bool(np.isfinite(pose).all() and np.isfinite(covariance).all())
