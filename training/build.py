"""From posed images to a scene model: cache, train, calibrate, assemble."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from pose_reloc import __version__
from pose_reloc.backends import choose_device
from pose_reloc.errors import DatasetError
from pose_reloc.network import PoseRegressor
from pose_reloc.scene import SceneHeader, SceneModel
from training.cache import CacheSettings, build_cache
from training.calibration import calibrate_coarse
from training.datasets import Dataset, Sample
from training.evaluate import unit_features
from training.held_out import held_out_blocks, travel_blocks
from training.mapping import BuiltMap, MappingSettings, build_map
from training.processes import leads
from training.rehearsal import rehearse
from training.settings import TrainSettings
from training.trainer import TrainingResult, train

_FARTHEST_M = 20e3  # from the origin: float32, of network and landmarks, is exact to 2 mm there


@dataclass(frozen=True)
class BuiltScene:
    """A scene model and the run that made it."""

    scene: SceneModel
    result: TrainingResult


def build_scene(
    dataset: Dataset,
    settings: TrainSettings,
    name: str,
    command: str,
    folder: Path | None = None,
    resume: bool = False,
) -> BuiltScene | None:
    """Trains on the training split of a dataset; the scene has no landmarks yet.

    Of the processes of `torchrun` only the leading one puts the scene together; the others get
    None.

    Args:
        dataset: only its training split is read.
        settings: see TrainSettings.
        name: of the scene, for people.
        command: how the run was started, for the recipe.
        folder, resume: as `trainer.train`.

    Raises:
        DatasetError: a camera lies more than 20 km from the origin of the poses.
        PoseRelocError: bad data or settings.
    """
    samples = dataset.split('train')
    check_origin(samples)
    cache = build_cache(samples, CacheSettings(settings.short_side, settings.points, settings.seed))
    sequences = [sample.sequence for sample in samples]
    result = train(cache, sequences, settings, folder, resume)
    if not leads():
        return None
    held_out = held_out_blocks(cache.world_T_camera, sequences, settings.validation)
    recipe = result.recipe | {
        'command': command,
        'created': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'dataset': dataset.name,
        'data_sha256': cache.sha256,
        'versions': {
            'pose_reloc': __version__,
            'python': platform.python_version(),
            **{module.__name__: module.__version__ for module in (cv2, np, torch, torchvision)},
        },
        'covariance': 'held-out frames' if held_out.any() else 'as any pose of the scene',
    }
    coarse = calibrate_coarse(
        result.network,
        cache.images,
        cache.world_T_camera,
        held_out,
        travel_blocks(cache.world_T_camera, sequences),
    )
    header = SceneHeader(
        name,
        settings.network.to_dict(),
        samples[0].camera,
        cache.camera,
        coarse.calibration,
        recipe,
    )
    start = PoseRegressor(settings.network)
    start.backbone.load_state_dict(result.start_backbone)
    start.eval()
    batches = np.array_split(np.arange(len(cache)), -(-len(cache) // settings.batch))
    features = [unit_features(start, cache.images[b]).astype(np.float16) for b in batches]
    weights = {k: v.contiguous().numpy() for k, v in result.network.state_dict().items()}
    scene = SceneModel(
        header,
        weights,
        cache.world_T_camera,
        {k: _compact(v).numpy() for k, v in start.backbone.state_dict().items()},
        np.concatenate(features),
        coarse.train_features,
        coarse.feature_mean,
        coarse.train_frames,
    )
    return BuiltScene(scene, result)


def with_landmarks(
    scene: SceneModel,
    samples: list[Sample],
    settings: MappingSettings,
    built: BuiltMap | None = None,
) -> SceneModel:
    """The scene with a landmark map of the training images it was made from, calibrated.

    Args:
        scene: without landmarks, or with old ones.
        samples: the training split.
        settings: of the mapping.
        built: what `build_map` made of the same samples and settings, if it is known.

    Raises:
        DatasetError: other images, none of them has landmarks, or a camera lies more than 20 km
            from the origin of the poses.
    """
    check_origin(samples)
    poses = np.array([sample.world_T_camera for sample in samples])
    if poses.shape != scene.train_world_T_camera.shape or not np.allclose(
        poses, scene.train_world_T_camera, rtol=0, atol=1e-4
    ):
        raise DatasetError(
            f'these are not the training images of scene {scene.header.name}; '
            'give the dataset it was trained on'
        )
    built = built or build_map(samples, settings)
    scene = replace(scene, landmarks=built.landmarks)
    rehearsal = rehearse(built.landmarks, samples, built.tracks, choose_device(settings.device))
    recipe = scene.header.recipe | {'mapping': asdict(settings), 'rehearsal': rehearsal.summary()}
    header = replace(scene.header, recipe=recipe, calibration=rehearsal.calibration())
    return replace(scene, header=header)


def with_fitting_batch(settings: TrainSettings, samples: list[Sample]) -> TrainSettings:
    """The settings; of a recording too short for their batch, with batches of half its images."""
    poses = np.array([sample.world_T_camera for sample in samples])
    sequences = [sample.sequence for sample in samples]
    images = int((~held_out_blocks(poses, sequences, settings.validation)).sum())
    if images >= settings.batch:
        return settings
    fitting = max(1, images // 2)
    if leads():
        print(f'note: batches of {fitting} instead of {settings.batch}: there are {images} images')
    return settings.changed(batch=fitting)


def check_origin(samples: list[Sample]) -> None:
    """Raises DatasetError where a camera lies too far from the origin for float32."""
    centres = np.array([sample.world_T_camera[:3, 3] for sample in samples])
    metres = np.linalg.norm(centres, axis=1)
    worst = int(metres.argmax())
    if metres[worst] > _FARTHEST_M:
        x, y, z = centres[worst]
        raise DatasetError(
            f'the camera of training image {worst} ({samples[worst].image_path}) is at '
            f'({x:.6g}, {y:.6g}, {z:.6g}) m, {metres[worst] / 1000:.4g} km from the origin of the '
            f'poses; up to {_FARTHEST_M / 1000:g} km numbers are exact to 2 mm. Subtract one '
            'constant from all positions (also of 3D points), as from UTM coordinates, or, if this '
            'pose is wrong, look at the poses with `pose_reloc inspect`'
        )


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    # Only matrices and kernels: a running variance may leave the range of float16.
    return tensor.half() if tensor.ndim > 1 else tensor
