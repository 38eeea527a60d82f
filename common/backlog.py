"""The durable audio backlog: files of s16le mono 16 kHz samples, named by their first sample.

    DATA/streams/<stream>/meta.json            what the stream is, and whether it has ended
                          audio/<first>.pcm    samples first.., contiguous inside a file
                          gaps.jsonl           samples that were never written, and why
                          anchors.jsonl        (sample, wall clock, boot clock) once a minute: sound cards drift

One process writes (capture, through `Writer`); anybody reads the files (through `Reader`): no RPC, and readers work
while capture is dead. After a kill the files hold everything that was written; an odd last byte is cut at start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from common.messages import SAMPLE_RATE, UNDECODABLE, Span

BYTES = 2  # per sample
TAIL_BYTES = 4096  # many lines of anchors.jsonl, and of gaps.jsonl
LONGEST_NAME = 255  # bytes, of a file
GONE = "audio removed before it was read"
T = TypeVar("T")


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """meta.json."""

    stream: str
    source: str
    lane: str  # live | batch
    origin: str  # where the samples come from, for people
    started_ns: int  # wall clock of sample 0
    resumable: bool  # a file: goes on at its sample after an outage; else the hole is recorded
    changed_ns: int = 0  # the file's time of last change: with another it is another file; 0: no file, or not told
    language: str = ""  # auto, a code, or empty: as in the settings
    glossary: tuple[str, ...] = ()  # names and terms to expect, beside those of the settings
    ended: bool = False
    end: int = 0  # first sample after the last one, once ended
    end_reason: str = ""


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """A line of gaps.jsonl."""

    start: int
    end: int
    reason: str


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """A line of anchors.jsonl: `sample` was heard at these clocks. boot_ns compares within one `boot_id` only."""

    sample: int
    wall_ns: int
    boot_ns: int
    boot_id: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def anchor_now(sample: int) -> Anchor:
    return Anchor(
        sample=sample, wall_ns=time.time_ns(), boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id=boot_id()
    )


def read_meta(folder: Path) -> Meta | None:
    """The stream's meta, None when it is not there (yet) or unreadable."""
    try:
        return msgspec.json.decode((folder / "meta.json").read_bytes(), type=Meta)
    except (OSError, *UNDECODABLE):
        return None


def write_meta(folder: Path, meta: Meta) -> None:
    """Replace meta.json durably. Several captures may do it at once: to end a stream that nobody goes on with."""
    replace_file(folder / "meta.json", msgspec.json.encode(meta), durable=True, alone=False)


def tidy_meta(folder: Path) -> None:
    """Remove what a `write_meta` left that was killed."""
    for left in folder.glob("meta.json*.new"):
        with contextlib.suppress(OSError):
            left.unlink()


def replace_file(path: Path, data: bytes, durable: bool, mode: int = 0o600, alone: bool = True) -> None:
    """Write + rename: a reader sees the old or the new content. `durable` also outlives the machine. Raises OSError.

    Not `alone`: others may do the same at this moment, each with a temporary file of its own; somebody has to tidy up.
    """
    end = ".new" if alone else f".{threading.get_native_id()}.new"
    new = path.with_name(os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(end)]) + end)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:  # a nearly full disk takes a part and refuses the rest: never rename half a file
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    if durable:
        sync_dir(path.parent)


def sync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def streams(root: Path) -> list[Path]:
    """Folders of all streams, oldest name first; what is being removed is hidden and not among them, and neither is
    what may not be entered: `lost+found` of a disk of its own."""
    try:
        return sorted(p for p in root.iterdir() if p.name[0] != "." and os.path.exists(p / "meta.json"))
    except FileNotFoundError:
        return []


