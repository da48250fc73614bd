"""An exact renderer for textured parallelograms ("quads"), in numpy and OpenCV alone.

Conventions
    World: metres, z up. Camera: optical axes (x right, y down, z forward), `world_T_camera`.
    Pixel (u, v) with integer coordinates is a pixel centre, as in OpenCV.
    A quad is the set `origin + s * right + t * down`, 0 <= s, t <= 1; (s, t) = (0, 0) is the upper
    left corner of its texture, and the side from which `right` points right is the visible one.

How it is exact
    With M = K [right_c, down_c, origin_c] (camera coordinates), a pixel p = (u, v, 1) sees
    (s, t, 1) / z = M^-1 p. So 1/z and the edges of the quad are linear in the pixel: visibility and
    depth come from a z-buffer of 1/z without any subdivision or near-plane clipping. Depth is
    evaluated at pixel centres, colour at 2 x 2 samples per pixel with trilinear mip-mapping.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_SAMPLES = 2  # colour samples per pixel and axis


@dataclass(frozen=True)
class Quad:
    """One textured parallelogram.

    Attributes:
        origin, right, down: (3,) world coordinates of a corner and of the two edges, metres.
        texture: (h, w, 3) or, as a cut-out with alpha 0 or 255, (h, w, 4) uint8.
        hole: rectangle (s0, t0, s1, t1) that is open, or None.
        two_sided: visible from both sides, as a leaf is.
        glow: name of the light that makes the quad shine ('day', 'lamps', 'self'), None if lit.
        measurable: False where a depth camera sees nothing (the view outside): depth is 0 there.
    """

    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray
    texture: np.ndarray
    hole: tuple[float, float, float, float] | None = None
    two_sided: bool = False
    glow: str | None = None
    measurable: bool = True

    @property
    def normal(self) -> np.ndarray:
        """Unit normal (3,) of the visible side."""
        normal = np.cross(self.down, self.right)
        return normal / np.linalg.norm(normal)

    @property
    def size(self) -> tuple[float, float]:
        """Lengths of `right` and `down` in metres."""
        return float(np.linalg.norm(self.right)), float(np.linalg.norm(self.down))


def mip_pyramid(texture: np.ndarray) -> list[np.ndarray]:
    """The texture and its successive halvings."""
    levels = [texture]
    while min(levels[-1].shape[:2]) >= 4:
        height, width = levels[-1].shape[:2]
        size = ((width + 1) // 2, (height + 1) // 2)
        levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
    return levels


class QuadRenderer:
    """Renders a fixed set of quads from any pose.

    Thread-safe: `render` keeps no state.
    """

    def __init__(self, quads: list[Quad]):
        self.quads = quads
        self._origin = np.array([quad.origin for quad in quads], np.float64)
        self._right = np.array([quad.right for quad in quads], np.float64)
        self._down = np.array([quad.down for quad in quads], np.float64)
        self._normal = np.array([quad.normal for quad in quads])
        self._two_sided = np.array([quad.two_sided for quad in quads])
        self._measurable = np.array([quad.measurable for quad in quads])

    def render(
        self, world_T_camera: np.ndarray, K: np.ndarray, width: int, height: int, pyramids: list
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw colour and depth.

        Args:
            world_T_camera: (4, 4) pose.
            K: (3, 3) pinhole calibration for width x height.
            pyramids: per quad, `mip_pyramid` of its lit texture, three channels.

        Returns:
            rgb (height, width, 3) uint8 and depth z (height, width) float32 in metres, 0 where
            nothing measurable is seen.
        """
        fine = np.diag([_SAMPLES, _SAMPLES, 1.0])
        fine[:2, 2] = (_SAMPLES - 1) / 2  # pixel centre u lies at 2u + 0.5 among the samples
        size = (_SAMPLES * height, _SAMPLES * width)
        forms, index = self._visible_forms(world_T_camera, fine @ K, *size)
        owner, _, boxes = self._visibility(forms, index, *size)
        colour = self._shade(forms, index, owner, boxes, pyramids)
        rgb = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)

        owner, inverse_depth, _ = self._visibility(forms @ fine, index, height, width)
        seen = np.append(self._measurable[index], False)[owner]  # owner -1 is the last: nothing
        depth = np.divide(1.0, inverse_depth, out=np.zeros_like(inverse_depth), where=seen)
        return rgb, depth

    def _visible_forms(self, world_T_camera: np.ndarray, K: np.ndarray, height: int, width: int):
        """Linear forms M^-1 (N, 3, 3) of the quads that may be seen, and their indices (N,)."""
        camera_R_world, centre = world_T_camera[:3, :3].T, world_T_camera[:3, 3]
        facing = np.einsum('ni,ni->n', self._normal, centre - self._origin)
        wanted = (facing > 1e-4) | (self._two_sided & (np.abs(facing) > 1e-4))
        columns = np.stack([self._right, self._down, self._origin - centre], -1)  # (N, 3, 3)
        M = K @ camera_R_world @ columns
        corners = M @ np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1.0]])  # (N, 3, 4)
        u, v, z = corners[:, 0], corners[:, 1], corners[:, 2]
        # A quad is outside when all its corners lie beyond one side of the view frustum.
        outside = (z < 1e-3).all(1) | (u < -z).all(1) | (v < -z).all(1)
        outside |= (u > width * z).all(1) | (v > height * z).all(1)
        index = np.flatnonzero(wanted & ~outside)
        forms = np.linalg.inv(M[index])
        return forms, index

    def _visibility(self, forms: np.ndarray, index: np.ndarray, height: int, width: int):
        """Z-buffer at integer pixels.

        Returns:
            owner (height, width) int16: position in `index`, -1 for nothing; 1/z (height, width)
            float32; boxes: per quad (top, bottom, left, right), or None where it is not in sight.
        """
        first, last = _row_spans(forms, height, width)
        nearest = np.full((height, width), 1e-6, np.float32)
        owner = np.full((height, width), -1, np.int16)
        columns = np.arange(width, dtype=np.int16)
        boxes: list[tuple[int, int, int, int] | None] = []
        filled = last >= first
        for number in range(len(index)):
            rows = np.flatnonzero(filled[number])
            if len(rows) == 0:
                boxes.append(None)
                continue
            top, bottom = rows[0], rows[-1] + 1
            lo, hi = first[number, top:bottom], last[number, top:bottom]
            inside_rows = filled[number, top:bottom]
            left, right = int(lo[inside_rows].min()), int(hi[inside_rows].max()) + 1
            box = (int(top), int(bottom), left, right)
            boxes.append(box)
            part = (slice(top, bottom), slice(left, right))
            a, b, c = forms[number, 2]
            x = (a * np.arange(left, right)).astype(np.float32)
            y = (b * np.arange(top, bottom) + c).astype(np.float32)
            inverse_depth = x[None] + y[:, None]
            mask = inverse_depth > nearest[part]
            across = columns[left:right]
            mask &= across >= lo[:, None]
            mask &= across <= hi[:, None]
            self._open_holes(mask, forms[number], self.quads[index[number]], box)
            cover = mask.view(np.uint8)
            cv2.copyTo(inverse_depth, cover, nearest[part])
            owner[part][mask] = number
        return owner, nearest, boxes

    @staticmethod
    def _open_holes(mask: np.ndarray, form: np.ndarray, quad: Quad, box) -> None:
        """Clear from `mask` what a window opening or the alpha of a cut-out lets through."""
        cut_out = quad.texture.shape[2] == 4
        if quad.hole is None and not cut_out:
            return
        top, bottom, left, right = box
        if cut_out:
            alpha = quad.texture[..., 3]
            mask &= _warp(alpha, form, box, cv2.INTER_NEAREST) > 127
            return
        u, v = np.arange(left, right), np.arange(top, bottom)[:, None]
        s, t, w = (a * u + (b * v + c) for a, b, c in form)
        s0, t0, s1, t1 = quad.hole
        mask &= ~((s > s0 * w) & (s < s1 * w) & (t > t0 * w) & (t < t1 * w))

    def _shade(self, forms, index, owner, boxes, pyramids) -> np.ndarray:
        """Colours (height, width, 3) uint8 of the samples from the z-buffer's owners."""
        image = np.zeros((*owner.shape, 3), np.uint8)
        counts = np.bincount(owner.ravel() + 1, minlength=len(index) + 1)[1:]
        for number in np.flatnonzero(counts):
            top, bottom, left, right = boxes[number]
            part = (slice(top, bottom), slice(left, right))
            mask = owner[part] == number
            if 3 * counts[number] < mask.size:  # mostly hidden: shade only the part in sight
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (top + rows[0], top + rows[-1] + 1, left + columns[0], left + columns[-1] + 1)
                mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                part = (slice(box[0], box[1]), slice(box[2], box[3]))
            else:
                box = boxes[number]
            patch = _trilinear(pyramids[index[number]], forms[number], box)
            cv2.copyTo(patch, np.ascontiguousarray(mask).view(np.uint8), image[part])
        return image


