"""Heartbeats for Nav2's lifecycle manager, which takes a node without them for dead.

The protocol is that of the package bond, which comes with Nav2: both sides publish bond/Status on
one topic, with the name of the node as the id of the bond. Without the package there is no bond:
set `bond_timeout: 0.0` in the lifecycle manager then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from rclpy.clock import Clock, ClockType

# What Nav2's own nodes use.
_TOPIC = 'bond'
_PERIOD_S = 0.1
_TIMEOUT_S = 4.0


def open_bond(node) -> Callable[[], None]:
    """Starts the heartbeats of `node`; returns what ends them. Without the package, nothing."""
    try:
        from bond.msg import Status
    except ImportError:
        node.get_logger().info(
            "the package 'bond' is not installed: a lifecycle manager needs bond_timeout: 0.0"
        )
        return lambda: None
    instance = str(uuid.uuid4())
    publisher = node.create_publisher(Status, _TOPIC, 1)

    def say(active: bool) -> None:
        status = Status(id=node.get_name(), instance_id=instance, active=active)
        status.heartbeat_period, status.heartbeat_timeout = _PERIOD_S, _TIMEOUT_S
        status.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(status)

    steady = Clock(clock_type=ClockType.STEADY_TIME)
    timer = node.create_timer(_PERIOD_S, lambda: say(True), clock=steady)

    def close() -> None:
        node.destroy_timer(timer)
        say(False)
        node.destroy_publisher(publisher)

    return close
