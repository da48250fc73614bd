"""The built-in scene: a walk through a furnished room, written in the native 7-Scenes layout.

    TrainSplit.txt, TestSplit.txt               sequence1, sequence2 / sequence3
    seq-XX/frame-XXXXXX.{color.png,depth.png,pose.txt}
    calibration.yaml                            colour and depth share one pinhole camera
    scene.json                                  the settings, by which the folder is recognised

Depth is exact up to the rounding to 1 mm, 0 in the view outside; poses are camera-to-world; integer
pixel coordinates are pixel centres. The light differs between the sequences, and every test frame
is at least 0.15 m or 8 degrees away from the training walks.

    room = Room(seed=0)                         the room itself, rendered from any pose
    rgb, depth_m = room.render(world_T_camera, camera, light)
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError, SettingsError
from training.datasets.room.room import Light, Room
from training.datasets.room.walks import scene_poses

__all__ = [
    'LIGHTS', 'Light', 'Room', 'SyntheticSettings', 'camera_of', 'is_built_in', 'write_scene',
]  # fmt: skip

_FORMAT = 'pose_reloc built-in room'
_VERSION = 2  # to be raised with every change of what is drawn: old folders are then replaced

# A sunny morning, a dull afternoon with the lamps on, and a bright hour in between for the test.
LIGHTS = (
    Light(day=1.0, sun=1.0, lamps=0.10, day_colour=(0.98, 1.0, 1.06), exposure=3.3),
    Light(day=0.45, sun=0.0, lamps=0.42, day_colour=(0.90, 0.98, 1.14), exposure=3.3),
    Light(day=0.80, sun=0.45, lamps=0.22, exposure=3.3),
)


@dataclass(frozen=True)
class SyntheticSettings:
    """What to render.

    Attributes:
        seed: of the room's textures and of the walks; the furniture stays where it is.
        width, height: image size in pixels, 4:3; the field of view stays the same.
        train_frames: frames of the two training walks. The default is about 15 Hz at walking pace;
            fewer frames are spread over the same walks.
        test_frames: frames of the test walk.
        noise: standard deviation of the sensor noise in grey values.
    """

    seed: int = 0
    width: int = 640
    height: int = 480
    train_frames: tuple[int, int] = (150, 150)
    test_frames: int = 120
    noise: float = 1.3

    def __post_init__(self):
        object.__setattr__(self, 'train_frames', tuple(self.train_frames))
        frames = (*self.train_frames, self.test_frames)
        if len(self.train_frames) != 2 or min(frames) < 1:
            raise SettingsError(f'the built-in room has two training walks and a test walk of at '
                                f'least one frame each, got {frames}')  # fmt: skip
        if self.width < 32 or 3 * self.width != 4 * self.height:
            raise SettingsError(f'the built-in room is rendered in 4:3, at least 32x24, '
                                f'got {self.width}x{self.height}')  # fmt: skip
        if self.seed < 0 or self.noise < 0:
            raise SettingsError(f'seed and noise cannot be negative, got {self.seed}, {self.noise}')


@dataclass(frozen=True)
class _Frame:
    """One frame to render and where it goes."""

    stem: Path
    world_T_camera: np.ndarray
    gain: float
    seed: tuple[int, ...]


def camera_of(settings: SyntheticSettings) -> Camera:
    """The pinhole camera of the scene: f = 525 px and centre (320, 240) at 640x480."""
    camera = Camera(640, 480, 525.0, 525.0, 320.0, 240.0)
    return camera.scaled(settings.width, settings.height)


def write_scene(folder: Path, settings: SyntheticSettings | None = None) -> None:
    """Render the scene into `folder`, with a progress bar; quick if it is there already.

    The scene appears under its name only when complete: it is written beside it and renamed.

    Raises:
        DatasetError: `folder` exists and is not a scene of this function, or cannot be written.
    """
    settings = settings or SyntheticSettings()
    folder = Path(folder).expanduser().resolve()
    record = {'format': _FORMAT, 'version': _VERSION, 'settings': _plain(settings)}
    if folder.exists() and _read_record(folder) == record:
        return
    partial = folder.with_name(f'.{folder.name}.partial-{os.getpid()}')
    try:
        partial.mkdir(parents=True)
        _render_sequences(partial, settings)
        (partial / 'scene.json').write_text(json.dumps(record, indent=2) + '\n')
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise DatasetError(f'cannot write the built-in scene to {folder}: {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_built_in(folder: Path) -> bool:
    """Whether a folder was written by `write_scene`, by any version."""
    try:
        return _read_record(Path(folder)) is not None
    except DatasetError:
        return False


def _plain(settings: SyntheticSettings) -> dict:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def _read_record(folder: Path) -> dict | None:
    """What scene.json says; None for an empty folder.

    Raises:
        DatasetError: the folder holds something else, which is not ours to delete.
    """
    if not folder.is_dir():
        raise DatasetError(f'{folder} is a file; name a folder for the built-in scene')
    if not any(folder.iterdir()):
        return None
    try:
        record = json.loads((folder / 'scene.json').read_text())
        if record['format'] == _FORMAT:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DatasetError(
        f'{folder} exists and was not written as a built-in scene; it is left alone. '
        'Name another folder, or remove this one yourself'
    )


def _render_sequences(folder: Path, settings: SyntheticSettings) -> None:
    """Write all files of the scene."""
    train, test = scene_poses(settings.seed, settings.train_frames, settings.test_frames)
    walks = [*train, test]
    (folder / 'TrainSplit.txt').write_text('sequence1\nsequence2\n')
    (folder / 'TestSplit.txt').write_text('sequence3\n')
    (folder / 'calibration.yaml').write_text(_calibration_text(camera_of(settings)))
    total = sum(len(poses) for poses in walks)
    with tqdm(total=total, desc='furnishing the room', unit='frame') as bar:
        room = Room(settings.seed)
        bar.set_description('rendering the room')
        for number, (poses, light) in enumerate(zip(walks, LIGHTS, strict=True)):
            sequence = folder / f'seq-{number + 1:02d}'
            sequence.mkdir()
            frames = _frames(sequence, poses, (settings.seed, 11, number))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(_write_frame, room, light, settings, f) for f in frames]
                try:
                    for job in as_completed(jobs):
                        job.result()
                        bar.update()
                except BaseException:  # a full disk, Ctrl-C: do not render the rest first
                    pool.shutdown(cancel_futures=True)
                    raise


def _frames(sequence: Path, poses_N44: np.ndarray, seed: tuple[int, ...]) -> list[_Frame]:
    """The frames of one sequence, with the slow drift of an automatic exposure."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    u = (np.arange(len(poses_N44)) + 0.5) / len(poses_N44)
    drift = 0.05 * np.sin(2 * np.pi * 2 * u + phase[0]) + 0.02 * np.sin(40 * u + phase[1])
    return [
        _Frame(sequence / f'frame-{i:06d}', pose, float(1 + drift[i]), (*seed, i))
        for i, pose in enumerate(poses_N44)
    ]


