"""`pose_reloc inspect`: what a dataset holds, in numbers and in a picture."""

from __future__ import annotations

import json
from pathlib import Path

from pose_reloc.errors import SettingsError
from training.commands.arguments import add_dataset_arguments, loader_options, open_from

HELP = (
    'Prints what a dataset holds and what it lacks, and draws it from above. Of a bag also its '
    'topics, frames and gaps, what would be used, and how to record what is missing.'
)
EXAMPLES = """\
  pose_reloc inspect --dataset 7scenes --path chess
  pose_reloc inspect --dataset cambridge --path KingsCollege --picture kings.png
  pose_reloc inspect --dataset colmap --path my_model --option every=10
  pose_reloc inspect --dataset bag --path my_bag --map-frame odom
  pose_reloc inspect --dataset tum --path rgbd_dataset_freiburg1_room --json room.json
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    add_dataset_arguments(parser)
    parser.add_argument('--picture', metavar='FILE', help='write the trajectories as PNG, PDF, SVG')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers')
    parser.add_argument(
        '--frames',
        type=int,
        default=32,
        metavar='N',
        help='images to look into for depth and damage (default 32; 0 for all)',
    )


def run(args) -> int:
    """Opens, looks and prints."""
    from training.inspection import inspect_dataset

    if args.frames < 0:
        raise SettingsError(f'--frames must be 0 or more, got {args.frames}')
    if args.dataset == 'bag' and not _survey(args):
        return 2
    dataset = open_from(args)
    found = inspect_dataset(dataset, args.frames)
    title = f'{dataset.name} ({args.dataset})'
    print(report(title, found))
    if args.json:
        _write(args.json, lambda path: path.write_text(json.dumps(numbers(found), indent=2) + '\n'))
    if args.picture:
        _write(args.picture, lambda path: _draw(path, dataset, found, title))
    return 0


def _survey(args) -> bool:
    """Prints what every bag holds; True if all of them can be used."""
    from training.commands.bag_survey import survey_text
    from training.datasets.bag.dataset import paths_of
    from training.datasets.bag.picking import BagSettings
    from training.datasets.bag.survey import survey
    from training.datasets.options import checked_options

    options = loader_options(args)
    further = [*paths_of(options.pop('more', ())), *paths_of(options.pop('test_path', ()))]
    settings = BagSettings(**checked_options('bag', BagSettings, options))
    usable = True
    for path in [*paths_of(args.path[0]), *further]:
        found = survey(path, settings)
        print(survey_text(found), end='\n\n')
        usable = usable and not found.picked.problems
    return usable


def report(title: str, found) -> str:
    """The `Inspection` as aligned text."""
    train, test = found.train, found.test
    lines = [title, '']
    lines.append(f'  {"":14}{"train":>10}{"test":>10}')
    lines.append(f'  {"images":14}{train.images:>10}{test.images:>10}')
    lines.append(f'  {"sequences":14}{len(train.sequences):>10}{len(test.sequences):>10}')
    lines.append(f'  {"path":14}{_metres(train.path_m):>10}{_metres(test.path_m):>10}')
    lines.append('')
    facts = [
        *(('train', f'{name}: {n}') for name, n in _shown(train.sequences)),
        *(('test', f'{name}: {n}') for name, n in _shown(test.sequences)),
        *_cameras(found.cameras),
        ('extent', _extent(found.extent_m)),
        ('depth range', _depth(found)),
        ('test to train', _nearest(found)),
    ]
    previous = None
    for name, text in facts:
        lines.append(f'  {name if name != previous else "":14}{text}')
        previous = name
    if found.notes:
        lines += ['', 'notes', *(f'  - {text}' for text in found.notes)]
    lines += ['', 'warnings' if found.warnings else 'no warnings']
    lines += [f'  - {text}' for text in found.warnings]
    return '\n'.join(lines)


def numbers(found) -> dict:
    """The `Inspection` as plain JSON types."""
    import numpy as np

    def medians(values):
        return float(np.median(values)) if len(values) else None

    return {
        'train': vars(found.train),
        'test': vars(found.test),
        'cameras': [{**camera.to_dict(), 'images': count} for camera, count in found.cameras],
        'extent_m': found.extent_m,
        'depth_range_m': found.depth_range_m,
        'frames_sampled': found.frames_sampled,
        'nearest_train_median_m': medians(found.nearest_m),
        'nearest_train_median_deg': medians(found.nearest_deg),
        'warnings': found.warnings,
    }


def _shown(sequences: dict[str, int], most: int = 6) -> list[tuple[str, str]]:
    """Names and counts for people: the first few, then how many more."""
    items = [(name or '(no name)', f'{count} images') for name, count in sequences.items()]
    if len(items) <= most:
        return items
    rest = sum(list(sequences.values())[most - 1 :])
    more = (f'and {len(items) - most + 1} more', f'{rest} images')
    return [*items[: most - 1], more]


def _cameras(cameras) -> list[tuple[str, str]]:
    rows = []
    for camera, count in cameras[:3]:
        text = (
            f'{camera.width}x{camera.height}, f {camera.fx:.1f} {camera.fy:.1f}, '
            f'centre {camera.cx:.1f} {camera.cy:.1f}, '
        )
        if camera.is_pinhole:
            text += 'no distortion'
        else:
            text += f'{camera.distortion_model} ' + ' '.join(f'{d:.4g}' for d in camera.distortion)
        rows.append(('camera', text + (f' ({count} images)' if len(cameras) > 1 else '')))
    if len(cameras) > 3:
        rest = sum(count for _, count in cameras[3:])
        rows.append(('camera', f'and {len(cameras) - 3} more ({rest} images)'))
    return rows


def _extent(extent_m) -> str:
    if extent_m is None:
        return 'no training images'
    return ' x '.join(_metres(x) for x in extent_m) + ' (x, y, z of the training cameras)'


def _depth(found) -> str:
    if found.depth_range_m is None:
        return 'unknown: neither depth nor 3D points'
    low, high = found.depth_range_m
    return (
        f'{_metres(low)} to {_metres(high)} (2.5 and 97.5 percentiles, '
        f'{found.frames_sampled} training images)'
    )


def _nearest(found) -> str:
    import numpy as np

    if not len(found.nearest_m):
        return 'unknown: a split is empty'
    high = np.quantile(found.nearest_m, 0.9), np.quantile(found.nearest_deg, 0.9)
    return (
        f'{_metres(np.median(found.nearest_m))}, {np.median(found.nearest_deg):.1f} deg '
        f'(medians to the nearest training image; 90 %: {_metres(high[0])}, {high[1]:.1f} deg)'
    )


def _metres(value: float) -> str:
    return f'{value:.2f} m' if value < 100 else f'{value:.0f} m'


def _draw(path: Path, dataset, found, title: str) -> None:
    from training.dataset_figure import dataset_figure

    if not found.cameras:
        raise SettingsError('--picture: there is no image to draw')
    dataset_figure(dataset, found, title).savefig(path, dpi=150, facecolor='white')


def _write(file: str, write) -> None:
    """Calls write(path), and says so.

    Raises:
        SettingsError: the file cannot be written.
    """
    path = Path(file).expanduser()
    try:
        write(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f'cannot write {path}: {error}') from error
    print(f'wrote {path}')
