"""Where the images come from: topic names by convention, and the reliability to ask for."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.transforms import static_qos


def image_topics(node, transport: str) -> tuple[str, str]:
    """Topics of the images and of their camera_info, fully qualified, remappings applied.

    Remapping `image` is enough: `image/compressed` and the sibling `camera_info` follow it, as
    they do with image_transport, unless they are remapped themselves. `image/camera_info` is
    another name for `camera_info`: a rule from `camera_info` to /camera_info cannot be told from
    none.
    """
    image = node.resolve_topic_name('image')
    topic = image
    if transport == 'compressed':
        topic = _explicit(node, 'image/compressed') or f'{image}/compressed'
    camera = _explicit(node, 'image/camera_info') or _explicit(node, 'camera_info')
    return topic, camera or f'{image.rsplit("/", 1)[0]}/camera_info'


def _explicit(node, name: str) -> str:
    """The topic that a remapping rule gives to `name`, or an empty string without such a rule."""
    resolved = node.resolve_topic_name(name)
    return '' if resolved == node.resolve_topic_name(name, only_expand=True) else resolved


class CameraInfoSubscription:
    """Subscribes to camera_info, also to one that was sent once and is kept (transient local).

    Args:
        node: to subscribe on.
        topic: of the camera_info.
        callback: called with every message.
    """

    def __init__(self, node, topic: str, callback: Callable):
        self._node = node
        self._topic = topic
        self._callback = callback
        self._subscriptions: list = []
        self._subscribe(QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT))
        self.adapt()

    def adapt(self) -> None:
        """Asks for what is kept once somebody offers it. Call it now and then."""
        # A second subscription: this one hears nothing from publishers that keep nothing.
        if len(self._subscriptions) == 1 and self._is_kept():
            self._subscribe(static_qos())

    def close(self) -> None:
        """Unsubscribes."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _is_kept(self) -> bool:
        offers = self._node.get_publishers_info_by_topic(self._topic)
        return any(
            info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in offers
        )

    def _subscribe(self, qos) -> None:
        subscription = self._node.create_subscription(CameraInfo, self._topic, self._callback, qos)
        self._subscriptions.append(subscription)


class ImageSubscription:
    """Subscribes to the images with a reliability that their publishers offer.

    A best-effort subscription receives from every publisher, but the middleware may drop parts of
    images larger than its buffers (640x480 raw is). A reliable one gets every image, but nothing
    at all from a best-effort publisher. So `reliability: auto` asks for what is offered.

    Args:
        node: to subscribe on.
        settings: the node's.
        topic: of the images.
        callback: called with every image message.
    """

    def __init__(self, node, settings: NodeSettings, topic: str, callback: Callable):
        self._node = node
        self._settings = settings
        self._topic = topic
        self._callback = callback
        self._reliability = self._wanted()
        self._subscription = self._subscribe()

    @property
    def reliability(self) -> str:
        """What is asked for now: 'reliable' or 'best_effort'."""
        return self._reliability.name.lower()

    def adapt(self) -> None:
        """Subscribes anew if other publishers have come since. Call it now and then."""
        wanted = self._wanted()
        if wanted == self._reliability:
            return
        self._node.destroy_subscription(self._subscription)
        self._reliability = wanted
        self._subscription = self._subscribe()

    def close(self) -> None:
        """Unsubscribes."""
        self._node.destroy_subscription(self._subscription)

    def _wanted(self) -> ReliabilityPolicy:
        if self._settings.reliability != 'auto':
            return ReliabilityPolicy[self._settings.reliability.upper()]
        offers = {
            info.qos_profile.reliability
            for info in self._node.get_publishers_info_by_topic(self._topic)
        }
        reliable = offers == {ReliabilityPolicy.RELIABLE}
        return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT

    def _subscribe(self):
        kind = CompressedImage if self._settings.image_transport == 'compressed' else Image
        qos = QoSProfile(depth=self._settings.queue_depth, reliability=self._reliability)
        return self._node.create_subscription(kind, self._topic, self._callback, qos)
