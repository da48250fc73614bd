"""TUM RGB-D (Sturm et al. 2012) in its native layout, and recordings written like it.

    rgb.txt, depth.txt    lines `timestamp file`; depth is optional, 16-bit, 5000 units per metre,
                          registered to the colour image
    groundtruth.txt       lines `timestamp x y z qx qy qz qw`, camera to world
    calibration.yaml      optional: color: {width, height, fx, fy, cx, cy, distortion}

The folder is one recording, or holds several of the same place. Depth is the nearest in time; the
pose is interpolated at the time of the image, but not across a jump of the trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import interpolate_pose, pose_error, wxyz_from_xyzw
from training.datasets import Dataset, Sample
from training.datasets.calibration import CameraSource, camera_source
from training.datasets.depth import DepthImage
from training.datasets.files import existing_image, image_size
from training.datasets.jumps import is_jump
from training.datasets.text import read_lines

_DEPTH_UNIT_M = 1 / 5000


@dataclass(frozen=True)
class _Association:
    """How far apart in time, in seconds, things may be that belong together."""

    max_difference: float
    max_gap: float


def load(
    path: Path,
    intrinsics=None,
    max_difference: float = 0.02,
    max_gap: float = 0.1,
    test_fraction: float = 0.2,
    test: str | Sequence[str] = (),
) -> Dataset:
    """Reads one recording, or all recordings in a folder.

    Args:
        path: folder with rgb.txt, or with folders that have it.
        intrinsics: (fx, fy, cx, cy) in pixels, instead of calibration.yaml.
        max_difference: an image and its depth are at most this far apart, seconds.
        max_gap: no pose is interpolated between poses that are further apart, seconds.
        test_fraction: this last part of each recording is the test split.
        test: names of the recordings that are the test split instead, also 'a,b'.

    Raises:
        DatasetError: a file is missing or has a bad line, or no image has a pose.
    """
    recordings = _recordings(path)
    held_out = {name for name in (test.split(',') if isinstance(test, str) else test) if name}
    unknown = sorted(held_out - {folder.name for folder in recordings})
    if unknown:
        raise DatasetError(f'the option test names {unknown[0]!r}, which is not a recording')
    if not 0 <= test_fraction < 1:
        raise DatasetError(f'the option test_fraction must be in [0, 1), got {test_fraction}')
    limits = _Association(max_difference, max_gap)
    splits, warnings = ([], []), []
    for folder in recordings:
        samples = _read_recording(folder, path, intrinsics, limits, warnings)
        first_test = len(samples) - int(test_fraction * len(samples))
        if held_out:
            first_test = 0 if folder.name in held_out else len(samples)
        splits[0].extend(samples[:first_test])
        splits[1].extend(samples[first_test:])
    return Dataset(path.resolve().name, *splits, list(dict.fromkeys(warnings)))


def _recordings(path: Path) -> list[Path]:
    if (path / 'rgb.txt').is_file():
        return [path]
    found = sorted(file.parent for file in path.glob('*/rgb.txt'))
    if not found:
        raise DatasetError(
            f'{path} is not a TUM RGB-D recording: neither it nor a folder in it has rgb.txt'
        )
    return found


def _read_recording(
    folder: Path, path: Path, intrinsics, limits: _Association, warnings: list[str]
) -> list[Sample]:
    images = _read_files(folder, 'rgb.txt')
    depths = _read_files(folder, 'depth.txt') if (folder / 'depth.txt').is_file() else []
    trajectory = _read_trajectory(folder / 'groundtruth.txt')
    where = folder if (folder / 'calibration.yaml').is_file() else path
    source = camera_source(where, intrinsics, _default_camera())
    warnings.extend(source.warnings)
    depth_times = np.array([time for time, _ in depths])
    samples = []
    for time, image_path in images:
        pose = _pose_at(time, *trajectory, limits.max_gap)
        if pose is None:
            continue
        camera = source.make(*image_size(image_path))
        depth = _nearest(time, depth_times, limits.max_difference)
        loader = None
        if depth is not None:
            loader = DepthImage(depths[depth][1], camera, camera, unit_m=_DEPTH_UNIT_M)
        samples.append(Sample(image_path, camera, pose, folder.resolve().name, time, loader))
    if not samples:
        raise DatasetError(f'no image of {folder} has a pose within the times of groundtruth.txt')
    _report(folder, len(images), samples, bool(depths), limits, warnings)
    return samples


def _report(folder, images: int, samples, has_depth: bool, limits, warnings: list[str]) -> None:
    if len(samples) < images:
        warnings.append(
            f'{images - len(samples)} of {images} images of {folder.name} left out: '
            f'groundtruth.txt has no poses within {limits.max_gap} s around them, or jumps there'
        )
    without = sum(sample.depth_loader is None for sample in samples)
    if not has_depth:
        warnings.append(f'{folder} has no depth.txt: no depth')
    elif without:
        warnings.append(
            f'{without} of {len(samples)} images of {folder.name} have no depth within '
            f'{limits.max_difference} s'
        )


def _default_camera() -> CameraSource:
    def make(width: int, height: int) -> Camera:
        # The aspect of resized images is only kept to a pixel.
        if abs(3 * width - 4 * height) > 4:
            raise DatasetError(
                f'the images are {width}x{height}, but the camera that is taken without '
                'calibration.yaml is that of 640x480 images: write calibration.yaml or give '
                '--camera FX FY CX CY'
            )
        return Camera(640, 480, 525.0, 525.0, 319.5, 239.5).scaled(width, height)

    text = (
        'no calibration.yaml: the ROS default for this sensor is taken (f = 525, centre 319.5, '
        '239.5), without distortion'
    )
    return CameraSource(make, (text,))


def _read_files(folder: Path, name: str) -> list[tuple[float, Path]]:
    """Times in seconds and files of a list, in the order of time."""
    entries = []
    for line in read_lines(folder / name):
        words = line.words('timestamp file')
        (time,) = line.numbers(words[:1])
        entries.append((float(time), existing_image(folder, words[1], line.where)))
    return sorted(entries)


def _read_trajectory(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (N,) in ascending order, `world_T_camera` (N, 4, 4), jumps (N - 1,) to the next."""
    times, poses = [], []
    for line in read_lines(file):
        values = line.numbers(line.words('timestamp x y z qx qy qz qw'))
        times.append(values[0])
        poses.append(line.pose(values[1:4], wxyz_from_xyzw(values[4:]), camera_to_world=True))
    if not times:
        raise DatasetError(f'{file} holds no poses')
    order = np.argsort(times, kind='stable')
    times_N, poses_N44 = np.array(times)[order], np.array(poses)[order]
    return times_N, poses_N44, _jumps(times_N, poses_N44)


