"""How sure a camera pose is that was computed from points, and whether its camera is to blame.

The pose minimises a robust loss of the reprojection errors. Its covariance is that of an
M-estimator, the sandwich A^-1 B A^-1 (Huber 1967; White 1980): A is the expected curvature of the
loss, B the scatter of its gradient as the matches show it. Matches near each other in the image
share the errors of their landmarks, so that B is summed over cells of the image, not over matches
(cluster-robust, Liang & Zeger 1986). Nothing is assumed about the size or shape of the errors.

The same with fx, fy, cx, cy free tells a camera whose calibration is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pose_reloc.camera import Camera

_CELLS = 16  # across the image: in each, errors are one draw
_FEWEST_CELLS = 12  # with fewer, every pixel counts as one
FAR = 8.0  # times the scale of the loss: beyond, a match is wrong and says nothing
_LEAST_PX = 0.1  # no feature is found more exactly
# Right calibrations hardly ever give more where landmarks are exact (docs/benchmarks.md).
_DISTRUSTED = 50.0
_POSE = slice(0, 6)
_CAMERA = slice(6, 10)
# How far off a calibration may be before a match is seen: 10 % of f. One flat wall leaves two
# directions of the ten open, along which nothing else holds the pose. Of that nothing is known.
_PRIOR_SIGMA_10 = np.r_[np.zeros(6), np.full(4, 0.1)]


@dataclass(frozen=True)
class CameraFit:
    """The pose with the calibration of the camera free.

    Attributes:
        change: of log fx, log fy, cx / fx, cy / fy (4,) that explains the matches best.
        distrust: its squared Mahalanobis distance from no change: 4 on average if the calibration
            and the landmarks are right.
        pose_change: what it would do to the pose (6,), `geometry.pose_residual`.
        covariance_66: of the pose, with the calibration free.
    """

    change: np.ndarray
    distrust: float
    pose_change: np.ndarray
    covariance_66: np.ndarray

    @property
    def looks_wrong(self) -> bool:
        """Whether the calibration cannot be right, or the landmarks are as far off."""
        return self.distrust > _DISTRUSTED


class PnpProblem:
    """Matches of pixels with points, linearised at a pose under a Cauchy loss.

    The matches of one pixel with several keyframes share its error: together they count as one.

    Attributes:
        error_N: reprojection errors, pixels; infinite behind the camera.
    """

    def __init__(self, uv_N2, points_N3, world_T_camera, camera: Camera, scale_px: float):
        """Linearises.

        Args:
            uv_N2: pixels in the pinhole camera.
            points_N3: their points in the world.
            world_T_camera: the pose (4, 4) that minimises the loss.
            camera: pinhole.
            scale_px: of the loss.
        """
        R = world_T_camera[:3, :3]
        offset_N3 = points_N3 - world_T_camera[:3, 3]
        x, y, z = (offset_N3 @ R).T
        front = z > 1e-3
        z = np.where(front, z, 1.0)
        u, v = x / z * camera.fx, y / z * camera.fy  # from the optical centre
        self._residual_2N = np.stack([u + camera.cx, v + camera.cy]) - uv_N2.T
        self.error_N = np.where(front, np.hypot(*self._residual_2N), np.inf)
        self._scale = scale_px
        self._prior_10 = np.r_[np.full(6, 1e-9), np.full(4, (scale_px / _PRIOR_SIGMA_10[-1]) ** 2)]
        _, pixel_N = np.unique(uv_N2 @ (1, 1j), return_inverse=True)
        near = self.error_N < FAR * scale_px
        weight = self._weight(self._residual_2N) * near
        self._share = near / np.maximum(np.bincount(pixel_N, weight), 1.0)[pixel_N]
        self._cell_N = _cells(uv_N2, camera)
        if len(np.unique(self._cell_N[near])) < _FEWEST_CELLS:
            self._cell_N = pixel_N
        self._cells = len(np.unique(self._cell_N[near]))
        zero = np.zeros_like(z)
        project_2N3 = np.stack(
            [
                np.stack([camera.fx / z, zero, -u / z], axis=1),
                np.stack([zero, camera.fy / z, -v / z], axis=1),
            ]
        )
        # Moving the camera by t and turning it by w about its centre (world axes) moves a point in
        # the camera by -R^T (t + w x offset).
        moved = -project_2N3 @ R.T
        by_camera = np.zeros((2, len(z), 4))
        by_camera[0, :, 0], by_camera[1, :, 1] = u, v
        by_camera[0, :, 2], by_camera[1, :, 3] = camera.fx, camera.fy
        self._J = np.concatenate([moved, np.cross(offset_N3, moved), by_camera], axis=2)

    def covariance(self) -> np.ndarray:
        """Of the pose (6, 6) of `geometry.pose_residual`."""
        return self._sandwich(self._residual_2N, _POSE)

    def camera_fit(self, steps: int = 4) -> CameraFit:
        """Frees the calibration: Gauss-Newton with the weights of the loss, from this pose.

        A Gaussian prior holds it, see `_PRIOR_SIGMA_10`.
        """
        step = np.zeros(10)
        for _ in range(steps):
            weight = self._share * self._weight(self._residual_2N + self._J @ step)
            gradient = sum(J.T @ (weight * r) for J, r in zip(self._J, self._residual_2N))
            step = -np.linalg.solve(self._information(weight), gradient)
        covariance = self._sandwich(self._residual_2N + self._J @ step, slice(0, 10))
        change = step[_CAMERA]
        distrust = float(change @ np.linalg.solve(covariance[_CAMERA, _CAMERA], change))
        return CameraFit(change, distrust, step[_POSE], covariance[_POSE, _POSE])

    def _weight(self, residual_2N: np.ndarray) -> np.ndarray:
        return 1 / (1 + (residual_2N**2).sum(axis=0) / self._scale**2)

    def _information(self, weight_N: np.ndarray, part: slice = slice(0, 10)) -> np.ndarray:
        # One axis of the image after the other: so small, BLAS does not wake its threads.
        J = self._J[:, :, part]
        information = sum((j * weight_N[:, None]).T @ j for j in J)
        return information + np.diag(self._prior_10[part])

    def _sandwich(self, residual_2N: np.ndarray, part: slice) -> np.ndarray:
        weight = self._weight(residual_2N)
        # The curvature of the Cauchy loss, averaged over the directions of the residual, is the
        # square of its weight.
        inverse = np.linalg.inv(self._information(self._share * weight**2, part))
        score_2N = self._share * weight * residual_2N
        gradient_NP = sum(J * s[:, None] for J, s in zip(self._J[:, :, part], score_2N))
        sums = np.stack([np.bincount(self._cell_N, g) for g in gradient_NP.T])
        scatter = sums @ sums.T * self._cells / max(self._cells - len(sums), 1)
        scatter += np.diag((self._prior_10 * _PRIOR_SIGMA_10)[part] ** 2)
        covariance = inverse @ scatter @ inverse + _LEAST_PX**2 * inverse
        return (covariance + covariance.T) / 2


def _cells(uv_N2: np.ndarray, camera: Camera) -> np.ndarray:
    """The number (N,) of the part of the image that each match lies in, from 0."""
    column, row = (uv_N2 // (camera.width / _CELLS)).astype(int).T
    return np.unique(1000 * row + column, return_inverse=True)[1]


def robust_sigma(error_N: np.ndarray, scale_px: float) -> float:
    """Standard deviation along one axis of the reprojection errors that are no outliers, pixels."""
    inside = error_N < 3 * scale_px
    # The median length of a 2D Gaussian is 1.177 sigma.
    return float(np.median(error_N[inside])) / 1.177 if inside.any() else scale_px
