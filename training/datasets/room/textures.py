"""Procedural materials of the built-in room: wood, plaster, brick, tiles, fabric, rugs, leaves.

Every function draws one image from a seeded `numpy.random.Generator`: the same seed gives the same
room. Images are `(height, width, 3)` uint8 RGB, or `(height, width, 4)` with alpha for cut-outs, in
display (sRGB-like) values under white light of unit brightness: light is baked in later.
"""

import cv2
import numpy as np

Colour = tuple[float, float, float]


def fractal_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    cell: float,
    octaves: int = 5,
    gain: float = 0.55,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Smooth noise with a 1/f-like spectrum, the statistics of most natural surfaces.

    Args:
        cell: size of the coarsest blobs in pixels; each octave halves it.
        gain: amplitude of an octave relative to the one before.
        stretch: factors (vertical, horizontal) that elongate the blobs, for grain and fibres.

    Returns:
        (height, width) float32, zero mean and unit standard deviation.
    """
    total = np.zeros((height, width), np.float32)
    amplitude = 1.0
    for _ in range(octaves):
        rows = int(np.ceil(height / max(cell * stretch[0], 1.0))) + 3
        columns = int(np.ceil(width / max(cell * stretch[1], 1.0))) + 3
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        # A fixed scale per cell keeps the blob size independent of the image size.
        fy, fx = max(cell * stretch[0], 1.0), max(cell * stretch[1], 1.0)
        shift = rng.uniform(0.5, 1.5, 2)
        step = 4 if min(fx, fy) >= 16 and min(height, width) >= 64 else 1
        # Coarse blobs are drawn at a quarter of the size: the same to the eye, and cheaper.
        size = (-(-width // step), -(-height // step))
        matrix = np.array([[step / fx, 0, shift[1]], [0, step / fy, shift[0]]], np.float32)
        layer = cv2.warpAffine(
            grid, matrix, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )  # fmt: skip
        if step > 1:
            layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.scaleAdd(layer, amplitude, total, dst=total)
        amplitude *= gain
        cell /= 2.0
        if cell * max(stretch) < 1.0:
            break
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(total))
    return (total - np.float32(mean)) / np.float32(deviation + 1e-6)


def blend(first, second, weight: np.ndarray) -> np.ndarray:
    """Mix two colours or images by a (height, width) weight: 0 gives `first`, 1 `second`."""
    weight = np.clip(weight, 0.0, 1.0).astype(np.float32)[..., None]
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    mixed = weight * (second - first)
    mixed += first
    return mixed


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Float display values in [0, 1] to uint8."""
    return cv2.convertScaleAbs(np.maximum(image, 0.0), alpha=255.0)


def relief(heights: np.ndarray, strength: float) -> np.ndarray:
    """Brightness factor of a bumpy surface lit from the upper left; heights in pixels."""
    dy = cv2.Sobel(heights, cv2.CV_32F, 0, 1, ksize=3) / 8.0
    dx = cv2.Sobel(heights, cv2.CV_32F, 1, 0, ksize=3) / 8.0
    return np.clip(1.0 + strength * (dx + dy), 0.55, 1.35)


def vary(rng: np.random.Generator, colour: Colour, amount: float) -> np.ndarray:
    """A colour near `colour`: a common change in brightness and a smaller one in hue."""
    value = np.asarray(colour, np.float32) * (1.0 + amount * rng.standard_normal())
    return np.clip(value + 0.15 * amount * rng.standard_normal(3), 0.02, 0.98).astype(np.float32)


def plaster(
    rng: np.random.Generator, height: int, width: int, colour: Colour, roughness: float = 1.0
) -> np.ndarray:
    """A painted wall: roller marks, faint stains and the small bumps that catch the light."""
    stains = fractal_noise(rng, height, width, 420, 5, 0.6)
    strokes = fractal_noise(rng, height, width, 60, 3, 0.6, stretch=(1.6, 0.7))
    bumps = fractal_noise(rng, height, width, 7, 3, 0.7)
    value = 1.0 + roughness * (0.020 * stains + 0.010 * strokes)
    value *= relief(bumps * 2.2, 0.03 * roughness)
    warm = blend(colour, np.asarray(colour) * (1.03, 1.0, 0.95), 0.5 + 0.4 * stains)
    image = warm * value[..., None]
    for _ in range(int(14 * roughness)):  # scuffs and nicks that a lived-in wall collects
        start = rng.uniform(0, (width, height))
        end = start + rng.normal(0, 14, 2)
        tone = np.asarray(colour) * rng.uniform(0.72, 0.9)
        cv2.line(image, point(start), point(end), tone.tolist(), 1, cv2.LINE_AA)
    return to_bytes(image)


