"""Options that several commands share."""

from __future__ import annotations

from training.datasets import LOADERS, Dataset, open_dataset
from training.datasets.options import add_option_argument, parse_options


def add_dataset_arguments(parser) -> None:
    """Adds --dataset and --path."""
    parser.add_argument(
        '--dataset', required=True, metavar='KIND', help=f'one of {", ".join(LOADERS)}'
    )
    parser.add_argument('--path', required=True, metavar='DIR', help='the folder of the dataset')
    add_option_argument(parser)


def open_from(args) -> Dataset:
    """The dataset that --dataset and --path name.

    Raises:
        DatasetError: there is none.
    """
    return open_dataset(args.dataset, args.path, **parse_options(args.option))


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
