"""Cached arrays as batches on the device, with new views where the settings ask for them."""

from __future__ import annotations

import numpy as np
import torch

from pose_reloc.geometry import network_from_pose
from pose_reloc.preprocess import normalize
from training.cache import TrainingCache
from training.losses import PoseTarget
from training.view_synthesis import (
    ViewSettings,
    change_light,
    render_views,
    sample_light,
    sample_motion,
    uploaded,
)


class _Rows:
    """Rows of a cached array on the device: all there from the start, or copied when asked for."""

    def __init__(self, array: np.ndarray, device: torch.device, resident: bool):
        self._array, self._device = array, device
        self._all = torch.from_numpy(np.array(array)).to(device) if resident else None

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (..., *) of an index (...), see `Batches._index`."""
        if self._all is not None:
            return self._all[index]
        return uploaded(self._device, torch.from_numpy(self._array[index.numpy()]))[0]


class Batches:
    """Batches of a cache.

    Args:
        cache: of the training split.
        device: of the batches.
        views: how new views are made; None gives the images themselves.
        resident: whether the whole cache lies on the device; None: on a GPU, where it takes no more
            than a quarter of what is free: a step needs the rest.
    """

    def __init__(
        self,
        cache: TrainingCache,
        device: torch.device,
        views: ViewSettings | None,
        resident: bool | None = None,
    ):
        self.cache, self.device, self.views = cache, device, views
        arrays = {
            name: getattr(cache, name)
            for name in ('images', 'depth', 'points', 'depth_range')
            if getattr(cache, name) is not None
        }
        if resident is None:
            size = sum(array.nbytes for array in arrays.values())
            resident = device.type == 'cuda' and size < torch.cuda.mem_get_info(device)[0] // 4
        self._resident = resident
        rows = {name: _Rows(array, device, resident) for name, array in arrays.items()}
        self._images, self._depth = rows['images'], rows.get('depth')
        self._points, self._depth_range = rows.get('points'), rows.get('depth_range')
        self._world_T_camera = torch.from_numpy(cache.world_T_camera)
        self._levels = torch.tensor([0.025, 0.975], device=device)  # of the points of a view
        if views and self._depth and views.sources > 1:
            self._neighbours = _neighbours(cache.world_T_camera)

    def images(self, index) -> torch.Tensor:
        """uint8 (B, H, W, 3) on the device."""
        return self._images[self._index(torch.as_tensor(index))]

    def batch(
        self, index: torch.Tensor, progress: float, generator, share: slice = slice(None)
    ) -> tuple[torch.Tensor, PoseTarget]:
        """Normalised images (B, 3, H, W) and their targets on the device.

        Args:
            index: of the training images of a whole step.
            progress: of the run, in [0, 1]: how far new views may already go.
            generator: of all randomness; it advances by a whole step.
            share: the part of the step that is wanted.
        """
        if self.views is None:
            index = index[share]
            return normalize(self.images(index)), self.target(index)
        return self._synthetic(index, self.views.at(progress), generator, share)

    def target(self, index: torch.Tensor) -> PoseTarget:
        """What is true of the images themselves."""
        rows = self._index(index)
        points = self._points and self._points[rows]
        return self._pose_target(
            self._world_T_camera[index],
            self._depth_range and self._depth_range[rows].float(),
            None if points is None else points.nan_to_num(),
            None if points is None else points.isfinite().all(-1),
        )

    def _pose_target(self, world_T_view_B44, *others) -> PoseTarget:
        w_t_c, c_q_w = network_from_pose(world_T_view_B44.numpy())
        poses = (torch.from_numpy(x).float() for x in (w_t_c, c_q_w))
        return PoseTarget(*uploaded(self.device, *poses), *others)

    def _index(self, index: torch.Tensor) -> torch.Tensor:
        """An index on the CPU, where the arrays lie."""
        return uploaded(self.device, index)[0] if self._resident else index

    def _synthetic(
        self, index: torch.Tensor, views: ViewSettings, generator, share: slice
    ) -> tuple[torch.Tensor, PoseTarget]:
        # Everything random is drawn for the whole step: it does not depend on who takes which part.
        B, has_depth = len(index), self._depth is not None
        motion = sample_motion(B, views, has_depth, generator).double()
        world_T_view = self._world_T_camera[index] @ motion
        sources = index[:, None]
        if has_depth and views.sources > 1:
            others = self._other_sources(world_T_view, index, views.sources - 1, generator)
            sources = torch.cat([sources, others], 1)
        light = sample_light(B, views, generator)
        world_T_view, sources, light = world_T_view[share], sources[share], light[share]

        rows = self._index(sources)
        depth = self._depth[rows] if has_depth else None
        # World coordinates can be large: poses relative to the view before going to float32.
        view_T_source = torch.linalg.solve(world_T_view[:, None], self._world_T_camera[sources])
        eye = torch.eye(4).expand(len(sources), 4, 4)
        rendered, _ = render_views(
            self._images[rows], depth, view_T_source.float(), eye, self.cache.camera
        )
        rendered = change_light(rendered, light).permute(0, 2, 3, 1)
        return normalize(rendered), self._view_target(world_T_view, rows)

    def _other_sources(self, world_T_view, index, count: int, generator) -> torch.Tensor:
        """Further training images (B, count) that look where the views look."""
        B = len(index)
        candidates = self._neighbours[index]  # (B, C)
        poses = self._world_T_camera[candidates]
        shift = (poses[..., :3, 3] - world_T_view[:, None, :3, 3]).norm(dim=-1)
        cosine = (poses[..., :3, 2] * world_T_view[:, None, :3, 2]).sum(-1).clamp(-1, 1)
        score = shift + 1.5 * torch.acos(cosine)
        # Some randomness: the same helper every time would be memorised with its flaws.
        score = score + 0.2 * torch.rand(score.shape, generator=generator)
        best = score.topk(min(count, score.shape[1]), largest=False).indices
        return candidates[torch.arange(B)[:, None], best]

    def _view_target(self, world_T_view: torch.Tensor, rows: torch.Tensor) -> PoseTarget:
        """Pose, seen points and depth range of synthetic views, from the points of their sources.

        Args:
            world_T_view: (B, 4, 4) on the CPU.
            rows: index (B, S) of the sources, where the arrays lie.
        """
        if self._points is None:
            return self._pose_target(world_T_view)
        points = self._points[rows].flatten(1, 2)
        (pose,) = uploaded(self.device, world_T_view.float())
        x, y, z = ((points - pose[:, None, :3, 3]) @ pose[:, :3, :3]).unbind(-1)
        camera = self.cache.camera
        u = x / z.clamp(min=1e-3) * camera.fx + camera.cx
        v = y / z.clamp(min=1e-3) * camera.fy + camera.cy
        mask = (z > 0.05) & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
        ranges = torch.nanquantile(torch.where(mask, z, torch.nan), self._levels, dim=1).T
        own = self._depth_range[rows[:, 0]].float()
        ranges = torch.where(mask.sum(1, keepdim=True) < 16, own, ranges)
        return self._pose_target(world_T_view, ranges, points.nan_to_num(), mask)


def _neighbours(world_T_camera: np.ndarray, count: int = 48) -> torch.Tensor:
    """For each image the `count` others (N, C) that lie and look nearest, at least 0.1 apart.

    The distance is metres plus 1.5 times the angle between the optical axes in radians: a nearly
    identical image could not fill what its twin does not see.
    """
    centres, axes = world_T_camera[:, :3, 3], world_T_camera[:, :3, 2]
    rows = []
    for centre, axis in zip(centres, axes, strict=True):
        angle = np.arccos(np.clip(axes @ axis, -1, 1))
        distance = np.linalg.norm(centres - centre, axis=1) + 1.5 * angle
        distance[distance < 0.1] = np.inf
        rows.append(np.argsort(distance)[: min(count, len(centres))])
    return torch.from_numpy(np.stack(rows))
