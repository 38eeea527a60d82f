"""Which stream a source writes: found again after a crash, or begun at its first sample; ended once.

A live stream goes on when its last sample is younger than `resume_within_s`, and ends at a graceful stop; a batch
stream is named by the content of its file, goes on after any stop, and ends only at the end of its file.
"""

from __future__ import annotations

import errno
import os
import time
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

from capture.intake import ANCHOR_EVERY_NS, elapsed_ns
from common import backlog
from common.backlog import Anchor, Meta
from common.messages import SAMPLE_RATE
from common.process import holder
from common.settings import Settings, Source, UserError
from common.wire import run_dir

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Found(NamedTuple):
    """An open stream of this source: what is known about its end."""

    folder: Path
    meta: Meta
    head: int
    anchor: Anchor  # the last one; before the first: when the stream began
    last_write_ns: int  # wall clock


def age_s(found: Found, now: Anchor) -> float:
    """How long ago the stream got its last sample, by whatever clock says less; but a clock that was put back does
    not make it young: within a boot the last write came soon after the last anchor, and across, nobody knows."""
    same_boot = found.anchor.boot_id == now.boot_id
    if not same_boot and now.wall_ns < found.anchor.wall_ns:
        return inf
    heard = elapsed_ns(found.anchor, now)
    written = max(0, now.wall_ns - found.last_write_ns) if found.last_write_ns else heard
    return min(heard, max(written, heard - 2 * ANCHOR_EVERY_NS if same_boot else 0)) / 1e9


def choose(found: list[Found], origin: str, changed_ns: int, now: Anchor, resume_within_s: float) -> Found | None:
    """The open live stream to go on with. `changed_ns`: with another one the file is not what it was, be it older."""
    for one in sorted(found, key=lambda f: f.meta.started_ns, reverse=True):
        same = one.meta.origin == origin and one.meta.changed_ns in (0, changed_ns)
        if one.meta.lane == "live" and same and age_s(one, now) <= resume_within_s:
            return one
    return None


