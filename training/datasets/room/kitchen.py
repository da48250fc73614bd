"""The kitchen side of the built-in room: kitchenette, refrigerator, a table with two chairs.

Coordinates are those of `layout`, metres.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.datasets.room import pictures, scenery, textures
from training.datasets.room.builder import Builder
from training.datasets.room.materials import Materials, bouquet, cabinet_front


def kitchen(b: Builder, rng, m: Materials) -> None:
    """Kitchenette along the east wall: cabinets, oven, worktop, tiles, shelves, refrigerator."""
    x, y0, y1, top = 5.40, 2.66, 4.98, 0.90
    units = np.linspace(y0, y1, 5)
    for i in range(4):
        front = _oven(rng, m) if i == 1 else cabinet_front(m.sage, 3 if i == 3 else 1)
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


def _oven(rng, m: Materials) -> np.ndarray:
    image = m.black(0.58, 0.76).copy()
    height, width = image.shape[:2]
    cv2.rectangle(image, (6, 6), (width - 7, 52), (150, 151, 154), -1)
    for i in range(5):
        cv2.circle(image, (30 + i * 42, 29), 11, (40, 40, 42), -1, cv2.LINE_AA)
        cv2.line(
            image, (30 + i * 42, 29), (30 + i * 42 + int(rng.integers(-8, 9)), 20), (220,) * 3, 2
        )
    cv2.rectangle(image, (20, 92), (width - 21, height - 60), (28, 27, 30), -1)
    cv2.rectangle(image, (20, 92), (width - 21, height - 60), (110, 110, 112), 2)
    for y in range(120, height - 70, 26):
        cv2.line(image, (28, y), (width - 29, y), (70, 68, 66), 1)
    cv2.line(image, (26, 74), (width - 27, 74), (190, 190, 194), 6)
    return image


def _sink(m: Materials) -> np.ndarray:
    image = m.steel(0.40, 0.46).copy()
    height, width = image.shape[:2]
    inner = (12, 12), (width - 40, height - 13)
    cv2.rectangle(image, *inner, (120, 122, 125), -1)
    cv2.rectangle(image, *inner, (90, 92, 94), 3)
    cv2.circle(image, ((width - 28) // 2, height // 2), 9, (40, 40, 40), -1, cv2.LINE_AA)
    return image


def _microwave(rng, m: Materials) -> np.ndarray:
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


def _refrigerator(b: Builder, rng, m: Materials) -> None:
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
            card = np.float32(scenery.landscape(rng, size, int(size * 1.4), index % 4 == 1))
        else:
            card = pictures.note(rng, int(size * 1.2), size) * 255
        place = rng.uniform(0.32, 0.88) * width, rng.uniform(0.06, 0.62) * height
        pictures.paste(cards, card, *place, rng.normal(0, 6))
        dot = textures.vary(rng, (0.8, 0.25, 0.2), 0.5) * 255
        cv2.circle(cards, (int(place[0]), int(place[1] - size * 0.45)), 6, dot.tolist(), -1)
    b.box((5.36, 2.02, 0.03), (0.62, wide, tall), m.white, skip=('bottom',),
          left=np.uint8(np.clip(cards, 0, 255)))  # fmt: skip
    b.box((5.5, 2.12, tall + 0.03), (0.3, 0.4, 0.16), m.pine, turn=4)


def bistro(b: Builder, rng, m: Materials) -> None:
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
    bouquet(b, rng, x + 0.54, y + 0.54, top + 0.15, 0.36, 0.42, 12, (0.62, 0.36, 0.40))
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
