"""SceneModel: the artefact of training, the only thing that crosses to the robot.

One safetensors file: the tensors, and in its metadata one JSON text under the key `pose_reloc` and
a checksum of everything, because a flipped bit in a weight would otherwise go unnoticed. Nothing in
it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, SceneError, SettingsError
from pose_reloc.files import write_atomically
from pose_reloc.geometry import is_rigid
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.uncertainty import CoarseCalibration

FORMAT_VERSION = 7
_TENSORS = (
    'train_world_T_camera', 'start_features', 'train_features', 'feature_mean', 'train_frames',
    'map_T_scene',
)  # fmt: skip
_KEY, _CHECKSUM = 'pose_reloc', 'sha256'
_MAX_HEADER_BYTES = 100_000_000
_MAX_NETWORK_PIXELS = 2**24  # the published input has 2**17


@dataclass(frozen=True)
class Calibration:
    """What was measured on training images asked as if they were new: `training/rehearsal.py`.

    Attributes:
        refined_scale: factor on the computed covariance of a REFINED pose.
        least_likeness: an image that resembles no keyframe so much is not of this scene.
    """

    refined_scale: float = 1.0
    least_likeness: float = 0.0

    @classmethod
    def from_dict(cls, values: dict) -> Calibration:
        """Inverse of `dataclasses.asdict`.

        Raises:
            TypeError, ValueError: not a calibration.
        """
        numbers = _floats(values)
        if not all(np.isfinite(x) for x in numbers.values()):
            raise ValueError('the calibration is not finite')
        if numbers.get('refined_scale', 1.0) <= 0:
            raise ValueError('refined_scale is not positive')
        return cls(**numbers)


@dataclass(frozen=True)
class SceneHeader:
    """What can be known of a scene without reading its tensors.

    Attributes:
        name: for people.
        network: the fields of `network.NetworkSettings`.
        camera: the camera of the training images, with distortion.
        network_camera: the pinhole camera of the network's input.
        coarse: how uncertain regressed poses are.
        recipe: how the scene was made: dataset, settings, versions, seed, command, results.
        calibration: see `Calibration`.
    """

    name: str
    network: dict
    camera: Camera
    network_camera: Camera
    coarse: CoarseCalibration
    recipe: dict = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self):
        camera = self.network_camera
        if camera.width * camera.height > _MAX_NETWORK_PIXELS:
            raise SceneError(f'an absurd network input of {camera.width}x{camera.height} pixels')


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
        train_features: of the trained backbone (M, F), float16, less their mean, rows of unit
            length, of images it was trained on: what `SceneHeader.coarse` compares images with.
        feature_mean: that mean (F,), float32.
        train_frames: which of the training images those are (M,), int32.
        map_T_scene: pose (4, 4) of the scene's world in the robot's map.
        landmarks: for refinement; None answers with regressed poses only.
    """

    header: SceneHeader
    weights: dict[str, np.ndarray]
    train_world_T_camera: np.ndarray
    start_backbone: dict[str, np.ndarray]
    start_features: np.ndarray
    train_features: np.ndarray
    feature_mean: np.ndarray
    train_frames: np.ndarray
    map_T_scene: np.ndarray = field(default_factory=lambda: np.eye(4))
    landmarks: LandmarkMap | None = None

    def __post_init__(self):
        N, F = len(self.train_world_T_camera), self.start_features.shape[-1]
        shapes = {
            'train_world_T_camera': (self.train_world_T_camera, (N, 4, 4)),
            'start_features': (self.start_features, (N, F)),
            'train_features': (self.train_features, (len(self.train_frames), F)),
            'feature_mean': (self.feature_mean, (F,)),
            'map_T_scene': (self.map_T_scene, (4, 4)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise SceneError(f'{name} has shape {array.shape}, expected {shape}')
            if not np.all(np.isfinite(array)):
                raise SceneError(f'{name} holds NaN or infinity')
        for name in ('train_world_T_camera', 'map_T_scene'):
            if not is_rigid(shapes[name][0]):
                raise SceneError(f'{name}: not rigid, its rotation is not orthonormal')
        if N == 0 or len(self.train_frames) == 0:
            raise SceneError('a scene needs at least one training image')
        if not _indices(self.train_frames, N):
            raise SceneError(f'train_frames are not numbers of its {N} training images')
        bad = [n for n, w in self.weights.items() if w.dtype.kind == 'f' and not _finite(w)]
        if bad:
            raise SceneError(f'the network weights hold NaN or infinity, first in {bad[0]!r}')

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
            'coarse': asdict(self.header.coarse),
            'recipe': self.header.recipe,
            'calibration': asdict(self.header.calibration),
        }
        tensors = {f'network.{name}': array for name, array in self.weights.items()}
        tensors |= {f'start.{name}': array for name, array in self.start_backbone.items()}
        for name in _TENSORS:
            tensors[name] = getattr(self, name)
        if self.landmarks:
            header['features'] = self.landmarks.features.to_dict()
            tensors |= self.landmarks.to_tensors()
        tensors = {name: np.asarray(array, order='C') for name, array in tensors.items()}
        text = json.dumps(header)
        metadata = {_KEY: text, _CHECKSUM: _checksum(text, tensors)}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> SceneModel:
        """Reads and validates a scene file.

        Raises:
            SceneError: the file is missing, truncated, not ours, of another version, or damaged.
        """
        path = _existing(path)
        file = _open(path)
        values, header = _read_header(file, path)
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            _verify(file.metadata(), tensors)
            weights, start = _take(tensors, 'network.'), _take(tensors, 'start.')
            landmarks = None
            if 'landmarks.points' in tensors:
                features = values['features']
                landmarks = LandmarkMap.from_tensors(_take(tensors, 'landmarks.'), features)
            return cls(header, weights, start_backbone=start, landmarks=landmarks, **tensors)
        except Exception as error:  # safetensors' own error type, TypeError of missing tensors
            raise SceneError(
                f'scene {path} is damaged: {error}; copy it again or train it again'
            ) from error

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
    """Reads only the JSON of a scene file, in milliseconds. The checksum is not verified.

    Raises:
        SceneError: the file is missing, truncated, not ours, or of another version.
    """
    path = _existing(path)
    return _read_header(_open(path), path)[1]


def _read_header(file, path: Path) -> tuple[dict, SceneHeader]:
    """The JSON of an open scene file, as it is and as a SceneHeader."""
    metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise SceneError(
            f'{path} is a safetensors file but not a scene; make one with `pose_reloc train`'
        )
    try:
        values = json.loads(metadata[_KEY])
        version = values['format_version']
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SceneError(f'scene {path} has a damaged header: {error!r:.300}') from error
    if version != FORMAT_VERSION:
        raise SceneError(
            f'scene {path} has format version {version!r:.20}, this pose_reloc reads '
            f'{FORMAT_VERSION}; train it again or install the pose_reloc that wrote it'
        )
    try:
        return values, SceneHeader(
            str(values['name']),
            dict(values['network']),
            Camera.from_dict(values['camera']),
            Camera.from_dict(values['network_camera']),
            CoarseCalibration(**_floats(values['coarse'])),
            dict(values['recipe']),
            Calibration.from_dict(values['calibration']),
        )
    except (
        *(ValueError, KeyError, TypeError, AttributeError, OverflowError),
        *(CameraError, SceneError, RecursionError),
    ) as error:
        raise SceneError(f'scene {path} has a damaged header: {error!r:.300}') from error


def _verify(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
    if metadata.get(_CHECKSUM) != _checksum(metadata[_KEY], tensors):
        raise SceneError('its checksum is not that of its content')


def _checksum(text: str, tensors: dict[str, np.ndarray]) -> str:
    """sha256 of what a scene file says: its JSON, and the name, type, shape, bytes of tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f'\n{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(array)
    return digest.hexdigest()


def _floats(values: dict) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _open(path: Path):
    """An open safetensors file."""
    from safetensors import safe_open

    try:
        size = path.stat().st_size
        with open(path, 'rb') as file:
            header_bytes = int.from_bytes(file.read(8), 'little')
        if header_bytes > min(_MAX_HEADER_BYTES, size):
            raise SceneError(f'its header claims {header_bytes} bytes')
        return safe_open(path, framework='numpy')
    except Exception as error:  # safetensors raises its own type for a bad file
        raise SceneError(
            f'{path} is not a scene file or is truncated ({error}); '
            'copy it again, or make one with `pose_reloc train`'
        ) from error


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise SceneError(f'no scene file at {path}; make one with `pose_reloc train`')
    return path


def _indices(values: np.ndarray, count: int) -> bool:
    """Whether these are indices of so many things."""
    return values.dtype.kind == 'i' and values.min() >= 0 and values.max() < count


def _finite(array: np.ndarray) -> bool:
    # The sum is finite exactly when no element is NaN or infinite (short of an overflow, which
    # weights of that size would deserve): one pass, no temporary array.
    return bool(np.isfinite(array.sum(dtype=np.float64)))