def _jumps(times_N, poses_N44) -> np.ndarray:
    """Which steps (N - 1,) from a pose to the next are jumps."""
    steps = np.stack(pose_error(poses_N44[:-1], poses_N44[1:]), axis=1)
    with np.errstate(divide='ignore', invalid='ignore'):  # poses may share a time
        speeds = steps / np.diff(times_N)[:, None]
        padded = np.pad(speeds, ((1, 1), (0, 0)), constant_values=np.nan)
        return is_jump(speeds, padded[:-2], padded[2:]).any(axis=1)


def _pose_at(time: float, times_N, poses_N44, jumps_N, max_gap: float) -> np.ndarray | None:
    """The pose interpolated at this time; None outside the trajectory, in a gap and in a jump."""
    after = int(np.searchsorted(times_N, time))
    if after < len(times_N) and times_N[after] == time:
        return poses_N44[after]
    if after in (0, len(times_N)):
        return None
    gap = times_N[after] - times_N[after - 1]
    if gap > max_gap or jumps_N[after - 1]:
        return None
    alpha = (time - times_N[after - 1]) / gap
    return interpolate_pose(poses_N44[after - 1], poses_N44[after], alpha)


def _nearest(time: float, times_N: np.ndarray, max_difference: float) -> int | None:
    if not len(times_N):
        return None
    after = int(np.searchsorted(times_N, time))
    around = [i for i in (after - 1, after) if 0 <= i < len(times_N)]
    best = min(around, key=lambda i: abs(times_N[i] - time))
    return best if abs(times_N[best] - time) <= max_difference else None
