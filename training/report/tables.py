"""The headline numbers of an evaluation as aligned text."""

from __future__ import annotations

from training.metrics import RECALL_THRESHOLDS, recall_key

# What people read for the names of the baselines.
METHOD_NAMES = {'retrieval': 'retrieval baseline', 'mean_pose': 'mean pose baseline'}
_STATISTICS = {'median': 'median', 'mean': 'mean', 'p99': '99 %', 'max': 'max'}
_NO_PIXELS = 'no reprojection error: these images come with neither depth nor 3D points'


def table(title: str, summary: dict) -> str:
    """The headline numbers as aligned text."""
    lines = [title]
    for rows in (error_rows(summary), recall_rows(summary)):
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


def error_rows(summary: dict) -> list[list[str]]:
    """A header, and the errors of each method."""
    rows = [['error, m / deg', *_STATISTICS.values(), 'reprojection']]
    for name, values in _methods(summary).items():
        cells = [_error_cell(values, key) for key in _STATISTICS]
        rows.append([name, *cells, _pixels_cell(values.get('reprojection_px'))])
    return rows


def recall_rows(summary: dict) -> list[list[str]]:
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
