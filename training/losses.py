"""Every loss of the two papers, one class each, behind one call.

    loss = build_loss(LossSettings('local_homography'))
    value = loss(prediction, target)  # scalar tensor, mean over the batch

Notation: c and c_hat are the true and the estimated camera centres in the world (metres), q and
q_hat the world-to-camera quaternions (wxyz), R and R_hat their matrices. A quaternion and its
negative are the same rotation, so every loss gives the same value for both.

Sources: [H] Boittiaux et al., Homography-Based Loss Function for Camera Pose Regression (RA-L
2022); [K] Kendall and Cipolla, Geometric Loss Functions for Camera Pose Regression (CVPR 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from pose_reloc.errors import SettingsError
from pose_reloc.geometry import rotation_from_quaternion_torch
from pose_reloc.network import PosePrediction

# A point nearer than this to the plane of the estimated camera, or behind it, has no projection.
_MIN_Z_M = 0.01
# A raw quaternion shorter than this is no rotation; it is read as the identity.
_MIN_QUATERNION_NORM = 1e-6


class PoseTarget(NamedTuple):
    """The truth for a batch of images.

    Attributes:
        w_t_c: camera centres in the world (B, 3), metres.
        c_q_w: unit world-to-camera quaternions (B, 4), wxyz, of either sign.
        depth_range: per image (B, 2): x_min and x_max of what it sees along z in metres,
            0 < x_min <= x_max; None where unknown.
        points: world points (B, K, 3) that each image sees, metres; None where there are none.
        points_mask: bool (B, K), False for padding; None when every point counts.
    """

    w_t_c: torch.Tensor
    c_q_w: torch.Tensor
    depth_range: torch.Tensor | None = None
    points: torch.Tensor | None = None
    points_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class LossSettings:
    """Which loss, and the numbers it takes; each loss reads only its own.

    Raises:
        SettingsError: an unknown name or norm, or a number that cannot work.
    """

    name: str = 'local_homography'  # one of LOSSES
    beta: float = 500.0  # posenet: metres per unit of quaternion difference
    unit_quaternion: bool = False  # posenet: normalise q_hat first, as [K]; [H] takes it raw
    norm: str = 'l1'  # homoscedastic: 'l1' as [H] or 'l2' as [K]
    s_x: float = 0.0  # homoscedastic: log variance of positions at the start, then learned
    s_q: float = -3.0  # homoscedastic: log variance of quaternions at the start, then learned
    clip: float = 100.0  # geometric: largest error of one point, normalised coordinates
    unit_norm_weight: float = 10.0  # maxerror: weight of (|q_hat| - 1)^2
    depth_range: tuple[float, float] | None = None  # homography: near, far in metres set by hand

    def __post_init__(self):
        if self.name not in LOSSES:
            raise SettingsError(f'unknown loss {self.name!r}; choose one of {", ".join(LOSSES)}')
        if self.norm not in ('l1', 'l2'):
            raise SettingsError(f"the loss's norm must be 'l1' or 'l2', got {self.norm!r}")
        for name in ('beta', 'clip'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SettingsError(f'the loss setting {name} must be positive, got {value}')
        if not (math.isfinite(self.unit_norm_weight) and self.unit_norm_weight >= 0):
            raise SettingsError(f'unit_norm_weight must not be negative: {self.unit_norm_weight}')
        if not (math.isfinite(self.s_x) and math.isfinite(self.s_q)):
            raise SettingsError(f's_x and s_q must be finite, got {self.s_x} and {self.s_q}')
        if self.depth_range is not None:
            near, far = (float(x) for x in self.depth_range)
            if not (math.isfinite(far) and 0 < near <= far):
                raise SettingsError(
                    f'a depth range must satisfy 0 < near <= far (metres), got {near} and {far}'
                )
            object.__setattr__(self, 'depth_range', (near, far))


class PoseLoss(nn.Module):
    """Base of the losses: checks the target and leaves autocast; subclasses define `_per_image`.

    Class attributes:
        name: the loss's name in LOSSES.
        needs_depth_range: the target of every batch must hold `depth_range`, one per image.
        needs_global_range: `build_loss` must be given one range for the whole training set.
        needs_points: the target must hold `points`.
        adam_eps: the eps that Adam takes with this loss in [H].
    """

    name = ''
    needs_depth_range = False
    needs_global_range = False
    needs_points = False
    adam_eps = 1e-8

    def __init__(self, settings: LossSettings | None = None):
        super().__init__()
        settings = settings or LossSettings(self.name)
        self.settings = replace(settings, name=self.name)

    def forward(self, prediction: PosePrediction, target: PoseTarget) -> torch.Tensor:
        """Mean over the batch, a scalar in float32 (float64 where the prediction is).

        Raises:
            SettingsError: the target lacks what this loss needs.
        """
        self.check(target)
        device = prediction.w_t_c.device.type
        dtype = torch.promote_types(prediction.w_t_c.dtype, torch.float32)
        # Half precision cannot hold a pose error of centimetres in a scene of metres.
        with torch.autocast(device, enabled=False):
            prediction = PosePrediction(*(x.to(dtype) for x in prediction))
            target = PoseTarget(
                *(x if x is None or x.dtype == torch.bool else x.to(dtype) for x in target)
            )
            return self._per_image(prediction, target).mean()

    def check(self, target: PoseTarget) -> None:
        """Looks whether a target has what this loss needs.

        Raises:
            SettingsError: it has not.
        """
        if self.needs_depth_range and target.depth_range is None:
            raise SettingsError(
                f'loss {self.name} needs the depth range of every image, but the dataset has '
                'neither depth nor 3D points; choose --loss global_homography with '
                '--depth-range NEAR FAR'
            )
        if self.needs_points and target.points is None:
            raise SettingsError(
                f'loss {self.name} needs 3D points, but the dataset has neither depth nor points; '
                'choose another --loss, for example homoscedastic'
            )

    def _per_image(self, prediction: PosePrediction, target: PoseTarget) -> torch.Tensor:
        """The loss (B,) of each image."""
        raise NotImplementedError


class PoseNetLoss(PoseLoss):
    """|c - c_hat|_2 + beta |q - q_hat|_2 ([K] eq. 1), q of the sign nearer to q_hat."""

    name = 'posenet'

    def _per_image(self, prediction, target):
        q_hat = prediction.c_q_w
        if self.settings.unit_quaternion:
            q_hat = unit_quaternion(q_hat)
        position = _norm(target.w_t_c - prediction.w_t_c, 'l2')
        return position + self.settings.beta * _norm(_nearer(target.c_q_w, q_hat) - q_hat, 'l2')


class HomoscedasticLoss(PoseLoss):
    """L_x exp(-s_x) + s_x + L_q exp(-s_q) + s_q with learned s_x and s_q ([K] eq. 6).

    L_x and L_q are norms of the differences of centres and of unit quaternions. `s_x` and `s_q`
    are parameters of the module: give them to the optimiser.
    """

    name = 'homoscedastic'

    def __init__(self, settings: LossSettings | None = None):
        super().__init__(settings)
        self.s_x = nn.Parameter(torch.tensor(float(self.settings.s_x)))
        self.s_q = nn.Parameter(torch.tensor(float(self.settings.s_q)))

    def _per_image(self, prediction, target):
        q_hat = unit_quaternion(prediction.c_q_w)
        L_x = _norm(target.w_t_c - prediction.w_t_c, self.settings.norm)
        L_q = _norm(_nearer(target.c_q_w, q_hat) - q_hat, self.settings.norm)
        return L_x * torch.exp(-self.s_x) + self.s_x + L_q * torch.exp(-self.s_q) + self.s_q


class GeometricLoss(PoseLoss):
    """Mean L1 reprojection error of the points that the image sees, K = I ([K] eq. 7).

    Each point counts at most `clip`; a point behind or at the estimated camera counts `clip` and
    has no gradient. Does not converge from a random start: warm up with `homoscedastic`.
    """

    name = 'geometric'
    needs_points = True

    def _per_image(self, prediction, target):
        clip = self.settings.clip
        true, seen = _project(target.points, target.w_t_c, target.c_q_w)
        estimate, front = _project(target.points, prediction.w_t_c, prediction.c_q_w)
        error = (true - estimate).abs().sum(-1).clamp(max=clip)
        # `where`, not a product: the branch that is not taken must not send NaN backwards.
        error = torch.where(front, error, torch.full_like(error, clip))
        if target.points_mask is not None:
            seen = seen & target.points_mask.bool()
        count = seen.sum(-1)
        mean = torch.where(seen, error, torch.zeros_like(error)).sum(-1) / count.clamp(min=1)
        # Images without points have nothing to say: they must not lower the batch mean.
        with_points = (count > 0).to(mean.dtype)
        return mean * len(mean) / with_points.sum().clamp(min=1)


class MaxErrorLoss(PoseLoss):
    """max(|c - c_hat| in cm, angle between q and q_hat in degrees), the loss of DSAC.

    The angle does not depend on the norm of q_hat, which would drift: `unit_norm_weight` times
    (|q_hat| - 1)^2 keeps it near 1.
    """

    name = 'maxerror'

    def _per_image(self, prediction, target):
        centimetres = 100 * _norm(target.w_t_c - prediction.w_t_c, 'l2')
        v = _relative_vector(target.c_q_w, unit_quaternion(prediction.c_q_w))
        # q and unit q_hat: |v| = sin(angle/2). atan2 has a finite slope at 0 and at pi, acos not.
        cosine = (target.c_q_w * unit_quaternion(prediction.c_q_w)).sum(-1).abs()
        degrees = torch.rad2deg(2 * torch.atan2(_norm(v, 'l2'), cosine))
        excess = _norm(prediction.c_q_w, 'l2') - 1
        return torch.maximum(centimetres, degrees) + self.settings.unit_norm_weight * excess**2


class _HomographyLoss(PoseLoss):
    """What both homography losses share: a depth range for all images, where one is known."""

    adam_eps = 1e-14

    def __init__(self, settings: LossSettings | None = None):
        super().__init__(settings)
        known = self.settings.depth_range
        common = None if known is None else torch.tensor(known, dtype=torch.float64)
        self.register_buffer('depth_range', common, persistent=False)


class LocalHomographyLoss(_HomographyLoss):
    """`homography_error` with the depth range of each image ([H], the paper's recommendation).

    An image whose own range is NaN or not positive, because it saw no valid depth, takes
    `settings.depth_range`: one blank depth image must not end the training.
    """

    name = 'local_homography'
    needs_depth_range = True

    def _per_image(self, prediction, target):
        x_min, x_max = target.depth_range.unbind(-1)
        if self.depth_range is not None:
            near, far = self.depth_range.to(prediction.w_t_c).unbind(-1)
            known = (x_min > 0) & (x_max >= x_min) & torch.isfinite(x_max)
            x_min, x_max = torch.where(known, x_min, near), torch.where(known, x_max, far)
        return homography_error(prediction, target, x_min, x_max)


class GlobalHomographyLoss(_HomographyLoss):
    """`homography_error` with one depth range for the whole training set, or one set by hand ([H]).

    Raises:
        SettingsError: `settings.depth_range` is None.
    """

    name = 'global_homography'
    needs_global_range = True

    def __init__(self, settings: LossSettings | None = None):
        super().__init__(settings)
        if self.settings.depth_range is None:
            raise SettingsError(
                'loss global_homography needs a depth range, but the dataset has neither depth nor '
                '3D points; give the nearest and farthest distance with --depth-range NEAR FAR'
            )

    def _per_image(self, prediction, target):
        x_min, x_max = self.depth_range.to(prediction.w_t_c).unbind(-1)
        return homography_error(prediction, target, x_min, x_max)


LOSSES = {
    loss.name: loss
    for loss in (
        PoseNetLoss,
        HomoscedasticLoss,
        GeometricLoss,
        MaxErrorLoss,
        GlobalHomographyLoss,
        LocalHomographyLoss,
    )
}


def build_loss(settings: LossSettings, depth_range=None) -> PoseLoss:
    """The loss module of these settings.

    Args:
        settings: its own `depth_range`, set by hand, goes before the training set's.
        depth_range: (x_min, x_max) in metres over the whole training set: what global_homography
            uses, and local_homography for images without a range of their own.

    Raises:
        SettingsError: global_homography without any depth range, or an impossible one.
    """
    loss = LOSSES[settings.name]
    takes_range = issubclass(loss, _HomographyLoss) and depth_range is not None
    if takes_range and settings.depth_range is None:
        settings = replace(settings, depth_range=tuple(float(x) for x in depth_range))
    return loss(settings)


def homography_error(prediction: PosePrediction, target: PoseTarget, x_min, x_max) -> torch.Tensor:
    """Mean squared deviation from I of the homographies that a pose error induces ([H] eq. 9).

    The plane Z = x in front of the true camera, n = (0, 0, -1), induces H(x) = R - t n^T / x with
    R = R_hat R_c^T and t = R_hat (c - c_hat). Averaged over x_min <= x <= x_max,
    |I - H(x)|_F^2 is
        8 (1 - <q, q_hat>^2) + 2 k d.(z - z_hat) + |d|^2 / (x_min x_max),
    d = c - c_hat, z and z_hat the optical axes in the world (third rows of the matrices),
    k = ln(x_max / x_min) / (x_max - x_min). Zero at the true pose only; finite gradients
    everywhere.

    Args:
        prediction, target: of B images.
        x_min, x_max: metres, (B,) or scalars, 0 < x_min <= x_max.

    Returns:
        (B,), no unit.
    """
    q, q_hat = target.c_q_w, unit_quaternion(prediction.c_q_w)
    d = target.w_t_c - prediction.w_t_c
    # 1 - <q, q_hat>^2 = |v|^2 for unit quaternions, without the cancellation that in float32
    # hides angles below 0.02 deg.
    rotation = 8 * _relative_vector(q, q_hat).square().sum(-1)
    cross = 2 * inverse_depth_mean(x_min, x_max) * (d * (_axis(q) - _axis(q_hat))).sum(-1)
    return rotation + cross + d.square().sum(-1) / (x_min * x_max)


def inverse_depth_mean(x_min: torch.Tensor, x_max: torch.Tensor) -> torch.Tensor:
    """Mean of 1/x over [x_min, x_max]: ln(x_max / x_min) / (x_max - x_min), or 1/x_min if equal."""
    r = (x_max - x_min) / x_min
    small = r < 1e-3
    safe = torch.where(small, torch.ones_like(r), r)
    series = 1 - r / 2 + r * r / 3 - r**3 / 4 + r**4 / 5
    return torch.where(small, series, torch.log1p(safe) / safe) / x_min


def unit_quaternion(q: torch.Tensor) -> torch.Tensor:
    """q / |q| of raw quaternions (..., 4); the zero quaternion is read as the identity."""
    norm = torch.linalg.vector_norm(q.detach(), dim=-1, keepdim=True)
    identity = torch.zeros_like(q)
    identity[..., 0] = 1
    q = torch.where(norm < _MIN_QUATERNION_NORM, q + identity, q)
    return q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)


def _norm(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Norm (...) of vectors (..., D); torch's gradient at 0 is 0 for both kinds."""
    return torch.linalg.vector_norm(x, ord=1 if kind == 'l1' else 2, dim=-1)


def _nearer(q: torch.Tensor, q_hat: torch.Tensor) -> torch.Tensor:
    """q or -q (..., 4), which are the same rotation, whichever is nearer to q_hat."""
    return torch.where((q * q_hat).sum(-1, keepdim=True) < 0, -q, q)


def _relative_vector(q: torch.Tensor, q_hat: torch.Tensor) -> torch.Tensor:
    """Vector part (..., 3) of conj(q) q_hat: sin(angle/2) along the rotation axis, up to sign."""
    w, v = q[..., :1], q[..., 1:]
    w_hat, v_hat = q_hat[..., :1], q_hat[..., 1:]
    return w * v_hat - w_hat * v - torch.linalg.cross(v, v_hat)


def _axis(q: torch.Tensor) -> torch.Tensor:
    """Third row (..., 3) of the matrix of unit q: the optical axis in the world."""
    w, x, y, z = q.unbind(-1)
    return torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)


def _project(points_BK3, w_t_c, c_q_w):
    """Normalised coordinates (B, K, 2) of world points, and whether they lie before the camera."""
    R = rotation_from_quaternion_torch(unit_quaternion(c_q_w))
    points = (points_BK3 - w_t_c[:, None]) @ R.transpose(-1, -2)
    z = points[..., 2]
    front = z > _MIN_Z_M
    return points[..., :2] / torch.where(front, z, torch.ones_like(z))[..., None], front
