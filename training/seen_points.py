"""What images without depth see, from landmarks that were triangulated from all of them.

The homography losses need to know how far away the things in each image are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from pose_reloc.landmarks import LandmarkMap
from training.datasets import Sample
from training.losses import LOSSES, LossSettings

_KEYFRAMES = 5  # those whose views overlap most with an image stand for what it sees


@dataclass(frozen=True)
class SeenPoints:
    """Gives the landmarks that one image sees when it is called.

    Attributes:
        landmarks: of all images.
        sample: the image.
    """

    landmarks: LandmarkMap
    sample: Sample

    def source(self) -> list:
        """What the points depend on, see `Sample`, besides all images and their poses.

        Not the points themselves: networks of features and `torchrun` may repeat them only almost.
        """
        return ['landmarks', asdict(self.landmarks.features)]

    def __call__(self) -> np.ndarray:
        """World points (N, 3) float64 of similar keyframes that project into the image."""
        camera, pose = self.sample.camera, self.sample.world_T_camera
        near = self.landmarks.near(pose, camera.undistorted(), _KEYFRAMES)
        starts = self.landmarks.starts
        parts = [self.landmarks.points[starts[k] : starts[k + 1]] for k in near]
        points = np.concatenate([np.zeros((0, 3)), *parts])
        uv = camera.project((points - pose[:3, 3]) @ pose[:3, :3])
        with np.errstate(invalid='ignore'):  # NaN behind the camera
            return points[((uv > 0) & (uv < (camera.width - 1, camera.height - 1))).all(axis=1)]


def lacks_depth(samples: list[Sample], settings: LossSettings) -> bool:
    """True if the loss must know how far away things are, and neither samples nor settings say."""
    if all(sample.depth_loader or sample.points_loader for sample in samples):
        return False
    loss = LOSSES[settings.name]
    if loss.needs_global_range:
        return settings.depth_range is None
    return loss.needs_depth_range


def with_seen_points(samples: list[Sample], landmarks: LandmarkMap) -> list[Sample]:
    """The samples, each with the landmarks that it sees."""
    return [replace(s, points_loader=SeenPoints(landmarks, s)) for s in samples]
