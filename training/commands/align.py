"""`pose_reloc align`: how the frame of a scene lies in the robot's map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

HELP = (
    'Estimates map_T_scene, the transform from the frame that a scene was trained in to the map of '
    'the robot, from poses of the same drive in both. Without --scene-poses the scene itself finds '
    'the images of the bag.'
)
EXAMPLES = """\
  pose_reloc align --scene kitchen.scene --map-poses my_bag --write
  pose_reloc align --scene kitchen.scene --map-poses my_bag --map-topic /amcl_pose
  pose_reloc align --scene-poses slam.txt --map-poses robot.txt
  pose_reloc align --scene-poses slam_bag --map-poses robot_bag --scene kitchen.scene --write
"""


def add_arguments(parser) -> None:
    """Adds this command's options."""
    parser.add_argument(
        '--map-poses',
        required=True,
        metavar='SOURCE',
        help='poses of the robot in its map: a bag (TF or a topic), or a TUM file',
    )
    parser.add_argument(
        '--scene-poses',
        metavar='SOURCE',
        help='poses of the same body at the same times in the frame of the scene: a bag, or a TUM '
        'file (default: the images of the bag are localized in --scene)',
    )
    parser.add_argument('--scene', metavar='FILE', help='the scene file')
    parser.add_argument('--write', action='store_true', help='write the result into --scene')
    parser.add_argument(
        '--map-topic', help='of the poses in a bag (default: one named like truth, else TF)'
    )
    parser.add_argument('--scene-topic', help='the same for --scene-poses')
    parser.add_argument('--image-topic', help='default: the only one in the bag')
    parser.add_argument('--map-frame', default='map')
    parser.add_argument('--base-frame', default='base_link')
    parser.add_argument(
        '--max-gap',
        type=float,
        default=1.0,
        metavar='S',
        help='poses in the map are interpolated if no further apart in time (default: 1.0 s)',
    )
    parser.add_argument(
        '--inlier-m', type=float, default=0.3, help='pairs that agree differ by less'
    )
    parser.add_argument('--inlier-deg', type=float, default=10.0, help='the same for rotations')
    parser.add_argument(
        '--sim3', action='store_true', help='also scale the scene; such a result cannot be written'
    )
    parser.add_argument('--device', default='auto', help='of --scene: auto (default), cpu, cuda')


def run(args) -> int:
    """Aligns, prints, and writes if asked."""
    from pose_reloc.errors import SettingsError
    from pose_reloc.scene import SceneModel
    from training.align import AlignError, AlignSettings, align

    if not (args.scene or args.scene_poses):
        raise SettingsError('give --scene, whose poses are found by localizing, or --scene-poses')
    if args.write and not args.scene:
        raise SettingsError('--write needs --scene, the file to write into')
    if args.write and args.sim3:
        raise SettingsError('--write and --sim3 exclude each other: a scene file has no scale')
    for name in ('inlier_m', 'inlier_deg', 'max_gap'):
        if not getattr(args, name) > 0:
            raise SettingsError(f'--{name.replace("_", "-")} must be positive')
    truth = replace(_poses(args.map_poses, args.map_topic, args), max_gap_s=args.max_gap)
    if args.scene_poses:
        found = _trajectory(_poses(args.scene_poses, args.scene_topic, args))
    else:
        found = _localized(args)
    pairs = [(pose, truth.at(stamp)) for stamp, pose in found]
    pairs = [pair for pair in pairs if pair[1] is not None]
    print(f'{len(found)} poses in the scene, {len(pairs)} of them at times known to {truth.source}')
    if not pairs:
        raise AlignError('no pose of the scene has a time for which the map has one')
    settings = AlignSettings(args.inlier_m, args.inlier_deg, args.sim3)
    result = align(*map(np.array, zip(*pairs)), settings)
    _print(result)
    if args.write:
        SceneModel.load(args.scene).with_map_T_scene(result.map_T_scene).save(args.scene)
        print(f'written into {args.scene}')
    return 0


def _poses(source: str, topic: str | None, args):
    """The `Truth` of a bag or of a TUM file."""
    from training.align import AlignError, read_trajectory
    from training.datasets.bag import Bag

    if Path(source).suffix in ('.txt', '.csv', '.tum'):
        return read_trajectory(Path(source))
    with Bag(source) as bag:
        found = bag.truth(args.map_frame, args.base_frame, topic)
    if found is None:
        raise AlignError(
            f'{source} has no transforms {args.map_frame} -> {args.base_frame} on TF: name its '
            'frames with --map-frame and --base-frame, or a topic of poses with --map-topic'
        )
    return found


def _trajectory(truth) -> list[tuple[int, np.ndarray]]:
    """(nanoseconds, pose) of every recorded moment at which all of TF's transforms are known."""
    found = [(stamp, truth.at(stamp)) for stamp in truth.stamps()]
    return [(stamp, pose) for stamp, pose in found if pose is not None]


def _localized(args) -> list[tuple[int, np.ndarray]]:
    """(nanoseconds, scene_T_base) of every image of the bag that the scene knows."""
    from tqdm import tqdm

    from pose_reloc.relocalizer import Relocalizer, Status
    from pose_reloc.ros.messages import MessageError, camera_for_image
    from training.datasets.bag import Bag

    relocalizer = Relocalizer.load(args.scene, args.device)
    found = []
    with Bag(args.map_poses) as bag:
        topic = bag.image_topic(args.image_topic).name
        camera = bag.camera(topic) or relocalizer.scene.header.camera
        camera_T_base = bag.transforms().lookup(bag.frame_id(topic), args.base_frame)
        for message in tqdm(bag.messages([topic]), 'localizing', unit='img', disable=None):
            try:
                image = bag.image(message)
            except MessageError:
                continue
            estimate = relocalizer.localize(image, camera_for_image(camera, image))
            if estimate.status is not Status.LOST:
                found.append((message.stamp, estimate.world_T_camera @ camera_T_base))
    return found


def _print(result) -> None:
    """The result, and how far to trust it."""
    from pose_reloc.ros.parameters import transform_text
    from training.align import SUSPICIOUS_SCALE

    inliers = result.residual_N6[result.inliers]
    metres = np.linalg.norm(inliers[:, :3], axis=1)
    degrees = np.rad2deg(np.linalg.norm(inliers[:, 3:], axis=1))
    sigma = np.sqrt(np.diag(result.covariance_66))
    print(f'agreeing pairs   {result.inliers.sum()} of {len(result.inliers)}')
    print(f'residuals        median {np.median(metres):.3f} m, {np.median(degrees):.2f} deg; '
          f'largest {metres.max():.3f} m, {degrees.max():.2f} deg')  # fmt: skip
    print(f'sigma            x y z {_row(sigma[:3], 4)} m, about x y z '
          f'{_row(np.rad2deg(sigma[3:]), 3)} deg')  # fmt: skip
    print(f'scale            {result.scale:.4f} ({"" if result.with_scale else "not "}applied)')
    if abs(result.scale - 1) > SUSPICIOUS_SCALE and not result.with_scale:
        print('                 scene and map differ in scale: one of them is not in metres')
    print('as a parameter of the node, or an argument of reloc.launch.py (x y z qx qy qz qw):')
    print(f'map_T_scene:="{transform_text(result.map_T_scene)}"')


def _row(values, digits: int) -> str:
    return ' '.join(f'{value:.{digits}f}' for value in values)