def _lines(path: Path, kind: type[T], tail: int = 0) -> list[T]:
    """All whole lines of a JSON-lines file, or those of its last `tail` bytes; a torn last line is not there."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - tail) if tail else 0)
            data = f.read()
    except FileNotFoundError:
        return []
    out = []
    for line in data.split(b"\n")[:-1]:
        try:
            out.append(msgspec.json.decode(line, type=kind))
        except UNDECODABLE:
            continue
    return out


def holes(folder: Path) -> list[Hole]:
    return _lines(folder / "gaps.jsonl", Hole)


def _holes_after(folder: Path, position: int) -> list[Hole]:
    """At least those that end after `position`; for one near the head most are left unread."""
    last = _lines(folder / "gaps.jsonl", Hole, tail=TAIL_BYTES)
    return last if last and last[0].start <= position else holes(folder)


def anchors(folder: Path) -> list[Anchor]:
    return _lines(folder / "anchors.jsonl", Anchor)


def last_anchors(folder: Path) -> list[Anchor]:
    """Those of the last half hour or so, however long the stream is."""
    return _lines(folder / "anchors.jsonl", Anchor, tail=TAIL_BYTES)


def audio_files(folder: Path) -> list[tuple[int, Path]]:
    """(first sample, path) of all audio files, in order."""
    try:
        names = os.listdir(folder / "audio")
    except FileNotFoundError:
        return []
    return sorted((int(n[:-4]), folder / "audio" / n) for n in names if n.endswith(".pcm") and n[:-4].isdigit())


def size_samples(path: Path) -> int:
    """Whole samples in a file; 0 when it has just been removed."""
    try:
        return os.stat(path).st_size // BYTES
    except FileNotFoundError:
        return 0


def head(folder: Path) -> int:
    """First sample not yet in the backlog. A recorded hole at the very end counts as passed."""
    meta = read_meta(folder)
    if meta and meta.ended:  # its audio may be gone by now
        return meta.end
    return max(proven(folder), written(folder))


def written(folder: Path) -> int:
    """First sample after the audio files that are there."""
    files = audio_files(folder)
    return files[-1][0] + size_samples(files[-1][1]) if files else 0


def proven(folder: Path) -> int:
    """What was captured up to here, whatever became of the audio files: an anchor or a hole is written after the
    samples before it are on the disk."""
    anchor = _lines(folder / "anchors.jsonl", Anchor, tail=TAIL_BYTES)[-1:]
    hole = _lines(folder / "gaps.jsonl", Hole, tail=TAIL_BYTES)[-1:]  # each begins at or after the end of the last one
    return max([0, *(a.sample for a in anchor), *(h.end for h in hole)])


def last_write_ns(folder: Path) -> int:
    """Wall clock of the newest write of audio, 0 when there is none."""
    files = audio_files(folder)
    try:
        return os.stat(files[-1][1]).st_mtime_ns if files else 0
    except FileNotFoundError:
        return 0


def remove(folder: Path) -> None:
    """Really delete a stream's audio: out of sight in one step, then gone."""
    grave = folder.with_name(f".{folder.name}.removed-{os.getpid()}")
    os.rename(folder, grave)
    sync_dir(folder.parent)
    shutil.rmtree(grave)


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """`pcm` begins at sample `start`. Empty pcm and `hole_end` > start: nothing exists until `hole_end`."""

    start: int
    pcm: bytes = b""
    hole_end: int = 0
    reason: str = ""

    @property
    def end(self) -> int:
        return self.start + len(self.pcm) // BYTES if self.pcm else max(self.start, self.hole_end)


