"""An image to the network's input. The one implementation, used by training and by the robot.

An image is first brought to the scene's network camera (rectified, same field of view, small) as
uint8; that is what the training cache stores. Normalisation happens on the device.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError

# Mean and standard deviation of ImageNet's images in RGB, in [0, 1] (torchvision's convention).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def network_camera(camera: Camera, short_side: int) -> Camera:
    """The pinhole camera of the network's input: `camera` rectified, its short side resized.

    The aspect ratio is kept and nothing is cropped: a crop would move the optical centre.
    """
    scale = short_side / min(camera.width, camera.height)
    width, height = round(camera.width * scale), round(camera.height * scale)
    return camera.undistorted().scaled(width, height)


def to_network_image(image_HW3: np.ndarray, camera: Camera, target: Camera) -> np.ndarray:
    """Turns an image of `camera` into the image that the pinhole `target` would have taken.

    Args:
        image_HW3: uint8 RGB, of the size that `camera` says.
        camera: the camera that took it, with distortion.
        target: the network camera of the scene. Rays outside the image become black.

    Returns:
        uint8 RGB (target.height, target.width, 3), C-contiguous.

    Raises:
        CameraError: the image is not HxWx3 uint8 of the camera's size.
    """
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
        raise CameraError(
            f'expected an RGB uint8 image HxWx3, got {image_HW3.dtype} {image_HW3.shape}'
        )
    if image_HW3.shape[:2] != (camera.height, camera.width):
        raise CameraError(
            f'the image is {image_HW3.shape[1]}x{image_HW3.shape[0]} but its camera is '
            f'{camera.width}x{camera.height}; give the camera_info of this very image'
        )
    sizes, maps = _plan(camera, target)
    for size in sizes:
        image_HW3 = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)
    if maps:
        return cv2.remap(image_HW3, *maps, cv2.INTER_LINEAR)
    size = (target.width, target.height)
    return cv2.resize(image_HW3, size, interpolation=cv2.INTER_LINEAR)


@lru_cache(maxsize=8)
def _plan(camera: Camera, target: Camera):
    """The sizes to average an image down to, one after another, and the maps to sample it with.

    Each size is half of the one before, while that is at least twice too large: what is sampled
    without averaging would alias. Means of 2x2 pixels are ten times as fast as those of fractions
    of pixels. No maps: a resize does it.
    """
    sizes, small = [], camera
    while 2 * target.fx <= small.fx and min(small.width, small.height) > 1:
        sizes.append((small.width // 2, small.height // 2))
        small = camera.scaled(*sizes[-1])
    if small.is_pinhole and _same_rays(small.scaled(target.width, target.height), target):
        return sizes, None
    return sizes, small.undistort_map(target)


def _same_rays(a: Camera, b: Camera) -> bool:
    """True when the two cameras see each ray within half a pixel of each other."""
    corners = np.array([[0, 0], [a.width - 1, a.height - 1]], dtype=float)
    rays = (corners - (a.cx, a.cy)) / (a.fx, a.fy)
    return bool(np.all(np.abs(rays * (b.fx, b.fy) + (b.cx, b.cy) - corners) < 0.5))


def normalize(image_BHW3):
    """uint8 images (B, H, W, 3) as a torch tensor to the network's input (B, 3, H, W).

    Runs on the tensor's device; the result is float32 in channels_last memory order, which is the
    order the bytes already have.
    """
    mean, std = _statistics(image_BHW3.device)
    return ((image_BHW3.float() - mean) / std).permute(0, 3, 1, 2)


_STATISTICS: dict = {}  # by device: copied there only once


def _statistics(device):
    """Mean and standard deviation in grey levels, on the device."""
    if device not in _STATISTICS:
        import torch

        # Ordinary tensors, whatever the mode of the first caller: they serve training too.
        with torch.inference_mode(False):
            _STATISTICS[device] = tuple(
                torch.tensor(x, device=device) * 255 for x in (IMAGENET_MEAN, IMAGENET_STD)
            )
    return _STATISTICS[device]
