"""`reloc_node`: the lifecycle node that answers camera images with poses.

The executor's thread only receives; one inference thread decodes, localizes and publishes, always
the newest image. Works with rclpy of Humble, Jazzy and Kilted.
"""

from __future__ import annotations

import gc
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from pose_reloc.errors import PoseRelocError, SettingsError
from pose_reloc.ros import parameters
from pose_reloc.ros.diagnostics import (
    Health,
    Level,
    Outcome,
    Statistics,
    array_message,
    status_message,
    values,
    verdict,
)
from pose_reloc.ros.messages import pose_message, stamp_ns
from pose_reloc.ros.pipeline import Answer, CameraSource, Frame, Notices, Pipeline
from pose_reloc.ros.tf_output import TfOutput
from pose_reloc.ros.transforms import TransformSender, open_transforms, static_qos
from pose_reloc.ros.worker import Worker

NODE_NAME = 'pose_reloc'
_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_THROTTLE_S = 5.0


def load_relocalizer(settings: parameters.NodeSettings):
    """The Relocalizer of `settings`; imports torch, which takes seconds."""
    from pose_reloc.relocalizer import Relocalizer

    return Relocalizer.load(settings.scene, settings.device, settings.precision)


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
    """See the module. Topics and parameters are described in docs/parameters.md.

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
        self._worker: Worker | None = None
        self._pipeline: Pipeline | None = None
        self._relocalizer = None
        self._tf_output: TfOutput | None = None
        self._closers: list = []
        self.statistics = Statistics()
        self.settings = parameters.NodeSettings()
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._notices = Notices(self.get_logger().warning, self.get_logger().info)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._pose = self.create_lifecycle_publisher(PoseWithCovarianceStamped, '~/pose', 10)
        self._camera_pose = self.create_lifecycle_publisher(
            PoseWithCovarianceStamped, '~/camera_pose', 10
        )
        self._status = self.create_lifecycle_publisher(DiagnosticArray, '~/status', 50)
        # Steady time, so that diagnostics come even while a simulated clock stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self.publish_diagnostics, clock=self._steady)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
        )
        self._jump_handle = self.get_clock().create_jump_callback(
            threshold, post_callback=self._on_clock_jump
        )

    # Lifecycle ------------------------------------------------------------------------------

    def start(self) -> bool:
        """Configures and activates; False, with the reason logged, if either fails."""
        return self.trigger_configure() == _SUCCESS and self.trigger_activate() == _SUCCESS

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
        """Frees everything and goes back to unconfigured."""
        self._release()
        return _SUCCESS

    def _transition(self, name: str, action, state, then):
        """Runs a transition; a failure leaves nothing behind and is logged and diagnosed."""
        try:
            action()
        except Exception as error:  # an exception would leave rclpy's state machine silent
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
        start = time.perf_counter()
        self._relocalizer = relocalizer = self._load(self.settings)
        loaded = time.perf_counter()
        relocalizer.warm_up()
        done = time.perf_counter()
        name = relocalizer.scene.header.name
        self._facts = {
            'scene': name,
            'scene file': self.settings.scene,
            'device': str(relocalizer.device),
            'precision': str(relocalizer.dtype).removeprefix('torch.'),
            'tf_mode': self.settings.tf_mode,
        }
        self.statistics.reset()
        self._open()
        self._active = True
        self.get_logger().info(
            f"scene '{name}' loaded in {loaded - start:.1f} s, warmed up in {done - loaded:.1f} s "
            f"on {relocalizer.device}; waiting for images on '{self._image_topic}'"
        )

    def _open(self) -> None:
        """Opens TF, the inference thread and, last, the subscriptions."""
        transforms = open_transforms(self)
        self._closers.append(transforms.close)
        camera_topic = self._open_images_later()
        camera = CameraSource(
            self.settings.rectified, self._notices, lambda: self.count_publishers(camera_topic) > 0
        )
        self._pipeline = Pipeline(
            self.settings,
            self._relocalizer,
            transforms,
            camera,
            self._notices,
            lambda: self.get_clock().now().nanoseconds,
            lambda text: self.get_logger().error(text, throttle_duration_sec=_THROTTLE_S),
        )
        self._transforms = transforms
        self._open_tf_output(transforms)
        self._worker = Worker(self._process)
        kind = CompressedImage if self.settings.image_transport == 'compressed' else Image
        self._subscribe(CameraInfo, camera_topic, camera.update, 5, ReliabilityPolicy.BEST_EFFORT)
        reliability = {
            'best_effort': ReliabilityPolicy.BEST_EFFORT,
            'reliable': ReliabilityPolicy.RELIABLE,
        }[self.settings.reliability]
        depth = self.settings.queue_depth
        self._subscribe(kind, self._image_topic, self._on_image, depth, reliability)
