"""Several runs beside each other, from the JSON that each of them left."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from pose_reloc.errors import SettingsError
from pose_reloc.geometry import invert_pose
from training.floor_view import floor_view, walked
from training.metrics import RECALL_THRESHOLDS, recall_key
from training.report.run_data import error_lists
from training.report.scene_facts import rounded
from training.report.shell import angle, box, length, page, section, table
from training.report.tables import METHOD_NAMES, percent_cell

_SCRIPTS = ('view3d.js', 'charts.js', 'comparison.js')
_COLOURS = 6  # in the style sheet
_SAME_POSE_M = 0.001  # true positions of one image differ by no more
_BOTH_BOUNDS = ((0.05, 5), (0.25, 10), (0.5, 15))  # of the recalls that are shown


@dataclass(frozen=True)
class RunFrame:
    """One image of a run.

    Attributes:
        status: of the answer, or why there is none.
        truth, estimate: camera poses (4, 4), None where unknown.
        error: metres and degrees; None without a truth or an estimate.
        nees: see `metrics.nees`; None where unknown.
        latency_ms: None where unknown.
    """

    status: str
    truth: np.ndarray | None
    estimate: np.ndarray | None
    error: tuple[float, float] | None
    nees: float | None
    latency_ms: float | None


@dataclass(frozen=True)
class Run:
    """What `--json` of a command wrote.

    Attributes:
        name: its title, for people.
        summary: the numbers of the run as `Evaluation.summary` gives them.
        recipe: how its scene was made, name to text.
        frames: by name of the image, in their order.
    """

    name: str
    summary: dict
    recipe: dict[str, str]
    frames: dict[str, RunFrame]


def read_run(path: Path) -> Run:
    """Reads the JSON of a run.

    Raises:
        SettingsError: the file cannot be read or is no such JSON.
    """
    try:
        values = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse)
        return _parsed(values, path.stem)
    except OSError as error:
        raise SettingsError(f'cannot read {path}: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError, np.linalg.LinAlgError) as error:
        raise SettingsError(
            f'{path} is not the result of a run ({error!r}); write one with '
            '`pose_reloc evaluate ... --json FILE` or `pose_reloc replay ... --json FILE`'
        ) from error


def _refuse(name: str):
    raise ValueError(f'{name} is no number')


def _parsed(values: dict, stem: str) -> Run:
    camera_T_body = values.get('camera_T_body')
    body_T_camera = np.eye(4) if camera_T_body is None else invert_pose(_pose(camera_T_body))
    frames = {str(v['name']): _frame(v, body_T_camera) for v in values['per_frame']}
    summary = {name: value for name, value in values.items() if name != 'per_frame'}
    for _, _, show in _rows():  # what is not there is found now, and not in the middle of a page
        show(summary)
    recipe = {str(name): str(text) for name, text in values.get('scene', {}).items()}
    return Run(str(values.get('title', stem)), summary, recipe, frames)


def _frame(values: dict, body_T_camera: np.ndarray) -> RunFrame:
    truth, estimate = (
        None if values[name] is None else _pose(values[name]) @ body_T_camera
        for name in ('truth', 'estimate')
    )
    error = None
    if 'position_error_m' in values:
        error = float(values['position_error_m']), float(values['rotation_error_deg'])
    nees, latency = (
        None if values.get(name) is None else float(values[name]) for name in ('nees', 'latency_ms')
    )
    return RunFrame(str(values['status']), truth, estimate, error, nees, latency)


def _pose(values) -> np.ndarray:
    pose = np.array(values, dtype=np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError('a pose is not 4x4 numbers')
    return pose


def comparison_page(runs: Sequence[Run]) -> str:
    """One page about several runs, without any network.

    Args:
        runs: at least one. Frames with the same name are taken for the same image.
    """
    runs = _distinct(runs)
    frames = list(dict.fromkeys(name for run in runs for name in run.frames))
    data = _data(runs, frames)
    parts = [f'<p>{html.escape(", ".join(run.name for run in runs))}</p>']
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in _notes(runs, frames)]
    parts.append(section('The numbers', '', _numbers(runs)))
    if data['view']:
        text = (
            'The true path, and the answers of every run in its colour. Drag to turn; pinch, or '
            'click and scroll, to zoom; click an answer to choose its frame.'
        )
        parts.append(section('Where they were', text, _MAP, 'map'))
    if any(frame.error for run in runs for frame in run.frames.values()):
        charts = box('position') + box('rotation')
        parts.append(section('Errors frame by frame', '', charts))
        text = 'The share of all frames whose error is at most that large.'
        charts = box('cumulative-position') + box('cumulative-rotation')
        parts.append(section('Cumulative errors', text, f'<div class="columns">{charts}</div>'))
    if any(run['levels'] for run in data['runs']):
        text = (
            'The share of frames whose error lies inside the confidence ellipsoid of each level: '
            'honest within the band.'
        )
        parts.append(section('Honesty of the covariances', text, box('calibration')))
    parts.append(section('The scenes', _scenes_text(runs), _scenes(runs)))
    return page(f'{len(runs)} runs compared', '\n'.join(parts), data, _SCRIPTS)


_MAP = """
<div class="map"><div><div class="stage"><canvas id="view" tabindex="0"
 aria-label="3D view of the true path and the answers of every run"></canvas>