def _row_spans(forms: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel (N, height) int16 of every quad in every row; first > last for none."""
    s, t, w = forms[:, 0], forms[:, 1], forms[:, 2]
    # Each side is a u + b v + c >= 0; s >= 0 and w - s >= 0 imply w = 1/z >= 0: no clipping needed.
    sides = np.stack([s, w - s, t, w - t], 1)  # (N, 4, 3)
    a = sides[..., 0, None]
    rest = sides[..., 1, None] * np.arange(height) + sides[..., 2, None]  # (N, 4, height)
    with np.errstate(divide='ignore', invalid='ignore'):
        crossing = -rest / a
    low = np.where(a > 0, crossing, -np.inf).max(1)
    high = np.where(a < 0, crossing, np.inf).min(1)
    never = ((a == 0) & (rest < 0)).any(1)
    low[never] = np.inf
    first = np.ceil(np.clip(low, 0, width)).astype(np.int16)
    last = np.floor(np.clip(high, -1, width - 1)).astype(np.int16)
    return first, last


def _warp(texture: np.ndarray, form: np.ndarray, box, interpolation: int) -> np.ndarray:
    """Sample a texture at the pixels of `box` (top, bottom, left, right)."""
    top, bottom, left, right = box
    height, width = texture.shape[:2]
    texture_T_unit = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1.0]])
    pixel_T_box = np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
    matrix = texture_T_unit @ form @ pixel_T_box
    return cv2.warpPerspective(
        texture, matrix / np.abs(matrix).max(), (int(right - left), int(bottom - top)),
        flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def _trilinear(pyramid: list[np.ndarray], form: np.ndarray, box) -> np.ndarray:
    """Sample a mip pyramid at the pixels of `box`, blending the two levels next to the right one.

    The level is that at which one sample covers one texel in area: log2 of the square root of the
    Jacobian of the homography, whose determinant is det(M^-1) z^3.
    """
    top, bottom, left, right = box
    height, width = pyramid[0].shape[:2]
    area = abs(np.linalg.det(form)) * width * height
    a, b, c = form[2]
    inverse_depth = np.array([a * u + b * v + c for u in (left, right) for v in (top, bottom)])
    finest = len(pyramid) - 1
    levels = 0.5 * np.log2(area) - 1.5 * np.log2(np.maximum(inverse_depth, 0.05))
    lowest, highest = np.clip([levels.min(), levels.max()], 0, finest)
    if highest - lowest < 0.35:
        level = int(round(0.5 * (lowest + highest)))
        return _warp(pyramid[level], form, box, cv2.INTER_LINEAR)
    result = _warp(pyramid[int(lowest)], form, box, cv2.INTER_LINEAR)
    x = (a * np.arange(left, right)).astype(np.float32)
    y = (b * np.arange(top, bottom) + c).astype(np.float32)
    level_map = np.maximum(x[None] + y[:, None], np.float32(0.05))
    cv2.log(level_map, dst=level_map)
    level_map = np.float32(0.5 * np.log2(area)) - np.float32(1.5 / np.log(2)) * level_map
    for level in range(int(lowest), min(int(np.ceil(highest)), finest)):
        weight = np.clip(level_map - np.float32(level), 0, 1)
        coarser = weight.any(1)
        if not coarser.any():
            continue
        rows = np.flatnonzero(coarser)
        r0, r1 = rows[0], rows[-1] + 1
        columns = np.flatnonzero(weight[r0:r1].any(0))
        c0, c1 = columns[0], columns[-1] + 1
        weight = np.ascontiguousarray(weight[r0:r1, c0:c1])
        part = (top + r0, top + r1, left + c0, left + c1)
        other = _warp(pyramid[level + 1], form, part, cv2.INTER_LINEAR)
        here = np.ascontiguousarray(result[r0:r1, c0:c1])
        result[r0:r1, c0:c1] = cv2.blendLinear(here, other, 1 - weight, weight)
    return result
