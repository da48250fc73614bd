"""ROS fixtures: a node in this process, and a client that talks to it over DDS."""

import math
import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.geometry import pose_matrix
from pose_reloc.ros.messages import matrix_from_pose, stamp_message, stamp_ns

WAIT_S = 20.0
LOST, CRASH = 254, 255


def wait_for(condition, timeout=WAIT_S):
    """Waits until `condition()` is true and returns its value; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'did not happen within {timeout} s')


@dataclass
class FakeEstimate:
    status: object
    world_T_camera: np.ndarray
    covariance_66: np.ndarray
    inliers: int = 0
    reasons: tuple = ()
    timings: dict = field(default_factory=dict)
    regressed_world_T_camera: np.ndarray | None = None
    regressed_covariance_66: np.ndarray | None = None
    matches: object = None
    likeness: float | None = None
    camera_fit: object = None
    refined: bool = False


class FakeRelocalizer:
    """Answers with the pose whose number is the value of the image's first pixel.

    What it says of its network alone is that pose moved by a metre along x, refused or not.
    """

    def __init__(self, poses, covariance_66, map_T_scene=None, gate=None):
        camera = Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
        header = SimpleNamespace(name='fake', camera=camera)
        map_T_scene = np.eye(4) if map_T_scene is None else map_T_scene
        self.scene = SimpleNamespace(header=header, map_T_scene=map_T_scene)
        self.poses, self.covariance_66 = poses, covariance_66
        self.gate = gate
        self.matches = self.camera_fit = self.gate_settings = None
        self.status = 'REFINED'
        self.seen, self.cameras, self.priors = [], [], []

    def describe(self):
        return 'nothing at all'

    def warm_up(self):
        return 0.0

    def localize(self, image, camera=None, prior=None):
        index = int(image[0, 0, 0])
        self.seen.append(index)
        self.cameras.append(camera)
        self.priors.append(prior)
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        if index == CRASH:
            raise RuntimeError('a fault inside the relocalizer')
        pose = self.poses[index % len(self.poses)]
        regressed = pose.copy()
        regressed[0, 3] += 1.0
        estimate = FakeEstimate(
            SimpleNamespace(value=self.status), pose, self.covariance_66, matches=self.matches,
            regressed_world_T_camera=regressed, regressed_covariance_66=self.covariance_66,
            camera_fit=self.camera_fit,
        )  # fmt: skip
        if index == LOST:
            lost = SimpleNamespace(value='LOST')
            nothing = np.full((4, 4), np.nan)
            return replace(estimate, status=lost, world_T_camera=nothing, reasons=('dark',))
        return estimate


class System:
    """A RelocNode and a client, each with its own executor thread, that talk over DDS."""

    def __init__(
        self, relocalizer, check=lambda settings: None, load=None, arguments=(), **parameters
    ):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter
        from rclpy.signals import SignalHandlerOptions
        from rclpy.task import Future

        from pose_reloc.ros.node import RelocNode

        self.context = rclpy.Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.relocalizer = relocalizer
        # On a busy machine an image may overtake the transform it needs: let the node wait.
        # Without a given reliability the node would subscribe anew when it finds the publisher.
        parameters = {'tf_timeout': 5.0, 'reliability': 'reliable', **parameters}
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = RelocNode(
            load=load or (lambda settings: relocalizer),
            check=check,
            context=self.context,
            parameter_overrides=overrides,
            cli_args=['--ros-args', *arguments],
        )
        self.client = rclpy.create_node('client', context=self.context)
        self.poses, self.camera_poses, self.transforms = [], [], []
        self.statuses, self.diagnostics = [], []
        self._stamp = 1_700_000_000_000_000_000
        self._clients = {}
        self._connect()
        self._stop = Future()
        self._threads = []
        for node in (self.node, self.client):
            executor = SingleThreadedExecutor(context=self.context)
            executor.add_node(node)
            thread = threading.Thread(
                target=executor.spin_until_future_complete, args=(self._stop,), daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _connect(self):
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image
        from tf2_msgs.msg import TFMessage

        from pose_reloc.ros.transforms import static_qos

        client = self.client
        self.image_publisher = client.create_publisher(Image, 'image', 10)
        self.compressed_publisher = client.create_publisher(CompressedImage, 'image/compressed', 10)
        self.info_publisher = client.create_publisher(CameraInfo, 'camera_info', 10)
        self.clock_publisher = client.create_publisher(Clock, '/clock', 10)
        self.tf_publisher = client.create_publisher(TFMessage, '/tf', 10)
        self.static_publisher = client.create_publisher(TFMessage, '/tf_static', static_qos())
        pose = PoseWithCovarianceStamped
        client.create_subscription(pose, '/pose_reloc/pose', self.poses.append, 50)
        client.create_subscription(pose, '/pose_reloc/camera_pose', self.camera_poses.append, 50)
        client.create_subscription(DiagnosticArray, '/pose_reloc/status', self.statuses.append, 50)
        client.create_subscription(DiagnosticArray, '/diagnostics', self.diagnostics.append, 10)
        client.create_subscription(
            TFMessage, '/tf', lambda m: self.transforms.extend(m.transforms), 100
        )

    def start(self):
        """Configures, activates, and waits until both sides have found each other."""
        assert self.node.start()
        self.wait_connected()

    def wait_connected(self):
        """Waits until the node and the client hear each other."""
        compressed = self.node.settings.image_transport == 'compressed'
        publishers = [self.compressed_publisher if compressed else self.image_publisher]
        publishers += [self.info_publisher, self.static_publisher]
        ours = self.node.publication
        publishers += [ours.pose, ours.camera_pose, ours.status]
        for publisher in publishers:
            wait_for(lambda: publisher.get_subscription_count() > 0)  # noqa: B023
        # The client listens to /tf too.
        wait_for(lambda: self.tf_publisher.get_subscription_count() > 1)

    def transition(self, name):
        """Asks for a lifecycle transition, as `ros2 lifecycle set` does; returns its success."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        number = getattr(Transition, f'TRANSITION_{name.upper()}')
        request = ChangeState.Request(transition=Transition(id=number))
        return self.call(ChangeState, 'change_state', request).success

    def state(self):
        """The label of the lifecycle state, asked over DDS."""
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, 'get_state', GetState.Request()).current_state.label

    def call_async(self, kind, name, request):
        """The future of a call of the node's service `~/name`."""
        if name not in self._clients:
            self._clients[name] = self.client.create_client(kind, f'/pose_reloc/{name}')
        assert self._clients[name].wait_for_service(WAIT_S)
        return self._clients[name].call_async(request)

    def call(self, kind, name, request):
        """Calls the node's service `~/name` and returns the response."""
        future = self.call_async(kind, name, request)
        wait_for(future.done)
        return future.result()

    def listen(self, kind, topic):
        """Subscribes the client and returns the list that fills with what comes."""
        came = []
        self.client.create_subscription(kind, topic, came.append, 10)
        return came

    def set_parameter(self, name, value):
        """Sets a parameter of the node; returns (success, reason)."""
        from rclpy.parameter import Parameter

        result = self.node.set_parameters([Parameter(name, value=value)])[0]
        return result.successful, result.reason

    def tick(self, ns):
        """Publishes a time on /clock."""
        from rosgraph_msgs.msg import Clock

        self.clock_publisher.publish(Clock(clock=stamp_message(ns)))

    def next_stamp(self):
        self._stamp += 100_000_000
        return self._stamp

    def image(self, index, stamp, frame_id='camera'):
        from sensor_msgs.msg import Image

        message = Image(height=24, width=32, encoding='rgb8', step=96)
        message.header.stamp = stamp_message(stamp)
        message.header.frame_id = frame_id
        message.data = bytes([index]) * (96 * 24)
        return message

    def send(self, index, stamp=None, frame_id='camera'):
        """Publishes an image that asks for pose `index`; returns its stamp (ns)."""
        stamp = self.next_stamp() if stamp is None else stamp
        self.image_publisher.publish(self.image(index, stamp, frame_id))
        return stamp

    def send_transform(self, parent, child, parent_T_child, stamp=0, static=False):
        from tf2_msgs.msg import TFMessage

        from pose_reloc.ros.messages import transform_message

        publisher = self.static_publisher if static else self.tf_publisher
        item = transform_message(stamp, parent, child, parent_T_child)
        publisher.publish(TFMessage(transforms=[item]))

    def outcome(self, stamp):
        """Waits for the node's report on the image of this stamp: (outcome, status message)."""

        def find():
            for array in list(self.statuses):
                if stamp_ns(array.header.stamp) == stamp:
                    return array.status[0]
            return None

        status = wait_for(find)
        return status.name.split(': ')[1], status

    def pose(self, stamp, messages=None):
        """Waits for the pose of the image of this stamp: (message, 4x4)."""
        messages = self.poses if messages is None else messages

        def find():
            return next((m for m in list(messages) if stamp_ns(m.header.stamp) == stamp), None)

        message = wait_for(find)
        return message, matrix_from_pose(message.pose.pose)

    def close(self):
        import rclpy

        self._stop.set_result(None)
        for thread in self._threads:
            thread.join(WAIT_S)
        self.node.close()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def make_system():
    """Makes `System`s and closes them at the end."""
    pytest.importorskip('rclpy', reason='needs rclpy')
    made = []

    def make(*args, **kwargs):
        made.append(System(*args, **kwargs))
        return made[-1]

    yield make
    for system in made:
        system.close()


