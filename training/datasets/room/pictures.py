"""Flat pictures of the built-in room: posters and prints, book spines, screens, notes, a door.

Same conventions as `textures`: each function draws a `(height, width, 3)` uint8 RGB image from a
seeded generator.
"""

import cv2
import numpy as np

from training.datasets.room.scenery import city_at_night, landscape, paint
from training.datasets.room.textures import (
    Colour,
    blend,
    fractal_noise,
    leaf,
    point,
    to_bytes,
    vary,
    wood,
)

_AA = cv2.LINE_AA


def abstract(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An abstract composition: washes of colour, circles, arcs, grids and lines."""
    palette = [(0.85, 0.30, 0.22), (0.95, 0.72, 0.25), (0.16, 0.30, 0.48), (0.20, 0.52, 0.53),
               (0.10, 0.10, 0.12), (0.88, 0.55, 0.50), (0.55, 0.65, 0.45)]  # fmt: skip
    wash = fractal_noise(rng, height, width, width / 2, 5, 0.55)
    image = blend((0.93, 0.89, 0.80), (0.80, 0.72, 0.62), 0.4 + 0.4 * wash)

    def ink():
        return palette[rng.integers(len(palette))]

    for _ in range(7):
        layer = image.copy()
        corners = rng.uniform((0.05, 0.05), (0.95, 0.95), (rng.integers(3, 6), 2))
        corners = cv2.convexHull(np.float32(corners * (width, height)))
        cv2.fillConvexPoly(layer, np.int32(corners * 16), ink(), _AA, 4)
        opacity = rng.uniform(0.55, 0.95)
        image = cv2.addWeighted(layer, opacity, image, 1 - opacity, 0)
    for _ in range(9):
        centre = point(rng.uniform((0.1, 0.1), (0.9, 0.9)) * (width, height))
        radius = int(rng.uniform(0.02, 0.16) * width)
        cv2.circle(image, centre, radius, ink(), -1 if rng.random() < 0.6 else 4, _AA)
        cv2.circle(image, centre, int(radius * 0.55), ink(), -1, _AA)
    for _ in range(12):
        start, end = rng.uniform(0, 1, (2, 2)) * (width, height)
        cv2.line(image, point(start), point(end), ink(), int(rng.integers(1, 6)), _AA)
    for _ in range(5):
        centre = point(rng.uniform((0.1, 0.1), (0.9, 0.9)) * (width, height))
        radius, start = int(rng.uniform(0.06, 0.25) * width), rng.uniform(0, 360)
        cv2.ellipse(image, centre, (radius, radius), 0, start, start + rng.uniform(60, 200), ink(),
                    int(rng.integers(2, 7)), _AA)  # fmt: skip
    return paint(rng, image, 0.8)


def geometric(rng: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    """A mid-century print: a grid of quarter circles, discs and triangles."""
    palette = [(0.93, 0.88, 0.78), (0.87, 0.42, 0.28), (0.20, 0.36, 0.42), (0.93, 0.73, 0.36),
               (0.13, 0.16, 0.20), (0.58, 0.70, 0.66)]  # fmt: skip
    image = np.empty((height, width, 3), np.float32)
    side = width // cells
    for y in range(0, height, side):
        for x in range(0, width, side):
            ground, ink = (palette[i] for i in rng.permutation(len(palette))[:2])
            cell = np.empty((side, side, 3), np.float32)
            cell[:] = ground
            kind = rng.integers(4)
            if kind == 0:
                cv2.circle(cell, (0, 0), side - 2, ink, -1, _AA)
                cv2.circle(cell, (0, 0), side // 2, ground, -1, _AA)
            elif kind == 1:
                cv2.circle(cell, (side // 2, side // 2), int(side * 0.42), ink, -1, _AA)
            elif kind == 2:
                corners = np.array([[0, 0], [side, 0], [0, side]])
                cv2.fillConvexPoly(cell, corners, ink, _AA)
            else:
                for level in range(0, side, max(4, side // 5)):
                    cv2.line(cell, (0, level), (side, level), ink, max(2, side // 12), _AA)
            cell = np.rot90(cell, rng.integers(4))
            rows, columns = min(side, height - y), min(side, width - x)
            image[y : y + rows, x : x + columns] = cell[:rows, :columns]
    return paint(rng, image, 0.35)


def topographic_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A hiking map: tinted relief, contour lines, a river, roads, a grid and place names."""
    land = fractal_noise(rng, height, width, width / 2.2, 7, 0.48)
    level = np.clip(0.5 + 0.24 * land, 0, 1)
    stops = np.linspace(0, 1, 6)
    tints = np.array([(0.66, 0.79, 0.86), (0.76, 0.86, 0.72), (0.87, 0.89, 0.72),
                      (0.93, 0.85, 0.67), (0.88, 0.75, 0.60), (0.95, 0.92, 0.89)])  # fmt: skip
    image = np.stack([np.interp(level, stops, tints[:, i]) for i in range(3)], -1)
    image = np.float32(image) * _hill_shade(land)[..., None]
    for number, contour in enumerate(np.arange(0.22, 1.0, 0.035)):
        mask = np.uint8(level > contour)
        edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, edges, -1, (0.55, 0.38, 0.25), 2 if number % 5 == 0 else 1, _AA)
    for colour, thick in (((0.35, 0.55, 0.78), 4), ((0.80, 0.30, 0.22), 3), ((0.9, 0.7, 0.2), 3)):
        x = np.linspace(0, width, 60)
        y = height * (rng.uniform(0.2, 0.8) + 0.12 * fractal_noise(rng, 3, 60, 22, 4)[1])
        path = np.int32(np.stack([x, y], 1) * 16)
        path = path[:, ::-1] if rng.random() < 0.4 else path
        cv2.polylines(image, [path], False, (0.25, 0.22, 0.2), thick + 2, _AA, 4)
        cv2.polylines(image, [path], False, colour, thick, _AA, 4)
    for step in range(1, 6):
        cv2.line(image, (0, height * step // 6), (width, height * step // 6), (0.45, 0.5, 0.6), 1)
        cv2.line(image, (width * step // 6, 0), (width * step // 6, height), (0.45, 0.5, 0.6), 1)
    names = ('Alp', 'Seeboden', 'Horn', 'Tal', 'Egg', 'Grat 2104', 'Bach', 'Kirchberg', 'Furka')
    for name in names:
        place = point(rng.uniform((0.04, 0.06), (0.8, 0.96)) * (width, height))
        cv2.putText(image, name, place, cv2.FONT_HERSHEY_COMPLEX_SMALL, width / 800, (0.1,) * 3, 1,
                    _AA)  # fmt: skip
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (0.96, 0.95, 0.92), width // 30)
    return to_bytes(image)


def _hill_shade(heights: np.ndarray) -> np.ndarray:
    """Hill shading of a height field, light from the upper left."""
    dx = cv2.Sobel(heights, cv2.CV_32F, 1, 0, ksize=5)
    dy = cv2.Sobel(heights, cv2.CV_32F, 0, 1, ksize=5)
    slope = (dx + dy) / (np.abs(dx + dy).mean() * 4 + 1e-6)
    return np.clip(1 + 0.10 * slope, 0.8, 1.15).astype(np.float32)


def botanical(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A botanical plate: one pressed branch on aged paper, with a caption."""
    stains = fractal_noise(rng, height, width, width / 2, 5, 0.6)
    image = np.ones((height, width, 4), np.float32)
    image[..., :3] = blend((0.95, 0.92, 0.83), (0.86, 0.79, 0.64), 0.35 + 0.3 * stains)
    t = np.linspace(0, 1, 24)
    stem = np.stack([width * (0.5 + 0.1 * np.sin(3 * t)), height * (0.86 - 0.74 * t)], 1)
    cv2.polylines(image, [np.int32(stem * 16)], False, (0.30, 0.26, 0.15, 1.0), 4, _AA, 4)
    colour = vary(rng, (0.30, 0.44, 0.24), 0.2)
    for index in range(2, 24):
        side = 1 if index % 2 else -1
        angle = -np.pi / 2 + side * rng.uniform(0.7, 1.15)
        length = width * (0.44 - 0.011 * index)
        base = stem[index] + 0.35 * length * np.array([np.cos(angle), np.sin(angle)])
        leaf(rng, image, base, angle, length, tuple(colour))
    image = np.ascontiguousarray(image[..., :3])
    _writing(
        image, 'Fig. XII  Ficus', (width * 0.22, height * 0.95), width * 0.56, (0.25, 0.2, 0.15)
    )
    return to_bytes(image)


def here_poster(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A typographic poster with the question every relocalizer answers."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = (0.93, 0.78, 0.30)
    grain = fractal_noise(rng, height, width, 5, 3, 0.8)
    ink = (0.10, 0.11, 0.13)
    for line, (text, part) in enumerate((('YOU', 0.62), ('ARE', 0.62), ('HERE', 0.84))):
        _writing(image, text, (width * 0.08, height * (0.24 + 0.2 * line)), width * part, ink, 14)
    pin = (int(width * 0.72), int(height * 0.77))
    radius = int(width * 0.13)
    tail = np.array([[pin[0] - radius * 0.9, pin[1] + radius * 0.45],
                     [pin[0] + radius * 0.9, pin[1] + radius * 0.45],
                     [pin[0], pin[1] + radius * 1.9]])  # fmt: skip
    cv2.fillConvexPoly(image, np.int32(tail), (0.80, 0.22, 0.18), _AA)
    cv2.circle(image, pin, radius, (0.80, 0.22, 0.18), -1, _AA)
    cv2.circle(image, pin, radius // 2, (0.96, 0.93, 0.85), -1, _AA)
    for row in range(5):
        _writing(image, 'x y z  qw qx qy qz', (width * 0.08, height * (0.74 + 0.045 * row)),
                 width * (0.42 - 0.05 * (row % 3)), ink)  # fmt: skip
    return to_bytes(image * (1 + 0.03 * grain)[..., None])


def _writing(image, text: str, place, length: float, colour: Colour, thick: int = 1) -> None:
    """Write `text` with its lower left corner at `place`, `length` pixels long."""
    font = cv2.FONT_HERSHEY_DUPLEX
    base = cv2.getTextSize(text, font, 1.0, 1)[0][0]
    cv2.putText(image, text, point(place), font, length / base, colour, thick, _AA)


def spines(rng: np.random.Generator, height: int, width: int, books: int) -> np.ndarray:
    """A row of book spines of one height: bands, titles, labels and worn edges."""
    palette = [(0.55, 0.14, 0.14), (0.15, 0.25, 0.42), (0.20, 0.36, 0.28), (0.86, 0.82, 0.72),
               (0.12, 0.12, 0.14), (0.80, 0.58, 0.22), (0.45, 0.30, 0.20), (0.36, 0.50, 0.58),
               (0.88, 0.42, 0.24), (0.72, 0.72, 0.70)]  # fmt: skip
    image = np.empty((height, width, 3), np.float32)
    cuts = np.cumsum(rng.uniform(0.55, 1.45, books))
    cuts = np.r_[0, np.round(cuts / cuts[-1] * width)].astype(int)
    for left, right in zip(cuts[:-1], cuts[1:], strict=True):
        thick = right - left
        spine = np.empty((thick, height, 3), np.float32)  # drawn lying, then turned upright
        colour = vary(rng, palette[rng.integers(len(palette))], 0.12)
        spine[:] = colour
        ink = np.array((0.93, 0.86, 0.62)) if colour.sum() < 1.6 else np.array((0.15, 0.12, 0.1))
        ink = ink.tolist()
        for place in rng.uniform(0.03, 0.97, rng.integers(1, 4)):
            x = int(place * height)
            cv2.rectangle(spine, (x, 0), (x + int(rng.integers(1, 5)), thick), ink, -1)
        if rng.random() < 0.35:
            x = int(rng.uniform(0.1, 0.7) * height)
            label = vary(rng, palette[rng.integers(len(palette))], 0.1).tolist()
            cv2.rectangle(spine, (x, 1), (x + height // 5, thick - 2), label, -1)
        _title(rng, spine, ink)
        round_ = 1 - 0.45 * np.abs(np.linspace(-1, 1, thick)) ** 4
        image[:, left:right] = np.rot90(spine * round_[:, None, None].astype(np.float32), -1)
        image[:, left : left + 1] *= 0.4
    grime = fractal_noise(rng, height, width, 24, 4, 0.7)
    return to_bytes(image * (1 + 0.05 * grime)[..., None])


_SYLLABLES = ('ra', 'ton', 'mi', 'les', 'or', 'va', 'ken', 'du', 'si', 'am', 'pol', 'he', 'gra')


def _title(rng: np.random.Generator, spine: np.ndarray, ink) -> None:
    """An invented title along the spine, as large as the spine is thick."""
    thick, length = spine.shape[:2]
    words = (''.join(rng.choice(_SYLLABLES, rng.integers(2, 4))) for _ in range(2))
    text = ' '.join(words)
    text = text.upper() if rng.random() < 0.6 else text.title()
    scale = min(thick * 0.021, length * 0.7 / (18.0 * len(text)))
    y = int(thick / 2 + 9 * scale)
    cv2.putText(spine, text, (int(length * 0.12), y), cv2.FONT_HERSHEY_DUPLEX, scale, ink, 1, _AA)


def editor_screen(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A monitor that shows an editor with code, a tree of files and a plot."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = (0.11, 0.12, 0.16)
    side = width // 6
    image[:, :side] = (0.15, 0.16, 0.21)
    image[: height // 22] = (0.22, 0.23, 0.30)
    inks = [(0.55, 0.75, 0.95), (0.90, 0.62, 0.45), (0.72, 0.86, 0.55), (0.85, 0.85, 0.88),
            (0.75, 0.58, 0.90), (0.45, 0.50, 0.55)]  # fmt: skip
    step = height // 34
    for y in range(2 * step, height - step, step):
        cv2.line(image, (12, y), (12 + int(side * rng.uniform(0.2, 0.7)), y), inks[5], step // 4)
        if rng.random() < 0.12:
            continue
        x = side + 20 + 24 * int(rng.integers(0, 4))
        for _ in range(rng.integers(1, 7)):
            token = int(rng.uniform(0.012, 0.07) * width)
            if x + token > width * 0.62:
                break
            cv2.line(image, (x, y), (x + token, y), inks[rng.integers(6)], step // 3)
            x += token + 9
    left, top, right, low = int(width * 0.66), height // 9, int(width * 0.97), height // 2
    cv2.rectangle(image, (left, top), (right, low), (0.94, 0.94, 0.95), -1)
    for colour in ((0.85, 0.25, 0.2), (0.15, 0.4, 0.75)):
        x = np.linspace(left + 8, right - 8, 60)
        y = (top + low) / 2 + (low - top) * 0.16 * fractal_noise(rng, 3, 60, 20, 4)[1]
        cv2.polylines(image, [np.int32(np.stack([x, y], 1))], False, colour, 2, _AA)
    photo = landscape(rng, low - top, right - left) / 255.0
    image[low + 16 : 2 * low + 16 - top, left:right] = photo[: height - low - 16]
    return to_bytes(image)


def corkboard(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A pin board with photographs, notes and a calendar."""
    grain = fractal_noise(rng, height, width, 6, 3, 0.9)
    patches = fractal_noise(rng, height, width, 60, 4, 0.6)
    image = np.float32((0.72, 0.53, 0.35)) * (1 + 0.16 * grain + 0.05 * patches)[..., None]
    photos = (landscape, city_at_night, abstract)
    for index in range(9):
        w = int(width * rng.uniform(0.12, 0.2))
        h = int(w * rng.uniform(0.7, 1.3))
        if index % 2:
            card = photos[rng.integers(3)](rng, h, w) / 255.0
            cv2.rectangle(card, (0, 0), (w - 1, h - 1), (0.97,) * 3, max(2, w // 14))
        else:
            card = note(rng, h, w)
        x = int((index % 5 + 0.5) / 5 * width + rng.normal(0, 8) - w / 2)
        y = int((index // 5 + 0.5) / 2 * height + rng.normal(0, 8) - h / 2)
        paste(image, card, x + w / 2, y + h / 2, rng.normal(0, 5))
        pin = (x + w // 2, max(y + 5, 5))
        cv2.circle(image, pin, 5, vary(rng, (0.8, 0.2, 0.2), 0.4).tolist(), -1, _AA)
    return to_bytes(image)


def note(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A sheet of coloured paper with handwriting."""
    paper = [(0.97, 0.90, 0.55), (0.95, 0.95, 0.92), (0.75, 0.88, 0.93), (0.96, 0.75, 0.72)]
    card = np.empty((height, width, 3), np.float32)
    card[:] = paper[rng.integers(len(paper))]
    for y in range(height // 8, height - 4, max(6, height // 9)):
        x = np.arange(width * 0.1, width * rng.uniform(0.5, 0.9))
        wave = y + height / 40 * fractal_noise(rng, 3, len(x), 6, 3, 0.8)[1]
        line = np.int32(np.stack([x, wave], 1))
        cv2.polylines(card, [line], False, (0.15, 0.17, 0.35), 1, _AA)
    return card


def paste(image: np.ndarray, card: np.ndarray, x: float, y: float, degrees: float) -> None:
    """Paste `card`, centred at (x, y) and turned, with a soft shadow below it."""
    h, w = card.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 1.0)
    matrix[:, 2] += (x - w / 2, y - h / 2)
    size = image.shape[1::-1]
    cover = cv2.warpAffine(np.ones((h, w), np.float32), matrix, size)
    moved = cv2.warpAffine(np.float32(card), matrix, size)
    shadow = cv2.GaussianBlur(np.roll(cover, (4, 4), (0, 1)), (0, 0), 3) * 0.45
    image *= 1 - (shadow * (1 - cover))[..., None]
    image[:] = image * (1 - cover[..., None]) + moved * cover[..., None]


def door(rng: np.random.Generator, height: int, width: int, colour: Colour) -> np.ndarray:
    """A panelled door, painted, with a handle and a keyhole."""
    marks = fractal_noise(rng, height, width, 60, 5, 0.65)
    image = np.asarray(colour, np.float32) * (1 + 0.02 * marks)[..., None]
    for top, low in ((0.06, 0.40), (0.46, 0.60), (0.66, 0.94)):
        for left, right in ((0.10, 0.47), (0.53, 0.90)):
            p0, p1 = (int(left * width), int(top * height)), (int(right * width), int(low * height))
            for inset, shade in ((0, 0.72), (3, 1.08), (10, 0.93), (14, 1.03)):
                tone = np.clip(np.asarray(colour) * shade, 0, 1).tolist()
                a, b = (p0[0] + inset, p0[1] + inset), (p1[0] - inset, p1[1] - inset)
                cv2.rectangle(image, a, b, tone, -1)
    x, y = int(0.92 * width), int(0.53 * height)
    cv2.rectangle(image, (x - 8, y - 30), (x + 8, y + 40), (0.55, 0.50, 0.42), -1)
    cv2.line(image, (x, y), (x - 45, y + 2), (0.80, 0.74, 0.60), 9, _AA)
    cv2.circle(image, (x, y + 24), 4, (0.1, 0.1, 0.1), -1, _AA)
    return to_bytes(image)


def clock(rng: np.random.Generator, size: int) -> np.ndarray:
    """A round wall clock as a cut-out with alpha, (size, size, 4)."""
    face = np.zeros((size, size, 4), np.float32)
    middle, radius = (size // 2, size // 2), size // 2 - 1
    cv2.circle(face, middle, radius, (0.12, 0.12, 0.13, 1.0), -1, _AA)
    cv2.circle(face, middle, int(radius * 0.9), (0.95, 0.94, 0.90, 1.0), -1, _AA)
    for hour in range(12):
        away = np.array([np.sin(hour * np.pi / 6), -np.cos(hour * np.pi / 6)])
        start, end = size / 2 + radius * 0.7 * away, size / 2 + radius * 0.84 * away
        cv2.line(
            face, point(start), point(end), (0.1, 0.1, 0.1, 1.0), 5 if hour % 3 == 0 else 2, _AA
        )
    for angle, reach, thick in ((rng.uniform(0, 6.28), 0.45, 7), (rng.uniform(0, 6.28), 0.68, 4)):
        tip = size / 2 + radius * reach * np.array([np.sin(angle), -np.cos(angle)])
        cv2.line(face, middle, point(tip), (0.1, 0.1, 0.1, 1.0), thick, _AA)
    cv2.circle(face, middle, size // 30, (0.75, 0.2, 0.15, 1.0), -1, _AA)
    face[..., 3] = face[..., 3] > 0.5
    return to_bytes(face)


def framed(rng, picture: np.ndarray, frame: Colour, border: float, mat: float = 0.0) -> np.ndarray:
    """A picture in a wooden frame with a pale mat; `border` and `mat` are parts of its width."""
    height, width = picture.shape[:2]
    edge, mount = int(border * width), int(mat * width)
    inside = cv2.copyMakeBorder(picture, mount, mount, mount, mount, cv2.BORDER_CONSTANT,
                                value=(240, 237, 228))  # fmt: skip
    if mount:
        corner = (mount - 2, mount - 2), (mount + width + 1, mount + height + 1)
        cv2.rectangle(inside, *corner, (198, 192, 180), 2)
    total = (inside.shape[0] + 2 * edge, inside.shape[1] + 2 * edge)
    dark = tuple(0.55 * c for c in frame)
    image = wood(rng, *total, frame, dark, 14.0)
    cv2.rectangle(image, (edge - 2, edge - 2), (total[1] - edge + 1, total[0] - edge + 1),
                  tuple(int(90 * c) for c in frame), 3)  # fmt: skip
    image[edge:-edge, edge:-edge] = inside
    return image
