"""Which topics and frames of a bag to use: what is asked for, or the only sensible choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, CameraError, PoseRelocError
from pose_reloc.ros.messages import (
    MessageError,
    camera_for_image,
    camera_from_info,
    is_rectified,
    plain_name,
)
from pose_reloc.ros.transforms import TransformError
from training.datasets.bag.contents import BagContents, ImageTopic
from training.datasets.bag.depth import depth_from_message
from training.datasets.bag.poses import MAX_GAP_S, PoseTopic, Truth, topic_named_truth
from training.datasets.bag.reading import Bag, camera_info_topic
from training.datasets.calibration import parse_intrinsics

_MOST = 1e9  # seconds (30 years), metres, ...: more overflows when it is counted in nanoseconds


@dataclass(frozen=True)
class BagSettings:
    """What to use of a bag. None lets the bag decide where there is only one choice."""

    image_topic: str | None = None
    pose_topic: str | None = None  # 'tf' for TF
    depth_topic: str | None = None  # 'none' for no depth
    map_frame: str = 'map'  # the world of the scene
    camera_frame: str | None = None  # optical axes; None: the frame that the images name
    body_frame: str = 'base_link'  # whose poses a pose topic holds, where it does not say
    intrinsics: str | Sequence[float] | None = None  # fx, fy, cx, cy instead of camera_info
    time_offset: float = 0.0  # seconds added to the stamps of images to compare them with poses
    max_gap: float = MAX_GAP_S  # seconds between poses that are still interpolated
    min_translation: float = 0.01  # metres that the camera moves between two training images,
    min_rotation: float = 0.5  # or degrees that it turns
    min_sharpness: float = 0.0  # of a training image beside the median of its neighbours; 0 for any

    def __post_init__(self):
        for name in ('max_gap', 'min_translation', 'min_rotation', 'min_sharpness'):
            if not 0 <= getattr(self, name) <= _MOST:
                raise BagError(f'{name} cannot be {getattr(self, name)}; give 0 to {_MOST:g}')
        if not abs(self.time_offset) <= _MOST:
            raise BagError(
                f'time_offset cannot be {self.time_offset}; give -{_MOST:g} to {_MOST:g} seconds'
            )


@dataclass(frozen=True)
class Picked:
    """What to use of a bag; None where that is missing or cannot be told.

    Attributes:
        images: the colour images.
        camera: that took them.
        camera_source: where its intrinsics are from, for people.
        frame: its optical frame.
        truth: its poses in the map.
        world: the frame of these poses, as the bag names it; empty if it does not.
        depth: depth images, None also where there are none.
        problems: what is missing, for people; empty if the bag can be used.
    """

    images: ImageTopic | None = None
    camera: Camera | None = None
    camera_source: str = ''
    frame: str | None = None
    truth: Truth | None = None
    world: str = ''
    depth: PickedDepth | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class PickedDepth:
    """Depth images and how they relate to the colour images.

    Attributes:
        images: the topic.
        camera: that took them.
        color_T_depth: pose (4, 4) of that camera in the colour camera.
    """

    images: ImageTopic
    camera: Camera
    color_T_depth: np.ndarray


def pick(contents: BagContents, settings: BagSettings) -> Picked:
    """Everything at once, so that a user learns at once of everything that is missing.

    Raises:
        BagError: the bag cannot be opened.
    """
    problems = []

    def attempt(function, *args):
        try:
            return function(*args)
        except PoseRelocError as error:
            problems.append(str(error))
            return None

    with Bag(contents.path) as bag:
        images = attempt(_pick_images, contents, bag, settings)
        if images is None:
            return Picked(problems=tuple(problems))
        camera = attempt(_pick_camera, contents, bag, images, settings)
        frame = attempt(_pick_camera_frame, contents, images, settings)
        truth = frame and attempt(_pick_poses, contents, frame, settings)
        depth = None
        if camera and frame:
            depth = attempt(_pick_depth, contents, bag, images, camera, frame, settings)
    source = 'as given' if settings.intrinsics else camera_info_topic(images.topic.name)
    on_topic = contents.poses.get(truth.source) if truth else None
    world = on_topic.frame if on_topic else settings.map_frame
    return Picked(images, camera, source, frame, truth, world, depth, tuple(problems))


def _pick_images(contents: BagContents, bag: Bag, settings: BagSettings) -> ImageTopic:
    images = contents.images[bag.image_topic(settings.image_topic).name]
    if not images.times:
        raise BagError(f'no image on {images.topic.name} of {contents.path} can be read')
    return images


def _pick_camera(
    contents: BagContents, bag: Bag, images: ImageTopic, settings: BagSettings
) -> Camera:
    name = images.topic.name
    size = _image_size(bag, name)
    if settings.intrinsics is not None:
        return Camera(*size, *parse_intrinsics(settings.intrinsics))
    info = contents.info_of(name)
    info_topic = camera_info_topic(name)
    if info is None:
        raise BagError(
            f'{contents.path} has no calibration of its camera: nothing on {info_topic}. Record '
            'that topic too, or give --camera FX FY CX CY (pixels, of undistorted images)'
        )
    try:
        return _camera_of_size(camera_from_info(info, is_rectified(name)), size)
    except CameraError as error:
        raise BagError(f'{contents.path}, {info_topic}: {error}') from error


def _image_size(bag: Bag, topic: str) -> tuple[int, int]:
    """(width, height) of the first image that is not damaged."""
    problem = None
    for message in bag.messages([topic]):
        try:
            height, width = bag.image(message).shape[:2]
            return width, height
        except MessageError as error:
            problem = error
    raise BagError(f'{bag.path} has no whole image on {topic}: {problem}')


def _camera_of_size(camera: Camera, size: tuple[int, int]) -> Camera:
    return camera_for_image(camera, np.empty((size[1], size[0], 0)))


def _pick_camera_frame(contents: BagContents, images: ImageTopic, settings: BagSettings) -> str:
    frame = (settings.camera_frame or images.frame).removeprefix('/')
    if not frame:
        raise BagError(
            f'the images on {images.topic.name} of {contents.path} name no frame: give '
            f'--camera-frame. Frames on TF: {_names(contents.tree.frames())}'
        )
    return frame


def _pick_poses(contents: BagContents, camera_frame: str, settings: BagSettings) -> Truth:
    """From a topic named like truth, else from TF, else from the only topic with poses."""
    poses = {name: topic for name, topic in contents.poses.items() if topic.frame is not None}
    chosen = settings.pose_topic
    if chosen is None:
        chosen = topic_named_truth(poses)
    if chosen is None and _on_tf(contents, settings.map_frame, camera_frame):
        chosen = 'tf'
    if chosen is None:
        in_map = [name for name, topic in poses.items() if topic.frame == settings.map_frame]
        if len(in_map) > 1:
            raise BagError(
                f'{contents.path} has poses in {settings.map_frame} on several topics: '
                f'{_names(in_map)}; choose --pose-topic'
            )
        chosen = in_map[0] if in_map else None
    if chosen is None:
        raise BagError(_no_poses(contents, camera_frame, settings.map_frame))
    if chosen == 'tf':
        return _tf_poses(contents, settings.map_frame, camera_frame, settings.max_gap)
    if chosen not in poses:
        raise BagError(
            f'{contents.path} has no poses on {chosen}; topics with poses: {_names(poses)}'
        )
    carried = _mounting(contents, poses[chosen], camera_frame, settings)
    return poses[chosen].truth(settings.max_gap, carried)


def _tf_poses(contents: BagContents, map_frame: str, camera_frame: str, max_gap: float) -> Truth:
    if not _on_tf(contents, map_frame, camera_frame):
        raise BagError(_no_poses(contents, camera_frame, map_frame))
    source = f'TF {map_frame} -> {camera_frame}'
    return Truth(source, contents.tree, map_frame, camera_frame, max_gap)


def _mounting(
    contents: BagContents, poses: PoseTopic, camera_frame: str, settings: BagSettings
) -> Truth | None:
    """The camera on the body that the poses are of; None where they are of the camera itself."""
    body = poses.child or settings.body_frame
    if body == camera_frame:
        return None
    if not _on_tf(contents, body, camera_frame):
        # What a message says of its child goes before --body-frame.
        remedy = f'--camera-frame {body}' if poses.child else f'--body-frame {camera_frame}'
        raise BagError(
            f'the poses on {poses.name} of {contents.path} are those of {body}, and TF does not '
            f'say how {camera_frame} is mounted on it. Record /tf and /tf_static too, or give '
            f'{remedy} if they are the poses of the camera itself'
        )
    return Truth('TF', contents.tree, body, camera_frame, settings.max_gap)


def _no_poses(contents: BagContents, camera_frame: str, map_frame: str) -> str:
    text = f'{contents.path} does not say where the camera was: '
    frames = contents.tree.frames()
    if not frames:
        text += 'nothing on TF'
    elif missing := [name for name in (map_frame, camera_frame) if name not in frames]:
        text += f'TF has no frame {_names(missing)} (it has {_names(frames)})'
    else:
        text += f'TF does not connect {map_frame} with {camera_frame}'
    text += f', and no topic has poses in {map_frame}'
    others = [f'{name} in {t.frame}' for name, t in contents.poses.items() if t.frame is not None]
    if others:
        text += f' ({", ".join(others)}; choose one with --pose-topic)'
    return f'{text}. Record while a SLAM or localization node runs, or give --map-frame'


def _pick_depth(
    contents: BagContents,
    bag: Bag,
    images: ImageTopic,
    camera: Camera,
    camera_frame: str,
    settings: BagSettings,
) -> PickedDepth | None:
    """The depth images of the colour camera's own frame, or the only ones there are."""
    chosen = settings.depth_topic
    if chosen == 'none':
        return None
    sizes = _depth_sizes(contents, bag, chosen)
    if not sizes:
        return None
    name = chosen or _depth_topic(contents, camera_frame, sizes)
    depth = contents.images[name]
    registered = depth.frame in (camera_frame, images.frame)
    info = contents.info_of(name)
    try:
        if info is not None:
            own = camera_from_info(info, is_rectified(name))
        elif registered:
            own = camera
        else:
            raise BagError(
                f'{contents.path} has no calibration of the depth camera: nothing on '
                f'{camera_info_topic(name)}. Record that topic too, or give --depth-topic none'
            )
        color_T_depth = np.eye(4)
        if not registered:
            color_T_depth = contents.tree.lookup(camera_frame, depth.frame)
        return PickedDepth(depth, _camera_of_size(own, sizes[name]), color_T_depth)
    except (CameraError, TransformError) as error:
        raise BagError(
            f'{contents.path}, depth on {name}: {error}. Give --depth-topic none to do without'
        ) from error


