"""A scene's network in the forms that inference engines read, converted once and kept.

The graph is `network.ImageRegressor`: bytes of an image in, pose and what it is worth out. Engines
other than PyTorch read it as ONNX. The conversion is kept in the user's cache folder under a name
that holds the hash of the weights it was made of and the hash of its own bytes: another scene, or a
damaged file, is never taken for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from functools import cached_property
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import numpy as np

from pose_reloc.errors import SceneError, SettingsError, install_hint
from pose_reloc.files import write_atomically
from pose_reloc.geometry import network_from_pose
from pose_reloc.scene import SceneModel
from pose_reloc.uncertainty import MOST_SIMILAR

# Of the graph and of how it is written; a new number forgets every file kept so far.
_VERSION = 4
_OPSET = 17
INPUT, OUTPUTS = 'image', ('w_t_c', 'c_q_w', 'distance', 'similar')


def cache_folder() -> Path:
    """Where this program keeps what it can make again: $POSE_RELOC_CACHE or ~/.cache/pose_reloc.

    A user without a home, as in a container that is run with another uid, has a folder of their own
    among the temporary files.
    """
    try:
        return Path(os.environ.get('POSE_RELOC_CACHE') or '~/.cache/pose_reloc').expanduser()
    except RuntimeError:  # no $HOME, and no entry in /etc/passwd
        return _homeless_folder()


def _homeless_folder() -> Path:
    """A folder that this user owns, or one that nobody can make: then nothing is kept.

    Anybody may have made a folder of that name, and what is read from it is believed.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f'pose_reloc-{os.getuid()}'
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid():  # of a link: whose link it is
            return folder
    except OSError:
        pass
    return Path(os.devnull) / 'pose_reloc'


def require(*packages: str) -> None:
    """Raises SettingsError where packages are missing."""
    missing = [package for package in packages if not find_spec(package)]
    if missing:
        raise SettingsError(
            f'{" and ".join(missing)} must be installed first: {install_hint(*missing)}'
        )


class NetworkSource:
    """The network of a scene, for batches of one size, in whichever form is asked for.

    Attributes:
        shape: of the images, (B, H, W, 3).

    Raises:
        SettingsError: a batch without images.
    """

    def __init__(self, scene: SceneModel, batch: int = 1):
        if batch < 1:
            raise SettingsError(f'a batch has at least one image, not {batch}')
        self._scene = scene
        camera = scene.header.network_camera
        self.shape = (batch, camera.height, camera.width, 3)

    @cached_property
    def key(self) -> str:
        """Hash of everything that the converted network depends on."""
        text = json.dumps([_VERSION, _OPSET, MOST_SIMILAR, self.shape, self._scene.header.network])
        digest = hashlib.sha256(text.encode())
        arrays = self._scene.weights | {
            'train_features': self._scene.train_features,
            'feature_mean': self._scene.feature_mean,
            'train_poses': self._train_poses(),
        }
        for name, weight in sorted(arrays.items()):
            digest.update(f'{name} {weight.dtype} {weight.shape}'.encode())
            digest.update(weight.tobytes())
        return digest.hexdigest()[:32]

    def module(self):
        """A new `network.ImageRegressor` in evaluation mode, on the CPU.

        Raises:
            SceneError: what the scene holds does not fit together.
        """
        import torch

        from pose_reloc.network import ImageRegressor

        scene = self._scene
        arrays = scene.train_features, scene.feature_mean, self._train_poses()
        try:
            module = ImageRegressor(scene.build_network(), *map(torch.from_numpy, arrays))
        except SettingsError as error:
            raise SceneError(f'scene {scene.header.name}: {error}') from error
        return module.eval().requires_grad_(False)

    def _train_poses(self) -> np.ndarray:
        """Where the images of `train_features` were taken, as `ImageRegressor` wants them."""
        poses = self._scene.train_world_T_camera[self._scene.train_frames]
        return np.concatenate(network_from_pose(poses), axis=1)

    def onnx(self) -> bytes:
        """The graph as a float32 ONNX model with the names `INPUT` and `OUTPUTS`.

        Raises:
            SettingsError: it has to be converted and the package onnx is not installed.
        """
        folder = cache_folder()
        for path in folder.glob(f'network-{self.key}-*.onnx'):
            try:
                data = path.read_bytes()
            except OSError:
                continue
            if path == _named(folder, self.key, data):
                return data
            path.unlink(missing_ok=True)  # damaged: its name does not hold its own hash
        data = self._convert()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(_named(folder, self.key, data), data)
        except (OSError, SceneError):
            pass  # a robot without a writable home converts at every start
        return data

    def _convert(self) -> bytes:
        import torch

        require('onnx')  # torch's exporter needs it
        # The older of torch's two exporters: 0.4 s instead of 4 s, for the same graph.
        older = {'dynamo': False} if 'dynamo' in signature(torch.onnx.export).parameters else {}
        written = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.onnx.export(
                self.module(),
                (torch.zeros(self.shape, dtype=torch.uint8),),
                written,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=_OPSET,
                **older,
            )
        return written.getvalue()


