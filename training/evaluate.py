"""Runs a Relocalizer over posed images and sums up what came back, beside two baselines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import pose_residual
from pose_reloc.network import NetworkSettings, PoseRegressor
from pose_reloc.preprocess import normalize, to_network_image
from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.scene import SceneModel
from training.datasets import Sample
from training.metrics import (
    Reprojection,
    coverage,
    error_metrics,
    mean_pose,
    mean_reprojection_px,
    nees,
    per_frame_errors,
    reprojection,
)

# Position errors in metres and rotation errors in degrees (N,) of the same N frames.
Errors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Frame:
    """One image of an evaluation.

    Attributes:
        name: of the image, for people; no two frames of an evaluation have the same.
        time_s: its stamp, seconds.
        truth: true pose (4, 4); None where unknown.
        estimate: the pose (4, 4) that came back; None when nothing did.
        covariance_66: the covariance that came with it.
        status: of the answer, or why there is none: 'LOST', 'unreadable', 'no answer', ...
        reasons: names of the gates that refused.
        latency_s: from handing the image over to having the answer; None without one.
        reprojection: of the estimate; None without one, or without points to project.
    """

    name: str
    time_s: float
    truth: np.ndarray | None
    estimate: np.ndarray | None
    covariance_66: np.ndarray | None = None
    status: str = ''
    reasons: tuple[str, ...] = ()
    latency_s: float | None = None
    reprojection: Reprojection | None = None

    def error(self) -> tuple[float, float]:
        """Metres and degrees from the truth, which must be known; infinite without an estimate."""
        if self.estimate is None:
            return np.inf, np.inf
        metres, degrees = per_frame_errors(self.truth[None], self.estimate[None])
        return float(metres[0]), float(degrees[0])

    def nees(self) -> float | None:
        """`metrics.nees` of this frame; None without a truth, an estimate or a covariance."""
        if self.truth is None or self.estimate is None or self.covariance_66 is None:
            return None
        return float(nees(pose_residual(self.truth, self.estimate), self.covariance_66)[0])


@dataclass(frozen=True)
class Evaluation:
    """What came back for a set of images.

    Attributes:
        frames: one for each image.
        baselines: name of a method that learns nothing to its errors on the same images.
        train: the same for the training images, where they were asked for.
    """

    frames: list[Frame]
    baselines: dict[str, Errors] = field(default_factory=dict)
    train: Evaluation | None = None

    def errors(self) -> Errors:
        """Errors of all frames that have a truth, infinite for those without an estimate."""
        errors = [f.error() for f in self.frames if f.truth is not None]
        return tuple(np.array(errors).reshape(-1, 2).T)

    def summary(self) -> dict:
        """The result as plain JSON types, without the frames.

        Medians, percentiles and pixels are over the answered frames; recall is over all frames that
        have a truth, so that silence is not rewarded.
        """
        answered = [f for f in self.frames if f.estimate is not None]
        scored = [f for f in answered if f.truth is not None]
        result = error_metrics(*self.errors())
        result |= {
            'frames': len(self.frames),
            'answered': len(answered),
            'with_truth': sum(f.truth is not None for f in self.frames),
            'answers': _count(f.status for f in answered),
            'not_answered': _count(f.status for f in self.frames if f.estimate is None),
            'reasons': _count(r for f in self.frames for r in f.reasons),
            'reprojection_px': mean_reprojection_px(f.reprojection for f in self.frames),
        }
        latency = [f.latency_s * 1e3 for f in answered if f.latency_s is not None]
        for p in (50, 95):
            result[f'latency_p{p}_ms'] = float(np.percentile(latency, p)) if latency else None
        squared = [f.nees() for f in scored]
        if squared and None not in squared:
            result['nees_mean'] = float(np.mean(squared))
            result['coverage'] = coverage(squared)
        result['baselines'] = {name: error_metrics(*e) for name, e in self.baselines.items()}
        if self.train:
            result['train'] = self.train.summary()
        return result

    def to_json(self) -> dict:
        """The summary and every frame, as plain JSON types."""
        return self.summary() | {'per_frame': [_frame_json(f) for f in self.frames]}


def evaluate(
    relocalizer: Relocalizer,
    samples: list[Sample],
    title: str = 'evaluating',
    with_baselines: bool = True,
) -> Evaluation:
    """Localises every sample.

    A damaged image is counted as unreadable and the rest is still answered.

    Args:
        relocalizer: that answers.
        samples: posed images.
        title: of the progress bar.
        with_baselines: False saves their time.

    Returns:
        Poses are those of the colour camera in the scene's world.
    """
    frames, features, truths = [], [], []
    relocalizer.warm_up()
    retrieval = RetrievalBaseline(relocalizer.scene) if with_baselines else None
    named = zip(samples, _names(samples), strict=True)
    for sample, name in tqdm(named, title, len(samples), unit='img', disable=None):
        frame = Frame(name, sample.timestamp, sample.world_T_camera, None, status='unreadable')
        try:
            image = sample.load_image()
        except DatasetError as error:
            tqdm.write(f'skipped: {error}')
            frames.append(frame)
            continue
        frames.append(_answered(frame, relocalizer, sample, image))
        if retrieval:
            features.append(retrieval.describe(image, sample.camera))
            truths.append(sample.world_T_camera)
    return Evaluation(frames, baselines(retrieval, features, truths) if retrieval else {})


def _names(samples: list[Sample]) -> list[str]:
    """Sequence and file; where a sequence takes files of one name from two folders, numbered."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for sample in samples:
        name = f'{sample.sequence}/{sample.image_path.name}'
        number = counts[name] = counts.get(name, 0) + 1
        names.append(name if number == 1 else f'{name}#{number}')
    return names


