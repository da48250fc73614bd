"""Localises training images as if they were new, to calibrate what the scene will say.

The map must not know the image: the keyframes and the anchors of the drift of the whole block
around it are left out, so that the errors are those of a place the map knows from nearby. No
regressed pose is asked, because the network has seen most of these images: the global descriptor
names the keyframes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from pose_reloc.geometry import pose_residual
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.refine import Refiner
from pose_reloc.scene import Calibration
from training.calibration import conformal_quantile
from training.datasets import Sample
from training.held_out import travel_blocks
from training.metrics import nees

_MAX_BLOCKS = 30
_MAX_FRAMES = 60
_FEWEST = 8  # answers from which a scale can be told
_CAUTIOUS_SCALE = 4.0  # where it cannot: twice the computed standard deviation
_LEAST_SCALE = 0.05
_MOST = 3.0
# Another visit errs a little more than images of the recording that the map was made of.
_OTHER_VISIT = 1.2


@dataclass(frozen=True)
class Rehearsal:
    """What came back for the images.

    Attributes:
        frames: number of images that were tried.
        nees: of the REFINED answers (R,), with the covariance as computed.
        errors: their errors (R, 6), `geometry.pose_residual`.
        likeness: of every image that has features to the most similar keyframe it may use.
    """

    frames: int
    nees: np.ndarray
    errors: np.ndarray
    likeness: np.ndarray

    def calibration(self, before: Calibration) -> Calibration:
        """`before` with what was measured here.

        With the scale the mean NEES of these errors is 6 / `_OTHER_VISIT`. One image that went
        wrong does not decide: none counts more than `_MOST` times the 90 % quantile.
        """
        scale = _CAUTIOUS_SCALE
        if len(self.nees) >= _FEWEST:
            most = _MOST * conformal_quantile(self.nees, 0.9)
            scale = _OTHER_VISIT * np.minimum(self.nees, most).mean() / 6
        # Only images without enough inliers are held against it. A bound below the quantile lets
        # images of other rooms pass: they resemble a keyframe 0.94 times as much.
        least = float(np.quantile(self.likeness, 0.05)) if len(self.likeness) else 0.0
        return replace(before, refined_scale=max(float(scale), _LEAST_SCALE), least_likeness=least)

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


def rehearse(landmarks: LandmarkMap, samples: list[Sample]) -> Rehearsal:
    """Localises images of the training split with a map that was built from all of them.

    Args:
        landmarks: the map.
        samples: the training split.
    """
    poses = np.array([sample.world_T_camera for sample in samples])
    blocks = travel_blocks(poses, [sample.sequence for sample in samples])
    chosen = np.flatnonzero(np.isin(blocks, _spread(np.unique(blocks), _MAX_BLOCKS)))
    chosen = _spread(chosen, _MAX_FRAMES)
    refiner, whole = Refiner(landmarks), landmarks.drift(poses)
    errors, covariances, likeness, drifts = [], [], [], {}
    for i in tqdm(chosen, 'rehearsing', unit='img', disable=None):
        same = np.flatnonzero(blocks == blocks[i])
        if blocks[i] not in drifts:
            drifts[blocks[i]] = whole.without(np.isin(landmarks.anchor_frames, same))
        usable = ~np.isin(landmarks.frames, same)
        found, evidence = refiner.refine(samples[i].load_image(), samples[i].camera, [], usable)
        if evidence.likeness > 0:
            likeness.append(evidence.likeness)
        if found:
            pose, spread = drifts[blocks[i]].to_given(found.world_T_camera)
            errors.append(pose_residual(poses[i], pose))
            covariances.append(found.covariance_66 + spread)
    errors = np.array(errors).reshape(-1, 6)
    squared = nees(errors, np.array(covariances).reshape(-1, 6, 6))
    return Rehearsal(len(chosen), squared, errors, np.array(likeness))


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))]
