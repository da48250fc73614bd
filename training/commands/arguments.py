"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

from pose_reloc.errors import DatasetError, SettingsError
from pose_reloc.files import temporary_folder
from training.datasets import LOADERS, Dataset, open_dataset
from training.datasets.options import add_option_argument, parse_options

# Command-line name -> option of the loaders. Only those that are given reach the loader, which
# refuses what it does not have.
_LOADER_OPTIONS = {
    'test_path': 'test_path',
    'image_topic': 'image_topic',
    'pose_topic': 'pose_topic',
    'depth_topic': 'depth_topic',
    'map_frame': 'map_frame',
    'camera_frame': 'camera_frame',
    'body_frame': 'body_frame',
    'camera': 'intrinsics',
    'time_offset': 'time_offset',
    'max_gap': 'max_gap',
    'min_translation': 'min_translation',
    'min_rotation': 'min_rotation',
    'min_sharpness': 'min_sharpness',
}


def add_dataset_arguments(parser) -> None:
    """Adds --dataset, --path, --option, and what bags may need to be told."""
    parser.add_argument(
        '--dataset', required=True, metavar='KIND', help=f'one of {", ".join(LOADERS)}'
    )
    parser.add_argument(
        '--path',
        required=True,
        nargs='+',
        metavar='DIR',
        help='the folder of the dataset; of bags one or more',
    )
    add_option_argument(parser)
    parser.add_argument(
        '--camera',
        nargs=4,
        type=float,
        metavar=('FX', 'FY', 'CX', 'CY'),
        help='intrinsics in pixels, where the source has none or wrong ones',
    )
    _add_bag_arguments(parser.add_argument_group('bags'))


def _add_bag_arguments(group) -> None:
    group.add_argument('--test-path', nargs='+', metavar='BAG', help='bags of the test split')
    group.add_argument('--image-topic', help='default: the only one in the bag')
    group.add_argument(
        '--pose-topic',
        help='PoseStamped, PoseWithCovarianceStamped or Odometry, or tf (default: a topic named '
        'like truth, else TF, else the only topic with poses in the map)',
    )
    group.add_argument('--depth-topic', help='or none (default: the one of the colour camera)')
    group.add_argument('--map-frame', help="the scene's world (default: map)")
    group.add_argument(
        '--camera-frame', help='the optical frame (default: the one that the images name)'
    )
    group.add_argument(
        '--body-frame',
        help='whose poses a pose topic holds, where its messages do not say (default: base_link)',
    )
    group.add_argument(
        '--time-offset',
        type=float,
        metavar='S',
        help='seconds added to the stamps of images to compare them with those of poses',
    )
    group.add_argument(
        '--max-gap',
        type=float,
        metavar='S',
        help='no pose is interpolated between poses that are further apart (default: 0.3)',
    )
    group.add_argument(
        '--min-translation',
        type=float,
        metavar='M',
        help='a training image is left out if the camera has moved less (default: 0.01)',
    )
    group.add_argument(
        '--min-rotation', type=float, metavar='DEG', help='and turned less than this (default: 0.5)'
    )
    group.add_argument(
        '--min-sharpness',
        type=float,
        metavar='SHARE',
        help='a training image is left out if it is less sharp than this share of the median of '
        'its neighbours, for example 0.5 (default: 0)',
    )


def open_from(args) -> Dataset:
    """The dataset that --dataset and --path name.

    Raises:
        DatasetError: there is none.
    """
    return open_dataset(args.dataset, args.path[0], **loader_options(args))


def loader_options(args) -> dict:
    """What the command line says to the loader, beside the first path.

    Raises:
        DatasetError: several paths for a source that takes one.
    """
    options = parse_options(args.option)
    for argument, option in _LOADER_OPTIONS.items():
        if getattr(args, argument) is not None:
            options[option] = getattr(args, argument)
    if len(args.path) > 1:
        if args.dataset != 'bag':
            raise DatasetError(f'--path: a {args.dataset} dataset is one folder, not several')
        options['more'] = args.path[1:]
    return options


def add_result_arguments(parser) -> None:
    """Adds --json, --html, --picture and --tum."""
    parser.add_argument('--json', metavar='FILE', help='also write the numbers and every frame')
    parser.add_argument('--html', metavar='FILE', help='also write a report to look at')
    parser.add_argument(
        '--picture', metavar='FILE.png', help='also draw the share of frames within each error'
    )
    parser.add_argument(
        '--tum',
        metavar='FILE.txt',
        help='also write the estimates as a TUM trajectory, and the truth to FILE.truth.txt '
        '(for evo_ape)',
    )


def check_result_files(args) -> None:
    """Refuses, before the work, what `report.write_results` could not write after it.

    Raises:
        SettingsError: a file's folder does not exist, or its name is that of a folder.
    """
    for name in (args.json, args.html, args.picture, args.tum):
        if name:
            writable(name)


def writable(name: str) -> Path:
    """The path of a file that is written when the work is done.

    Raises:
        SettingsError: its folder does not exist, or its name is that of a folder or too long.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            reason = 'it is a folder'
        elif not path.parent.is_dir():
            reason = f'the folder {path.parent} does not exist; create it first'
        else:
            return path
    except OSError as error:
        reason = error.strerror
    raise SettingsError(f'cannot write {path}: {reason}')


def scene_file(name: str) -> Path:
    """The path of a scene file that is written when the work is done.

    Raises:
        SettingsError: it cannot be written, or is named like a page.
    """
    path = writable(name)
    if path.suffix == '.html':
        raise SettingsError(
            f'{path} is to be a scene file; give it another ending than .html, as in '
            f'{path.with_suffix(".scene").name}'
        )
    try:
        with temporary_folder(path.parent, path.name):  # as a scene is written: under a longer name
            return path
    except OSError as error:
        raise SettingsError(f'cannot write {path}: {error.strerror}') from error
