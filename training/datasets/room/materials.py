"""Materials of the built-in room and small parts that several pieces of furniture share."""

from __future__ import annotations

import cv2
import numpy as np

from training.datasets.room import textures
from training.datasets.room.builder import Builder, Sheet

ROOM = np.array([6.0, 5.0, 2.7])  # metres: the room spans [0, ROOM]
DENSITY = 400  # texture pixels per metre

OAK = ((0.76, 0.57, 0.38), (0.45, 0.29, 0.17))  # light and dark tone of the grain
WALNUT = ((0.46, 0.31, 0.21), (0.22, 0.13, 0.08))
PINE = ((0.88, 0.72, 0.50), (0.66, 0.46, 0.28))


class Materials:
    """The material sheets of one room."""

    def __init__(self, rng: np.random.Generator):
        def sheet(image, grain=False):
            return Sheet(rng, image, DENSITY, grain)

        def timber(tones, ring, contrast=1.0):
            return sheet(textures.wood(rng, 420, 1000, *tones, ring, contrast), True)

        self.oak = timber(OAK, 24)
        self.walnut = timber(WALNUT, 30)
        self.pine = timber(PINE, 34, 0.9)
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


def _lamp_shade(rng) -> np.ndarray:
    """The cloth of a lamp shade, brightest in the middle where the bulb is."""
    cloth = textures.lacquer(rng, 88, 700, (0.97, 0.91, 0.78))
    glow = 1 - 0.22 * np.linspace(-1, 1, len(cloth))[:, None, None] ** 2
    return np.uint8(cloth * glow)


def cabinet_front(material, rows: int, columns: int = 1, wide: float = 0.0) -> np.ndarray:
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


def bouquet(b: Builder, rng, x, y, z, height, width, leaves, colour, length: float = 0.2) -> None:
    """A bunch of leaves or flowers: three crossed cut-outs."""
    start = rng.uniform(0, 60)
    for degrees in (start, start + 60, start + 120):
        card = textures.foliage(rng, int(520 * height), int(520 * width), leaves, colour, length)
        away = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), 0]) * width
        corner = np.array([x, y, z + height]) - away / 2
        b.quad(corner, away, (0, 0, -height), card, two_sided=True)
