"""`pose_reloc demo`: the whole way on a built-in room, with a report."""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pose_reloc.errors import SettingsError

HELP = (
    'Renders a furnished room, trains a scene on it, records another walk as a bag, replays the '
    'bag to the real node over ROS 2, and writes DIR/result.json and DIR/report.html.'
)
EXAMPLES = """\
  pose_reloc demo
  pose_reloc demo --out demo --minutes 10
  pose_reloc demo --backbone-weights mobilenet_v2.pth
"""

# A robot's camera: 20 cm in front of and 1.2 m above the base, looking ahead, tilted up by 3 deg.
_TILT = np.deg2rad(3.0)
_BASE_T_CAMERA = np.array(
    [
        [0.0, np.sin(_TILT), np.cos(_TILT), 0.2],
        [-1.0, 0.0, 0.0, 0.0],
        [0.0, -np.cos(_TILT), np.sin(_TILT), 1.2],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
_FRAME_RATE_HZ = 5
_FIRST_STAMP = 1_700_000_000_000_000_000  # any; fixed, so that the bag is the same every time


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--out', default='demo', metavar='DIR', help='default: demo')
    parser.add_argument('--minutes', type=float, help='of training (default: 3)')
    parser.add_argument(
        '--backbone-weights',
        metavar='SOURCE',
        default='none',
        help='none (default: a random start, which needs no download), imagenet, or a FILE',
    )
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda')


def run(args) -> int:
    """Runs the demo."""
    from training.build import build_scene, with_landmarks
    from training.commands.map import landmark_summary
    from training.datasets import open_dataset
    from training.datasets.synthetic import SyntheticSettings, write_scene
    from training.mapping import MappingSettings
    from training.replay import ReplaySettings, replay
    from training.report import html_page, print_table
    from training.settings import load_preset

    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f'cannot write the folder {out}: {error.strerror}') from error
    settings = load_preset('demo')
    weights = args.backbone_weights
    if weights == 'none':
        settings = load_preset('demo_scratch')
    settings = settings.changed(device=args.device, backbone_weights=weights)
    if args.minutes is not None:
        settings = settings.changed(minutes=args.minutes)

    start = time.perf_counter()
    _say(1, 'a furnished room, walked through twice for training and once more for the test')
    write_scene(out / 'room', SyntheticSettings())
    dataset = open_dataset('7scenes', out / 'room')

    _say(2, f'training on {len(dataset.train)} images for {settings.minutes:g} minutes')
    scene_path = out / 'room.scene'
    scene = build_scene(dataset, settings, 'room', 'demo').scene

    _say(3, 'building the map of landmarks')
    scene = with_landmarks(scene, dataset.train, MappingSettings(device=args.device))
    scene.save(scene_path)
    print(f'  {landmark_summary(scene)}')

    _say(4, f'recording the test walk, {len(dataset.test)} images, as a bag')
    bag_path = out / 'test_bag'
    _record(bag_path, dataset.test)

    live = find_spec('rclpy') is not None
    _say(5, 'replaying the bag to reloc_node over ROS 2' if live else
            'answering the bag in this process: ROS 2 cannot be imported')  # fmt: skip
    result = replay(bag_path, scene_path, ReplaySettings(live=live, device=args.device))
    for note in result.notes:
        print(f'  {note}')
    summary = result.evaluation.summary()
    print_table(f'the test walk, answered {"by the node" if live else "without ROS"}', summary)
    (out / 'result.json').write_text(json.dumps(result.evaluation.to_json(), indent=1) + '\n')
    page = html_page(
        'pose_reloc: where was this picture taken?',
        result.evaluation,
        scene,
        result.image,
        result.camera_T_base,
        '<p>A rendered room was walked through twice to train a scene. The same room, on another '
        'walk and in another light, was then recorded as a bag'
        + (' and played to the ROS 2 node, which' if live else ', which the same code without ROS')
        + ' answered image by image with a pose.</p>',
    )
    (out / 'report.html').write_text(page, encoding='utf-8')
    minutes = (time.perf_counter() - start) / 60
    print(f'\n{_verdict(summary)} The demo took {minutes:.1f} minutes.')
    print(f'Look at {out / "report.html"}; the numbers are in {out / "result.json"}.')
    return 0


def _say(step: int, text: str) -> None:
    print(f'[{step}/5] {text}', flush=True)


def _record(path: Path, samples) -> None:
    """Writes the samples as the bag of a robot, replacing the one of an earlier demo."""
    from pose_reloc.geometry import invert_pose
    from training.datasets.bag import Recording, write_bag

    if (path / 'metadata.yaml').is_file():
        shutil.rmtree(path)
    period = 1_000_000_000 // _FRAME_RATE_HZ
    camera_T_base = invert_pose(_BASE_T_CAMERA)
    frames = (
        Recording(_FIRST_STAMP + i * period, s.load_image(), s.world_T_camera @ camera_T_base)
        for i, s in enumerate(samples)
    )
    write_bag(path, frames, samples[0].camera, _BASE_T_CAMERA)


def _verdict(summary: dict) -> str:
    names = [
        name.replace('_', ' ')
        for name, baseline in summary['baselines'].items()
        if summary['median_position_m'] is None
        or summary['median_position_m'] >= baseline['median_position_m']
        or summary['median_rotation_deg'] >= baseline['median_rotation_deg']
    ]
    if names:
        return f'The median error is NOT below that of {" and ".join(names)}.'
    return 'The median error is below both baselines, in position and in rotation.'
