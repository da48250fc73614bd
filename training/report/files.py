"""What a run leaves: JSON for machines, a page, a picture, trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pose_reloc.errors import SettingsError
from pose_reloc.scene import SceneModel
from training.evaluate import Evaluation, Frame
from training.figures import cumulative_figure
from training.metrics import write_tum
from training.report.page import html_page
from training.report.run_data import methods, one_clock
from training.report.scene_facts import recipe_rows


def write_results(
    args,
    title: str,
    evaluation: Evaluation,
    scene: SceneModel,
    images: dict[str, Callable[[], np.ndarray]],
    camera_T_body: np.ndarray | None = None,
) -> None:
    """Writes what --json, --html, --picture and --tum ask for, and says so.

    Args:
        args: with `json`, `html`, `picture` and `tum`, file names or None.
        title: of the page.
        evaluation: the result.
        scene: that answered.
        images: frame name to a function that gives its uint8 RGB image.
        camera_T_body: (4, 4) when the poses are those of a body that carries the camera.

    Raises:
        SettingsError: a file cannot be written.
    """
    if args.json:
        values = {'title': title, 'scene': recipe_rows(scene)}
        if camera_T_body is not None:
            values['camera_T_body'] = camera_T_body.tolist()
        values |= evaluation.to_json()
        text = json.dumps(values, indent=1, allow_nan=False) + '\n'
        write_file(args.json, lambda path: path.write_text(text))
    if args.html:
        page = html_page(title, evaluation, scene, images, camera_T_body)
        write_file(args.html, lambda path: path.write_text(page, encoding='utf-8'))
    if args.picture:
        figure = cumulative_figure(*methods(evaluation))
        write_file(args.picture, lambda path: figure.savefig(path, dpi=150))
    if args.tum:
        _write_trajectories(args.tum, evaluation.frames)


def write_file(name: str | Path, write: Callable[[Path], object]) -> None:
    """Calls write(path), and says so.

    Raises:
        SettingsError: the file cannot be written.
    """
    path = Path(name).expanduser()
    try:
        write(path)
    except (OSError, ValueError) as error:  # matplotlib: ValueError for an unknown kind of picture
        reason = getattr(error, 'strerror', None) or error
        raise SettingsError(f'cannot write {path}: {reason}') from error
    print(f'wrote {path}')


def _write_trajectories(name: str, frames: list[Frame]) -> None:
    """Writes the estimates to NAME, and the truth, if any is known, beside it."""
    path = Path(name)
    truth_path = path.with_suffix(f'.truth{path.suffix}')
    times = one_clock([f.time_s for f in frames])
    _write_trajectory(path, times, [f.estimate for f in frames])
    if any(f.truth is not None for f in frames):
        _write_trajectory(truth_path, times, [f.truth for f in frames])
        print(f'compare them: evo_ape tum {truth_path} {path}')


def _write_trajectory(path: Path, times: list[float], poses: list[np.ndarray | None]) -> None:
    stamps = [time for time, pose in zip(times, poses) if pose is not None]
    known = [pose for pose in poses if pose is not None]
    write_file(path, partial(write_tum, timestamps=stamps, world_T_camera_N44=known))
