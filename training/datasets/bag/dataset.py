"""A dataset of the posed images of one or more bags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, DatasetError
from pose_reloc.ros.messages import MessageError
from pose_reloc.ros.transforms import TransformError, TransformGapError
from training.datasets import Dataset, Sample
from training.datasets.bag.contents import read_contents
from training.datasets.bag.depth import BagDepth
from training.datasets.bag.picking import (
    BagSettings,
    Picked,
    PickedDepth,
    pick,
)
from training.datasets.bag.poses import MAX_GAP_S
from training.datasets.bag.reading import largest_file, shared_bag
from training.datasets.bag.selection import moved, sharp, sharpness_of_all
from training.datasets.jumps import JUMP

_DEPTH_TOLERANCE_S = 0.02  # an image and its depth are at most this far apart


@dataclass(frozen=True)
class BagImage:
    """Reads one image of a bag when it is called.

    Attributes:
        path, topic: where it is.
        time: when it was recorded, nanoseconds.
        stamp: in its header, nanoseconds.
    """

    path: Path
    topic: str
    time: int
    stamp: int

    def __call__(self) -> np.ndarray:
        """uint8 RGB (H, W, 3).

        Raises:
            DatasetError: it is damaged.
        """
        try:
            bag = shared_bag(self.path)
            return bag.image(bag.message_at(self.topic, self.time, self.stamp))
        except (BagError, MessageError) as error:
            text = f'{self.path}, {self.topic} at {self.stamp}: {error}'
            if isinstance(error, MessageError):
                text += '. Leave such images out of training with --min-sharpness 0.01'
            raise DatasetError(text) from error


def load(
    path: Path,
    more: str | Path | Sequence[Path] = (),
    test_path: str | Path | Sequence[Path] = (),
    image_topic: str | None = None,
    pose_topic: str | None = None,
    depth_topic: str | None = None,
    map_frame: str = 'map',
    camera_frame: str | None = None,
    body_frame: str = 'base_link',
    intrinsics: str | Sequence[float] | None = None,
    time_offset: float = 0.0,
    max_gap: float = MAX_GAP_S,
    min_translation: float = 0.01,
    min_rotation: float = 0.5,
    min_sharpness: float = 0.0,
) -> Dataset:
    """Posed images of bags; of the test bags every whole image with a pose.

    Args:
        path: a bag to train on.
        more: further ones.
        test_path: bags of the test split.
        image_topic, pose_topic, depth_topic, map_frame, camera_frame, body_frame, intrinsics,
            time_offset, max_gap, min_translation, min_rotation, min_sharpness: see BagSettings.

    Raises:
        BagError, DatasetError: a bag cannot be read, or does not say where its images were taken.
    """
    settings = BagSettings(
        image_topic,
        pose_topic,
        depth_topic,
        map_frame,
        camera_frame,
        body_frame,
        intrinsics,
        time_offset,
        max_gap,
        min_translation,
        min_rotation,
        min_sharpness,
    )
    splits, notes, warnings = ([], []), [], []
    names: Counter[str] = Counter()
    worlds: dict[str, str] = {}  # frame of the poses -> the first sequence that has it
    for split, paths in zip(splits, ([path, *paths_of(more)], paths_of(test_path))):
        for each in paths:
            name = _name(each)
            names[name] += 1
            sequence = name if names[name] == 1 else f'{name} ({names[name]})'
            found = read_bag(each, settings, sequence, thin=split is splits[0])
            split.extend(found.samples)
            notes += found.notes
            warnings += found.warnings
            if found.world:
                worlds.setdefault(found.world, sequence)
    if len(worlds) > 1:
        raise DatasetError(
            'the poses of these bags are in different frames: '
            f'{", ".join(f"{name} in {world}" for world, name in worlds.items())}. Give the '
            '--pose-topic or the --map-frame that all of them have, or use bags of one frame'
        )
    return Dataset(_name(path), *splits, warnings, notes)


def _name(path: Path) -> str:
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def paths_of(value: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several."""
    values = [value] if isinstance(value, str | Path) else value
    return [Path(each).expanduser() for each in values]


@dataclass(frozen=True)
class BagSamples:
    """The samples of one bag.

    Attributes:
        samples: in the order of time.
        notes: what was picked, for people.
        warnings: what a user should know.
        world: the frame of the poses; empty if the bag does not name it.
    """

    samples: list[Sample]
    notes: list[str]
    warnings: list[str]
    world: str


