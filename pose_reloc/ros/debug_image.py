"""The picture on ~/debug_image: which landmarks were found, and how well the pose explains them."""

from __future__ import annotations

import numpy as np

from pose_reloc.geometry import invert_pose

_GREEN, _RED, _WHITE, _BLACK = (80, 220, 80), (230, 60, 60), (255, 255, 255), (0, 0, 0)
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel


def draw(image_HW3: np.ndarray, camera, estimate) -> np.ndarray:
    """A copy of the image with the inlier landmarks and a line of text.

    A circle marks where a landmark was seen, a line from it leads to where the estimated pose puts
    the landmark: good poses have circles without lines.

    Args:
        image_HW3: uint8 RGB.
        camera: the `Camera` of this image.
        estimate: its `PoseEstimate`.
    """
    import cv2

    picture = np.ascontiguousarray(image_HW3).copy()
    unit = max(1, round(picture.shape[1] / 640))
    if estimate.matches is not None and len(estimate.matches.uv):
        c_T_w = invert_pose(estimate.world_T_camera)
        projected = camera.project(estimate.matches.points @ c_T_w[:3, :3].T + c_T_w[:3, 3])
        for seen, put in zip(_fixed(estimate.matches.uv), _fixed(projected)):
            cv2.line(picture, seen, put, _RED, unit, cv2.LINE_AA, _SHIFT)
            cv2.circle(picture, seen, (3 * unit) << _SHIFT, _GREEN, unit, cv2.LINE_AA, _SHIFT)
    size, origin = 0.5 * unit, (6 * unit, picture.shape[0] - 8 * unit)
    for colour, thickness in ((_BLACK, 3 * unit), (_WHITE, unit)):
        cv2.putText(
            picture, _caption(estimate), origin, cv2.FONT_HERSHEY_SIMPLEX, size, colour,
            thickness, cv2.LINE_AA,
        )  # fmt: skip
    return picture


def _caption(estimate) -> str:
    if estimate.reasons:
        return f'{estimate.status.value}: {", ".join(estimate.reasons)}'
    std = np.sqrt(np.diag(estimate.covariance_66))
    position, rotation = std[:3].max(), np.degrees(std[3:].max())
    return (
        f'{estimate.status.value}, {estimate.inliers} landmarks, '
        f'sigma {position:.2f} m {rotation:.1f} deg'
    )


def _fixed(uv_N2: np.ndarray) -> list[tuple[int, int]]:
    """Pixels as OpenCV's fixed-point numbers, kept near the image so that they fit."""
    # A point behind the camera (NaN) cannot belong to an inlier; drawn far off, it would show.
    uv = np.clip(np.nan_to_num(uv_N2, nan=-1e4), -1e4, 1e5)
    return [tuple(int(v) for v in row) for row in np.round(uv * (1 << _SHIFT))]
