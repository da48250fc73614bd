"""Matplotlib figures of a run, drawn without a display."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pose_reloc.geometry import invert_pose
from pose_reloc.scene import SceneModel
from training.dataset_figure import floor_view
from training.evaluate import Evaluation, Frame
from training.metrics import per_frame_errors

_INK, _SOFT, _GRID, _BLUE, _ORANGE = '#1d2733', '#9aa7b4', '#e3e8ee', '#1769aa', '#d9730d'


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
    """Position and rotation error over time, and the cumulative share of frames."""
    frames = [f for f in evaluation.frames if f.truth is not None]
    answered = [f for f in frames if f.estimate is not None]
    position, rotation = per_frame_errors(
        np.array([f.truth for f in answered]), np.array([f.estimate for f in answered])
    )
    start = frames[0].time_s
    time = np.array([f.time_s for f in answered]) - start
    figure = Figure(figsize=(10, 5.6), layout='constrained')
    grid = figure.add_gridspec(2, 2, width_ratios=(2, 1))
    panels = ((position, 'position error, m', _BLUE), (rotation, 'rotation error, deg', _ORANGE))
    for row, (error, label, colour) in enumerate(panels):
        over_time = figure.add_subplot(grid[row, 0])
        over_time.plot(time, error, '.-', color=colour, lw=1.2, ms=5)
        over_time.axhline(np.median(error), color=_SOFT, lw=1, ls='--')
        silent = [f.time_s - start for f in frames if f.estimate is None]
        for at in silent:
            over_time.axvline(at, color='#f2c4c4', lw=2, zorder=0)
        over_time.set_ylabel(label)
        over_time.set_ylim(bottom=0)
        cumulative = figure.add_subplot(grid[row, 1])
        share = np.arange(1, len(error) + 1) / len(frames)
        cumulative.step(np.sort(error), 100 * share, where='post', color=colour)
        cumulative.set_ylim(0, 102)
        cumulative.set_xlim(left=0)
        cumulative.set_ylabel('% of frames within')
        cumulative.set_xlabel(label)
        for axis in (over_time, cumulative):
            _style(axis)
    over_time.set_xlabel('seconds (red: no answer)' if silent else 'seconds')
    return figure


def _style(axis) -> None:
    axis.grid(color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)
