"""`pose_reloc report`: several runs on one page."""

from __future__ import annotations

from pathlib import Path

HELP = (
    'Puts the results of several runs, written with --json by evaluate or replay or as LOSS.json '
    'by compare, on one page that needs no network: numbers, answers, errors frame by frame, and '
    'how their scenes differ.'
)
EXAMPLES = """\
  pose_reloc report regressed.json refined.json --html compare.html
  pose_reloc report losses/posenet.json losses/geometric.json --html losses.html
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('results', nargs='+', metavar='FILE.json', help='what --json wrote')
    parser.add_argument('--html', required=True, metavar='FILE', help='the page to write')


def run(args) -> int:
    """Writes the page."""
    from training.report import comparison_page, read_run, write_file

    page = comparison_page([read_run(Path(name).expanduser()) for name in args.results])
    write_file(args.html, lambda path: path.write_text(page, encoding='utf-8'))
    return 0