<div class="tools"><button id="above">from above</button><button id="reset">reset</button></div>
</div><div id="keys" class="legend"></div></div>
<div><div class="steps"><button id="before" aria-label="previous frame">&#8249;</button>
<input id="slider" type="range" min="0" value="0" aria-label="frame">
<button id="after" aria-label="next frame">&#8250;</button></div>
<div id="name" class="file"></div><table id="facts" class="facts"></table></div></div>"""


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that differ."""
    names, result = set(), []
    for run in runs:
        name, number = run.name, 2
        while name in names:
            name, number = f'{run.name} ({number})', number + 1
        names.add(name)
        result.append(Run(name, run.summary, run.recipe, run.frames))
    return result


def _notes(runs: list[Run], frames: list[str]) -> list[str]:
    """What makes the runs hard to compare."""
    notes = []
    if any(set(run.frames) != set(frames) for run in runs):
        counts = ', '.join(f'{run.name}: {len(run.frames)}' for run in runs)
        shared = sum(all(name in run.frames for run in runs) for name in frames)
        notes.append(
            f'These runs are not about the same images ({counts}; {shared} in all of them): '
            'the numbers of each are about its own.'
        )
    apart = [metres for name in frames if (metres := _apart(_truths(runs, name))) > _SAME_POSE_M]
    if apart:
        notes.append(
            f'These runs do not agree where {len(apart)} of {len(frames)} images were taken (up to '
            f'{length(max(apart))} apart): images of other places with the same names, or poses in '
            'other frames. The true path is that of the first run that knows it.'
        )
    return notes


def _truths(runs: list[Run], name: str) -> list[np.ndarray]:
    """True poses (4, 4) of an image, of those runs that know it."""
    frames = (run.frames.get(name) for run in runs)
    return [frame.truth for frame in frames if frame and frame.truth is not None]


def _apart(poses: list[np.ndarray]) -> float:
    """Metres from the first pose to the one farthest from it."""
    return max((float(np.linalg.norm(T[:3, 3] - poses[0][:3, 3])) for T in poses), default=0.0)


# A row of the table: its name, which value is best, and a run's value and text.
_Show = Callable[[dict], tuple[float | None, str]]


def _rows() -> list[tuple[str, Callable | None, _Show]]:
    def number(key: str, text: Callable[[float], str]) -> _Show:
        return lambda s: (s.get(key), '-' if s.get(key) is None else text(s[key]))

    def share(value: Callable[[dict], float | None]) -> _Show:
        return lambda s: (value(s), '-' if value(s) is None else percent_cell(value(s)))

    def nearest_honest(nees: list[float]) -> float:
        return min(nees, key=lambda value: abs(np.log(max(value, 1e-9) / 6)))

    def recall(metres: float, degrees: float) -> _Show:
        return share(lambda s: s['recall'][recall_key(metres, degrees)])

    rows = [
        ('frames', None, lambda s: (s['frames'], f'{s["frames"]}')),
        ('answered', None, lambda s: (s['answered'], f'{s["answered"]}')),
        ('refined', None, lambda s: (None, f'{s["answers"].get("REFINED", 0)}')),
        ('median position error', min, number('median_position_m', length)),
        ('median rotation error', min, number('median_rotation_deg', angle)),
        ('90 % position error', min, number('p90_position_m', length)),
        ('largest position error', min, number('max_position_m', length)),
    ]
    rows += [
        (f'within {metres:g} m / {degrees:g}°', max, recall(metres, degrees))
        for metres, degrees in RECALL_THRESHOLDS
        if (metres, degrees) in _BOTH_BOUNDS
    ]
    return rows + [
        ('NEES, 6 is honest', nearest_honest, number('nees_mean', '{:.1f}'.format)),
        ('in their 90 % ellipsoid', None, share(lambda s: s.get('coverage', {}).get('0.9'))),
        ('median latency', min, number('latency_p50_ms', '{:.0f} ms'.format)),
        ('95 % latency', min, number('latency_p95_ms', '{:.0f} ms'.format)),
    ]


