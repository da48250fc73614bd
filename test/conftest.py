"""What many tests need: a tiny scene model, a small rendered room, the real data."""

import pose_reloc  # noqa: F401, before torch starts: it says how torch's threads wait

# isort: split
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_reloc.camera import Camera
from pose_reloc.features import FeatureSettings
from pose_reloc.geometry import perturb_pose
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.network import NetworkSettings, PoseRegressor
from pose_reloc.scene import SceneHeader, SceneModel
from pose_reloc.uncertainty import CoarseCalibration

CAMERA = Camera(160, 120, 130.0, 130.0, 80.0, 60.0)
COARSE = CoarseCalibration(0.1, 0.05, 1.0, 0.3, 0.2)

torch.set_num_threads(2)

# Keeps DDS on this machine and apart from every other ROS system on it, before rclpy reads it.
# Processes that the tests start inherit it.
os.environ['ROS_DOMAIN_ID'] = str(random.SystemRandom().randint(1, 100))
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


@pytest.fixture(scope='session', autouse=True)
def _caches(tmp_path_factory):
    """Keeps the caches of the tests out of the user's home."""
    os.environ['POSE_RELOC_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    os.environ.setdefault('ROS_LOG_DIR', str(tmp_path_factory.mktemp('ros_log')))


@pytest.fixture(scope='session')
def data():
    """Folder of the real data; tests that ask for it skip where there is none."""
    folder = os.environ.get('POSE_RELOC_DATA')
    if not folder:
        pytest.skip('POSE_RELOC_DATA is not set: no real data')
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f'POSE_RELOC_DATA={folder} is not a folder')
    return path


@pytest.fixture(scope='session')
def room(tmp_path_factory):
    """A small rendered room in 7-Scenes layout: 48 training images, 12 test images."""
    from training.datasets.synthetic import SyntheticSettings, write_scene

    folder = tmp_path_factory.mktemp('data') / 'room'
    write_scene(folder, SyntheticSettings(train_frames=(24, 24), test_frames=12))
    return folder


@pytest.fixture(scope='session')
def small_scene():
    """A scene model in a few kilobytes, with every field; its network cannot be built."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 6)).astype(np.float16)
    landmarks = LandmarkMap(
        FeatureSettings(),
        poses=np.tile(np.eye(4), (2, 1, 1)),
        frames=np.array([0, 3]),
        starts=np.array([0, 2, 3]),
        points=rng.normal(size=(3, 3)).astype(np.float32),
        descriptors=rng.integers(0, 255, (3, 128)).astype(np.uint8),
        vocabulary=rng.normal(size=(1, 128)).astype(np.float32),
        vlad=rng.normal(size=(2, 128)).astype(np.float16),
        anchor_frames=np.array([1]),
        anchor_poses=np.tile(np.eye(4), (1, 1, 1)),
    )
    return SceneModel(
        SceneHeader(
            'small', {'backbone': 'none'}, CAMERA, CAMERA.scaled(80, 60), COARSE, {'made': 'here'}
        ),
        {'head.weight': rng.normal(size=(7, 5)).astype(np.float32), 'batches': np.array(3)},
        np.tile(np.eye(4), (5, 1, 1)),
        {'stem.weight': rng.normal(size=(4, 3)).astype(np.float16)},
        features,
        features[:4],
        rng.normal(size=6).astype(np.float32),
        np.array([0, 1, 3, 4], dtype=np.int32),
        landmarks=landmarks,
    )


@pytest.fixture
def tiny_scene():
    """A scene model with a small untrained network that answers near the world's origin."""
    return make_tiny_scene()


def make_tiny_scene(seed: int = 0) -> SceneModel:
    """See the fixture `tiny_scene`."""
    torch.manual_seed(seed)
    settings = NetworkSettings(hidden=8)
    network = PoseRegressor(settings).eval()
    rng = np.random.default_rng(seed)
    poses = perturb_pose(np.tile(np.eye(4), (5, 1, 1)), rng.normal(size=(5, 6)) * 0.1)
    state = network.backbone.state_dict()
    features = rng.normal(size=(5, 1280))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return SceneModel(
        SceneHeader(
            'tiny', settings.to_dict(), CAMERA, CAMERA.scaled(80, 60), COARSE, {'made': 'here'}
        ),
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        poses,
        {n: t.half().numpy() if t.ndim > 1 else t.numpy() for n, t in state.items()},
        features.astype(np.float16),
        features[1:].astype(np.float16),
        rng.normal(size=1280).astype(np.float32) * 0.1,
        np.arange(1, 5, dtype=np.int32),
    )