@pytest.fixture
def wait():
    """The function `wait_for(condition, timeout)`."""
    return wait_for


def checked_pose(message):
    """Fails unless a PoseWithCovarianceStamped is finite, normalised and certain of something."""
    checked_rigid(message.pose.pose.position, message.pose.pose.orientation)
    covariance = np.array(message.pose.covariance).reshape(6, 6)
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance)[0] > 0


def checked_rigid(t, q):
    """Fails unless a position is finite and a quaternion of unit length."""
    assert np.isfinite([t.x, t.y, t.z]).all()
    assert abs(math.hypot(q.x, q.y, q.z, q.w) - 1.0) < 1e-9


@pytest.fixture
def check_pose():
    """The function `checked_pose(message)`."""
    return checked_pose


@pytest.fixture
def check_rigid():
    """The function `checked_rigid(translation, rotation)`."""
    return checked_rigid


@pytest.fixture
def random_pose():
    """random_pose(rng) -> pose (4, 4) anywhere within 3 m, of any orientation."""
    from scipy.spatial.transform import Rotation

    def make(rng):
        return pose_matrix(Rotation.random(random_state=rng).as_matrix(), rng.uniform(-3, 3, 3))

    return make


@pytest.fixture
def make_fake():
    """FakeRelocalizer(poses, covariance_66, map_T_scene, gate); see there."""
    return FakeRelocalizer
