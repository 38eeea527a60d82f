"""Deletes audio files that everybody has read, by age; on a full disk at once, the oldest first.

Who has read how far is heard in the feed's beat, without waiting for it: no beat for 5 s, nothing is deleted. Unread
audio goes only by the age limit a person set. The newest file of an open stream stays: it tells where the stream ends.
Captions make audio read; whoever else reads it is waited for, but not so long that the disk fills up or an age that a
person set means nothing. What cannot be deleted is said once and tried again; it keeps nobody from the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from common import backlog
from common.backlog import Anchor
from common.messages import Beat, StreamBeat
from common.process import Log
from common.settings import RetentionSettings
from common.topology import COVERAGE_PRODUCER

BEAT_WITHIN_S = 5.0
FREE_AT_ONCE = 32 << 20  # bytes a full disk is given back per call
AS_LONG_AGAIN = 2  # times `read_audio_h`: then what has its captions goes, whoever else has not read it
GRAVE_S = 600.0  # a removal that was killed half way is finished after this time


class Candidate(NamedTuple):
    """A whole audio file that may be deleted once it is old enough."""

    path: Path
    end: int  # first sample after it
    written_s: float  # wall clock of its last write
    size: int


def read_upto(beat: StreamBeat, readers: Mapping[str, int]) -> int:
    """First sample that some reader of audio has not processed. A reader with parts is as far as its slowest part.

    `readers`: how many samples before its position each of them still reads, while the stream is not over for it.
    """
    return min(_reader_upto(beat, reader, behind) for reader, behind in readers.items())


def _reader_upto(beat: StreamBeat, reader: str, behind: int) -> int:
    parts = [p.positions for name, p in beat.producers.items() if name == reader or name.startswith(reader + ".")]
    return min((max(0, p.get("audio", 0) - (0 if p.get("meta") == 2 else behind)) for p in parts), default=0)


def due(
    candidate: Candidate,
    upto: int,
    now_s: float,
    limits: RetentionSettings,
    disk_full: bool,
    captioned: int = 0,
    pressing: bool = False,
) -> bool:
    """Whether this file goes now. 0 hours mean never, also on a full disk.

    `upto`: read by everybody; `captioned`: by those who make captions. A reader that cannot run must not cost captions
    the disk: `pressing` says that audio is about to be lost, as it waits in RAM for a disk that is full.
    """
    age_h = (now_s - candidate.written_s) / 3600
    if candidate.end <= upto and limits.read_audio_h > 0:
        return disk_full or age_h >= limits.read_audio_h
    if candidate.end <= captioned and limits.read_audio_h > 0:
        return pressing or age_h >= AS_LONG_AGAIN * limits.read_audio_h
    return limits.unread_audio_h > 0 and age_h >= limits.unread_audio_h


def by_boot_clock(candidate: Candidate, anchors: list[Anchor], now: Anchor) -> Candidate:
    """Within one boot a file is no older than the newest anchor before its end, however the wall clock has jumped."""
    before = [a.boot_ns for a in anchors if a.sample <= candidate.end and a.boot_id == now.boot_id]
    if not before:
        return candidate
    return candidate._replace(written_s=max(candidate.written_s, (now.wall_ns - (now.boot_ns - before[-1])) / 1e9))


class Retention:
    """What one capture deletes: files of its own source's streams, and of ended streams of anybody."""

    def __init__(self, streams: Path, source: str, limits: RetentionSettings, readers: Mapping[str, int]) -> None:
        self.streams, self.source, self.limits, self.readers = streams, source, limits, readers
        self._journal = ""
        # Stream -> when it began. One that was purged and is captured again has the same name, and has nothing of what
        # was known of the first.
        self._began: dict[str, int] = {}
        # Stream -> read by everybody up to here, and by captions; the beat names a few at a time.
        self._upto: dict[str, tuple[int, int]] = {}
        self.unheard = 0  # files of the last sweep that had their captions, and no more than that
        self.refused: dict[Path, str] = {}  # what the last sweep could not delete or look into, and why, if new
        self._known: dict[Path, str] = {}  # the same of all sweeps
        self._heard_at = float("-inf")
        self._emptied: set[str] = set()  # ended and without audio: nothing will ever be due there

    def hear(self, beat: Beat, now: float) -> None:
        if beat.journal != self._journal:  # another journal: what was read there may be lost
            self._journal, self._upto = beat.journal, {}
        self._heard_at = now
        captions = {COVERAGE_PRODUCER: self.readers.get(COVERAGE_PRODUCER, 0)}
        self._upto |= {
            name: (read_upto(stream, self.readers), read_upto(stream, captions))
            for name, stream in beat.streams.items()
        }

    def sweep(self, now: float, disk_full: bool = False, pressing: bool = False) -> list[Path]:
        """Delete what is due; with a full disk no more than is needed for a while. `now`: monotonic clock."""
        self.unheard, self.refused = 0, {}
        if now - self._heard_at > BEAT_WITHIN_S:
            return []
        clocks, gone, freed = backlog.anchor_now(0), list[Path](), 0
        wall_s = clocks.wall_ns / 1e9
        for stream, candidate in sorted(self._candidates(), key=lambda pair: pair[1].written_s):
            if disk_full and freed >= FREE_AT_ONCE:
                break
            upto, captioned = self._upto.get(stream, (0, 0))
            if not due(candidate, upto, wall_s, self.limits, disk_full, captioned, pressing):
                continue
            with self._one(candidate.path):
                candidate = by_boot_clock(candidate, backlog.anchors(self.streams / stream), clocks)
                if due(candidate, upto, wall_s, self.limits, disk_full, captioned, pressing):
                    candidate.path.unlink(missing_ok=True)  # another capture may have been faster
                    gone.append(candidate.path)
                    self.unheard += upto < candidate.end <= captioned
                    freed += candidate.size
        self._finish_removals(wall_s)
        return gone

    def waiting(self) -> set[str]:
        """Streams that have files to delete, sooner or later."""
        return {stream for stream, _ in self._candidates()}

    @contextlib.contextmanager
    def _one(self, path: Path) -> Iterator[None]:
        """What a disk or somebody's permissions refuse here must not keep us from everything else."""
        try:
            yield
        except FileNotFoundError:  # deleted meanwhile
            return
        except OSError as e:
            why = e.strerror or str(e)
            if self._known.get(path) != why:
                self._known[path] = self.refused[path] = why

    def _candidates(self) -> Iterator[tuple[str, Candidate]]:
        folders = list[Path]()
        with self._one(self.streams):
            folders = backlog.streams(self.streams)
        for folder in folders:
            meta = backlog.read_meta(folder)
            if meta and self._began.setdefault(folder.name, meta.started_ns) != meta.started_ns:
                self._began[folder.name] = meta.started_ns
                self._upto.pop(folder.name, None)
                self._emptied.discard(folder.name)
            if folder.name in self._emptied or meta is None or not (meta.ended or meta.source == self.source):
                continue
            files = list[tuple[int, Path]]()
            with self._one(folder):
                files = backlog.audio_files(folder)
                if meta.ended and not files:
                    self._emptied.add(folder.name)
            for first, path in files if meta.ended else files[:-1]:
                with self._one(path):
                    info = os.stat(path)
                    end = first + info.st_size // backlog.BYTES
                    yield folder.name, Candidate(path, end, info.st_mtime, info.st_size)

    def _finish_removals(self, wall_s: float) -> None:
        with self._one(self.streams):
            for grave in self.streams.glob(".*.removed-*"):
                with self._one(grave):
                    if wall_s - grave.stat().st_ctime > GRAVE_S:
                        shutil.rmtree(grave)


def say_swept(log: Log, retention: Retention, gone: list[Path], **fields: bool) -> None:
    """What the last sweep did, and could not do for the first time."""
    if gone:
        log.info("audio removed", files=len(gone), first=str(gone[0]), **fields)
    for path, why in list(retention.refused.items())[:1]:
        log.warning("audio cannot be removed", files=len(retention.refused), first=str(path), error=why)
    if retention.unheard:  # it will not be known who speaks there, and why must not be a riddle
        others = ", ".join(sorted(set(retention.readers) - {COVERAGE_PRODUCER}))
        log.warning("audio removed that has captions, but was not heard by all", files=retention.unheard, others=others)
