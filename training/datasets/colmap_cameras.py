"""COLMAP's camera models as `Camera`.

Models that OpenCV and ROS have too are converted exactly. For the others pycolmap gives the viewing
rays of a grid of pixels, and a fisheye or rational camera is fitted to them: images stay as they
are, and so does the camera of the robot. Where no such camera comes within 0.1 px, the images are
undistorted to a pinhole camera when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, DatasetError, install_hint
from training.datasets import read_image
from training.datasets.colmap_model import ColmapCamera

_FIT_LIMIT_PX = 0.1
_MAX_UNDISTORTED = 2**26  # pixels of an image whose map is kept in memory
_STRIP = 2**18  # pixels whose map is computed at once
_FISHEYE_ZERO = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ConvertedCamera:
    """A COLMAP camera in our conventions.

    Attributes:
        camera: of the images, once they are undistorted where that is needed.
        size: width and height of the image files.
        map_u, map_v: float32 (H, W), for cv2.remap: where each pixel lies in the image file; None
            where the file is used as it is.
    """

    camera: Camera
    size: tuple[int, int]
    map_u: np.ndarray | None = field(default=None, repr=False)
    map_v: np.ndarray | None = field(default=None, repr=False)

    def load_image(self, path: Path) -> np.ndarray:
        """The undistorted image, uint8 RGB (H, W, 3).

        Raises:
            DatasetError: the file is missing, damaged or of another size.
        """
        import cv2

        image = read_image(path)
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise DatasetError(
                f'{path} is {width}x{height} but its camera is {self.size[0]}x{self.size[1]}'
            )
        return cv2.remap(image, self.map_u, self.map_v, cv2.INTER_LINEAR)

    def resized(self, width: int, height: int, where: str) -> ConvertedCamera:
        """The same camera for files of the same images that were resized since.

        Raises:
            CameraError, DatasetError: the size is impossible, or too large to undistort.
        """
        import cv2

        x, y = width / self.size[0], height / self.size[1]
        target = max(1, round(self.camera.width * x)), max(1, round(self.camera.height * y))
        camera = self.camera.scaled(*target)
        if self.map_u is None:
            return ConvertedCamera(camera, (width, height))
        _check_size(*target, where)
        # Both resizings keep the edges of the image: those of the map and those it points to.
        u, v = (cv2.resize(each, target) + 0.5 for each in (self.map_u, self.map_v))
        return ConvertedCamera(camera, (width, height), u * x - 0.5, v * y - 0.5)


def convert_camera(camera: ColmapCamera, where: str) -> ConvertedCamera:
    """The camera in our conventions; what is neither exact nor fitted is undistorted.

    Raises:
        DatasetError: the parameters are impossible, or the camera sees behind itself.
    """
    try:
        size = camera.width, camera.height
        exact = _exact(camera)
        if exact:
            return ConvertedCamera(exact, size)
        source = _pycolmap_camera(camera, where)
        fitted = _fitted(source, where)
        return ConvertedCamera(fitted, size) if fitted else _undistorted(source, where)
    except CameraError as error:
        raise DatasetError(f'{where}: {error}') from error


def _exact(camera: ColmapCamera) -> Camera | None:
    p = camera.params
    one_focal = {
        'SIMPLE_PINHOLE': ('plumb_bob', ()),
        'SIMPLE_RADIAL': ('plumb_bob', (*p[3:], 0.0, 0.0, 0.0)),
        'RADIAL': ('plumb_bob', (*p[3:], 0.0, 0.0)),
        'SIMPLE_FISHEYE': ('equidistant', _FISHEYE_ZERO),
        'SIMPLE_RADIAL_FISHEYE': ('equidistant', (*p[3:], 0.0, 0.0, 0.0)),
        'RADIAL_FISHEYE': ('equidistant', (*p[3:], 0.0, 0.0)),
    }
    two_focals = {
        'PINHOLE': ('plumb_bob', ()),
        'OPENCV': ('plumb_bob', p[4:]),
        'FULL_OPENCV': ('rational_polynomial', p[4:]),
        'FISHEYE': ('equidistant', _FISHEYE_ZERO),
        'OPENCV_FISHEYE': ('equidistant', p[4:]),
    }
    if camera.model in one_focal:
        (model, distortion), (fx, fy, cx, cy) = one_focal[camera.model], (p[0], *p[:3])
    elif camera.model in two_focals:
        (model, distortion), (fx, fy, cx, cy) = two_focals[camera.model], p[:4]
    else:
        return None
    # COLMAP counts from the corner of the image, we from the centre of the first pixel.
    return Camera(camera.width, camera.height, fx, fy, cx - 0.5, cy - 0.5, distortion, model)


def _pycolmap_camera(camera: ColmapCamera, where: str):
    try:
        import pycolmap
    except ImportError as error:
        raise DatasetError(
            f'{where}: cameras of the model {camera.model} need pycolmap: '
            f'{install_hint("pycolmap")}'
        ) from error
    if camera.model == 'EQUIRECTANGULAR':
        raise DatasetError(
            f'{where}: an EQUIRECTANGULAR camera sees all around, which no single image plane '
            'holds; cut perspective views from the images first'
        )
    # The checks of Camera, before pycolmap allocates anything of this size.
    Camera(camera.width, camera.height, camera.params[0], camera.params[0], 0, 0)
    try:
        source = pycolmap.Camera(
            model=camera.model, width=camera.width, height=camera.height, params=camera.params
        )
    except (ValueError, TypeError, RuntimeError, AttributeError):
        source = None
    if not hasattr(source, 'cam_ray_from_img'):
        raise DatasetError(
            f'{where}: this pycolmap is too old for the model {camera.model}: '
            f'{install_hint("--upgrade", "pycolmap")}'
        )
    return source


def _fitted(source, where: str) -> Camera | None:
    """The camera that projects pycolmap's viewing rays to their pixels; None where none does."""
    u, v = np.meshgrid(np.linspace(0, source.width, 25), np.linspace(0, source.height, 19))
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    rays = source.cam_ray_from_img(pixels)
    front = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 0.02)
    if front.mean() < 0.5:
        raise DatasetError(f'{where}: the camera sees behind itself in most of its image')
    rays, uv = rays[front], pixels[front] - 0.5
    for model, coefficients in (('equidistant', 4), ('rational_polynomial', 12)):
        camera = _fit(rays, uv, (source.width, source.height), model, coefficients)
        error = np.linalg.norm(camera.project(rays) - uv, axis=1)
        if np.all(error < _FIT_LIMIT_PX):
            return camera
    return None


