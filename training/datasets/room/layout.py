"""The built-in room itself: what stands where, and of what it is made.

World frame: origin at a floor corner, x along the window wall, y towards the window, z up, metres.
The room is 6 x 5 x 2.7 m. Walls are called south (y = 0), north (y = 5, with the window), west
(x = 0) and east (x = 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.datasets.room import pictures, scenery, textures
from training.datasets.room.builder import Builder
from training.datasets.room.kitchen import bistro, kitchen
from training.datasets.room.light import Blocker, Lamp, Sky
from training.datasets.room.living import bookshelf, desk, lounge, sideboard
from training.datasets.room.materials import DENSITY, OAK, PINE, ROOM, WALNUT, Materials, bouquet
from training.datasets.room.render import Quad

_WINDOW = (2.15, 4.35, 0.92, 2.32)  # x0, x1, z0, z1 of the opening


@dataclass(frozen=True)
class RoomModel:
    """Everything the renderer and the light need.

    Attributes:
        quads: all surfaces.
        blockers: the boxes of the furniture.
        shell: indices of the quads of west, east, south, north wall, floor and ceiling.
        sky: the window.
        lamps: the lamps.
    """

    quads: list[Quad]
    blockers: list[Blocker]
    shell: tuple[int, ...]
    sky: Sky
    lamps: list[Lamp]


def build_room(rng: np.random.Generator) -> RoomModel:
    """Draw all textures and put the room together; the same generator state gives the same room."""
    builder, stuff = Builder(), Materials(rng)
    shell = _shell(builder, rng, stuff)
    sky = _window(builder, rng, stuff)
    lounge(builder, rng, stuff)
    _gallery(builder, rng)
    bookshelf(builder, rng, stuff)
    _door(builder, rng, stuff)
    desk(builder, rng, stuff)
    kitchen(builder, rng, stuff)
    bistro(builder, rng, stuff)
    sideboard(builder, rng, stuff)
    lamps = _lamps(builder, stuff)
    _plants(builder, rng, stuff)
    return RoomModel(builder.quads, builder.blockers, shell, sky, lamps)


def _shell(b: Builder, rng, m: Materials) -> tuple[int, ...]:
    """Walls, floor, ceiling, beams and skirting boards."""
    width, depth, height = ROOM
    x0, x1, z0, z1 = _WINDOW
    hole = (x0 / width, 1 - z1 / height, x1 / width, 1 - z0 / height)
    tall = int(height * DENSITY)

    def wall(length, colour):
        return textures.plaster(rng, tall, int(length * DENSITY), colour)

    down = (0, 0, -height)
    shell = (
        b.quad((0, 0, height), (0, depth, 0), down,
               textures.brick(rng, tall, int(depth * DENSITY), DENSITY)),
        b.quad((width, depth, height), (0, -depth, 0), down, wall(depth, (0.88, 0.84, 0.76))),
        b.quad((width, 0, height), (-width, 0, 0), down, wall(width, (0.38, 0.52, 0.53))),
        b.quad((0, depth, height), (width, 0, 0), down, _wallpaper(rng, width, height), hole=hole),
        b.quad((0, depth, 0), (width, 0, 0), (0, -depth, 0),
               textures.floor_planks(rng, int(depth * 380), int(width * 380), 380, *OAK)),
        b.quad((0, 0, height), (width, 0, 0), (0, depth, 0),
               textures.plaster(rng, int(depth * 260), int(width * 260), (0.93, 0.92, 0.89))),
    )  # fmt: skip
    for y in (1.55, 3.35):
        b.box((0, y, height - 0.17), (width, 0.14, 0.17), m.beam, skip=('left', 'right', 'top'))
    for low, size in (
        ((0, 1.3, 0), (0.016, 3.7, 0.09)), ((width - 0.016, 0, 0), (0.016, depth, 0.09)),
        ((0, 0, 0), (width, 0.016, 0.09)), ((0, depth - 0.016, 0), (width, 0.016, 0.09)),
    ):  # fmt: skip
        b.box(low, size, m.white, skip=('bottom',), blocks=False)
    return shell


def _wallpaper(rng, width: float, height: float) -> np.ndarray:
    """The window wall: pale paper with sprigs of leaves, no two alike."""
    rows, columns = int(height * DENSITY), int(width * DENSITY)
    base = textures.plaster(rng, rows, columns, (0.86, 0.84, 0.75), 0.8)
    inks = [(0.50, 0.60, 0.50), (0.62, 0.55, 0.40), (0.72, 0.48, 0.40)]
    for row, y in enumerate(range(40, rows + 60, 92)):
        for x in range(40 + 50 * (row % 2), columns, 100):
            sprig = textures.foliage(rng, 96, 80, int(rng.integers(4, 8)),
                                     inks[rng.integers(3)], 0.30)  # fmt: skip
            y0, x0 = max(y - 90, 0), x - 40
            part = base[y0 : y0 + 96, max(x0, 0) : x0 + 80]
            sprig = sprig[: part.shape[0], : part.shape[1]]
            cover = (sprig[..., 3:] > 0) * 0.8
            part[:] = part * (1 - cover) + sprig[..., :3] * cover
    return base


def _window(b: Builder, rng, m: Materials) -> Sky:
    """Opening, frame, sill, radiator, curtains and the world outside."""
    x0, x1, z0, z1 = _WINDOW
    y, deep = ROOM[1], 0.22
    view = scenery.outdoors(rng, 900, 2100)
    b.quad((-5.5, y + 5, 4.75), (17.5, 0, 0), (0, 0, -7.5), view, glow='day', measurable=False)
    reveal = m.white(0.5, 0.5)
    for origin, right, down, shade in (
        ((x0, y, z1), (0, deep, 0), (0, 0, z0 - z1), 0.80),
        ((x1, y + deep, z1), (0, -deep, 0), (0, 0, z0 - z1), 0.86),
        ((x0, y, z1), (x1 - x0, 0, 0), (0, deep, 0), 0.70),
        ((x0, y + deep, z0), (x1 - x0, 0, 0), (0, -deep, 0), 0.95),
    ):
        b.quad(origin, right, down, cv2.convertScaleAbs(reveal, alpha=shade), glow='day')
    bar, out = 0.055, y + 0.10
    for low, size in (
        ((x0, out, z0), (bar, 0.06, z1 - z0)), ((x1 - bar, out, z0), (bar, 0.06, z1 - z0)),
        ((x0, out, z0), (x1 - x0, 0.06, bar)), ((x0, out, z1 - bar), (x1 - x0, 0.06, bar)),
        (((x0 + x1) / 2 - 0.04, out - 0.01, z0), (0.08, 0.07, z1 - z0)),
        ((x0, out, z0 + 0.98), (x1 - x0, 0.05, 0.04)),
    ):  # fmt: skip
        b.box(low, size, m.white, skip=('back',))
    b.box((x0 - 0.06, y - 0.17, z0 - 0.04), (x1 - x0 + 0.12, 0.17, 0.04), m.white, skip=('back',))
    for x, material in ((2.5, m.terracotta), (2.74, m.blue_glaze), (3.95, m.ceramic)):
        b.prism((x, y - 0.09, z0), 0.055, 0.11, material, sides=10, top=m.felt)
    _radiator(b, m, x0 + 0.45, y)
    drape = textures.fabric(rng, int(2.35 * 300), 700, (0.80, 0.47, 0.30), 'chevron')
    for start, end in ((1.80, 2.22), (4.28, 4.72)):
        _curtain(b, drape, start, end, y - 0.20)
    b.box((1.65, y - 0.165, 2.475), (3.2, 0.022, 0.022), m.black, blocks=False)
    opening = ((x0, y, z1), (x1 - x0, 0, 0), (0, 0, z0 - z1))
    return Sky(*(np.array(v, float) for v in opening), 6.5, (-0.42, -0.72, -0.50), 3.2)


def _radiator(b: Builder, m: Materials, x: float, y: float) -> None:
    """A ribbed radiator under the window."""
    b.box((x, y - 0.09, 0.14), (1.3, 0.05, 0.6), m.steel)
    for i in range(14):
        b.box((x + 0.02 + 0.0925 * i, y - 0.125, 0.15), (0.055, 0.04, 0.58), m.white, blocks=False,
              skip=('back', 'bottom'))  # fmt: skip


def _curtain(b: Builder, cloth: np.ndarray, start: float, end: float, y: float) -> None:
    """A curtain in folds: a zigzag of narrow quads."""
    folds = 8
    x = np.linspace(start, end, folds + 1)
    sway = np.where(np.arange(folds + 1) % 2, 0.035, -0.035)
    cuts = np.linspace(0, cloth.shape[1], folds + 1).astype(int)
    for i in range(folds):
        right = (x[i + 1] - x[i], sway[i + 1] - sway[i], 0)
        strip = cloth[:, cuts[i] : cuts[i + 1]]
        b.quad((x[i], y + sway[i], 2.46), right, (0, 0, -2.42), strip)
        turned = tuple(-v for v in right)
        b.quad((x[i + 1], y + sway[i + 1], 2.46), turned, (0, 0, -2.42), strip[:, ::-1])
    low, half = np.array([start, y - 0.01, 0.04]), np.array([end - start, 0.02, 2.42]) / 2
    frame = np.eye(4)
    frame[:3, 3] = low + half
    b.blockers.append(Blocker(frame, half, (-1,) * 6))


def _gallery(b: Builder, rng) -> None:
    """Pictures on the walls."""

    def hang(wall, along, above, width, height, draw, frame=WALNUT[0], border=0.05, mat=0.0):
        scale = 560
        inner = 1 / (1 + 2 * border + 2 * mat)
        edge = (border + mat) * width * inner * 2
        w, h = int(scale * width * inner), int(scale * (height - edge))
        image = pictures.framed(rng, draw(h, w), frame, border, mat)
        b.panel(wall, along, above, width, height, image, ROOM, 0.025)

    black, gold = (0.12, 0.12, 0.12), (0.72, 0.56, 0.30)
    hang('south', 1.75, 1.18, 1.25, 0.86, lambda h, w: scenery.landscape(rng, h, w), gold, 0.04)
    hang('south', 3.15, 1.52, 0.48, 0.62, lambda h, w: pictures.botanical(rng, h, w), black, 0.04,
         0.10)  # fmt: skip
    hang('south', 3.78, 1.30, 0.58, 0.76, lambda h, w: pictures.geometric(rng, h, w, 4), OAK[0])
    hang('south', 1.05, 1.42, 0.52, 0.52, lambda h, w: pictures.abstract(rng, h, w), black, 0.05,
         0.09)  # fmt: skip
    hang('south', 4.62, 1.12, 1.10, 0.82, lambda h, w: pictures.topographic_map(rng, h, w), black,
         0.02)  # fmt: skip
    hang('south', 0.30, 1.10, 0.56, 0.80, lambda h, w: scenery.landscape(rng, h, w, True), OAK[0],
         0.05)  # fmt: skip
    hang('east', 0.42, 1.16, 1.15, 0.80, lambda h, w: pictures.abstract(rng, h, w), black, 0.025)
    hang('east', 1.68, 1.32, 0.26, 0.36, lambda h, w: pictures.botanical(rng, h, w), gold, 0.06)
    hang('west', 3.72, 1.12, 0.58, 0.84, lambda h, w: pictures.here_poster(rng, h, w), black, 0.03)
    hang('west', 1.36, 1.56, 0.30, 0.40, lambda h, w: scenery.city_at_night(rng, h, w), PINE[0])
    hang('north', 0.42, 1.22, 1.10, 0.72, lambda h, w: pictures.corkboard(rng, h, w), PINE[0], 0.03)
    hang('north', 4.92, 1.42, 0.40, 0.54, lambda h, w: pictures.botanical(rng, h, w), OAK[0], 0.05,
         0.08)  # fmt: skip
    face = pictures.clock(rng, 200)
    b.quad((5.32, 4.985, 2.42), (0.36, 0, 0), (0, 0, -0.36), face)


def _door(b: Builder, rng, m: Materials) -> None:
    """A panelled door in the west wall, with its frame and a coat hook rail."""
    leaf = pictures.door(rng, 820, 360, (0.86, 0.86, 0.80))
    b.quad((0.012, 0.36, 2.03), (0, 0.86, 0), (0, 0, -2.03), leaf)
    for low, size in (((0, 0.28, 0), (0.035, 0.08, 2.11)), ((0, 1.22, 0), (0.035, 0.08, 2.11)),
                      ((0, 0.28, 2.03), (0.035, 1.02, 0.08))):  # fmt: skip
        b.box(low, size, m.white, skip=('left', 'bottom'))


def _lamps(b: Builder, m: Materials) -> list[Lamp]:
    """Pendant over the room, floor lamp by the sofa; the desk lamp stands on the desk."""
    warm = (1.0, 0.80, 0.56)
    px, py, pz = 3.05, 2.45, 2.02
    b.box((px - 0.004, py - 0.004, pz + 0.2), (0.008, 0.008, 0.48), m.black, blocks=False)
    b.prism((px, py, pz), 0.24, 0.22, m.shade, sides=18, inside=True, glow='lamps', blocks=False)
    fx, fy = 1.14, 0.42
    b.prism((fx, fy, 0), 0.15, 0.025, m.black, sides=14, top=m.black)
    b.box((fx - 0.012, fy - 0.012, 0.02), (0.024, 0.024, 1.36), m.black, blocks=False)
    b.prism((fx, fy, 1.32), 0.19, 0.27, m.shade, sides=16, inside=True, glow='lamps', blocks=False)
    return [
        Lamp((px, py, pz + 0.05), 0.12, 2.1, (1.0, 0.86, 0.66)),
        Lamp((fx, fy, 1.45), 0.10, 0.55, warm),
        Lamp((1.52, 4.72, 1.12), 0.03, 0.10, warm),
    ]


def _plants(b: Builder, rng, m: Materials) -> None:
    """House plants."""
    green = (0.25, 0.43, 0.20)
    b.prism((4.75, 0.42, 0), 0.19, 0.36, m.terracotta, sides=16, top=m.felt)
    bouquet(b, rng, 4.75, 0.42, 0.32, 0.88, 0.85, 30, green, 0.20)
    b.prism((0.40, 3.88, 0), 0.16, 0.30, m.ceramic, sides=14, top=m.felt)
    bouquet(b, rng, 0.40, 3.88, 0.27, 0.66, 0.6, 24, (0.30, 0.48, 0.26), 0.22)
    for x in (2.5, 2.74, 3.95):
        bouquet(b, rng, x, ROOM[1] - 0.09, _WINDOW[2] + 0.1, 0.2, 0.2, 11, green, 0.3)
    bouquet(b, rng, 0.16, 2.2, 2.3, 0.34, 0.5, 16, (0.33, 0.50, 0.25), 0.24)
