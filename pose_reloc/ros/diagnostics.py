"""What the node tells about itself: counters, latencies and the verdict OK, WARN or ERROR.

The verdict is a pure function of a `Health`, so that it can be tested without ROS.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

# Latencies and rates are taken over this many seconds.
_WINDOW_S = 10.0
_STAGES = (
    'wait', 'decode', 'localize', 'preprocess', 'infer', 'refine', 'publish', 'total',
)  # fmt: skip


class Outcome(str, Enum):
    """What became of one image. Every received image has exactly one."""

    ANSWERED = 'answered'  # ~/pose was published
    REFUSED = 'refused'  # the relocalizer says LOST, or it does not fit the track
    UNMOUNTED = 'unmounted'  # ~/camera_pose was published, but TF does not know the mounting
    SKIPPED = 'skipped'  # nobody asked for it (mode on_demand), or rate_limit
    DROPPED = 'dropped'  # superseded by a newer image, too old, or stamped impossibly
    FAILED = 'failed'  # the image could not be used


# Outcomes of images that could be used, whatever came of it.
_USED = (Outcome.ANSWERED, Outcome.REFUSED, Outcome.UNMOUNTED)
# Why images are dropped whose stamp or clock is wrong: the next one will be too, unlike one that
# came while the node was busy.
_MISSTAMPED = frozenset({'stamp is zero', 'no clock', 'too old', 'in the future'})
# So many failures and nothing else are no accident.
_MANY = 3


def is_unusable(outcome: Outcome, reasons: tuple[str, ...]) -> bool:
    """Whether the image itself was to blame, and not that nobody asked or a newer one came."""
    misstamped = outcome is Outcome.DROPPED and not _MISSTAMPED.isdisjoint(reasons)
    return misstamped or outcome is Outcome.FAILED


class Notices:
    """Standing conditions by name: said once in the log, shown in diagnostics while they last."""

    def __init__(self, warn: Callable[[str], None], info: Callable[[str], None]):
        self._warn, self._info = warn, info
        self._lock = threading.Lock()
        self._standing: dict[str, str] = {}

    def set(self, name: str, sentence: str) -> None:
        """The condition holds."""
        with self._lock:
            known = name in self._standing
            self._standing[name] = sentence
        if not known:
            self._warn(sentence)

    def clear(self, name: str, sentence: str = '') -> None:
        """The condition no longer holds; `sentence` is said if it did."""
        with self._lock:
            held = self._standing.pop(name, None)
        if held is not None and sentence:
            self._info(sentence)

    def forget(self) -> None:
        """Drops all conditions without a word."""
        with self._lock:
            self._standing = {}

    def sentences(self) -> tuple[str, ...]:
        """All that hold now."""
        with self._lock:
            return tuple(self._standing.values())


class Statistics:
    """Counts outcomes and keeps recent latencies. Safe to use from several threads."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Starts again from nothing."""
        with self._lock:
            self._start = self._clock()
            self._received = 0
            self._arrivals: deque[float] = deque(maxlen=10_000)
            self._outcomes: Counter[Outcome] = Counter()
            self._reasons: Counter[str] = Counter()
            self._latencies: deque[tuple[float, dict]] = deque(maxlen=10_000)
            self._recent: deque[tuple[float, Outcome, tuple[str, ...]]] = deque(maxlen=10_000)
            self._last: dict[Outcome, float] = {}
            self._refusing_since: float | None = None

    def received(self) -> None:
        """An image arrived."""
        with self._lock:
            self._received += 1
            self._arrivals.append(self._clock())

    def finished(self, outcome: Outcome, reasons=(), timings: dict | None = None) -> None:
        """An image has met its outcome.

        Args:
            outcome: see `Outcome`.
            reasons: short names to count; empty for an answer.
            timings: seconds by stage: 'wait', 'decode', 'localize' and its parts 'preprocess',
                'infer' and 'refine', 'publish', 'total'.
        """
        now = self._clock()
        with self._lock:
            self._outcomes[outcome] += 1
            self._reasons.update(reasons)
            self._last[outcome] = now
            self._recent.append((now, outcome, tuple(reasons)))
            if outcome in (Outcome.ANSWERED, Outcome.UNMOUNTED):
                self._refusing_since = None
                if timings:
                    self._latencies.append((now, timings))
            elif outcome is Outcome.REFUSED and self._refusing_since is None:
                self._refusing_since = now

    def snapshot(self) -> Snapshot:
        """The numbers of this moment."""
        now = self._clock()
        with self._lock:
            since = now - _WINDOW_S
            arrivals = [t for t in self._arrivals if t >= since]
            recent = [(outcome, why) for t, outcome, why in self._recent if t >= since]
            outcomes = Counter(outcome for outcome, _ in recent)
            unusable = Counter(' and '.join(why) for what, why in recent if is_unusable(what, why))
            latencies = [timings for t, timings in self._latencies if t >= since]
            last_arrival = self._arrivals[-1] if self._arrivals else None
            last_answer = self._last.get(Outcome.ANSWERED)
            window = min(_WINDOW_S, max(now - self._start, 1.0))
            return Snapshot(
                running=now - self._start,
                received=self._received,
                rate=len(arrivals) / window,
                pose_rate=outcomes[Outcome.ANSWERED] / window,
                outcomes=dict(self._outcomes),
                recent=dict(outcomes),
                unusable=dict(unusable),
                reasons=dict(self._reasons),
                latency_ms=_percentiles(latencies),
                image_age=None if last_arrival is None else now - last_arrival,
                pose_age=None if last_answer is None else now - last_answer,
                refusing_for=None if self._refusing_since is None else now - self._refusing_since,
            )


