"""Between ROS messages and arrays: images, camera_info, poses, stamps.

Reading works on any object with the fields of the message (rclpy's, or a bag reader's), so this
module imports no ROS package at its top. Quaternions are xyzw in messages and wxyz elsewhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError, PoseRelocError
from pose_reloc.geometry import (
    pose_matrix,
    quaternion_from_rotation,
    rotation_from_quaternion,
    wxyz_from_xyzw,
    xyzw_from_wxyz,
)

# Larger than any camera's picture; a message that claims more is damaged or hostile.
MAX_PIXELS = 100_000_000
_MAX_SIDE = 65_535

# Encoding -> (element type, channels). Names of sensor_msgs/image_encodings.
_LAYOUTS = {
    'rgb8': ('u1', 3),
    'bgr8': ('u1', 3),
    '8UC3': ('u1', 3),
    'rgba8': ('u1', 4),
    'bgra8': ('u1', 4),
    '8UC4': ('u1', 4),
    'mono8': ('u1', 1),
    '8UC1': ('u1', 1),
    'rgb16': ('u2', 3),
    'bgr16': ('u2', 3),
    'mono16': ('u2', 1),
    'yuv422': ('u1', 2),
    'uyvy': ('u1', 2),
    'yuv422_yuy2': ('u1', 2),
    'yuyv': ('u1', 2),
    'bayer_rggb8': ('u1', 1),
    'bayer_bggr8': ('u1', 1),
    'bayer_gbrg8': ('u1', 1),
    'bayer_grbg8': ('u1', 1),
    'bayer_rggb16': ('u2', 1),
    'bayer_bggr16': ('u2', 1),
    'bayer_gbrg16': ('u2', 1),
    'bayer_grbg16': ('u2', 1),
}
# OpenCV names a Bayer pattern by its second row, ROS by its first.
_BAYER = {
    'rggb': 'COLOR_BayerBG2RGB',
    'bggr': 'COLOR_BayerRG2RGB',
    'gbrg': 'COLOR_BayerGR2RGB',
    'grbg': 'COLOR_BayerGB2RGB',
}
_TO_RGB = {
    'bgr8': 'COLOR_BGR2RGB',
    '8UC3': 'COLOR_BGR2RGB',
    'bgr16': 'COLOR_BGR2RGB',
    'rgba8': 'COLOR_RGBA2RGB',
    'bgra8': 'COLOR_BGRA2RGB',
    '8UC4': 'COLOR_BGRA2RGB',
    'mono8': 'COLOR_GRAY2RGB',
    '8UC1': 'COLOR_GRAY2RGB',
    'mono16': 'COLOR_GRAY2RGB',
    'yuv422': 'COLOR_YUV2RGB_UYVY',
    'uyvy': 'COLOR_YUV2RGB_UYVY',
    'yuv422_yuy2': 'COLOR_YUV2RGB_YUY2',
    'yuyv': 'COLOR_YUV2RGB_YUY2',
}


class MessageError(PoseRelocError):
    """A message that cannot be used: an unknown encoding, too little data, an impossible pose."""


def stamp_ns(stamp) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp_message(ns: int):
    """builtin_interfaces/Time of nanoseconds."""
    from builtin_interfaces.msg import Time

    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def plain_name(image_topic: str) -> str:
    """The name of an image topic without that of its transport."""
    return image_topic.removesuffix('/compressed').removesuffix('/compressedDepth')


def is_rectified(image_topic: str) -> bool:
    """True for names such as image_rect_color: their camera is P of camera_info, not K and D."""
    words = plain_name(image_topic).rsplit('/', 1)[-1].split('_')
    return 'rect' in words or 'rectified' in words


def is_compressed(message) -> bool:
    """True for a sensor_msgs/CompressedImage, False for a sensor_msgs/Image."""
    return hasattr(message, 'format')


def image_from_message(message) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a sensor_msgs/Image or CompressedImage, by the functions below."""
    return image_from_compressed(message) if is_compressed(message) else image_from_raw(message)


