"""Pictures with a horizon: painted landscapes, a city at night, the view from the window.

Same conventions as `textures`: each function draws a `(height, width, 3)` uint8 RGB image from a
seeded generator.
"""

import cv2
import numpy as np

from training.datasets.room.textures import blend, displace, fractal_noise, point, to_bytes, vary

_AA = cv2.LINE_AA


def landscape(rng: np.random.Generator, height: int, width: int, dusk: bool = False) -> np.ndarray:
    """A painted mountain landscape: sky, ridges behind ridges in haze, a lake, firs in front."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    top, low = ((0.20, 0.24, 0.45), (0.96, 0.66, 0.42)) if dusk else (
        (0.30, 0.52, 0.75), (0.90, 0.88, 0.80))  # fmt: skip
    image = blend(top, low, y / 0.62)
    clouds = fractal_noise(rng, height, width, width / 3, 6, 0.55, stretch=(0.4, 1.3))
    bright = (1.0, 0.80, 0.62) if dusk else (0.98, 0.97, 0.95)
    image = blend(image, bright, np.clip(clouds * 0.55 - 0.1, 0, 0.85) * (y < 0.6))
    sun = (int(width * rng.uniform(0.2, 0.8)), int(height * rng.uniform(0.15, 0.35)))
    cv2.circle(image, sun, max(3, width // 22), (1.0, 0.93, 0.75), -1, _AA)
    haze, near = np.array(low), np.array((0.10, 0.20, 0.22) if dusk else (0.16, 0.32, 0.22))
    shore = 0.70
    for layer in range(5):
        t = layer / 4
        base = 0.42 + (shore - 0.42) * t
        ridge = base - (0.17 - 0.11 * t) * (0.45 + _ridge(rng, width, 5 + 2 * layer))
        tone = haze * (1 - 0.25 - 0.62 * t) + near * (0.25 + 0.62 * t)
        grain = fractal_noise(rng, height, width, width / 14, 5, 0.7)
        slope = tone * (1.0 + 0.13 * grain)[..., None]
        if layer < 2:  # snow on the far peaks
            slope = blend(slope, (0.95, 0.95, 0.97), (grain > 0.2) * (y < ridge + 0.05) * 0.9)
        image = blend(image, slope, (y > ridge) * 1.0)
    water = image[: int(height * shore)][::-1]
    rows = height - int(height * shore)
    lake = np.resize(water, (rows, width, 3)) if len(water) < rows else water[:rows]
    ripple = fractal_noise(rng, rows, width, 12, 3, 0.7, stretch=(0.5, 4.0))
    lake = displace(np.ascontiguousarray(lake), 2.2 * ripple, 1.2 * ripple)
    image[-rows:] = lake * 0.82 * (1 + 0.05 * ripple)[..., None] + np.float32((0.0, 0.02, 0.04))
    for _ in range(26):
        _fir(rng, image, rng.uniform(0, width), height * rng.uniform(0.86, 1.04))
    return paint(rng, image)


def _ridge(rng: np.random.Generator, width: int, waves: int) -> np.ndarray:
    """A one-dimensional fractal ridge line in about [0, 1]."""
    line = fractal_noise(rng, 3, width, width / waves, 7, 0.52)[1]
    return np.clip(0.5 + 0.28 * line, -0.2, 1.3)[None]


def _fir(rng: np.random.Generator, image: np.ndarray, x: float, foot: float) -> None:
    """One conifer as stacked, ragged triangles."""
    size = image.shape[0] * rng.uniform(0.14, 0.3)
    tone = vary(rng, (0.09, 0.17, 0.12), 0.25)
    for tier in range(7):
        half = size * 0.055 * (tier + 1) * rng.uniform(0.8, 1.15)
        peak, low = foot - size * (1 - tier / 8), foot - size * (1 - (tier + 1.9) / 8)
        corners = np.array([[x, peak], [x + half, low], [x - half, low]])
        shade = (tone * rng.uniform(0.8, 1.25)).tolist()
        cv2.fillConvexPoly(image, np.int32(corners * 16), shade, _AA, 4)


def paint(rng: np.random.Generator, image: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Turn a rendering into paint on canvas: brush displacement, impasto and weave."""
    height, width = image.shape[:2]
    dx = fractal_noise(rng, height, width, 11, 2, 0.6, stretch=(0.6, 1.6)) * 1.8 * strength
    dy = fractal_noise(rng, height, width, 11, 2, 0.6, stretch=(1.6, 0.6)) * 1.8 * strength
    image = displace(np.float32(image), dx, dy)
    strokes = fractal_noise(rng, height, width, 6, 3, 0.8, stretch=(0.8, 2.0))
    return to_bytes(image * (1 + 0.045 * strength * strokes)[..., None])


