"""`pose_reloc train`: posed images to a scene file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pose_reloc.errors import DatasetError, SettingsError
from training.commands.arguments import add_dataset_arguments, open_from, scene_file
from training.commands.map import (
    add_mapping_arguments,
    landmark_summary,
    mapping_settings_from,
)

if TYPE_CHECKING:  # torch, which --help does not wait for
    from training.settings import TrainSettings

HELP = 'Trains a scene model on the training split of a dataset and writes one scene file.'
EXAMPLES = """\
  pose_reloc train --dataset 7scenes --path chess --out chess.scene
  pose_reloc train --dataset 7scenes --path chess --out chess.scene --minutes 5
  pose_reloc train --dataset 7scenes --path chess --out chess.scene --preset paper --device cuda
  pose_reloc train --dataset 7scenes --path chess --out chess.scene \\
      --backbone-weights mobilenet_v2.pth
  pose_reloc train --dataset 7scenes --path chess --out chess.scene \\
      --loss posenet --set loss.beta=250 --set network.rotation=6d --set views.sigma_m=0.3
  pose_reloc train --dataset bag --path my_bag --out office.scene
  pose_reloc train --dataset bag --path monday tuesday --test-path friday --out office.scene
  pose_reloc train --dataset 7scenes --path chess --out chess.scene --resume
  torchrun --nproc_per_node=4 -m pose_reloc.cli train --dataset 7scenes ...
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    add_dataset_arguments(parser)
    parser.add_argument('--out', required=True, metavar='FILE', help='the scene file to write')
    parser.add_argument(
        '--preset', default='fast', help='fast (minutes, default), paper (as published), or a YAML'
    )
    parser.add_argument('--minutes', type=float, help='stop after this time')
    parser.add_argument('--epochs', type=int, help='stop after this many epochs instead')
    parser.add_argument('--loss', help='local_homography (default), homoscedastic, posenet, ...')
    parser.add_argument(
        '--depth-range',
        nargs=2,
        type=float,
        metavar=('NEAR', 'FAR'),
        help='metres, for global_homography on a dataset without depth',
    )
    parser.add_argument('--backbone', help='any torchvision classification network')
    parser.add_argument(
        '--backbone-weights',
        metavar='SOURCE',
        help='imagenet (torchvision downloads them), none, or a FILE with a state dict '
        '(default: imagenet, or none with a note where they cannot be downloaded)',
    )
    parser.add_argument('--short-side', type=int, metavar='PIXELS', help="of the network's input")
    parser.add_argument('--batch', type=int)
    parser.add_argument('--learning-rate', type=float)
    parser.add_argument('--device', help='auto (default), cpu, cuda, cuda:1')
    parser.add_argument('--precision', help='auto (default), float32, bfloat16, float16')
    parser.add_argument('--compile', help='torch.compile: auto (default), on, off')
    parser.add_argument('--seed', type=int)
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='any other setting of the preset, such as loss.beta=250; may be given several times',
    )
    parser.add_argument(
        '--run', metavar='DIR', help='checkpoints, metrics, curves, TensorBoard (default: OUT.run)'
    )
    parser.add_argument(
        '--no-map', action='store_true', help='no landmarks: poses stay those of the regressor'
    )
    add_mapping_arguments(parser)
    parser.add_argument(
        '--no-report', action='store_true', help='do not evaluate the scene when it is done'
    )
    parser.add_argument('--resume', action='store_true', help='continue the run of that folder')
    parser.add_argument('--name', help='name of the scene (default: the name of --out)')


# The setting that each option stands for.
_OPTIONS = {
    'minutes': 'minutes',
    'epochs': 'epochs',
    'loss': 'loss.name',
    'depth_range': 'loss.depth_range',
    'backbone': 'network.backbone',
    'backbone_weights': 'backbone_weights',
    'short_side': 'short_side',
    'batch': 'batch',
    'learning_rate': 'learning_rate',
    'device': 'device',
    'precision': 'precision',
    'compile': 'compile',
    'seed': 'seed',
}


