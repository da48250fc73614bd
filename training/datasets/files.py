"""The files that a dataset names: inside its folder, there, and of which size."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pose_reloc.errors import DatasetError

# Images are often converted to save space after the lists were written.
_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')


def inside(root: Path, name: str, where: str) -> Path:
    """The path of a file that a dataset names, which must lie in the dataset's folder.

    Links are followed: whoever owns the folder made them.

    Raises:
        DatasetError: the name is absolute, goes up with '..', or is not printable.
    """
    pure = PurePosixPath(name.replace('\\', '/'))
    absolute = pure.is_absolute() or name[1:2] == ':'
    if not pure.parts or not name.isprintable() or absolute or '..' in pure.parts:
        raise DatasetError(f'{where}: {name!r} does not name a file inside the folder {root}')
    return root / pure


def image_file(root: Path, name: str, where: str) -> Path:
    """The path of an image that a dataset names, with another suffix if only that exists.

    The file may be missing: some collections distribute poses without images.

    Raises:
        DatasetError: the name points outside the folder.
    """
    path = inside(root, name, where)
    others = (path.with_suffix(suffix) for suffix in _IMAGE_SUFFIXES)
    return next((file for file in (path, *others) if os.path.isfile(file)), path)


def existing_image(root: Path, name: str, where: str) -> Path:
    """As `image_file`, for sources that always come with their images.

    Raises:
        DatasetError: the image is missing too.
    """
    path = image_file(root, name, where)
    if not os.path.isfile(path):
        raise DatasetError(f'{where}: the image {path} is missing')
    return path


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image in pixels, from its header alone.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # PIL raises a dozen kinds for a damaged file
        raise DatasetError(f'cannot read the image header of {path}: {error}') from error


def file_state(path: Path) -> list:
    """Place, size in bytes and time of change (ns) of a file, without reading it; for JSON.

    Raises:
        DatasetError: there is no such file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DatasetError(f'cannot read {path}: {error.strerror}') from error
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def missing_images(paths: Sequence[Path]) -> list[str]:
    """A warning, or none, about images that are named but not there."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if not missing:
        return []
    return [
        f'{len(missing)} of {len(paths)} images are missing (first: {missing[0]}): '
        'their poses and points can be read, the pictures cannot'
    ]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame10 after frame9."""
    words = re.findall(r'\d+|\D+', name)
    return [(int(word[:18]), '') if word.isdecimal() else (-1, word) for word in words]
