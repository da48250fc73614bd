"""Each loss, forward and backward, on the predictions of one batch."""

from __future__ import annotations

import torch

from pose_reloc.geometry import rotation_from_quaternion_torch
from pose_reloc.network import PosePrediction
from training.benchmarks.measure import Case, Role, Timed, interleave
from training.benchmarks.table import Table
from training.benchmarks.workload import BenchSettings
from training.losses import LOSSES, LossSettings, PoseTarget, build_loss, inverse_depth_mean

_POINTS = 512  # of an image, for the geometric loss


def run(settings: BenchSettings) -> list[Table]:
    """One table for each device."""
    return [_table(settings, device) for device in settings.devices]


def _table(settings: BenchSettings, device: str) -> Table:
    prediction, target = random_batch(settings.batch, device)

    def case(group, name, role, loss):
        def call():
            loss(prediction, target).backward()
            prediction.w_t_c.grad = prediction.c_q_w.grad = None

        return Case(name, Timed(call, settings.turn_seconds, device=device), role, group)

    cases = []
    for name in LOSSES:
        ours = build_loss(LossSettings(name), depth_range=(1.0, 4.0)).to(device)
        cases.append(case(name, 'ours', Role.OURS, ours))
        cases.append(case(name, 'sum of squares', Role.FLOOR, _least_loss))
        if name == 'local_homography':
            cases.append(case(name, '3x3 matrices', Role.ALTERNATIVE, homography_by_matrices))
    measured = interleave(cases, settings.rounds, f'losses, {device}')
    note = f'random poses; {_POINTS} points an image; the floor has no geometry in it at all'
    title = f'losses: {device}, forward and backward of a batch of {settings.batch}'
    return Table(title, 'us', measured, notes=(note,))


def random_batch(count: int, device: str) -> tuple[PosePrediction, PoseTarget]:
    """Poses a little wrong, of images that see 1 to 4 m; leaves that ask for gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def unit(q):
        return q / q.norm(dim=-1, keepdim=True)

    w_t_c, c_q_w = normal(count, 3), unit(normal(count, 4))
    prediction = PosePrediction(w_t_c + 0.1 * normal(count, 3), c_q_w + 0.1 * normal(count, 4))
    prediction = PosePrediction(*(x.to(device).requires_grad_() for x in prediction))
    depth_range = torch.tensor([1.0, 4.0]).expand(count, 2)
    points = normal(count, _POINTS, 3) + torch.tensor([0.0, 0.0, 3.0])
    target = PoseTarget(w_t_c, c_q_w, depth_range, points)
    return prediction, PoseTarget(*(x if x is None else x.to(device) for x in target))


def homography_by_matrices(prediction: PosePrediction, target: PoseTarget) -> torch.Tensor:
    """The local homography loss as the paper writes it, with batched 3x3 matrices.

    tr[A + B k + C / (x_min x_max)], A = (I - R)(I - R)^T, B = n t^T (I - R) + (I - R)^T t n^T,
    C = n t^T t n^T (Boittiaux et al. 2022, section III).
    """
    q_hat = prediction.c_q_w / prediction.c_q_w.norm(dim=1, keepdim=True)
    R_hat, R_c = rotation_from_quaternion_torch(q_hat), rotation_from_quaternion_torch(target.c_q_w)
    R = R_hat @ R_c.transpose(1, 2)
    t_B31 = R_hat @ (target.w_t_c - prediction.w_t_c)[:, :, None]
    n_B31 = t_B31.new_tensor([0.0, 0.0, -1.0]).expand(len(R), 3)[:, :, None]
    I_R = torch.eye(3, device=R.device) - R
    A = I_R @ I_R.transpose(1, 2)
    B = n_B31 @ t_B31.transpose(1, 2) @ I_R + I_R.transpose(1, 2) @ t_B31 @ n_B31.transpose(1, 2)
    C = n_B31 @ t_B31.transpose(1, 2) @ t_B31 @ n_B31.transpose(1, 2)
    x_min, x_max = (x[:, None, None] for x in target.depth_range.unbind(-1))
    total = A + B * inverse_depth_mean(x_min, x_max) + C / (x_min * x_max)
    return total.diagonal(dim1=1, dim2=2).sum(1).mean()


def _least_loss(prediction: PosePrediction, target: PoseTarget) -> torch.Tensor:
    position = (prediction.w_t_c - target.w_t_c).square().sum(1)
    return (position + (prediction.c_q_w - target.c_q_w).square().sum(1)).mean()
