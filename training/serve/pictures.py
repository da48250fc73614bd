"""From what a browser uploads to an image and its camera; everything in it may be hostile."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, PoseRelocError
from pose_reloc.ros.messages import camera_for_image

# By content type. No other decoder is ever asked.
FORMATS = {'image/jpeg': 'JPEG', 'image/png': 'PNG', 'image/webp': 'WEBP'}
MAX_PIXELS = 50_000_000  # a small file may unfold to any size

_EXIF_IFD, _FOCAL_35MM = 0x8769, 0xA405
_DIAGONAL_35MM = float(np.hypot(36, 24))


class PictureError(PoseRelocError):
    """An uploaded picture cannot be used."""


class PictureTooLargeError(PictureError):
    """It has more pixels than are decoded."""


@dataclass(frozen=True)
class Picture:
    """A decoded upload.

    Attributes:
        image: uint8 RGB (H, W, 3), upright as its EXIF orientation says.
        focal_px: focal length in pixels from EXIF; None where the file does not say.
    """

    image: np.ndarray
    focal_px: float | None


def read_picture(data: bytes) -> Picture:
    """Decodes a JPEG, PNG or WebP.

    Raises:
        PictureError: it is none of them, or it is damaged.
        PictureTooLargeError: more than `MAX_PIXELS`.
    """
    too_large = f'the picture has more than {MAX_PIXELS // 1_000_000} million pixels; shrink it'
    try:
        # Reads the header only.
        with Image.open(io.BytesIO(data), formats=list(FORMATS.values())) as file:
            if file.width * file.height > MAX_PIXELS:
                raise PictureTooLargeError(too_large)
            focal_px = _exif_focal(file)
            image = _rgb(ImageOps.exif_transpose(file))
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(too_large) from error
    except Exception as error:  # a decoder raises whatever damaged data makes it raise
        raise PictureError(
            'this is not a whole JPEG, PNG or WebP picture; export it again'
        ) from error
    return Picture(image, focal_px)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3)."""
    if image.mode.startswith('I'):  # 16-bit grey, which `convert` would clip at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.array(image.convert('RGB'))


def _exif_focal(file: Image.Image) -> float | None:
    """Focal length in pixels from the 35 mm equivalent, a ratio of diagonals (CIPA DCG-001)."""
    value = file.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_35MM)
    if not isinstance(value, int) or not 1 <= value <= 2000:
        return None
    return value * float(np.hypot(file.width, file.height)) / _DIAGONAL_35MM


def camera_of(
    picture: Picture, scene_camera: Camera, focal_px: float | None, fov_deg: float | None
) -> tuple[Camera, str]:
    """The camera that took a picture, and where it is known from, for people.

    Args:
        picture: the upload.
        scene_camera: of the training images.
        focal_px: focal length in pixels as a person gave it.
        fov_deg: horizontal field of view as a person gave it, degrees.

    Raises:
        CameraError: a number that no camera has, or nothing is known of this camera.
    """
    height, width = picture.image.shape[:2]
    if fov_deg is not None:
        if not 1 <= fov_deg <= 170:
            raise CameraError(f'the field of view must lie in [1, 170] degrees, got {fov_deg:g}')
        focal_px = width / 2 / np.tan(np.deg2rad(fov_deg) / 2)
    if focal_px is not None:
        return _pinhole(width, height, focal_px), f'focal length {focal_px:.0f} px, as given'
    same_size = (width, height) == (scene_camera.width, scene_camera.height)
    if picture.focal_px is not None and not same_size:
        text = f'focal length {picture.focal_px:.0f} px, from EXIF'
        return _pinhole(width, height, picture.focal_px), text
    try:
        return camera_for_image(scene_camera, picture.image), 'that of the training images'
    except CameraError as error:
        raise CameraError(
            f'the picture is {width}x{height}, another shape than the training images '
            f'({scene_camera.width}x{scene_camera.height}), so another camera took it: '
            'give its focal length or field of view'
        ) from error


def _pinhole(width: int, height: int, focal_px: float) -> Camera:
    return Camera(width, height, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)
