"""A pinhole camera with lens distortion: scaling, undistortion, projection.

Pixel (u, v) = (0, 0) is the centre of the top left pixel, as in OpenCV and ROS. Camera axes are
optical: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from pose_reloc.errors import CameraError

# Model name -> admissible numbers of coefficients. The first two are OpenCV's (k1 k2 p1 p2 k3 ...),
# the last OpenCV's fisheye model (k1 k2 k3 k4), by the names of sensor_msgs/CameraInfo.
_MODELS = {
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}
# From the axis of the lens. Farther out a pixel of a fisheye lens becomes so many of its pinhole, 9
# at 70 deg and 130 at 85 deg, that a pose from such errors is far less sure than it seems.
_WIDEST = np.tan(np.deg2rad(70.0))
_MISSED_PX = 1.0  # a ray that comes back farther from its pixel is not the ray of it
MAX_PIXELS = 2**28  # of an image; more is damage or malice, and memory that nobody has


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one camera.

    Attributes:
        width, height: image size in pixels.
        fx, fy, cx, cy: focal lengths and principal point in pixels.
        distortion: coefficients of `distortion_model`; empty or all zero for a rectified image,
            but four zeros of 'equidistant' are an ideal fisheye lens.
        distortion_model: 'plumb_bob', 'rational_polynomial' or 'equidistant' (fisheye).

    Raises:
        CameraError: sizes or focal lengths that no camera has, NaN, or an unknown model.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    distortion_model: str = 'plumb_bob'

    def __post_init__(self):
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.all(np.isfinite(numbers)):
            raise CameraError(f'the camera intrinsics hold NaN or infinity: {numbers}')
        if not (1 <= self.width <= 65536 and 1 <= self.height <= 65536) or (
            self.width * self.height > MAX_PIXELS
        ):
            raise CameraError(f'the camera has an impossible size: {self.width}x{self.height}')
        if self.fx <= 0 or self.fy <= 0:
            raise CameraError(
                f'the camera has an impossible focal length: fx={self.fx}, fy={self.fy}; '
                'calibrate it (camera_info with zeros means an uncalibrated camera)'
            )
        object.__setattr__(self, 'distortion', tuple(float(d) for d in self.distortion))
        # An ideal fisheye puts a ray at f times its angle, a pinhole at f times the tangent of it.
        fisheye = self.distortion_model == 'equidistant' and len(self.distortion) == 4
        if not any(self.distortion) and not fisheye:
            object.__setattr__(self, 'distortion', ())
            object.__setattr__(self, 'distortion_model', 'plumb_bob')
        elif self.distortion_model not in _MODELS:
            raise CameraError(
                f'unknown distortion model {self.distortion_model!r}; known: {", ".join(_MODELS)}'
            )
        elif len(self.distortion) not in _MODELS[self.distortion_model]:
            raise CameraError(
                f'{self.distortion_model} takes {_MODELS[self.distortion_model]} coefficients, '
                f'got {len(self.distortion)}'
            )

    @classmethod
    def from_camera_info(cls, width, height, k, d=(), model='plumb_bob') -> Camera:
        """From the fields of sensor_msgs/CameraInfo: K (9 numbers, row-major), D and the model."""
        k = np.asarray(k, dtype=np.float64).reshape(-1)
        if k.size != 9:
            raise CameraError(f'camera_info.k must hold 9 numbers, got {k.size}')
        d = tuple(float(x) for x in d)
        if model in ('', 'plumb_bob') and len(d) in (8, 12, 14):
            model = 'rational_polynomial'
        return cls(int(width), int(height), k[0], k[4], k[2], k[5], d, model or 'plumb_bob')

    @classmethod
    def from_dict(cls, values: dict) -> Camera:
        """Inverse of `to_dict`.

        Raises:
            CameraError: a field is missing, unknown or not a number.
        """
        try:
            fields = dict(values)
            for name, kind in (('width', int), ('height', int)):
                fields[name] = kind(fields[name])
            for name in ('fx', 'fy', 'cx', 'cy'):
                fields[name] = float(fields[name])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CameraError(f'not a camera: {values!r:.200} ({error!s:.200})') from error

    def to_dict(self) -> dict:
        """The fields as plain JSON types."""
        return asdict(self)

    @property
    def K(self) -> np.ndarray:
        """Calibration matrix (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def is_pinhole(self) -> bool:
        """True when no distortion remains."""
        return not self.distortion

    def scaled(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to width x height (edges kept, centres shift)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=int(width),
            height=int(height),
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def undistorted(self) -> Camera:
        """The pinhole camera with the same matrix and size."""
        return replace(self, distortion=(), distortion_model='plumb_bob')

    def undistort_map(self, target: Camera):
        """Maps for cv2.remap that turn an image of this camera into one of the pinhole `target`.

        Returns:
            Two float32 arrays (target.height, target.width): source u and v of each target pixel.
        """
        import cv2

        size = (target.width, target.height)
        if self.distortion_model == 'equidistant' and self.distortion:
            D = np.asarray(self.distortion)
            return cv2.fisheye.initUndistortRectifyMap(
                self.K, D, np.eye(3), target.K, size, cv2.CV_32FC1
            )
        D = np.asarray(self.distortion) if self.distortion else None
        return cv2.initUndistortRectifyMap(self.K, D, None, target.K, size, cv2.CV_32FC1)

    def project(self, points_N3) -> np.ndarray:
        """Pixels (N, 2) of points (N, 3) in camera coordinates; NaN for points with z <= 0."""
        import cv2

        points_N3 = np.asarray(points_N3, dtype=np.float64).reshape(-1, 3)
        uv = np.full((len(points_N3), 2), np.nan)
        front = points_N3[:, 2] > 0
        if not front.any():
            return uv
        if self.is_pinhole:
            xy = points_N3[front, :2] / points_N3[front, 2:]
            uv[front] = xy * (self.fx, self.fy) + (self.cx, self.cy)
        else:
            project = (
                cv2.fisheye.projectPoints
                if self.distortion_model == 'equidistant'
                else cv2.projectPoints
            )
            zero = np.zeros(3)
            points = points_N3[front].reshape(-1, 1, 3)
            found, _ = project(points, zero, zero, self.K, np.asarray(self.distortion))
            uv[front] = found.reshape(-1, 2)
        return uv

    def undistort(self, uv_N2) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 2) as the `undistorted` camera sees them, and which of these to rely on (N,).

        Not on rays more than 70 deg from the axis, nor on those that do not come back to their
        pixel: beyond 90 deg, and where distortion cannot be undone, OpenCV answers with others.
        """
        rays = self.unproject(uv_N2, np.ones(len(uv_N2)))
        uv = rays[:, :2] * (self.fx, self.fy) + (self.cx, self.cy)
        if self.is_pinhole:
            return uv, np.ones(len(uv), dtype=bool)
        missed = np.linalg.norm(self.project(rays) - uv_N2, axis=1)
        return uv, (missed < _MISSED_PX) & (np.hypot(rays[:, 0], rays[:, 1]) < _WIDEST)

    def unproject(self, uv_N2, depth_N) -> np.ndarray:
        """Points (N, 3) in camera coordinates of pixels (N, 2) at depth z (N), metres."""
        import cv2

        uv_N2 = np.asarray(uv_N2, dtype=np.float64).reshape(-1, 2)
        depth_N = np.asarray(depth_N, dtype=np.float64).reshape(-1, 1)
        if self.is_pinhole:
            xy = (uv_N2 - (self.cx, self.cy)) / (self.fx, self.fy)
        elif len(uv_N2) == 0:
            xy = uv_N2  # OpenCV refuses empty input
        else:
            D, source = np.asarray(self.distortion), uv_N2.reshape(-1, 1, 2)
            if self.distortion_model == 'equidistant':
                xy = cv2.fisheye.undistortPoints(source, self.K, D)
            else:
                # Five iterations, the default of undistortPoints, leave errors of up to 0.5 %.
                stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-12)
                xy = cv2.undistortPointsIter(source, self.K, D, None, None, stop)
            xy = xy.reshape(-1, 2)
        return np.concatenate([xy * depth_N, depth_N], axis=1)