def image_from_raw(message) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a sensor_msgs/Image.

    Row padding and byte order are respected. rgb8 without padding is a view of the message's own
    memory (read-only or shared): do not write into it. 16-bit images are scaled to 8 bit.

    Raises:
        MessageError: unknown encoding, impossible size or step, or fewer bytes than they need.
    """
    import cv2

    height, width, encoding = int(message.height), int(message.width), message.encoding
    _check_size(width, height)
    if encoding not in _LAYOUTS:
        return _image_through_cv_bridge(message)
    kind, channels = _LAYOUTS[encoding]
    dtype = np.dtype(kind).newbyteorder('>' if message.is_bigendian else '<')
    step = int(message.step) or width * channels * dtype.itemsize
    pixels = _view(message.data, dtype, (height, width, channels), step)
    if dtype.itemsize == 2:
        pixels = _eight_bit(pixels.astype(np.uint16)).reshape(height, width, channels)
    if encoding in ('rgb8', 'rgb16'):
        return np.ascontiguousarray(pixels)
    if encoding.startswith('bayer'):
        return _demosaiced(np.ascontiguousarray(pixels), encoding)
    code = _TO_RGB[encoding]
    if code.startswith('COLOR_YUV') and width % 2:
        raise MessageError(f'a {encoding} image needs an even width, got {width}')
    return cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, code))


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """uint8 of uint16, the whole range."""
    import cv2

    return cv2.convertScaleAbs(pixels, alpha=255 / 65535)


def _demosaiced(mosaic: np.ndarray, encoding: str) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a uint8 mosaic (H, W), `encoding` such as bayer_rggb8."""
    import cv2

    height, width = mosaic.shape[:2]
    if width < 2 or height < 2:
        raise MessageError(f'a {width}x{height} image is too small for a Bayer pattern')
    return cv2.cvtColor(mosaic, getattr(cv2, _BAYER[encoding[6:10]]))


def _image_through_cv_bridge(message) -> np.ndarray:
    """Encodings that are not ours, such as nv21, where a ROS distribution has cv_bridge."""
    problem = f'image encoding {message.encoding!r} cannot be used'
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise MessageError(
            f'{problem}; supported: {", ".join(_LAYOUTS)}, and more with cv_bridge installed'
        ) from None
    try:
        image = np.asarray(CvBridge().imgmsg_to_cv2(message, 'rgb8'))
    except Exception as error:  # its own, TypeError of numpy, cv2.error, RuntimeError of boost
        raise MessageError(f'{problem}: cv_bridge says {error}') from error
    if image.dtype != np.uint8 or image.ndim != 3:
        raise MessageError(f'{problem}: cv_bridge makes {image.dtype} {image.shape} of it')
    return image


def _view(data, dtype, shape, step: int) -> np.ndarray:
    """The pixels (H, W, C) inside a message's bytes, without copying."""
    height, width, channels = shape
    row = width * channels * dtype.itemsize
    buffer = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    needed = step * (height - 1) + row
    if step < row or buffer.size < needed:
        raise MessageError(
            f'a {width}x{height} image with {channels * dtype.itemsize} bytes per pixel and step '
            f'{step} needs {needed} bytes and a step of at least {row}, got {buffer.size} bytes'
        )
    buffer = np.ascontiguousarray(buffer, dtype=np.uint8)
    strides = (step, channels * dtype.itemsize, dtype.itemsize)
    return np.ndarray(shape, dtype, buffer, strides=strides)