def city_at_night(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A skyline at night with lit windows and its reflection in a river."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    image = blend((0.05, 0.07, 0.18), (0.62, 0.36, 0.40), y * 1.35)
    quay = int(height * 0.76)
    for depth in range(3):
        x = 0.0
        while x < width:
            block = width * rng.uniform(0.035, 0.11)
            top = int(height * (rng.uniform(0.16, 0.5) + 0.09 * depth))
            tone = np.array((0.17, 0.16, 0.27)) * (1 - 0.3 * depth) * rng.uniform(0.8, 1.2)
            box = (int(x), top), (int(x + block), quay)
            cv2.rectangle(image, *box, tone.tolist(), -1)
            _lit_windows(rng, image, *box, pitch=max(5, width // 75))
            x += block * rng.uniform(1.0, 1.5)
    rows = height - quay
    ripple = fractal_noise(rng, rows, width, 14, 3, 0.7, stretch=(0.5, 3.0))
    mirror = np.ascontiguousarray(image[quay - rows : quay][::-1])
    image[quay:] = displace(mirror, 4 * ripple, 2 * ripple) * 0.6
    return to_bytes(image)


def _lit_windows(rng, image: np.ndarray, top_left, bottom_right, pitch: int) -> None:
    for y in range(top_left[1] + pitch, bottom_right[1] - pitch, pitch):
        for x in range(top_left[0] + pitch // 2, bottom_right[0] - pitch // 2, pitch):
            if rng.random() < 0.42:
                glow = (np.array((1.0, 0.82, 0.5)) * rng.uniform(0.45, 1.0)).tolist()
                cv2.rectangle(image, (x, y), (x + pitch // 2, y + pitch // 2), glow, -1)


def outdoors(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The view from the window: sky and clouds, a hill, houses between trees, a lawn."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    image = blend((0.52, 0.72, 0.93), (0.88, 0.93, 0.97), y / 0.5)
    clouds = fractal_noise(rng, height, width, width / 5, 6, 0.55, stretch=(0.45, 1.2))
    image = blend(image, (1.0, 1.0, 1.0), np.clip(0.15 + 0.5 * clouds, 0, 0.95))
    forest = fractal_noise(rng, height, width, 16, 4, 0.8)
    for base, tone, grain in ((0.42, (0.62, 0.72, 0.79), 0.01), (0.46, (0.50, 0.62, 0.62), 0.05),
                              (0.50, (0.38, 0.52, 0.36), 0.14)):  # fmt: skip
        ridge = base - 0.08 * _ridge(rng, width, 9)
        image = blend(image, np.float32(tone) * (1 + grain * forest)[..., None], (y > ridge) * 1.0)
    lawn = fractal_noise(rng, height, width, 60, 6, 0.75)
    meadow = np.float32((0.48, 0.60, 0.32)) * (1 + 0.10 * lawn)[..., None]
    image = blend(image, meadow, (y > 0.505 + 0.012 * _ridge(rng, width, 4)) * 1.0)
    for row in np.linspace(0.515, 0.66, 9):  # from the far end of the village to the near one
        size = 0.025 + 0.32 * (row - 0.505)
        for _ in range(2 if row < 0.6 else 1):
            x = int(rng.uniform(0.02, 0.95) * width)
            _house(rng, image, x, int(height * row), int(height * size))
        for _ in range(int(13 - 50 * (row - 0.5))):
            foot = height * (row + rng.uniform(0, 0.02))
            _tree(rng, image, rng.uniform(0, width), foot, height * size * rng.uniform(1.0, 1.9))
    return to_bytes(cv2.GaussianBlur(image, (0, 0), 0.8))


def _house(rng: np.random.Generator, image: np.ndarray, x: int, foot: int, size: int) -> None:
    """A gabled house with windows."""
    width, height = int(size * rng.uniform(0.8, 1.3)), int(size * rng.uniform(0.6, 1.0))
    wall = vary(rng, (0.86, 0.80, 0.70), 0.1).tolist()
    roof = vary(rng, (0.62, 0.32, 0.25), 0.15).tolist()
    cv2.rectangle(image, (x, foot - height), (x + width, foot), wall, -1)
    gable = [[x - 6, foot - height], [x + width / 2, foot - height * 1.6],
             [x + width + 6, foot - height]]  # fmt: skip
    cv2.fillConvexPoly(image, np.int32(gable), roof, _AA)
    for row in range(2):
        for column in range(3):
            corner = (
                int(x + width * (0.14 + 0.28 * column)),
                int(foot - height * (0.85 - 0.42 * row)),
            )
            low = (corner[0] + width // 7, corner[1] + height // 4)
            cv2.rectangle(image, corner, low, (0.32, 0.40, 0.48), -1)


def _tree(rng: np.random.Generator, image: np.ndarray, x: float, foot: float, size: float) -> None:
    """A broad-leaved tree: a trunk and many small discs, darker below."""
    trunk = (0.30, 0.22, 0.16)
    cv2.line(image, point((x, foot)), point((x, foot - size * 0.5)), trunk, max(2, int(size / 14)))
    base = vary(rng, (0.27, 0.43, 0.19), 0.2)
    spots = rng.normal(0, 1, (110, 2)) * (0.17 * size, 0.15 * size) + (x, foot - 0.66 * size)
    for spot in spots[np.argsort(-spots[:, 1])]:
        light = np.clip(1.0 + 1.3 * (foot - 0.66 * size - spot[1]) / size, 0.55, 1.5)
        tone = np.clip(base * light * rng.uniform(0.85, 1.15), 0, 1).tolist()
        cv2.circle(image, point(spot), max(2, int(size * rng.uniform(0.03, 0.08))), tone, -1, _AA)
