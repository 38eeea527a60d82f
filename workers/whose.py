"""Who speaks in the streams that the page shows. The viewer's own thread reads, its connections ask.

Publications only say that there is something new; it is read by replay, so nothing is missed. The past of a stream is
read when a page first shows it: its captions are there meanwhile, without speakers.
"""

from __future__ import annotations

import threading

from common import messages as m
from common.feed_client import Past
from common.join import KINDS, Join
from common.settings import Settings
from common.speaker_runs import NOBODY, Run

MOST_STREAMS = 8  # whose speakers are held; another page may ask for others
Mark = tuple[int, int]  # which Join, and its mark
KEPT = 4 * 3600 * m.SAMPLE_RATE  # samples: speakers of what was said earlier stay as a page has them


class Whose:
    """One Join for each stream that somebody looks at."""

    def __init__(self, settings: Settings) -> None:
        self._past = Past(settings, KINDS)
        self._journal = ""
        self._lock = threading.Lock()
        self._joins: dict[str, tuple[int, Join]] = {}  # with a number of its own; the one asked for last is the last
        self._made = 0
        self._asked: set[str] = set()  # by connections, not read yet
        self._head: dict[str, int] = {}  # samples

    # The viewer's thread

    def news(self, e: m.Event) -> None:
        with self._lock:
            if e.stream in self._joins and e.kind in KINDS:
                self._past.want(e.stream)

    def read(self) -> bool:
        """Go on reading, without waiting. True: there is something new to be shown."""
        with self._lock:
            for stream in self._asked:
                self._past.want(stream)
            self._asked.clear()
            found = self._past.events()
            if self._journal not in ("", self._past.journal):
                self._joins.clear()
            self._journal = self._past.journal
            for e in found:
                if e.stream in self._joins:
                    join = self._joins[e.stream][1]
                    join.take(e)
                    self._trim(e, join)
            return bool(found)

    @property
    def busy(self) -> bool:
        return self._past.busy or bool(self._asked)

    def _trim(self, e: m.Event, join: Join) -> None:
        body = e.decode() if e.kind == "transcript" else None
        if isinstance(body, m.Transcript) and body.span[1] > self._head.get(e.stream, 0) + KEPT // 10:
            self._head[e.stream] = body.span[1]
            join.trim(body.span[1] - KEPT)

    # Connections

    def _join(self, stream: str) -> tuple[int, Join]:
        found = self._joins.pop(stream, None)
        if found is None:
            self._made += 1
            found = (self._made, Join())
            self._asked.add(stream)
            self._head.pop(stream, None)
            while len(self._joins) >= MOST_STREAMS:
                gone = next(iter(self._joins))
                del self._joins[gone]
                self._past.forget(gone)
        self._joins[stream] = found
        return found

    def streams(self) -> list[str]:
        with self._lock:
            return list(self._joins)

    def mark(self, stream: str) -> Mark:
        with self._lock:
            made, join = self._join(stream)
            join.since(join.mark)
            return made, join.mark

    def runs(self, stream: str, segment: str) -> list[list[str]]:
        """(speaker, text) of each run of a segment; none when nobody is known in it."""
        with self._lock:
            return _shown(self._join(stream)[1].runs(segment))

    def changes(self, stream: str, mark: Mark) -> tuple[Mark, dict[str, list[list[str]]], dict[str, str]]:
        """The mark now, the runs of each segment for which they have become others since `mark`, and all names."""
        with self._lock:
            made, join = self._join(stream)
            segments = join.since(mark[1] if mark[0] == made else 0)  # else it was forgotten, and read again
            return (made, join.mark), {x: _shown(join.runs(x)) for x in segments}, dict(join.names())

    def known(self, stream: str, speaker: str) -> bool:
        """Somebody who speaks in a stream that a page shows, or is called something there."""
        with self._lock:
            _, join = self._joins.get(stream, (0, Join()))
            return speaker != NOBODY and (speaker in join.spoken() or speaker in join.names())


def _shown(runs: tuple[Run, ...]) -> list[list[str]]:
    return [[r.speaker, r.text] for r in runs] if any(r.speaker for r in runs) else []
