"""What the models heard of a stream so far, window by window: DATA/speakers/STREAM/windows, for the re-clustering.

Append-only records, each with its length, its checksum and the sample at which its window ends. A record is written
before the append that moves the position over it; whoever takes the stream up cuts what lies behind the position, so
the file is what the journal says. Voices of people are in it: it is readable by its owner alone, goes with a purge, and
when its stream is done. A lost file costs quality, not correctness.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("<IIq")  # bytes of the record, their crc32, end of the window


class KeptWindows:
    """The file of one stream."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "windows"

    def cut(self, upto: int) -> None:
        """Drop the windows that end behind sample `upto`, and a torn end. Raises OSError."""
        size = 0
        for end, record in self._records():
            if end > upto:
                break
            size += _HEAD.size + len(record)
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size > size:
                os.truncate(self._path, size)

    def add(self, end: int, record: bytes) -> None:
        """Raises OSError, on a full disk say; then nothing was added."""
        fd = self._open()
        try:
            size = os.fstat(fd).st_size
            data = _HEAD.pack(len(record), zlib.crc32(record), end) + record
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(28, "No space left on device", str(self._path))
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def _open(self) -> int:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def all(self) -> list[bytes]:
        """Every record, up to the first that is damaged."""
        return [record for _, record in self._records()]

    def _records(self) -> Iterator[tuple[int, bytes]]:
        try:
            data = memoryview(self._path.read_bytes())
        except FileNotFoundError:
            return
        at = 0
        while at + _HEAD.size <= len(data):
            length, crc, end = _HEAD.unpack_from(data, at)
            record = bytes(data[at + _HEAD.size : at + _HEAD.size + length])
            if len(record) < length or zlib.crc32(record) != crc:
                return
            yield end, record
            at += _HEAD.size + length

    def remove(self) -> None:
        """All that is kept of the stream."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)
