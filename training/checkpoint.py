"""The state of a training run on disk: what `--resume` continues from."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from pose_reloc.errors import SceneError, TrainingError
from pose_reloc.scene import write_atomically

FILE_NAME = 'checkpoint.pt'
_VERSION = 1


def save(folder: Path, state: dict) -> None:
    """Writes the state atomically: a kill at any moment leaves the old or the new, whole.

    Raises:
        TrainingError: the folder cannot be written; the old checkpoint is still there.
    """
    buffer = io.BytesIO()
    torch.save({'version': _VERSION, **state}, buffer)
    try:
        write_atomically(folder / FILE_NAME, buffer.getvalue())
    except SceneError as error:
        raise TrainingError(
            f'{error}; the checkpoint before is kept, free some space and go on with --resume'
        ) from error


def load(folder: Path, settings: dict, data_key: str) -> dict | None:
    """The saved state, or None where the folder has none.

    Args:
        folder: of the run.
        settings: plain types; a run can only go on under the settings it began with.
        data_key: identifies the training images.

    Raises:
        TrainingError: the file is damaged, or belongs to other settings or other images.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        # weights_only: a checkpoint that came from elsewhere must not run code.
        state = torch.load(path, map_location='cpu', weights_only=True)
        version, saved, key = state['version'], state['settings'], state['data_key']
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingError(
            f'the checkpoint {path} cannot be read ({error}); train without --resume to start anew'
        ) from error
    if version != _VERSION:
        raise TrainingError(f'the checkpoint {path} has version {version}, expected {_VERSION}')
    changed = sorted(name for name in settings if saved.get(name) != settings[name])
    if changed:
        name = changed[0]
        raise TrainingError(
            f'the run in {folder} began with {name}={saved.get(name)!r}, now it is '
            f'{settings[name]!r}; resume with the settings it began with, or without --resume'
        )
    if key != data_key:
        raise TrainingError(
            f'the run in {folder} began with other images; train without --resume to start anew'
        )
    return state
