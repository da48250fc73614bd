"""The page of one run: where it was, how far off, how honest, how fast, and with what scene."""

from __future__ import annotations

import numpy as np

from pose_reloc.scene import SceneModel
from training.evaluate import Evaluation
from training.report.run_data import Images, run_data
from training.report.scene_facts import recipe_rows
from training.report.shell import angle, box, card, cards, length, page, section, table
from training.report.tables import METHOD_NAMES, counts_line, error_rows, recall_rows

_SCRIPTS = ('view3d.js', 'charts.js', 'run.js')

_MAP = """
<div class="map"><div>
<div class="stage"><canvas id="view" tabindex="0"
 aria-label="3D view of the training path, the true path and the answers"></canvas>
<div class="tools"><button id="above">from above</button><button id="reset">reset</button></div>
</div>
<div class="legend">
<span><i class="key path"></i>training</span><span><i class="key ink"></i>true path</span>
<span>answers: <i class="ramp"></i><span>0 to <span id="worst-error"></span></span></span>
{silent}</div>
</div><div>
<div id="picture" class="picture"></div>
<div class="steps"><button id="before" aria-label="previous frame">&#8249;</button>
<input id="slider" type="range" min="0" value="0" aria-label="frame">
<button id="after" aria-label="next frame">&#8250;</button></div>
<div id="name" class="file"></div><table id="facts" class="facts"></table>
</div></div>"""

_ERRORS = """
<div class="choice"><label><input type="radio" name="over" value="time" checked>over time</label>
<label><input type="radio" name="over" value="along">along the path</label></div>
<div id="position"></div><div id="rotation"></div>"""


def html_page(
    title: str,
    evaluation: Evaluation,
    scene: SceneModel,
    images: Images,
    camera_T_body: np.ndarray | None = None,
    introduction: str = '',
) -> str:
    """The report of a run, one file without any network.

    Args:
        title: plain text.
        evaluation: the result.
        scene: that answered.
        images: frame name to a function that gives its uint8 RGB image.
        camera_T_body: (4, 4) when the poses are those of a body that carries the camera.
        introduction: HTML shown under the title.
    """
    summary = evaluation.summary()
    data = run_data(evaluation, scene, images, camera_T_body)
    parts = [introduction, _headline(summary)]
    parts += [*_drawn(summary, data), *_frames(data, summary)]
    rows = ''.join(table(rows) for rows in (error_rows(summary), recall_rows(summary)))
    parts.append(section('Beside the baselines', counts_line(summary), rows))
    recipe = [list(row) for row in recipe_rows(scene).items()]
    parts.append(section('The scene', '', table(recipe, 'recipe', header=False)))
    return page(title, '\n'.join(parts), data, _SCRIPTS)


def _headline(summary: dict) -> str:
    share = f'{100 * summary["answered"] / max(summary["frames"], 1):.0f} %'
    if refined := summary['answers'].get('REFINED'):
        share += f', {refined} refined'
    items = [card('answered', f'{summary["answered"]} of {summary["frames"]}', share)]
    if summary['median_position_m'] is not None:
        for name, key, text in (
            ('median position error', 'median_position_m', length),
            ('median rotation error', 'median_rotation_deg', angle),
        ):
            items.append(card(name, text(summary[key]), _beside(summary, key, text)))
    if summary.get('nees_mean') is not None:
        inside = f'90\xa0% ellipsoids hold {100 * summary["coverage"]["0.9"]:.0f}\xa0%'
        items.append(card('NEES, 6 is honest', f'{summary["nees_mean"]:.1f}', inside))
    if summary['latency_p50_ms'] is not None:
        worse = f'95 % within {summary["latency_p95_ms"]:.0f} ms'
        items.append(card('median latency', f'{summary["latency_p50_ms"]:.0f} ms', worse))
    return cards(items)


def _beside(summary: dict, key: str, text) -> str:
    """The same number of the baselines."""
    parts = []
    for name, baseline in summary['baselines'].items():
        if baseline[key] is not None:
            method = METHOD_NAMES[name].removesuffix(' baseline')
            parts.append(f'{method} {text(baseline[key])}'.replace(' ', '\xa0'))
    return ', '.join(parts)


def _drawn(summary: dict, data: dict) -> list[str]:
    """The 3D view and the charts."""
    frames = data['frames']
    sections = []
    if frames:
        text = (
            'Drag to turn; pinch, or click and scroll, to zoom; click an answer to see its frame. '
            'Each answer is joined to the truth and coloured by its position error. Of the chosen '
            'frame the true camera, the answer (blue) and its 95 % ellipsoid are drawn.'
        )
        silent = '<span><i class="key dot bad"></i>no answer</span>' if data['silent'] else ''
        sections.append(section('Where it was', text, _MAP.format(silent=silent), 'map'))
    if any(frame['error'] for frame in frames):
        sections.append(section('Errors over the run', '', _ERRORS))
        text = (
            'The share of all frames whose error is at most that large: higher and further left is '
            'better. A curve that ends below 100 % got no answer for some frames.'
        )
        pair = (
            f'<div class="columns">{box("cumulative-position")}{box("cumulative-rotation")}</div>'
        )
        sections.append(section('Cumulative errors', text, pair))
    pair = []
    if any(frame['level'] is not None for frame in frames):
        pair.append(section('Honesty of the covariances', _honesty(summary), box('calibration')))
    if any(frame['latency'] is not None for frame in frames):
        text = 'From handing an image over to having the answer.'
        pair.append(section('Latency', text, box('latency')))
    if pair:
        sections.append(f'<div class="columns">{"".join(pair)}</div>')
    return sections


def _honesty(summary: dict) -> str:
    text = (
        'The share of frames whose error lies inside the confidence ellipsoid of each level. '
        'Within the band the covariances are honest; below it they claim too much, above it too '
        'little.'
    )
    if summary.get('nees_mean') is None:
        return text
    held = ', '.join(
        f'{100 * float(level):g} %: {100 * share:.0f} %'
        for level, share in summary['coverage'].items()
    )
    return f'{text} Mean NEES {summary["nees_mean"]:.1f} (6 is honest); {held}.'


def _frames(data: dict, summary: dict) -> list[str]:
    sections = []
    if data['worst']:
        sections.append(
            section(
                'The worst answers',
                'By position error. A click shows the frame in the view.',
                box('worst', 'grid-cards'),
            )
        )
    if data['silent']:
        count = summary['frames'] - summary['answered']
        shown = '' if count == len(data['silent']) else f'{len(data["silent"])} of them:'
        text = f'{count} of {summary["frames"]} frames got no answer. {shown}'
        sections.append(section('Without an answer', text, box('silent', 'grid-cards')))
    return sections
