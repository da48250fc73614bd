"""`pose_reloc serve`: a local page that answers a picture with the place where it was taken."""

from __future__ import annotations

import sys

from pose_reloc.errors import SettingsError, install_hint
from training.datasets import LOADERS, Sample, open_dataset
from training.datasets.options import add_option_argument, parse_options

HELP = (
    'Starts a page on this machine where a person drops a picture, or uses a camera, and sees '
    'where it was taken, the keyframe it was matched with, and how far to trust that.'
)
EXAMPLES = """\
  pose_reloc serve --scene chess.scene
  pose_reloc serve --scene chess.scene --images 7scenes:chess
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    parser.add_argument('--host', default='127.0.0.1', help='default: 127.0.0.1, this machine only')
    parser.add_argument('--port', type=int, default=8080, help='default: 8080; 0: any free one')
    parser.add_argument(
        '--images',
        metavar='KIND:DIR',
        help='the dataset of the training images, such as 7scenes:chess, to show the keyframes '
        f'that a picture is matched with; KIND is one of {", ".join(LOADERS)}',
    )
    add_option_argument(parser)
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1')


def run(args) -> int:
    """Serves until Ctrl-C."""
    try:
        from training.serve.app import is_loopback, serve
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != 'aiohttp':
            raise
        raise SettingsError(
            f'the page needs the package aiohttp: {install_hint("aiohttp", "pillow")}'
        ) from error
    from pose_reloc.relocalizer import Relocalizer
    from training.serve.localizer import Localizer

    if not 0 <= args.port <= 65535:
        raise SettingsError(f'--port must lie in [0, 65535], got {args.port}')
    relocalizer = Relocalizer.load(args.scene, args.device)
    localizer = Localizer(relocalizer, _training_images(args))
    relocalizer.warm_up()
    if not is_loopback(args.host):
        print(
            f'warning: everyone who can reach {args.host} can use this page: it has no password '
            'and no encryption, and browsers allow the camera only on this machine itself',
            file=sys.stderr,
        )
    serve(localizer, args.host, args.port)
    return 0


def _training_images(args) -> list[Sample] | None:
    """The images that --images names."""
    if args.images is None:
        if args.option:
            raise SettingsError('--option is of a dataset: give --images too')
        return None
    kind, colon, path = args.images.partition(':')
    if not colon:
        raise SettingsError(f'--images {args.images!r}: expected KIND:DIR, such as 7scenes:chess')
    return open_dataset(kind, path, **parse_options(args.option)).split('train')
