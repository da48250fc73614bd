"""The built-in room itself: what stands where, and of what it is made.

World frame: origin at a floor corner, x along the window wall, y towards the window, z up, metres.
The room is 6 x 5 x 2.7 m. Walls are called south (y = 0), north (y = 5, with the window), west
(x = 0) and east (x = 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.datasets import synthetic_pictures as pictures
from training.datasets import synthetic_textures as textures
from training.datasets.synthetic_builder import Builder, Sheet
from training.datasets.synthetic_light import Blocker, Lamp, Sky
from training.datasets.synthetic_render import Quad

ROOM = np.array([6.0, 5.0, 2.7])
_WINDOW = (2.15, 4.35, 0.92, 2.32)  # x0, x1, z0, z1 of the opening
_DENSITY = 400  # texture pixels per metre

_OAK = ((0.76, 0.57, 0.38), (0.45, 0.29, 0.17))
_WALNUT = ((0.46, 0.31, 0.21), (0.22, 0.13, 0.08))
_PINE = ((0.88, 0.72, 0.50), (0.66, 0.46, 0.28))


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


class _Materials:
    """The material sheets of one room."""

    def __init__(self, rng: np.random.Generator):
        def sheet(image, grain=False):
            return Sheet(rng, image, _DENSITY, grain)

        def timber(tones, ring, contrast=1.0):
            return sheet(textures.wood(rng, 420, 1000, *tones, ring, contrast), True)

        self.oak = timber(_OAK, 24)
        self.walnut = timber(_WALNUT, 30)
        self.pine = timber(_PINE, 34, 0.9)
        self.beam = timber(((0.36, 0.25, 0.17), (0.17, 0.10, 0.07)), 20)
        self.white = sheet(textures.lacquer(rng, 500, 900, (0.90, 0.89, 0.86)))
        self.sage = sheet(textures.lacquer(rng, 500, 500, (0.55, 0.63, 0.54)))
        self.black = sheet(textures.lacquer(rng, 300, 500, (0.13, 0.13, 0.14)))
        self.steel = sheet(textures.wood(rng, 400, 800, (0.74, 0.75, 0.76), (0.66, 0.67, 0.69), 90))
        self.granite = sheet(textures.stone(rng, 300, 1000, (0.24, 0.24, 0.25)))
        self.terracotta = sheet(textures.plaster(rng, 200, 500, (0.74, 0.44, 0.30), 1.6))
        self.ceramic = sheet(textures.lacquer(rng, 200, 400, (0.90, 0.88, 0.82)))
        self.blue_glaze = sheet(textures.stone(rng, 200, 500, (0.22, 0.38, 0.52)))
        self.sofa = sheet(textures.fabric(rng, 500, 1000, (0.74, 0.69, 0.60)))
        self.felt = sheet(textures.fabric(rng, 300, 400, (0.36, 0.36, 0.38)))
        self.mustard = sheet(textures.fabric(rng, 300, 400, (0.83, 0.62, 0.22)))
        self.paper = sheet(textures.fabric(rng, 200, 300, (0.93, 0.91, 0.85)))
        self.linen = sheet(textures.fabric(rng, 300, 700, (0.88, 0.82, 0.70)))
        self.shade = sheet(_lamp_shade(rng))


def build_room(rng: np.random.Generator) -> RoomModel:
    """Draw all textures and put the room together; the same generator state gives the same room."""
    builder, stuff = Builder(), _Materials(rng)
    shell = _shell(builder, rng, stuff)
    sky = _window(builder, rng, stuff)
    _lounge(builder, rng, stuff)
    _gallery(builder, rng)
    _bookshelf(builder, rng, stuff)
    _door(builder, rng, stuff)
    _desk(builder, rng, stuff)
    _kitchen(builder, rng, stuff)
    _bistro(builder, rng, stuff)
    _sideboard(builder, rng, stuff)
    lamps = _lamps(builder, stuff)
    _plants(builder, rng, stuff)
    return RoomModel(builder.quads, builder.blockers, shell, sky, lamps)


def _shell(b: Builder, rng, m: _Materials) -> tuple[int, ...]:
    """Walls, floor, ceiling, beams and skirting boards."""
    width, depth, height = ROOM
    x0, x1, z0, z1 = _WINDOW
    hole = (x0 / width, 1 - z1 / height, x1 / width, 1 - z0 / height)
    tall = int(height * _DENSITY)

    def wall(length, colour):
        return textures.plaster(rng, tall, int(length * _DENSITY), colour)

    down = (0, 0, -height)
    shell = (
        b.quad((0, 0, height), (0, depth, 0), down,
               textures.brick(rng, tall, int(depth * _DENSITY), _DENSITY)),
        b.quad((width, depth, height), (0, -depth, 0), down, wall(depth, (0.88, 0.84, 0.76))),
        b.quad((width, 0, height), (-width, 0, 0), down, wall(width, (0.38, 0.52, 0.53))),
        b.quad((0, depth, height), (width, 0, 0), down, _wallpaper(rng, width, height), hole=hole),
        b.quad((0, depth, 0), (width, 0, 0), (0, -depth, 0),
               textures.floor_planks(rng, int(depth * 380), int(width * 380), 380, *_OAK)),
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
    rows, columns = int(height * _DENSITY), int(width * _DENSITY)
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


def _window(b: Builder, rng, m: _Materials) -> Sky:
    """Opening, frame, sill, radiator, curtains and the world outside."""
    x0, x1, z0, z1 = _WINDOW
    y, deep = ROOM[1], 0.22
    view = pictures.outdoors(rng, 900, 2100)
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
        b.box(low, size, m.white, glow='day', skip=('back',))
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


def _radiator(b: Builder, m: _Materials, x: float, y: float) -> None:
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


def _lounge(b: Builder, rng, m: _Materials) -> None:
    """Sofa with cushions, rug, coffee table with what lies on it."""
    x, y = 1.45, 0.06
    b.box((x + 0.16, y + 0.05, 0.10), (1.98, 0.80, 0.20), m.sofa, skip=('top',))
    b.box((x, y, 0.08), (0.20, 0.92, 0.54), m.sofa)
    b.box((x + 2.10, y, 0.08), (0.20, 0.92, 0.54), m.sofa)
    b.box((x + 0.16, y, 0.30), (1.98, 0.20, 0.50), m.sofa, skip=('bottom',))
    for i in range(2):
        b.box((x + 0.205 + 0.948 * i, y + 0.16, 0.30), (0.94, 0.74, 0.15), m.sofa)
        b.box((x + 0.22 + 0.948 * i, y + 0.16, 0.45), (0.91, 0.17, 0.40), m.sofa, lean=8)
    for dx in (0.06, 2.16):
        for dy in (0.06, 0.80):
            b.box((x + dx, y + dy, 0), (0.06, 0.06, 0.09), m.walnut, skip=('bottom',))
    cushions = (('plaid', (0.74, 0.30, 0.22), 0.38, -14), ('dots', (0.16, 0.36, 0.42), 0.82, 9),
                ('stripes', (0.86, 0.66, 0.28), 1.66, 16))  # fmt: skip
    for pattern, colour, dx, turn in cushions:
        cloth = _stuffed(textures.fabric(rng, 190, 190, colour, pattern))
        b.box((x + dx - 0.05, y + 0.37, 0.455), (0.42, 0.10, 0.40), lambda w, h, c=cloth: c,
              turn=turn, lean=17)  # fmt: skip
    throw = textures.fabric(rng, 330, 300, (0.62, 0.24, 0.20), 'chevron')
    b.quad((x + 2.312, y + 0.28, 0.625), (0, 0.40, 0), (0, 0, -0.42), throw[:170, :160])
    b.quad((x + 2.09, y + 0.28, 0.628), (0, 0.40, 0), (0.222, 0, 0), throw[:90, :160])

    b.box((1.15, 1.02, 0), (2.9, 1.75, 0.008), m.felt, blocks=False, skip=('bottom',),
          top=textures.rug(rng, int(1.75 * 380), int(2.9 * 380)))  # fmt: skip
    cx, cy = 2.10, 1.48
    b.box((cx, cy, 0.36), (1.05, 0.52, 0.045), m.walnut)
    b.box((cx + 0.08, cy + 0.06, 0.14), (0.89, 0.40, 0.02), m.walnut)
    for dx in (0.04, 0.95):
        for dy in (0.03, 0.43):
            b.box((cx + dx, cy + dy, 0), (0.055, 0.055, 0.36), m.walnut, skip=('top', 'bottom'))
    top = 0.405
    cover = pictures.geometric(rng, 180, 130, 3)
    b.box((cx + 0.10, cy + 0.10, top), (0.23, 0.31, 0.022), m.paper, turn=12, skip=('bottom',),
          top=cover)  # fmt: skip
    b.box((cx + 0.12, cy + 0.13, top + 0.022), (0.19, 0.26, 0.018), m.paper, turn=-8,
          skip=('bottom',), top=pictures.city_at_night(rng, 160, 120))  # fmt: skip
    b.prism((cx + 0.55, cy + 0.33, top), 0.042, 0.095, m.mustard, sides=10, top=m.felt)
    b.prism((cx + 0.80, cy + 0.22, top), 0.13, 0.06, m.blue_glaze, sides=14, top=m.blue_glaze)
    for dx, dy, fruit in ((0, 0.03, m.terracotta), (0.06, -0.04, m.mustard), (-0.06, -0.03, m.sage)):
        b.prism((cx + 0.80 + dx, cy + 0.22 + dy, top + 0.06), 0.038, 0.06, fruit, sides=8, top=fruit)
    magazine = pictures.abstract(rng, 150, 110)
    b.box((cx + 0.3, cy + 0.14, 0.162), (0.22, 0.29, 0.012), m.paper, turn=24, top=magazine,
          blocks=False)  # fmt: skip
    b.prism((4.05, 0.50, 0), 0.23, 0.36, m.mustard, sides=16, top=m.mustard)  # pouf


def _stuffed(cloth: np.ndarray) -> np.ndarray:
    """Shade a cushion cover as if it bulged: darker towards its seams."""
    x = np.linspace(-1, 1, cloth.shape[1])[None] ** 4
    y = np.linspace(-1, 1, cloth.shape[0])[:, None] ** 4
    return np.uint8(cloth * (1 - 0.30 * np.maximum(x, y) - 0.08 * (x + y) / 2)[..., None])


def _lamp_shade(rng) -> np.ndarray:
    """The cloth of a lamp shade, brightest in the middle where the bulb is."""
    cloth = textures.lacquer(rng, 88, 700, (0.97, 0.91, 0.78))
    glow = 1 - 0.22 * np.linspace(-1, 1, len(cloth))[:, None, None] ** 2
    return np.uint8(cloth * glow)


def _gallery(b: Builder, rng) -> None:
    """Pictures on the walls."""
    def hang(wall, along, above, width, height, draw, frame=_WALNUT[0], border=0.05, mat=0.0):
        scale = 560
        inner = 1 / (1 + 2 * border + 2 * mat)
        edge = (border + mat) * width * inner * 2
        w, h = int(scale * width * inner), int(scale * (height - edge))
        image = pictures.framed(rng, draw(h, w), frame, border, mat)
        b.panel(wall, along, above, width, height, image, ROOM, 0.025)

    black, gold = (0.12, 0.12, 0.12), (0.72, 0.56, 0.30)
    hang('south', 1.75, 1.18, 1.25, 0.86, lambda h, w: pictures.landscape(rng, h, w), gold, 0.04)
    hang('south', 3.15, 1.52, 0.48, 0.62, lambda h, w: pictures.botanical(rng, h, w), black, 0.04,
         0.10)  # fmt: skip
    hang('south', 3.78, 1.30, 0.58, 0.76, lambda h, w: pictures.geometric(rng, h, w, 4), _OAK[0])
    hang('south', 1.05, 1.42, 0.52, 0.52, lambda h, w: pictures.abstract(rng, h, w), black, 0.05,
         0.09)  # fmt: skip
    hang('south', 4.62, 1.12, 1.10, 0.82, lambda h, w: pictures.topographic_map(rng, h, w), black,
         0.02)  # fmt: skip
    hang('south', 0.30, 1.10, 0.56, 0.80, lambda h, w: pictures.landscape(rng, h, w, True), _OAK[0],
         0.05)  # fmt: skip
    hang('east', 0.42, 1.16, 1.15, 0.80, lambda h, w: pictures.abstract(rng, h, w), black, 0.025)
    hang('east', 1.68, 1.32, 0.26, 0.36, lambda h, w: pictures.botanical(rng, h, w), gold, 0.06)
    hang('west', 3.72, 1.12, 0.58, 0.84, lambda h, w: pictures.here_poster(rng, h, w), black, 0.03)
    hang('west', 1.36, 1.56, 0.30, 0.40, lambda h, w: pictures.city_at_night(rng, h, w), _PINE[0])
    hang('north', 0.42, 1.22, 1.10, 0.72, lambda h, w: pictures.corkboard(rng, h, w), _PINE[0], 0.03)
    hang('north', 4.92, 1.42, 0.40, 0.54, lambda h, w: pictures.botanical(rng, h, w), _OAK[0], 0.05,
         0.08)  # fmt: skip
    face = pictures.clock(rng, 200)
    b.quad((5.32, 4.985, 2.42), (0.36, 0, 0), (0, 0, -0.36), face)


def _bookshelf(b: Builder, rng, m: _Materials) -> None:
    """A tall oak shelf full of books and things."""
    y0, wide, deep, tall, board = 1.75, 1.80, 0.31, 2.14, 0.026
    b.quad((0.02, y0, tall), (0, wide, 0), (0, 0, -tall), m.oak(wide, tall))
    for y in (y0, y0 + wide / 2 - board / 2, y0 + wide - board):
        b.box((0, y, 0), (deep, board, tall), m.oak, skip=('left', 'bottom'))
    levels = (0.06, 0.42, 0.78, 1.12, 1.46, 1.80, tall - board)
    for z in levels:
        b.box((0, y0, z), (deep, wide, board), m.oak, skip=('left',))
    for z, next_z in zip(levels[:-1], levels[1:], strict=True):
        for half in range(2):
            y = y0 + board + half * (wide - board) / 2
            end = y + (wide - 3 * board) / 2
            _shelf_row(b, rng, m, y + 0.004, end, z + board, next_z - z - board)
    b.box((0.05, y0 + 0.2, tall), (0.22, 0.36, 0.2), m.linen, turn=6)
    b.box((0.05, y0 + 1.1, tall), (0.2, 0.42, 0.24), m.sage, turn=-5)


def _shelf_row(b: Builder, rng, m: _Materials, y: float, end: float, z: float, room: float) -> None:
    """One compartment: groups of books of one height, a stack, a jar or a gap."""
    while end - y > 0.07:
        kind = rng.random()
        if kind < 0.78:
            count = int(rng.integers(3, 8))
            width = min(count * rng.uniform(0.028, 0.042), end - y)
            _books(b, rng, m, y, z, width, room * rng.uniform(0.68, 0.95), count)
            y += width
        elif kind < 0.88 and end - y > 0.24:
            for level in range(int(rng.integers(2, 5))):
                spine = np.rot90(pictures.spines(rng, 140, 22, 1))
                b.box((0.06, y + 0.01, z + 0.032 * level), (0.19, 0.21, 0.030), m.paper,
                      turn=rng.normal(0, 4), blocks=False, right=spine)  # fmt: skip
            y += 0.24
        elif end - y > 0.16:
            material = (m.terracotta, m.blue_glaze, m.ceramic, m.mustard)[rng.integers(4)]
            height = min(room * 0.8, rng.uniform(0.10, 0.22))
            b.prism((0.17, y + 0.08, z), 0.06, height, material, sides=10, top=m.felt)
            y += 0.17
        else:
            y += 0.05


def _books(b: Builder, rng, m: _Materials, y, z, width, height, count) -> None:
    """A group of books of one height whose spines face into the room."""
    depth = rng.uniform(0.19, 0.27)
    scale = 650
    spine = pictures.spines(rng, int(scale * height), int(scale * width), count)
    side = pictures.spines(rng, 60, 60, 1)
    b.box((0.02, y, z), (depth, width - 0.002, height), m.paper, skip=('left', 'bottom'),
          right=spine, front=side, back=side)  # fmt: skip


def _door(b: Builder, rng, m: _Materials) -> None:
    """A panelled door in the west wall, with its frame and a coat hook rail."""
    leaf = pictures.door(rng, 820, 360, (0.86, 0.86, 0.80))
    b.quad((0.012, 0.36, 2.03), (0, 0.86, 0), (0, 0, -2.03), leaf)
    for low, size in (((0, 0.28, 0), (0.035, 0.08, 2.11)), ((0, 1.22, 0), (0.035, 0.08, 2.11)),
                      ((0, 0.28, 2.03), (0.035, 1.02, 0.08))):  # fmt: skip
        b.box(low, size, m.white, skip=('left', 'bottom'))


def _desk(b: Builder, rng, m: _Materials) -> None:
    """Desk in the north-west corner with monitor, keyboard, papers, lamp, drawers and a chair."""
    x, y, top = 0.30, 4.28, 0.74
    b.box((x, y, top - 0.035), (1.42, 0.68, 0.035), m.pine)
    for dx in (0.02, 1.35):
        for dy in (0.02, 0.61):
            b.box((x + dx, y + dy, 0), (0.05, 0.05, top - 0.035), m.black, skip=('top', 'bottom'))
    b.box((x + 0.08, y + 0.08, 0.05), (0.40, 0.54, 0.60), m.white, front=_fronts(rng, m.white, 3))
    mx = x + 0.46
    screen = pictures.editor_screen(rng, 400, 680)
    b.box((mx, y + 0.42, top + 0.11), (0.64, 0.035, 0.38), m.black)
    b.quad((mx + 0.012, y + 0.418, top + 0.478), (0.616, 0, 0), (0, 0, -0.35), screen, glow='self')
    b.box((mx + 0.28, y + 0.45, top), (0.08, 0.03, 0.2), m.black)
    b.box((mx + 0.20, y + 0.38, top), (0.24, 0.18, 0.012), m.black)
    b.box((mx + 0.06, y + 0.10, top), (0.44, 0.14, 0.018), m.black, top=_keyboard(rng))
    b.box((mx + 0.56, y + 0.13, top), (0.06, 0.10, 0.03), m.steel)
    for dx, dy, turn in ((0.12, 0.14, 14), (0.16, 0.2, -6)):
        sheet = pictures._note(rng, 200, 142)
        b.box((x + dx, y + dy, top), (0.21, 0.297, 0.003 + 0.002 * dy), m.paper, turn=turn,
              blocks=False, top=textures.to_bytes(sheet))  # fmt: skip
    b.prism((x + 1.27, y + 0.50, top), 0.075, 0.02, m.black, top=m.black)
    b.box((x + 1.262, y + 0.492, top), (0.016, 0.016, 0.40), m.black)
    b.prism((x + 1.22, y + 0.44, top + 0.36), 0.075, 0.10, m.mustard, inside=True, blocks=False)
    b.prism((x + 1.30, y + 0.16, top), 0.04, 0.1, m.terracotta, sides=10, top=m.felt)
    _office_chair(b, m, x + 0.84, 3.86)


def _fronts(rng, material, rows: int, columns: int = 1, wide: float = 0.0) -> np.ndarray:
    """The front of a cabinet: `rows` x `columns` drawers or doors with gaps and handles."""
    image = material(0.40 * columns if not wide else wide, 0.60).copy()
    height, width = image.shape[:2]
    for row in range(rows):
        for column in range(columns):
            y0, y1 = (height * k // rows for k in (row, row + 1))
            x0, x1 = (width * k // columns for k in (column, column + 1))
            cv2.rectangle(image, (x0 + 2, y0 + 2), (x1 - 3, y1 - 3), (70, 66, 60), 1)
            cv2.rectangle(image, (x0 + 7, y0 + 7), (x1 - 8, y1 - 8), (150, 146, 138), 1)
            if rows > 1 or columns == 1:
                y, xm = y0 + max(12, (y1 - y0) // 7), (x0 + x1) // 2
                cv2.line(image, (xm - 22, y + 2), (xm + 22, y + 2), (60, 58, 54), 3)
                cv2.line(image, (xm - 22, y), (xm + 22, y), (205, 200, 190), 3)
            else:
                x = x1 - 16 if column % 2 == 0 else x0 + 16
                cv2.line(image, (x + 2, y0 + 22), (x + 2, y0 + 66), (60, 58, 54), 3)
                cv2.line(image, (x, y0 + 22), (x, y0 + 66), (205, 200, 190), 3)
    return image


def _keyboard(rng) -> np.ndarray:
    image = np.full((84, 264, 3), 38, np.uint8)
    for row in range(5):
        x = 6 + 3 * row
        while x < 250:
            key = int(rng.choice((14, 14, 14, 22))) if row != 4 else int(rng.choice((18, 80)))
            tone = int(rng.integers(70, 96))
            cv2.rectangle(image, (x, 6 + 15 * row), (min(x + key - 3, 257), 17 + 15 * row),
                          (tone, tone, tone + 4), -1)  # fmt: skip
            x += key
    return image


def _office_chair(b: Builder, m: _Materials, x: float, y: float) -> None:
    b.box((x - 0.24, y - 0.24, 0.44), (0.48, 0.46, 0.08), m.felt, turn=28)
    b.box((x - 0.09, y - 0.30, 0.58), (0.44, 0.06, 0.46), m.felt, turn=28, lean=-8)
    b.box((x - 0.03, y - 0.03, 0.08), (0.06, 0.06, 0.36), m.black, turn=28)
    for turn in (28, 88, 148):
        b.box((x - 0.29, y - 0.025, 0.05), (0.58, 0.05, 0.035), m.black, turn=turn)


def _kitchen(b: Builder, rng, m: _Materials) -> None:
    """Kitchenette along the east wall: cabinets, oven, worktop, tiles, shelves, refrigerator."""
    x, y0, y1, top = 5.40, 2.66, 4.98, 0.90
    units = np.linspace(y0, y1, 5)
    for i in range(4):
        front = _oven(rng, m) if i == 1 else _fronts(rng, m.sage, 3 if i == 3 else 1)
        b.box((x + 0.02, units[i], 0.10), (0.56, units[i + 1] - units[i], top - 0.14), m.sage,
              skip=('right', 'bottom', 'top'), left=front)  # fmt: skip
    b.box((x + 0.08, y0, 0), (0.5, y1 - y0, 0.10), m.black, skip=('right', 'bottom', 'top'))
    b.box((x - 0.02, y0, top - 0.04), (0.62, y1 - y0, 0.04), m.granite, skip=('right',))
    splash = textures.tiles(rng, 300, int(500 * (y1 - y0)), 60, [
        (0.93, 0.92, 0.87), (0.17, 0.33, 0.52), (0.36, 0.56, 0.66), (0.83, 0.63, 0.26),
        (0.52, 0.26, 0.22)])  # fmt: skip
    b.box((5.988, y0, top), (0.012, y1 - y0, 0.6), m.ceramic, skip=('right',), blocks=False,
          left=splash)  # fmt: skip
    hob = np.full((240, 220, 3), 22, np.uint8)
    for cx, cy, radius in ((60, 65, 38), (160, 65, 28), (60, 175, 28), (160, 175, 38)):
        cv2.circle(hob, (cx, cy), radius, (120, 60, 50), 3, cv2.LINE_AA)
        cv2.circle(hob, (cx, cy), radius // 2, (70, 70, 72), 2, cv2.LINE_AA)
    b.box((x + 0.06, units[1] + 0.02, top), (0.48, 0.53, 0.006), m.black, blocks=False, top=hob)
    b.prism((x + 0.22, units[1] + 0.16, top + 0.006), 0.10, 0.12, m.steel, sides=16, top=m.steel)
    b.box((x + 0.08, units[2] + 0.08, top), (0.40, 0.46, 0.004), m.steel, blocks=False,
          top=_sink(m))  # fmt: skip
    b.box((x + 0.50, units[2] + 0.28, top), (0.03, 0.03, 0.26), m.steel)
    b.box((x + 0.32, units[2] + 0.285, top + 0.24), (0.20, 0.02, 0.02), m.steel)
    b.box((x + 0.12, units[0] + 0.06, top), (0.34, 0.46, 0.26), m.white,
          left=_microwave(rng, m))  # fmt: skip
    b.box((x + 0.42, units[3] + 0.06, top), (0.03, 0.30, 0.36), m.pine, turn=0)
    jars = (m.terracotta, m.ceramic, m.blue_glaze, m.mustard)
    for i in range(3):
        b.prism((x + 0.22, units[3] + 0.12 + 0.14 * i, top), 0.052, 0.12 + 0.04 * i, jars[i],
                sides=10, top=m.oak)  # fmt: skip
    for level, z in enumerate((1.58, 1.96)):
        b.box((5.74, y0 + 0.05, z), (0.26, y1 - y0 - 0.30, 0.03), m.walnut, skip=('right',))
        y = y0 + 0.16
        while y < y1 - 0.45:
            radius, height = rng.uniform(0.04, 0.075), rng.uniform(0.08, 0.22)
            if rng.random() < 0.25:
                spine = pictures.spines(rng, 140, 100, 4)
                b.box((5.80, y - 0.05, z + 0.03), (0.17, 0.15, 0.22), m.paper, left=spine)
                y += 0.24
                continue
            jar = jars[rng.integers(4)]
            b.prism((5.86, y, z + 0.03), radius, height, jar, sides=10, top=m.ceramic)
            y += 2 * radius + rng.uniform(0.03, 0.12)
    _refrigerator(b, rng, m)


def _oven(rng, m: _Materials) -> np.ndarray:
    image = m.black(0.58, 0.76).copy()
    height, width = image.shape[:2]
    cv2.rectangle(image, (6, 6), (width - 7, 52), (150, 151, 154), -1)
    for i in range(5):
        cv2.circle(image, (30 + i * 42, 29), 11, (40, 40, 42), -1, cv2.LINE_AA)
        cv2.line(image, (30 + i * 42, 29), (30 + i * 42 + int(rng.integers(-8, 9)), 20), (220,) * 3, 2)
    cv2.rectangle(image, (20, 92), (width - 21, height - 60), (28, 27, 30), -1)
    cv2.rectangle(image, (20, 92), (width - 21, height - 60), (110, 110, 112), 2)
    for y in range(120, height - 70, 26):
        cv2.line(image, (28, y), (width - 29, y), (70, 68, 66), 1)
    cv2.line(image, (26, 74), (width - 27, 74), (190, 190, 194), 6)
    return image


def _sink(m: _Materials) -> np.ndarray:
    image = m.steel(0.40, 0.46).copy()
    height, width = image.shape[:2]
    inner = (12, 12), (width - 40, height - 13)
    cv2.rectangle(image, *inner, (120, 122, 125), -1)
    cv2.rectangle(image, *inner, (90, 92, 94), 3)
    cv2.circle(image, ((width - 28) // 2, height // 2), 9, (40, 40, 40), -1, cv2.LINE_AA)
    return image


def _microwave(rng, m: _Materials) -> np.ndarray:
    image = m.white(0.46, 0.26).copy()
    height, width = image.shape[:2]
    cv2.rectangle(image, (8, 10), (int(width * 0.72), height - 11), (34, 34, 38), -1)
    cv2.rectangle(image, (int(width * 0.76), 14), (width - 10, 34), (30, 60, 50), -1)
    cv2.putText(image, '12:42', (int(width * 0.77), 30), cv2.FONT_HERSHEY_SIMPLEX, 0.34,
                (120, 240, 170), 1, cv2.LINE_AA)  # fmt: skip
    for row in range(3):
        for column in range(3):
            x, y = int(width * 0.78) + 12 * column, 44 + 14 * row
            cv2.rectangle(image, (x, y), (x + 8, y + 8), (170, 168, 164), -1)
    return image


def _refrigerator(b: Builder, rng, m: _Materials) -> None:
    """A refrigerator with notes and photographs held by magnets."""
    wide, tall = 0.60, 1.78
    front = m.white(wide, tall).copy()
    height, width = front.shape[:2]
    split = int(height * 0.36)
    cv2.line(front, (0, split), (width, split), (90, 90, 90), 4)
    for y0, y1 in ((split - 130, split - 30), (split + 30, split + 190)):
        cv2.line(front, (22, y0), (22, y1), (120, 120, 122), 9, cv2.LINE_AA)
        cv2.line(front, (20, y0), (20, y1), (210, 210, 212), 4, cv2.LINE_AA)
    cards = np.float32(front)
    for index in range(7):
        size = int(rng.uniform(34, 58))
        if index % 2:
            card = np.float32(pictures.landscape(rng, size, int(size * 1.4), index % 4 == 1))
        else:
            card = pictures._note(rng, int(size * 1.2), size) * 255
        place = rng.uniform(0.32, 0.88) * width, rng.uniform(0.06, 0.62) * height
        pictures._paste(cards, card, *place, rng.normal(0, 6))
        dot = textures.vary(rng, (0.8, 0.25, 0.2), 0.5) * 255
        cv2.circle(cards, (int(place[0]), int(place[1] - size * 0.45)), 6, dot.tolist(), -1)
    b.box((5.36, 2.02, 0.03), (0.62, wide, tall), m.white, skip=('bottom',),
          left=np.uint8(np.clip(cards, 0, 255)))  # fmt: skip
    b.box((5.5, 2.12, tall + 0.03), (0.3, 0.4, 0.16), m.pine, turn=4)


def _bistro(b: Builder, rng, m: _Materials) -> None:
    """A small table with two chairs between kitchen and window."""
    x, y, top, side = 4.02, 3.28, 0.745, 0.74
    b.box((x, y, top - 0.03), (side, side, 0.03), m.oak)
    b.box((x + side / 2 - 0.04, y + side / 2 - 0.04, 0.04), (0.08, 0.08, top - 0.07), m.black)
    b.box((x + 0.14, y + 0.14, 0), (side - 0.28, side - 0.28, 0.04), m.black, turn=45)
    mat = textures.fabric(rng, 150, 210, (0.30, 0.45, 0.50), 'stripes')
    b.box((x + 0.06, y + 0.20, top), (0.44, 0.32, 0.003), m.paper, blocks=False, turn=4, top=mat)
    b.prism((x + 0.28, y + 0.36, top + 0.003), 0.11, 0.018, m.ceramic, sides=16, top=m.ceramic)
    b.prism((x + 0.58, y + 0.22, top), 0.04, 0.09, m.blue_glaze, sides=10, top=m.felt)
    b.prism((x + 0.54, y + 0.54, top), 0.05, 0.17, m.ceramic, sides=12, top=m.felt)
    _leaves(b, rng, x + 0.54, y + 0.54, top + 0.15, 0.36, 0.42, 12, (0.62, 0.36, 0.40))
    _chair(b, m.oak, m.mustard, 3.66, 3.66, 84)
    _chair(b, m.oak, m.sage, 4.42, 4.34, -8)


def _chair(b: Builder, timber, seat, x: float, y: float, turn: float) -> None:
    """A dining chair centred at (x, y), its back on the +y side before turning."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))

    def part(dx, dy, z, size, material, **options):
        px, py = x + c * dx - s * dy, y + s * dx + c * dy
        low = (px - size[0] / 2, py - size[1] / 2, z)
        b.box(low, size, material, turn=turn, **options)

    part(0, 0, 0.43, (0.40, 0.40, 0.045), seat)
    for dx in (-0.175, 0.175):
        part(dx, -0.175, 0, (0.035, 0.035, 0.43), timber, skip=('bottom', 'top'))
        part(dx, 0.18, 0, (0.035, 0.035, 0.88), timber, skip=('bottom',))
    for z in (0.58, 0.70, 0.82):
        part(0, 0.18, z, (0.33, 0.02, 0.06), timber)


