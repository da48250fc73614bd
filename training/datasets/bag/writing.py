"""Writes a bag as a robot would record it: for the demo and for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError
from pose_reloc.geometry import quaternion_from_rotation, xyzw_from_wxyz
from training.datasets.bag.reading import CAMERA_TYPE, IMAGE_TYPES, STORE, TF_TYPE


@dataclass(frozen=True)
class Recording:
    """What `write_bag` needs to know of one frame.

    Attributes:
        stamp: nanoseconds.
        image: uint8 RGB (H, W, 3).
        map_T_base: true pose (4, 4) of the robot's base in the map.
    """

    stamp: int
    image: np.ndarray
    map_T_base: np.ndarray


def write_bag(
    path: str | Path, frames: Iterable[Recording], camera: Camera, base_T_camera: np.ndarray
) -> None:
    """Writes a rosbag2 (MCAP) as a robot would record it.

    Topics: /camera/image_raw/compressed (JPEG), /camera/camera_info, /tf_static
    (base_link -> camera_optical_frame), and the truth on /ground_truth/pose.

    Args:
        path: of the bag's folder, which must not exist.
        frames: in the order of time.
        camera: pinhole or plumb_bob.
        base_T_camera: mounting (4, 4) of the optical frame on base_link.

    Raises:
        BagError: the folder exists or cannot be written.
    """
    import cv2

    path = Path(path)
    types = STORE.types
    Time, Header = types['builtin_interfaces/msg/Time'], types['std_msgs/msg/Header']
    Vector, Quaternion = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Quaternion']
    Point, Pose = types['geometry_msgs/msg/Point'], types['geometry_msgs/msg/Pose']

    def header(stamp, frame):
        return Header(Time(stamp // 1_000_000_000, stamp % 1_000_000_000), frame)

    def rotation(a_T_b):
        return Quaternion(*xyzw_from_wxyz(quaternion_from_rotation(a_T_b[:3, :3])).tolist())

    D = np.array(camera.distortion or (0.0,) * 5)
    P = np.hstack([camera.K, np.zeros((3, 1))])
    roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    try:
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:

            def connect(topic, kind):
                connection = writer.add_connection(topic, kind, typestore=STORE)

                def write(stamp, message):
                    writer.write(connection, stamp, STORE.serialize_cdr(message, kind))

                return types[kind], write

            Compressed, write_image = connect('/camera/image_raw/compressed', IMAGE_TYPES[1])
            Info, write_info = connect('/camera/camera_info', CAMERA_TYPE)
            TF, write_static = connect('/tf_static', TF_TYPE)
            PoseStamped, write_truth = connect(
                '/ground_truth/pose', 'geometry_msgs/msg/PoseStamped'
            )
            for index, frame in enumerate(frames):
                optical = header(frame.stamp, 'camera_optical_frame')
                if index == 0:
                    transform = types['geometry_msgs/msg/Transform'](
                        Vector(*base_T_camera[:3, 3].tolist()), rotation(base_T_camera)
                    )
                    mounting = types['geometry_msgs/msg/TransformStamped'](
                        header(frame.stamp, 'base_link'), 'camera_optical_frame', transform
                    )
                    write_static(frame.stamp, TF([mounting]))
                info = Info(
                    optical, camera.height, camera.width, camera.distortion_model, D,
                    camera.K.ravel(), np.eye(3).ravel(), P.ravel(), 0, 0, roi,
                )  # fmt: skip
                write_info(frame.stamp, info)
                ok, data = cv2.imencode(
                    '.jpg', frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]
                )
                write_image(frame.stamp, Compressed(optical, 'jpeg', data.ravel()))
                position = Point(*frame.map_T_base[:3, 3].tolist())
                pose = Pose(position, rotation(frame.map_T_base))
                write_truth(frame.stamp, PoseStamped(header(frame.stamp, 'map'), pose))
    except (OSError, WriterError) as error:
        raise BagError(f'cannot write the bag {path}: {error}') from error
