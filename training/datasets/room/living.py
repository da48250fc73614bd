"""The living side of the built-in room: sofa corner, bookshelf, desk and sideboard.

Coordinates are those of `layout`, metres.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.datasets.room import pictures, scenery, textures
from training.datasets.room.builder import Builder
from training.datasets.room.materials import Materials, bouquet, cabinet_front


def lounge(b: Builder, rng, m: Materials) -> None:
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
          skip=('bottom',), top=scenery.city_at_night(rng, 160, 120))  # fmt: skip
    b.prism((cx + 0.55, cy + 0.33, top), 0.042, 0.095, m.mustard, sides=10, top=m.felt)
    b.prism((cx + 0.80, cy + 0.22, top), 0.13, 0.06, m.blue_glaze, sides=14, top=m.blue_glaze)
    for dx, dy, fruit in (
        (0, 0.03, m.terracotta),
        (0.06, -0.04, m.mustard),
        (-0.06, -0.03, m.sage),
    ):
        b.prism(
            (cx + 0.80 + dx, cy + 0.22 + dy, top + 0.06), 0.038, 0.06, fruit, sides=8, top=fruit
        )
    magazine = pictures.abstract(rng, 150, 110)
    b.box((cx + 0.3, cy + 0.14, 0.162), (0.22, 0.29, 0.012), m.paper, turn=24, top=magazine,
          blocks=False)  # fmt: skip
    b.prism((4.05, 0.50, 0), 0.23, 0.36, m.mustard, sides=16, top=m.mustard)  # pouf


def _stuffed(cloth: np.ndarray) -> np.ndarray:
    """Shade a cushion cover as if it bulged: darker towards its seams."""
    x = np.linspace(-1, 1, cloth.shape[1])[None] ** 4
    y = np.linspace(-1, 1, cloth.shape[0])[:, None] ** 4
    return np.uint8(cloth * (1 - 0.30 * np.maximum(x, y) - 0.08 * (x + y) / 2)[..., None])


def bookshelf(b: Builder, rng, m: Materials) -> None:
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


def _shelf_row(b: Builder, rng, m: Materials, y: float, end: float, z: float, room: float) -> None:
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


def _books(b: Builder, rng, m: Materials, y, z, width, height, count) -> None:
    """A group of books of one height whose spines face into the room."""
    depth = rng.uniform(0.19, 0.27)
    scale = 650
    spine = pictures.spines(rng, int(scale * height), int(scale * width), count)
    side = pictures.spines(rng, 60, 60, 1)
    b.box((0.02, y, z), (depth, width - 0.002, height), m.paper, skip=('left', 'bottom'),
          right=spine, front=side, back=side)  # fmt: skip


def desk(b: Builder, rng, m: Materials) -> None:
    """Desk in the north-west corner with monitor, keyboard, papers, lamp, drawers and a chair."""
    x, y, top = 0.30, 4.28, 0.74
    b.box((x, y, top - 0.035), (1.42, 0.68, 0.035), m.pine)
    for dx in (0.02, 1.35):
        for dy in (0.02, 0.61):
            b.box((x + dx, y + dy, 0), (0.05, 0.05, top - 0.035), m.black, skip=('top', 'bottom'))
    b.box(
        (x + 0.08, y + 0.08, 0.05),
        (0.40, 0.54, 0.60),
        m.white,
        front=cabinet_front(m.white, 3),
    )
    mx = x + 0.46
    screen = pictures.editor_screen(rng, 400, 680)
    b.box((mx, y + 0.42, top + 0.11), (0.64, 0.035, 0.38), m.black)
    b.quad((mx + 0.012, y + 0.418, top + 0.478), (0.616, 0, 0), (0, 0, -0.35), screen, glow='self')
    b.box((mx + 0.28, y + 0.45, top), (0.08, 0.03, 0.2), m.black)
    b.box((mx + 0.20, y + 0.38, top), (0.24, 0.18, 0.012), m.black)
    b.box((mx + 0.06, y + 0.10, top), (0.44, 0.14, 0.018), m.black, top=_keyboard(rng))
    b.box((mx + 0.56, y + 0.13, top), (0.06, 0.10, 0.03), m.steel)
    for dx, dy, turn in ((0.12, 0.14, 14), (0.16, 0.2, -6)):
        sheet = pictures.note(rng, 200, 142)
        b.box((x + dx, y + dy, top), (0.21, 0.297, 0.003 + 0.002 * dy), m.paper, turn=turn,
              blocks=False, top=textures.to_bytes(sheet))  # fmt: skip
    b.prism((x + 1.27, y + 0.50, top), 0.075, 0.02, m.black, top=m.black)
    b.box((x + 1.262, y + 0.492, top), (0.016, 0.016, 0.40), m.black)
    b.prism((x + 1.22, y + 0.44, top + 0.36), 0.075, 0.10, m.mustard, inside=True, blocks=False)
    b.prism((x + 1.30, y + 0.16, top), 0.04, 0.1, m.terracotta, sides=10, top=m.felt)
    _office_chair(b, m, x + 0.84, 3.86)


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


def _office_chair(b: Builder, m: Materials, x: float, y: float) -> None:
    b.box((x - 0.24, y - 0.24, 0.44), (0.48, 0.46, 0.08), m.felt, turn=28)
    b.box((x - 0.09, y - 0.30, 0.58), (0.44, 0.06, 0.46), m.felt, turn=28, lean=-8)
    b.box((x - 0.03, y - 0.03, 0.08), (0.06, 0.06, 0.36), m.black, turn=28)
    for turn in (28, 88, 148):
        b.box((x - 0.29, y - 0.025, 0.05), (0.58, 0.05, 0.035), m.black, turn=turn)


def sideboard(b: Builder, rng, m: Materials) -> None:
    """Sideboard on the east wall with a record player, books and a vase."""
    x, y, top = 5.54, 0.36, 0.72
    front = cabinet_front(m.walnut, 1, 3, 1.30)
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
    bouquet(b, rng, x + 0.22, y + 1.14, top + 0.24, 0.42, 0.40, 12, (0.72, 0.58, 0.28))
    b.box((5.5, 1.82, 0), (0.3, 0.14, 0.36), m.linen, turn=8)


def _record_sleeves(b: Builder, rng, m: Materials, x: float, y: float, z: float) -> None:
    """A few records, the first one with its cover to the room."""
    cover = pictures.geometric(rng, 200, 200, 3)
    b.box((x + 0.16, y, z), (0.10, 0.31, 0.31), m.paper, left=cover,
          top=np.rot90(pictures.spines(rng, 120, 40, 9)))  # fmt: skip
