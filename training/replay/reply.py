"""`Reply`: what became of one image, in either mode; and whether the machine kept up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_reloc.ros.diagnostics import Outcome

# What the node says of an image that got no pose -> what evaluations call it.
_STATUS = {Outcome.REFUSED: 'LOST', Outcome.FAILED: 'unreadable'}
NO_ANSWER = 'no answer'
SUPERSEDED = 'superseded'  # the node's reason for an image that a newer one displaced


@dataclass(frozen=True)
class Reply:
    """What became of one image of a bag.

    Attributes:
        stamp: of the image, nanoseconds.
        time: when it was recorded, nanoseconds.
        status: REFINED or COARSE with a pose; else 'LOST', 'unreadable', 'dropped', ...
        reasons: short names of what speaks against it.
        pose: map_T_base (4, 4), or None.
        covariance_66: of the pose, see `geometry.pose_residual`.
        latency_s: from handing the image over to having the pose.
        work_s: what the node spent on the image, without waiting.
    """

    stamp: int
    time: int
    status: str = NO_ANSWER
    reasons: tuple[str, ...] = ()
    pose: np.ndarray | None = None
    covariance_66: np.ndarray | None = None
    latency_s: float | None = None
    work_s: float | None = None


def status_name(outcome: str, estimate: str) -> str:
    """The status of a frame from the node's outcome and that of its estimate."""
    if outcome == Outcome.ANSWERED:
        return estimate or outcome
    return _STATUS.get(outcome, outcome)


def pace(replies: Sequence[Reply], settings) -> str:
    """One sentence where this machine is slower than the bag; else empty."""
    work = [reply.work_s for reply in replies if reply.work_s is not None]
    periods = np.diff([reply.time for reply in replies]) / 1e9
    if not work or not len(periods) or np.median(periods) <= 0:
        return ''
    needed, period = float(np.median(work)), float(np.median(periods))
    text = f'an image takes {1e3 * needed:.0f} ms here and comes every {1e3 * period:.0f} ms'
    if not settings.live:
        return f'{text}: the node would drop some for newer ones' if needed > period else ''
    dropped = sum(SUPERSEDED in reply.reasons for reply in replies)
    if not dropped:
        return ''
    at_rate = '' if settings.rate == 1 else f' at rate 1, the replay ran at {settings.rate:g}'
    slower = 0.8 * min(settings.rate, period / float(np.percentile(work, 90)))
    return (
        f'{dropped} of {len(replies)} images were dropped for newer ones, as on a robot: '
        f'{text}{at_rate}; replay --rate {_rounded_down(slower)} lets this machine keep '
        'up, replay --offline answers every image'
    )


def _rounded_down(value: float) -> str:
    """To one significant digit."""
    step = 10.0 ** math.floor(math.log10(value))
    return f'{math.floor(value / step + 1e-9) * step:.6g}'
