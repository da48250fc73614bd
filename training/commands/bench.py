"""`pose_reloc bench`: speed and memory beside their floors and beside the alternatives."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from pose_reloc.errors import SettingsError
from training.datasets.options import add_option_argument, parse_options

HELP = (
    'Measures speed and memory. Every figure stands beside its floor and beside what a user would '
    'take instead, measured in turns in the same run. Writes DIR/bench.md and DIR/bench.json.'
)
EXAMPLES = """\
  pose_reloc bench
  pose_reloc bench inference startup --quick
  pose_reloc bench refinement --dataset 7scenes --path chess --scene chess.scene
  pose_reloc bench wrong_places --dataset 7scenes --path chess --scene chess.scene \\
      --foreign cambridge=ShopFacade
  pose_reloc bench training --dataset 7scenes --path chess --device cuda
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('names', nargs='*', metavar='NAME', help='of benchmarks; default: all')
    parser.add_argument('--out', default='bench', metavar='DIR', help='default: bench')
    parser.add_argument('--quick', action='store_true', help='fewer turns, no torch.compile')
    parser.add_argument(
        '--device', help='cpu or cuda (default: the CPU, and a GPU if there is one)'
    )
    parser.add_argument(
        '--dataset', default='7scenes', metavar='KIND', help='of --path; default: 7scenes'
    )
    parser.add_argument(
        '--path', metavar='DIR', help='the folder of a dataset; default: the built-in room'
    )
    add_option_argument(parser)
    parser.add_argument(
        '--scene',
        metavar='FILE',
        help='trained on that dataset: for inference, refinement, wrong_places, memory',
    )
    parser.add_argument(
        '--foreign',
        action='append',
        default=[],
        metavar='KIND=DIR',
        help='a dataset of another place, for wrong_places; may be given several times',
    )


def run(args) -> int:
    """Measures, prints and writes, benchmark by benchmark."""
    from training.benchmarks import BENCHMARKS, run_benchmark
    from training.benchmarks.machine import describe_machine, describe_versions

    names = list(dict.fromkeys(args.names)) or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise SettingsError(
            f'unknown benchmark {unknown[0]!r}; choose from {", ".join(BENCHMARKS)}'
        )
    settings = _settings(args)
    report = {
        'date': datetime.now(timezone.utc).isoformat(timespec='minutes'),
        'command': ' '.join(['pose_reloc', *sys.argv[1:]]),
        'machine': describe_machine(),
        'versions': describe_versions(),
        'tables': [],
    }
    texts = [_heading(report)]
    print(texts[0])
    if not args.names and not find_spec('rclpy'):
        names.remove('node')
        texts.append('Without node: ROS 2 cannot be imported here.\n')
        print(texts[-1])
    _write(Path(args.out), report, texts)  # a folder that cannot be written is told at once
    for name in names:
        for table in run_benchmark(name, settings):
            print(f'\n{table.text()}', flush=True)
            report['tables'].append(table.to_json())
            texts.append(table.markdown())
            # After each table: a long run that is stopped leaves what it has measured.
            _write(Path(args.out), report, texts)
    print(f'\nwrote {Path(args.out) / "bench.md"} and bench.json')
    return 0


def _settings(args):
    import torch

    from pose_reloc.backends import choose_device
    from training.benchmarks.workload import BenchSettings

    devices = ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)
    if args.device:
        devices = (str(choose_device(args.device)),)
    settings = BenchSettings(
        Path(args.out),
        devices,
        args.dataset,
        Path(args.path) if args.path else None,
        parse_options(args.option),
        Path(args.scene) if args.scene else None,
        tuple(_foreign(text) for text in args.foreign),
        **({'rounds': 3, 'turn_seconds': 0.2, 'steps': 1, 'compile': False} if args.quick else {}),
    )
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f'cannot write the folder {args.out}: {error.strerror}') from error
    return settings


def _foreign(text: str) -> tuple[str, str]:
    kind, _, path = text.partition('=')
    if not path:
        raise SettingsError(f'--foreign {text!r}: expected KIND=DIR, for example 7scenes=office')
    return kind, path


def _heading(report: dict) -> str:
    lines = [f'# Benchmarks, {report["date"]}', '', f'    {report["command"]}', '']
    lines += [f'- {name}: {value}' for name, value in report['machine'].items()]
    lines.append('- ' + ', '.join(f'{name} {value}' for name, value in report['versions'].items()))
    lines += [
        '',
        'Medians over the turns, which the cases of a table take one after another. Ratios are '
        'medians of the ratios within each round.',
        '"x alternative": how many times cheaper than the alternative of the same group. '
        '"x floor": how many times the floor; 1 is the best possible.',
        '',
    ]
    return '\n'.join(lines)


def _write(folder: Path, report: dict, texts: list[str]) -> None:
    try:
        (folder / 'bench.json').write_text(json.dumps(report, indent=1) + '\n')
        (folder / 'bench.md').write_text('\n'.join(texts))
    except OSError as error:
        raise SettingsError(f'cannot write into {folder}: {error.strerror}') from error