def _sideboard(b: Builder, rng, m: _Materials) -> None:
    """Sideboard on the east wall with a record player, books and a vase."""
    x, y, top = 5.54, 0.36, 0.72
    front = _fronts(rng, m.walnut, 1, 3, 1.30)
    b.box((x, y, 0.14), (0.45, 1.36, top - 0.14), m.walnut, skip=('right',), left=front)
    for dx in (0.03, 0.37):
        for dy in (0.06, 1.25):
            b.box((x + dx, y + dy, 0), (0.04, 0.04, 0.14), m.black, skip=('top', 'bottom'))
    deck = m.pine(0.36, 0.44).copy()
    cv2.circle(deck, (72, 76), 60, (24, 24, 26), -1, cv2.LINE_AA)
    for radius in range(24, 60, 5):
        cv2.circle(deck, (72, 76), radius, (48, 48, 52), 1, cv2.LINE_AA)
    cv2.circle(deck, (72, 76), 18, (200, 80, 50), -1, cv2.LINE_AA)
    cv2.line(deck, (130, 20), (100, 100), (200, 200, 205), 4, cv2.LINE_AA)
    b.box((x + 0.04, y + 0.10, top), (0.36, 0.44, 0.10), m.pine, top=deck)
    _record_sleeves(b, rng, m, x, y + 0.62, top)
    b.prism((x + 0.22, y + 1.14, top), 0.085, 0.26, m.blue_glaze, sides=14, top=m.felt)
    _leaves(b, rng, x + 0.22, y + 1.14, top + 0.24, 0.42, 0.40, 12, (0.72, 0.58, 0.28))
    b.box((5.5, 1.82, 0), (0.3, 0.14, 0.36), m.linen, turn=8)