def _write_frame(room: Room, light: Light, settings: SyntheticSettings, frame: _Frame) -> None:
    """Render one frame and write its three files."""
    rgb, depth = room.render(frame.world_T_camera, camera_of(settings), light)
    image = _expose(rgb, frame.gain, settings.noise, np.random.default_rng(frame.seed))
    _write_png(frame.stem.with_suffix('.color.png'), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    _write_png(frame.stem.with_suffix('.depth.png'), np.uint16(np.rint(depth * 1000)))
    rows = ('\t'.join(f'{value:.12e}' for value in row) for row in frame.world_T_camera)
    frame.stem.with_suffix('.pose.txt').write_text('\n'.join(rows) + '\n')


def _write_png(path: Path, image: np.ndarray) -> None:
    # Level 1: noise hardly compresses, so more effort only costs time.
    _, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    path.write_bytes(data.tobytes())


def _expose(rgb: np.ndarray, gain: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """What a lens and a sensor make of the light: glare of bright parts, vignette, gain, noise."""
    height, width = rgb.shape[:2]
    image = rgb.astype(np.float32)
    small = cv2.resize(image, (max(width // 8, 1), max(height // 8, 1)),
                       interpolation=cv2.INTER_AREA)  # fmt: skip
    glare = cv2.GaussianBlur(np.maximum(small - 200, 0), (0, 0), width / 90)
    image += 0.7 * cv2.resize(glare, (width, height), interpolation=cv2.INTER_LINEAR)
    x = (np.arange(width, dtype=np.float32) - width / 2) / width
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / width
    image *= (gain * (1 - 0.32 * (x * x + y * y)))[..., None]
    if noise:
        image += noise * rng.standard_normal(image.shape, np.float32)
    return np.uint8(np.clip(image + 0.5, 0, 255))


def _calibration_text(camera: Camera) -> str:
    """calibration.yaml: one camera that sees colour and depth."""
    pinhole = (f'model: PINHOLE, width: {camera.width}, height: {camera.height}, fx: {camera.fx}, '
               f'fy: {camera.fy}, cx: {camera.cx}, cy: {camera.cy}')  # fmt: skip
    rows = '\n'.join(f'  - {[float(i == j) for j in range(4)]}' for i in range(4))
    return (
        '# Built-in room: colour and depth share one camera. Integer pixels are pixel centres;\n'
        '# pose.txt holds its pose (camera to world, metres).\n'
        f'color: {{{pinhole}}}\n'
        f'depth: {{{pinhole}, unit_m: 0.001, invalid: [0, 65535]}}\n'
        f'color_T_depth:  # X_color = color_T_depth * X_depth\n{rows}\n'
    )
