"""Which images are localized: all of them, some per second, or those that somebody asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.prior import BasePrior


def _nobody_listens(success: bool, sentence: str) -> None:
    """The reply to a request that waits for none."""


@dataclass(frozen=True, eq=False)
class Request:
    """Somebody wants the next image to be localized.

    Attributes:
        since: time.perf_counter() when it was made; images received earlier do not count.
        prior: where the base is believed to be, if that was said.
        reply: called once with success and a sentence for people, from any thread.
    """

    since: float
    prior: BasePrior | None = None
    reply: Callable[[bool, str], None] = _nobody_listens


class Demand:
    """Decides about every image just before it would be localized. For several threads."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._due = 0.0

    def ask(self, prior: BasePrior | None = None, reply=_nobody_listens) -> None:
        """Asks for the next image; `reply` is called when it has been answered, or cannot be."""
        with self._lock:
            self._waiting.append(Request(self._clock(), prior, reply))

    def admit(self, received: float, settings: NodeSettings) -> tuple[list[Request], str]:
        """The requests that this image serves, and why it is not localized; empty if it is.

        Args:
            received: when the image came, time.perf_counter().
            settings: the node's, for mode and rate_limit.
        """
        with self._lock:
            requests = [request for request in self._waiting if request.since <= received]
            if requests:
                return requests, ''
            if settings.mode == 'on_demand':
                return [], 'not asked for'
            if not settings.rate_limit:
                return [], ''
            now = self._clock()
            if now < self._due:
                return [], 'rate limit'
            # Counted from when the last one was due, so that the mean rate of a camera whose period
            # does not divide ours comes out right.
            period = 1.0 / settings.rate_limit
            self._due = (self._due if now < self._due + period else now) + period
            return [], ''

    def served(self, requests: list[Request], success: bool, sentence: str) -> None:
        """Replies to these requests, and forgets them."""
        with self._lock:
            waiting = [request for request in requests if request in self._waiting]
            self._waiting = [request for request in self._waiting if request not in waiting]
        for request in waiting:
            request.reply(success, sentence)

    def expire(self, timeout: float, sentence: str) -> int:
        """Gives up requests older than `timeout` seconds; returns how many."""
        with self._lock:
            oldest = self._clock() - timeout
            late = [request for request in self._waiting if request.since < oldest]
        self.served(late, False, sentence)
        return len(late)

    def clear(self, sentence: str) -> None:
        """Gives up all requests."""
        with self._lock:
            waiting = list(self._waiting)
        self.served(waiting, False, sentence)
