"""Light of the built-in room: soft shadows, contact shadows and colour that bounces off the walls.

Diffuse light does not depend on the viewer, so it is computed once per room, on a coarse grid of
texels on every quad, and multiplied into the textures. Direct light is sampled from the window, the
sun and the lamps with shadow rays; what bounces is gathered over the hemisphere of every texel
(radiosity with a fixed set of cosine-distributed rays). Furniture is represented by its boxes.

Light is kept apart by source ('day', 'sun', 'lamps'), so that sequences recorded at different times
of the day are weighted sums of the same maps.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from training.datasets.room.render import Quad

SOURCES = ('day', 'sun', 'lamps')
_TEXEL = 0.13  # metres between samples of diffuse light
_SUN_TEXEL = 0.03  # metres between samples of sunlight, whose edges are sharp
_LIFT = 0.006  # metres: rays start this far above their surface
_RAYS = 32  # hemisphere rays per texel
_BOUNCES = 4
_CHUNK = 32768  # rays per task: its arrays stay in the cache


@dataclass(frozen=True)
class Blocker:
    """A box that casts shadows and reflects light.

    Attributes:
        world_T_box: (4, 4) pose of the box, whose frame sits in its centre.
        half: (3,) half sizes in metres.
        faces: indices of the quads at -x, +x, -y, +y, -z, +z of the box, -1 where there is none.
    """

    world_T_box: np.ndarray
    half: np.ndarray
    faces: tuple[int, ...]


@dataclass(frozen=True)
class Lamp:
    """A small round lamp: position (3,) and radius in metres, radiant intensity, colour."""

    position: tuple[float, float, float]
    radius: float
    intensity: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Sky:
    """The window, a rectangle through which sky and sun shine in.

    Attributes:
        origin, right, down: (3,) corner and edges of the opening, visible side towards the room.
        radiance: of the sky, in units in which a white wall under unit irradiance has value 1.
        sun_direction: (3,) direction in which sunlight travels.
        sun_irradiance: on a surface that faces the sun.
    """

    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray
    radiance: float
    sun_direction: tuple[float, float, float]
    sun_irradiance: float


class _Texels:
    """Sample points of all quads, one after the other: quad i owns offset[i] : offset[i + 1]."""

    def __init__(self, quads: list[Quad], pitch: float):
        self.shape = [_grid(quad, pitch) for quad in quads]
        sizes = [rows * columns for rows, columns in self.shape]
        self.offset = np.concatenate([[0], np.cumsum(sizes)])
        self.point = np.empty((self.offset[-1], 3), np.float32)
        self.normal = np.empty_like(self.point)
        for i, quad in enumerate(quads):
            rows, columns = self.shape[i]
            s = (np.arange(columns) + 0.5) / columns
            t = ((np.arange(rows) + 0.5) / rows)[:, None]
            grid = quad.origin + s[None, :, None] * quad.right + t[..., None] * quad.down
            own = slice(self.offset[i], self.offset[i + 1])
            # Leaves scatter light from both sides: treat them as facing up.
            self.normal[own] = (0, 0, 1) if quad.two_sided else quad.normal
            self.point[own] = grid.reshape(-1, 3) + _LIFT * self.normal[own]

    def image(self, values: np.ndarray, number: int) -> np.ndarray:
        """The values (M, 3) of quad `number` as an image (rows, columns, 3)."""
        rows, columns = self.shape[number]
        return values[self.offset[number] : self.offset[number + 1]].reshape(rows, columns, -1)


def _grid(quad: Quad, pitch: float) -> tuple[int, int]:
    across, along = (int(np.clip(np.ceil(length / pitch), 2, 256)) for length in quad.size)
    return (0, 0) if quad.glow else (along, across)


def light_maps(
    quads: list[Quad],
    blockers: list[Blocker],
    room: tuple[np.ndarray, tuple[int, ...]],
    sky: Sky,
    lamps: list[Lamp],
    rng: np.random.Generator,
) -> list[dict[str, np.ndarray] | None]:
    """Irradiance of every quad by source.

    Args:
        room: size (3,) of the room, which spans [0, size], and the six quads of its shell in the
            order of `Blocker.faces`.

    Returns:
        Per quad None if it glows by itself, else a dictionary of the `SOURCES` with images
        (rows, columns, 3) float32; a white surface under irradiance 1 shows its texture unchanged.
    """
    texels = _Texels(quads, _TEXEL)
    sun_texels = _Texels(quads, _SUN_TEXEL)
    tree = _BoxTree(blockers)
    sun_fine = _sunlight(sun_texels, tree, sky, rng)
    direct = {
        'day': _skylight(texels, tree, sky, rng),
        'sun': _coarse(sun_texels, sun_fine, texels),
        'lamps': _lamplight(texels, tree, lamps, rng),
    }
    hits = _gather_hits(texels, quads, tree, blockers, room, rng)
    buried = _buried(texels.point, blockers)
    albedo = np.zeros((len(texels.point) + 1, 3), np.float32)  # the last one is black: no surface
    for i, quad in enumerate(quads):
        albedo[texels.offset[i] : texels.offset[i + 1]] = _mean_albedo(quad.texture)
    maps: list[dict[str, np.ndarray] | None] = [None if quad.glow else {} for quad in quads]
    for source in SOURCES:
        bounced = _bounce(direct[source], hits, albedo)
        for i, own in enumerate(maps):
            if own is None:
                continue
            image, hidden = texels.image(bounced, i), texels.image(buried, i)[..., 0]
            if source == 'sun':
                fine = sun_texels.image(sun_fine, i)
                soft = cv2.resize(_smooth(image, hidden), fine.shape[1::-1])
                own[source] = fine + np.maximum(soft, 0)
            else:
                own[source] = _smooth(image + texels.image(direct[source], i), hidden)
    return maps


def _buried(point: np.ndarray, blockers) -> np.ndarray:
    """True (M, 1) for sample points inside furniture, where no light can be measured."""
    inside = np.zeros(len(point), bool)
    for blocker in blockers:
        local = (point - blocker.world_T_box[:3, 3]) @ blocker.world_T_box[:3, :3]
        inside |= (np.abs(local) < blocker.half - 1e-3).all(1)
    return inside[:, None]


def _smooth(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Remove the noise of the ray sampling and continue the light into hidden texels.

    A hidden texel is interpolated up to the edge of the furniture that covers it, so it takes the
    light of its neighbours, dimmed as in the crevice under the furniture.
    """
    image = np.ascontiguousarray(image, np.float32)
    if hidden.all():
        return image
    weight = (~hidden).astype(np.float32)
    if min(image.shape[:2]) >= 5 or hidden.any():
        spread = cv2.GaussianBlur(image * weight[..., None], (0, 0), 0.75)
        total = cv2.GaussianBlur(weight, (0, 0), 0.75)
        known = (image * weight[..., None]).sum((0, 1)) / weight.sum()
        smooth = np.where(total[..., None] > 0.02, spread / (total[..., None] + 1e-6), known)
        image = np.where(hidden[..., None], 0.6 * smooth, smooth)
    return np.ascontiguousarray(image, np.float32)