def settings_from(args) -> TrainSettings:
    """The preset with the changes that the command line asks for."""
    from training.settings import load_preset, parse_assignments

    if args.epochs is not None and args.minutes is not None:
        raise SettingsError('give --epochs or --minutes, not both')
    values = parse_assignments(args.set)
    if args.epochs is not None:
        values['minutes'] = None
    for option, setting in _OPTIONS.items():
        if getattr(args, option) is not None:
            values[setting] = getattr(args, option)
    return load_preset(args.preset).with_values(values)


def run(args) -> int:
    """Trains and writes the scene file."""
    from training.build import build_scene, check_origin, with_fitting_batch, with_landmarks
    from training.mapping import build_map
    from training.processes import leads, local_device
    from training.seen_points import lacks_depth, with_seen_points
    from training.settings import parse_assignments

    out = scene_file(args.out)
    settings = settings_from(args)
    device = local_device(settings.device)
    mapping = None if args.no_map else mapping_settings_from(args, device)
    dataset = open_from(args)
    check_origin(dataset.split('train'))  # before anything that takes minutes
    if leads():
        for note in [*dataset.notes, *dataset.warnings]:
            print(f'note: {note}')
    if args.batch is None and 'batch' not in parse_assignments(args.set):
        settings = with_fitting_batch(settings, dataset.train)
    if leads():
        print(
            f'{dataset.name}: {len(dataset.train)} training images, {settings.network.backbone}, '
            f'{settings.loss.name} loss, {_budget(settings)}'
        )
    mapped = None
    if mapping and lacks_depth(dataset.train, settings.loss):
        if leads():
            print('no depth: landmarks come first, to know how far away things are')
        mapped = build_map(dataset.train, mapping)
        dataset = replace(dataset, train=with_seen_points(dataset.train, mapped.landmarks))
    folder = Path(args.run).expanduser() if args.run else out.with_name(f'{out.name}.run')
    name, command = args.name or out.name.removesuffix('.scene'), ' '.join(sys.argv[1:])
    try:
        built = build_scene(dataset, settings, name, command, folder, args.resume)
    except KeyboardInterrupt:
        print(f'\nstopped; the same command with --resume goes on from {folder}', file=sys.stderr)
        raise
    if built is None:
        return 0
    scene, recipe = built.scene, built.result.recipe
    scene.save(out)  # before mapping, which may be interrupted
    if mapping:
        try:
            scene = with_landmarks(scene, dataset.train, mapping, mapped)
            scene.save(out)
            print(landmark_summary(scene))
        except DatasetError as error:
            print(f'note: the scene has no landmarks, poses stay those of the regressor: {error}')
    print(
        f'wrote {out} ({out.stat().st_size / 1e6:.1f} MB): {recipe["epochs"]} epochs in '
        f'{recipe["seconds"] / 60:.1f} min, {recipe["images_per_second"]:.0f} images/s on '
        f'{recipe["device"]} in {recipe["precision"]}'
    )
    last = built.result.history[-1]
    if 'median_position_m' in last:
        print(
            f'held-out frames ({recipe["images_held_out"]}), regressor alone: median '
            f'{last["median_position_m"]:.2f} m, {last["median_rotation_deg"]:.1f} deg'
        )
    else:
        print('no held-out frames: regressed poses are stated as uncertain as any of the scene')
    if not args.no_report:
        _report(scene, dataset, settings, out, folder)
    return 0


def _report(scene, dataset, settings: TrainSettings, out: Path, folder: Path) -> None:
    """Evaluates the scene, prints the table and writes a page beside the scene file."""
    from training.report import print_table, write_results
    from training.verdict import verdict

    found = verdict(scene, dataset, settings.validation, settings.device)
    if found is None:
        print('no report: there is no test split, and nothing was held out')
        return
    print_table(found.title, found.evaluation.summary())
    page = out.with_name(f'{out.name.removesuffix(".scene")}.html')
    numbers = folder / 'evaluation.json'
    files = SimpleNamespace(html=page, json=numbers, picture=None, tum=None)
    write_results(files, found.title, found.evaluation, found.scene, found.images)


def _budget(settings: TrainSettings) -> str:
    if settings.minutes is None:
        return f'{settings.epochs} epochs'
    return f'{settings.minutes:g} minutes'