def _named(folder: Path, key: str, data: bytes) -> Path:
    return folder / f'network-{key}-{hashlib.sha256(data).hexdigest()[:16]}.onnx'


def describe(scene: SceneModel, batch: int = 1) -> dict[str, str]:
    """What goes into the graph and what comes out, for people and for the files written."""
    camera, coarse = scene.header.network_camera, scene.header.coarse
    B, H, W, _ = NetworkSource(scene, batch).shape
    K = min(MOST_SIMILAR, len(scene.train_frames))
    return {
        'scene': scene.header.name,
        INPUT: f'uint8 RGB ({B}, {H}, {W}, 3), rectified, of a pinhole camera with fx '
        f'{camera.fx:.6g}, fy {camera.fy:.6g}, cx {camera.cx:.6g}, cy {camera.cy:.6g}; pixel '
        '(0, 0) is the centre of the first one',
        'w_t_c': f"camera centre in the scene's world ({B}, 3), metres",
        'c_q_w': f'quaternion (w, x, y, z) of the rotation from the world to the camera ({B}, 4), '
        'of any length; camera axes: x right, y down, z forward',
        'distance': f'how little the image is like the training image most like it ({B}, 1), in '
        '[0, 2]',
        'similar': f'where the {K} training images most like it were taken ({B}, {K}, 7), that one '
        'first: camera centre and unit quaternion, as above',
        'covariance': "of the error along the axes of the scene's world: "
        f'{coarse.formula("distance", "mean(e e^T)")}; the mean is over the poses of similar, and '
        'e is the difference of the centres or, of rotations, twice the vector part of the unit '
        'quaternion conj(q_similar) q_answer with q = c_q_w',
    }


def write_onnx(scene: SceneModel, path: Path, batch: int = 1) -> None:
    """Writes the graph as ONNX, with `describe` as its metadata.

    Raises:
        SettingsError: the package onnx is not installed.
        SceneError: the file cannot be written.
    """
    data = NetworkSource(scene, batch).onnx()
    require('onnx')
    import onnx

    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, describe(scene, batch))
    write_atomically(path, model.SerializeToString())


def write_openvino(scene: SceneModel, path: Path, batch: int = 1) -> None:
    """Writes the graph for OpenVINO: `path`, which ends in .xml, and a .bin beside it.

    Raises:
        SettingsError: OpenVINO is not installed, or the file has another ending.
        SceneError: the files cannot be written.
    """
    require('openvino', 'onnx')
    import openvino

    if path.suffix != '.xml':
        raise SettingsError(f'an OpenVINO model ends in .xml, not as in {path}')
    if not path.parent.is_dir():  # OpenVINO would make one
        raise SceneError(f'cannot write {path}: there is no such folder')
    model = openvino.Core().read_model(NetworkSource(scene, batch).onnx())
    model.set_rt_info(describe(scene, batch), 'pose_reloc')
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise SceneError(f'cannot write {path}: {error}') from error
