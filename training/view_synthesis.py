"""New training views made on the fly, batched, on the device that trains.

One pass through a room is memorised by a regressor. Each training image is therefore replaced by
what a camera slightly elsewhere would have seen. Where depth exists, the new view is rendered from
several training images: their depths are splatted into a z-buffer of the new view, which is then
looked up in each source (inverse warping, with a test for occlusion). Without depth, the camera is
only rotated, which is an exact homography.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pose_reloc.camera import Camera
from pose_reloc.errors import SettingsError

_BEHIND = 1e6  # depth of "nothing here"


@dataclass(frozen=True)
class ViewSettings:
    """How far new views lie from the training images, and how their light changes."""

    sigma_m: float = 0.25  # standard deviation of the shift along each axis; needs depth
    sigma_rad: float = 0.2  # standard deviation of the rotation about each axis
    sources: int = 2  # training images a view is rendered from; more fill more holes
    brightness: float = 0.2  # standard deviation of the log gain
    colour: float = 0.06  # standard deviation of the log gain of each channel on top
    gamma: float = 0.15  # standard deviation of the log gamma
    noise: float = 3.0  # standard deviation of pixel noise, grey levels
    ramp: float = 0.0  # fraction of the run over which all of this grows from zero

    def __post_init__(self):
        for name in ('sigma_m', 'sigma_rad', 'brightness', 'colour', 'gamma', 'noise', 'ramp'):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(
                    f'views: {name} must be finite and not negative, got {getattr(self, name)}'
                )
        if self.sources < 1:
            raise SettingsError(f'views: sources must be at least 1, got {self.sources}')

    def at(self, progress: float) -> ViewSettings:
        """These settings as they are at a fraction `progress` of the run."""
        if progress >= self.ramp:
            return self
        names = ('sigma_m', 'sigma_rad', 'brightness', 'colour', 'gamma', 'noise')
        grown = {name: getattr(self, name) * progress / self.ramp for name in names}
        return replace(self, **grown)


def uploaded(device: torch.device, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of one type from the CPU on a device, by one copy that the host does not wait for.

    For this they are pinned: PyTorch does not use that memory again before a GPU has fetched it.
    """
    if device.type == 'cpu':
        return tensors
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    if device.type == 'cuda':
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return tuple(part.view(t.shape) for part, t in zip(parts, tensors, strict=True))


def sample_motion(count: int, settings: ViewSettings, has_depth: bool, generator) -> torch.Tensor:
    """Random camera motions `old_T_new` (B, 4, 4) float32, Gaussian in every axis."""
    w_B3 = torch.randn(count, 3, generator=generator) * settings.sigma_rad
    t_B3 = torch.randn(count, 3, generator=generator) * (settings.sigma_m if has_depth else 0.0)
    motion = torch.eye(4).repeat(count, 1, 1)
    motion[:, :3, :3] = torch.linalg.matrix_exp(_skew(w_B3))
    motion[:, :3, 3] = t_B3
    return motion


def render_views(
    images_BSHW3: torch.Tensor,
    depth_BShw: torch.Tensor | None,
    world_T_source_BS44: torch.Tensor,
    world_T_view_B44: torch.Tensor,
    camera: Camera,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders views from posed source images.

    Args:
        images_BSHW3: uint8 RGB, S sources a view; the first is preferred.
        depth_BShw: metres along z at any resolution, without holes; None to rotate only.
        world_T_source_BS44, world_T_view_B44: camera poses, float32, on the CPU: inverting them
            on a GPU makes the host wait.
        camera: the pinhole camera of sources and views.

    Returns:
        Images (B, 3, H, W) float32 in [0, 255], and which pixels were seen by a source (B, H, W).
    """
    B, S, H, W, _ = images_BSHW3.shape
    device = images_BSHW3.device
    source_T_view = torch.linalg.solve(world_T_source_BS44, world_T_view_B44[:, None])
    view_T_source = torch.linalg.inv(source_T_view)
    if depth_BShw is None:
        # At infinity only the rotation counts: the homography K R K^-1.
        source_T_view = source_T_view.clone()
        source_T_view[..., :3, 3] = 0
    grid_T_view = _grid_K(camera, H, W) @ source_T_view[..., :3, :]
    grid_T_view, view_T_source = uploaded(device, grid_T_view, view_T_source)
    if depth_BShw is None:
        z_BHW = torch.ones(B, H, W, device=device)
    else:
        z_BHW = _splat(depth_BShw, view_T_source, camera)
        z_BHW = F.interpolate(z_BHW[:, None], (H, W), mode='nearest')[:, 0]
    points_B3P = _rays(camera, H, W, device) * z_BHW.flatten(1)[:, None]

    colour = torch.zeros(B, 3, H, W, device=device)
    seen = torch.zeros(B, H, W, dtype=torch.bool, device=device)
    for s in range(S):
        grid, z, inside = _look_up(points_B3P, grid_T_view[:, s], H, W)
        source = images_BSHW3[:, s].permute(0, 3, 1, 2).float()
        found = F.grid_sample(source, grid, padding_mode='border', align_corners=False)
        if depth_BShw is not None:
            there = F.grid_sample(
                depth_BShw[:, s : s + 1].float(), grid, padding_mode='border', align_corners=False
            )[:, 0]
            inside &= z < there * 1.08 + 0.03  # otherwise something stands in front
        take = inside & ~seen
        if s == 0:
            colour = found  # unseen pixels keep the first source's nearest colour
            seen = take
        else:
            colour = torch.where(take[:, None], found, colour)
            seen = seen | take
    return colour, seen


class Light(NamedTuple):
    """How the light of B images changes; see `change_light`."""

    gain_B3: torch.Tensor
    gamma_B: torch.Tensor
    noise: float  # standard deviation, grey levels
    noise_seed_B: torch.Tensor

    def __getitem__(self, part: slice) -> Light:
        """Of a part of the images."""
        return Light(self.gain_B3[part], self.gamma_B[part], self.noise, self.noise_seed_B[part])


def sample_light(count: int, settings: ViewSettings, generator) -> Light:
    """Random exposure, white balance, gamma and noise of `count` images, on the CPU."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    gain = torch.exp(normal(count, 1) * settings.brightness + normal(count, 3) * settings.colour)
    gamma = torch.exp(normal(count) * settings.gamma)
    seeds = torch.randint(2**31, (count,), generator=generator)
    return Light(gain, gamma, settings.noise, seeds)


def change_light(image_B3HW: torch.Tensor, light: Light) -> torch.Tensor:
    """Images in [0, 255] in another light. Geometry is kept."""
    device = image_B3HW.device
    gain, gamma = uploaded(device, light.gain_B3, light.gamma_B)
    gain, gamma = gain[..., None, None], gamma[:, None, None, None]
    image = (image_B3HW / 255).clamp_(1e-4, 1).pow_(gamma).mul_(gain * 255)
    if light.noise:
        noise = torch.empty_like(image)
        generator = torch.Generator(device)
        for one, seed in zip(noise, light.noise_seed_B.tolist(), strict=True):
            one.normal_(generator=generator.manual_seed(seed))
        image.add_(noise, alpha=light.noise)
    return image.clamp_(0, 255)


def _skew(w_B3: torch.Tensor) -> torch.Tensor:
    x, y, z = w_B3.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def _rays(camera: Camera, h: int, w: int, device) -> torch.Tensor:
    """Directions (3, h*w) with z = 1 through the pixel centres of the camera at size w x h."""
    c = camera.scaled(w, h)
    v, u = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing='ij'
    )
    return torch.stack(
        [(u.flatten() - c.cx) / c.fx, (v.flatten() - c.cy) / c.fy, torch.ones(h * w, device=device)]
    )


