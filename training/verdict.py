"""What a scene is worth, told as soon as it is trained: its errors on images it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training.datasets import Dataset, Sample
from training.evaluate import Evaluation, evaluate
from training.held_out import held_out_blocks
from training.unseen import scene_without

_MOST_IMAGES = 500  # that are evaluated, evenly spaced


@dataclass(frozen=True)
class Verdict:
    """An evaluation and what it was made with.

    Attributes:
        title: which images they are, for people.
        scene: that answered.
        evaluation: its answers.
        images: frame name to a function that gives its uint8 RGB image.
    """

    title: str
    scene: SceneModel
    evaluation: Evaluation
    images: dict[str, Callable[[], np.ndarray]]


def verdict(scene: SceneModel, dataset: Dataset, validation: float, device: str) -> Verdict | None:
    """Evaluates a scene on the test split of its dataset, else on what training held out.

    Args:
        scene: trained on this dataset.
        dataset: opened as for the training.
        validation: share of the training images that was held out.
        device: of the Relocalizer.

    Returns:
        None where there is neither.
    """
    if dataset.test:
        samples, what = _spread(dataset.test), 'test split'
        if len(samples) < len(dataset.test):
            what = f'{len(samples)} of {len(dataset.test)} images of the {what}'
    else:
        sequences = [sample.sequence for sample in dataset.train]
        held_out = held_out_blocks(scene.train_world_T_camera, sequences, validation)
        if not held_out.any():
            return None
        samples = _spread([dataset.train[i] for i in np.flatnonzero(held_out)])
        what = f'{len(samples)} training images that were held out; there is no test split'
        scene = scene_without(scene, held_out)
    evaluation = evaluate(Relocalizer(scene, device), samples)
    images = {frame.name: sample.load_image for frame, sample in zip(evaluation.frames, samples)}
    return Verdict(f'{scene.header.name} on {dataset.name} ({what})', scene, evaluation, images)


def _spread(samples: list[Sample]) -> list[Sample]:
    count = min(len(samples), _MOST_IMAGES)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]
