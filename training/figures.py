"""Matplotlib figures of a run, drawn without a display."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.stats import chi2

from pose_reloc.geometry import invert_pose
from pose_reloc.scene import SceneModel
from training.dataset_figure import floor_view
from training.evaluate import Errors, Evaluation, Frame
from training.metrics import per_frame_errors

_INK, _SOFT, _GRID, _BLUE, _ORANGE = '#1d2733', '#9aa7b4', '#e3e8ee', '#1769aa', '#d9730d'
_CURVES = (_BLUE, _ORANGE, '#2a9d8f', '#6a4c93', '#c0392b', '#1d2733')
_LABELS = ('position error, m', 'rotation error, deg')
_SMALLEST = (1e-3, 1e-2)  # metres and degrees that a logarithmic axis still shows


def trajectory_figure(frames: list[Frame], scene: SceneModel, camera_T_body=None) -> Figure:
    """The run from above: training path, true path, estimates coloured by position error.

    Args:
        frames: with truth and estimate.
        scene: its training poses are drawn in grey.
        camera_T_body: (4, 4) when the frames' poses are those of a body that carries the camera;
            the camera is drawn all the same, as it is what the training poses are.
    """
    train = scene.map_T_scene @ scene.train_world_T_camera
    truth = np.array([f.truth for f in frames])
    estimate = np.array([f.estimate for f in frames])
    position, _ = per_frame_errors(truth, estimate)
    if camera_T_body is not None:
        body_T_camera = invert_pose(camera_T_body)
        truth, estimate = truth @ body_T_camera, estimate @ body_T_camera
    view = floor_view(train)
    flat = [view.flat(poses[:, :3, 3]) for poses in (train, truth, estimate)]
    train_xy, truth_xy, estimate_xy = flat

    figure = Figure(figsize=(10, 6.2))
    axis = figure.add_subplot()
    axis.scatter(*train_xy.T, s=14, color=_GRID, edgecolors='#cfd7df', linewidths=0.5, zorder=1)
    axis.plot(*truth_xy.T, color=_INK, lw=1.8, zorder=3, label='truth')
    limit = max(float(np.quantile(position, 0.95)), 1e-3)
    joins = LineCollection(
        np.stack([truth_xy, estimate_xy], axis=1), array=position, cmap='plasma_r', lw=1.1,
        alpha=0.7, zorder=2, clim=(0, limit),
    )  # fmt: skip
    axis.add_collection(joins)
    dots = axis.scatter(
        *estimate_xy.T, c=position, cmap='plasma_r', vmin=0, vmax=limit, s=34, zorder=4,
        edgecolors='white', linewidths=0.6,
    )  # fmt: skip
    # Optical axes of a few frames: where the camera looked, in truth and in the answer.
    every = max(1, len(frames) // 25)
    reach = 0.05 * max(np.ptp(truth_xy[:, 0]), np.ptp(truth_xy[:, 1]), 0.5)
    for poses, xy, colour in ((truth, truth_xy, _INK), (estimate, estimate_xy, _BLUE)):
        look = poses[::every, :3, 2] @ view.axes
        axis.quiver(
            *xy[::every].T, *(look * reach).T, color=colour, angles='xy', scale_units='xy',
            scale=1, width=0.0022, alpha=0.8, zorder=5,
        )  # fmt: skip
    axis.set_aspect('equal', adjustable='datalim')
    axis.set_xlabel('metres')
    _style(axis)
    bar = figure.colorbar(dots, ax=axis, shrink=0.8, pad=0.02, extend='max')
    bar.set_label('position error, metres')
    bar.outline.set_visible(False)
    return figure


def error_figure(evaluation: Evaluation) -> Figure:
    """Position and rotation error over time."""
    frames = [f for f in evaluation.frames if f.truth is not None]
    start = frames[0].time_s
    time = [f.time_s - start for f in frames if f.estimate is not None]
    silent = [f.time_s - start for f in frames if f.estimate is None]
    figure = Figure(figsize=(10, 5.2), layout='constrained')
    axes = figure.subplots(2, 1, sharex=True)
    panels = zip(axes, evaluation.errors(), _LABELS, (_BLUE, _ORANGE))
    for axis, error, label, colour in panels:
        error = error[np.isfinite(error)]
        axis.plot(time, error, '.-', color=colour, lw=1.2, ms=5)
        axis.axhline(np.median(error), color=_SOFT, lw=1, ls='--')
        for at in silent:
            axis.axvline(at, color='#f2c4c4', lw=2, zorder=0)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        _style(axis)
    axes[-1].set_xlabel('seconds (red: no answer)' if silent else 'seconds')
    return figure


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
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right upper', frameon=False)
    return figure


def calibration_figure(nees_N: np.ndarray) -> Figure:
    """Share of frames inside the confidence ellipsoid of each level, over that level.

    On the diagonal the covariances are honest; below it they claim too much, above it too little.

    Args:
        nees_N: values of `metrics.nees` (N,), at least one.
    """
    # A frame lies inside all ellipsoids from its own level on.
    level = np.sort(100 * chi2.cdf(nees_N, df=6))
    share = 100 * np.arange(len(level) + 1) / len(level)
    figure = Figure(figsize=(4.8, 4.6), layout='constrained')
    axis = figure.add_subplot()
    axis.plot([0, 100], [0, 100], color=_SOFT, ls='--', lw=1.2)
    axis.step([0, *level, 100], [*share, 100], where='post', color=_BLUE, lw=2)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 102)
    axis.set_xlabel('confidence level, %')
    axis.set_ylabel('% of frames inside its ellipsoid')
    _style(axis)
    return figure


def _style(axis) -> None:
    axis.grid(color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)