def image_from_compressed(message) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a sensor_msgs/CompressedImage (JPEG, PNG or what OpenCV reads).

    Raises:
        MessageError: not an image, truncated, or larger than `MAX_PIXELS`.
    """
    import cv2

    if 'compressedDepth' in message.format:
        raise MessageError(f'a depth image (format {message.format!r}) cannot be localized')
    data = np.frombuffer(message.data, np.uint8)
    size = _encoded_size(data)
    if size is not None:
        _check_size(*size)
    if data.size == 0 or _truncated(data):
        raise MessageError(
            f'a compressed image of {data.size} bytes (format {message.format!r}) is truncated'
        )
    encoding = _mosaic_encoding(message.format)
    if encoding:
        image = _decoded(data, cv2.IMREAD_UNCHANGED)
        if image is not None and image.ndim == 2 and image.dtype in (np.uint8, np.uint16):
            return _demosaiced(image if image.dtype == np.uint8 else _eight_bit(image), encoding)
    image = _decoded(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise MessageError(
            f'a compressed image of {data.size} bytes (format {message.format!r}) is not a JPEG, '
            'PNG or other image that OpenCV can decode'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _mosaic_encoding(kind: str) -> str:
    """The Bayer encoding of what is compressed, by its `format`; empty for what is no mosaic.

    image_transport compresses a mosaic as it is: "bayer_rggb8; png compressed ". Where it has made
    something else of an image, it says what behind "compressed".
    """
    encoding, _, how = kind.partition(';')
    as_it_is = how.split()[1:] == ['compressed']
    return encoding if as_it_is and encoding.startswith('bayer') and encoding in _LAYOUTS else ''


def _decoded(data: np.ndarray, flags: int) -> np.ndarray | None:
    """What OpenCV makes of a compressed image; None if it cannot."""
    import cv2

    try:
        return cv2.imdecode(data, flags)
    except cv2.error:
        return None


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise MessageError(f'an image cannot be {width}x{height}')
    if width * height > MAX_PIXELS:
        raise MessageError(f'a {width}x{height} image has more than {MAX_PIXELS} pixels')


def _encoded_size(data: np.ndarray) -> tuple[int, int] | None:
    """(width, height) that a PNG or JPEG header claims, before anything is decoded; else None."""
    head = data[:24].tobytes()
    if head.startswith(b'\x89PNG\r\n\x1a\n') and len(head) == 24:
        return int.from_bytes(head[16:20], 'big'), int.from_bytes(head[20:24], 'big')
    if not head.startswith(b'\xff\xd8'):
        return None
    position = 2
    while position + 9 <= data.size and data[position] == 0xFF:
        marker = int(data[position + 1])
        segment = data[position + 2 : position + 9].tobytes()
        # Start-of-frame markers; C4, C8 and CC in their range mean something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(segment[5:7], 'big'), int.from_bytes(segment[3:5], 'big')
        position += 2 + int.from_bytes(segment[:2], 'big')
    return None


def _truncated(data: np.ndarray) -> bool:
    """True for a JPEG or PNG without its end marker: OpenCV would fill the rest with grey."""
    head = data[:8].tobytes()
    # Some drivers send a buffer of fixed size with zeros behind the picture.
    tail = data[-4096:].tobytes().rstrip(b'\0')[-64:] or data[-1:].tobytes()
    if head.startswith(b'\xff\xd8'):
        return b'\xff\xd9' not in tail and data[-4096:].any()
    if head.startswith(b'\x89PNG\r\n\x1a\n'):
        return b'IEND' not in data[-4096:].tobytes()
    return False


def camera_from_info(message, rectified: bool = False) -> Camera:
    """The camera of a sensor_msgs/CameraInfo, of the size of the images it accompanies.

    Args:
        message: the CameraInfo; its region of interest and binning are applied.
        rectified: the images are rectified: take P, without distortion, instead of K and D.

    Raises:
        CameraError: an uncalibrated or impossible camera.
    """
    if rectified:
        p = np.asarray(message.p, dtype=np.float64).reshape(-1)
        if p.size != 12:
            raise CameraError(f'camera_info.p must hold 12 numbers, got {p.size}')
        k, d, model = p.reshape(3, 4)[:, :3].reshape(-1).copy(), (), 'plumb_bob'
    else:
        k = np.array(message.k, dtype=np.float64).reshape(-1)
        d, model = message.d, message.distortion_model
    width, height = int(message.width), int(message.height)
    roi = message.roi
    if roi.width and roi.height:
        if k.size == 9:
            k[2] -= roi.x_offset
            k[5] -= roi.y_offset
        width, height = int(roi.width), int(roi.height)
    camera = Camera.from_camera_info(width, height, k, d, model)
    binning_x, binning_y = max(int(message.binning_x), 1), max(int(message.binning_y), 1)
    if binning_x > 1 or binning_y > 1:
        camera = camera.scaled(width // binning_x, height // binning_y)
    return camera


def camera_for_image(camera: Camera, image_HW3: np.ndarray) -> Camera:
    """`camera` scaled to the size of an image that shows the same view.

    Raises:
        CameraError: the image has another shape, so it cannot be the same view.
    """
    height, width = image_HW3.shape[:2]
    if (camera.width, camera.height) == (width, height):
        return camera
    # One pixel of rounding is what resizing to whole pixels can cost.
    if abs(width * camera.height - height * camera.width) > max(camera.width, camera.height):
        raise CameraError(
            f'the image is {width}x{height} but its camera is {camera.width}x{camera.height}: '
            'another shape, so its camera_info (or the camera of the scene) belongs to other images'
        )
    return camera.scaled(width, height)


def matrix_from_pose(pose) -> np.ndarray:
    """Pose (4, 4) of a geometry_msgs/Pose.

    Raises:
        MessageError: NaN, infinity, or a quaternion that is zero.
    """
    return _matrix(pose.position, pose.orientation)


def matrix_from_transform(transform) -> np.ndarray:
    """Pose (4, 4), parent_T_child, of a geometry_msgs/Transform.

    Raises:
        MessageError: NaN, infinity, or a quaternion that is zero.
    """
    return _matrix(transform.translation, transform.rotation)


def _matrix(t, q) -> np.ndarray:
    xyz, q_xyzw = np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w])
    if not np.all(np.isfinite(xyz)):
        raise MessageError(f'a pose has the position {xyz}')
    length = np.linalg.norm(q_xyzw)
    if not 1e-12 < length < np.inf:
        raise MessageError(f'a pose has the quaternion (xyzw) {q_xyzw}')
    return pose_matrix(_rotation_from_xyzw(q_xyzw / length), xyz)


# What ROS users know for this, where it is installed; else geometry.py, with the same result.


@cache
def _tf_transformations():
    try:
        import tf_transformations
    except Exception:  # not only ImportError: old transforms3d do not survive a new numpy
        return None
    return tf_transformations


def _rotation_from_xyzw(q_xyzw: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of a unit quaternion."""
    known = _tf_transformations()
    if known is None:
        return rotation_from_quaternion(wxyz_from_xyzw(q_xyzw))
    return np.asarray(known.quaternion_matrix(q_xyzw))[:3, :3]