@dataclass(frozen=True)
class Snapshot:
    """Numbers of `Statistics` at one moment; seconds, except `latency_ms`.

    `recent` and `unusable` are of the last ten seconds; the latter counts by reason.
    """

    running: float
    received: int
    rate: float
    pose_rate: float
    outcomes: dict[Outcome, int]
    recent: dict[Outcome, int]
    unusable: dict[str, int]
    reasons: dict[str, int]
    latency_ms: dict[str, tuple[float, float, float]]
    image_age: float | None
    pose_age: float | None
    refusing_for: float | None


def _percentiles(latencies: list[dict]) -> dict[str, tuple[float, float, float]]:
    """Stage -> (p50, p95, max) in milliseconds."""
    found = {}
    for stage in _STAGES:
        values = [timings[stage] * 1e3 for timings in latencies if stage in timings]
        if values:
            p50, p95 = np.percentile(values, (50, 95))
            found[stage] = (float(p50), float(p95), max(values))
    return found


@dataclass(frozen=True)
class Health:
    """Everything the verdict depends on.

    Attributes:
        active: the node is in the lifecycle state active.
        failure: why the last configure or activate failed; empty if it did not.
        warnings: standing conditions a user should mend, as sentences.
        errors: standing conditions that stop part of the work, as sentences.
        image_topic: where images are expected.
        image_timeout, lost_timeout, min_rate: see `NodeSettings`.
        on_demand: images are localized only when somebody asks.
        facts: constant values to show: scene, device, ...
    """

    active: bool
    failure: str = ''
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    image_topic: str = 'image'
    image_timeout: float = 2.0
    lost_timeout: float = 10.0
    min_rate: float = 0.0
    on_demand: bool = False
    facts: dict[str, str] = field(default_factory=dict)


class Level(str, Enum):
    """Severity, named as in diagnostic_msgs/DiagnosticStatus."""

    OK = 'OK'
    WARN = 'WARN'
    ERROR = 'ERROR'


def verdict(health: Health, numbers: Snapshot) -> tuple[Level, str]:
    """The level and one sentence: the worst thing first, the rest behind it."""
    if health.failure:
        return Level.ERROR, health.failure
    if not health.active:
        return Level.OK, 'not active'
    errors, warnings = list(health.errors), list(health.warnings)
    fresh = numbers.image_age is not None and numbers.image_age <= health.image_timeout
    if numbers.image_age is None and numbers.running > health.image_timeout:
        warnings.insert(0, f"no image has come on '{health.image_topic}'")
    elif numbers.image_age is not None and not fresh:
        warnings.insert(0, f"no image on '{health.image_topic}' for {numbers.image_age:.1f} s")
    # The one image that was asked for says nothing about the next.
    if fresh and not health.on_demand:
        _judge_answers(health, numbers, errors, warnings)
    failed = numbers.recent.get(Outcome.FAILED, 0)
    used = sum(numbers.recent.get(outcome, 0) for outcome in _USED)
    unusable = sum(numbers.unusable.values())
    if unusable >= _MANY and not used:
        why = ', '.join(filter(None, numbers.unusable))
        errors.append(f'none of the last {unusable} images could be used: {why}; see the log')
    elif failed:
        warnings.append(f'{failed} images could not be used in the last {_WINDOW_S:.0f} s')
    if errors:
        return Level.ERROR, '; '.join(errors + warnings)
    if warnings:
        return Level.WARN, '; '.join(warnings)
    if health.on_demand:
        return Level.OK, 'waiting to be asked'
    return Level.OK, 'localizing' if numbers.pose_age is not None else 'waiting for images'


def _judge_answers(health: Health, numbers: Snapshot, errors: list, warnings: list) -> None:
    """Adds what is wrong with the answers to a camera that is running."""
    refusing = numbers.refusing_for
    if refusing is not None and refusing >= health.lost_timeout:
        errors.append(f'lost: every image has been refused for {refusing:.0f} s')
    elif refusing is not None:
        warnings.append('refusing: the newest images do not show a pose to trust')
    elif numbers.running > _WINDOW_S and numbers.pose_rate < health.min_rate:
        warnings.append(
            f'only {numbers.pose_rate:.1f} poses per second, fewer than min_rate '
            f'({health.min_rate:g} Hz)'
        )


def values(health: Health, numbers: Snapshot) -> dict[str, str]:
    """The key-value table of a diagnostic message."""
    table = dict(health.facts)
    table['images received'] = str(numbers.received)
    table['image rate (Hz)'] = f'{numbers.rate:.1f}'
    table['pose rate (Hz)'] = f'{numbers.pose_rate:.1f}'
    for outcome in Outcome:
        table[f'images {outcome.value}'] = str(numbers.outcomes.get(outcome, 0))
    for reason, count in sorted(numbers.reasons.items()):
        table[f'reason: {reason}'] = str(count)
    table['age of last pose (s)'] = '' if numbers.pose_age is None else f'{numbers.pose_age:.2f}'
    for stage, (p50, p95, worst) in numbers.latency_ms.items():
        table[f'{stage} p50/p95/max (ms)'] = f'{p50:.1f} / {p95:.1f} / {worst:.1f}'
    return table


def status_message(level: Level, name: str, sentence: str, table: dict[str, str], hardware=''):
    """diagnostic_msgs/DiagnosticStatus."""
    from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

    return DiagnosticStatus(
        level=getattr(DiagnosticStatus, level.value),
        name=name,
        message=sentence,
        hardware_id=hardware,
        values=[KeyValue(key=key, value=value) for key, value in table.items()],
    )


def array_message(stamp: int, status):
    """diagnostic_msgs/DiagnosticArray of one status; `stamp` in nanoseconds."""
    from diagnostic_msgs.msg import DiagnosticArray

    from pose_reloc.ros.messages import stamp_message

    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp_message(stamp)
    return message
