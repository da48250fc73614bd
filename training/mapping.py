"""Builds the LandmarkMap of a scene from its posed training images."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import local

import cv2
import numpy as np
from tqdm import tqdm

from pose_reloc.backends import choose_device
from pose_reloc.errors import DatasetError
from pose_reloc.features import (
    Features,
    FeatureSettings,
    nearest_matches,
    open_features,
    unit_descriptors,
)
from pose_reloc.geometry import invert_pose
from pose_reloc.landmarks import LandmarkMap, global_descriptor, view_overlap
from training.datasets import Sample
from training.pose_adjustment import AdjustmentSettings, Observations, adjust_poses
from training.triangulation import Triangulation, TriangulationSettings, triangulate

_MIN_LANDMARKS = 10  # of a frame that is used


@dataclass(frozen=True)
class MappingSettings:
    """How a landmark map is built."""

    features: FeatureSettings = field(default_factory=FeatureSettings)
    frames: int = 600  # training images that are used, evenly spaced along the way
    landmarks: int = 600  # kept per keyframe, strongest first
    overlap: float = 0.9  # a frame that overlaps less with all keyframes becomes one
    partners: int = 14  # frames that a frame is matched with when poses are adjusted
    partner_overlap: float = 0.2  # a partner's view overlaps at least so much
    apart: int = 8  # frames of one sequence nearer than this are no partners
    ratio: float = 0.9  # nearest over second nearest descriptor distance of a match
    words: int = 128  # of the global descriptor's vocabulary
    adjustment: AdjustmentSettings = field(default_factory=AdjustmentSettings)  # with depth
    triangulation: TriangulationSettings = field(default_factory=TriangulationSettings)  # without
    device: str = 'auto'  # where networks and products are computed
    seed: int = 0


@dataclass(frozen=True)
class _Frame:
    """Features with depth of one training image."""

    index: int  # in the samples
    features: Features
    local_N3: np.ndarray  # points in the camera, metres
    track_N: np.ndarray  # the triangulated point of each; empty where depth is known


@dataclass(frozen=True)
class Tracks:
    """Which images placed the landmarks of a triangulated map.

    Attributes:
        found: the triangulation of N images.
        settings: of the triangulation.
        frames: which training image each of its images is (N,).
        landmark_track: the point of the triangulation that each landmark is (P,).
    """

    found: Triangulation
    settings: TriangulationSettings
    frames: np.ndarray
    landmark_track: np.ndarray

    def without(self, landmarks: LandmarkMap, hidden: np.ndarray) -> tuple[LandmarkMap, np.ndarray]:
        """The map with its landmarks where other training images place them.

        Landmarks for which the others do not suffice are left out. The poses stay as they are.

        Args:
            landmarks: the map.
            hidden: mask of the training images whose rays do not count.

        Returns:
            The map, and the keyframes (K,) of it that have landmarks left; others are unchanged.
        """
        points, kept = self.found.placed_without(hidden[self.frames], self.settings)
        kept, first = kept[self.landmark_track], landmarks.starts[:-1]
        some = np.logical_or.reduceat(kept, first)
        kept |= ~np.repeat(some, np.diff(landmarks.starts))
        thinned = replace(
            landmarks,
            starts=np.concatenate([[0], np.cumsum(np.add.reduceat(kept, first, dtype=np.int64))]),
            points=points[self.landmark_track[kept]].astype(np.float32),
            descriptors=landmarks.descriptors[kept],
        )
        return thinned, some


@dataclass(frozen=True)
class BuiltMap:
    """A landmark map, and how it came about: None where depth placed the landmarks."""

    landmarks: LandmarkMap
    tracks: Tracks | None


def build_landmarks(samples: list[Sample], settings: MappingSettings) -> LandmarkMap:
    """The landmarks of `build_map`."""
    return build_map(samples, settings).landmarks


def build_map(samples: list[Sample], settings: MappingSettings) -> BuiltMap:
    """Builds a landmark map: with registered depth where all samples have it, else triangulated.

    Args:
        samples: the training split.
        settings: see MappingSettings.

    Raises:
        DatasetError: an image is damaged, or no image has enough landmarks.
    """
    count = min(len(samples), settings.frames)
    chosen = np.unique(np.linspace(0, len(samples) - 1, count).astype(int))
    found = None
    if all(sample.depth_loader for sample in samples):
        frames = _frames_with_depth(samples, chosen, settings)
        given = np.array([samples[f.index].world_T_camera for f in frames])
        adjusted = _adjusted(frames, samples, given, settings)
    else:
        frames, adjusted, found = _triangulated(samples, chosen, settings)
    camera = samples[0].camera
    keyframes = _keyframes(frames, adjusted, camera, settings)
    points, descriptors = [], []
    for k in keyframes:
        local = frames[k].local_N3[: settings.landmarks]
        points.append(local @ adjusted[k][:3, :3].T + adjusted[k][:3, 3])
        descriptors.append(frames[k].features.descriptors[: settings.landmarks])
    vocabulary = _vocabulary(descriptors, settings)
    landmarks = LandmarkMap(
        settings.features,
        adjusted[keyframes],
        np.array([frames[k].index for k in keyframes]),
        np.concatenate([[0], np.cumsum([len(p) for p in points])]),
        np.concatenate(points).astype(np.float32),
        np.concatenate(descriptors),
        vocabulary,
        np.array([global_descriptor(d, vocabulary) for d in descriptors]).astype(np.float16),
        np.array([frame.index for frame in frames]),
        adjusted,
    )
    if found is None:
        return BuiltMap(landmarks, None)
    track = np.concatenate([frames[k].track_N[: settings.landmarks] for k in keyframes])
    return BuiltMap(landmarks, Tracks(found, settings.triangulation, chosen, track))


def _features(samples, chosen, settings: MappingSettings, then):
    """`then(index, features)` of every chosen image, several at a time, in order."""
    extractors, device = local(), choose_device(settings.device)
    shared = None
    if device.type == 'cuda' and settings.features.kind != 'rootsift':
        # A network for each thread would fill the memory of a GPU: they take turns with one.
        shared = open_features(settings.features, device)

    def one(index: int):
        if not hasattr(extractors, 'mine'):
            extractors.mine = shared or open_features(settings.features, device)
        return then(index, extractors.mine.extract(samples[index].load_image()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(one, chosen.tolist())
        return list(tqdm(results, 'finding features', len(chosen), unit='img', disable=None))


def _frames_with_depth(samples, chosen, settings: MappingSettings) -> list[_Frame]:
    def frame(index: int, features: Features) -> _Frame:
        sample = samples[index]
        z = depth_at(sample.load_depth(), features.uv)
        known = (z > 0) & sample.camera.undistort(features.uv)[1]
        points = sample.camera.unproject(features.uv[known], z[known])
        return _Frame(index, features.chosen(known), points, np.zeros(0, dtype=np.int64))

    return _worthwhile(_features(samples, chosen, settings, frame))


def _triangulated(samples, chosen, settings: MappingSettings):
    """Frames with triangulated points, their adjusted poses (N, 4, 4), and the triangulation."""

    def undistorted(index: int, features: Features) -> Features:
        uv, usable = samples[index].camera.undistort(features.uv)
        return Features(uv[usable], features.descriptors[usable])

    features = _features(samples, chosen, settings, undistorted)
    found = triangulate(
        features,
        [samples[i].camera.undistorted() for i in chosen],
        np.array([samples[i].world_T_camera for i in chosen]),
        settings.triangulation,
    )
    frames = []
    for n, index in enumerate(chosen):
        known = found.track_id[n] >= 0
        camera_T_world = invert_pose(found.world_T_camera[n])
        points = found.points(n)[known] @ camera_T_world[:3, :3].T + camera_T_world[:3, 3]
        seen = features[n].chosen(known)
        frames.append(_Frame(int(index), seen, points, found.track_id[n][known]))
    enough = [n for n, frame in enumerate(frames) if len(frame.local_N3) >= _MIN_LANDMARKS]
    return _worthwhile(frames), found.world_T_camera[enough], found


def _worthwhile(frames: list[_Frame]) -> list[_Frame]:
    frames = [frame for frame in frames if len(frame.local_N3) >= _MIN_LANDMARKS]
    if not frames:
        raise DatasetError(
            'no training image has landmarks: features with known depth, or seen in other images '
            'from another place. Check the poses and intrinsics with `pose_reloc inspect`, or '
            'train with --no-map'
        )
    return frames


def depth_at(depth_HW: np.ndarray, uv_N2: np.ndarray) -> np.ndarray:
    """Depth (N,) at pixels: median of 3x3; 0 at an edge in depth, or where depth is unknown."""
    H, W = depth_HW.shape
    u, v = np.rint(uv_N2).astype(int).T
    near = []
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            near.append(depth_HW[np.clip(v + dv, 0, H - 1), np.clip(u + du, 0, W - 1)])
    near = np.array(near)
    near = np.sort(np.where(near > 0, near, np.inf), axis=0)  # what is known comes first
    count = np.isfinite(near).sum(axis=0)
    many = np.flatnonzero(count >= 5)
    least, most = near[0, many], near[count[many] - 1, many]
    middle = (near[(count[many] - 1) // 2, many] + near[count[many] // 2, many]) / 2
    depth = np.zeros(len(uv_N2))
    depth[many] = np.where(most - least < 0.05 * middle, middle, 0.0)
    return depth


def _adjusted(frames, samples, given, settings: MappingSettings) -> np.ndarray:
    """Adjusted poses (N, 4, 4) of the frames."""
    pinhole = samples[0].camera.undistorted()
    sampled = _sampled(frames, given)
    sequences = np.array([samples[frame.index].sequence for frame in frames])
    observations, device = [], choose_device(settings.device)
    for n in tqdm(range(len(frames)), 'matching frames', unit='img', disable=None):
        uv, partner, local = [], [], []
        partners = _partners(n, sampled, given, sequences, pinhole, settings)
        others = [frames[k].features for k in partners]
        found = nearest_matches(frames[n].features, others, settings.ratio, device)
        for k, (row, column) in zip(partners, found, strict=True):
            uv.append(pinhole.project(frames[n].local_N3[row]))
            partner.append(np.full(len(row), k))
            local.append(frames[k].local_N3[column])
        observations.append(
            Observations(
                np.concatenate([np.zeros((0, 2)), *uv]),
                np.concatenate([np.zeros(0, int), *partner]),
                np.concatenate([np.zeros((0, 3)), *local]),
            )
        )
    return adjust_poses(given, observations, pinhole, settings.adjustment)


def _partners(
    n: int, sampled_NS3, given, sequences, camera, settings: MappingSettings
) -> list[int]:
    """Frames that see what frame n sees, drawn at random: near ones and ones far away in time.

    Neighbours in time drift together, so that they say nothing about the drift.
    """
    overlap = view_overlap(sampled_NS3, given, given[n], camera)
    close = np.abs(np.arange(len(given)) - n) < settings.apart
    overlap[close & (sequences == sequences[n])] = 0
    seen = np.flatnonzero(overlap > settings.partner_overlap)
    rng = np.random.default_rng([settings.seed, n])
    return sorted(rng.permutation(seen)[: settings.partners].tolist())


def _sampled(frames: list[_Frame], poses: np.ndarray, count: int = 32) -> np.ndarray:
    """Points (N, count, 3) in the world that stand for what each frame sees."""
    points = []
    for frame, pose in zip(frames, poses, strict=True):
        index = np.linspace(0, len(frame.local_N3) - 1, count).astype(int)
        points.append(frame.local_N3[index] @ pose[:3, :3].T + pose[:3, 3])
    return np.array(points)


def _keyframes(frames, poses, camera, settings: MappingSettings) -> np.ndarray:
    """Indices of the frames that cover what all frames see."""
    sampled = _sampled(frames, poses)
    chosen: list[int] = []
    for n in range(len(frames)):
        if not chosen or (
            view_overlap(sampled[chosen], poses[chosen], poses[n], camera).max() < settings.overlap
        ):
            chosen.append(n)
    return np.array(chosen)


def _vocabulary(descriptors: list[np.ndarray], settings: MappingSettings) -> np.ndarray:
    """Visual words (V, 128): k-means of the descriptors, unit length."""
    rng = np.random.default_rng(settings.seed)
    descriptors = np.concatenate(descriptors)
    sample = rng.permutation(len(descriptors))[: 400 * settings.words]
    data = unit_descriptors(descriptors[sample]).numpy()
    words = min(settings.words, len(data))
    cv2.setRNGSeed(settings.seed)
    stop = (cv2.TERM_CRITERIA_COUNT, 10, 0)
    _, _, centres = cv2.kmeans(data, words, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
