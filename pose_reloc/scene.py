"""SceneModel: the artefact of training, the only thing that crosses to the robot.

One safetensors file: the tensors, and one JSON text in its metadata under the key `pose_reloc`.
Nothing in it is executed when it is read.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, SceneError, SettingsError
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.uncertainty import CoarseCalibration

FORMAT_VERSION = 2
_KEY = 'pose_reloc'
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Calibration:
    """What was measured on held-out training frames, see `training/rehearsal.py`.

    Attributes:
        refined_scale: factor on the computed covariance of a REFINED pose.
        least_likeness: an image that resembles no keyframe so much is not of this scene.
        coarse: of a regressed pose, by its image; None where nothing was held out.
    """

    refined_scale: float = 1.0
    least_likeness: float = 0.0
    coarse: CoarseCalibration | None = None

    @classmethod
    def from_dict(cls, values: dict) -> Calibration:
        """Inverse of `dataclasses.asdict`.

        Raises:
            TypeError, ValueError: not a calibration.
        """
        values = dict(values)
        coarse = values.pop('coarse', None)
        numbers = {name: float(value) for name, value in values.items()}
        if coarse:
            coarse = CoarseCalibration(**{name: float(x) for name, x in coarse.items()})
            numbers |= asdict(coarse)
        if not all(np.isfinite(x) for x in numbers.values()):
            raise ValueError('the calibration is not finite')
        return cls(**{name: numbers[name] for name in values}, coarse=coarse)


@dataclass(frozen=True)
class SceneHeader:
    """What can be known of a scene without reading its tensors.

    Attributes:
        name: for people.
        network: the fields of `network.NetworkSettings`.
        camera: the camera of the training images, with distortion.
        network_camera: the pinhole camera of the network's input.
        recipe: how the scene was made: dataset, settings, versions, seed, command, results.
        calibration: see `Calibration`.
    """

    name: str
    network: dict
    camera: Camera
    network_camera: Camera
    recipe: dict = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True)
class SceneModel:
    """Everything inference needs.

    Attributes:
        header: see `SceneHeader`.
        weights: state dict of `network.PoseRegressor`, name to array.
        train_world_T_camera: poses (N, 4, 4) of the training images.
        start_backbone: state dict, float16, of the backbone before training: with the next field,
            the retrieval baseline of every evaluation. The robot does not use it.
        start_features: its features (N, F), float16, of the training images; rows of unit length.
        covariance_66: (6, 6) of a regressed camera pose whose image is not known; axes of the
            scene's world, order (x, y, z, rotX, rotY, rotZ).
        map_T_scene: pose (4, 4) of the scene's world in the robot's map.
        landmarks: for refinement; None answers with regressed poses only.
        train_features: of the trained backbone (M, F), float16, rows of unit length, of images it
            was trained on, for `Calibration.coarse`; None without that.
    """

    header: SceneHeader
    weights: dict[str, np.ndarray]
    train_world_T_camera: np.ndarray
    start_backbone: dict[str, np.ndarray]
    start_features: np.ndarray
    covariance_66: np.ndarray
    map_T_scene: np.ndarray = field(default_factory=lambda: np.eye(4))
    landmarks: LandmarkMap | None = None
    train_features: np.ndarray | None = None

    def __post_init__(self):
        N = len(self.train_world_T_camera)
        shapes = {
            'train_world_T_camera': (self.train_world_T_camera, (N, 4, 4)),
            'start_features': (self.start_features, (N, self.start_features.shape[-1])),
            'covariance_66': (self.covariance_66, (6, 6)),
            'map_T_scene': (self.map_T_scene, (4, 4)),
        }
        if self.train_features is not None:
            F = self.start_features.shape[-1]
            shapes['train_features'] = (self.train_features, (len(self.train_features), F))
        elif self.header.calibration.coarse:
            raise SceneError('train_features are missing')
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise SceneError(f'{name} has shape {array.shape}, expected {shape}')
            if not np.all(np.isfinite(array)):
                raise SceneError(f'{name} holds NaN or infinity')
        if N == 0:
            raise SceneError('a scene needs at least one training pose')
        bad = [n for n, w in self.weights.items() if w.dtype.kind == 'f' and not _finite(w)]
        if bad:
            raise SceneError(f'the network weights hold NaN or infinity, first in {bad[0]!r}')
        if np.linalg.eigvalsh(self.covariance_66)[0] <= 0:
            raise SceneError('covariance_66 is not positive definite')

    def with_map_T_scene(self, map_T_scene) -> SceneModel:
        """The same scene registered to another map."""
        return replace(self, map_T_scene=np.asarray(map_T_scene, dtype=np.float64))

    def save(self, path: str | Path) -> None:
        """Writes the file atomically: at any moment `path` is the old file or the new, whole.

        Raises:
            SceneError: the folder does not exist or cannot be written.
        """
        from safetensors.numpy import save

        header = {
            'format_version': FORMAT_VERSION,
            'name': self.header.name,
            'network': self.header.network,
            'camera': self.header.camera.to_dict(),
            'network_camera': self.header.network_camera.to_dict(),
            'recipe': self.header.recipe,
            'calibration': asdict(self.header.calibration),
        }
        tensors = {f'network.{name}': array for name, array in self.weights.items()}
        tensors |= {f'start.{name}': array for name, array in self.start_backbone.items()}
        for name in ('train_world_T_camera', 'start_features', 'covariance_66', 'map_T_scene'):
            tensors[name] = getattr(self, name)
        if self.landmarks:
            header['features'] = self.landmarks.features.to_dict()
            tensors |= self.landmarks.to_tensors()
        if self.train_features is not None:
            tensors['train_features'] = self.train_features
        tensors = {name: np.asarray(array, order='C') for name, array in tensors.items()}
        write_atomically(Path(path), save(tensors, {_KEY: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> SceneModel:
        """Reads and validates a scene file.

        Raises:
            SceneError: the file is missing, truncated, not ours, of another version, or damaged.
        """
        path = _existing(path)
        header = read_header(path)
        try:
            with _open(path) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            weights, start = _take(tensors, 'network.'), _take(tensors, 'start.')
            landmarks = None
            if 'landmarks.points' in tensors:
                features = _metadata(path)['features']
                landmarks = LandmarkMap.from_tensors(_take(tensors, 'landmarks.'), features)
            return cls(header, weights, start_backbone=start, landmarks=landmarks, **tensors)
        except SceneError as error:
            raise SceneError(f'scene {path} is damaged: {error}; train it again') from error
        except Exception as error:  # safetensors' own error type, TypeError of missing tensors
            raise SceneError(f'scene {path} is damaged: {error}; train it again') from error

    def build_network(self):
        """The PoseRegressor with this scene's weights, in evaluation mode, on the CPU.

        Raises:
            SceneError: the weights do not fit the network that the header describes.
        """
        import torch

        from pose_reloc.network import NetworkSettings, PoseRegressor

        try:
            network = PoseRegressor(NetworkSettings(**self.header.network))
            network.load_state_dict({n: torch.from_numpy(w) for n, w in self.weights.items()})
        except (TypeError, RuntimeError, SettingsError) as error:
            raise SceneError(
                f'scene {self.header.name}: the weights do not fit its network: {error}'
            ) from error
        return network.eval()


def _take(tensors: dict, prefix: str) -> dict[str, np.ndarray]:
    """Removes the tensors of this prefix and returns them without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def read_header(path: str | Path) -> SceneHeader:
    """Reads only the JSON of a scene file, in milliseconds.

    Raises:
        SceneError: the file is missing, truncated, not ours, or of another version.
    """
    path = _existing(path)
    values = _metadata(path)
    try:
        return SceneHeader(
            str(values['name']),
            dict(values['network']),
            Camera.from_dict(values['camera']),
            Camera.from_dict(values['network_camera']),
            dict(values['recipe']),
            Calibration.from_dict(values['calibration']),
        )
    except (ValueError, KeyError, TypeError, AttributeError, CameraError) as error:
        raise SceneError(f'scene {path} has a damaged header: {error!r}') from error


