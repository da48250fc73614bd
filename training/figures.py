"""Cumulative errors as a picture for documents, drawn without a display."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from training.evaluate import Errors

_INK, _SOFT, _GRID, _BLUE, _ORANGE = '#1d2733', '#9aa7b4', '#e3e8ee', '#1769aa', '#d9730d'
_CURVES = (_BLUE, _ORANGE, '#2a9d8f', '#6a4c93', '#c0392b', '#1d2733')
_LABELS = ('position error, m', 'rotation error, deg')
_SMALLEST = (1e-3, 1e-2)  # metres and degrees that a logarithmic axis still shows


def cumulative_figure(curves: dict[str, Errors], baselines: dict[str, Errors]) -> Figure:
    """Share of frames within an error, over that error: higher and further left is better.

    A curve ends below 100 % where frames got no answer.

    Args:
        curves: name to position errors in metres and rotation errors in degrees (N,), infinite
            where there was no answer.
        baselines: the same, drawn dashed and in grey.
    """
    grey = [(_SOFT, '--', 1.6), (_SOFT, ':', 2.0)]
    shown = [
        *zip(curves.items(), [(colour, '-', 2.0) for colour in _CURVES]),
        *zip(baselines.items(), grey),
    ]
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for which, axis in enumerate(axes):
        # The axis is logarithmic: an error of zero is drawn as a small one.
        errors = [np.sort(e[which]).clip(min=_SMALLEST[which]) for (_, e), _ in shown]
        known = np.concatenate([e[np.isfinite(e)] for e in errors])
        low, high = (known.min(), known.max()) if len(known) else (1, 10)
        for error, ((name, _), (colour, line, width)) in zip(errors, shown):
            share = 100 * np.arange(len(error) + 1) / max(len(error), 1)
            count = np.isfinite(error).sum()
            x, y = [low, *error[:count], high], [*share[: count + 1], share[count]]
            axis.step(x, y, where='post', color=colour, ls=line, lw=width, label=name)
        axis.set_xscale('log')
        axis.set_xlim(low * 0.9, high * 1.1)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0, 102)
        axis.set_xlabel(_LABELS[which])
        _style(axis)
    axes[0].set_ylabel('% of frames within')
    axes[1].legend(loc='upper left', bbox_to_anchor=(1, 1), borderaxespad=1, frameon=False)
    return figure


def _style(axis) -> None:
    axis.grid(color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)
