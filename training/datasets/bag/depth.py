"""Depth images in bags: which belong to the colour images, and their decoding to metres."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, DatasetError
from pose_reloc.ros.messages import MAX_PIXELS, MessageError, is_compressed
from training.datasets.bag.reading import shared_bag
from training.datasets.depth import register_depth

_MILLIMETRES = {'16UC1', 'mono16'}
_UNKNOWN_MM = 65535


def depth_from_message(message) -> np.ndarray:
    """Depth (H, W) float32 in metres of an image message; 0 where unknown.

    16UC1 holds millimetres and 32FC1 metres (REP 118); compressedDepth is what
    compressed_depth_image_transport writes: for 32FC1 the inverse of depth, quantized.

    Raises:
        MessageError: another encoding, or damaged.
    """
    depth = _from_compressed(message) if is_compressed(message) else _from_raw(message)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth


def _from_raw(message) -> np.ndarray:
    encoding, height, width = message.encoding, int(message.height), int(message.width)
    if encoding not in (*_MILLIMETRES, '32FC1'):
        raise MessageError(f'a depth image cannot have the encoding {encoding!r}')
    kind = np.dtype('f4' if encoding == '32FC1' else 'u2')
    kind = kind.newbyteorder('>' if message.is_bigendian else '<')
    step = int(message.step) or width * kind.itemsize
    data = np.frombuffer(message.data, np.uint8)
    if not 0 < height * width <= MAX_PIXELS or step < width * kind.itemsize:
        raise MessageError(f'a depth image cannot be {width}x{height} with a step of {step}')
    if data.size < step * height:
        raise MessageError(f'a {width}x{height} depth image has only {data.size} bytes')
    rows = data[: step * height].reshape(height, step)[:, : width * kind.itemsize]
    return _metres(np.ascontiguousarray(rows).view(kind))


def _from_compressed(message) -> np.ndarray:
    import cv2

    if 'rvl' in message.format:
        raise MessageError('depth in the format RVL cannot be read; record it as PNG or raw')
    data = np.frombuffer(message.data, np.uint8)
    if 'compressedDepth' not in message.format:
        scale, data = None, data
    elif data.size < 12:
        raise MessageError(f'a compressed depth image has only {data.size} bytes')
    else:
        scale, data = struct.unpack('<ff', data[4:12].tobytes()), data[12:]
    try:
        raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:
        raw = None
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise MessageError(f'a compressed depth image ({message.format}) is no 16-bit PNG')
    if scale and message.format.startswith('32FC1'):
        a, b = scale
        return np.divide(a, raw - np.float32(b), out=np.zeros(raw.shape, 'f4'), where=raw > 0)
    return _metres(raw)


def _metres(raw_HW: np.ndarray) -> np.ndarray:
    if raw_HW.dtype.kind == 'f':
        return raw_HW.astype(np.float32)
    return np.where(raw_HW == _UNKNOWN_MM, 0, raw_HW).astype(np.float32) * np.float32(0.001)


@dataclass(frozen=True)
class BagDepth:
    """Reads one depth image of a bag when it is called, as the colour camera would see it.

    Attributes:
        path, topic, time, stamp: where it is.
        depth, color: the two cameras.
        color_T_depth: pose (4, 4) of the depth camera in the colour camera.
    """

    path: Path
    topic: str
    time: int
    stamp: int
    depth: Camera
    color: Camera
    color_T_depth: np.ndarray

    def source(self) -> list:
        """What the depth depends on, see `Sample`; the bag's file is the sample's container."""
        cameras = [self.depth.to_dict(), self.color.to_dict(), self.color_T_depth.tolist()]
        return [self.topic, int(self.time), int(self.stamp), *cameras]

    def __call__(self) -> np.ndarray:
        """Depth (H, W) float32 in metres in the colour camera; 0 where unknown.

        Raises:
            DatasetError: it is damaged, or of another size.
        """
        try:
            bag = shared_bag(self.path)
            message = bag.message_at(self.topic, self.time, self.stamp)
            z_HW = depth_from_message(bag.decode(message))
        except (BagError, MessageError) as error:
            raise DatasetError(f'{self.path}, {self.topic} at {self.stamp}: {error}') from error
        if z_HW.shape != (self.depth.height, self.depth.width):
            raise DatasetError(
                f'{self.path}, {self.topic}: depth is {z_HW.shape[1]}x{z_HW.shape[0]} but its '
                f'camera is {self.depth.width}x{self.depth.height}'
            )
        return register_depth(z_HW, self.depth, self.color, self.color_T_depth)
