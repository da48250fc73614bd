"""Local features of an image: keypoints and descriptors, the same for mapping and for queries."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pose_reloc.errors import SettingsError


@dataclass(frozen=True)
class FeatureSettings:
    """How features are found. A scene remembers them: a query must be described alike."""

    max_features: int = 1500  # strongest kept per image
    contrast_threshold: float = 0.01  # of SIFT; low, because indoor walls have little contrast
    max_side: int = 1024  # a larger image is shrunk to this first, pixels

    def __post_init__(self):
        for name in ('max_features', 'max_side'):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 100_000:
                raise SettingsError(f'features.{name} must be a whole number from 1, got {value!r}')
        contrast = self.contrast_threshold
        if not isinstance(contrast, (int, float)) or not 0 <= contrast < 1:
            raise SettingsError(f'features.contrast_threshold must be in [0, 1), got {contrast!r}')

    def to_dict(self) -> dict:
        """The fields as plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Features:
    """Features of one image, strongest first.

    Attributes:
        uv: pixels (N, 2) float32 in the image as it was given; (0, 0) is the centre of a pixel.
        descriptors: uint8 (N, 128): RootSIFT (Arandjelovic & Zisserman 2012) times 512, so that
            the dot product of two descriptors divided by 512^2 is their cosine.
    """

    uv: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.uv)

    def chosen(self, which) -> Features:
        """Some of the features, by mask or index."""
        return Features(self.uv[which], self.descriptors[which])


DESCRIPTOR_SCALE = 512.0


class FeatureExtractor:
    """Finds RootSIFT features. For one caller at a time.

    Args:
        settings: see FeatureSettings.
    """

    def __init__(self, settings: FeatureSettings = FeatureSettings()):
        self.settings = settings
        self._sift = cv2.SIFT_create(
            settings.max_features, contrastThreshold=settings.contrast_threshold
        )

    def extract(self, image_HW3: np.ndarray) -> Features:
        """Features of a uint8 RGB image; none where it has no structure."""
        grey = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
        shrink = max(grey.shape) / self.settings.max_side
        if shrink > 1:
            size = (round(grey.shape[1] / shrink), round(grey.shape[0] / shrink))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        keypoints, descriptors = self._sift.detectAndCompute(grey, None)
        if not keypoints:
            return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
        response = np.array([k.response for k in keypoints])
        order = np.argsort(-response, kind='stable')[: self.settings.max_features]
        uv = np.array([k.pt for k in keypoints], dtype=np.float32)[order]
        # Edges are kept when an image is resized, so that pixel centres shift.
        factor = np.array(image_HW3.shape[1::-1]) / grey.shape[::-1]
        uv = ((uv + 0.5) * factor - 0.5).astype(np.float32)
        return Features(uv, root_sift(descriptors[order]))


def root_sift(descriptors_N128: np.ndarray) -> np.ndarray:
    """SIFT descriptors as RootSIFT: L1-normalised, square root, times 512, as uint8."""
    total = np.maximum(descriptors_N128.sum(axis=1, keepdims=True), 1e-9)
    return np.minimum(np.sqrt(descriptors_N128 / total) * DESCRIPTOR_SCALE, 255).astype(np.uint8)


def mutual_matches(similarity_NM: torch.Tensor, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Matches of two sets of descriptors: each other's nearest, clearly nearer than the second.

    Args:
        similarity_NM: products of all descriptors (N, 128) and (M, 128), as float.
        ratio: bound on the nearest distance over the second nearest in the other set.

    Returns:
        Indices into the two sets, of equal length.
    """
    best, column = similarity_NM.max(dim=1)
    row = similarity_NM.argmax(dim=0)
    rows = torch.arange(len(column), device=column.device)
    candidate = (row[column] == rows).nonzero()[:, 0]
    rivals = similarity_NM[candidate]
    rivals.scatter_(1, column[candidate, None], -1.0)
    # |a - b|^2 = 2 - 2 cos for unit vectors.
    unit = DESCRIPTOR_SCALE**2
    near = (unit - best[candidate]).clamp(min=0)
    passed = near < ratio**2 * (unit - rivals.amax(dim=1))
    chosen = candidate[passed]
    return chosen.cpu().numpy(), column[chosen].cpu().numpy()
