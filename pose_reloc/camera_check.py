"""Whether the calibration of a camera fits the map, told from many answers.

One answer may err: landmarks that are a centimetre off look like another focal length. Most of
many answers do not.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.pnp import CameraFit

_ANSWERS = 30
# With the right calibration up to a half of the answers object where the map is rough, with a wrong
# one nearly all (docs/benchmarks.md).
_COMPLAIN, _CALM = 0.75, 0.5
_LEAST_CHANGE = 0.005  # of the focal length: less does no harm


class CameraCheck:
    """Listens to refined answers and says when their camera cannot be right."""

    def __init__(self):
        self._camera: tuple[float, ...] | None = None
        self._fits: deque[CameraFit] = deque(maxlen=_ANSWERS)
        self._complaint = ''

    def add(self, camera: Camera, fit: CameraFit) -> str:
        """Takes an answer.

        Args:
            camera: that it was computed with; another one starts anew.
            fit: of its matches.

        Returns:
            A sentence for people while the calibration does not fit; empty otherwise.
        """
        intrinsics = camera.fx, camera.fy, camera.cx, camera.cy
        if intrinsics != self._camera:
            self._camera, self._complaint = intrinsics, ''
            self._fits.clear()
        self._fits.append(fit)
        if len(self._fits) == _ANSWERS:
            self._judge()
        return self._complaint

    def _judge(self) -> None:
        share = np.mean([fit.looks_wrong for fit in self._fits])
        change = np.median([fit.change for fit in self._fits], axis=0)
        if share < _CALM or np.abs(change).max() < _LEAST_CHANGE:
            self._complaint = ''
        elif share >= _COMPLAIN:
            fx, fy, cx, cy = self._camera
            fits = (
                fx * np.exp(change[0]), fy * np.exp(change[1]),
                cx + fx * change[2], cy + fy * change[3],
            )  # fmt: skip
            self._complaint = (
                f'the calibration of the camera ({_pixels(self._camera)}) does not fit the map, '
                f'{_pixels(fits)} would: poses are off. Check that camera_info is of this lens, '
                'this image size and this rectification, or calibrate'
            )


def _pixels(intrinsics) -> str:
    return ', '.join(f'{n} {x:.0f}' for n, x in zip(('fx', 'fy', 'cx', 'cy'), intrinsics))
