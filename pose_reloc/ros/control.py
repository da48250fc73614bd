"""What others may tell the node: ~/relocalize, ~/enable and ~/trigger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from pose_reloc.ros.demand import Demand
from pose_reloc.ros.messages import MessageError
from pose_reloc.ros.prior import prior_from_message

_NOT_ACTIVE = 'the node is not active'


class Control:
    """The services and the topic, there in every lifecycle state.

    Args:
        node: to serve on.
        demand: what becomes of requests.
        map_frame: tells the frame that poses must be in; None while the node is not active.
        asked: called with every request.
    """

    def __init__(
        self, node, demand: Demand, map_frame: Callable[[], str | None], asked: Callable[[], None]
    ):
        self._node = node
        self._demand = demand
        self._map_frame = map_frame
        self._asked = asked
        self._replies: deque = deque()
        # Futures are set by the executor: set by another thread they would not wake it up.
        self._wake = node.create_guard_condition(self._deliver)
        # A callback that waits occupies its group, and there may be several; subscriptions and
        # timers stay in the group of the node.
        node.create_service(
            Trigger, '~/relocalize', self._relocalize, callback_group=ReentrantCallbackGroup()
        )
        node.create_service(SetBool, '~/enable', self._enable)
        node.create_subscription(PoseWithCovarianceStamped, '~/trigger', self._trigger, 10)

    async def _relocalize(self, request, response):
        """Waits for the answer to the next image, without keeping the executor from its work."""
        if self._map_frame() is None:
            response.success, response.message = False, _NOT_ACTIVE
            return response
        future = Future()
        self._asked()
        self._demand.ask(reply=lambda *answer: self._reply(future, answer))
        response.success, response.message = await future
        return response

    def _reply(self, future: Future, answer: tuple[bool, str]) -> None:
        """Hands the answer to the executor; from any thread."""
        self._replies.append((future, answer))
        self._wake.trigger()

    def _deliver(self) -> None:
        while self._replies:
            future, answer = self._replies.popleft()
            future.set_result(answer)

    def _enable(self, request, response):
        """True localizes all images, False only those asked for."""
        mode = 'continuous' if request.data else 'on_demand'
        result = self._node.set_parameters([Parameter('mode', value=mode)])[0]
        response.success = result.successful
        response.message = result.reason or f'mode {mode}'
        return response

    def _trigger(self, message) -> None:
        """Asks for the next image, with a prior; what comes of it is published."""
        map_frame = self._map_frame()
        try:
            if map_frame is None:
                raise MessageError(_NOT_ACTIVE)
            prior = prior_from_message(message, map_frame)
        except MessageError as error:
            self._node.get_logger().warning(f'~/trigger was ignored: {error}')
            return
        self._asked()
        self._demand.ask(prior)
