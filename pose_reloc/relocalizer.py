"""Relocalizer: one camera image to the camera's pose in the scene. The public API, ROS-free."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import cv2
import numpy as np

from pose_reloc import gates
from pose_reloc.backends import open_backend
from pose_reloc.camera import Camera
from pose_reloc.errors import SettingsError
from pose_reloc.geometry import is_rigid, network_offset, pose_from_network
from pose_reloc.pnp import CameraFit
from pose_reloc.preprocess import to_network_image
from pose_reloc.refine import Refiner, RefineSettings
from pose_reloc.scene import SceneModel
from pose_reloc.uncertainty import checked_covariance

# Of a REFINED pose: 0.1 mm and 0.003 deg. A zero variance would mean infinite trust downstream.
_LEAST_COVARIANCE = np.diag(np.r_[np.full(3, 1e-8), np.full(3, 2.5e-9)])
# An image whose landmarks were looked for and not found is a hard one for the network too: on 17
# such images of the red kitchen squared errors are twice as large as stated (docs/benchmarks.md).
_UNCONFIRMED = 2.0
_NOWHERE = np.full((4, 4), np.nan)


class Status(str, Enum):
    """How much an answer is worth."""

    REFINED = 'REFINED'  # computed from matched landmarks: centimetres
    COARSE = 'COARSE'  # the regressed pose
    LOST = 'LOST'  # refused; the reasons say why


@dataclass(frozen=True)
class Matches:
    """Landmarks found in an image, inliers of the pose only.

    Attributes:
        uv: pixels (M, 2) float32 in the image as it was given.
        points: the landmarks (M, 3) in the scene's world.
    """

    uv: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class PosePrior:
    """Where the camera is believed to be before its image is looked at, for example by odometry.

    Attributes:
        world_T_camera: camera pose (4, 4) in the scene's world.
        covariance_66: (6, 6), as `PoseEstimate.covariance_66`; may be singular.

    Raises:
        SettingsError: a pose that is not rigid, or a covariance with a negative eigenvalue.
    """

    world_T_camera: np.ndarray
    covariance_66: np.ndarray

    def __post_init__(self):
        pose = np.asarray(self.world_T_camera, dtype=np.float64)
        if pose.shape != (4, 4) or not is_rigid(pose):
            raise SettingsError(
                f'world_T_camera of a prior must be a rigid pose (4, 4), got {pose}'
            )
        try:
            covariance = checked_covariance(self.covariance_66)
        except ValueError as error:
            raise SettingsError(f'covariance_66 of a prior {error}') from error
        object.__setattr__(self, 'world_T_camera', pose)
        object.__setattr__(self, 'covariance_66', covariance)


@dataclass(frozen=True)
class PoseEstimate:
    """The answer to one image.

    Attributes:
        status: see `Status`.
        world_T_camera: camera pose (4, 4) in the scene's world, optical axes, metres. For LOST it
            is the refused pose, for tuning only (NaN when there is none).
        covariance_66: (6, 6) of `geometry.pose_residual`: (x, y, z, rotX, rotY, rotZ) along the
            fixed axes of the scene's world.
        inliers: landmarks that the pose explains; 0 unless REFINED.
        reasons: why it is no better: of LOST the gates that refused; of COARSE 'too_few_inliers'
            where the scene has landmarks; none otherwise.
        timings: seconds by stage: 'preprocess', 'infer', 'refine', 'total'.
        regressed_world_T_camera: what the network alone answered (4, 4); None when it was not asked
            or its answer was not finite.
        regressed_covariance_66: the covariance of that, as of any image; None likewise. Where the
            scene has landmarks and they were not found, `covariance_66` is twice as large.
        matches: the landmarks behind a REFINED answer.
        likeness: to the most similar keyframe: cosine of global descriptors; None without them.
        camera_fit: whether the matches of a REFINED answer fit its camera; None for others.
        refined: the pose was computed from landmarks, also where it was refused: then LOST.
    """

    status: Status
    world_T_camera: np.ndarray
    covariance_66: np.ndarray
    inliers: int = 0
    reasons: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    regressed_world_T_camera: np.ndarray | None = None
    regressed_covariance_66: np.ndarray | None = None
    matches: Matches | None = None
    likeness: float | None = None
    camera_fit: CameraFit | None = None
    refined: bool = False


class Relocalizer:
    """A loaded scene, ready to answer. For one caller at a time.

    Example:
        >>> relocalizer = Relocalizer.load('kitchen.scene')            # doctest: +SKIP
        >>> estimate = relocalizer.localize(image_rgb, camera)         # doctest: +SKIP
        >>> estimate.status, estimate.world_T_camera[:3, 3]            # doctest: +SKIP
    """

    def __init__(
        self,
        scene: SceneModel,
        device: str = 'auto',
        precision: str = 'auto',
        gate_settings: gates.GateSettings = gates.GateSettings(),
        refine: bool = True,
        backend: str = 'auto',
    ):
        self.scene = scene
        self.backend = open_backend(scene, device, precision, backend)
        self._refiner = self._drift = None
        if refine and scene.landmarks:
            self._refiner = Refiner(scene.landmarks, device=self.backend.device)
            self._drift = scene.landmarks.drift(scene.train_world_T_camera)
        self.gate_settings = gate_settings
        self._train_centres = np.ascontiguousarray(scene.train_world_T_camera[:, :3, 3])

    @property
    def gate_settings(self) -> gates.GateSettings:
        """When an answer is refused; may be changed between two images."""
        return self._gate_settings

    @gate_settings.setter
    def gate_settings(self, settings: gates.GateSettings) -> None:
        self._gate_settings = settings
        landmarks = self.scene.landmarks
        usual = landmarks.viewing_distance() if landmarks else 0.0
        self._max_distance_m = gates.max_distance(usual, settings)
        if self._refiner:
            self._refiner.settings = RefineSettings(min_inliers=settings.min_inliers)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = 'auto',
        precision: str = 'auto',
        refine: bool = True,
        backend: str = 'auto',
        gate_settings: gates.GateSettings = gates.GateSettings(),
    ) -> Relocalizer:
        """Loads a scene file onto a device.

        Args:
            path: the scene file.
            device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', ...
            precision: 'float32', 'bfloat16', 'float16', or 'auto': half precision on a GPU.
            refine: False answers with the regressed pose alone.
            backend: the engine that runs the network, of `backends.BACKENDS`, or 'auto': the
                fastest that is installed.
            gate_settings: when an answer is refused.

        Raises:
            SceneError: the file cannot be used.
            SettingsError: the device, precision or backend does not exist here.
        """
        return cls(SceneModel.load(path), device, precision, gate_settings, refine, backend)

    def describe(self) -> str:
        """What runs the network, and why, for people."""
        return str(self.backend)

    def warm_up(self, runs: int = 3) -> float:
        """Runs network and refinement on an image of no place; returns seconds taken.

        The first runs choose kernels and fetch memory from the system, several times as slow.
        """
        start = time.perf_counter()
        camera = self.scene.header.camera
        size = (camera.height // 8 + 1, camera.width // 8 + 1, 3)
        small = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        image = cv2.resize(small, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
        for _ in range(runs):
            self._regress(to_network_image(image, camera, self.scene.header.network_camera))
            if self._refiner:
                self._refiner.refine(image, camera, [])
        return time.perf_counter() - start

    def localize(
        self,
        image_HW3: np.ndarray,
        camera: Camera | None = None,
        prior: PosePrior | None = None,
    ) -> PoseEstimate:
        """Answers one image.

        Args:
            image_HW3: uint8 RGB.
            camera: the camera that took it; None means the camera of the training images.
            prior: where to look first, and beyond which not to look; an answer that contradicts
                it is refused.

        Raises:
            CameraError: the image is not uint8 RGB of the size that its camera says.
        """
        start = time.perf_counter()
        header = self.scene.header
        camera = camera or header.camera
        small = to_network_image(image_HW3, camera, header.network_camera)
        timings = {'preprocess': time.perf_counter() - start}
        reasons = gates.image_reasons(small, self.gate_settings)
        if reasons:
            timings['total'] = time.perf_counter() - start
            unknown = header.coarse.covariance(np.nan, np.zeros((1, 6)))
            return PoseEstimate(
                Status.LOST, _NOWHERE.copy(), unknown, reasons=tuple(reasons), timings=timings
            )
        regressed, regressed_covariance = self._regress(small)
        covariance = regressed_covariance
        timings['infer'] = time.perf_counter() - start - timings['preprocess']
        status, pose, inliers, matches, likeness = Status.COARSE, regressed, 0, None, None
        camera_fit = None
        if self._refiner:
            usable = None
            if prior:
                usable = self.scene.landmarks.reachable(prior.world_T_camera, prior.covariance_66)
            found, evidence = self._refiner.refine(
                image_HW3, camera, _guesses(prior, regressed), usable
            )
            likeness = evidence.likeness
            if found:
                status, inliers = Status.REFINED, len(found.uv)
                matches, camera_fit = Matches(found.uv, found.points), found.camera
                pose, spread = self._drift.to_given(found.world_T_camera)
                covariance = found.covariance(spread, header.calibration.refined_scale)
                covariance += _LEAST_COVARIANCE
                timings |= {f'refine.{name}': t for name, t in found.timings.items()}
            else:
                covariance = _UNCONFIRMED * regressed_covariance
                reasons += gates.unrefined_reasons(
                    small, likeness, header.calibration.least_likeness, self.gate_settings
                ) or gates.unconfirmed_reasons(evidence.vote, regressed, self.gate_settings)
        refined = status is Status.REFINED
        timings['refine'] = time.perf_counter() - start - timings['preprocess'] - timings['infer']
        reasons += gates.pose_reasons(pose, covariance, self._train_centres, self._max_distance_m)
        if not reasons:
            believed = (prior.world_T_camera, prior.covariance_66) if prior else (None, None)
            reasons += gates.estimate_reasons(pose, covariance, *believed, self.gate_settings)
        if reasons:
            status, inliers, matches, camera_fit = Status.LOST, 0, None, None
        elif self._refiner and status is Status.COARSE:
            reasons.append('too_few_inliers')
        timings['total'] = time.perf_counter() - start
        answered = np.isfinite(regressed).all()
        return PoseEstimate(
            status,
            pose,
            covariance,
            inliers,
            tuple(reasons),
            timings,
            regressed if answered else None,
            regressed_covariance if answered else None,
            matches,
            likeness,
            camera_fit,
            refined,
        )

    def _regress(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A network image (H, W, 3) uint8 to a pose (4, 4) and its covariance (6, 6).

        The pose is NaN where there is none.
        """
        coarse = self.scene.header.coarse
        w_t_c, c_q_w, distance, similar = (x[0] for x in self.backend(image_HW3[None]))
        lengths = math.hypot(*w_t_c.tolist()), math.hypot(*c_q_w.tolist())
        if not all(map(math.isfinite, lengths)) or lengths[1] < 1e-6:
            return _NOWHERE.copy(), coarse.covariance(np.nan, np.zeros((1, 6)))
        offset = network_offset(similar[:, :3], similar[:, 3:], w_t_c, c_q_w)
        return pose_from_network(w_t_c, c_q_w), coarse.covariance(distance[0], offset)


def _guesses(prior: PosePrior | None, regressed: np.ndarray) -> list[np.ndarray]:
    guesses = [] if prior is None else [prior.world_T_camera]
    return guesses + ([regressed] if np.isfinite(regressed).all() else [])