def read_bag(path: Path, settings: BagSettings, sequence: str, thin: bool) -> BagSamples:
    """The posed images of one bag.

    Args:
        path: of the bag.
        settings: what to use of it.
        sequence: name of the samples' sequence.
        thin: leave out images that show what the one before shows, and blurred ones.

    Raises:
        BagError, DatasetError: as `load`.
    """
    contents = read_contents(path)
    warnings = list(contents.notes)
    picked = pick(contents, settings)
    if picked.problems:
        raise BagError('; '.join(picked.problems))
    images, poses, world = picked.images, picked.truth.source, picked.world
    if poses in contents.poses:
        if world not in ('', settings.map_frame) and _wants_map_frame(settings):
            warnings.append(
                f'the poses on {poses} of {path.name} are in {world}, not in {settings.map_frame}: '
                f'give --map-frame {world} if that is right, or another --pose-topic (tf for TF)'
            )
        poses += f' in {world or "a frame without a name"}'
    notes = [
        f'{sequence}: images {images.topic.name} ({len(images.times)}), camera '
        f'{picked.camera_source}, poses {poses}, '
        f'depth {picked.depth.images.topic.name if picked.depth else "none"}'
    ]
    if settings.camera_frame is None and 'optical' not in picked.frame:
        warnings.append(
            f'the images of {path.name} name the frame {picked.frame}: its z axis must look '
            'forward and its y axis down; give --camera-frame if another frame is the optical one'
        )
    samples, missing = _posed(path, picked, settings, sequence)
    if missing:
        warnings.append(_left_out(path, len(images.times), missing, settings.max_gap))
    if not samples:
        raise DatasetError(f'no image of {path} has a pose: {warnings[-1]}')
    if picked.depth and not any(sample.depth_loader for sample in samples):
        warnings.append(
            f'depth on {picked.depth.images.topic.name} is not used: no image of {path.name} has '
            f'one within {_DEPTH_TOLERANCE_S:g} s'
        )
    if thin:
        samples = _thinned(samples, settings, notes, sequence)
    return BagSamples(samples, notes, warnings, world)


def _wants_map_frame(settings: BagSettings) -> bool:
    """True unless a topic was chosen and the map frame was not: then any frame is right."""
    return settings.pose_topic is None or settings.map_frame != BagSettings.map_frame


def _posed(
    path: Path, picked: Picked, settings: BagSettings, sequence: str
) -> tuple[list[Sample], Counter]:
    """Samples in the order of their stamps, and why images have no pose, counted."""
    samples, missing = [], Counter()
    images, camera, depth = picked.images, picked.camera, picked.depth
    offset = round(settings.time_offset * 1e9)
    name = images.topic.name
    file = largest_file(path)  # stands for the bag: when it changes, so does what is made of it
    depth_of = _depth_of(path, depth, camera) if depth else lambda stamp: None
    for stamp, time in sorted(zip(images.stamps, images.times)):
        try:
            pose = picked.truth.lookup(stamp + offset)
        except TransformError as error:
            missing[_reason(error)] += 1
            continue
        if picked.truth.jumps_at(stamp + offset):
            missing['in jumps of the poses'] += 1
            continue
        samples.append(
            Sample(
                path / name.strip('/') / f'{stamp // 10**9}.{stamp % 10**9:09d}',
                camera,
                pose,
                sequence,
                stamp / 1e9,
                depth_of(stamp),
                image_loader=BagImage(path, name, time, stamp),
                container=file,
            )
        )
    return samples, missing


def _reason(error: TransformError) -> str:
    if isinstance(error, TransformGapError):
        return 'in gaps of the poses'
    return 'after the last pose' if error.late else 'before the first pose'


def _left_out(path: Path, images: int, missing: Counter, max_gap: float) -> str:
    reasons = ', '.join(f'{count} {reason}' for reason, count in missing.items())
    text = f'{missing.total()} of {images} images of {path.name} left out: {reasons}'
    if missing['in gaps of the poses']:
        text += f' (longer than {max_gap:g} s: --max-gap)'
    if missing['in jumps of the poses']:
        text += f' (by more than {JUMP[0]:g} m/s or {np.rad2deg(JUMP[1]):g} deg/s)'
    return text


def _depth_of(path: Path, depth: PickedDepth, color: Camera) -> Callable[[int], Callable | None]:
    """Gives what loads the depth nearest in time to a stamp; None where there is none near."""
    order = np.argsort(depth.images.stamps)
    stamps = np.array(depth.images.stamps)[order]

    def loader(stamp: int) -> Callable[[], np.ndarray] | None:
        after = min(int(np.searchsorted(stamps, stamp)), len(stamps) - 1)
        nearest = min((max(after - 1, 0), after), key=lambda i: abs(stamps[i] - stamp))
        if abs(stamps[nearest] - stamp) > _DEPTH_TOLERANCE_S * 1e9:
            return None
        found = order[nearest]
        return BagDepth(
            path,
            depth.images.topic.name,
            depth.images.times[found],
            depth.images.stamps[found],
            depth.camera,
            color,
            depth.color_T_depth,
        )

    return loader


def _thinned(
    samples: list[Sample], settings: BagSettings, notes: list[str], sequence: str
) -> list[Sample]:
    count = len(samples)
    if settings.min_sharpness > 0:
        values = sharpness_of_all([sample.load_image for sample in samples])
        keep = sharp(values, settings.min_sharpness)
        samples = [sample for sample, kept in zip(samples, keep) if kept]
        notes.append(f'{sequence}: {count - len(samples)} of {count} images are blurred: left out')
        count = len(samples)
    poses = np.array([sample.world_T_camera for sample in samples]).reshape(-1, 4, 4)
    keep = moved(poses, settings.min_translation, np.deg2rad(settings.min_rotation))
    samples = [sample for sample, kept in zip(samples, keep) if kept]
    if len(samples) < count:
        notes.append(
            f'{sequence}: {count - len(samples)} of {count} images left out: the camera had moved '
            f'by less than {settings.min_translation:g} m and {settings.min_rotation:g} deg '
            '(--min-translation, --min-rotation)'
        )
    return samples