def _answered(frame: Frame, relocalizer: Relocalizer, sample: Sample, image_HW3) -> Frame:
    """The frame with what the relocalizer says to its image."""
    start = time.perf_counter()
    answer = relocalizer.localize(image_HW3, sample.camera)
    latency = time.perf_counter() - start
    frame = replace(frame, status=answer.status.value, reasons=answer.reasons, latency_s=latency)
    if answer.status is Status.LOST:
        return frame
    return replace(
        frame,
        estimate=answer.world_T_camera,
        covariance_66=answer.covariance_66,
        reprojection=_reprojection(sample, answer.world_T_camera),
    )


def _reprojection(sample: Sample, world_T_camera: np.ndarray) -> Reprojection | None:
    """None where the image comes without points."""
    try:
        points = sample.load_points()
    except DatasetError as error:
        tqdm.write(f'no reprojection error: {error}')
        return None
    if points is None:
        return None
    return reprojection(points, sample.camera, sample.world_T_camera, world_T_camera)


class RetrievalBaseline:
    """Answers with the pose of the training image that looks most alike.

    Alike to the backbone as it was before training (ImageNet's, as a rule), so that the baseline
    has learnt nothing of the scene.
    """

    def __init__(self, scene: SceneModel):
        self.scene = scene
        network = PoseRegressor(NetworkSettings(**scene.header.network))
        state = {n: torch.from_numpy(w).float() for n, w in scene.start_backbone.items()}
        network.backbone.load_state_dict(state)
        self._network = network.eval().to(memory_format=torch.channels_last)

    def describe(self, image_HW3: np.ndarray, camera: Camera | None = None) -> np.ndarray:
        """Features (F,) of unit length of one uint8 RGB image."""
        header = self.scene.header
        small = to_network_image(image_HW3, camera or header.camera, header.network_camera)
        return unit_features(self._network, small[None])[0]

    def nearest(self, features_NF) -> np.ndarray:
        """Poses (N, 4, 4) of the training images nearest in angle to the features."""
        similarity = np.asarray(features_NF) @ self.scene.start_features.astype(np.float32).T
        return self.scene.train_world_T_camera[similarity.argmax(axis=1)]


def unit_features(network: PoseRegressor, image_BHW3: np.ndarray) -> np.ndarray:
    """Backbone features (B, F) float32, rows of unit length, of network images, on the CPU."""
    with torch.inference_mode():
        features = network.features(normalize(torch.from_numpy(np.array(image_BHW3))))
        return torch.nn.functional.normalize(features.float(), dim=1).numpy()


def baselines(
    retrieval: RetrievalBaseline,
    features: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    map_T_scene: np.ndarray | None = None,
    camera_T_body: np.ndarray | None = None,
) -> dict[str, Errors]:
    """What two methods that learn nothing would have answered.

    `retrieval` is `RetrievalBaseline`; `mean_pose` always answers with the mean training pose.

    Args:
        retrieval: of the scene.
        features: `retrieval.describe(image)` of each image.
        truths: its true pose (4, 4): of the camera in the scene, or, with the next two, of a body
            in the map.
        map_T_scene: (4, 4) when the truths are in another frame than the scene.
        camera_T_body: (4, 4) when the truths are those of a body that carries the camera.

    Returns:
        Name to errors; empty without images.
    """
    if len(features) == 0:
        return {}
    before = np.eye(4) if map_T_scene is None else map_T_scene
    after = np.eye(4) if camera_T_body is None else camera_T_body
    truths = np.array(truths)
    mean = before @ mean_pose(retrieval.scene.train_world_T_camera) @ after
    nearest = before @ retrieval.nearest(features) @ after
    return {
        'mean_pose': per_frame_errors(truths, np.broadcast_to(mean, truths.shape)),
        'retrieval': per_frame_errors(truths, nearest),
    }


def _frame_json(frame: Frame) -> dict:
    values = {
        'name': frame.name,
        'time_s': frame.time_s,
        'status': frame.status,
        'reasons': list(frame.reasons),
        'latency_ms': None if frame.latency_s is None else frame.latency_s * 1e3,
        'truth': None if frame.truth is None else frame.truth.tolist(),
        'estimate': None if frame.estimate is None else frame.estimate.tolist(),
    }
    if frame.truth is not None and frame.estimate is not None:
        metres, degrees = frame.error()
        values |= {'position_error_m': metres, 'rotation_error_deg': degrees, 'nees': frame.nees()}
    if frame.reprojection:
        values |= {'reprojection_px': frame.reprojection.px, 'points': frame.reprojection.points}
    return values


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