def _xyzw_from_rotation(R: np.ndarray) -> np.ndarray:
    """Unit quaternion with w >= 0 of a rotation matrix (3, 3)."""
    known = _tf_transformations()
    if known is None:
        return xyzw_from_wxyz(quaternion_from_rotation(R))
    q_xyzw = np.asarray(known.quaternion_from_matrix(pose_matrix(R, np.zeros(3))))
    return q_xyzw if q_xyzw[3] >= 0 else -q_xyzw


def _fill(t, q, a_T_b) -> None:
    a_T_b = np.asarray(a_T_b, dtype=np.float64)
    t.x, t.y, t.z = (float(v) for v in a_T_b[:3, 3])
    q_xyzw = _xyzw_from_rotation(a_T_b[:3, :3])
    q.x, q.y, q.z, q.w = (float(v) for v in q_xyzw)


def image_message(stamp: int, frame: str, image_HW3: np.ndarray):
    """sensor_msgs/Image (rgb8) of a uint8 RGB image; `stamp` in nanoseconds."""
    from array import array

    from sensor_msgs.msg import Image

    height, width = image_HW3.shape[:2]
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.header.stamp = stamp_message(stamp)
    message.header.frame_id = frame
    # An array is taken as it is; of bytes, the setter would check every single one.
    message.data = array('B', image_HW3.tobytes())
    return message


def pose_message(stamp: int, frame: str, frame_T_body, covariance_66):
    """geometry_msgs/PoseWithCovarianceStamped.

    Args:
        stamp: nanoseconds.
        frame: the frame of the pose and of its covariance.
        frame_T_body: pose (4, 4).
        covariance_66: (6, 6), order (x, y, z, rotX, rotY, rotZ), fixed axes of `frame`.
    """
    from geometry_msgs.msg import PoseWithCovarianceStamped

    message = PoseWithCovarianceStamped()
    message.header.stamp = stamp_message(stamp)
    message.header.frame_id = frame
    pose = message.pose.pose
    _fill(pose.position, pose.orientation, frame_T_body)
    message.pose.covariance = [float(v) for v in np.asarray(covariance_66).reshape(-1)]
    return message


def transform_message(stamp: int, parent: str, child: str, parent_T_child):
    """geometry_msgs/TransformStamped; `stamp` in nanoseconds."""
    from geometry_msgs.msg import TransformStamped

    message = TransformStamped()
    message.header.stamp = stamp_message(stamp)
    message.header.frame_id = parent
    message.child_frame_id = child
    transform = message.transform
    _fill(transform.translation, transform.rotation, parent_T_child)
    return message
