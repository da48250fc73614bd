"""Refinement: accuracy by cue and by kind of features, and what each stage costs.

A scene file gives the regressed poses. Without one the regressor is untrained: what it would decide
is left out, what it costs is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import cv2
import numpy as np
from tqdm import tqdm

from pose_reloc import gates
from pose_reloc.camera import Camera
from pose_reloc.errors import SettingsError
from pose_reloc.features import DESCRIPTOR_TYPES, FeatureSettings, open_features, root_sift
from pose_reloc.geometry import invert_pose, perturb_pose, pose_matrix
from pose_reloc.landmarks import LandmarkMap, global_descriptor
from pose_reloc.refine import Refiner, RefineSettings
from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training.benchmarks.measure import Case, Role, Timed, interleave
from training.benchmarks.table import Bar, PlainTable, Table, find
from training.benchmarks.workload import BenchSettings, untrained_scene
from training.datasets import Sample
from training.mapping import MappingSettings, build_landmarks
from training.metrics import per_frame_errors

_MOST = 60  # test images that are asked about
_MAPPED = 120  # training images of the maps that compare kinds of features: ALIKED takes its time
_PRIOR = np.r_[np.full(3, 0.2), np.full(3, np.deg2rad(5))]  # standard deviations, m and rad
_PLAIN_KEYFRAMES = 10  # that the plain script looks at


@dataclass(frozen=True)
class Way:
    """A way to find the keyframes that an image is compared with."""

    name: str
    regressed: bool  # near the regressed pose
    alike: bool  # by global descriptor
    prior: bool = False  # near a pose with an error of 0.2 m and 5 deg along each axis


RETRIEVAL = Way('retrieval', regressed=False, alike=True)
BOTH = Way('both cues', regressed=True, alike=True)
WAYS = (
    RETRIEVAL,
    Way('regressed pose', regressed=True, alike=False),
    BOTH,
    Way('both cues and a prior', regressed=True, alike=True, prior=True),
)

_HEADER = ['median of the answered', 'within 5 cm / 5 deg', 'answered', 'p50 ms']


def run(settings: BenchSettings) -> list[PlainTable | Table]:
    """Accuracy by cue, accuracy by kind of features, and the stages of `localize`."""
    tables = []
    for device in settings.devices:
        bench = _Bench(settings, device)
        tables += [bench.cues(), bench.kinds(), bench.stages()]
    return tables


class _Bench:
    """One dataset and its scene on one device."""

    def __init__(self, settings: BenchSettings, device: str):
        self._settings = settings
        self._train, test = settings.split('train'), settings.split('test')
        chosen = np.unique(np.linspace(0, len(test) - 1, min(len(test), _MOST)).astype(int))
        self._test = [test[i] for i in chosen]
        self._images = [sample.load_image() for sample in self._test]
        self._trained = settings.scene is not None
        self._scene = _scene(settings, self._train)
        self._landmarks = self._scene.landmarks
        self._relocalizer = Relocalizer(self._scene, device, gate_settings=gates.OPEN)
        self._regressor = Relocalizer(self._scene, device, gate_settings=gates.OPEN, refine=False)
        self._regressor.warm_up()
        self._script = PlainScript(self._scene)
        self._title = f'refinement: {device}, {self._scene.header.name}'

    def cues(self) -> PlainTable:
        """Accuracy of the regressor alone, of every way to find keyframes, of the plain script."""
        rows, notes = [['keyframes by', *_HEADER]], []
        if self._trained:
            answers = self._ask('regressor alone', lambda i: (self._regressed(i), {}))
            rows.append(['none: regressor alone', *answers.cells()])
        for way in WAYS:
            if self._trained or not way.regressed:
                rows.append([way.name, *self._refined(way, self._landmarks).cells()])
            else:
                notes.append(f'{way.name}: not measured without --scene')
        script = self._ask('plain script', lambda i: (self._script(*self._query(i)), {}))
        rows.append([f'plain OpenCV script, {_PLAIN_KEYFRAMES} by retrieval', *script.cells()])
        notes.append(f'{len(self._test)} test images, {len(self._landmarks)} keyframes')
        return PlainTable(f'{self._title}, by cue', rows, notes=tuple(notes))

    def kinds(self) -> PlainTable:
        """Accuracy of each kind of features, with maps of fewer training images."""
        index = np.arange(len(self._train))[:: -(-len(self._train) // _MAPPED)]
        rows, notes = [['features', *_HEADER, 'finding ms', 'matching ms']], []
        way, maps = BOTH if self._trained else RETRIEVAL, {}
        for kind in DESCRIPTOR_TYPES:
            features = FeatureSettings(kind=kind)
            try:
                open_features(features)
            except SettingsError as error:
                notes.append(f'{kind} was not measured: {error}')
                continue
            finder = kind.split('-')[0]  # kinds that only match otherwise share a map
            if finder not in maps:
                maps[finder] = self._map_of(index, features)
            landmarks = replace(maps[finder], features=features)
            answers = self._refined(way, landmarks)
            rows.append([kind, *answers.cells(), answers.stage('features'), answers.stage('match')])
        notes.append(f'keyframes by {way.name}; maps of {len(index)} training images')
        return PlainTable(f'{self._title}, by features', rows, notes=tuple(notes))

    def _map_of(self, index: np.ndarray, features: FeatureSettings) -> LandmarkMap:
        """A map of some of the training images, which it names by their index in all."""
        samples = [self._train[i] for i in index]
        landmarks = build_landmarks(samples, MappingSettings(features=features))
        return replace(
            landmarks,
            frames=index[landmarks.frames],
            anchor_frames=index[landmarks.anchor_frames],
        )

    def stages(self) -> Table:
        """What an answer costs, stage by stage, beside SIFT alone and the plain script."""
        queries = cycle([self._query(i) for i in range(min(8, len(self._test)))])
        seconds = self._settings.turn_seconds

        def case(name: str, role: Role, call: Callable) -> Case:
            return Case(name, Timed(lambda: call(*next(queries)), seconds), role)

        def turn(stage: str) -> float:
            taken = []
            localize = self._relocalizer.localize
            Timed(lambda: taken.append(localize(*next(queries)).timings[stage]), seconds)()
            return float(np.mean(taken[1:]))  # the first warmed up

        cases = [
            case('cv2 SIFT alone', Role.FLOOR, self._script.sift),
            case('plain OpenCV script', Role.ALTERNATIVE, self._script),
        ]
        for stage in self._relocalizer.localize(*next(queries)).timings:
            role = Role.OURS if stage == 'total' else Role.OTHER
            cases.append(Case(f'localize, {stage}', partial(turn, stage), role))
        measured = interleave(cases, self._settings.rounds, self._title)
        camera, bars = self._test[0].camera, ()
        if (camera.width, camera.height) == (640, 480):
            total = find(measured, 'localize, total').median
            bars = (Bar('localize on 2 cores, ms', total and 1e3 * total, 60),)
        title = f'{self._title}, {camera.width}x{camera.height}, by stage'
        return Table(title, 'ms', measured, bars)

    def _query(self, i: int) -> tuple[np.ndarray, Camera]:
        return self._images[i], self._test[i].camera

    def _regressed(self, i: int) -> np.ndarray | None:
        return self._regressor.localize(*self._query(i)).regressed_world_T_camera

    def _refined(self, way: Way, landmarks: LandmarkMap) -> Answers:
        """The answers of one way with one map."""
        settings = RefineSettings() if way.alike else RefineSettings(alike=0)
        refiner = Refiner(landmarks, settings, self._regressor.backend.device)
        drift = landmarks.drift(self._scene.train_world_T_camera)
        rng = np.random.default_rng(0)

        def answer(i: int):
            guesses = []
            if way.prior:
                noise = rng.normal(size=6) * _PRIOR
                guesses.append(perturb_pose(self._test[i].world_T_camera, noise))
            if way.regressed:
                guesses.append(self._regressed(i))
            found, _ = refiner.refine(*self._query(i), [g for g in guesses if g is not None])
            return (drift.to_given(found.world_T_camera)[0], found.timings) if found else (None, {})

        return self._ask(f'{landmarks.features.kind}, {way.name}', answer)

    def _ask(self, name: str, answer: Callable[[int], tuple[np.ndarray | None, dict]]) -> Answers:
        """`answer` gives the pose, or None, and the seconds of its stages."""
        answer(0)  # warms up
        poses, seconds, stages = [], [], []
        for i in tqdm(range(len(self._test)), name, unit='img', disable=None, leave=False):
            start = time.perf_counter()
            pose, taken = answer(i)
            seconds.append(time.perf_counter() - start)
            poses.append(np.full((4, 4), np.nan) if pose is None else pose)
            stages.append(taken)
        truth = np.array([sample.world_T_camera for sample in self._test])
        return Answers(*per_frame_errors(truth, np.array(poses)), np.array(seconds), stages)


@dataclass(frozen=True)
class Answers:
    """What came back for the test images.

    Attributes:
        metres, degrees: errors (N,), NaN without an answer.
        seconds: (N,).
        stages: the seconds of each stage, image by image.
    """

    metres: np.ndarray
    degrees: np.ndarray
    seconds: np.ndarray
    stages: list[dict[str, float]]

    def cells(self) -> list[str]:
        """The columns of `_HEADER`."""
        answered = np.isfinite(self.metres)
        good = (self.metres <= 0.05) & (self.degrees <= 5)
        median = '-'
        if answered.any():
            metres, degrees = np.nanmedian(self.metres), np.nanmedian(self.degrees)
            median = f'{metres * 100:.1f} cm, {degrees:.2f} deg'
        p50 = f'{np.median(self.seconds) * 1e3:.0f}'
        return [median, f'{good.mean():.0%}', f'{answered.mean():.0%}', p50]

    def stage(self, name: str) -> str:
        """Median milliseconds of a stage."""
        seconds = [stages[name] for stages in self.stages if name in stages]
        return f'{np.median(seconds) * 1e3:.0f}' if seconds else '-'


class PlainScript:
    """What a user would write: OpenCV's SIFT, brute force, a ratio test, solvePnPRansac.

    It has our map, RootSIFT and retrieval, and what carries an answer back to the given poses.
    """

    def __init__(self, scene: SceneModel):
        self._landmarks, settings = scene.landmarks, scene.landmarks.features
        self._drift = self._landmarks.drift(scene.train_world_T_camera)
        self._sift = cv2.SIFT_create(
            settings.max_features, contrastThreshold=settings.contrast_threshold
        )
        self._matcher = cv2.BFMatcher(cv2.NORM_L2)

    def sift(self, image_HW3: np.ndarray, camera: Camera):
        """SIFT alone."""
        return self._sift.detectAndCompute(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), None)

    def __call__(self, image_HW3: np.ndarray, camera: Camera) -> np.ndarray | None:
        """The pose (4, 4) of the camera; None where too few landmarks agree."""
        keypoints, descriptors = self.sift(image_HW3, camera)
        if not keypoints:
            return None
        descriptors = root_sift(descriptors)
        vlad = global_descriptor(descriptors, self._landmarks.vocabulary)
        uv, points = [], []
        for k in self._landmarks.alike(vlad, _PLAIN_KEYFRAMES):
            part = slice(*self._landmarks.starts[k : k + 2])
            theirs = self._landmarks.descriptors[part].astype(np.float32)
            for best, *rest in self._matcher.knnMatch(descriptors.astype(np.float32), theirs, k=2):
                if rest and best.distance < 0.8 * rest[0].distance:
                    uv.append(keypoints[best.queryIdx].pt)
                    points.append(self._landmarks.points[part][best.trainIdx])
        if len(uv) < 4:
            return None
        uv = camera.undistorted().project(camera.unproject(uv, np.ones(len(uv))))
        found, rotation, translation, inliers = cv2.solvePnPRansac(
            np.array(points), uv, camera.K, None
        )
        if not found or inliers is None or len(inliers) < RefineSettings().min_inliers:
            return None
        pose = invert_pose(pose_matrix(cv2.Rodrigues(rotation)[0], translation.ravel()))
        return self._drift.to_given(pose)[0]


def _scene(settings: BenchSettings, train: list[Sample]) -> SceneModel:
    """The scene that is given; else one with landmarks and an untrained network."""
    if settings.scene:
        scene = SceneModel.load(settings.scene)
        if scene.landmarks and scene.landmarks.features.kind == 'rootsift':
            return scene
        raise SettingsError(
            f'{settings.scene} has no RootSIFT landmarks; add them with `pose_reloc map`'
        )
    scene = untrained_scene(train[0].camera, settings.short_side)
    return replace(
        scene,
        train_world_T_camera=np.array([sample.world_T_camera for sample in train]),
        start_features=np.repeat(scene.start_features[:1], len(train), axis=0),
        landmarks=build_landmarks(train, MappingSettings()),
    )
