"""Files and folders that are whole or absent, whenever the process that writes them dies.

They are written under a temporary name, `.NAME.pose_reloc-writing-XXXXXXXX`, flushed, and renamed.
While it is written a temporary is locked; the kernel drops the lock of a process that dies, so
whoever comes next can tell rubbish from work. A process id would not do: processes in different
containers may share a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pose_reloc.errors import SceneError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file: at any moment `path` is the old file or the new one, whole.

    Raises:
        SceneError: the folder does not exist or cannot be written.
    """
    try:
        with _temporary(path.parent, path.name, tempfile.mkstemp) as temporary:
            with open(temporary, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise SceneError(f'cannot write {path}: {error.strerror}') from error


def temporary_folder(root: Path, name: str) -> contextlib.AbstractContextManager[Path]:
    """A new folder in `root`, deleted at the end of the `with` statement unless it was renamed.

    Args:
        name: what killed processes left in `root` under the same name is deleted first.
    """

    def make(**where) -> tuple[int, str]:
        path = tempfile.mkdtemp(**where)
        return os.open(path, os.O_RDONLY), path

    return _temporary(root, name, make)


@contextlib.contextmanager
def _temporary(folder: Path, name: str, make) -> Iterator[Path]:
    prefix = f'.{name}.pose_reloc-writing-'  # nobody else's: what begins so may be deleted
    _remove_abandoned(folder, prefix)
    while True:
        handle, path = make(dir=folder, prefix=prefix)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is tidied there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(path):
            break
        os.close(handle)  # another process took it for rubbish before it was locked
    try:
        yield Path(path)
    finally:
        _remove(path)
        os.close(handle)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Deletes the temporaries of this prefix that nobody works on."""
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries if entry.name.startswith(prefix)]
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except OSError:
            pass  # in use
        finally:
            os.close(handle)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
