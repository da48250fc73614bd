"""The rotation, translation and scale that carry one set of points onto another (Umeyama 1991)."""

from __future__ import annotations

import numpy as np

# Relative to the largest spread: below it a direction counts as one in which nothing lies.
_NO_EXTENT = 1e-9


def umeyama(source_N3, target_N3, with_scale: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimises sum ‖target - (s R source + t)‖² over R, t and, if asked for, s.

    Umeyama, Least-squares estimation of transformation parameters between two point patterns
    (PAMI 1991), equations 39 to 42. Every point counts alike: one outlier spoils the result.

    Args:
        source_N3, target_N3: points (N, 3) of the same N things; N >= 3, not all on one line.
        with_scale: False keeps s = 1.

    Returns:
        R (3, 3) a rotation, t (3,), s: target = s R source + t.

    Raises:
        ValueError: the sets differ in shape, or do not determine a rotation.
    """
    source, target = np.asarray(source_N3, float), np.asarray(target_N3, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise ValueError(f'expected two arrays (N, 3), got {source.shape} and {target.shape}')
    if len(source) < 3:
        raise ValueError(f'{len(source)} points do not determine a rotation: 3 are needed')
    mean_source, mean_target = source.mean(0), target.mean(0)
    centred_source, centred_target = source - mean_source, target - mean_target
    for centred in (centred_source, centred_target):
        spread = np.linalg.svd(centred, compute_uv=False)
        if spread[1] <= _NO_EXTENT * max(spread[0], np.finfo(float).tiny):
            raise ValueError('points on one line (or all in one place) do not determine a rotation')
    U, strength, Vt = np.linalg.svd(centred_target.T @ centred_source)
    # Where a mirror image would fit better, the axis that matters least is turned round.
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = (U * sign) @ Vt
    s = float((strength * sign).sum() / (centred_source**2).sum()) if with_scale else 1.0
    return R, mean_target - s * R @ mean_source, s
