"""Puts quads together: boxes, prisms and panels with materials, for `layout`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from training.datasets.room.light import Blocker
from training.datasets.room.render import Quad

# A material gives a texture for a face of so many metres (width, height).
Material = Callable[[float, float], np.ndarray]

_FACES = {  # name: (corner in units of the half size, right axis, down axis), seen from outside
    'left': ((-1, 1, 1), (0, -1, 0), (0, 0, -1)),  # -x
    'right': ((1, -1, 1), (0, 1, 0), (0, 0, -1)),  # +x
    'front': ((-1, -1, 1), (1, 0, 0), (0, 0, -1)),  # -y
    'back': ((1, 1, 1), (-1, 0, 0), (0, 0, -1)),  # +y
    'bottom': ((-1, -1, -1), (1, 0, 0), (0, 1, 0)),  # -z
    'top': ((-1, 1, 1), (1, 0, 0), (0, -1, 0)),  # +z
}


class Sheet:
    """A large image of a material from which faces are cut at random places.

    Args:
        image: (h, w, 3) uint8; a grain runs along x.
        density: pixels per metre.
        grain: turn the cut so that the grain follows the longer side of the face.
    """

    def __init__(self, rng: np.random.Generator, image: np.ndarray, density: float, grain=False):
        self._rng, self._image, self._density, self._grain = rng, image, density, grain

    def __call__(self, width: float, height: float) -> np.ndarray:
        """A cut for a face of width x height metres."""
        turn = self._grain and height > width
        if turn:
            width, height = height, width
        columns, rows = (max(4, int(round(self._density * side))) for side in (width, height))
        image = self._image
        missing = (max(0, rows - image.shape[0]), max(0, columns - image.shape[1]))
        if any(missing):
            image = cv2.copyMakeBorder(image, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT)
        y = self._rng.integers(0, image.shape[0] - rows + 1)
        x = self._rng.integers(0, image.shape[1] - columns + 1)
        cut = image[y : y + rows, x : x + columns]
        return np.ascontiguousarray(np.rot90(cut) if turn else cut)


class Builder:
    """Collects the quads and shadow-casting boxes of a room."""

    def __init__(self):
        self.quads: list[Quad] = []
        self.blockers: list[Blocker] = []

    def quad(self, origin, right, down, texture: np.ndarray, **options) -> int:
        """Add one quad; see `Quad`. Returns its index."""
        origin, right, down = (np.asarray(v, np.float64) for v in (origin, right, down))
        self.quads.append(Quad(origin, right, down, np.ascontiguousarray(texture), **options))
        return len(self.quads) - 1

    def box(
        self,
        low,
        size,
        material: Material,
        *,
        skip: tuple[str, ...] = (),
        blocks: bool = True,
        turn: float = 0.0,
        lean: float = 0.0,
        glow: str | None = None,
        **faces,
    ) -> None:
        """Add a box.

        Args:
            low, size: (3,) lowest corner and sizes before turning, metres.
            material: for every face without one of its own.
            skip: faces that nobody can see ('left', 'right', 'front', 'back', 'bottom', 'top').
            blocks: casts shadows.
            turn, lean: degrees about z, then about the box's own x, through its centre.
            faces: a texture or a material for single faces, by name.
        """
        low, size = np.asarray(low, np.float64), np.asarray(size, np.float64)
        R = Rotation.from_euler('ZX', [turn, lean], degrees=True).as_matrix()
        centre, half = low + size / 2, size / 2
        index = []
        for name, (corner, right, down) in _FACES.items():
            if name in skip:
                index.append(-1)
                continue
            right, down = np.array(right) * size, np.array(down) * size
            texture = faces.get(name, material)
            if callable(texture):
                texture = texture(np.abs(right).sum(), np.abs(down).sum())
            corner = centre + R @ (np.array(corner) * half)
            index.append(self.quad(corner, R @ right, R @ down, texture, glow=glow))
        if blocks:
            world_T_box = np.eye(4)
            world_T_box[:3, :3], world_T_box[:3, 3] = R, centre
            self.blockers.append(Blocker(world_T_box, half, tuple(index)))

    def prism(
        self,
        centre,
        radius: float,
        height: float,
        material: Material,
        *,
        sides: int = 12,
        top: Material | None = None,
        inside: bool = False,
        glow: str | None = None,
        blocks: bool = True,
    ) -> None:
        """Add an upright prism that stands on `centre` (3,), with its material wrapped around it.

        Args:
            top: material of the upper end; None leaves it open.
            inside: the inner side is visible too, as in a lamp shade.
        """
        centre = np.asarray(centre, np.float64)
        angles = 2 * np.pi * (np.arange(sides + 1) + 0.5) / sides
        ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1) * radius
        wrap = material(2 * np.pi * radius, height)
        cuts = np.linspace(0, wrap.shape[1], sides + 1).astype(int)
        lift = np.array([0, 0, height])
        for i in range(sides):
            start, edge = centre + ring[i] + lift, ring[i + 1] - ring[i]
            part = wrap[:, cuts[i] : max(cuts[i + 1], cuts[i] + 4)]
            self.quad(start, edge, -lift, part, glow=glow)
            if inside:
                self.quad(start + edge, -edge, -lift, part[:, ::-1], glow=glow)
        if top is not None:
            self._lid(centre + lift, radius, top(2 * radius, 2 * radius), glow)
        if blocks:
            world_T_box = np.eye(4)
            world_T_box[:3, 3] = centre + lift / 2
            half = np.array([radius * 0.68, radius * 0.68, height / 2])  # inside all its faces
            self.blockers.append(Blocker(world_T_box, half, (-1,) * 6))

    def _lid(self, centre: np.ndarray, radius: float, texture: np.ndarray, glow) -> None:
        """A round horizontal lid that faces up, cut out of a square."""
        texture = np.ascontiguousarray(texture[..., :3])
        alpha = np.zeros(texture.shape[:2], np.uint8)
        middle = (alpha.shape[1] // 2, alpha.shape[0] // 2)
        cv2.circle(alpha, middle, min(middle) - 1, 255, -1)
        corner = centre + (-radius, radius, 0)
        right, down = np.array([2 * radius, 0, 0]), np.array([0, -2 * radius, 0])
        self.quad(corner, right, down, np.dstack([texture, alpha]), glow=glow)

    def panel(self, wall: str, along: float, above: float, width: float, height: float, texture,
              room, gap: float = 0.012) -> None:  # fmt: skip
        """Hang a flat picture on a wall, with its rim, so that it stands out by `gap` metres.

        Args:
            wall: 'west' (x = 0), 'east' (x = room[0]), 'south' (y = 0) or 'north' (y = room[1]).
            along: world x or y of the picture's lower coordinate on that wall.
            above: height of its lower edge.
        """
        rim = np.ascontiguousarray(texture[:6, :6, :3])
        low = {
            'west': (0, along, above),
            'east': (room[0] - gap, along, above),
            'south': (along, 0, above),
            'north': (along, room[1] - gap, above),
        }[wall]
        size = (gap, width, height) if wall in ('west', 'east') else (width, gap, height)
        face = {'west': 'right', 'east': 'left', 'south': 'back', 'north': 'front'}[wall]
        hidden = {'west': 'left', 'east': 'right', 'south': 'front', 'north': 'back'}[wall]
        self.box(low, size, lambda w, h: rim, skip=(hidden,), blocks=False, **{face: texture})
