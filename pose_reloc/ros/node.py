"""`reloc_node`: the lifecycle node that answers camera images with poses.

The executor's thread only receives; one inference thread decodes, localizes and publishes, always
the newest image. Works with rclpy of Humble, Jazzy and Kilted.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from tf2_msgs.msg import TFMessage

from pose_reloc.errors import PoseRelocError, SettingsError
from pose_reloc.ros import parameters
from pose_reloc.ros.bond import open_bond
from pose_reloc.ros.control import Control
from pose_reloc.ros.demand import Demand
from pose_reloc.ros.diagnostics import (
    Health,
    Notices,
    Outcome,
    Statistics,
    array_message,
    is_unusable,
    status_message,
    values,
    verdict,
)
from pose_reloc.ros.messages import stamp_ns
from pose_reloc.ros.pipeline import (
    Answer,
    CameraSource,
    Frame,
    Pipeline,
    is_gpu_error,
)
from pose_reloc.ros.publication import Publication, describe
from pose_reloc.ros.subscription import CameraInfoSubscription, ImageSubscription, image_topics
from pose_reloc.ros.tf_output import TfOutput
from pose_reloc.ros.transforms import TransformSender, open_transforms, static_qos
from pose_reloc.ros.worker import Worker

NODE_NAME = 'pose_reloc'
_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_THROTTLE_S = 5.0
# After this long no transform comes any more that was sent before a jump of the clock.
_TF_ON_ITS_WAY_S = 0.5


def load_relocalizer(settings: parameters.NodeSettings):
    """The Relocalizer of `settings`; imports torch, which takes seconds."""
    import torch

    from pose_reloc.relocalizer import Relocalizer

    device = settings.device
    if device == 'auto' and torch.cuda.is_available():
        device = 'cuda'  # by name it raises where it fails, so that the node can tell
    return Relocalizer.load(
        settings.scene,
        device,
        settings.precision,
        refine=settings.refine,
        backend=settings.backend,
    )


def check_scene(settings: parameters.NodeSettings) -> None:
    """Raises SceneError or SettingsError if the scene cannot be used, without loading it."""
    from pose_reloc.scene import read_header

    if not settings.scene:
        raise SettingsError(
            "the parameter 'scene' is empty: give the file made by `pose_reloc train`, for example "
            '`ros2 launch pose_reloc reloc.launch.py scene:=/path/to/kitchen.scene`'
        )
    read_header(settings.scene)


class RelocNode(LifecycleNode):
    """See the module. Topics are described in docs/integration.md, parameters in parameters.md.

    Args:
        load, check: replace `load_relocalizer` and `check_scene`, for tests.
        kwargs: of rclpy's node: parameter_overrides, context, namespace, ...

    Raises:
        SettingsError: a parameter was given a value of the wrong type or out of range.
    """

    def __init__(self, *, load=load_relocalizer, check=check_scene, **kwargs):
        super().__init__(NODE_NAME, **kwargs)
        self._load, self._check = load, check
        self._active = False
        self._failure = ''
        self._facts: dict[str, str] = {}
        self._image_topic = ''
        self._epoch = 0
        self._jumped: float | None = None  # time.monotonic() of a jump that TF must recover from
        self._pipeline = self._worker = None
        self._transforms = self._tf_output = self._images = self._camera_info = None
        self._closers: list = []
        self._said = Notices(self.get_logger().warning, self.get_logger().info)
        self.statistics = Statistics()
        self.settings = parameters.NodeSettings()
        try:
            parameters.declare(self)
        except SettingsError:
            self.destroy_node()  # or others see it until it is garbage-collected
            raise
        self.add_on_set_parameters_callback(self._on_parameters)
        self.demand = Demand()
        self.publication = Publication(self)
        self._control = Control(
            self,
            self.demand,
            lambda: self.settings.map_frame if self._active else None,
            self.publication.arm,
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Steady time, so that diagnostics come even while a simulated clock stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._every_second, clock=self._steady)
        backward = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jump_handle = self.get_clock().create_jump_callback(
            backward, post_callback=self._on_clock_jump
        )

    def start(self) -> bool:
        """Configures and activates; False, with the reason logged, if either fails."""
        return self.trigger_configure() == _SUCCESS and self.trigger_activate() == _SUCCESS

    def close(self) -> None:
        """Stops the inference thread and destroys the node."""
        self._release()
        self.destroy_node()

    # Lifecycle

    def on_configure(self, state):
        """Reads and checks parameters and the scene's header."""
        return self._transition('configure', self._configure, state, super().on_configure)

    def on_activate(self, state):
        """Loads the scene, warms it up and subscribes."""
        return self._transition('activate', self._activate, state, super().on_activate)

    def on_deactivate(self, state):
        """Unsubscribes and frees the memory."""
        self._release()
        return super().on_deactivate(state)

    def on_cleanup(self, state):
        """Forgets the configuration."""
        self._release()
        self._failure = ''
        return super().on_cleanup(state)

    def on_shutdown(self, state):
        """Frees everything."""
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state):
        """Frees everything; the node is unconfigured then."""
        self._release()
        return _SUCCESS

    def _transition(self, name: str, action, state, then):
        """Runs a transition; a failure is logged, diagnosed, and leaves nothing behind."""
        try:
            action()
        except Exception as error:  # rclpy would swallow it without a word
            self._release()
            known = isinstance(error, PoseRelocError)
            self._failure = str(error) if known else f'{type(error).__name__}: {error}'
            self.get_logger().error(f'{name} failed: {self._failure}')
            self.publish_diagnostics()
            return _FAILURE
        self._failure = ''
        return then(state)

    def _configure(self) -> None:
        self.settings = parameters.read(self)
        self._check(self.settings)

    def _activate(self) -> None:
        self.publication.arm()
        start = time.perf_counter()
        try:
            relocalizer = self._load(self.settings)
            loaded = time.perf_counter()
            relocalizer.warm_up()
        except Exception as error:
            if not is_gpu_error(error):
                raise
            relocalizer = self._load_on_cpu(str(error))
            loaded = time.perf_counter()
        warm = time.perf_counter()
        self._facts = {
            'scene': relocalizer.scene.header.name,
            'scene file': self.settings.scene,
            'network': relocalizer.describe(),
            'tf_mode': self.settings.tf_mode,
        }
        self._open(relocalizer)
        self._active = True
        self.get_logger().info(
            f"scene '{self._facts['scene']}' loaded in {loaded - start:.1f} s, warmed up in "
            f'{warm - loaded:.1f} s; network: {self._facts["network"]}; waiting for images on '
            f"'{self._image_topic}'"
        )

    def _load_on_cpu(self, reason: str):
        """A relocalizer for the place of one whose GPU has failed."""
        self._said.set(
            'gpu',
            'the GPU is out of memory or has failed: the CPU is used instead; deactivate and '
            f'activate the node to try the GPU again. The error: {reason.strip().splitlines()[0]}',
        )
        return self._load(replace(self.settings, device='cpu', precision='auto', backend='auto'))

    def _open(self, relocalizer) -> None:
        """Opens TF, the inference thread and, last, the subscriptions to images."""
        settings, facts = self.settings, self._facts

        def on_cpu(reason):
            # In the inference thread: by the end of it the node may be inactive, or active anew.
            # So nothing but the pipeline and the facts of this activation may refer to it.
            loaded = self._load_on_cpu(reason)
            facts['network'] = loaded.describe()
            return loaded

        self._image_topic, camera_topic = image_topics(self, settings.image_transport)
        self._transforms = open_transforms(self)
        self._closers.append(self._transforms.close)
        self._open_tf_output()
        camera = CameraSource(
            settings.rectified,
            self._said,
            lambda: self.count_publishers(camera_topic) > 0,
            self._image_topic,
        )
        self._pipeline = Pipeline(
            settings, relocalizer, self._transforms, camera, self._said, self._now,
            lambda text: self.get_logger().error(text, throttle_duration_sec=_THROTTLE_S),
            on_cpu,
        )  # fmt: skip
        self.statistics.reset()
        self._worker = Worker(self._process)
        self._closers.append(self._stop_worker)
        self._camera_info = CameraInfoSubscription(self, camera_topic, camera.update)
        self._closers.append(self._camera_info.close)
        self._images = ImageSubscription(self, settings, self._image_topic, self._on_image)
        self._closers.append(self._images.close)
        if not settings.autostart:  # somebody else manages this node, perhaps Nav2
            self._closers.append(open_bond(self))

    def _open_tf_output(self) -> None:
        sender = TransformSender(self)
        self._closers.append(sender.close)
        output = TfOutput(self.settings, sender.send, self._transforms.lookup)
        self._tf_output = output
        if self.settings.tf_mode == 'map_to_odom':
            period = 1.0 / self.settings.tf_rate
            timer = self.create_timer(period, lambda: output.tick(self._now()), clock=self._steady)
            self._closers.append(lambda: self.destroy_timer(timer))
        if output.can_conflict:
            self._subscribe(TFMessage, '/tf', lambda m: output.observe_message(m, False), 100)
            self._subscribe(
                TFMessage, '/tf_static', lambda m: output.observe_message(m, True), static_qos()
            )

    def _subscribe(self, kind, topic: str, callback, qos) -> None:
        subscription = self.create_subscription(kind, topic, callback, qos)
        self._closers.append(lambda: self.destroy_subscription(subscription))

    def _stop_worker(self) -> None:
        if not self._worker.stop():
            self.get_logger().error('the inference thread did not end within 10 s')

    def _release(self) -> None:
        """Undoes `_activate`, as far as it came."""
        self._active = False
        for close in reversed(self._closers):  # image subscription, thread, TF: last opened first
            close()
        self._closers = []
        self.demand.clear('the node was deactivated')
        self._jumped = None
        self._worker = self._pipeline = None
        self._transforms = self._tf_output = self._images = self._camera_info = None
        self._said.forget()
        self._facts = {}
        gc.collect()
        torch = sys.modules.get('torch')
        if torch is not None and torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):  # the GPU is gone, and its memory with it
                torch.cuda.empty_cache()

    # Images

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _on_image(self, message) -> None:
        self.statistics.received()
        self._displaced(self._worker.slot.put(Frame(message, time.perf_counter(), self._epoch)))

    def _displaced(self, frame: Frame | None, reason: str = 'superseded') -> None:
        if frame is not None:
            sentence = f'the image was {reason} before its turn came'
            self._finish(Answer(Outcome.DROPPED, _stamp(frame), (reason,), sentence))

    def _process(self, frame: Frame) -> None:
        """Answers one image; runs in the inference thread."""
        try:
            requests, reason = self.demand.admit(frame.received, self.settings)
            if reason:
                self._finish(Answer(Outcome.SKIPPED, _stamp(frame), (reason,)))
                return
            priors = [request.prior for request in requests if request.prior is not None]
            answer = self._pipeline.process(frame, priors[-1] if priors else None)
            if frame.epoch != self._epoch:
                self._pipeline.forget()
                self._displaced(frame, 'overtaken by a clock jump')
                return
            self._publish(answer, frame)
            # A request waits on while its image was not looked at, or not yet believed.
            if answer.outcome is not Outcome.DROPPED and not answer.undecided:
                sentence = describe(answer, self.settings.map_frame)
                self.demand.served(requests, answer.outcome is Outcome.ANSWERED, sentence)
        except Exception as error:  # the context may be shut down under this thread
            if self.context.ok() and self._active:
                self.get_logger().error(f'a pose could not be published: {error}')

    def _publish(self, answer: Answer, frame: Frame) -> None:
        start = time.perf_counter()
        self.publication.publish(answer, self.settings.map_frame, frame.received)
        if answer.map_T_base is not None:
            self._tf_output.answer(
                answer.stamp,
                answer.map_T_base,
                self._now(),
                answer.carried_map_T_base,
                lambda: frame.epoch == self._epoch,
            )
        end = time.perf_counter()
        answer.timings.update({'publish': end - start, 'total': end - frame.received})
        self._finish(answer)
        self.publication.publish_picture(answer)

    def _finish(self, answer: Answer) -> None:
        """Counts an image, tells about it on ~/status, and warns where a person can help."""
        self.statistics.finished(answer.outcome, answer.reasons, answer.timings)
        if is_unusable(answer.outcome, answer.reasons):
            self.get_logger().warning(
                f'image {answer.outcome.value}: {answer.sentence}',
                throttle_duration_sec=_THROTTLE_S,
            )
        self.publication.publish_status(answer, self._facts.get('scene', ''))

    def _on_clock_jump(self, jump) -> None:
        """A looped bag, a restarted simulation or another `use_sim_time`: begins anew."""
        self._epoch += 1
        if not self._active:
            return
        self.get_logger().warning('the clock jumped back or changed: starting again from nothing')
        self._displaced(self._worker.slot.clear(), 'overtaken by a clock jump')
        self._transforms.clear()
        self._jumped = time.monotonic()
        self._tf_output.clear()
        self._pipeline.forget()
        self.statistics.reset()

    def _recover_from_jump(self) -> None:
        """Clears TF once more when what was on its way during a jump of the clock has come.

        Transforms of the future make all that is new look too old to be kept.
        """
        if self._jumped is not None and time.monotonic() - self._jumped > _TF_ON_ITS_WAY_S:
            self._jumped = None
            self._transforms.clear()

    # Parameters and diagnostics

    def _on_parameters(self, changed) -> SetParametersResult:
        ours = {p.name: p.value for p in changed if hasattr(self.settings, p.name)}
        try:
            self.settings = parameters.change(self.settings, ours, self._active)
        except SettingsError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self._active:
            self._pipeline.settings = self._tf_output.settings = self.settings
        return SetParametersResult(successful=True)

    def _every_second(self) -> None:
        if self._images is not None:
            self._images.adapt()
            self._camera_info.adapt()
        self._recover_from_jump()
        timeout = self.settings.relocalize_timeout
        sentence = f'no image could be answered within {timeout:g} s; see /diagnostics'
        if self.demand.expire(timeout, sentence):
            self.get_logger().warning(f'a request was given up: {sentence}')
        self.publish_diagnostics()

    def publish_diagnostics(self) -> None:
        """One message on /diagnostics."""
        warnings, errors = self._said.sentences(), ()
        if self._tf_output is not None:
            warnings += tuple(filter(None, [self._tf_output.problem]))
            errors = tuple(filter(None, [self._tf_output.conflict()]))
        health = Health(
            self._active, self._failure, warnings, errors, self._image_topic,
            self.settings.image_timeout, self.settings.lost_timeout, self.settings.min_rate,
            self.settings.mode == 'on_demand', self._facts,
        )  # fmt: skip
        numbers = self.statistics.snapshot()
        level, sentence = verdict(health, numbers)
        # A robot may run several, each in its namespace.
        name = f'{self.get_fully_qualified_name()[1:]}: localization'
        table = values(health, numbers)
        if self._images is not None:
            table['mode'] = self.settings.mode
            table['reliability of images'] = self._images.reliability
        status = status_message(level, name, sentence, table, self._facts.get('scene', ''))
        self._diagnostics.publish(array_message(self._now(), status))


def _stamp(frame: Frame) -> int:
    return stamp_ns(frame.message.header.stamp)
