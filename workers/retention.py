"""What the feed deletes by age: words of streams that ended longer ago than `retention.events_d`, and voices left over.

A purge cannot be undone, and clocks are set. So a stream that ended in this run of the feed is as old as the clock
since boot says, also afterwards (its end is dated anew); one dated before this program was written ended when that was
noticed; and nothing is purged in the first hour of a run, nor for a day after the clock was seen to change.
"""

from __future__ import annotations

import contextlib
import shutil

from common import backlog
from common.process import Log
from common.settings import Settings
from workers.journal import Journal

SET_S = 60.0  # a wall clock that moves by more against the one since boot, from round to round, was set
WAIT_S = 86_400.0
FIRST_S = 3_600.0  # a machine without a clock of its own knows the time once the network has told it
WRITTEN_NS = 1_767_225_600_000_000_000  # 2026-01-01: no clock that is right says less


class Retention:
    """Ages of ended streams. `now_s`: clock since boot, in which a machine's sleep counts."""

    def __init__(self, journal: Journal, limit_s: float, log: Log, now_s: float) -> None:
        self._journal, self._limit_s, self._log = journal, limit_s, log
        self._not_before_s = now_s + FIRST_S
        self._offset_s: float | None = None
        self._ended_s: dict[str, float] = {}  # in this run

    def ended(self, stream: str, now_s: float) -> None:
        """The journal has just got its end."""
        self._ended_s[stream] = now_s

    def round(self, now_s: float, wall_ns: int) -> list[str]:
        """Once a minute: which streams are to be purged."""
        if self._limit_s <= 0:
            return []
        offset_s = wall_ns / 1e9 - now_s
        moved_s = offset_s - (offset_s if self._offset_s is None else self._offset_s)
        self._offset_s = offset_s
        if abs(moved_s) > SET_S:
            self._not_before_s = max(self._not_before_s, now_s + WAIT_S)
            self._log.warning("the clock was set: nothing is purged by age for a day", moved_s=round(moved_s))
        ends = {s: heads.get("stream_ended", 0) for s, heads in self._journal.heads.items()}
        kept = {s: seq for s, seq in ends.items() if seq > self._journal.heads[s].get("purged", 0)}
        self._ended_s = {s: at_s for s, at_s in self._ended_s.items() if s in kept}
        ages_s = {s: self._age_s(s, seq, now_s, wall_ns) for s, seq in kept.items()}
        return [s for s, age_s in ages_s.items() if age_s > self._limit_s and now_s >= self._not_before_s]

    def _age_s(self, stream: str, seq: int, now_s: float, wall_ns: int) -> float:
        known_ns = self._journal.ended_ns(seq)
        if known_ns < WRITTEN_NS:
            self._ended_s.setdefault(stream, now_s)
        if stream not in self._ended_s:
            return (wall_ns - known_ns) / 1e9
        age_s = now_s - self._ended_s[stream]
        ended_ns = wall_ns - round(age_s * 1e9)
        if abs(ended_ns - known_ns) > SET_S * 1e9:
            self._journal.date_end(seq, ended_ns)
        return age_s


def forget_voices(settings: Settings, journal: Journal, log: Log) -> None:
    """What a diarizer has left of streams that are over and was then turned off, or of a purged one by a step that was
    under way: it would stay for ever. A stream that is only out of sight, with its disk, loses nothing."""
    if not settings.streams.exists():
        return
    off = not settings.speakers.enabled
    for kept in settings.windows("").glob("*"):
        meta, heads = backlog.read_meta(settings.streams / kept.name), journal.heads.get(kept.name, {})
        purged = meta is None and heads.get("purged", 0) == max(heads.values(), default=-1)
        if purged or (off and (meta is None or meta.ended)):
            with contextlib.suppress(OSError):
                shutil.rmtree(kept)
                why = "it was purged" if purged else "speakers.enabled is false"
                log.info("voices removed", stream=kept.name, reason=why)
