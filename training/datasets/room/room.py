"""The built-in room under a given light, seen from a given pose."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import cv2
import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError
from training.datasets.room.layout import build_room
from training.datasets.room.light import light_maps
from training.datasets.room.materials import ROOM
from training.datasets.room.render import QuadRenderer, mip_pyramid

_GAMMA = 1.9  # a little below the display's 2.2: the contrast of a photograph


@dataclass(frozen=True)
class Light:
    """Strength and colour of the light sources, and the exposure of the camera.

    Attributes:
        day, sun, lamps: strength of skylight, direct sun and lamps.
        day_colour, lamp_colour: tints of the daylight and of the lamps.
        exposure: factor on all light.
    """

    day: float = 1.0
    sun: float = 1.0
    lamps: float = 0.15
    day_colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lamp_colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    exposure: float = 3.0


class Room:
    """A furnished room of 6 x 5 x 2.7 m, drawn from a seed.

    World frame: origin at a floor corner, z up, the window in the wall y = 5. Building takes a few
    seconds and about 300 MB; a built room can render from many threads.
    """

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self._model = build_room(rng)
        self._maps = light_maps(
            self._model.quads, self._model.blockers, (ROOM, self._model.shell), self._model.sky,
            self._model.lamps, rng,
        )  # fmt: skip
        self._renderer = QuadRenderer(self._model.quads)
        self._lit: tuple[Light, list] | None = None
        self._lock = threading.Lock()

    @property
    def quads(self):
        """All surfaces of the room, as `render.Quad`."""
        return tuple(self._model.quads)

    @property
    def size(self) -> np.ndarray:
        """Extent (3,) of the room in metres; it spans [0, size]."""
        return ROOM.copy()

    def clearance(self, points_N3: np.ndarray) -> np.ndarray:
        """Distance (N,) in metres from world points to the nearest furniture or wall.

        Negative outside the room; 0 inside a piece of furniture.
        """
        points_N3 = np.asarray(points_N3, np.float64)
        nearest = np.minimum(points_N3, ROOM - points_N3).min(1)
        for blocker in self._model.blockers:
            R, centre = blocker.world_T_box[:3, :3], blocker.world_T_box[:3, 3]
            outside = np.maximum(np.abs((points_N3 - centre) @ R) - blocker.half, 0)
            nearest = np.minimum(nearest, np.linalg.norm(outside, axis=1))
        return nearest

    def render(
        self, world_T_camera: np.ndarray, camera: Camera, light: Light | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the room without noise.

        Args:
            world_T_camera: (4, 4) camera pose, optical axes.
            camera: a pinhole camera; integer pixel coordinates are pixel centres.
            light: the state of the lights; the default if None.

        Returns:
            rgb (height, width, 3) uint8, and depth along the optical axis (height, width) float32
            in metres, 0 outside the window, where a depth camera measures nothing.

        Raises:
            CameraError: the camera has lens distortion.
        """
        if not camera.is_pinhole:
            raise CameraError('the built-in room is rendered for pinhole cameras only; '
                              'use camera.undistorted()')  # fmt: skip
        pyramids = self._lit_pyramids(light or Light())
        pose = np.asarray(world_T_camera, np.float64)
        return self._renderer.render(pose, camera.K, camera.width, camera.height, pyramids)

    def _lit_pyramids(self, light: Light) -> list:
        """Textures under `light` with their mip levels; those of the last light are kept."""
        with self._lock:
            if self._lit is None or self._lit[0] != light:
                self._lit = None  # free the memory first: a set takes about 150 MB
                pairs = zip(self._model.quads, self._maps, strict=True)
                pyramids = [mip_pyramid(_lit_texture(quad, maps, light)) for quad, maps in pairs]
                self._lit = (light, pyramids)
            return self._lit[1]


def _lit_texture(quad, maps, light: Light) -> np.ndarray:
    """The texture of a quad times its light, (h, w, 3) uint8.

    With a power-law display, light^(1/gamma) multiplies display values exactly.
    """
    texture = np.ascontiguousarray(quad.texture[..., :3])
    if quad.glow:
        tint = {
            'day': np.multiply(light.day_colour, (0.36 * light.day * light.exposure) ** 0.45),
            'lamps': np.multiply(light.lamp_colour, 0.75 + 0.4 * min(light.lamps, 1.0)),
            'self': np.ones(3),
        }[quad.glow]
        return np.uint8(np.clip(texture * np.float32(tint), 0, 255))
    sun = maps['sun']
    size = sun.shape[1::-1]
    coarse = light.day * maps['day'] * np.float32(light.day_colour)
    coarse = coarse + light.lamps * maps['lamps'] * np.float32(light.lamp_colour)
    if light.sun > 0:
        interpolation = cv2.INTER_CUBIC if min(coarse.shape[:2]) > 3 else cv2.INTER_LINEAR
        total = cv2.resize(coarse, size, interpolation=interpolation) + light.sun * sun
    else:
        total = coarse
    gain = _shoulder(np.maximum(total * light.exposure, 1e-4) ** np.float32(1 / _GAMMA))
    height, width = texture.shape[:2]
    interpolation = cv2.INTER_CUBIC if min(gain.shape[:2]) > 3 else cv2.INTER_LINEAR
    gain = cv2.resize(gain, (width, height), interpolation=interpolation)
    return cv2.multiply(texture, gain, dtype=cv2.CV_8U)


def _shoulder(gain: np.ndarray) -> np.ndarray:
    """Compress bright light as film and cameras do, so that it does not clip."""
    knee, top = np.float32(0.8), np.float32(1.22)
    over = np.maximum(gain - knee, 0)
    return np.minimum(gain, knee) + (top - knee) * (1 - np.exp(-over / (top - knee)))
