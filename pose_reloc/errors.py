"""Errors that a user can cause. Each message says what was wrong, where, and what to do.

The command line prints them as one sentence and exits with code 2; a traceback is a bug.
"""


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


class WeightsError(PoseRelocError):
    """Backbone weights cannot be had, or do not fit the backbone."""


class TrainingError(PoseRelocError):
    """Training cannot start or cannot go on."""
