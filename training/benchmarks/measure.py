"""Costs measured side by side on a machine that others use too.

Every case takes a turn, then every case takes another: A B C, A B C, ... What slows the machine
for a while slows all cases, so that the ratio of two costs of the same round can be trusted even
where the costs themselves cannot. Warming up is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import Enum
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm


class Role(str, Enum):
    """What a case is to the others of its group."""

    OURS = 'ours'
    ALTERNATIVE = 'alternative'  # what a user would take instead
    FLOOR = 'floor'  # what no implementation can do without
    OTHER = ''


class CaseError(Exception):
    """A case cannot be measured here; the others can."""


@dataclass(frozen=True)
class Case:
    """Something with a cost.

    Attributes:
        name: for people.
        turn: measures once; returns the cost of one item (seconds, or megabytes).
            May raise CaseError.
        role: see `Role`; a group has at most one ALTERNATIVE and one FLOOR.
        group: cases of one group do the same work and are compared.
    """

    name: str
    turn: Callable[[], float]
    role: Role = Role.OTHER
    group: str = ''


@dataclass(frozen=True)
class Measured:
    """A case and its cost in every round.

    Attributes:
        costs: one per round; empty where the case failed.
        failure: why it failed.
    """

    name: str
    role: Role
    group: str
    costs: tuple[float, ...]
    failure: str = ''

    @property
    def median(self) -> float | None:
        """Of the costs; None where the case failed."""
        return float(np.median(self.costs)) if self.costs else None

    def ratio_to(self, other: Measured) -> float | None:
        """How many times the other's cost this cost is: the median of the rounds' ratios."""
        if not self.costs or not other.costs:
            return None
        return float(np.median(np.divide(self.costs, other.costs)))


def interleave(cases: list[Case], rounds: int, title: str) -> list[Measured]:
    """Gives every case a turn in each round; shows progress under `title`."""
    costs: list[list[float]] = [[] for _ in cases]
    failures: dict[int, str] = {}
    with tqdm(total=rounds * len(cases), desc=title, disable=None, leave=False) as bar:
        for _ in range(rounds):
            for i, case in enumerate(cases):
                bar.set_postfix_str(case.name)
                if i not in failures:
                    try:
                        costs[i].append(case.turn())
                    except CaseError as error:
                        failures[i] = str(error)
                bar.update()
    return [
        Measured(
            c.name, c.role, c.group, () if i in failures else tuple(costs[i]), failures.get(i, '')
        )
        for i, c in enumerate(cases)
    ]


class Timed:
    """Turns of a call: seconds per item, over as many calls as a turn lasts.

    Args:
        call: does the work once. Called once to warm up, in the first turn.
        turn_seconds: how long a turn lasts at least.
        items: that one call deals with.
        device: waited for after each call; a torch.device or its name.
    """

    def __init__(self, call: Callable[[], object], turn_seconds: float, items=1, device='cpu'):
        self._call, self._turn_seconds, self._items = call, turn_seconds, items
        self._device, self._warm = str(device), False

    def __call__(self) -> float:
        if not self._warm:
            self._once()
            self._warm = True
        start, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < self._turn_seconds or not calls:
            self._once()
            calls += 1
        return elapsed / (calls * self._items)

    def _once(self) -> None:
        self._call()
        if self._device != 'cpu':
            import torch

            torch.cuda.synchronize(self._device)


def in_fresh_process(function: Callable[..., float], *arguments) -> float:
    """Calls a function of a module in a new process: nothing an earlier case left behind counts.

    Raises:
        CaseError: the process died, or the function raised one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise CaseError('its process was killed, probably for lack of memory') from None


def resident_megabytes() -> float:
    """Memory (10^6 bytes) of this process that is in RAM.

    Raises:
        CaseError: the system does not say.
    """
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        raise CaseError('only Linux tells how much memory is resident') from None
    return 1024e-6 * next(int(line.split()[1]) for line in lines if line.startswith('VmRSS'))
