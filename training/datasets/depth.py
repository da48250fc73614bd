"""Depth images: decoding and registration to the colour camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from training.datasets import read_image
from training.datasets.files import file_state


@dataclass(frozen=True)
class DepthImage:
    """Reads one 16-bit depth image when it is called, as the colour camera would see it.

    Attributes:
        path: the file.
        depth, color: the two cameras, pinhole.
        color_T_depth: pose (4, 4) of the depth camera in the colour camera.
        unit_m: metres per unit.
        invalid: values that mean "unknown".
    """

    path: Path
    depth: Camera
    color: Camera
    color_T_depth: np.ndarray = field(default_factory=lambda: np.eye(4))
    unit_m: float = 0.001
    invalid: tuple[int, ...] = (0, 65535)

    def source(self) -> list:
        """What the depth depends on, see `Sample`.

        Raises:
            DatasetError: the file is missing.
        """
        cameras = [self.depth.to_dict(), self.color.to_dict(), self.color_T_depth.tolist()]
        return [file_state(self.path), *cameras, self.unit_m, self.invalid]

    def __call__(self) -> np.ndarray:
        """Depth (H, W) float32 in metres in the colour camera; 0 where unknown.

        Raises:
            DatasetError: the file is missing, damaged, of another size, or not 16-bit.
        """
        raw = read_image(self.path, cv2.IMREAD_UNCHANGED)
        if raw.dtype != np.uint16 or raw.shape != (self.depth.height, self.depth.width):
            raise DatasetError(
                f'{self.path} is {raw.dtype} {raw.shape[1]}x{raw.shape[0]}, expected 16-bit '
                f'{self.depth.width}x{self.depth.height}'
            )
        z = raw.astype(np.float32) * np.float32(self.unit_m)
        z[np.isin(raw, self.invalid)] = 0
        return register_depth(z, self.depth, self.color, self.color_T_depth)


def register_depth(z_HW, depth: Camera, color: Camera, color_T_depth) -> np.ndarray:
    """Depth seen by another camera: forward projection with a z-buffer.

    Where the colour camera is finer than the depth camera, pixels between the samples stay 0. For
    one and the same camera nothing changes.

    Args:
        z_HW: depth in metres along the depth camera's z, 0 where unknown.

    Returns:
        float32 (color.height, color.width), 0 where unknown.
    """
    if depth == color and np.allclose(color_T_depth, np.eye(4)):
        return z_HW
    v, u = np.nonzero(z_HW)
    points = depth.unproject(np.stack([u, v], axis=1), z_HW[v, u])
    # Not the operator @: the threads of numpy's BLAS take 20 times as long on a busy processor.
    points = np.einsum('ni,ji->nj', points, color_T_depth[:3, :3]) + color_T_depth[:3, 3]
    return splat_depth(points, color)


def splat_depth(points_N3, camera: Camera) -> np.ndarray:
    """Z-buffer float32 (H, W) of points (N, 3) given in camera coordinates; 0 where none falls."""
    uv = np.rint(np.nan_to_num(camera.project(points_N3), nan=-1.0))
    inside = (uv >= 0).all(1) & (uv[:, 0] < camera.width) & (uv[:, 1] < camera.height)
    uv, z = uv[inside].astype(np.int64), points_N3[inside, 2].astype(np.float32)
    buffer = np.full(camera.width * camera.height, np.inf, dtype=np.float32)
    np.minimum.at(buffer, uv[:, 1] * camera.width + uv[:, 0], z)
    buffer[np.isinf(buffer)] = 0
    return buffer.reshape(camera.height, camera.width)