class Reader:
    """Reads a stream's samples by position, from anywhere, while it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[tuple[int, Path]] = []

    def _find(self, position: int) -> tuple[int, Path, int | None] | None:
        """(first, path, first sample of the next file) of the last file that begins at or before `position`."""
        for attempt in (0, 1):
            if attempt or not self._files:
                self._files = audio_files(self.folder)
            found = None
            for i, (first, path) in enumerate(self._files):
                if first > position:
                    break
                found = (first, path, self._files[i + 1][0] if i + 1 < len(self._files) else None)
            # The newest file we know may have a successor by now: look again before believing it is the last.
            if found and found[2] is not None and os.path.exists(found[1]):
                return found
        return found

    def read(self, position: int, max_samples: int) -> Chunk:
        """Samples from `position` on, a hole, or an empty chunk at the head."""
        found = self._find(position)
        if found:
            first, path, following = found
            try:
                with open(path, "rb") as f:
                    f.seek((position - first) * BYTES)
                    pcm = f.read(max_samples * BYTES)
                    size = os.fstat(f.fileno()).st_size // BYTES
            except FileNotFoundError:
                pcm, size = b"", 0
            pcm = pcm[: len(pcm) // BYTES * BYTES]
            if pcm:
                return Chunk(start=position, pcm=pcm)
            if following is None and position <= first + size:
                return self._tail(position)
        else:
            following = self._files[0][0] if self._files else None
        if following is None or following <= position:
            return self._tail(position)
        return self._missing(position, following)

    def samples(self, span: Span) -> bytes | None:
        """All samples of `span`, which may lie in several files; None when one of them is missing."""
        pcm = bytearray()
        while (at := span[0] + len(pcm) // BYTES) < span[1]:
            chunk = self.read(at, span[1] - at)
            if not chunk.pcm:
                return None
            pcm += chunk.pcm
        return bytes(pcm)

    def _tail(self, position: int) -> Chunk:
        """At the end of the files: a recorded hole that no audio follows yet, audio that was deleted, or nothing."""
        for h in _holes_after(self.folder, position):
            if h.start <= position < h.end:
                if audio_files(self.folder) != self._files:  # audio came while we looked: read that first
                    self._files = []
                    return Chunk(start=position)
                return Chunk(start=position, hole_end=h.end, reason=h.reason)
        meta = read_meta(self.folder)
        end = meta.end if meta and meta.ended else proven(self.folder)
        if position < end:  # it was there: look again, after what proves it, then it was removed
            self._files = audio_files(self.folder)
            later = [first for first, path in self._files if first + size_samples(path) > position]
            if not later:
                return self._missing(position, end)
        return Chunk(start=position)

    def _missing(self, position: int, end: int) -> Chunk:
        """No file holds `position`; one begins at `end`. Recorded holes and removed audio are told apart."""
        for h in _holes_after(self.folder, position):
            if h.start <= position < h.end:
                return Chunk(start=position, hole_end=min(end, h.end), reason=h.reason)
            if position < h.start < end:
                end = h.start
        return Chunk(start=position, hole_end=end, reason=GONE)


class Writer:
    """Appends samples; one per stream. Raises OSError (disk full) with `end` at the last whole sample written.

    `append` then `sync`: what is synced survives the machine, what is appended survives this process.
    """

    def __init__(self, folder: Path, file_samples: int) -> None:
        self.folder, self.file_samples = folder, file_samples
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        self._inode = os.stat(folder).st_ino
        self._fd = -1
        self._first = 0
        files = audio_files(folder)
        if files:
            path = files[-1][1]
            size = os.stat(path).st_size
            if size % BYTES:  # torn by a kill or a full disk
                os.truncate(path, size - size % BYTES)
        for name in ("gaps.jsonl", "anchors.jsonl"):
            _cut_torn_line(folder / name)
        self.end = head(folder)

    def append(self, start: int, pcm: bytes, reason: str = "") -> int:
        """Write samples `start`..; a jump from `end` is recorded as a hole with `reason`. Returns samples written."""
        if start != self.end:
            if start < self.end:
                raise ValueError(f"samples {start} lie before the end {self.end}")
            self.hole(start, reason)
        view = memoryview(pcm)[: len(pcm) // BYTES * BYTES]
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self.close()  # only this file was deleted, by hand: go on in a new one, and readers see what is gone
        while view:
            if self._fd < 0 or self.end - self._first >= self.file_samples:
                self._open(self.end)
            room = (self._first + self.file_samples - self.end) * BYTES
            self._write(view[:room])
            view = view[room:]
        return len(pcm) // BYTES

    def _write(self, view: memoryview) -> None:
        written = 0
        while written < len(view):
            try:
                written += os.write(self._fd, view[written:])
            except OSError:
                self._finish(written)
                raise
        self.end += written // BYTES

    def _finish(self, written: int) -> None:
        """After a failed write keep whole samples only."""
        self.end += written // BYTES
        if written % BYTES:
            os.ftruncate(self._fd, (self.end - self._first) * BYTES)

    def hole(self, end: int, reason: str) -> None:
        """Record that the samples up to `end` will never come. Durable before any sample after it is written."""
        if end <= self.end:
            raise ValueError(f"a hole up to {end} lies before the end {self.end}")
        self.close()
        line = msgspec.json.encode(Hole(start=self.end, end=end, reason=reason)) + b"\n"
        _append_line(self.folder / "gaps.jsonl", line)
        self.end = end

    def anchor(self, anchor: Anchor | None = None) -> None:
        """Record an anchor: the given one (taken where the sample was heard), else the end and now."""
        line = msgspec.json.encode(anchor or anchor_now(self.end)) + b"\n"
        _append_line(self.folder / "anchors.jsonl", line)

    def removed(self) -> bool:
        """Somebody deleted the stream under us (a purge): what we write now would go nowhere."""
        try:
            return os.stat(self.folder).st_ino != self._inode
        except FileNotFoundError:
            return True

    def sync(self) -> None:
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _open(self, first: int) -> None:
        self.close()
        path = self.folder / "audio" / f"{first:020d}.pcm"
        path.parent.mkdir(exist_ok=True)  # somebody may have deleted it, with all that is in it
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            sync_dir(path.parent)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._first = fd, first


def _append_line(path: Path, line: bytes) -> None:
    """Append one line durably; a line that does not fit on the disk leaves no torn half behind."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            if os.write(fd, line) != len(line):
                raise OSError(28, "No space left on device", str(path))
        except OSError:
            os.ftruncate(fd, size)
            raise
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _cut_torn_line(path: Path) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def gaps_within(folder: Path, span: Span) -> list[Hole]:
    return [h for h in holes(folder) if h.start < span[1] and span[0] < h.end]


def seconds(samples: int) -> float:
    return samples / SAMPLE_RATE