def _fit(rays, uv, size, model: str, coefficients: int) -> Camera:
    """Focal lengths, centre and distortion that best project the rays (N, 3) to pixels (N, 2)."""
    from scipy.optimize import least_squares

    scale = max(size) / 2
    start = np.zeros(4 + coefficients)
    start[:4] = 1.0, 1.0, (size[0] - 1) / 2 / scale, (size[1] - 1) / 2 / scale

    def camera(x) -> Camera:
        distortion = x[4:] if np.any(x[4:]) else np.full(coefficients, 1e-15)
        focal = np.maximum(np.abs(x[:2]), 1e-3) * scale
        numbers = [float(n) for n in (*focal, *(x[2:4] * scale))]
        return Camera(*size, *numbers, tuple(distortion), model)

    def residual(x) -> np.ndarray:
        error = np.nan_to_num((camera(x).project(rays) - uv) / scale, nan=10.0)
        return np.clip(error, -10, 10).ravel()

    return camera(least_squares(residual, start, x_scale='jac', max_nfev=60).x)


def _undistorted(source, where: str) -> ConvertedCamera:
    """The pinhole camera that COLMAP itself would undistort to, and the way there."""
    import pycolmap

    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), source)
    _check_size(pinhole.width, pinhole.height, where)
    fx, fy, cx, cy = (float(p) for p in pinhole.params)
    camera = Camera(pinhole.width, pinhole.height, fx, fy, cx - 0.5, cy - 0.5)
    maps = np.empty((2, camera.height, camera.width), np.float32)
    rows = max(1, _STRIP // camera.width)
    for top in range(0, camera.height, rows):
        strip = maps[:, top : top + rows]
        v, u = np.mgrid[top : top + strip.shape[1], : camera.width]
        pixels = np.stack([u.ravel(), v.ravel()], axis=1)
        uv = source.img_from_cam(camera.unproject(pixels, np.ones(len(pixels)))) - 0.5
        with np.errstate(over='ignore'):  # beyond float32 is infinite
            strip[:] = uv.T.reshape(strip.shape)
        if not np.isfinite(strip).all():
            raise DatasetError(f'{where}: pycolmap cannot undistort this camera')
    return ConvertedCamera(camera, (source.width, source.height), maps[0], maps[1])


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > _MAX_UNDISTORTED:
        raise DatasetError(
            f'{where}: {width}x{height} pixels are too many to undistort while images are loaded; '
            'use `colmap image_undistorter` first'
        )
