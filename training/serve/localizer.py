"""A picture to what the page shows of its answer."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import invert_pose
from pose_reloc.relocalizer import PoseEstimate, Relocalizer, Status
from pose_reloc.uncertainty import rotate_covariance
from training.datasets import Sample
from training.report.reasons import sentences
from training.report.run_data import claimed_sigma, ellipsoid_95, pose_rows
from training.report.scene_facts import recipe_rows, rounded, scene_drawing
from training.serve.pictures import camera_of, read_picture

_DRAWN_MATCHES = 300
_KEYFRAME_WIDTH = 800


class Localizer:
    """Answers pictures with plain JSON types. For one caller at a time.

    Args:
        relocalizer: with the scene.
        samples: the training images of the scene, to show keyframes; None where they are not here.

    Raises:
        DatasetError: the samples are not those the scene was trained on.
    """

    def __init__(self, relocalizer: Relocalizer, samples: list[Sample] | None = None):
        self.relocalizer, self.samples = relocalizer, samples
        self.scene = relocalizer.scene
        if samples is not None:
            poses = np.array([sample.world_T_camera for sample in samples]).reshape(-1, 4, 4)
            train = self.scene.train_world_T_camera
            if poses.shape != train.shape or not np.allclose(poses, train, atol=1e-4):
                raise DatasetError(
                    f'these are not the training images of scene {self.scene.header.name}; '
                    'give the dataset it was trained on, or none'
                )
        # Finds the keyframe that a matched landmark belongs to.
        self._tree = cKDTree(self.scene.landmarks.points) if self.scene.landmarks else None

    def describe(self) -> dict:
        """The scene: name, camera, what it was trained on, and its drawing."""
        camera = self.scene.header.camera
        return scene_drawing(self.scene) | {
            'name': self.scene.header.name,
            'camera': [camera.width, camera.height],
            'recipe': recipe_rows(self.scene),
        }

    def answer(self, data: bytes, focal_px: float | None, fov_deg: float | None) -> dict:
        """The pose of an uploaded picture, and why it is to be believed or not.

        Args:
            data: the file.
            focal_px, fov_deg: as `camera_of`.

        Raises:
            PictureError, CameraError: the picture cannot be used.
        """
        picture = read_picture(data)
        camera, source = camera_of(picture, self.scene.header.camera, focal_px, fov_deg)
        estimate = self.relocalizer.localize(picture.image, camera)
        result = {
            'status': estimate.status.value,
            'reasons': sentences(estimate.reasons),
            'size': [camera.width, camera.height],
            'camera': source,
            'time_ms': round(1e3 * estimate.timings['total'], 1),
            'likeness': None if estimate.likeness is None else round(float(estimate.likeness), 3),
            'landmarks': estimate.inliers,
        }
        if estimate.status is Status.LOST:
            return result
        return result | self._place(estimate) | {'keyframe': self._keyframe(estimate, camera)}

    def _place(self, estimate: PoseEstimate) -> dict:
        map_T_scene = self.scene.map_T_scene
        covariance = rotate_covariance(estimate.covariance_66, map_T_scene[:3, :3])
        return {
            'pose': pose_rows(map_T_scene @ estimate.world_T_camera),
            'sigma': claimed_sigma(covariance),
            'ellipsoid': ellipsoid_95(covariance),
            'matches': rounded(_some(estimate.matches.uv), 1) if estimate.matches else [],
        }

    def _keyframe(self, estimate: PoseEstimate, camera: Camera) -> dict | None:
        """The keyframe with most of the matches; without matches the one that sees the same."""
        landmarks = self.scene.landmarks
        if landmarks is None:
            return None
        seen = here = np.zeros((0, 2))
        if estimate.matches is not None:
            rows = self._tree.query(estimate.matches.points)[1]
            owners = np.searchsorted(landmarks.starts, rows, side='right') - 1
            keyframe = int(np.bincount(owners).argmax())
            own = _some(np.flatnonzero(owners == keyframe))
            local_T_world = invert_pose(landmarks.poses[keyframe])
            points = landmarks.points[rows[own]] @ local_T_world[:3, :3].T + local_T_world[:3, 3]
            seen = self._camera(keyframe).project(points)
            here = estimate.matches.uv[own]
        else:
            near = landmarks.near(estimate.world_T_camera, camera, 1)
            if not len(near):
                return None
            keyframe = int(near[0])
        frame = int(landmarks.frames[keyframe])
        pose = self.scene.map_T_scene @ self.scene.train_world_T_camera[frame]
        sample = self.samples[frame] if self.samples else None
        size = self._camera(keyframe)
        return {
            'number': keyframe,
            'name': f'{sample.sequence}/{sample.image_path.name}' if sample else f'image {frame}',
            'pose': pose_rows(pose),
            'picture': sample is not None,
            'size': [size.width, size.height],
            'seen': rounded(seen, 1),
            'here': rounded(here, 1),
        }

    def _camera(self, keyframe: int) -> Camera:
        if self.samples:
            return self.samples[int(self.scene.landmarks.frames[keyframe])].camera
        return self.scene.header.camera

    def keyframe_jpeg(self, keyframe: int) -> bytes | None:
        """The training image of a keyframe as JPEG; None where there is none.

        Raises:
            DatasetError: the image is damaged.
        """
        if not self.samples or not self.scene.landmarks:
            return None
        if not 0 <= keyframe < len(self.scene.landmarks):
            return None
        image = self.samples[int(self.scene.landmarks.frames[keyframe])].load_image()
        if image.shape[1] > _KEYFRAME_WIDTH:
            height = round(image.shape[0] * _KEYFRAME_WIDTH / image.shape[1])
            image = cv2.resize(image, (_KEYFRAME_WIDTH, height), interpolation=cv2.INTER_AREA)
        return cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()


def _some(rows: np.ndarray) -> np.ndarray:
    """At most as many rows as are drawn, evenly picked."""
    return rows[:: max(1, -(-len(rows) // _DRAWN_MATCHES))]
