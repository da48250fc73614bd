"""`pose_reloc evaluate`: the errors of a scene on a dataset, beside two baselines."""

from __future__ import annotations

from training.commands.arguments import add_dataset_arguments, add_result_arguments, open_from

HELP = 'Localises the images of a dataset with a scene file and prints the errors.'
EXAMPLES = """\
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess --split test
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess --json out.json
  pose_reloc evaluate --scene chess.scene --dataset 7scenes --path chess --html report.html
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    add_dataset_arguments(parser)
    parser.add_argument('--split', default='test', choices=('test', 'train'))
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1')
    add_result_arguments(parser)


def run(args) -> int:
    """Evaluates and prints the table."""
    from pose_reloc.relocalizer import Relocalizer
    from training.evaluate import evaluate
    from training.report import print_table, write_results

    relocalizer = Relocalizer.load(args.scene, args.device)
    dataset = open_from(args)
    samples = dataset.split(args.split)
    evaluation = evaluate(relocalizer, samples)
    title = f'{relocalizer.scene.header.name} on {dataset.name} ({args.split})'
    print_table(title, evaluation.summary())
    images = {frame.name: sample.load_image for frame, sample in zip(evaluation.frames, samples)}
    write_results(args, title, evaluation, relocalizer.scene, images)
    return 0
