"""Localises held-out training frames as if they were new, to calibrate what the scene will say.

The network has not been trained on these frames; here the keyframes and the anchors of the drift of
the same block are left out too, so that the errors are those of a place the map knows from nearby.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2
from tqdm import tqdm

from pose_reloc.geometry import pose_residual
from pose_reloc.relocalizer import Relocalizer, Status
from pose_reloc.scene import Calibration, SceneModel
from training.datasets import Sample
from training.metrics import nees

_MAX_FRAMES = 80
_FEWEST = 8  # answers from which a scale can be told
_CAUTIOUS_SCALE = 4.0  # where it cannot: twice the computed standard deviation


@dataclass(frozen=True)
class Rehearsal:
    """What came back for the held-out frames.

    Attributes:
        frames: number of frames that were tried.
        nees: of the REFINED answers (R,), with the covariance as computed.
        errors: their errors (R, 6), `geometry.pose_residual`.
        likeness: of every frame that is not too dark or empty to the most similar keyframe it
            may use.
    """

    frames: int
    nees: np.ndarray
    errors: np.ndarray
    likeness: np.ndarray

    def calibration(self, before: Calibration) -> Calibration:
        """`before` with what was measured here.

        The scale makes NEES 6 on average, or keeps 90 % inside the 90 % ellipsoid.
        """
        scale = _CAUTIOUS_SCALE
        if len(self.nees) >= _FEWEST:
            scale = max(self.nees.mean() / 6, np.quantile(self.nees, 0.9) / chi2.ppf(0.9, df=6))
        # Only images without enough inliers are held against it. A bound below the quantile lets
        # images of other rooms pass: they resemble a keyframe 0.94 times as much.
        least = float(np.quantile(self.likeness, 0.05)) if len(self.likeness) else 0.0
        return replace(before, refined_scale=max(float(scale), 0.05), least_likeness=least)

    def summary(self) -> dict:
        """For the recipe of a scene, plain JSON types."""
        result = {'frames': self.frames, 'refined': len(self.nees)}
        if len(self.errors):
            result['median_position_m'] = float(
                np.median(np.linalg.norm(self.errors[:, :3], axis=1))
            )
            result['median_rotation_deg'] = float(
                np.rad2deg(np.median(np.linalg.norm(self.errors[:, 3:], axis=1)))
            )
        return result


def rehearse(scene: SceneModel, samples: list[Sample], held_out: np.ndarray) -> Rehearsal:
    """Localises held-out frames with a scene whose landmarks were built from all frames.

    Args:
        scene: with landmarks; its calibration is ignored.
        samples: the training split.
        held_out: mask (N,) of frames the network was not trained on, in blocks.
    """
    neutral = replace(scene.header.calibration, refined_scale=1.0, least_likeness=0.0)
    scene = replace(scene, header=replace(scene.header, calibration=neutral))
    relocalizer = Relocalizer(scene, 'cpu')
    landmarks, poses = scene.landmarks, scene.train_world_T_camera
    index = np.flatnonzero(held_out)
    block = np.cumsum(np.diff(index, prepend=index[:1] - 2) > 1) if len(index) else index
    chosen = np.unique(np.linspace(0, len(index) - 1, min(len(index), _MAX_FRAMES)).astype(int))
    found, likeness, drifts = [], [], {}
    for i in tqdm(chosen, 'rehearsing', unit='img', disable=None):
        same = index[block == block[i]]
        if block[i] not in drifts:
            drifts[block[i]] = landmarks.drift(poses).without(
                np.isin(landmarks.anchor_frames, same)
            )
        usable = ~np.isin(landmarks.frames, same)
        sample = samples[index[i]]
        answer = relocalizer.localize_with(
            sample.load_image(), sample.camera, usable=usable, drift=drifts[block[i]]
        )
        if answer.likeness is not None:
            likeness.append(answer.likeness)
        if answer.status is Status.REFINED:
            found.append((sample.world_T_camera, answer.world_T_camera, answer.covariance_66))
    if not found:
        return Rehearsal(len(chosen), np.zeros(0), np.zeros((0, 6)), np.array(likeness))
    truth, estimate, covariance = (np.array(x) for x in zip(*found, strict=True))
    errors = pose_residual(truth, estimate)
    return Rehearsal(len(chosen), nees(errors, covariance), errors, np.array(likeness))