def _depth_sizes(contents: BagContents, bag: Bag, chosen: str | None) -> dict[str, tuple[int, int]]:
    """Depth topic to the size of its images: of the chosen one, or of all named like depth.

    Raises:
        BagError: the chosen one holds no depth.
    """
    sizes, problem = {}, 'there are no images on it'
    for name, images in contents.images.items():
        if name != chosen if chosen else not images.topic.is_depth:
            continue
        for message in bag.messages([name]):
            try:
                height, width = depth_from_message(bag.decode(message)).shape
                sizes[name] = (width, height)
            except MessageError as error:
                problem = error
                continue
            break
    if chosen and not sizes:
        raise BagError(
            f'{contents.path} has no depth on {chosen}: {problem}; image topics: '
            f'{_names(contents.images)}. Give --depth-topic none to do without'
        )
    return sizes


def _depth_topic(contents: BagContents, camera_frame: str, names) -> str:
    registered = [name for name in names if contents.images[name].frame == camera_frame]
    choice = registered or list(names)
    if len({plain_name(name) for name in choice}) > 1:  # raw and compressed are one choice
        raise BagError(
            f'{contents.path} has several depth topics: {_names(choice)}; choose --depth-topic, '
            'or none'
        )
    return choice[0]


def _on_tf(contents: BagContents, target: str, source: str) -> bool:
    known = {target, source} <= contents.tree.frames()
    return known and contents.tree.can_connect(target, source)


def _names(names) -> str:
    return ', '.join(sorted(names)) or 'none'
