"""Images that a scene should refuse, and images that make its answers wrong.

Foreign images show another place or nothing: every answer is wrong. Changed images show the place
of a dataset as another hour, a hurried camera, a passer-by or a wrong calibration would: an answer
may be refused or vague, but must not be wrong and sure of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.stats import chi2
from tqdm import tqdm

from pose_reloc.camera import Camera
from pose_reloc.geometry import pose_residual
from pose_reloc.relocalizer import Relocalizer, Status
from training.datasets import Sample
from training.metrics import nees

# A wrong pose that is sure of itself: so far off, and outside its ellipsoid of this probability.
FAR_M = 0.5
_SURE_NEES = chi2.ppf(0.999, df=6)

_GAMMA = 2.2  # of the display: grey values are light to the power of 1 / 2.2
_LIT = 256.0  # grey value that saturates


@dataclass(frozen=True)
class Question:
    """An image, the camera that took it, and its true pose (4, 4); None where it is foreign."""

    image: np.ndarray
    camera: Camera
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Change:
    """What happens to an image (uint8 RGB) on its way; `rng` draws what differs each time."""

    name: str
    image: Callable[[np.ndarray, np.random.Generator], np.ndarray] = lambda image, rng: image
    camera: Callable[[Camera], Camera] = lambda camera: camera

    def questions(self, samples: Iterable[Sample]) -> Iterator[Question]:
        """The changed images, always the same ones."""
        for number, sample in enumerate(samples):
            image = self.image(sample.load_image(), np.random.default_rng(number))
            yield Question(image, self.camera(sample.camera), sample.world_T_camera)


@dataclass(frozen=True)
class Tally:
    """What became of a set of images.

    Attributes:
        statuses: of the answers (N,), `Status`.
        metres: position errors (N,); NaN where refused or foreign.
        nees: `metrics.nees` (N,); NaN where refused or foreign.
    """

    statuses: list[Status]
    metres: np.ndarray
    nees: np.ndarray

    def __len__(self) -> int:
        return len(self.statuses)

    def count(self, status: Status) -> int:
        """How many answers have this status."""
        return self.statuses.count(status)

    @property
    def answered(self) -> int:
        """How many images were not refused."""
        return len(self) - self.count(Status.LOST)

    @property
    def far(self) -> int:
        """How many answers are off by more than `FAR_M`."""
        return int((self.metres > FAR_M).sum())

    @property
    def far_and_sure(self) -> int:
        """How many of those are outside the 99.9 % ellipsoid that they state."""
        return int(((self.metres > FAR_M) & (self.nees > _SURE_NEES)).sum())


def ask(relocalizer: Relocalizer, questions: Iterable[Question], name: str) -> Tally:
    """Asks a relocalizer; `name` is for the progress bar."""
    statuses, errors = [], []
    for question in tqdm(questions, name, unit='img', disable=None, leave=False):
        answer = relocalizer.localize(question.image, question.camera)
        statuses.append(answer.status)
        error = (np.nan, np.nan)
        if answer.status is not Status.LOST and question.truth is not None:
            residual = pose_residual(question.truth, answer.world_T_camera)
            error = np.linalg.norm(residual[:3]), nees(residual, answer.covariance_66)[0]
        errors.append(error)
    metres, squared = np.array(errors).reshape(-1, 2).T
    return Tally(statuses, metres, squared)


def foreign_questions(samples: Iterable[Sample]) -> Iterator[Question]:
    """The images of a dataset of another place."""
    return (Question(sample.load_image(), sample.camera) for sample in samples)


def empty_questions(camera: Camera) -> Iterator[Question]:
    """Images of nothing: noise of every grain, black, white, grey, a ramp, stripes."""
    size, rng = (camera.height, camera.width, 3), np.random.default_rng(0)
    for sigma in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        for _ in range(3):
            noise = rng.normal(size=size)
            noise = cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise
            yield Question(_as_image(128 + 50 * noise / noise.std()), camera)
    for grey in (0, 3, 128, 252, 255):
        yield Question(np.full(size, grey, np.uint8), camera)
    across = np.linspace(0, 1, camera.width)[None, :, None]
    for pattern in (across, across > 0.5, np.sin(300 * across) > 0):
        yield Question(_as_image(255 * np.broadcast_to(pattern, size)), camera)


def _as_image(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _relit(stops: float, tint: tuple[float, float, float] = (1, 1, 1)):
    """Another exposure and colour of the light, with the noise of a sensor that gets less of it."""

    def change(image, rng):
        light = (image / _LIT) ** _GAMMA * 2.0**stops * tint
        light += rng.normal(size=light.shape) * np.sqrt(2e-5 * np.maximum(light, 0) + 1e-6)
        return _as_image(_LIT * np.clip(light, 0, 1) ** (1 / _GAMMA))

    return change


def _occluded(share: float):
    """Something textured in front of the camera that hides this share of the image."""

    def change(image, rng):
        height, width = image.shape[:2]
        h, w = (round(side * np.sqrt(share)) for side in (height, width))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        texture = cv2.GaussianBlur(rng.normal(size=(h, w, 3)), (0, 0), 3)
        changed = image.copy()
        changed[top : top + h, left : left + w] = _as_image(128 + 50 * texture / texture.std())
        return changed

    return change


def _moved(share: float):
    """The camera turned while it looked: a streak of this share of the width, any direction."""

    def change(image, rng):
        length = max(round(share * image.shape[1]), 1)
        streak = np.zeros((length, length), np.float32)
        streak[length // 2] = 1.0
        turn = cv2.getRotationMatrix2D(((length - 1) / 2,) * 2, rng.uniform(0, 180), 1.0)
        streak = cv2.warpAffine(streak, turn, (length, length))
        return cv2.filter2D(image, -1, streak / streak.sum())

    return change


def _blurred(share: float):
    """Out of focus: Gaussian blur with a standard deviation of this share of the width."""
    return lambda image, rng: cv2.GaussianBlur(image, (0, 0), share * image.shape[1])


def _knocked(camera: Camera) -> Camera:
    """A calibration that is no longer true: fx + 3 %, cx + 1/64 of the width (10 of 640 px)."""
    return replace(camera, fx=1.03 * camera.fx, cx=camera.cx + camera.width / 64)


UNCHANGED = Change('as they are')
HEAVY_BLUR = Change('heavily out of focus, 2 % of the width', _blurred(0.02))
CHANGES = (
    Change('night: 4 stops less, blue, noise', _relit(-4, (0.7, 0.9, 1.3))),
    Change('lamps: 1 stop less, orange', _relit(-1, (1.3, 0.9, 0.5))),
    Change('overexposed by 1.5 stops', _relit(1.5)),
    Change('underexposed by 2 stops', _relit(-2)),
    Change('30 % hidden', _occluded(0.3)),
    Change('motion blur, 1.5 % of the width', _moved(0.015)),
    Change('motion blur, 4 % of the width', _moved(0.04)),
    Change('out of focus, 0.5 % of the width', _blurred(0.005)),
    HEAVY_BLUR,
    Change('wrong calibration: fx + 3 %, cx + 10 of 640 px', camera=_knocked),
)
