"""The `pose_reloc` command: a table from sub-command to the module that does it.

A module is imported only when its command is called, so `--help` answers at once. Each module has
`HELP` (one line), `EXAMPLES` (text), `add_arguments(parser)` and `run(args) -> exit code`.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from pose_reloc.errors import PoseRelocError

COMMANDS = {
    'demo': ('training.commands.demo', 'the whole way on a built-in room, with a report'),
    'inspect': ('training.commands.inspect', 'what a dataset or bag holds and what it lacks'),
    'convert': ('training.commands.convert', 'a dataset in the layout of 7-Scenes or COLMAP'),
    'train': ('training.commands.train', 'posed images to a scene file'),
    'map': ('training.commands.map', 'landmarks for a scene that has none, or new ones'),
    'evaluate': ('training.commands.evaluate', 'errors of a scene on a dataset, with baselines'),
    'compare': ('training.commands.compare', 'every loss, trained alike, in one table'),
    'align': ('training.commands.align', "a scene's place in the robot's map"),
    'replay': ('training.commands.replay', 'a bag answered, live over ROS or offline'),
    'report': ('training.commands.report', 'several runs on one page'),
    'serve': ('training.commands.serve', 'a local page that answers pictures with poses'),
    'export': ('training.commands.export', 'the network of a scene for other programs'),
    'bench': ('training.commands.bench', 'speed and memory beside floors and alternatives'),
}

_EPILOG = """\
examples:
  pose_reloc demo
  pose_reloc inspect  --dataset bag --path my_bag
  pose_reloc train    --dataset bag --path my_bag --out office.scene
  pose_reloc train    --dataset 7scenes --path chess --out chess.scene
  pose_reloc evaluate --dataset 7scenes --path chess --split test --scene chess.scene
  pose_reloc replay   --bag another_bag --scene office.scene
  ros2 launch pose_reloc reloc.launch.py scene:=chess.scene

`pose_reloc COMMAND --help` shows the options of a command.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command. Returns its exit code: 0, or 2 for bad input or usage."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog='pose_reloc',
        description='Camera relocalization: train on posed images, answer with a pose.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='store_true', help='print the version and exit')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    chosen = next((a for a in argv if not a.startswith('-')), None)
    for name, (module_name, text) in COMMANDS.items():
        if name == chosen:
            module = import_module(module_name)
            command = commands.add_parser(
                name,
                help=text,
                description=module.HELP,
                epilog=f'examples:\n{module.EXAMPLES}',
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(command)
            command.set_defaults(execute=module.run)
        else:
            commands.add_parser(name, help=text)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # said by the command, whose usage lists the options there are
        commands.choices.get(args.command, parser).error(
            f'unrecognized arguments: {" ".join(unknown)}'
        )
    if args.version:
        from pose_reloc import __version__

        print(f'pose_reloc {__version__}')
        return 0
    if not hasattr(args, 'execute'):
        parser.print_help()
        return 2
    try:
        return args.execute(args)
    except PoseRelocError as error:
        print(f'pose_reloc {args.command}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'pose_reloc {args.command}: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
