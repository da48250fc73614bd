"""Cached arrays as batches on the device, with new views where the settings ask for them."""

from __future__ import annotations

import numpy as np
import torch

from pose_reloc.geometry import network_from_pose
from pose_reloc.preprocess import normalize
from training.cache import TrainingCache
from training.losses import PoseTarget
from training.view_synthesis import ViewSettings, change_light, render_views, sample_motion


class Batches:
    """Batches of a cache. On a GPU all images stay there where they fit.

    Args:
        cache: of the training split.
        device: of the batches.
        views: how new views are made; None gives the images themselves.
    """

    def __init__(self, cache: TrainingCache, device: torch.device, views: ViewSettings | None):
        self.cache, self.device, self.views = cache, device, views
        self.resident = None
        if device.type == 'cuda':
            free = torch.cuda.mem_get_info(device)[0]
            if cache.images.nbytes < free // 2:
                self.resident = torch.from_numpy(np.array(cache.images)).to(device)
        self.world_T_camera = torch.from_numpy(cache.world_T_camera)
        w_t_c, c_q_w = network_from_pose(cache.world_T_camera)
        self.w_t_c, self.c_q_w = torch.from_numpy(w_t_c), torch.from_numpy(c_q_w)
        self.points = None if cache.points is None else torch.from_numpy(np.array(cache.points))
        if self.views and self.views.sources > 1:
            self.neighbours = _neighbours(cache.world_T_camera)

    def images(self, index) -> torch.Tensor:
        """uint8 (B, H, W, 3) on the device."""
        if self.resident is not None:
            return self.resident[torch.as_tensor(index, device=self.device)]
        return torch.from_numpy(self.cache.images[np.asarray(index)]).to(self.device)

    def batch(
        self, index: torch.Tensor, progress: float, generator
    ) -> tuple[torch.Tensor, PoseTarget]:
        """Normalised images (B, 3, H, W) and their targets on the device.

        Args:
            index: of the training images (B,).
            progress: of the run, in [0, 1]: how far new views may already go.
            generator: of all randomness.
        """
        if self.views is None:
            return normalize(self.images(index)), self._target(index)
        return self._synthetic(index, self.views.at(progress), generator)

    def _target(self, index: torch.Tensor) -> PoseTarget:
        ranges = self.cache.depth_range
        points = None if self.points is None else self.points[index]
        target = PoseTarget(
            self.w_t_c[index].float(),
            self.c_q_w[index].float(),
            None if ranges is None else torch.from_numpy(ranges[index.numpy()]).float(),
            None if points is None else points.nan_to_num(),
            None if points is None else points.isfinite().all(-1),
        )
        return PoseTarget(*(None if x is None else x.to(self.device) for x in target))

    def _synthetic(
        self, index: torch.Tensor, views: ViewSettings, generator
    ) -> tuple[torch.Tensor, PoseTarget]:
        camera = self.cache.camera
        has_depth = self.cache.depth is not None
        motion = sample_motion(len(index), views, has_depth, generator).double()
        world_T_view = self.world_T_camera[index] @ motion
        sources = index[:, None]
        if has_depth and views.sources > 1:
            others = self._other_sources(world_T_view, index, views.sources - 1, generator)
            sources = torch.cat([sources, others], 1)
        flat = sources.flatten()
        image = self.images(flat).unflatten(0, sources.shape)
        depth = None
        if has_depth:
            depth = torch.from_numpy(self.cache.depth[flat.numpy()]).to(self.device)
            depth = depth.unflatten(0, sources.shape)
        # World coordinates can be large: poses relative to the view before going to float32.
        view_T_source = torch.linalg.solve(world_T_view[:, None], self.world_T_camera[sources])
        view_T_source = view_T_source.float().to(self.device)
        eye = torch.eye(4, device=self.device).expand(len(index), 4, 4)
        rendered, _ = render_views(image, depth, view_T_source, eye, camera)
        rendered = change_light(rendered, views, generator).permute(0, 2, 3, 1)
        return normalize(rendered), self._view_target(world_T_view, sources)

    def _other_sources(self, world_T_view, index, count: int, generator) -> torch.Tensor:
        """Further training images (B, count) that look where the views look."""
        B = len(index)
        candidates = self.neighbours[index]  # (B, C)
        poses = self.world_T_camera[candidates]
        shift = (poses[..., :3, 3] - world_T_view[:, None, :3, 3]).norm(dim=-1)
        cosine = (poses[..., :3, 2] * world_T_view[:, None, :3, 2]).sum(-1).clamp(-1, 1)
        score = shift + 1.5 * torch.acos(cosine)
        # Some randomness: the same helper every time would be memorised with its flaws.
        score = score + 0.2 * torch.rand(score.shape, generator=generator)
        best = score.topk(min(count, score.shape[1]), largest=False).indices
        return candidates[torch.arange(B)[:, None], best]

    def _view_target(self, world_T_view: torch.Tensor, sources: torch.Tensor) -> PoseTarget:
        """Pose, seen points and depth range of synthetic views, from the sources' points."""
        w_t_c = world_T_view[:, :3, 3]
        c_q_w = torch.from_numpy(network_from_pose(world_T_view.numpy())[1])
        ranges = points = mask = None
        if self.points is not None:
            points = self.points[sources].flatten(1, 2)  # (B, S*K, 3)
            R = world_T_view[:, :3, :3].float()
            p = (points - w_t_c[:, None].float()) @ R
            camera, z = self.cache.camera, p[..., 2]
            u = p[..., 0] / z.clamp(min=1e-3) * camera.fx + camera.cx
            v = p[..., 1] / z.clamp(min=1e-3) * camera.fy + camera.cy
            mask = (z > 0.05) & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
            levels = torch.tensor([0.025, 0.975])
            seen = torch.where(mask, z, torch.nan)
            ranges = torch.nanquantile(seen, levels, dim=1).T
            own = torch.from_numpy(self.cache.depth_range[sources[:, 0].numpy()]).float()
            ranges = torch.where(mask.sum(1, keepdim=True) < 16, own, ranges)
            points = points.nan_to_num()
        target = PoseTarget(w_t_c.float(), c_q_w.float(), ranges, points, mask)
        return PoseTarget(*(None if x is None else x.to(self.device) for x in target))


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
