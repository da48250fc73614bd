"""What a training run leaves for people: settings, metrics, curves, TensorBoard events."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

from matplotlib.figure import Figure

from pose_reloc.errors import TrainingError

_SECONDS_BETWEEN_CURVES = 10  # drawing takes 0.4 s, as long as many an epoch on a GPU


class RunFolder:
    """Files of one run, rewritten at every validation; use it in a `with` statement.

    The curves are drawn at most every 10 s, and at the end of that statement.

    Raises:
        TrainingError: the folder cannot be made or written.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self._history: list[dict] = []  # that is not drawn yet
        self._drawn = -math.inf
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / 'settings.json').write_text(json.dumps(settings, indent=1) + '\n')
            self._writer = _tensorboard_writer(path)
        except OSError as error:
            raise TrainingError(f'cannot write the run folder {path}: {error.strerror}') from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._draw()
        except OSError as failure:
            if kind is None:
                raise self._unwritable(failure) from failure

    def add(self, history: list[dict]) -> None:
        """Writes metrics.csv and metrics.json; adds the last row to TensorBoard and to the curves.

        Raises:
            TrainingError: the folder cannot be written.
        """
        row = history[-1]
        self._history = history
        names = list(row)
        try:
            with open(self.path / 'metrics.csv', 'w', newline='') as file:
                writer = csv.DictWriter(file, names, extrasaction='ignore')
                writer.writeheader()
                writer.writerows(history)
            (self.path / 'metrics.json').write_text(json.dumps(history, indent=1) + '\n')
            if time.monotonic() - self._drawn > _SECONDS_BETWEEN_CURVES:
                self._draw()
            if self._writer:
                for name in names:
                    if name != 'epoch':
                        self._writer.add_scalar(name, row[name], row['epoch'])
                self._writer.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _draw(self) -> None:
        if self._history:
            _curves(self._history).savefig(self.path / 'curves.png', dpi=110)
            self._history, self._drawn = [], time.monotonic()

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f'cannot write {self.path}: {error.strerror}')


def _tensorboard_writer(path: Path):
    """A SummaryWriter where TensorBoard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path))


def _curves(history: list[dict]) -> Figure:
    panels = [('loss', 'training loss')]
    if 'median_position_m' in history[-1]:
        panels += [
            ('median_position_m', 'held-out median, m'),
            ('median_rotation_deg', 'held-out median, deg'),
        ]
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    for index, (name, label) in enumerate(panels, start=1):
        axis = figure.add_subplot(1, len(panels), index)
        axis.plot([r['epoch'] for r in history], [r[name] for r in history], color='#1769aa')
        if min(r[name] for r in history) > 0:
            axis.set_yscale('log')
        axis.set_xlabel('epoch')
        axis.set_title(label, fontsize=10)
        axis.grid(color='#e3e8ee')
    return figure
