"""A dataset seen from above: where its cameras were, where they looked, what they saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.datasets import Dataset, Sample
from training.floor_view import FloorView, floor_view, walked
from training.inspection import Inspection

_INK, _SOFT, _GRID = '#1d2733', '#7d8b99', '#e9edf1'
_TEST = '#e0601e'
# Neighbours differ in hue and in lightness, so they also differ in grey and for the colour-blind.
_TRAIN = ('#1769aa', '#2a9d8f', '#6a4c93', '#4fa3d9', '#1b6e5a', '#a06cd5', '#34587a', '#7fb069')
_FLOOR = LinearSegmentedColormap.from_list('floor', ['#eef1f4', '#c3ccd5', '#8997a5'])
_LEGEND_WIDTH = 100  # characters, 8 of them for each coloured line
_WEDGE_TURN_DEG = 25.0  # a camera that turned by this much gets its own viewing wedge


def dataset_figure(dataset: Dataset, inspection: Inspection, title: str) -> Figure:
    """The trajectories from above, over the points that the images see.

    Args:
        dataset: with at least one image.
        inspection: of this dataset.
        title: for the picture.
    """
    samples = [*dataset.train, *dataset.test]
    view = floor_view([sample.world_T_camera for sample in samples])
    figure = Figure(figsize=(10, 7.2), constrained_layout={'w_pad': 0.15, 'h_pad': 0.15})
    axis = figure.add_subplot()
    xy = view.flat([sample.world_T_camera[:3, 3] for sample in samples])
    low, high = _limits(xy, view.flat(inspection.points_N3))
    _draw_floor(axis, view.flat(inspection.points_N3), low, high)
    reach = 0.035 * float(np.max(high - low))
    handles = _draw_train(axis, view, dataset.train, reach)
    if dataset.test:
        _draw_split(axis, view, dataset.test, _TEST, reach, zorder=5)
        handles.append(_handle(_TEST, f'test ({len(dataset.test)})'))
    axis.set_xlim(low[0], high[0])
    axis.set_ylim(low[1], high[1])
    axis.set_aspect('equal')
    _style(axis)
    axis.set_title(title, loc='left', color=_INK, fontsize=14, fontweight='bold', pad=24)
    axis.annotate(
        _subtitle(inspection), (0, 1), (0, 8), 'axes fraction', 'offset points', color=_SOFT
    )
    longest = max(len(handle.get_label()) for handle in handles)
    # Below the axis, by 4 lines: its numbers and its label. ('outside' needs matplotlib 3.7.)
    axis.legend(
        handles=handles,
        loc='upper center',
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4,
        ncol=max(1, min(len(handles), 5, _LEGEND_WIDTH // (8 + longest))),
        frameon=False,
        labelcolor=_INK,
    )
    return figure


def _subtitle(inspection: Inspection) -> str:
    parts = [f'{inspection.train.images} train and {inspection.test.images} test images']
    if len(inspection.nearest_m):
        parts.append(
            f'test images {np.median(inspection.nearest_m):.2f} m and '
            f'{np.median(inspection.nearest_deg):.0f}° from the nearest train image (medians)'
        )
    return ', '.join(parts)


def _limits(cameras_N2: np.ndarray, points_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the picture: all cameras, and most points if they are not far away."""
    low, high = cameras_N2.min(axis=0), cameras_N2.max(axis=0)
    span = max(float(np.max(high - low)), 0.1)
    if len(points_N2):
        near, far = np.quantile(points_N2, (0.02, 0.98), axis=0)
        low = np.minimum(low, np.maximum(near, low - 1.5 * span))
        high = np.maximum(high, np.minimum(far, high + 1.5 * span))
    margin = 0.08 * float(np.max(high - low)) + 0.02 * span
    return low - margin, high + margin


def _draw_floor(axis, points_N2: np.ndarray, low, high) -> None:
    """How many points lie above each spot, darker where more: walls and furniture stand out."""
    if not len(points_N2):
        return
    cell = float(np.max(high - low)) / 220
    bins = [np.arange(low[k], high[k] + cell, cell) for k in (0, 1)]
    counts, *_ = np.histogram2d(*points_N2.T, bins=bins)
    if not counts.any():
        return
    top = max(float(np.quantile(counts[counts > 0], 0.99)), 2.0)
    axis.imshow(
        np.ma.masked_equal(counts.T, 0),
        origin='lower',
        extent=(bins[0][0], bins[0][-1], bins[1][0], bins[1][-1]),
        cmap=_FLOOR,
        norm=LogNorm(1, top, clip=True),
        interpolation='nearest',
        zorder=1,
    )


def _draw_train(axis, view: FloorView, samples: Sequence[Sample], reach: float) -> list[Line2D]:
    names = list(dict.fromkeys(sample.sequence for sample in samples))
    many = len(names) > len(_TRAIN)
    handles = []
    for i, name in enumerate(names):
        colour = _TRAIN[0 if many else i]
        members = [sample for sample in samples if sample.sequence == name]
        _draw_split(axis, view, members, colour, reach, zorder=3)
        if not many:
            label = f'{name} ({len(members)})' if name else f'train ({len(members)})'
            handles.append(_handle(colour, label))
    if many:
        handles.append(_handle(_TRAIN[0], f'train ({len(samples)}, {len(names)} sequences)'))
    return handles


def _draw_split(axis, view, samples: Sequence[Sample], colour: str, reach: float, zorder) -> None:
    T = np.array([sample.world_T_camera for sample in samples])
    xy = view.flat(T[:, :3, 3])
    wedges = [_wedge(sample, view, reach) for sample in _distinct(samples, reach)]
    axis.add_collection(
        PolyCollection(wedges, facecolors=colour, alpha=0.2, edgecolors='none', zorder=zorder)
    )
    lines = [xy[i : i + 2] for i in walked(xy, [sample.sequence for sample in samples])]
    axis.add_collection(LineCollection(lines, colors=colour, lw=1.6, alpha=0.85, zorder=zorder))
    axis.scatter(*xy.T, s=9, color=colour, linewidths=0, zorder=zorder + 1)


def _distinct(samples: Sequence[Sample], distance: float) -> list[Sample]:
    """Samples that differ from all chosen before in place or direction: an uncluttered picture."""
    chosen: list[Sample] = []
    places, looks = np.zeros((0, 3)), np.zeros((0, 3))
    for sample in samples:
        place, look = sample.world_T_camera[:3, 3], sample.world_T_camera[:3, 2]
        near = np.linalg.norm(places - place, axis=1) < distance
        same = looks @ look > np.cos(np.deg2rad(_WEDGE_TURN_DEG))
        if not np.any(near & same):
            chosen.append(sample)
            places, looks = np.vstack([places, place]), np.vstack([looks, look])
    return chosen


def _wedge(sample: Sample, view: FloorView, reach: float) -> np.ndarray:
    """The triangle (3, 2) that a camera sees, from its centre to the sides of its image."""
    camera = sample.camera
    sides = camera.undistorted().unproject(
        [(0, camera.cy), (camera.width - 1, camera.cy)], [1.0, 1.0]
    )
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    corners = np.concatenate([np.zeros((1, 3)), reach * 2 * sides])
    T = sample.world_T_camera
    return view.flat(corners @ T[:3, :3].T + T[:3, 3])


def _handle(colour: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker='o', ms=4, lw=1.8, label=label)


def _style(axis) -> None:
    axis.set_xlabel('metres', color=_SOFT)
    axis.set_ylabel('metres', color=_SOFT)
    axis.grid(color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_SOFT, labelsize=9, length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