def _metadata(path: Path) -> dict:
    """The JSON of a scene file of this version."""
    try:
        with _open(path) as file:
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors raises its own type for a bad file
        raise SceneError(
            f'{path} is not a scene file or is truncated ({error}); '
            'copy it again, or make one with `pose_reloc train`'
        ) from error
    if _KEY not in metadata:
        raise SceneError(
            f'{path} is a safetensors file but not a scene; make one with `pose_reloc train`'
        )
    try:
        values = json.loads(metadata[_KEY])
        version = values['format_version']
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f'scene {path} has a damaged header: {error!r}') from error
    if version != FORMAT_VERSION:
        raise SceneError(
            f'scene {path} has format version {version}, this pose_reloc reads '
            f'{FORMAT_VERSION}; train it again or install the pose_reloc that wrote it'
        )
    return values


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file beside its destination, flushes it to disk, and renames it.

    Raises:
        SceneError: the folder does not exist or cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SceneError(f'cannot write {path}: {error.strerror}') from error


def _open(path: Path):
    from safetensors import safe_open

    if path.stat().st_size < 8:
        raise SceneError('the file is empty')
    with open(path, 'rb') as file:
        header_bytes = int.from_bytes(file.read(8), 'little')
    if header_bytes > min(_MAX_HEADER_BYTES, path.stat().st_size):
        raise SceneError(f'its header claims {header_bytes} bytes')
    return safe_open(path, framework='numpy')


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise SceneError(f'no scene file at {path}; make one with `pose_reloc train`')
    return path


def _finite(array: np.ndarray) -> bool:
    # The sum is finite exactly when no element is NaN or infinite (short of an overflow, which
    # weights of that size would deserve): one pass, no temporary array.
    return bool(np.isfinite(array.sum(dtype=np.float64)))
