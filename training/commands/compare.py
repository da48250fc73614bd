"""`pose_reloc compare`: every loss trained on one dataset with the same budget."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pose_reloc.errors import SettingsError
from training.commands.arguments import add_dataset_arguments, open_from

HELP = (
    'Trains the losses of both papers on one dataset, each with the same preset, seed and budget, '
    'and prints how well the regressors answer. A second call with the same --out goes on where '
    'the first was stopped.'
)
EXAMPLES = """\
  pose_reloc compare --dataset 7scenes --path chess --out chess_losses --minutes 10
  pose_reloc compare --dataset 7scenes --path chess --out chess_paper --preset paper
  pose_reloc compare --dataset cambridge --path ShopFacade --out shop \\
      --losses posenet,homoscedastic,global_homography --depth-range 2 50
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    add_dataset_arguments(parser)
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='scenes, results, compare.{json,md,png}'
    )
    parser.add_argument('--losses', metavar='A,B,...', help='default: all')
    parser.add_argument(
        '--preset', default='fast', help='fast (default), paper (as published), or a YAML'
    )
    parser.add_argument('--minutes', type=float, help='of training for each loss')
    parser.add_argument('--epochs', type=int, help='for each loss instead')
    parser.add_argument(
        '--backbone-weights', metavar='SOURCE', help='as in train: imagenet, none, or a FILE'
    )
    parser.add_argument(
        '--depth-range',
        nargs=2,
        type=float,
        metavar=('NEAR', 'FAR'),
        help='metres, for global_homography on a dataset without depth',
    )
    parser.add_argument('--device', help='auto (default), cpu, cuda, cuda:1')
    parser.add_argument('--seed', type=int)


def run(args) -> int:
    """Compares and prints the table."""
    from training.build import with_fitting_batch
    from training.compare import CAMBRIDGE_THRESHOLDS, ROOM_THRESHOLDS, compare

    losses = _losses(args.losses)
    settings = _settings(args)
    dataset = open_from(args)
    for warning in dataset.warnings:
        print(f'note: {warning}')
    settings = with_fitting_batch(settings, dataset.split('train'))
    folder = Path(args.out).expanduser()
    thresholds = CAMBRIDGE_THRESHOLDS if args.dataset == 'cambridge' else ROOM_THRESHOLDS
    try:
        comparison = compare(dataset, settings, losses, folder, thresholds, ' '.join(sys.argv[1:]))
    except KeyboardInterrupt:
        print(f'\nstopped; the same command goes on from {folder}', file=sys.stderr)
        raise
    print('\n' + comparison.text())
    comparison.write(folder)
    return 0


def _losses(names: str | None) -> list[str]:
    from training.losses import LOSSES

    if names is None:
        return list(LOSSES)
    losses = list(dict.fromkeys(name.strip() for name in names.split(',')))
    for name in losses:
        if name not in LOSSES:
            raise SettingsError(f'unknown loss {name!r}; choose some of {", ".join(LOSSES)}')
    return losses


def _settings(args):
    """The preset with the changes that the command line asks for."""
    from training.settings import load_preset

    if args.epochs is not None and args.minutes is not None:
        raise SettingsError('give --epochs or --minutes, not both')
    settings = load_preset(args.preset)
    names = ('minutes', 'epochs', 'backbone_weights', 'device', 'seed')
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.epochs is not None:
        changes['minutes'] = None
    if args.depth_range:
        changes['loss'] = replace(settings.loss, depth_range=tuple(args.depth_range))
    return settings.changed(**changes)