class Stream:
    """The stream that this process writes."""

    def __init__(self, settings: Settings, source: Source, origin: str, lane: str) -> None:
        self.settings, self.source, self.origin, self.lane = settings, source, origin, lane
        self.folder: Path | None = None  # None: begins, and gets its name, with its first sample
        self.meta: Meta | None = None
        self.position = self.changed_ns = 0
        self.anchor: Anchor | None = None  # set when the time since then must become a hole
        self._stale: list[Path] = []
        self._root: tuple[int, int] | None = None  # the folder of all streams, once it is there

    @property
    def name(self) -> str:
        return self.folder.name if self.folder else ""

    @property
    def complete(self) -> bool:
        return self.meta is not None and self.meta.ended

    def find(self, content: str = "", changed_ns: int = 0) -> None:
        """Look for the stream to go on with. `content`: sha256 of a batch file."""
        self.changed_ns, self._root = changed_ns, self._look_at_root()
        now = backlog.anchor_now(0)
        found = [_look(f, m) for f in backlog.streams(self.settings.streams) if (m := self._mine(f))]
        live = choose(found, self.origin, changed_ns, now, self.settings.capture.resume_within_s)
        if self.lane == "batch":
            live = None
            self.folder = self.settings.streams / f"{self.source.name}-{content[:16]}"
            self.meta = backlog.read_meta(self.folder)
            if self.meta is None and (damaged := self.folder / "meta.json").exists():
                raise UserError(f"{damaged} cannot be read; to begin anew: swapscribe purge {self.folder.name}")
            self.position = backlog.head(self.folder) if self.meta else 0
        elif live:
            self.folder, self.meta, self.position = live.folder, live.meta, live.head
            self.anchor = None if live.meta.resumable else live.anchor
        if self.folder:
            backlog.tidy_meta(self.folder)
        self._stale = [f.folder for f in found if f.meta.lane == "live" and f is not live]
        self._stale += [f for f in backlog.streams(self.settings.streams) if self._orphan(f, now)]

    def _orphan(self, folder: Path, now: Anchor) -> Meta | None:
        """An open live stream of a source that nobody captures any more, too old to be gone on with."""
        meta = backlog.read_meta(folder)
        if not meta or meta.ended or meta.lane != "live" or meta.source == self.source.name:
            return None
        try:
            old = age_s(_look(folder, meta), now) > self.settings.capture.resume_within_s
        except OSError:  # not even readable: no reason to lose our own audio
            return None
        return meta if old and holder(run_dir(self.settings), f"capture@{meta.source}") is None else None

    def _mine(self, folder: Path) -> Meta | None:
        meta = backlog.read_meta(folder)
        return meta if meta and meta.source == self.source.name and not meta.ended else None

    def end_stale(self) -> dict[str, str]:
        """End the live streams that nobody will go on with, if that is still so: they may be purged, ended or gone on
        with since. Returns their names, each with why it cannot be ended, which is no reason to lose our own audio.
        Raises OSError (disk full); call it again."""
        done = {}
        while self._stale:
            folder, now = self._stale[-1], backlog.anchor_now(0)
            try:
                if meta := self._mine(folder) or self._orphan(folder, now):
                    _write_end(folder, meta, backlog.head(folder), "not resumed")
                    done[folder.name] = ""
            except OSError as e:
                if e.errno in NO_SPACE:
                    raise
                done[folder.name] = e.strerror or str(e)
            self._stale.pop()
        return done

    def _look_at_root(self) -> tuple[int, int] | None:
        """Which directory it is: another one where its disk was unmounted."""
        try:
            found = os.stat(self.settings.streams)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def away(self) -> bool:
        """All streams are gone, not just this one: nobody meant it."""
        return self._root != self._look_at_root()

    def open(self, started_ns: int, resumable: bool) -> backlog.Writer:
        """Begin the stream unless it exists. Raises OSError (disk full); call it again."""
        if self.folder is None:
            self.folder = self._new_folder(started_ns)
        if self.meta is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            meta = Meta(
                stream=self.folder.name,
                source=self.source.name,
                lane=self.lane,
                origin=self.origin,
                started_ns=started_ns,
                resumable=resumable,
                changed_ns=self.changed_ns,
                language=self.source.language,
                glossary=self.source.glossary,
            )
            backlog.write_meta(self.folder, meta)
            backlog.sync_dir(self.folder.parent)
            self.meta = meta
        self._root = self._root or self._look_at_root()
        self.tell_language()
        os.stat(self.folder)  # purged since we found it: what we write would belong to no stream
        return backlog.Writer(self.folder, self.settings.capture.file_s * SAMPLE_RATE)

    def tell_language(self) -> None:
        """A stream that goes on is heard as its source says now. Raises OSError (disk full); call it again."""
        wanted = {"language": self.source.language, "glossary": self.source.glossary}
        if self.folder and self.meta and (meta := msgspec.structs.replace(self.meta, **wanted)) != self.meta:
            backlog.write_meta(self.folder, meta)
            self.meta = meta

    def _new_folder(self, started_ns: int) -> Path:
        """`<source>-<UTC start>`; a stream begun within the second of another takes the next second's name."""
        root = self.settings.streams
        root.mkdir(parents=True, exist_ok=True)
        second = started_ns // 10**9
        while True:
            folder = root / f"{self.source.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(second))}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                second += 1

    def finish(self, end: int, reason: str) -> None:
        """Raises OSError (disk full); call it again."""
        assert self.folder and self.meta
        if not self.meta.ended:
            _write_end(self.folder, self.meta, end, reason)
            self.meta = backlog.read_meta(self.folder)


def _look(folder: Path, meta: Meta) -> Found:
    anchors = backlog.anchors(folder)
    first = Anchor(sample=0, wall_ns=meta.started_ns, boot_ns=0, boot_id="")
    return Found(folder, meta, backlog.head(folder), anchors[-1] if anchors else first, backlog.last_write_ns(folder))


def _write_end(folder: Path, meta: Meta, end: int, reason: str) -> None:
    backlog.write_meta(folder, msgspec.structs.replace(meta, ended=True, end=end, end_reason=reason))
