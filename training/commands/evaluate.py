"""`pose_reloc evaluate`: the errors of a scene on a dataset, beside two baselines."""

from __future__ import annotations

from dataclasses import replace

from training.commands.arguments import (
    add_dataset_arguments,
    add_result_arguments,
    check_result_files,
    open_from,
)

HELP = (
    'Localises the images of a dataset with a scene file and prints the errors, beside those of '
    'two methods that learn nothing.'
)
EXAMPLES = """\
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess --split both
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess --no-refine
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess \\
      --json out.json --html out.html --picture out.png --tum out.txt
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    add_dataset_arguments(parser)
    parser.add_argument(
        '--split',
        default='test',
        choices=('test', 'train', 'both'),
        help='default: test; both adds a row for the training images',
    )
    parser.add_argument(
        '--no-refine',
        action='store_true',
        help='measure the regressed poses, of every image, instead of refined ones',
    )
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1')
    add_result_arguments(parser)


def run(args) -> int:
    """Evaluates and prints the table."""
    import numpy as np

    from pose_reloc import gates
    from pose_reloc.relocalizer import Relocalizer
    from pose_reloc.scene import SceneModel
    from training.evaluate import evaluate
    from training.report import print_table, write_results

    check_result_files(args)
    gate_settings = gates.OPEN if args.no_refine else gates.GateSettings()
    relocalizer = Relocalizer(
        SceneModel.load(args.scene),
        args.device,
        gate_settings=gate_settings,
        refine=not args.no_refine,
    )
    dataset = open_from(args)
    split = 'test' if args.split == 'both' else args.split
    samples = dataset.split(split)
    evaluation = evaluate(relocalizer, samples)
    if args.split == 'both':
        training = dataset.split('train')
        train = evaluate(relocalizer, training, 'training images', with_baselines=False)
        evaluation = replace(evaluation, train=train)
    alone = ', regressor alone' if args.no_refine else ''
    title = f'{relocalizer.scene.header.name} on {dataset.name} ({split}{alone})'
    print_table(title, evaluation.summary())
    images = {frame.name: sample.load_image for frame, sample in zip(evaluation.frames, samples)}
    # Truth and answers are in the dataset's frame: the training path is drawn in the same one.
    scene = relocalizer.scene.with_map_T_scene(np.eye(4))
    write_results(args, title, evaluation, scene, images)
    return 0
