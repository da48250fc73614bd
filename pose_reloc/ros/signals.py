"""How a process is told to end: signals as calls in a thread of their own. ROS-free."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable


def on_stop_signals(act: Callable[[], None]) -> None:
    """Calls `act` on every SIGINT and SIGTERM, in a thread of its own.

    No signal interrupts anything else: a second one, as `ros2 launch` sends when it is told twice,
    does no harm to a node that is closing.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    def wait():
        while reader.recv(1):
            act()

    threading.Thread(target=wait, name='signals', daemon=True).start()
