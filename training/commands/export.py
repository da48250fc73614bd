"""`pose_reloc export`: the network of a scene for other programs, images in, poses out."""

from __future__ import annotations

HELP = (
    'Writes the network of a scene as an ONNX or OpenVINO model. Bytes of an image go in; out come '
    'the pose (w_t_c, c_q_w) and what its covariance is computed from: the distance from the '
    'training image most like it, and where the ten most like it were taken (similar). The formula '
    'is printed and written into the file. For other programs: the Relocalizer converts by itself '
    'what its backend asks for.'
)
EXAMPLES = """\
  pose_reloc export --scene chess.scene --out chess.onnx
  pose_reloc export --scene chess.scene --out chess.xml --format openvino
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    parser.add_argument('--out', required=True, metavar='FILE', help='the file to write')
    parser.add_argument(
        '--format', default='onnx', choices=('onnx', 'openvino'), help='default: onnx'
    )
    parser.add_argument(
        '--batch', type=int, default=1, metavar='N', help='images of a call; default: 1'
    )


def run(args) -> int:
    """Converts, writes, and says what goes in and out."""
    from pathlib import Path

    from pose_reloc.export import describe, write_onnx, write_openvino
    from pose_reloc.scene import SceneModel

    scene = SceneModel.load(args.scene)
    write = {'onnx': write_onnx, 'openvino': write_openvino}[args.format]
    write(scene, Path(args.out).expanduser(), args.batch)
    print(f'wrote {args.out}')
    for name, text in describe(scene, args.batch).items():
        print(f'  {name}: {text}')
    return 0
