"""One inference thread fed by a slot that holds only the newest image."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class NewestSlot:
    """Holds at most one item: a newer one takes the place of one that nobody took yet."""

    def __init__(self):
        self._condition = threading.Condition()
        self._item: Any = None
        self._closed = False

    def put(self, item) -> Any:
        """Stores `item` and returns the item it displaced, or None. Never blocks on the taker."""
        with self._condition:
            displaced, self._item = self._item, item
            self._condition.notify()
            return displaced

    def take(self) -> Any:
        """Waits for an item and removes it; None once the slot is closed."""
        with self._condition:
            while self._item is None and not self._closed:
                self._condition.wait()
            if self._closed:
                return None
            item, self._item = self._item, None
            return item

    def clear(self) -> Any:
        """Empties the slot and returns what was in it, or None."""
        with self._condition:
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Makes `take` return None from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class Worker:
    """A thread that calls `process(item)` for every item of a `NewestSlot`.

    Args:
        process: called in the thread, one item at a time; must not raise.
    """

    def __init__(self, process: Callable[[Any], None]):
        self.slot = NewestSlot()
        self._process = process
        # A daemon, so that a call that never returns cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self.slot.take()) is not None:
            self._process(item)

    def stop(self, timeout: float = 10.0) -> bool:
        """Ends the thread after the item it works on; False if that takes longer than `timeout`."""
        self.slot.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()
