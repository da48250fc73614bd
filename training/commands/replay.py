"""`pose_reloc replay`: a bag through the real node, errors and latency."""

from __future__ import annotations

from pathlib import Path

from pose_reloc.errors import SettingsError
from training.commands.arguments import add_result_arguments

HELP = (
    'Plays a rosbag2 to the relocalization node in recorded time and compares the poses that come '
    'back over ROS with the truth in the bag. Starts a node of its own unless --node is given.'
)
EXAMPLES = """\
  pose_reloc replay --bag my_bag --scene kitchen.scene
  pose_reloc replay --bag my_bag --scene kitchen.scene --rate 2 --json out.json --html out.html
  pose_reloc replay --bag my_bag --scene kitchen.scene --image-topic /front/image_raw
  pose_reloc replay --bag my_bag --scene kitchen.scene --node /robot1/pose_reloc
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--bag', required=True, metavar='DIR', help='a rosbag2, MCAP or sqlite3')
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    parser.add_argument('--rate', type=float, default=1.0, help='2 plays twice as fast')
    parser.add_argument('--image-topic', help='default: the only one in the bag')
    parser.add_argument(
        '--truth-topic', help='default: a pose topic named like truth, else TF map -> base'
    )
    parser.add_argument('--map-frame', default='map')
    parser.add_argument('--base-frame', default='base_link')
    parser.add_argument('--node', help='use this running node (it needs use_sim_time)')
    parser.add_argument(
        '--domain-id',
        type=int,
        metavar='N',
        help='ROS domain of the node started, to watch it in RViz (default: a random one, so that '
        'the replay reaches no robot)',
    )
    parser.add_argument('--device', default='auto', help='of the node: auto (default), cpu, cuda')
    add_result_arguments(parser)


def run(args) -> int:
    """Replays and prints the table."""
    from pose_reloc.scene import SceneModel
    from training.replay import ReplaySettings, replay
    from training.report import print_table, write_results

    if not args.rate > 0:
        raise SettingsError(f'--rate must be positive, got {args.rate}')
    if args.domain_id is not None and not 0 <= args.domain_id <= 232:
        raise SettingsError(f'--domain-id must lie in [0, 232], got {args.domain_id}')
    names = (
        'rate', 'image_topic', 'truth_topic', 'map_frame', 'base_frame', 'node', 'domain_id',
        'device',
    )  # fmt: skip
    settings = ReplaySettings(**{name: getattr(args, name) for name in names})
    result = replay(Path(args.bag), Path(args.scene), settings)
    for note in result.notes:
        print(note)
    scene = SceneModel.load(args.scene)
    title = f'{scene.header.name} on {Path(args.bag).name} (replayed over ROS 2)'
    print_table(title, result.evaluation.summary())
    write_results(args, title, result.evaluation, scene, result.image, result.camera_T_base)
    return 0
