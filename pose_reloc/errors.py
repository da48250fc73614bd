"""Errors that a user can cause. Each message says what was wrong, where, and what to do.

The command line prints them as one sentence and exits with code 2; a traceback is a bug.
"""

import shlex


class PoseRelocError(Exception):
    """Base of every error that bad input or a bad setting can cause."""


class SceneError(PoseRelocError):
    """A scene file is missing, damaged, of another version, or lacks what is asked of it."""


class DatasetError(PoseRelocError):
    """A dataset folder or one of its files cannot be used."""


class BagError(PoseRelocError):
    """A recorded bag is missing, damaged, or lacks a topic."""


class CameraError(PoseRelocError):
    """Camera intrinsics or distortion are impossible or unsupported."""


class SettingsError(PoseRelocError):
    """A setting or parameter has a value that cannot work."""


class DeviceError(SettingsError):
    """A GPU is there, but full, or gone, or PyTorch cannot compute on it."""


class WeightsError(PoseRelocError):
    """Backbone weights cannot be had, or do not fit the backbone."""


class TrainingError(PoseRelocError):
    """Training cannot start or cannot go on."""


def install_hint(*packages: str) -> str:
    """The command that installs packages, for an error's sentence.

    Where NumPy is older than 2, as on ROS distributions, pip would bring a new one with many
    packages, and what was built for the old one (cv2, Matplotlib, ROS messages) would break.
    """
    import numpy

    kept = [f'numpy=={numpy.__version__}'] if numpy.__version__.startswith('1.') else []
    return shlex.join(['pip', 'install', *packages, *kept])