def wood(
    rng: np.random.Generator,
    height: int,
    width: int,
    light: Colour,
    dark: Colour,
    ring: float = 26.0,
    contrast: float = 1.0,
) -> np.ndarray:
    """Sawn wood with the grain along x: cathedral rings bent by noise, streaks and pores.

    Args:
        ring: mean distance of the year rings in pixels.
        contrast: strength of the rings.
    """
    bend = fractal_noise(rng, height, width, 150, 3, 0.5, stretch=(1.0, 6.0))
    y = np.arange(height, dtype=np.float32)[:, None]
    phase = y / ring + 1.9 * bend
    rings = phase - np.floor(phase)
    rings = np.where(rings < 0.82, rings / 0.82, (1 - rings) / 0.18)  # slow rise, sharp late wood
    streaks = fractal_noise(rng, height, width, 9, 4, 0.75, stretch=(0.55, 26.0))
    pores = fractal_noise(rng, height, width, 3.2, 2, 0.9, stretch=(0.6, 12.0))
    tone = 0.30 + contrast * 0.34 * (rings - 0.5) + 0.13 * streaks + 0.07 * bend
    image = blend(light, dark, tone + 0.28 * np.clip(pores - 1.1, 0, 1))
    for _ in range(max(1, height * width // 420_000)):
        _knot(rng, image, dark)
    return to_bytes(image)


def _knot(rng: np.random.Generator, image: np.ndarray, dark: Colour) -> None:
    """Draw one knot: a dark spindle with rings, along the grain."""
    height, width = image.shape[:2]
    centre = rng.uniform((0, 0), (width, height))
    size = rng.uniform(5, 11)
    for factor, shade in ((1.9, 0.95), (1.35, 0.8), (0.8, 0.6)):
        axes = (int(size * factor * 1.9), int(size * factor))
        tone = (np.asarray(dark) * shade).tolist()
        thick = 2 if factor > 1 else -1
        cv2.ellipse(image, point(centre), axes, rng.uniform(-8, 8), 0, 360, tone, thick,
                    cv2.LINE_AA)  # fmt: skip


def floor_planks(
    rng: np.random.Generator, height: int, width: int, density: float, light: Colour, dark: Colour
) -> np.ndarray:
    """An oak floor: boards of random length and tint, laid along x, with dark joints.

    Args:
        density: pixels per metre.
    """
    sheets = [
        wood(rng, 640, 2048, vary(rng, light, 0.05), vary(rng, dark, 0.05), ring, 1.15)
        for ring in (15, 24, 38)
    ]
    image = np.zeros((height, width, 3), np.uint8)
    board = int(0.145 * density)
    for top in range(0, height, board):
        left = -int(rng.uniform(0, 1.2) * density)
        while left < width:
            length = int(rng.uniform(0.75, 1.7) * density)
            rows = min(board, height - top)
            x0, x1 = max(left, 0), min(left + length, width)
            if x1 > x0:
                sheet = sheets[rng.integers(len(sheets))]
                sy = rng.integers(0, sheet.shape[0] - board)
                sx = rng.integers(0, sheet.shape[1] - (x1 - x0)) if x1 - x0 < 2048 else 0
                tint = vary(rng, (0.97, 0.97, 0.97), 0.085)
                part = sheet[sy : sy + rows, sx : sx + x1 - x0].astype(np.float32) * tint
                part[:1] *= 0.45
                part[1:2] *= 0.8
                part[:, :1] *= 0.5
                image[top : top + rows, x0:x1] = np.clip(part, 0, 255)
            left += length
    wear = fractal_noise(rng, height, width, 500, 4, 0.55)
    return to_bytes(image / 255.0 * (1.0 + 0.045 * wear)[..., None])


def brick(rng: np.random.Generator, height: int, width: int, density: float) -> np.ndarray:
    """A whitewashed old brick wall: uneven bricks in running bond, mortar, worn paint.

    Args:
        density: pixels per metre.
    """
    course, length, joint = 0.083 * density, 0.27 * density, 0.011 * density
    palette = [(0.62, 0.33, 0.25), (0.70, 0.42, 0.31), (0.55, 0.28, 0.22), (0.74, 0.50, 0.38),
               (0.47, 0.27, 0.24), (0.66, 0.45, 0.37)]  # fmt: skip
    image = np.empty((height, width, 3), np.float32)
    image[:] = (0.72, 0.69, 0.64)
    heights = np.zeros((height, width), np.float32)
    for row in range(int(height / course) + 1):
        y0, y1 = row * course + joint / 2, (row + 1) * course - joint / 2
        x = -length * (0.5 * (row % 2) + rng.uniform(0, 0.08))
        while x < width:
            x1 = x + length * rng.uniform(0.94, 1.05)
            colour = vary(rng, palette[rng.integers(len(palette))], 0.09).tolist()
            jitter = rng.normal(0, 0.012 * course * 3, 4)
            corners = np.array(
                [
                    [x + joint / 2, y0 + jitter[0]],
                    [x1 - joint / 2, y0 + jitter[1]],
                    [x1 - joint / 2, y1 + jitter[2]],
                    [x + joint / 2, y1 + jitter[3]],
                ]
            )
            cv2.fillConvexPoly(image, np.int32(corners * 16), colour, cv2.LINE_AA, 4)
            cv2.fillConvexPoly(heights, np.int32(corners * 16), rng.uniform(3, 6), cv2.LINE_AA, 4)
            x = x1
    # Bend every straight edge a little: no brick is a rectangle.
    dx = fractal_noise(rng, height, width, 22, 3) * 1.6
    dy = fractal_noise(rng, height, width, 22, 3) * 1.6
    image, heights = (displace(layer, dx, dy) for layer in (image, heights))
    rough = fractal_noise(rng, height, width, 9, 4, 0.8)
    image *= (1.0 + 0.065 * rough)[..., None]
    image *= relief(heights + 0.9 * rough, 0.22)[..., None]
    worn = fractal_noise(rng, height, width, 330, 6, 0.62)
    white = np.asarray((0.86, 0.83, 0.78)) * relief(heights + rough, 0.16)[..., None]
    return to_bytes(blend(image, white, np.clip(0.28 + 0.42 * worn, 0, 0.72)))


def tiles(
    rng: np.random.Generator, height: int, width: int, pitch: int, palette: list[Colour]
) -> np.ndarray:
    """Hand-painted wall tiles: several four-fold motifs in random order, glazed, with grout."""
    motifs = [_tile_motif(rng, pitch, palette) for _ in range(9)]
    image = np.zeros((height, width, 3), np.float32)
    bevel = np.minimum.outer(*(np.minimum(np.arange(pitch), np.arange(pitch)[::-1]),) * 2)
    bevel = np.clip(bevel / 3.0, 0, 1).astype(np.float32)[..., None]
    for y in range(0, height, pitch):
        for x in range(0, width, pitch):
            motif = motifs[rng.integers(len(motifs))]
            tile = np.rot90(motif, rng.integers(4)) * rng.uniform(0.92, 1.05)
            tile = tile * bevel + np.float32((0.68, 0.67, 0.65)) * (1 - bevel)
            rows, columns = min(pitch, height - y), min(pitch, width - x)
            image[y : y + rows, x : x + columns] = tile[:rows, :columns]
    glaze = fractal_noise(rng, height, width, 40, 4, 0.6)
    return to_bytes(image * (1 + 0.025 * glaze)[..., None])


def _tile_motif(rng: np.random.Generator, pitch: int, palette: list[Colour]) -> np.ndarray:
    """One tile: circles, petals and corner arcs in two or three colours of the palette."""
    big = 4 * pitch
    tile = np.empty((big, big, 3), np.float32)
    tile[:] = palette[0]
    inks = [palette[1 + rng.integers(len(palette) - 1)] for _ in range(3)]
    centre = (big // 2, big // 2)
    radius = int(big * rng.uniform(0.24, 0.5))
    for corner in ((0, 0), (big, 0), (0, big), (big, big)):
        cv2.circle(tile, corner, radius, inks[0], -1 if rng.random() < 0.5 else big // 16,
                   cv2.LINE_AA)  # fmt: skip
    petals = int(rng.choice((4, 6, 8)))
    for index in range(petals):
        angle = 360 * index / petals + (45 if petals == 4 else 0)
        away = np.deg2rad(angle)
        middle = (int(big / 2 + big * 0.2 * np.cos(away)), int(big / 2 + big * 0.2 * np.sin(away)))
        cv2.ellipse(tile, middle, (big // 7, big // 18), angle, 0, 360, inks[1], -1, cv2.LINE_AA)
    cv2.circle(tile, centre, big // 11, inks[2], -1, cv2.LINE_AA)
    cv2.circle(tile, centre, int(big * 0.42), inks[2], big // 50, cv2.LINE_AA)
    return cv2.resize(tile, (pitch, pitch), interpolation=cv2.INTER_AREA)


def fabric(
    rng: np.random.Generator, height: int, width: int, colour: Colour, pattern: str = 'plain'
) -> np.ndarray:
    """Woven upholstery; `pattern` is plain, stripes, plaid, dots or chevron."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.empty((height, width, 3), np.float32)
    image[:] = colour
    ink = np.asarray(colour) * 0.55 if sum(colour) > 1.5 else np.asarray(colour) * 0.3 + 0.6
    accent = np.asarray((0.85, 0.62, 0.30), np.float32)
    if pattern == 'stripes':
        image = blend(image, ink, (np.sin(x / 7.5) > 0.35) * 0.85)
        image = blend(image, accent, (np.sin(x / 30) > 0.93) * 0.8)
    elif pattern == 'plaid':
        bands = 0.45 * (np.sin(x / 9) > 0.4) + 0.45 * (np.sin(y / 9) > 0.4)
        image = blend(image, ink, bands)
        image = blend(image, accent, 0.8 * ((np.sin(x / 18 + 1) > 0.97) | (np.sin(y / 18) > 0.97)))
    elif pattern == 'dots':
        for cy in range(12, height, 30):
            for cx in range(12 + 15 * ((cy // 30) % 2), width, 30):
                size = int(rng.integers(5, 10))
                cv2.circle(image, (cx, cy), size, ink.tolist(), -1, cv2.LINE_AA)
    elif pattern == 'chevron':
        zigzag = y + 14 * np.abs((x / 28) % 2 - 1) * 2
        image = blend(image, ink, 0.85 * (np.sin(zigzag / 5.5) > 0.2))
    weave = np.sin(x * 2.1) * np.sin(y * 2.1)
    mottle = fractal_noise(rng, height, width, 4, 3, 0.9)
    folds = fractal_noise(rng, height, width, 130, 3, 0.5)
    value = 1.0 + 0.05 * weave + 0.04 * mottle + 0.05 * folds
    return to_bytes(image * value[..., None])


def rug(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A kilim: bands of diamonds, combs and stepped shapes inside a border, in wool."""
    palette = [(0.63, 0.20, 0.16), (0.16, 0.23, 0.34), (0.88, 0.80, 0.66), (0.80, 0.53, 0.23),
               (0.27, 0.40, 0.37), (0.45, 0.14, 0.15)]  # fmt: skip
    image = np.empty((height, width, 3), np.float32)
    image[:] = palette[2]
    x = 0
    while x < width:
        band = int(rng.uniform(0.055, 0.14) * width)
        ground, ink, spot = (palette[i] for i in rng.permutation(len(palette))[:3])
        cv2.rectangle(image, (x, 0), (x + band, height), ground, -1)
        _rug_band(rng, image, x, band, ink, spot)
        cv2.rectangle(image, (x, 0), (x + max(3, band // 18), height), palette[2], -1)
        x += band
    edge = int(0.045 * height)
    for inset, colour in ((0, palette[1]), (edge, palette[3]), (int(edge * 1.25), palette[5])):
        cv2.rectangle(image, (inset, inset), (width - 1 - inset, height - 1 - inset), colour,
                      max(3, edge // 2))  # fmt: skip
    wool = fractal_noise(rng, height, width, 3, 2, 0.9, stretch=(2.4, 0.7))
    wear = fractal_noise(rng, height, width, 160, 4, 0.6)
    shift = fractal_noise(rng, height, width, 6, 2) * 0.9
    image = displace(image, shift, shift)
    return to_bytes(image * (1 + 0.075 * wool + 0.05 * wear)[..., None])


def _rug_band(rng, image: np.ndarray, x: int, band: int, ink: Colour, spot: Colour) -> None:
    """Fill one band of a rug with a row of motifs."""
    height = image.shape[0]
    style = rng.integers(3)
    step = max(12, int(band * rng.uniform(0.7, 1.3)))
    for y in range(0, height, step):
        cx, cy, half = x + band / 2, y + step / 2, 0.42 * min(band, step)
        if style == 0:
            for factor, colour in ((1.0, ink), (0.62, spot), (0.3, ink)):
                radius = half * factor
                corners = [[cx - radius, cy], [cx, cy - radius], [cx + radius, cy],
                           [cx, cy + radius]]  # fmt: skip
                cv2.fillConvexPoly(image, np.int32(corners), colour, cv2.LINE_AA)
        elif style == 1:
            for level in range(4):
                radius = half * (1 - level / 4)
                top = (int(cx - radius), int(cy - half + level * half / 2))
                bottom = (int(cx + radius), int(cy - half + (level + 1) * half / 2))
                cv2.rectangle(image, top, bottom, ink if level % 2 else spot, -1)
        else:
            corners = [[x, y], [x + band, y + step / 2], [x, y + step]]
            cv2.fillConvexPoly(image, np.int32(corners), ink, cv2.LINE_AA)
            cv2.circle(image, (int(x + band * 0.75), y), int(half * 0.4), spot, -1, cv2.LINE_AA)


def stone(rng: np.random.Generator, height: int, width: int, colour: Colour) -> np.ndarray:
    """A speckled granite worktop."""
    clouds = fractal_noise(rng, height, width, 90, 5, 0.7)
    grains = fractal_noise(rng, height, width, 4, 2, 0.9)
    image = np.asarray(colour, np.float32) * (1 + 0.14 * clouds + 0.16 * grains)[..., None]
    image = blend(image, (0.85, 0.82, 0.78), np.clip(grains - 1.6, 0, 1) * 1.4)
    return to_bytes(blend(image, (0.05, 0.05, 0.06), np.clip(-grains - 1.5, 0, 1) * 1.4))


def lacquer(rng: np.random.Generator, height: int, width: int, colour: Colour) -> np.ndarray:
    """A painted cabinet surface: nearly even, with faint marks."""
    marks = fractal_noise(rng, height, width, 80, 5, 0.65)
    fine = fractal_noise(rng, height, width, 5, 2, 0.8)
    return to_bytes(np.asarray(colour, np.float32) * (1 + 0.012 * marks + 0.008 * fine)[..., None])


def foliage(
    rng: np.random.Generator, height: int, width: int, leaves: int, colour: Colour, length: float
) -> np.ndarray:
    """Leaves on stems that rise from the middle of the lower edge, as a cut-out with alpha."""
    image = np.empty((height, width, 4), np.float32)
    image[:] = (*(np.asarray(colour) * 0.5), 0.0)
    root = np.array([width / 2, height * 0.99])
    for index in range(leaves):
        lean = (index + 0.5) / leaves * 2 - 1 + rng.normal(0, 0.1)
        reach = rng.uniform(0.45, 0.97)
        tip = root + (lean * width * 0.44 * np.sqrt(reach), -height * reach * (1 - 0.28 * lean**2))
        bend = root + ((tip[0] - root[0]) * 0.35, (tip[1] - root[1]) * 0.7)
        steps = np.linspace(0, 1, 12)[:, None]
        stem = (1 - steps) ** 2 * root + 2 * steps * (1 - steps) * bend + steps**2 * tip
        stalk = (*(np.asarray(colour) * 0.7), 1.0)
        cv2.polylines(image, [np.int32(stem * 16)], False, stalk, 2, cv2.LINE_AA, 4)
        direction = stem[-1] - stem[-3]
        leaf(rng, image, tip, np.arctan2(direction[1], direction[0]), length * height, colour)
    image[..., 3] = image[..., 3] > 0.5
    return to_bytes(image)


def leaf(rng, image: np.ndarray, base, angle: float, length: float, colour: Colour) -> None:
    """One pointed leaf with a lighter midrib and side veins."""
    length *= rng.uniform(0.7, 1.15)
    t = np.linspace(0, 1, 14)
    half = 0.23 * length * np.sin(np.pi * t**0.8)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    along = (t - 0.35) * length
    tone = vary(rng, colour, 0.16)
    for side, shade in ((1, 0.86), (-1, 1.08)):
        outline = np.stack([np.r_[along, along[::-1]], np.r_[side * half, 0 * half]], 1)
        outline = outline @ rotation.T + base
        fill = (*np.clip(tone * shade, 0, 1), 1.0)
        cv2.fillPoly(image, [np.int32(outline * 16)], [float(c) for c in fill], cv2.LINE_AA, 4)
    rib = np.stack([along, 0 * along], 1) @ rotation.T + base
    light = (*np.clip(tone * 1.35, 0, 1), 1.0)
    cv2.polylines(image, [np.int32(rib * 16)], False, [float(c) for c in light], 1, cv2.LINE_AA, 4)


def displace(image: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Move every pixel by (dx, dy) pixels."""
    height, width = image.shape[:2]
    x = np.arange(width, dtype=np.float32)[None] + dx
    y = np.arange(height, dtype=np.float32)[:, None] + dy
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def point(position) -> tuple[int, int]:
    return int(position[0]), int(position[1])
