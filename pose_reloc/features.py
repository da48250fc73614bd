"""Local features of an image: keypoints, descriptors and their matches.

Mapping and queries use the same kind, which the scene remembers. One interface, `LocalFeatures`;
RootSIFT is here, ALIKED in `aliked.py`. `open_features` makes the kind that settings name.
"""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch

from pose_reloc.errors import SettingsError

# Kind -> type of its descriptors. RootSIFT has no negative numbers.
DESCRIPTOR_TYPES = {'rootsift': np.uint8, 'aliked': np.int8, 'aliked-lightglue': np.int8}

# Unit vectors of 128 numbers are stored as bytes: what 1.0 is.
_UNIT = {np.dtype(np.uint8): 512.0, np.dtype(np.int8): 256.0}
_ONE = _UNIT[np.dtype(np.int8)] ** 2  # the product of such a vector with itself


@dataclass(frozen=True)
class FeatureSettings:
    """How features are found and matched. A scene remembers them: queries must be alike."""

    kind: str = 'rootsift'  # of DESCRIPTOR_TYPES
    max_features: int = 1500  # strongest kept per image
    contrast_threshold: float = 0.01  # of SIFT; low, because indoor walls have little contrast
    max_side: int = 1024  # a larger image is shrunk to this first, pixels

    def __post_init__(self):
        if self.kind not in DESCRIPTOR_TYPES:
            kinds = ', '.join(DESCRIPTOR_TYPES)
            raise SettingsError(f'unknown features {self.kind!r}; choose from {kinds}')
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
        descriptors: (N, 128), unit vectors as bytes, see `quantised`.
    """

    uv: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.uv)

    def chosen(self, which) -> Features:
        """Some of the features, by mask or index."""
        return Features(self.uv[which], self.descriptors[which])


def quantised(unit_N128: np.ndarray, kind: type) -> np.ndarray:
    """Unit vectors as np.uint8 (no negative numbers) or np.int8; parts above 0.498 are cut off."""
    limits = np.iinfo(kind)
    return np.rint(unit_N128 * _UNIT[np.dtype(kind)]).clip(limits.min, limits.max).astype(kind)


def unit_descriptors(descriptors_N128: np.ndarray) -> torch.Tensor:
    """Descriptors as they are stored to unit vectors (N, 128) float32."""
    return torch.from_numpy(descriptors_N128).float() / _UNIT[descriptors_N128.dtype]


class LocalFeatures(ABC):
    """Finds features in images and matches them. For one caller at a time.

    Args:
        settings: see FeatureSettings.
        device: where matching, and whatever else is a network, is computed.
    """

    def __init__(self, settings: FeatureSettings, device: torch.device = torch.device('cpu')):
        self.settings, self.device = settings, device

    def extract(self, image_HW3: np.ndarray) -> Features:
        """Features of a uint8 RGB image; none where it has no structure."""
        height, width = image_HW3.shape[:2]
        shrink = max(height, width) / self.settings.max_side
        if shrink > 1:
            size = (round(width / shrink), round(height / shrink))
            image_HW3 = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)
        found = self._detect(image_HW3)
        # Edges are kept when an image is resized, so that pixel centres shift.
        factor = np.array((width, height)) / image_HW3.shape[1::-1]
        return Features(((found.uv + 0.5) * factor - 0.5).astype(np.float32), found.descriptors)

    @abstractmethod
    def _detect(self, image_HW3: np.ndarray) -> Features:
        """Features of an image that is not too large."""

    def match(
        self, query: Features, others: Sequence[Features], size: tuple[int, int], ratio: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Matches of a query with each of some other images.

        Args:
            query, others: in pixels of one and the same pinhole camera.
            size: its width and height.
            ratio: see `nearest_matches`.

        Returns:
            For each of the others indices into the query and into it, of equal length.
        """
        return nearest_matches(query, others, ratio, self.device)


def open_features(
    settings: FeatureSettings, device: torch.device = torch.device('cpu')
) -> LocalFeatures:
    """The features of this kind.

    Raises:
        SettingsError: they need a package that is not installed.
    """
    if settings.kind == 'rootsift':
        return RootSift(settings, device)
    from pose_reloc.aliked import Aliked, AlikedLightGlue

    kind = {'aliked': Aliked, 'aliked-lightglue': AlikedLightGlue}[settings.kind]
    return kind(settings, device)


# OpenCV doubles the image before it looks for features, and half a pixel of that is lost: all lie a
# quarter of a pixel too far right and down, which a camera that is turned would see elsewhere.
_SIFT_OFFSET = np.float32(0.25)


class RootSift(LocalFeatures):
    """SIFT with RootSIFT descriptors (Arandjelovic & Zisserman 2012)."""

    def __init__(
        self,
        settings: FeatureSettings = FeatureSettings(),
        device: torch.device = torch.device('cpu'),
    ):
        super().__init__(settings, device)
        _keep_freed_memory()
        self._sift = cv2.SIFT_create(
            settings.max_features, contrastThreshold=settings.contrast_threshold
        )

    def _detect(self, image_HW3: np.ndarray) -> Features:
        grey = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = self._sift.detectAndCompute(grey, None)
        if not keypoints:
            return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
        response = np.array([k.response for k in keypoints])
        order = np.argsort(-response, kind='stable')[: self.settings.max_features]
        uv = cv2.KeyPoint_convert(keypoints)[order] - _SIFT_OFFSET
        return Features(uv, root_sift(descriptors[order]))


