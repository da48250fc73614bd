"""DriftField: from the geometry of a scene to the frame its training poses were given in.

Poses recorded by SLAM drift: neighbours agree, but the same corner seen from two ends of a walk may
stand 10 cm and 2 degrees apart. Landmarks are computed with poses that were made to agree
(`training/pose_adjustment.py`). What the user calls the map are the poses as they were given, so an
answer is carried back: the correction given-minus-adjusted is known at every training frame and is
interpolated between them by Gaussian process regression (Rasmussen & Williams 2006, eq. 2.25-26)
with a Matern 3/2 kernel over position and rotation. How much of the corrections is drift, which
neighbours share, and how much is noise, is told by the marginal likelihood (section 5.4): noise
taken for drift would make answers far from all training frames look much worse than they are.
Exact poses give a correction of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import pose_residual

# Chosen on blocks of 45 red kitchen training frames held out (docs/experiments.md).
_LENGTH_M = 0.85
_LENGTH_RAD = np.deg2rad(60.0)
# Variance of the noise over that of the field, to choose from. Less than the first only says that
# consecutive frames err alike: with it, the stated error no longer fits at every distance.
_NOISES = np.geomspace(0.01, 1.0, 5)
_LEAST_VARIANCE = 1e-20  # m^2 or rad^2, of exact poses


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
        y_M6 = pose_residual(self.given, self.adjusted)
        values_M, vectors_MM = np.linalg.eigh(_kernel(self.adjusted, self.adjusted))
        projected_M6 = vectors_MM.T @ y_M6
        fits = [_Fit.of(values_M, projected_M6, noise) for noise in _NOISES]
        best = max(fits, key=lambda fit: fit.likelihood)
        object.__setattr__(self, '_fit', best)
        object.__setattr__(self, '_vectors', vectors_MM)
        object.__setattr__(self, '_alpha', vectors_MM @ (projected_M6 / best.values_M[:, None]))

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
        # Not `@`: BLAS would wake threads that keep spinning where the next network wants to run.
        projected_M = np.einsum('m,mn->n', k_M, self._vectors)
        explained = (projected_M**2 / self._fit.values_M).sum()
        moved = pose.copy()
        moved[:3, 3] += correction[:3]
        moved[:3, :3] = Rotation.from_rotvec(correction[3:]).as_matrix() @ pose[:3, :3]
        noise = self._fit.noise
        return moved, np.diag(self._fit.variance_6 * max(1 + noise - explained, noise))


@dataclass(frozen=True)
class _Fit:
    """The field with one share of noise.

    Attributes:
        noise: variance of the noise over that of the field.
        values_M: eigenvalues of the kernel matrix with the noise on its diagonal.
        variance_6: of the field, axis by axis: that of the greatest likelihood.
        likelihood: logarithm of the marginal likelihood, without its constant.
    """

    noise: float
    values_M: np.ndarray
    variance_6: np.ndarray
    likelihood: float

    @classmethod
    def of(cls, values_M: np.ndarray, projected_M6: np.ndarray, noise: float) -> _Fit:
        """From the eigenvalues of the kernel matrix and the corrections along its eigenvectors."""
        values_M = np.maximum(values_M, 0.0) + noise
        variance_6 = (projected_M6**2 / values_M[:, None]).sum(axis=0) / max(len(values_M), 1)
        likelihood = len(values_M) * np.log(np.maximum(variance_6, _LEAST_VARIANCE)).sum()
        likelihood += len(variance_6) * np.log(values_M).sum()
        return cls(noise, values_M, variance_6, -likelihood / 2)


def _kernel(a_N44: np.ndarray, b_M44: np.ndarray) -> np.ndarray:
    """Matern 3/2 (N, M) of the distance between poses in units of the two lengths."""
    metres = np.linalg.norm(a_N44[:, None, :3, 3] - b_M44[None, :, :3, 3], axis=2)
    trace = np.einsum('aij,bij->ab', a_N44[:, :3, :3], b_M44[:, :3, :3])
    radians = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    r = np.sqrt(3) * np.hypot(metres / _LENGTH_M, radians / _LENGTH_RAD)
    return (1 + r) * np.exp(-r)
