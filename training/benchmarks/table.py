"""What a benchmark found, for people and for machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from training.benchmarks.measure import Measured, Role
from training.report import aligned

# How the cost of one item is shown.
_UNITS: dict[str, Callable[[float], float]] = {
    'us': lambda seconds: 1e6 * seconds,
    'ms': lambda seconds: 1e3 * seconds,
    'images/s': lambda seconds: 1 / seconds,
    'MB': lambda megabytes: megabytes,
}


@dataclass(frozen=True)
class Bar:
    """What a figure should reach.

    Attributes:
        text: which figure.
        value: of it; None where it could not be measured.
        limit: of it.
        at_least: whether the limit is the least or the most that is allowed.
    """

    text: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self):
        bound = 'at least' if self.at_least else 'at most'
        value = 'not measured' if self.value is None else f'{self.value:.3g}'
        return f'{self.text}: {value}, {bound} {self.limit:g}: {"met" if self.met else "MISSED"}'


@dataclass(frozen=True)
class PlainTable:
    """A table that is not about costs.

    Attributes:
        title: for people.
        rows: a header and the rows below it, as text.
        bars: see `Bar`.
        notes: what a reader must know.
    """

    title: str
    rows: list[list[str]]
    bars: tuple[Bar, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """For the terminal."""
        remarks = [*map(str, self.bars), *self.notes]
        return '\n'.join([self.title, *(f'  {line}' for line in [*aligned(self.rows), *remarks])])

    def markdown(self) -> str:
        """For a document."""
        header, *body = (f'| {" | ".join(row)} |' for row in self.rows)
        rule = '|---|' + '---:|' * (len(self.rows[0]) - 1)
        remarks = [f'- {line}' for line in [*map(str, self.bars), *self.notes]]
        return '\n'.join([f'## {self.title}', '', header, rule, *body, '', *remarks]) + '\n'

    def to_json(self) -> dict:
        """Plain JSON types."""
        return {
            'title': self.title,
            'rows': self.rows,
            'bars': [vars(bar) | {'met': bar.met} for bar in self.bars],
            'notes': self.notes,
        }


@dataclass(frozen=True)
class Table:
    """Cases that were measured together.

    Attributes:
        title: for people.
        unit: of `_UNITS`.
        cases: in the order to be shown.
        bars: see `Bar`.
        notes: what a reader must know.
    """

    title: str
    unit: str
    cases: list[Measured]
    bars: tuple[Bar, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[list[str]]:
        """A header and a row for each case."""
        header = ['case', 'role', self.unit, 'least to most', 'x alternative', 'x floor']
        rows = [header]
        for case in self.cases:
            name = f'{case.group}: {case.name}' if case.group else case.name
            if case.costs:
                shown = [_UNITS[self.unit](cost) for cost in case.costs]
                cells = [_number(median(shown)), f'{_number(min(shown))} to {_number(max(shown))}']
            else:
                cells = ['-', '-']
            faster = self._ratio(Role.ALTERNATIVE, case, inverse=True)
            cells += [_times(faster), _times(self._ratio(Role.FLOOR, case))]
            rows.append([name, case.role.value, *cells])
        return rows

    def text(self) -> str:
        """For the terminal."""
        return self._plain().text()

    def markdown(self) -> str:
        """For a document."""
        return self._plain().markdown()

    def to_json(self) -> dict:
        """Plain JSON types; costs in seconds or megabytes per item, round by round."""
        return {
            'title': self.title,
            'unit': self.unit,
            'cases': [
                {
                    'group': case.group,
                    'name': case.name,
                    'role': case.role.value,
                    'costs': case.costs,
                    'failure': case.failure,
                    'times_faster_than_alternative': self._ratio(Role.ALTERNATIVE, case, True),
                    'times_the_floor': self._ratio(Role.FLOOR, case),
                }
                for case in self.cases
            ],
            'bars': [vars(bar) | {'met': bar.met} for bar in self.bars],
            'notes': self.notes,
        }

    def _ratio(self, role: Role, case: Measured, inverse: bool = False) -> float | None:
        other = next((c for c in self.cases if c.role == role and c.group == case.group), None)
        if other is None or other is case:
            return None
        return other.ratio_to(case) if inverse else case.ratio_to(other)

    def _plain(self) -> PlainTable:
        failures = tuple(f'{c.group} {c.name} was not measured: {c.failure}'.strip()
                         for c in self.cases if c.failure)  # fmt: skip
        return PlainTable(self.title, self.rows(), self.bars, self.notes + failures)


def find(cases: list[Measured], name: str, group: str = '') -> Measured:
    """The case of this name."""
    return next(case for case in cases if (case.name, case.group) == (name, group))


def _number(value: float) -> str:
    return f'{value:.0f}' if value >= 1000 else f'{value:.3g}'


def _times(ratio: float | None) -> str:
    return '' if ratio is None else f'{ratio:.0f}' if ratio >= 100 else f'{ratio:.2f}'
