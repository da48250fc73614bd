"""Tables for the terminal, JSON for machines, and one self-contained HTML page to look at."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pose_reloc.errors import SettingsError
from pose_reloc.scene import SceneModel
from training.evaluate import Evaluation, Frame
from training.figures import error_figure, trajectory_figure
from training.metrics import per_frame_errors

# The recalls a person sees: today's structure methods, and the two of Boittiaux et al. 2022.
SHOWN_RECALLS = ('0.05m_5deg', '0.25m_10deg', '0.5m_15deg')
_NAMES = {'retrieval': 'retrieval baseline', 'mean_pose': 'mean pose baseline'}


def table(title: str, summary: dict) -> str:
    """The headline numbers as aligned text."""
    header = ['', 'median', '90 %', *(_recall_name(r) for r in SHOWN_RECALLS)]
    rows = [_row('pose_reloc', summary)]
    rows += [_row(_NAMES.get(n, n), m) for n, m in summary['baselines'].items()]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [title]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        lines.append('  ' + '   '.join(cells))
    lines.append('  ' + counts_line(summary))
    return '\n'.join(lines)


def print_table(title: str, summary: dict) -> None:
    """Prints `table` with an empty line before it."""
    print('\n' + table(title, summary))


def counts_line(summary: dict) -> str:
    """One sentence: frames, answers, why the rest is missing, latency, calibration."""
    text = f'{summary["frames"]} frames, {summary["answered"]} answered'
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
    return text


def write_results(
    args,
    title: str,
    evaluation: Evaluation,
    scene: SceneModel,
    images: dict[str, Callable[[], np.ndarray]],
    camera_T_body: np.ndarray | None = None,
) -> None:
    """Writes what --json and --html ask for, and says so.

    Args:
        args: with `json` and `html`, file names or None.
        title: of the page.
        evaluation: the result.
        scene: that answered.
        images: frame name to a function that gives its uint8 RGB image.
        camera_T_body: (4, 4) when the poses are those of a body that carries the camera.

    Raises:
        SettingsError: a file cannot be written.
    """
    if args.json:
        _write(args.json, json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + '\n')
    if args.html:
        _write(args.html, html_page(title, evaluation, scene, images, camera_T_body))


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
            _section(
                'Errors', 'Over the run, and as a cumulative curve.', error_figure(evaluation)
            ),
            _frames_section(scored, images),
        ]
    sections.append(_table_section(summary))
    sections.append(_recipe_section(scene))
    body = '\n'.join(sections)
    return _PAGE.format(title=html.escape(title), introduction=introduction, body=body)


def _row(name: str, values: dict) -> list[str]:
    if values['median_position_m'] is None:
        return [name, '-', '-', *('-' for _ in SHOWN_RECALLS)]
    pairs = [
        f'{values[f"{p}_position_m"]:.3f} m {values[f"{p}_rotation_deg"]:5.2f} deg'
        for p in ('median', 'p90')
    ]
    return [name, *pairs, *(f'{100 * values["recall"][r]:.0f} %' for r in SHOWN_RECALLS)]


def _recall_name(key: str) -> str:
    metres, degrees = key.removesuffix('deg').split('m_')
    return (
        f'{100 * float(metres):g} cm/{degrees} deg'
        if float(metres) < 0.1
        else (f'{metres} m/{degrees} deg')
    )


def _write(name: str, text: str) -> None:
    path = Path(name).expanduser()
    try:
        path.write_text(text, encoding='utf-8')
    except OSError as error:
        raise SettingsError(f'cannot write {path}: {error.strerror}') from error
    print(f'wrote {path}')


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
    names = ['', 'median', '90 %', *(_recall_name(r) for r in SHOWN_RECALLS)]
    rows = [_row('pose_reloc', summary)]
    rows += [_row(_NAMES.get(n, n), m) for n, m in summary['baselines'].items()]
    head = ''.join(f'<th>{html.escape(n)}</th>' for n in names)
    body = ''.join(
        '<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>' for row in rows
    )
    note = html.escape(counts_line(summary))
    return (
        f'<section><h2>Beside the baselines</h2><p>{note}</p><div class="scroll"><table>'
        f'<tr>{head}</tr>{body}</table></div></section>'
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
