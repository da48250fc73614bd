"""Text files of names, numbers, poses and calibrations: every error names the file and the line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from pose_reloc.errors import DatasetError
from pose_reloc.geometry import pose_matrix, project_to_so3, rotation_from_quaternion

# Quaternions written with three digits have length 1 to 1e-3; shifted columns miss by far more.
_QUATERNION_LENGTH = (0.98, 1.02)
# A calibration has some hundred characters and a dozen brackets. The parser's time grows with the
# square of how deep they are nested.
_YAML_CHARACTERS, _YAML_BRACKETS = 10_000, 200


@dataclass(frozen=True)
class Line:
    """One line of a text file.

    Attributes:
        path, number: where it stands; numbers count from 1.
        text: without surrounding white space.
    """

    path: Path
    number: int
    text: str

    @property
    def where(self) -> str:
        """For messages: file and line."""
        return f'{self.path}, line {self.number}'

    def error(self, message: str) -> DatasetError:
        """The exception to raise about this line."""
        shown = self.text if len(self.text) <= 80 else self.text[:77] + '...'
        return DatasetError(f'{self.where}: {message}; the line is {shown!r}')

    def words(self, form: str, more: bool = False) -> list[str]:
        """The words of this line.

        Args:
            form: what the line looks like, one word per word; part of the message.
            more: further words may follow.

        Raises:
            DatasetError: there are too few or too many words.
        """
        words, count = self.text.split(), len(form.split())
        if len(words) < count or (len(words) > count and not more):
            raise self.error(f'expected `{form}`')
        return words

    def numbers(self, words: Sequence[str]) -> np.ndarray:
        """Words as finite float64.

        Raises:
            DatasetError: a word is no number, NaN or infinite.
        """
        try:
            values = np.array(words, dtype=np.float64)
        except ValueError:
            raise self.error(f'expected numbers in {" ".join(words)[:60]!r}') from None
        if not np.all(np.isfinite(values)):
            raise self.error('a number is NaN or infinite (remove the line)')
        return values

    def integers(self, words: Sequence[str], low: int, high: int) -> list[int]:
        """Words as integers in [low, high).

        Raises:
            DatasetError: a word is no integer or out of range.
        """
        try:
            values = [int(word) for word in words]
        except ValueError:
            raise self.error(f'expected integers in {" ".join(words)[:60]!r}') from None
        if values and (min(values) < low or max(values) >= high):
            raise self.error(f'a number is not in the range {low} to {high - 1}')
        return values

    def rotation(self, q_wxyz) -> np.ndarray:
        """Rotation matrix (3, 3) of a quaternion in this line.

        Raises:
            DatasetError: it is not of unit length.
        """
        length = math.hypot(*q_wxyz)
        if not _QUATERNION_LENGTH[0] <= length <= _QUATERNION_LENGTH[1]:
            raise self.error(f'the quaternion has length {length:.4g} instead of 1')
        return rotation_from_quaternion(q_wxyz)

    def nearest_rotation(self, matrix_33) -> np.ndarray:
        """The rotation (3, 3) nearest to a matrix in this line.

        Raises:
            DatasetError: the matrix is far from every rotation.
        """
        try:
            return project_to_so3(matrix_33)
        except ValueError as error:
            raise self.error(str(error)) from None

    def pose(self, w_t_c, q_wxyz, camera_to_world: bool) -> np.ndarray:
        """`world_T_camera` (4, 4) from the camera centre in the world and a quaternion.

        Args:
            camera_to_world: what the quaternion rotates; False: world coordinates to the camera's.
        """
        R = self.rotation(q_wxyz)
        return pose_matrix(R if camera_to_world else R.T, w_t_c)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a text file that are neither empty nor comments (#).

    Raises:
        DatasetError: the file is missing or cannot be read.
    """
    for line in every_line(path):
        if line.text and not line.text.startswith('#'):
            yield line


def every_line(path: Path) -> Iterator[Line]:
    """As `read_lines`, with the empty lines and the comments."""
    with open_text(path) as file:
        for number, text in enumerate(file, start=1):
            yield Line(path, number, text.strip())


def open_text(path: Path):
    """A text file, open for reading; bytes that are no UTF-8 become question marks.

    Raises:
        DatasetError: the file is missing, cannot be read, or is a pipe or a device, which may have
            no end.
    """
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f'cannot read {path}: it is not a file')
        return open(path, encoding='utf-8-sig', errors='replace', newline=None)
    except OSError as error:
        raise DatasetError(f'cannot read {path}: {error.strerror}') from error


def read_yaml(path: Path):
    """The content of a small YAML file, in plain types.

    Raises:
        DatasetError: the file cannot be read or is not YAML, or could unfold to more than it is.
    """
    with open_text(path) as file:
        text = file.read(_YAML_CHARACTERS)
        if file.read(1):
            raise DatasetError(f'{path} has more than {_YAML_CHARACTERS} characters')
    if sum(text.count(bracket) for bracket in '[{?') > _YAML_BRACKETS:
        raise DatasetError(f'{path} has more than {_YAML_BRACKETS} brackets')
    try:
        # A few nested references can stand for more than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise DatasetError(f'{path} holds references (*name); write their values out')
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f'{path} is not YAML: {" ".join(str(error).split())}') from error


def next_line(lines: Iterator[Line], path: Path, what: str) -> Line:
    """The next line, which must exist.

    Raises:
        DatasetError: the file ends here.
    """
    line = next(lines, None)
    if line is None:
        raise DatasetError(f'{path} ends where {what} should follow (truncated?)')
    return line