def _splat(depth_BShw: torch.Tensor, view_T_source_BS44: torch.Tensor, camera: Camera):
    """Z-buffer (B, h, w) of the view, holes filled from behind."""
    B, S, h, w = depth_BShw.shape
    c = camera.scaled(w, h)
    points = _rays(camera, h, w, depth_BShw.device) * depth_BShw.float().flatten(2)[:, :, None]
    points = view_T_source_BS44[..., :3, :3] @ points + view_T_source_BS44[..., :3, 3:]
    x, y, z = points.transpose(1, 2).flatten(2).unbind(1)  # each (B, S*h*w)
    near = z > 0.05
    safe = z.clamp(min=0.05)
    left = torch.floor(x / safe * c.fx + c.cx).long()
    top = torch.floor(y / safe * c.fy + c.cy).long()
    buffer = torch.full((B, h * w), _BEHIND, device=z.device)
    # Each point covers the four pixels around it: a view from closer by has no cracks.
    for ui in (left, left + 1):
        for vi in (top, top + 1):
            inside = near & (ui >= 0) & (ui < w) & (vi >= 0) & (vi < h)
            index = torch.where(inside, vi * w + ui, 0)
            buffer.scatter_reduce_(1, index, torch.where(inside, z, _BEHIND), 'amin')
    # Background fills a hole: what is newly seen beside an edge lies behind it.
    known = torch.where(buffer >= _BEHIND, 0.0, buffer).view(B, h, w)
    for _ in range(6):
        known = torch.where(known > 0, known, _largest_within(known, 2))
    far = known.amax((1, 2), keepdim=True).clamp(min=0.1)
    return torch.where(known > 0, known, far)


def _largest_within(x_Bhw: torch.Tensor, radius: int) -> torch.Tensor:
    """Maximum of values >= 0 over the square around each pixel; faster than max_pool2d on a CPU."""
    _, h, w = x_Bhw.shape
    x = F.pad(x_Bhw, (radius,) * 4)
    x = reduce(torch.maximum, (x[:, k : k + h] for k in range(2 * radius + 1)))
    return reduce(torch.maximum, (x[..., k : k + w] for k in range(2 * radius + 1)))


def _grid_K(camera: Camera, H: int, W: int) -> torch.Tensor:
    """Intrinsics (3, 3) of the grid of grid_sample."""
    # Without align_corners it spans the image, from edge to edge, by [-1, 1].
    return torch.tensor(
        [
            [2 * camera.fx / W, 0, (2 * camera.cx + 1) / W - 1],
            [0, 2 * camera.fy / H, (2 * camera.cy + 1) / H - 1],
            [0, 0, 1],
        ]
    )


def _look_up(points_B3P, grid_T_view_B34, H: int, W: int):
    """Where view points fall in a source: grid for grid_sample, depth there, and visibility."""
    p = torch.baddbmm(grid_T_view_B34[..., 3:], grid_T_view_B34[..., :3], points_B3P)
    z = p[:, 2:]
    grid = p[:, :2] / z.clamp(min=1e-3)
    inside = (z[:, 0] > 0.05) & (grid.abs().amax(1) < 1)
    grid = grid.unflatten(2, (H, W)).permute(0, 2, 3, 1)
    return grid, z[:, 0].unflatten(1, (H, W)), inside.unflatten(1, (H, W))
