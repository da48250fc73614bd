"""The state of a training run on disk: what `--resume` continues from."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from pose_reloc.errors import SceneError, TrainingError
from pose_reloc.files import write_atomically

FILE_NAME = 'checkpoint.pt'
FORMER_NAME = 'checkpoint.before.pt'
_VERSION = 2
# On average; runs with very short epochs must not wear out a disk.
_MAX_BYTES_PER_SECOND = 100e6
# What a resumed run may change: it goes on from the same state all the same.
CHANGEABLE = ('learning_rate', 'minutes', 'epochs', 'device', 'precision', 'compile')


class CheckpointWriter:
    """Writes states to the run folder while training goes on; use it in a `with` statement.

    Each state is copied to the host at once; a thread writes it beside the old file, flushes it to
    disk and renames it. A kill at any moment leaves the old file or the new one, whole. The end of
    the `with` statement, also by an exception, waits for a write that is under way.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._next = 0.0  # time before which no other write may begin

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._wait()
        if kind is None:
            self._complain()

    def offer(self, state: Callable[[], dict], whatever_the_time: bool = False) -> None:
        """Writes a state, unless the one before was written too short a time ago.

        Args:
            state: makes it, when it is wanted.
            whatever_the_time: write it in any case.

        Raises:
            TrainingError: the write before failed; the checkpoint before that is still there.
        """
        if not whatever_the_time and time.perf_counter() < self._next:
            return
        self._wait()
        self._complain()
        copy = _on_host({'version': _VERSION, **state()})
        self._thread = threading.Thread(target=self._write, args=(copy,), name='checkpoint')
        self._thread.start()

    def _write(self, state: dict) -> None:
        start = time.perf_counter()
        try:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomically(self._folder / FILE_NAME, buffer.getbuffer())
            self._next = start + buffer.tell() / _MAX_BYTES_PER_SECOND
        except Exception as error:  # told in the thread that trains
            self._error = error

    def _wait(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _complain(self) -> None:
        error, self._error = self._error, None
        if isinstance(error, SceneError):
            raise TrainingError(
                f'{error}; the checkpoint before is kept, free some space and go on with --resume'
            ) from error
        if error:
            raise error


def set_aside(folder: Path) -> None:
    """Renames the checkpoint of a former run, and says so.

    A new run that is stopped before its first checkpoint must not go on from that one; who only
    forgot --resume still has it.

    Args:
        folder: of the run that begins.
    """
    with contextlib.suppress(FileNotFoundError):
        (folder / FILE_NAME).replace(folder / FORMER_NAME)
        print(
            f'note: a new run begins in {folder}; the checkpoint of the one before is kept there '
            f'as {FORMER_NAME}: renamed back to {FILE_NAME}, it is what --resume goes on from',
            file=sys.stderr,
        )


def load_checkpoint(folder: Path, settings: dict, data_key: str) -> dict | None:
    """The saved state, or None where the folder has none.

    Args:
        folder: of the run.
        settings: plain types; only those in CHANGEABLE may differ from the run's first ones.
        data_key: identifies the training images.

    Raises:
        TrainingError: the file is damaged, or belongs to other settings or other images.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not look at its checksums
            if file.testzip():
                raise ValueError('a checksum is wrong')
        # weights_only: a checkpoint that came from elsewhere must not run code.
        state = torch.load(path, map_location='cpu', weights_only=True)
        version, saved, key = state['version'], state['settings'], state['data_key']
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingError(
            f'the checkpoint {path} cannot be read ({error}); train without --resume to start anew'
        ) from error
    if version != _VERSION:
        raise TrainingError(f'the checkpoint {path} has version {version}, expected {_VERSION}')
    fixed = (name for name in settings if name not in CHANGEABLE)
    changed = sorted(name for name in fixed if saved.get(name) != settings[name])
    if changed:
        name = changed[0]
        raise TrainingError(
            f'the run in {folder} began with {name}={saved.get(name)!r}, now it is '
            f'{settings[name]!r}; a resumed run may only change {", ".join(CHANGEABLE)}'
        )
    if key != data_key:
        raise TrainingError(
            f'the run in {folder} began with other images; train without --resume to start anew'
        )
    return state


def _on_host(value):
    """A copy with all tensors on the CPU, which training does not touch."""
    if isinstance(value, torch.Tensor):
        return value.detach().to('cpu', copy=True)
    if isinstance(value, dict):
        return {name: _on_host(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_on_host(item) for item in value]
    return value