def root_sift(descriptors_N128: np.ndarray) -> np.ndarray:
    """SIFT descriptors as RootSIFT: L1-normalised, square root, quantised."""
    total = np.maximum(descriptors_N128.sum(axis=1, keepdims=True), 1e-9)
    return quantised(np.sqrt(descriptors_N128 / total), np.uint8)


def nearest_matches(
    query: Features,
    others: Sequence[Features],
    ratio: float,
    device: torch.device = torch.device('cpu'),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mutual nearest neighbours of a query's descriptors and those of each of some other images.

    Args:
        query, others: features of the same kind.
        ratio: bound on the nearest distance over the second nearest in the other image.
        device: where they are looked for.

    Returns:
        For each of the others indices into the query and into it, of equal length.
    """
    a_N128, *sets = (_signed(features.descriptors) for features in (query, *others))
    if device.type == 'cpu':
        return [mutual_matches(_products(a_N128, b_M128), ratio, _ONE) for b_M128 in sets]
    with torch.inference_mode():  # whole numbers, which float32 holds exactly
        a_N128, *sets = (torch.from_numpy(x).to(device).float() for x in (a_N128, *sets))
        return [_mutual_matches_torch(a_N128 @ b_M128.T, ratio, _ONE) for b_M128 in sets]


def mutual_matches(
    product_NM: np.ndarray, ratio: float, one: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Each other's nearest, clearly nearer than the second in the other set.

    Args:
        product_NM: of all vectors of equal length of two sets.
        ratio: bound on the nearest distance over the second nearest in the second set.
        one: the product of a vector with itself.

    Returns:
        Indices into the two sets, of equal length.
    """
    if 0 in product_NM.shape:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    column = product_NM.argmax(axis=1)
    best = product_NM[np.arange(len(column)), column]
    # Not the argmax over the first axis, which takes numpy five times as long.
    candidate = np.flatnonzero(best == product_NM.max(axis=0)[column])
    column, best, rivals = column[candidate], best[candidate], product_NM[candidate]
    rivals[np.arange(len(candidate)), column] = -one
    # |a - b|^2 = 2 (one - ab) for vectors of this length.
    near, far = (one - product.astype(np.float64) for product in (best, rivals.max(axis=1)))
    passed = np.maximum(near, 0) < ratio**2 * far
    return candidate[passed], column[passed]


def _mutual_matches_torch(
    product_NM: torch.Tensor, ratio: float, one: float
) -> tuple[np.ndarray, np.ndarray]:
    """`mutual_matches` on a GPU, where products are too large to be fetched.

    On a CPU numpy is four times as fast.
    """
    if 0 in product_NM.shape:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    best, column = product_NM.max(dim=1)
    second = product_NM.scatter(1, column[:, None], -one).amax(dim=1)
    near, far = (one - product.double() for product in (best, second))
    mutual = best == product_NM.amax(dim=0)[column]
    row = (mutual & (near.clamp(min=0) < ratio**2 * far)).nonzero()[:, 0]
    row, column = torch.stack((row, column[row])).cpu().numpy()
    return row, column


def _signed(descriptors_N128: np.ndarray) -> np.ndarray:
    """Descriptors as int8: processors multiply no other bytes by each other."""
    if descriptors_N128.dtype == np.int8:
        return descriptors_N128
    halves = (descriptors_N128 >> 1) + (descriptors_N128 & 1)
    return np.minimum(halves, 127).view(np.int8)


def _products(a_N128: np.ndarray, b_M128: np.ndarray) -> np.ndarray:
    """Products (N, M) of int8 vectors. They are whole numbers that float32 holds exactly too."""
    a, b = (torch.from_numpy(x) for x in (a_N128, b_M128))
    with torch.inference_mode():
        if _bytes_pay():
            return torch._int_mm(a, b.T).numpy()
        return (a.float() @ b.float().T).numpy()


@cache
def _bytes_pay() -> bool:
    """Whether PyTorch multiplies matrices of bytes here exactly, and faster than floats.

    Processors without instructions for it do it slowly, or let the sums of pairs overflow.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (512, 128), dtype=torch.int8, generator=generator)
    a[0], a[1] = 127, -128  # the greatest sums that there can be
    b = a.float()
    try:
        product = torch._int_mm(a, a.T)
    except (AttributeError, RuntimeError):  # an old PyTorch, or one without this
        return False
    if not torch.equal(product, (b @ b.T).int()):
        return False
    return _least_seconds(lambda: torch._int_mm(a, a.T)) < _least_seconds(lambda: b @ b.T)


def _least_seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


@cache
def _keep_freed_memory() -> None:
    """Makes the C library keep what SIFT frees (60 MB at 640x480) for the next image.

    It would be given back to the system and fetched again page by page: 40 % of the time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library than glibc
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(trim_threshold, 512 << 20)
    mallopt(mmap_threshold, 32 << 20)  # the most that every glibc accepts