def _record_sleeves(b: Builder, rng, m: _Materials, x: float, y: float, z: float) -> None:
    """A few records, the first one with its cover to the room."""
    cover = pictures.geometric(rng, 200, 200, 3)
    b.box((x + 0.16, y, z), (0.10, 0.31, 0.31), m.paper, left=cover,
          top=np.rot90(pictures.spines(rng, 120, 40, 9)))  # fmt: skip


def _lamps(b: Builder, m: _Materials) -> list[Lamp]:
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


def _leaves(b: Builder, rng, x, y, z, height, width, leaves, colour, length: float = 0.2) -> None:
    """A bunch of leaves or flowers: three crossed cut-outs."""
    start = rng.uniform(0, 60)
    for degrees in (start, start + 60, start + 120):
        card = textures.foliage(rng, int(520 * height), int(520 * width), leaves, colour, length)
        away = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), 0]) * width
        corner = np.array([x, y, z + height]) - away / 2
        b.quad(corner, away, (0, 0, -height), card, two_sided=True)


def _plants(b: Builder, rng, m: _Materials) -> None:
    """House plants."""
    green = (0.25, 0.43, 0.20)
    b.prism((4.75, 0.42, 0), 0.19, 0.36, m.terracotta, sides=16, top=m.felt)
    _leaves(b, rng, 4.75, 0.42, 0.32, 0.88, 0.85, 30, green, 0.20)
    b.prism((0.40, 3.88, 0), 0.16, 0.30, m.ceramic, sides=14, top=m.felt)
    _leaves(b, rng, 0.40, 3.88, 0.27, 0.66, 0.6, 24, (0.30, 0.48, 0.26), 0.22)
    for x in (2.5, 2.74, 3.95):
        _leaves(b, rng, x, ROOM[1] - 0.09, _WINDOW[2] + 0.1, 0.2, 0.2, 11, green, 0.3)
    _leaves(b, rng, 0.16, 2.2, 2.3, 0.34, 0.5, 16, (0.33, 0.50, 0.25), 0.24)
