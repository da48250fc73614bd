"""`pose_reloc replay`: a bag through the node or the relocalizer, errors and latency."""

from __future__ import annotations

from pathlib import Path

from pose_reloc.errors import SettingsError
from training.commands.arguments import add_result_arguments, check_result_files, writable

HELP = (
    'Has every image of a rosbag2 answered and compares the poses with the truth. --live plays the '
    'bag in recorded time to the node over ROS, as on a robot: latency counts, and an image that '
    'comes while the node is busy may be dropped for a newer one. --offline answers every image in '
    'order with the same code, without ROS, however long it takes.'
)
EXAMPLES = """\
  pose_reloc replay --bag my_bag --scene kitchen.scene
  pose_reloc replay --bag my_bag --scene kitchen.scene --offline --html out.html --csv out.csv
  pose_reloc replay --bag my_bag --scene kitchen.scene --rate 0.5 --json out.json
  pose_reloc replay --bag my_bag --scene kitchen.scene --truth-tum mocap.txt --align se3
  pose_reloc replay --bag my_bag --scene kitchen.scene --result-bag answers --result-images
  pose_reloc replay --bag my_bag --scene kitchen.scene --node /robot1/pose_reloc
"""
# Options that mean nothing where no node is talked to.
_LIVE_ONLY = ('rate', 'node', 'domain_id')


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--bag', required=True, metavar='DIR', help='a rosbag2, MCAP or sqlite3')
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        '--live', action='store_true', help='through the node over ROS, in recorded time (default)'
    )
    mode.add_argument('--offline', action='store_true', help='every image, in order, without ROS')
    parser.add_argument(
        '--rate', type=float, help='live: 2 plays twice as fast, 0.5 half as fast (default: 1)'
    )
    parser.add_argument('--node', help='live: use this running node (it needs use_sim_time)')
    parser.add_argument(
        '--domain-id',
        type=int,
        metavar='N',
        help='live: ROS domain of the node started, to watch it in RViz (default: a random one, so '
        'that the replay reaches no robot)',
    )
    parser.add_argument('--image-topic', help='default: the only one in the bag')
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        '--truth-topic', help='default: a pose topic named like truth, else TF map -> base'
    )
    truth.add_argument(
        '--truth-tum', metavar='FILE', help='a TUM trajectory of the base in the map instead'
    )
    parser.add_argument(
        '--align',
        choices=('se3', 'sim3'),
        help='first move the answers onto the truth as a whole, sim3: and scale them, for a truth '
        'in another frame than the map (default: they are compared as they are)',
    )
    parser.add_argument('--map-frame', default='map')
    parser.add_argument('--base-frame', default='base_link')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda')
    add_result_arguments(parser)
    parser.add_argument('--csv', metavar='FILE', help='also write a line for every image')
    parser.add_argument(
        '--result-bag', metavar='DIR', help='also write poses, truth and TF as a bag'
    )
    parser.add_argument(
        '--result-images', action='store_true', help='also copy the images into --result-bag'
    )


def run(args) -> int:
    """Replays and prints the table."""
    from training.replay import replay, write_csv, write_result_bag
    from training.report import print_table, write_file, write_results

    settings = _settings(args)
    check_result_files(args)
    if args.csv:
        writable(args.csv)
    if args.result_bag and Path(args.result_bag).exists():
        raise SettingsError(f'--result-bag {args.result_bag} exists already; remove it first')
    result = replay(Path(args.bag), Path(args.scene), settings)
    for note in result.notes:
        print(note)
    title = f'{result.scene.header.name} on {Path(args.bag).name} ({_mode(settings)})'
    evaluation = result.evaluation
    print_table(title, evaluation.summary())
    write_results(args, title, evaluation, result.scene, result.image, result.camera_T_base)
    if args.csv:
        write_file(args.csv, lambda path: write_csv(path, evaluation.frames))
    if args.result_bag:
        write_file(args.result_bag, lambda path: write_result_bag(path, result, args.result_images))
    return 0


def _settings(args):
    from training.replay import ReplaySettings

    if args.rate is not None and not args.rate > 0:
        raise SettingsError(f'--rate must be positive, got {args.rate}')
    if args.domain_id is not None and not 0 <= args.domain_id <= 232:
        raise SettingsError(f'--domain-id must lie in [0, 232], got {args.domain_id}')
    given = [name for name in _LIVE_ONLY if getattr(args, name) is not None]
    if args.offline and given:
        raise SettingsError(
            f'--{given[0].replace("_", "-")} is for --live: --offline answers every image as soon '
            'as the one before is done'
        )
    if args.result_images and not args.result_bag:
        raise SettingsError('--result-images needs --result-bag, the bag to copy them into')
    names = (
        'node', 'domain_id', 'image_topic', 'truth_topic', 'align', 'map_frame', 'base_frame',
        'device',
    )  # fmt: skip
    return ReplaySettings(
        live=not args.offline,
        rate=1.0 if args.rate is None else args.rate,
        truth_tum=Path(args.truth_tum) if args.truth_tum else None,
        **{name: getattr(args, name) for name in names},
    )


def _mode(settings) -> str:
    """How it was measured: what every number of the run depends on."""
    text = 'offline, every image'
    if settings.live:
        text = 'live over ROS 2' + (f', rate {settings.rate:g}' if settings.rate != 1 else '')
    return text + (f', answers aligned by {settings.align}' if settings.align else '')