def _numbers(runs: list[Run]) -> str:
    """The table; the best of a row in bold."""
    lines = [''.join(f'<th>{html.escape(t)}</th>' for t in ['', *(run.name for run in runs)])]
    for name, best_of, show in _rows():
        cells = [show(run.summary) for run in runs]
        known = [value for value, _ in cells if value is not None]
        best = best_of(known) if best_of and len(known) > 1 else None
        tags = ''.join(
            f'<td class="{"best" if best is not None and value == best else ""}">'
            f'{html.escape(text)}</td>'
            for value, text in cells
        )
        lines.append(f'<td>{html.escape(name)}</td>{tags}')
    for name, label in METHOD_NAMES.items():
        cells = [run.summary.get('baselines', {}).get(name) for run in runs]
        if any(cells):
            texts = ('-' if c is None or c['median_position_m'] is None else
                     f'{length(c["median_position_m"])}, {angle(c["median_rotation_deg"])}'
                     for c in cells)  # fmt: skip
            tags = ''.join(f'<td>{html.escape(text)}</td>' for text in texts)
            lines.append(f'<td>{html.escape(label)}</td>{tags}')
    rows = ''.join(f'<tr>{line}</tr>' for line in lines)
    return f'<div class="scroll"><table class="compare">{rows}</table></div>'


def _scenes_text(runs: list[Run]) -> str:
    if not all(run.recipe for run in runs):
        return 'A file that was written without a scene says nothing here.'
    return ''


def _scenes(runs: list[Run]) -> str:
    """How the scenes were made, where they differ first."""
    names = list(dict.fromkeys(name for run in runs for name in run.recipe))
    rows = [[name, *(run.recipe.get(name, '-') for run in runs)] for name in names]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return table([['', *(run.name for run in runs)], *rows], 'compare')


def _data(runs: list[Run], names: list[str]) -> dict:
    """What the scripts draw."""
    truth = [next(iter(_truths(runs, name)), None) for name in names]
    estimates = [f.estimate for run in runs for f in run.frames.values()]
    poses = np.array([T for T in [*truth, *estimates] if T is not None]).reshape(-1, 4, 4)
    view = floor_view(poses) if len(poses) else None
    known = [i for i, T in enumerate(truth) if T is not None]
    positions = np.array([truth[i][:3, 3] for i in known]).reshape(-1, 3)
    return {
        'view': view and {
            'origin': rounded(view.origin),
            'axes': [rounded(axis, 9) for axis in (*view.axes.T, view.up)],
        },
        'names': names,
        'truth': [None if T is None else rounded(T[:3, 3]) for T in truth],
        'steps': [[known[i], known[i + 1]] for i in walked(positions)],
        'runs': [_run_data(run, names, i % _COLOURS) for i, run in enumerate(runs)],
    }  # fmt: skip


def _run_data(run: Run, names: list[str], css: int) -> dict:
    frames = [run.frames.get(name) for name in names]
    own = [f for f in run.frames.values() if f.truth is not None]
    errors = np.array([f.error or (np.inf, np.inf) for f in own]).reshape(-1, 2).T
    return {
        'name': run.name,
        'css': css,
        'status': [f and f.status for f in frames],
        'error': [f and f.error and rounded(f.error, 5) for f in frames],
        'estimate': [
            None if f is None or f.estimate is None else rounded(f.estimate[:3, 3]) for f in frames
        ],
        'errors': error_lists(errors),
        'levels': [
            round(100 * float(chi2.cdf(f.nees, df=6)), 3) for f in own if f.nees is not None
        ],
    }
