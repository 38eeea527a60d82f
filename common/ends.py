"""Which sources have come to their end: told by their streams, and kept over a kill of the launcher.

RUN/launcher.since holds the boot, the streams that had ended when the first launcher of this boot began, and
`done SOURCE` for each source that is finished: a purge takes its streams away, and it must not be played again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Set
from pathlib import Path

from common import backlog
from common.settings import Settings

NOT_BY_SOURCE = ("stopped", "not resumed")  # end_reason of a live stream that was ended by order, or given up


class Ends:
    """The file; a graceful stop forgets it."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.settings, self._path = settings, path
        self.ended = frozenset[str]()  # streams, when it all began
        self.done = frozenset[str]()  # sources
        self._head = ""  # the first line and those of the streams
        self._written = ""

    def recall(self) -> bool:
        """Take up what a killed launcher left. True when nothing was: another boot, or after a graceful stop."""
        this_boot, boot, lines = backlog.boot_id(), "", list[str]()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            boot, *lines = self._path.read_text().splitlines() or [""]
        fresh = boot != this_boot
        if fresh:
            self.ended = ended_streams(self.settings)
        else:
            self.ended = frozenset(line for line in lines if " " not in line)
            self.done = frozenset(line.removeprefix("done ") for line in lines if line.startswith("done "))
        self._head = "\n".join([this_boot, *sorted(self.ended)])
        return fresh

    def over(self, source: str) -> bool:
        """Is this source at its end, as far as is known?"""
        return source_ended(self.settings, source, self.ended, source in self.done)

    def keep(self, done: Set[str]) -> None:
        """Write down which sources are at their end, if that is news or could not be written: on a full disk say."""
        text = "\n".join([self._head, *(f"done {source}" for source in sorted(done))])
        if self._head and text != self._written:
            with contextlib.suppress(OSError):
                backlog.replace_file(self._path, text.encode(), durable=False)
                self._written = text

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def ended_streams(settings: Settings) -> frozenset[str]:
    """Names of the streams that have ended, for whatever reason."""
    found = [(p.name, backlog.read_meta(p)) for p in backlog.streams(settings.streams)]
    return frozenset(name for name, meta in found if meta and meta.ended)


def source_ended(settings: Settings, source: str, known: frozenset[str], done: bool = False) -> bool:
    """Did the source come to its end since `known` were the ended streams? An adopted capture leaves no exit status,
    one killed after its last write a misleading one: its streams tell. No clock is asked, for clocks are set.

    `done`: it had, and its stream may have been purged; with an open one it has been begun again."""
    found = [(p.name, meta) for p in backlog.streams(settings.streams) if (meta := backlog.read_meta(p))]
    mine = [meta for name, meta in found if meta.source == source and name not in known]
    over = all(meta.ended for meta in mine)
    return over and (done or any(meta.end_reason not in NOT_BY_SOURCE for meta in mine))
