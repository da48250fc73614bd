"""Steps from one recorded pose to the next that are corrections, not motions."""

from __future__ import annotations

import numpy as np

# Metres and radians per second.
JUMP = np.array([10.0, np.deg2rad(720)])


def is_jump(speed, before, after) -> np.ndarray:
    """Which steps were corrections (a loop closure, a relocalization): nobody was half-way.

    They are suddenly faster by more than `JUMP` than those around them: a steady drive is no jump.
    The slower side counts, because one jump may follow another. Where both sides are unknown,
    nothing can be said.

    Args:
        speed: of the steps (..., 2): m/s, rad/s.
        before, after: of the steps beside them; NaN where unknown.

    Returns:
        (..., 2), for translation and rotation.
    """
    return speed - np.fmin(before, after) > JUMP