def _mean_albedo(texture: np.ndarray) -> np.ndarray:
    """Mean reflectance (3,) of a texture in linear light; cut-outs count by their coverage."""
    small = cv2.resize(texture, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    cover = small[..., 3:] if texture.shape[2] == 4 else 1.0
    return np.minimum((small[..., :3] ** 2.2 * cover).reshape(-1, 3).mean(0), 0.85)


def _skylight(texels: _Texels, tree: _BoxTree, sky: Sky, rng) -> np.ndarray:
    """Direct irradiance (M, 3) from the sky through the window, by 4 x 4 stratified samples."""
    area = np.linalg.norm(np.cross(sky.right, sky.down))
    outward = np.cross(sky.right, sky.down) / area
    total = np.zeros(len(texels.point), np.float32)
    for i in range(4):
        for j in range(4):
            s, t = (rng.uniform(0, 1, (2, len(texels.point))) + [[i], [j]]) / 4
            target = sky.origin + s[:, None] * sky.right + t[:, None] * sky.down
            way = (target - texels.point).astype(np.float32)
            distance = np.linalg.norm(way, axis=1) + 1e-6
            way /= distance[:, None]
            cosine = np.clip(np.einsum('ni,ni->n', way, texels.normal), 0, 1)
            gain = cosine * np.clip(way @ outward, 0, 1) / np.maximum(distance, 0.25) ** 2
            # Upwards one sees bright sky, downwards the darker ground.
            gain *= np.where(way[:, 2] > 0, 1.0, 0.35)
            lit = np.flatnonzero(gain > 1e-4)
            free = ~_blocked(texels.point[lit], way[lit], distance[lit] - 0.02, tree)
            total[lit] += gain[lit] * free
    total *= sky.radiance * area / (16 * np.pi)
    return total[:, None] * np.float32((0.95, 1.0, 1.06))


def _sunlight(texels: _Texels, tree: _BoxTree, sky: Sky, rng) -> np.ndarray:
    """Direct irradiance (M, 3) from the sun, with a soft edge from four jittered directions."""
    total = np.zeros(len(texels.point), np.float32)
    outward = np.cross(sky.right, sky.down)
    for _ in range(4):
        way = -np.asarray(sky.sun_direction) + rng.normal(0, 0.008, 3)
        way = (way / np.linalg.norm(way)).astype(np.float32)
        cosine = texels.normal @ way
        # Where the ray leaves the room through the plane of the window.
        reach = ((sky.origin - texels.point) @ outward) / (way @ outward)
        place = texels.point + reach[:, None] * way - sky.origin
        s, t = ((place @ edge) / (edge @ edge) for edge in (sky.right, sky.down))
        through = (s > 0) & (s < 1) & (t > 0) & (t < 1) & (cosine > 0) & (reach > 0)
        lit = np.flatnonzero(through)
        ways = np.broadcast_to(way, (len(lit), 3))
        free = ~_blocked(texels.point[lit], ways, reach[lit] + 0.15, tree)
        total[lit] += cosine[lit] * free
    return (total * sky.sun_irradiance / 4)[:, None] * np.float32((1.08, 1.0, 0.84))


def _lamplight(texels: _Texels, tree: _BoxTree, lamps: list[Lamp], rng) -> np.ndarray:
    """Direct irradiance (M, 3) from the lamps, each by six points in its volume."""
    total = np.zeros((len(texels.point), 3), np.float32)
    for lamp in lamps:
        for _ in range(6):
            offset = rng.normal(size=3)
            spot = np.asarray(lamp.position) + lamp.radius * offset / np.linalg.norm(offset)
            way = (spot - texels.point).astype(np.float32)
            distance = np.linalg.norm(way, axis=1) + 1e-6
            way /= distance[:, None]
            cosine = np.clip(np.einsum('ni,ni->n', way, texels.normal), 0, 1)
            gain = cosine * lamp.intensity / np.maximum(distance, 0.22) ** 2 / 6
            lit = np.flatnonzero(gain > 1e-4)
            reach = distance[lit] - 0.02
            gain[lit] *= ~_blocked(texels.point[lit], way[lit], reach, tree)
            total += gain[:, None] * np.float32(lamp.colour)
    return total


def _coarse(fine: _Texels, values: np.ndarray, coarse: _Texels) -> np.ndarray:
    """Average values (M, 3) on the fine texels over the coarse ones."""
    parts = []
    for number, (rows, columns) in enumerate(coarse.shape):
        if rows * columns:
            image = fine.image(values, number)
            small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
            parts.append(small.reshape(-1, 3))
    return np.concatenate(parts).astype(np.float32)


def _bounce(direct: np.ndarray, hits: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    """Indirect irradiance (M, 3): what the hit surfaces reflect, several times over."""
    indirect = np.zeros_like(direct)
    for _ in range(_BOUNCES):
        radiosity = albedo.copy()
        radiosity[:-1] *= direct + indirect
        radiosity[-1] = 0
        for row in range(0, len(hits), _CHUNK):
            indirect[row : row + _CHUNK] = radiosity[hits[row : row + _CHUNK]].mean(1)
    return indirect


def _gather_hits(texels: _Texels, quads, tree, blockers, room, rng) -> np.ndarray:
    """Index of the texel (M, _RAYS) that each hemisphere ray meets; M (black) for none."""
    count = len(texels.point)
    # A Fibonacci spiral on the disc, lifted to the hemisphere: cosine-distributed and even.
    number = np.arange(_RAYS)
    radius = np.sqrt((number + 0.5) / _RAYS)
    turn = 2.399963 * number + rng.uniform(0, 2 * np.pi, (count, 1))
    local = np.stack([radius * np.cos(turn), radius * np.sin(turn)], -1)  # (M, R, 2)
    up = np.broadcast_to(np.sqrt(1 - radius**2), (count, _RAYS))
    helper = np.where(np.abs(texels.normal[:, 2:]) < 0.9, (0, 0, 1), (1, 0, 0))
    first = np.cross(helper, texels.normal)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(texels.normal, first)
    way = local[..., :1] * first[:, None] + local[..., 1:] * second[:, None]
    way += up[..., None] * texels.normal[:, None]
    way = way.reshape(-1, 3).astype(np.float32)
    point = np.repeat(texels.point, _RAYS, axis=0)
    geometry = _QuadTable(texels, quads)

    def trace(start: int) -> np.ndarray:
        part = slice(start, start + _CHUNK)
        return _first_hit(point[part], way[part], tree, blockers, room, geometry)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(trace, range(0, len(way), _CHUNK)))
    return np.concatenate(found).reshape(count, _RAYS)


class _QuadTable:
    """Arrays that turn a point on a quad into the index of its texel."""

    def __init__(self, texels: _Texels, quads: list[Quad]):
        self.origin = np.array([quad.origin for quad in quads], np.float32)
        self.right = np.array([q.right / (q.right @ q.right) for q in quads], np.float32)
        self.down = np.array([q.down / (q.down @ q.down) for q in quads], np.float32)
        self.shape = np.array(texels.shape)
        self.offset = texels.offset
        self.black = len(texels.point)
        self.hole = np.array([quad.hole or (2, 2, 2, 2) for quad in quads], np.float32)

    def texel(self, quad: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Texel indices of points (N, 3) on quads (N,), -1 for no quad."""
        away = point - self.origin[quad]
        s = np.clip(np.einsum('ni,ni->n', away, self.right[quad]), 0, 0.9999)
        t = np.clip(np.einsum('ni,ni->n', away, self.down[quad]), 0, 0.9999)
        rows, columns = self.shape[quad].T
        index = self.offset[quad] + (t * rows).astype(int) * columns + (s * columns).astype(int)
        s0, t0, s1, t1 = self.hole[quad].T
        none = (quad < 0) | (rows == 0) | ((s > s0) & (s < s1) & (t > t0) & (t < t1))
        return np.where(none, self.black, index)


def _slabs(point: np.ndarray, way: np.ndarray, blocker: Blocker):
    """Distances (N,) at which rays enter and leave a box; no hit where enter > leave."""
    R, centre = blocker.world_T_box[:3, :3], blocker.world_T_box[:3, 3]
    aligned = np.array_equal(R, np.eye(3))
    local, direction = point - centre.astype(np.float32), way
    if not aligned:
        local, direction = local @ R.astype(np.float32), way @ R.astype(np.float32)
    enter = np.full(len(point), -np.inf, np.float32)
    leave = np.full(len(point), np.inf, np.float32)
    for axis in range(3):
        step = direction[:, axis]
        inverse = 1 / np.where(np.abs(step) < 1e-7, np.float32(1e-7), step)
        middle = -local[:, axis] * inverse
        reach = np.float32(blocker.half[axis]) * np.abs(inverse)
        np.maximum(enter, middle - reach, out=enter)
        np.minimum(leave, middle + reach, out=leave)
    return enter, leave


class _BoxTree:
    """Blockers in a tree of bounding boxes, so that a ray meets only those near its way."""

    def __init__(self, blockers: list[Blocker], numbers: np.ndarray | None = None):
        numbers = np.arange(len(blockers)) if numbers is None else numbers
        centre = np.array([blockers[i].world_T_box[:3, 3] for i in numbers])
        extent = np.array([
            np.abs(blockers[i].world_T_box[:3, :3]) @ blockers[i].half for i in numbers
        ])  # fmt: skip
        low, high = (centre - extent).min(0), (centre + extent).max(0)
        self.bounds = Blocker(_shift((low + high) / 2), (high - low) / 2 + 1e-4, (-1,) * 6)
        self.leaf = [(i, blockers[i]) for i in numbers] if len(numbers) <= 4 else None
        if self.leaf is None:
            order = np.argsort(centre[:, np.argmax(np.ptp(centre, axis=0))], kind='stable')
            middle = len(order) // 2
            halves = (numbers[order[:middle]], numbers[order[middle:]])
            self.children = [_BoxTree(blockers, half) for half in halves]

    def trace(self, point, way, best, owner, rays=None) -> None:
        """Lower `best` (N,) to the nearest entry distance and note the blocker in `owner` (N,)."""
        rays = np.arange(len(point)) if rays is None else rays
        enter, leave = _slabs(point[rays], way[rays], self.bounds)
        rays = rays[(leave > np.maximum(enter, 0)) & (enter < best[rays])]
        if len(rays) == 0:
            return
        if self.leaf is None:
            for child in self.children:
                child.trace(point, way, best, owner, rays)
            return
        for number, blocker in self.leaf:
            enter, leave = _slabs(point[rays], way[rays], blocker)
            nearer = (leave > np.maximum(enter, 1e-3)) & (enter < best[rays])
            best[rays[nearer]] = enter[nearer]
            owner[rays[nearer]] = number


def _blocked(point: np.ndarray, way: np.ndarray, reach: np.ndarray, tree: _BoxTree) -> np.ndarray:
    """True (N,) where a blocker lies on the ray between 0 and `reach` metres."""

    def trace(start: int) -> np.ndarray:
        part = slice(start, start + _CHUNK)
        owner = np.full(len(point[part]), -1)
        tree.trace(point[part], way[part], reach[part].astype(np.float32), owner)
        return owner >= 0

    if len(point) == 0:
        return np.zeros(0, bool)
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(trace, range(0, len(point), _CHUNK))))


def _first_hit(point, way, tree, blockers, room, geometry: _QuadTable) -> np.ndarray:
    """Texel index (N,) of the first surface along each ray: a box or the shell of the room."""
    best = np.full(len(point), np.inf, np.float32)
    owner = np.full(len(point), -1)
    tree.trace(point, way, best, owner)
    size, shell = room
    middle = Blocker(_shift(size / 2), size / 2, shell)
    outer = owner < 0
    best[outer] = _slabs(point[outer], way[outer], middle)[1]
    hit = point + np.maximum(best, 0)[:, None] * way
    quad = np.full(len(point), -1)
    for number in np.unique(owner):
        own = owner == number
        box = middle if number < 0 else blockers[number]
        local = (hit[own] - box.world_T_box[:3, 3]) @ box.world_T_box[:3, :3] / box.half
        axis = np.abs(local).argmax(1)
        positive = local[np.arange(len(local)), axis] > 0
        quad[own] = np.asarray(box.faces)[2 * axis + positive]
    quad[best <= 0] = -1  # the ray starts inside a box: a place that no light reaches
    return geometry.texel(quad, hit)


def _shift(translation: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = translation
    return matrix
