"""Localises training images as if they were new, to calibrate what the scene will say.

The map must not know the image: the keyframes and the anchors of the drift of the whole block
around it are left out, so that the errors are those of a place the map knows from nearby. Where
other recordings saw the place too, the image is asked again without its whole recording, because
poses of one recording drift together: those errors are the ones of another visit. No regressed pose
is asked, because the network has seen most of these images: the global descriptor names the
keyframes.

A triangulated landmark lies where the rays of its images meet. If the pose of an image is a little
wrong, its rays pull the landmarks along, so that it is found where its pose says, as no new image
is: the landmarks are placed without the rays of the block. Without those of a whole recording they
would be another, worse map (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from pose_reloc.geometry import pose_residual
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.refine import Refiner
from pose_reloc.scene import Calibration
from training.calibration import cautious_mean
from training.datasets import Sample
from training.held_out import evenly_spaced, travel_blocks
from training.mapping import Tracks
from training.metrics import nees

_MAX_BLOCKS = 30
_MAX_FRAMES = 60
_FEWEST = 8  # answers from which a scale can be told
_FEWEST_BLOCKS = 3  # of fewer nobody knows how much blocks differ: of one, that seems to be nothing
_CAUTIOUS_SCALE = 4.0  # where it cannot: twice the computed standard deviation
_LEAST_SCALE = 0.05


@dataclass(frozen=True)
class Rehearsal:
    """What came back for the images.

    Attributes:
        frames: number of images that were tried.
        nees: of the REFINED answers (R,), with the covariance as computed.
        errors: their errors (R, 6), `geometry.pose_residual`.
        likeness: of every image that has features to the most similar keyframe it may use.
        visit_nees: of answers to the same images from other recordings alone (V,).
        blocks: the block of the image of each of those answers (R + V,), visits last.
    """

    frames: int
    nees: np.ndarray
    errors: np.ndarray
    likeness: np.ndarray
    visit_nees: np.ndarray
    blocks: np.ndarray

    def calibration(self) -> Calibration:
        """What was measured here.

        With the scale the mean NEES of these errors is 6, or somewhat less where few blocks tell
        it: see `calibration.cautious_mean`. Of fewer than 8 answers the scale is 4, of fewer than 3
        blocks at least 4.
        """
        scale, squared = _CAUTIOUS_SCALE, np.concatenate([self.nees, self.visit_nees])
        if len(squared) >= _FEWEST:
            measured = cautious_mean(squared, self.blocks) / 6
            few = len(np.unique(self.blocks)) < _FEWEST_BLOCKS
            scale = max(scale, measured) if few else measured
        # Only images without enough inliers are held against it. A bound below the quantile lets
        # images of other rooms pass: they resemble a keyframe 0.94 times as much.
        least = float(np.quantile(self.likeness, 0.05)) if len(self.likeness) else 0.0
        return Calibration(max(scale, _LEAST_SCALE), least)

    def summary(self) -> dict:
        """For the recipe of a scene, plain JSON types."""
        result = {
            'frames': self.frames,
            'refined': len(self.nees),
            'refined_from_other_visits': len(self.visit_nees),
        }
        if len(self.errors):
            result['median_position_m'] = float(
                np.median(np.linalg.norm(self.errors[:, :3], axis=1))
            )
            result['median_rotation_deg'] = float(
                np.rad2deg(np.median(np.linalg.norm(self.errors[:, 3:], axis=1)))
            )
        return result


def rehearse(
    landmarks: LandmarkMap,
    samples: list[Sample],
    tracks: Tracks | None = None,
    device: torch.device = torch.device('cpu'),
) -> Rehearsal:
    """Localises images of the training split with a map that was built from all of them.

    Args:
        landmarks: the map.
        samples: the training split.
        tracks: how the landmarks were triangulated; None where depth placed them.
        device: of the Refiner.
    """
    poses = np.array([sample.world_T_camera for sample in samples])
    sequences = np.array([sample.sequence for sample in samples])
    blocks = travel_blocks(poses, sequences.tolist())
    chosen = np.flatnonzero(np.isin(blocks, evenly_spaced(np.unique(blocks), _MAX_BLOCKS)))
    chosen = evenly_spaced(chosen, _MAX_FRAMES)
    same_place = _Hidden(landmarks, samples, blocks)
    same_visit = _Hidden(landmarks, samples, sequences)
    block, placed_K = -1, np.ones(len(landmarks), dtype=bool)
    refiner, several = Refiner(landmarks, device=device), len(set(sequences)) > 1
    answers, visits, likeness = [], [], []
    for i in tqdm(chosen, 'rehearsing', unit='img', disable=None):
        if tracks and blocks[i] != block:
            block = blocks[i]
            refiner.landmarks, placed_K = tracks.without(landmarks, blocks == block)
        answer, evidence = same_place.answer(refiner, i, placed_K)
        if evidence.likeness > 0:
            likeness.append(evidence.likeness)
        answers += [(*one, blocks[i]) for one in answer]
        if several:
            visits += [(*one, blocks[i]) for one in same_visit.answer(refiner, i, placed_K)[0]]
    errors, squared = _split(answers)
    asked = np.array([block for *_, block in answers + visits], dtype=int)
    return Rehearsal(len(chosen), squared, errors, np.array(likeness), _split(visits)[1], asked)


class _Hidden:
    """The map without the part of the training images that an image belongs to."""

    def __init__(self, landmarks: LandmarkMap, samples: list[Sample], part_N: np.ndarray):
        self.landmarks, self.samples, self.part_N = landmarks, samples, part_N
        self._whole = landmarks.drift(np.array([sample.world_T_camera for sample in samples]))
        self._fields: dict = {}

    def answer(self, refiner: Refiner, i: int, placed_K: np.ndarray):
        """Error (6,) and covariance (6, 6) of image i, as a list of one pair or none; evidence.

        Args:
            refiner: with the landmarks as images other than these place them.
            i: the image.
            placed_K: mask of the keyframes that have such landmarks.
        """
        part, sample = self.part_N[i], self.samples[i]
        usable = placed_K & (self.part_N[self.landmarks.frames] != part)
        found, evidence = refiner.refine(sample.load_image(), sample.camera, [], usable)
        if not found:
            return [], evidence
        if part not in self._fields:
            hidden = self.part_N[self.landmarks.anchor_frames] == part
            self._fields[part] = self._whole.without(hidden)
        pose, spread = self._fields[part].to_given(found.world_T_camera)
        error = pose_residual(sample.world_T_camera, pose)
        return [(error, found.covariance_66 + spread)], evidence


def _split(answers: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Errors (R, 6) and their NEES (R,)."""
    errors = np.array([error for error, *_ in answers]).reshape(-1, 6)
    covariances = np.array([covariance for _, covariance, _ in answers]).reshape(-1, 6, 6)
    return errors, nees(errors, covariances)
