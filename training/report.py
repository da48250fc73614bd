"""Tables for the terminal, JSON for machines, and one self-contained HTML page to look at."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pose_reloc.errors import SettingsError
from pose_reloc.geometry import pose_residual
from pose_reloc.scene import SceneModel
from training.evaluate import Evaluation, Frame
from training.figures import (
    calibration_figure,
    cumulative_figure,
    error_figure,
    trajectory_figure,
)
from training.metrics import RECALL_THRESHOLDS, nees, per_frame_errors, recall_key, write_tum

# What people read for the names of the baselines.
METHOD_NAMES = {'retrieval': 'retrieval baseline', 'mean_pose': 'mean pose baseline'}
_STATISTICS = {'median': 'median', 'mean': 'mean', 'p99': '99 %', 'max': 'max'}
_NO_PIXELS = 'no reprojection error: these images come with neither depth nor 3D points'


def table(title: str, summary: dict) -> str:
    """The headline numbers as aligned text."""
    lines = [title]
    for rows in (_error_rows(summary), _recall_rows(summary)):
        lines += ['  ' + line for line in aligned(rows)] + ['']
    return '\n'.join([*lines, '  ' + counts_line(summary)])


def print_table(title: str, summary: dict) -> None:
    """Prints `table` with an empty line before it."""
    print('\n' + table(title, summary))


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        '   '.join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])])
        for row in rows
    ]


def _error_rows(summary: dict) -> list[list[str]]:
    """A header, and the errors of each method."""
    rows = [['error, m / deg', *_STATISTICS.values(), 'reprojection']]
    for name, values in _methods(summary).items():
        cells = [_error_cell(values, key) for key in _STATISTICS]
        rows.append([name, *cells, _pixels_cell(values.get('reprojection_px'))])
    return rows


def _recall_rows(summary: dict) -> list[list[str]]:
    """A header, and the share of frames of each method within each threshold."""
    rows = [['frames within, m / deg', *(f'{m:g}/{deg:g}' for m, deg in RECALL_THRESHOLDS)]]
    for name, values in _methods(summary).items():
        keys = [recall_key(*bounds) for bounds in RECALL_THRESHOLDS]
        rows.append([name, *(percent_cell(values['recall'][key]) for key in keys)])
    return rows


def _error_cell(values: dict, statistic: str) -> str:
    """Metres and degrees of a statistic such as 'median'."""
    metres, degrees = (values[f'{statistic}_{kind}'] for kind in ('position_m', 'rotation_deg'))
    return '-' if metres is None else f'{metres:.3f} / {degrees:5.2f}'


def _pixels_cell(pixels: float | None) -> str:
    """Such as '23.4 px'; '-' where unknown."""
    return '-' if pixels is None else f'{pixels:.1f} px'


def percent_cell(fraction: float) -> str:
    """Such as '42 %'."""
    return f'{100 * fraction:.0f} %'


def _methods(summary: dict) -> dict[str, dict]:
    """The rows of both tables: what is evaluated, and what it stands beside."""
    rows = {'pose_reloc': summary}
    if 'train' in summary:
        rows['on training images'] = summary['train']
    return rows | {METHOD_NAMES[name]: values for name, values in summary['baselines'].items()}


def counts_line(summary: dict) -> str:
    """One sentence: frames, answers, why the rest is missing, latency, calibration."""
    text = f'{summary["frames"]} frames, {summary["answered"]} answered'
    if refined := summary['answers'].get('REFINED'):
        text += f', {refined} of them refined'
    missing = [f'{count} {name}' for name, count in summary['not_answered'].items()]
    if missing:
        text += f' ({", ".join(missing)})'
    if summary['with_truth'] < summary['frames']:
        text += f', {summary["with_truth"]} with a known true pose'
    if summary['latency_p50_ms'] is not None:
        text += (
            f'; latency p50 {summary["latency_p50_ms"]:.1f} ms, '
            f'p95 {summary["latency_p95_ms"]:.1f} ms'
        )
    if summary.get('nees_mean') is not None:
        text += f'; mean NEES {summary["nees_mean"]:.1f} (6 is ideal)'
    if summary['answered'] and summary['reprojection_px'] is None:
        text += f'; {_NO_PIXELS}'
    return text


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
        text = json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + '\n'
        write_file(args.json, lambda path: path.write_text(text))
    if args.html:
        page = html_page(title, evaluation, scene, images, camera_T_body)
        write_file(args.html, lambda path: path.write_text(page, encoding='utf-8'))
    if args.picture:
        figure = _cumulative_figure(evaluation)
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
    times = _one_clock([f.time_s for f in frames])
    _write_trajectory(path, times, [f.estimate for f in frames])
    if any(f.truth is not None for f in frames):
        _write_trajectory(truth_path, times, [f.truth for f in frames])
        print(f'compare them: evo_ape tum {truth_path} {path}')


def _write_trajectory(path: Path, times: list[float], poses: list[np.ndarray | None]) -> None:
    stamps = [time for time, pose in zip(times, poses) if pose is not None]
    known = [pose for pose in poses if pose is not None]
    write_file(path, partial(write_tum, timestamps=stamps, world_T_camera_N44=known))


def _one_clock(times_s: list[float]) -> list[float]:
    """Stamps that increase: those of different recordings share no clock, and may be missing.

    A stamp that does not lie after the one before starts a recording one second later.
    """
    result, shift = [], 0.0
    for time in times_s:
        if result and time + shift <= result[-1]:
            shift = result[-1] + 1.0 - time
        result.append(time + shift)
    return result


def html_page(
    title: str,
    evaluation: Evaluation,
    scene: SceneModel,
    images: dict[str, Callable[[], np.ndarray]],
    camera_T_body: np.ndarray | None = None,
    introduction: str = '',
) -> str:
    """The report: headline numbers, table, trajectory from above, errors over time, frames.

    Args:
        title, evaluation, scene, images, camera_T_body: as `write_results`.
        introduction: HTML shown under the title.
    """
    summary = evaluation.summary()
    sections = [_headline(summary)]
    scored = [f for f in evaluation.frames if f.truth is not None and f.estimate is not None]
    if scored:
        sections += [
            _section(
                'From above',
                'The camera from above. Grey: where it was for training. Line: its true path in '
                'this run. Dots: the answers, joined to the truth, coloured by the error.',
                trajectory_figure(scored, scene, camera_T_body),
            ),
            _section('Errors over the run', 'Dashed: the median.', error_figure(evaluation)),
            _section(
                'Cumulative errors',
                'The share of frames whose error is at most that large: higher and further left '
                'is better. A curve that ends below 100 % got no answer for some frames.',
                _cumulative_figure(evaluation),
            ),
            _calibration_section(scored),
            _frames_section(scored, images),
        ]
    sections.append(_table_section(summary))
    sections.append(_recipe_section(scene))
    body = '\n'.join(sections)
    return _PAGE.format(title=html.escape(title), introduction=introduction, body=body)


def _cumulative_figure(evaluation: Evaluation):
    curves = {'pose_reloc': evaluation.errors()}
    if evaluation.train:
        curves['on training images'] = evaluation.train.errors()
    return cumulative_figure(curves, {METHOD_NAMES[n]: e for n, e in evaluation.baselines.items()})


def _headline(summary: dict) -> str:
    cards = [('frames answered', f'{summary["answered"]}/{summary["frames"]}')]
    if summary['median_position_m'] is not None:
        cards += [
            ('median position error', f'{100 * summary["median_position_m"]:.0f} cm'),
            ('median rotation error', f'{summary["median_rotation_deg"]:.1f}&deg;'),
        ]
    if summary['latency_p50_ms'] is not None:
        cards.append(('latency, median', f'{summary["latency_p50_ms"]:.0f} ms'))
    items = ''.join(f'<div class="card"><b>{v}</b><span>{k}</span></div>' for k, v in cards)
    return f'<div class="cards">{items}</div>'


def _table_section(summary: dict) -> str:
    tables = ''.join(_html_table(rows) for rows in (_error_rows(summary), _recall_rows(summary)))
    note = html.escape(counts_line(summary))
    return f'<section><h2>Beside the baselines</h2><p>{note}</p>{tables}</section>'


def _html_table(rows: list[list[str]]) -> str:
    head, *body = (
        ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)
        for tag, row in zip(['th'] + ['td'] * len(rows), rows)
    )
    lines = ''.join(f'<tr>{line}</tr>' for line in (head, *body))
    return f'<div class="scroll"><table>{lines}</table></div>'


def _calibration_section(scored: list[Frame]) -> str:
    known = [f for f in scored if f.covariance_66 is not None]
    if not known:
        return ''
    truth, estimate, covariance = (
        np.array([getattr(f, name) for f in known])
        for name in ('truth', 'estimate', 'covariance_66')
    )
    return _section(
        'Honesty of the covariances',
        'The share of frames whose error lies inside the confidence ellipsoid of each level. On '
        'the diagonal the covariances are honest; below it they claim too much, above it too '
        'little.',
        calibration_figure(nees(pose_residual(truth, estimate), covariance)),
    )


def _frames_section(scored: list[Frame], images) -> str:
    """Frames at the best, the median and the worst position error, with their pictures."""
    truth = np.array([f.truth for f in scored])
    position, rotation = per_frame_errors(truth, np.array([f.estimate for f in scored]))
    order = np.argsort(position)
    chosen = dict.fromkeys(order[np.linspace(0, len(order) - 1, min(8, len(order))).astype(int)])
    figures = []
    for index in chosen:
        frame = scored[index]
        if frame.name not in images:
            continue
        caption = f'{frame.name}: {100 * position[index]:.0f} cm, {rotation[index]:.1f}&deg;'
        picture = _jpeg(images[frame.name]())
        figures.append(
            f'<figure><img alt="" src="{picture}"><figcaption>{caption}</figcaption></figure>'
        )
    if not figures:
        return ''
    text = 'Eight frames of this run, from the smallest to the largest position error.'
    return (
        f'<section><h2>Frames</h2><p>{text}</p><div class="grid">{"".join(figures)}</div></section>'
    )


def _recipe_section(scene: SceneModel) -> str:
    recipe = scene.header.recipe
    shown = {
        'scene': scene.header.name,
        'trained on': f'{recipe.get("images")} images of {recipe.get("dataset")}',
        'network': f'{scene.header.network["backbone"]}, '
        f'{scene.header.network_camera.width}x{scene.header.network_camera.height} pixels',
        'backbone weights': recipe.get('backbone_weights'),
        'training': f'{recipe.get("epochs")} epochs, {recipe.get("seconds")} s on '
        f'{recipe.get("device")} in {recipe.get("precision")}',
        'covariance from': recipe.get('covariance'),
        'created': recipe.get('created'),
    }
    rows = ''.join(
        f'<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>'
        for k, v in shown.items()
    )
    return f'<section><h2>The scene</h2><div class="scroll"><table>{rows}</table></div></section>'


def _section(title: str, text: str, figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', bbox_inches='tight')
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :]
    return f'<section><h2>{title}</h2><p>{text}</p><div class="figure">{svg}</div></section>'


def _jpeg(image_HW3: np.ndarray) -> str:
    width = 400
    height = round(image_HW3.shape[0] * width / image_HW3.shape[1])
    small = cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode('.jpg', small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(data.tobytes()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1d2733; --soft: #5f6f80; --line: #e3e8ee; --blue: #1769aa; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f5f7fa; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }}
h1 {{ font-size: 28px; margin: 8px 0 4px; }} h2 {{ font-size: 20px; margin: 0 0 4px; }}
p {{ color: var(--soft); margin: 0 0 12px; }}
section, .card {{ background: #fff; border: 1px solid var(--line); border-radius: 12px; }}
section {{ padding: 20px; margin-top: 20px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin-top: 20px; }}
.card {{ padding: 16px 20px; }} .card b {{ display: block; font-size: 32px; color: var(--blue); }}
.card span {{ color: var(--soft); font-size: 14px; }}
.figure svg {{ width: 100%; height: auto; display: block; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 14px; }}
figure {{ margin: 0; }} figure img {{ width: 100%; border-radius: 8px; display: block; }}
figcaption {{ font-size: 13px; color: var(--soft); margin-top: 4px; }}
.scroll {{ overflow-x: auto; }} table {{ border-collapse: collapse; width: 100%; font-size: 14px; }}
th, td {{ text-align: left; padding: 8px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }}
</style></head><body><main>
<h1>{title}</h1>
{introduction}
{body}
</main></body></html>
"""
