"""What the models heard of a stream so far, window by window: DATA/speakers/STREAM/windows, for the re-clustering.

Append-only records, each with its length, its checksum and the sample at which its window ends. A record is written
before the append that moves the position over it; whoever takes the stream up cuts what lies behind the position, so
the file is what the journal says. One that holds MOST records becomes `older`, in place of the one before, and a new
one begins: the two have the newest MOST at any moment, and never more than twice as many. Voices of people are in them:
they are readable by their owner alone, go with a purge, and when their stream is done. A lost file costs quality, not
correctness.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MOST = 28_800  # windows: eight hours of speech. What is older stays as it is, for memory and time must have a bound
_HEAD = struct.Struct("<IIq")  # bytes of the record, their crc32, end of the window


class KeptWindows:
    """The files of one stream. One object adds to them; others may read."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path, self._older = folder, folder / "windows", folder / "older"
        self._count: int | None = None  # records in the newer file

    def cut(self, upto: int) -> None:
        """Drop the windows that end behind sample `upto`, and a torn end. Raises OSError."""
        for path in (self._older, self._path):
            size = count = 0
            for end, record in _records(path):
                if end > upto:
                    break
                size += _HEAD.size + len(record)
                count += 1
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > size:
                    os.truncate(path, size)
        self._count = count

    def add(self, end: int, record: bytes) -> None:
        """Raises OSError, on a full disk say; then nothing was added."""
        if self._count is None:
            self._count = sum(1 for _ in _records(self._path))
        if self._count >= MOST:
            os.replace(self._path, self._older)
            self._count = 0
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
        self._count += 1

    def _open(self) -> int:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def newest(self) -> list[bytes]:
        """At most MOST records; of a file those up to the first that is damaged."""
        both = (record for path in (self._older, self._path) for _, record in _records(path))
        return list(deque(both, MOST))

    def remove(self) -> None:
        """All that is kept of the stream."""
        self._count = None
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """End and bytes, one by one: no more than a record of it is in memory."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, crc, end = _HEAD.unpack(head)
            left -= _HEAD.size + length
            if not length or left < 0 or zlib.crc32(record := file.read(length)) != crc:
                return  # a length of 0: a machine that went off leaves zeros
            yield end, record
