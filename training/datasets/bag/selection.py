"""Which images of a recording are worth training on: those that moved, and are sharp."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pose_reloc.geometry import pose_error

_SHARPNESS_WIDTH = 320  # blur is judged at this width: noise is averaged out, and it is fast
_NEIGHBOURS = 15  # images on each side that an image is compared with


def moved(poses_N44: np.ndarray, min_translation: float, min_rotation: float) -> np.ndarray:
    """Mask (N,) of poses that are far enough from the last one that was kept.

    Args:
        poses_N44: in the order of time.
        min_translation: metres.
        min_rotation: radians; either is enough.
    """
    keep = np.zeros(len(poses_N44), dtype=bool)
    last = None
    for i, pose in enumerate(poses_N44):
        if last is not None:
            metres, radians = pose_error(last, pose)
            if metres < min_translation and radians < min_rotation:
                continue
        keep[i], last = True, pose
    return keep


def sharpness(image_HW3: np.ndarray) -> float:
    """How sharp an image is: the variance of its Laplacian (Pech-Pacheco et al. 2000)."""
    import cv2

    grey = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
    height = round(grey.shape[0] * _SHARPNESS_WIDTH / grey.shape[1])
    if grey.shape[1] > _SHARPNESS_WIDTH:
        grey = cv2.resize(grey, (_SHARPNESS_WIDTH, height), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def sharp(values_N: np.ndarray, least: float) -> np.ndarray:
    """Mask (N,) of images at least `least` times as sharp as the median of their neighbours.

    The absolute value depends on what is seen, so images are only compared with those around them.
    """
    keep = np.ones(len(values_N), dtype=bool)
    for i, value in enumerate(values_N):
        around = values_N[max(0, i - _NEIGHBOURS) : i + _NEIGHBOURS + 1]
        keep[i] = value >= least * np.median(around)
    return keep


def sharpness_of_all(loaders: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """`sharpness` (N,) of every image, several at a time; 0 for those that cannot be read."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from pose_reloc.errors import DatasetError

    def one(load) -> float:
        try:
            return sharpness(load())
        except DatasetError:
            return 0.0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(one, loaders)
        return np.array(list(tqdm(found, 'looking for blur', len(loaders), disable=None)))
