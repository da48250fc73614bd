"""An MCAP file that was cut off, read as if it had been closed.

`ros2 bag record` writes the index of an MCAP file last, so a robot that is switched off leaves a
file without one. Everything up to the last whole record is intact: the index is made anew from the
headers of the chunks, and follows the data as if it stood in the file. Layout of the records:
https://mcap.dev/spec
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x02, 0x03, 0x04, 0x05, 0x06
_MESSAGE_INDEX, _CHUNK_INDEX, _STATISTICS, _DATA_END = 0x07, 0x08, 0x0B, 0x0F
_HEADER = 9  # bytes of a record before its content: kind and length


class MendedMcap:
    """A stand-in for the path of the file, for `rosbags.rosbag2.Reader`.

    Attributes:
        used: how much of the file is whole, for people.

    Raises:
        ValueError: the file does not begin as an MCAP file.
    """

    def __init__(self, file: Path):
        self._file = file
        self.suffix = file.suffix
        self.stem = file.stem
        self._end, self._tail = _mend(file)
        size = file.stat().st_size
        self.used = f'{self._end / 1e6:.1f} of {size / 1e6:.1f} MB'

    def __str__(self) -> str:
        return str(self._file)

    def exists(self) -> bool:
        """As of a path."""
        return True

    def is_dir(self) -> bool:
        """As of a path."""
        return False

    def open(self, mode: str = 'rb') -> io.BufferedReader:
        """The whole part of the file and the new index behind it, as one stream."""
        return io.BufferedReader(_Joined(self._file, self._end, self._tail), 1 << 16)


class _Joined(io.RawIOBase):
    """The first `end` bytes of a file, followed by `tail`; read-only."""

    def __init__(self, file: Path, end: int, tail: bytes):
        self._raw = file.open('rb', buffering=0)
        self._end = end
        self._tail = tail
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._end + len(self._tail)
        self._position = offset + {0: 0, 1: self._position, 2: size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        if self._position < self._end:
            self._raw.seek(self._position)
            data = self._raw.read(min(len(buffer), self._end - self._position))
        else:
            start = self._position - self._end
            data = self._tail[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass
class _Chunk:
    """What the index says of one chunk."""

    start: int
    length: int
    head: bytes  # first and last time of a message
    sizes: bytes  # compression and sizes, as in the index
    offsets: dict[int, int]  # channel to its message index record
    index_length: int = 0

    def record(self) -> bytes:
        offsets = b''.join(struct.pack('<HQ', *item) for item in self.offsets.items())
        content = self.head + struct.pack('<QQ', self.start, self.length)
        content += struct.pack('<I', len(offsets)) + offsets
        return _record(_CHUNK_INDEX, content + struct.pack('<Q', self.index_length) + self.sizes)


def _mend(file: Path) -> tuple[int, bytes]:
    """Where the whole part of a file ends, and the bytes that close it."""
    chunks: list[_Chunk] = []
    indexed, other, kind = False, False, None
    end = len(_MAGIC)
    with file.open('rb') as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError('it does not begin as an MCAP file')
        for kind, start, length in _records(stream, file.stat().st_size):
            if kind in (_FOOTER, _DATA_END):
                break
            if kind == _CHUNK:
                chunks.append(_read_chunk(stream, start, length))
            elif kind == _MESSAGE_INDEX and chunks:
                (channel,) = struct.unpack('<H', stream.read(2))
                chunks[-1].offsets[channel] = start
                chunks[-1].index_length += length
                indexed = True
            elif kind in (_SCHEMA, _CHANNEL, _MESSAGE):
                other = True
            end = start + length
        stream.seek(end)
        torn = stream.read(1) in (b'', b'\0', bytes([_MESSAGE_INDEX]))  # where it was cut
    if not indexed or other:
        # Messages outside of chunks, or chunks that do not say which channels they hold, cannot be
        # in the index: the reader then goes through the whole file instead.
        return end, _closing(end, [])
    if torn and kind in (_CHUNK, _MESSAGE_INDEX):
        end = chunks.pop().start  # its index may lack channels
    return end, _closing(end, chunks)


def _records(stream, size: int) -> Iterator[tuple[int, int, int]]:
    """(kind, start, length) of every whole record; `stream` is then at its content."""
    start = len(_MAGIC)
    while start + _HEADER <= size:
        stream.seek(start)
        kind, content = struct.unpack('<BQ', stream.read(_HEADER))
        length = _HEADER + content
        if not kind or start + length > size:
            return
        yield kind, start, length
        start += length


def _read_chunk(stream, start: int, length: int) -> _Chunk:
    first, last, plain_size, _, name_length = struct.unpack('<QQQII', stream.read(32))
    name = stream.read(name_length)
    (size,) = struct.unpack('<Q', stream.read(8))
    sizes = struct.pack('<I', name_length) + name + struct.pack('<QQ', size, plain_size)
    return _Chunk(start, length, struct.pack('<QQ', first, last), sizes, {})


def _closing(end: int, chunks: list[_Chunk]) -> bytes:
    """End of the data, summary, footer and magic."""
    data_end = _record(_DATA_END, bytes(4))
    summary = b''
    if chunks:
        # The numbers of messages are counted by the reader, because the summary has no schemas.
        summary = b''.join(chunk.record() for chunk in chunks)
        summary += _record(_STATISTICS, struct.pack('<QHIIIIQQI', *[0] * 9))
    start = end + len(data_end) if summary else 0
    return data_end + summary + _record(_FOOTER, struct.pack('<QQI', start, 0, 0)) + _MAGIC


def _record(kind: int, content: bytes) -> bytes:
    return struct.pack('<BQ', kind, len(content)) + content
