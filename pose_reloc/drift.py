"""DriftField: from the geometry of a scene to the frame its training poses were given in.

Poses recorded by SLAM drift: neighbours agree, but the same corner seen from two ends of a walk may
stand 10 cm and 2 degrees apart. Landmarks are computed with poses that were made to agree
(`training/pose_adjustment.py`). What the user calls the map are the poses as they were given, so an
answer is carried back: the correction given-minus-adjusted is known at every training frame and is
interpolated between them by Gaussian process regression (Rasmussen & Williams 2006, eq. 2.25-26)
with a Matern 3/2 kernel over position and rotation. Exact poses give a correction of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.transform import Rotation

# Chosen on blocks of 45 red kitchen training frames held out (docs/benchmarks.md).
_LENGTH_M = 0.8
_LENGTH_RAD = np.deg2rad(45.0)
_NOISE = 0.01  # variance of the noise over that of the field


@dataclass(frozen=True)
class DriftField:
    """Anchors with known correction.

    Attributes:
        adjusted: poses (M, 4, 4) of training frames in the frame of the landmarks.
        given: the same frames' poses (M, 4, 4) in the frame of the answers.
    """

    adjusted: np.ndarray
    given: np.ndarray

    def __post_init__(self):
        R = self.given[:, :3, :3] @ self.adjusted[:, :3, :3].transpose(0, 2, 1)
        offset = self.given[:, :3, 3] - self.adjusted[:, :3, 3]
        y_M6 = np.concatenate([offset, Rotation.from_matrix(R).as_rotvec()], axis=1)
        K = _kernel(self.adjusted, self.adjusted) + _NOISE * np.eye(len(y_M6))
        factor = cho_factor(K)
        alpha = cho_solve(factor, y_M6)
        object.__setattr__(self, '_factor', factor)
        object.__setattr__(self, '_alpha', alpha)
        # Maximum-likelihood variance of the field, axis by axis.
        variance = (y_M6 * alpha).sum(axis=0) / max(len(y_M6), 1)
        object.__setattr__(self, '_variance', np.maximum(variance, 0.0))

    def without(self, mask_M: np.ndarray) -> DriftField:
        """The field without the anchors of the mask, for calibration on held-out frames."""
        return DriftField(self.adjusted[~mask_M], self.given[~mask_M])

    def to_given(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Carries a camera pose from the landmarks' frame to the frame of the answers.

        Args:
            pose: world_T_camera (4, 4) as computed from landmarks.

        Returns:
            The pose (4, 4) in the given frame, and the covariance (6, 6) of the correction.
        """
        k_M = _kernel(pose[None], self.adjusted)[0]
        correction = k_M @ self._alpha
        explained = k_M @ cho_solve(self._factor, k_M)
        moved = pose.copy()
        moved[:3, 3] += correction[:3]
        moved[:3, :3] = Rotation.from_rotvec(correction[3:]).as_matrix() @ pose[:3, :3]
        return moved, np.diag(self._variance * max(1 + _NOISE - explained, _NOISE))


def _kernel(a_N44: np.ndarray, b_M44: np.ndarray) -> np.ndarray:
    """Matern 3/2 (N, M) of the distance between poses in units of the two lengths."""
    metres = np.linalg.norm(a_N44[:, None, :3, 3] - b_M44[None, :, :3, 3], axis=2)
    trace = np.einsum('aij,bij->ab', a_N44[:, :3, :3], b_M44[:, :3, :3])
    radians = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    r = np.sqrt(3) * np.hypot(metres / _LENGTH_M, radians / _LENGTH_RAD)
    return (1 + r) * np.exp(-r)
