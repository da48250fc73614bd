"""A known synthetic world that each test writes out in the native format of its loader."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class World:
    """Points (N, 3) and cameras: `world_T_camera` (M, 4, 4), wxyz quaternions of world to camera.

    Intrinsics are a pinhole of `width` x `height` with focal length `f` and its principal point in
    the middle of the image, whose pixel (0, 0) is the centre of the top left pixel.
    """

    points: np.ndarray
    world_T_camera: np.ndarray
    c_q_w: np.ndarray
    width: int = 64
    height: int = 48
    f: float = 60.0

    @property
    def centre(self) -> np.ndarray:
        return np.array([(self.width - 1) / 2, (self.height - 1) / 2])

    def in_camera(self, i: int) -> np.ndarray:
        """Points (N, 3) in the coordinates of camera i."""
        R, t = self.world_T_camera[i, :3, :3], self.world_T_camera[i, :3, 3]
        return (self.points - t) @ R

    def project(self, i: int) -> np.ndarray:
        """Pixels (N, 2) of all points in camera i, NaN where they are behind it or outside."""
        p = self.in_camera(i)
        uv = p[:, :2] / p[:, 2:] * self.f + self.centre
        outside = (uv < 0).any(1) | (uv > (self.width - 1, self.height - 1)).any(1) | (p[:, 2] < 0)
        uv[outside] = np.nan
        return uv

    def seen(self, i: int) -> np.ndarray:
        """Indices of the points that camera i sees."""
        return np.nonzero(np.isfinite(self.project(i)[:, 0]))[0]

    def write_image(self, path: Path, i: int) -> np.ndarray:
        """Writes the image of camera i (noise) losslessly and returns it as RGB."""
        image = np.random.default_rng(i).integers(0, 255, (self.height, self.width, 3), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1])
        return image


@pytest.fixture
def world() -> World:
    rng = np.random.default_rng(5)
    count = 10
    T = np.tile(np.eye(4), (count, 1, 1))
    rotation = Rotation.from_rotvec(rng.normal(0, 0.2, (count, 3)))
    T[:, :3, :3] = rotation.as_matrix()
    T[:, :3, 3] = rng.uniform(-1, 1, (count, 3))
    points = rng.uniform((-4, -3, 5), (4, 3, 9), (400, 3))
    return World(points, T, np.roll(rotation.inv().as_quat(), 1, axis=1))
