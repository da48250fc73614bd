"""`pose_reloc convert`: any dataset in a layout that other programs read."""

from __future__ import annotations

from pathlib import Path

from training.commands.arguments import add_dataset_arguments, open_from

HELP = 'Writes a dataset, or bags, in the layout of 7-Scenes or of COLMAP.'
EXAMPLES = """\
  pose_reloc convert --dataset bag --path my_bag --out my_model --to colmap
  pose_reloc convert --dataset bag --path monday --test-path friday --out office --to 7scenes
  pose_reloc convert --dataset tum --path rgbd_dataset_freiburg1_room --out room --to 7scenes
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    add_dataset_arguments(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='a folder that does not exist')
    parser.add_argument(
        '--to',
        required=True,
        choices=('7scenes', 'colmap'),
        help='7scenes keeps depth; colmap keeps points and lens distortion',
    )


def run(args) -> int:
    """Opens and writes."""
    from training.convert import write_colmap, write_seven_scenes

    dataset = open_from(args)
    for note in [*dataset.notes, *dataset.warnings]:
        print(f'note: {note}')
    write = {'7scenes': write_seven_scenes, 'colmap': write_colmap}[args.to]
    write(dataset, Path(args.out))
    print(f'wrote {args.out}: {len(dataset.train)} training and {len(dataset.test)} test images')
    return 0
