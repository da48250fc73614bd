"""Writes any dataset in the layout of 7-Scenes or of COLMAP, so that other programs can read it.

Poses keep all their digits. An image file is copied as it is; what a layout cannot say of a camera
is taken out of its images instead: they are undistorted, which is the only loss.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose, quaternion_from_rotation
from training.datasets import Dataset, Sample
from training.datasets.files import inside

_COPIED = ('.png', '.jpg', '.jpeg')
_FARTHEST_MM = 65534  # 65535 means unknown
_POINTS_OF_DEPTH = 500  # drawn from each depth image where a layout holds points
_GREY = '128 128 128'


@dataclass(frozen=True)
class _Image:
    """A sample as it is written.

    Attributes:
        sample: what is written.
        camera: its camera there.
        path: of the image file, below the folder of the dataset.
    """

    sample: Sample
    camera: Camera
    path: Path

    @property
    def is_copied(self) -> bool:
        """The file of the sample is used as it is."""
        return _is_file(self.sample) and self.camera == self.sample.camera

    def write(self, folder: Path) -> None:
        """Copies, or writes losslessly.

        Raises:
            DatasetError: the image cannot be read.
        """
        path = folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.is_copied:
            try:
                data = self.sample.image_path.read_bytes()
            except OSError as error:
                raise DatasetError(
                    f'cannot read {self.sample.image_path}: {error.strerror}'
                ) from error
            path.write_bytes(data)
        else:
            _write_png(path, self.undistorted(self.sample.load_image())[..., ::-1])

    def undistorted(self, image: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """An image or depth (H, W) of the sample as its camera here sees it."""
        if self.camera == self.sample.camera:
            return image
        return cv2.remap(image, *self.sample.camera.undistort_map(self.camera), interpolation)


def write_seven_scenes(dataset: Dataset, folder: Path) -> None:
    """Writes the layout of 7-Scenes: sequences by number, named in sequences.txt, one camera.

    Depth is in millimetres, registered to the colour image. Stamps are not kept.

    Raises:
        DatasetError: the folder exists, cannot be written, or the cameras differ.
    """
    cameras = {s.camera.undistorted() for s in [*dataset.train, *dataset.test]}
    if len(cameras) != 1:
        raise DatasetError(
            f'{dataset.name} has {len(cameras)} different cameras, and the layout of 7-Scenes '
            'holds one; convert it to colmap'
        )
    (camera,) = cameras
    with _new_folder(folder) as partial:
        (partial / 'calibration.yaml').write_text(_calibration(camera))
        images, names = [], []
        for split, samples in (('Train', dataset.train), ('Test', dataset.test)):
            lines = []
            for name in dict.fromkeys(sample.sequence for sample in samples):
                names.append(f'seq-{len(names) + 1:02d} {name}\n')
                lines.append(f'sequence{len(names)}\n')
                frames = [sample for sample in samples if sample.sequence == name]
                for i, sample in enumerate(frames):
                    suffix = '.jpg' if _is_jpeg(sample) and sample.camera == camera else '.png'
                    path = Path(f'seq-{len(names):02d}', f'frame-{i:06d}.color{suffix}')
                    images.append(_Image(sample, camera, path))
            (partial / f'{split}Split.txt').write_text(''.join(lines))
        (partial / 'sequences.txt').write_text(''.join(names))
        _write_all(images, partial, _write_frame)


def _calibration(camera: Camera) -> str:
    numbers = {name: getattr(camera, name) for name in ('width', 'height', 'fx', 'fy', 'cx', 'cy')}
    pinhole = ', '.join(f'{name}: {float(x):.17g}' for name, x in numbers.items())
    rows = '\n'.join(f'  - {[float(i == j) for j in range(4)]}' for i in range(4))
    return (
        '# Depth is registered to colour; pose.txt holds the pose of both (camera to world).\n'
        f'color: {{{pinhole}}}\n'
        f'depth: {{{pinhole}, unit_m: 0.001, invalid: [0, 65535]}}\n'
        f'color_T_depth:\n{rows}\n'
    )


def _write_frame(image: _Image, folder: Path) -> None:
    image.write(folder)
    stem = image.path.name.partition('.')[0]
    rows = ('\t'.join(f'{x:.17g}' for x in row) for row in image.sample.world_T_camera)
    (folder / image.path.parent / f'{stem}.pose.txt').write_text('\n'.join(rows) + '\n')
    depth = image.sample.load_depth()
    if depth is not None:
        mm = np.rint(image.undistorted(depth, cv2.INTER_NEAREST) * 1000)
        mm[mm > _FARTHEST_MM] = 0
        _write_png(folder / image.path.parent / f'{stem}.depth.png', mm.astype(np.uint16))


def write_colmap(dataset: Dataset, folder: Path) -> None:
    """Writes the layout of COLMAP: images/, sparse/0/*.txt, list_db.txt and list_query.txt.

    Points are those of the source, or drawn from its depth; there are none where it has neither.
    Depth images themselves and stamps are not kept.

    Raises:
        DatasetError: the folder exists or cannot be written, or the name of a sequence leads out of
            it.
    """
    samples = [*dataset.train, *dataset.test]
    names = _file_names(samples)
    for name, sample in zip(names, samples):
        inside(folder, name, f'{dataset.name}, sequence {sample.sequence!r}')
    images = [
        _Image(sample, _colmap_camera(sample.camera)[0], Path('images', name))
        for sample, name in zip(samples, names)
    ]
    with _new_folder(folder) as partial:
        model = partial / 'sparse' / '0'
        model.mkdir(parents=True)
        _write_model(images, model)
        for file, part in (
            ('list_db.txt', names[: len(dataset.train)]),
            ('list_query.txt', names[len(dataset.train) :]),
        ):
            (partial / file).write_text(''.join(f'{name}\n' for name in part))
        _write_all(images, partial, _Image.write)


def _colmap_camera(camera: Camera) -> tuple[Camera, str, tuple[float, ...]]:
    """The camera as it is written, COLMAP's model and the distortion in its order."""
    k = camera.distortion
    if camera.is_pinhole:
        return camera, 'PINHOLE', ()
    if camera.distortion_model == 'equidistant':
        return camera, 'OPENCV_FISHEYE', k
    if camera.distortion_model == 'plumb_bob' and not any(k[4:]):
        return camera, 'OPENCV', k[:4]
    if len(k) <= 8:
        return camera, 'FULL_OPENCV', (*k, *(0.0,) * (8 - len(k)))
    return camera.undistorted(), 'PINHOLE', ()  # thin prism and tilt are not in any of its models


def _write_model(images: list[_Image], folder: Path) -> None:
    cameras = list(dict.fromkeys(image.camera for image in images))
    with (folder / 'cameras.txt').open('w') as file:
        for number, camera in enumerate(cameras, start=1):
            _, model, distortion = _colmap_camera(camera)
            # COLMAP counts from the corner of the image, we from the centre of the first pixel.
            numbers = (camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5, *distortion)
            params = ' '.join(f'{float(x):.17g}' for x in numbers)
            file.write(f'{number} {model} {camera.width} {camera.height} {params}\n')
    seen = [_seen_points(image.sample, i) for i, image in enumerate(images)]
    points, ids = np.unique(np.concatenate([np.zeros((0, 3)), *seen]), axis=0, return_inverse=True)
    ids = np.split(ids.ravel(), np.cumsum([len(p) for p in seen])[:-1])
    tracks: list[list[str]] = [[] for _ in points]
    with (folder / 'images.txt').open('w') as file:
        for number, (image, world, own) in enumerate(zip(images, seen, ids), start=1):
            camera_T_world = invert_pose(image.sample.world_T_camera)
            pose = (*quaternion_from_rotation(camera_T_world[:3, :3]), *camera_T_world[:3, 3])
            text = ' '.join(f'{x:.17g}' for x in pose)
            name = image.path.relative_to('images').as_posix()
            file.write(f'{number} {text} {cameras.index(image.camera) + 1} {name}\n')
            uv = image.camera.project(world @ camera_T_world[:3, :3].T + camera_T_world[:3, 3])
            shown = np.flatnonzero(np.isfinite(uv).all(axis=1))
            items = []
            for index, k in enumerate(shown):
                items.append(f'{uv[k, 0] + 0.5:.6f} {uv[k, 1] + 0.5:.6f} {own[k] + 1}')
                tracks[own[k]].append(f'{number} {index}')
            file.write(' '.join(items) + '\n')
    with (folder / 'points3D.txt').open('w') as file:
        for number, (point, track) in enumerate(zip(points, tracks), start=1):
            xyz = ' '.join(f'{x:.17g}' for x in point)
            file.write(f'{number} {xyz} {_GREY} 0 {" ".join(track)}\n')


def _seen_points(sample: Sample, seed: int) -> np.ndarray:
    """World points (N, 3) of an image; N may be 0."""
    if sample.points_loader:
        return sample.load_points()
    depth = sample.load_depth()
    if depth is None:
        return np.zeros((0, 3))
    pixels = np.argwhere(depth)
    count = min(len(pixels), _POINTS_OF_DEPTH)
    drawn = np.random.default_rng(seed).choice(len(pixels), count, replace=False)
    return sample.lift(depth, pixels[drawn])


def _file_names(samples: list[Sample]) -> list[str]:
    """A name below images/ for each sample: COLMAP's lists cannot hold spaces."""
    names: dict[str, None] = {}
    for sample in samples:
        path = Path(sample.image_path.name)
        stem, suffix = (path.stem, path.suffix) if _is_file(sample) else (path.name, '.png')
        if _colmap_camera(sample.camera)[0] != sample.camera:
            suffix = '.png'
        stem = '_'.join(f'{sample.sequence}/{stem}'.lstrip('/').split())
        name, number = f'{stem}{suffix}', 1
        while name in names:
            number += 1
            name = f'{stem}-{number}{suffix}'
        names[name] = None
    return list(names)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name when all went well.

    Raises:
        DatasetError: the wanted folder exists, or something cannot be written.
    """
    folder = folder.expanduser().resolve()
    if folder.exists():
        raise DatasetError(f'{folder} exists; name a folder that does not')
    partial = folder.with_name(f'.{folder.name}.partial-{os.getpid()}')
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except OSError as error:
        raise DatasetError(f'cannot write {folder}: {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_file(sample: Sample) -> bool:
    return sample.image_loader is None and sample.image_path.suffix.lower() in _COPIED


def _is_jpeg(sample: Sample) -> bool:
    return _is_file(sample) and sample.image_path.suffix.lower() != '.png'


def _write_all(images: list[_Image], folder: Path, write: Callable) -> None:
    """Calls write(image, folder) for all, several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda image: write(image, folder), images)
        for _ in tqdm(jobs, 'converting', len(images), unit='img', disable=None):
            pass


def _write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 BGR (H, W, 3) or uint16 (H, W)."""
    data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
    path.write_bytes(data.tobytes())
