"""`reloc_node` as a process: starts the node, ends it when told, says why it cannot start."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from pose_reloc.errors import PoseRelocError
from pose_reloc.ros.signals import on_stop_signals


def main(args=None) -> NoReturn:
    """`reloc_node`: ends its process with 0 after SIGINT or SIGTERM, with 2 if it cannot start.

    It ends at once when the node is closed. Python would spend a second of computing, many on a
    busy robot, to put torch and its like away, and `ros2 launch` kills what takes too long.
    """
    try:
        from pose_reloc.ros.node import RelocNode  # ROS and torch: not everywhere, and not at once
    except ImportError as error:
        print(
            f'reloc_node: needs ROS 2, which cannot be imported ({error}): source a ROS 2 '
            'distribution',
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        code = 130
    else:
        code = _run(RelocNode, args)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(make_node, args) -> int:
    """Runs the node until it is told to end; returns the exit code."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.signals import SignalHandlerOptions
    from rclpy.task import Future

    stop = Future()
    on_stop_signals(lambda: stop.set_result(None))
    # rclpy's own handlers would shut the context down under the threads that still use it.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = make_node()
        if node.get_parameter('autostart').value and not node.start():
            return 2
        _spin(node, stop)
    except PoseRelocError as error:
        print(f'reloc_node: {error}', file=sys.stderr)
        return 2
    except ExternalShutdownException:
        pass
    finally:
        if node is not None:
            node.close()
        rclpy.try_shutdown()
        # Only when nothing refers to them any more does DDS take leave; else others believe for
        # 20 s that the node is there.
        node = None
        gc.collect()
    return 0


def _spin(node, stop) -> None:
    """Executes callbacks until the future `stop` is done or the context is shut down."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while rclpy.ok() and not stop.done():
        try:
            executor.spin_until_future_complete(stop)
        except ExternalShutdownException:
            raise
        except Exception as error:  # Humble raises from an impossible lifecycle request
            node.get_logger().error(f'{type(error).__name__} in a callback: {error}')
    executor.remove_node(node)


if __name__ == '__main__':
    main()
