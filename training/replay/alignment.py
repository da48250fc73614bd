"""Answers moved onto the truth as a whole, where the two are known in different frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import pose_matrix, rotation_angle
from pose_reloc.scene import SceneModel
from training.align import AlignError
from training.evaluate import Frame
from training.umeyama import umeyama

# Positions of a short or straight path hardly say how it is turned; orientations do.
_SUSPICIOUS_DEG = 2.0


@dataclass(frozen=True)
class Similarity:
    """Maps positions p in the frame of the answers to `scale R p + t` in that of the truth.

    Attributes:
        R: rotation (3, 3).
        t: translation (3,), metres.
        scale: 1 for se3.
        positions: how many it was fitted to.
        disagreement_deg: between R and the turn that the orientations ask for.
    """

    R: np.ndarray
    t: np.ndarray
    scale: float
    positions: int
    disagreement_deg: float

    def frame(self, frame: Frame) -> Frame:
        """The frame with its estimate and its covariance moved."""
        if frame.estimate is None:
            return frame
        pose, covariance = frame.estimate, frame.covariance_66
        position = self.scale * self.R @ pose[:3, 3] + self.t
        if covariance is not None:
            M = np.zeros((6, 6))
            M[:3, :3], M[3:, 3:] = self.scale * self.R, self.R
            covariance = M @ covariance @ M.T
        return replace(
            frame, estimate=pose_matrix(self.R @ pose[:3, :3], position), covariance_66=covariance
        )

    def scene(self, scene: SceneModel) -> SceneModel:
        """The scene moved with its answers, for baselines and pictures; not for localizing."""
        map_T_scene = scene.map_T_scene
        moved = pose_matrix(
            self.R @ map_T_scene[:3, :3], self.scale * self.R @ map_T_scene[:3, 3] + self.t
        )
        poses = scene.train_world_T_camera.copy()
        poses[:, :3, 3] *= self.scale
        landmarks = scene.landmarks
        if landmarks:
            landmarks = replace(landmarks, points=landmarks.points * np.float32(self.scale))
        return replace(scene, map_T_scene=moved, train_world_T_camera=poses, landmarks=landmarks)

    def __str__(self) -> str:
        degrees = np.rad2deg(rotation_angle(self.R))
        text = (
            f'answers aligned with the truth, by least squares over {self.positions} positions: '
            f'turned by {degrees:.2f} deg, moved by {np.linalg.norm(self.t):.3f} m'
        )
        if self.scale != 1:
            text += f', scaled by {self.scale:.4f}'
        if self.disagreement_deg > _SUSPICIOUS_DEG:
            text += (
                f'. Their orientations ask for a turn that differs by {self.disagreement_deg:.1f} '
                'deg: the path is too short or too straight for this, or the two do not describe '
                'the same body'
            )
        return text


def fit(frames: Sequence[Frame], kind: str) -> Similarity:
    """The motion of the answers that brings their positions nearest to the truth.

    It is that of `evo_ape -a` (se3) and `evo_ape -as` (sim3).

    Args:
        frames: of which those with an estimate and a truth count.
        kind: 'se3', or 'sim3' to scale as well.

    Raises:
        AlignError: their positions do not determine it.
    """
    scored = [f for f in frames if f.estimate is not None and f.truth is not None]
    estimates = np.array([f.estimate for f in scored]).reshape(-1, 4, 4)
    truths = np.array([f.truth for f in scored]).reshape(-1, 4, 4)
    try:
        R, t, scale = umeyama(estimates[:, :3, 3], truths[:, :3, 3], with_scale=kind == 'sim3')
    except ValueError as error:
        raise AlignError(
            f'--align {kind} is not possible over the {len(scored)} answers with a known true '
            f'pose: {error}'
        ) from error
    turns = Rotation.from_matrix(truths[:, :3, :3] @ estimates[:, :3, :3].transpose(0, 2, 1))
    disagreement = rotation_angle(R.T @ turns.mean().as_matrix())
    return Similarity(R, t, scale, len(scored), float(np.rad2deg(disagreement)))
