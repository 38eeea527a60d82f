"""What comes after the captions of the streams that the page shows: who speaks, and the text in other languages.

The viewer's own thread reads, its connections ask. Publications only say that there is something new; it is read by
replay, so nothing is missed. The past of a stream is read when a page first shows it: its captions are there meanwhile.
What a page follows is held, whatever others look at; of what nobody follows any more a few are kept.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from common import messages as m
from common.join import KINDS as WHO_KINDS
from common.join import Join
from common.passages import speaker_of
from common.past import Past
from common.revisions import KINDS as HEARD_KINDS
from common.settings import Settings
from common.speaker_runs import NOBODY, Run
from common.translations import KINDS as TEXT_KINDS
from common.translations import Translations

KINDS = tuple(dict.fromkeys([*WHO_KINDS, *TEXT_KINDS]))
MOST_STREAMS = 32  # that one page follows
MOST_LEFT = 8  # streams that no page follows, of which this is held: one may come back
SCROLLED = 1000  # seqs: a stream that said nothing in so many is out of sight
KEPT = 4 * 3600 * m.SAMPLE_RATE  # samples: speakers of what was said earlier stay as a page has them


class Mark(NamedTuple):
    """What a page has been told."""

    made: int = 0  # of which Known
    speakers: int = 0  # marks of its two folds
    translations: int = 0


class Shown(NamedTuple):
    """A translated sentence as the page has it, under the segment `until` in which it ends."""

    language: str
    text: str
    speaker: str
    until: str
    suspect: str


class News(NamedTuple):
    """What has become other since a mark."""

    mark: Mark
    runs: dict[str, list[list[str]]]  # by segment
    sentences: dict[str, list[Shown]]  # by segment: all that begin there
    names: dict[str, str]  # all


class Known:
    """What is known of one stream."""

    def __init__(self, made: int) -> None:
        self.made, self.join, self.translations = made, Join(), Translations()
        self.trimmed = 0  # samples

    def take(self, e: m.Event) -> None:
        self.join.take(e)
        self.translations.take(e)
        body = e.decode() if e.kind in HEARD_KINDS else None
        if isinstance(body, m.Transcript | m.Suppressed | m.Gap) and body.span[1] > self.trimmed + KEPT // 10:
            self.trimmed = body.span[1]
            self.join.trim(body.span[1] - KEPT)
            self.translations.trim(body.span[1] - KEPT)

    def news(self, mark: Mark) -> News:
        if mark.made != self.made:  # it was forgotten, and read again
            mark = Mark(self.made)
        others = self.join.since(mark.speakers)
        touched = [first for segment in others for first in self.translations.begin(segment)]
        touched = list(dict.fromkeys([*self.translations.since(mark.translations), *touched]))
        return News(
            self.mark(),
            {segment: _shown(self.join.runs(segment)) for segment in others},
            {segment: self.sentences(segment) for segment in touched},
            dict(self.join.names()),
        )

    def mark(self) -> Mark:
        return Mark(self.made, self.join.mark, self.translations.mark)

    def sentences(self, segment: str) -> list[Shown]:
        """Translations of what begins in a segment."""
        out = []
        for s in self.translations.made(segment):
            who = speaker_of(s, {x: self.join.runs(x) for x in s.segments})
            out.append(Shown(s.target, s.text, who, s.segments[-1], s.suspect or ""))
        return out


class Whose:
    """The Known of each stream that somebody looks at."""

    def __init__(self, settings: Settings) -> None:
        self._past = Past(settings, KINDS)
        self._journal = ""
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}  # the one asked for last is the last
        self._held: Counter[str] = Counter()  # by how many pages
        self._made = 0
        self._asked: set[str] = set()  # by connections, not read yet

    # The viewer's thread

    def news(self, e: m.Event) -> None:
        with self._lock:
            if e.stream in self._known and e.kind in KINDS:
                self._past.want(e.stream)

    def read(self) -> bool:
        """Go on reading, without waiting. True: there is something new to be shown."""
        with self._lock:
            for stream in self._asked:
                self._past.want(stream)
            self._asked.clear()
            found = self._past.events()
            if self._journal not in ("", self._past.journal):
                self._known.clear()
            self._journal = self._past.journal
            for e in found:
                if e.stream in self._known:
                    self._known[e.stream].take(e)
            return bool(found)

    @property
    def busy(self) -> bool:
        return self._past.busy or bool(self._asked)

    # Connections

    def _of(self, stream: str) -> Known:
        found = self._known.pop(stream, None)
        if found is None:
            self._made += 1
            found = Known(self._made)
            self._asked.add(stream)
        self._known[stream] = found
        return found

    def hold(self, stream: str) -> None:
        """A page begins to follow it."""
        with self._lock:
            self._held[stream] += 1
            self._of(stream)

    def release(self, stream: str) -> None:
        """That page does not follow it any more."""
        with self._lock:
            self._held[stream] -= 1
            self._held += Counter()  # only those that are held by some
            left = [s for s in self._known if s not in self._held]
            for gone in left[: max(0, len(left) - MOST_LEFT)]:
                del self._known[gone]
                self._asked.discard(gone)
                self._past.forget(gone)

    def streams(self) -> list[str]:
        with self._lock:
            return list(self._known)

    def mark(self, stream: str) -> Mark:
        """All that is known now; but nothing of what was translated is told to a page that has only captions."""
        with self._lock:
            known = self._of(stream)
            known.join.since(known.join.mark)
            return known.mark()._replace(translations=0)

    def runs(self, stream: str, segment: str) -> list[list[str]]:
        """(speaker, text) of each run of a segment; none when nobody is known in it."""
        with self._lock:
            return _shown(self._known[stream].join.runs(segment)) if stream in self._known else []

    def changes(self, stream: str, mark: Mark) -> News:
        """What has become other since `mark`."""
        with self._lock:
            return self._of(stream).news(mark)

    def known(self, stream: str, speaker: str) -> bool:
        """Somebody who speaks in a stream that a page shows, or is called something there."""
        with self._lock:
            join = self._known[stream].join if stream in self._known else Join()
            return speaker != NOBODY and (speaker in join.spoken() or speaker in join.names())


class _Followed:
    """A stream, and what the page has of it."""

    def __init__(self, mark: Mark) -> None:
        self.mark, self.names, self.seq, self.ended = mark, dict[str, str](), 0, False


class Watch:
    """The streams that one page follows: those of which it was shown something last. For one connection."""

    def __init__(self, whose: Whose, back: bool) -> None:
        """`back`: the page was there before, and has captions that we do not know of."""
        self._whose, self._back = whose, back
        self._followed: dict[str, _Followed] = {}  # the one that spoke last is the last
        self._begins: dict[str, int] = {}  # samples: a page that comes for the first time shows nothing before
        for stream in whose.streams()[-MOST_STREAMS:] if back else ():
            self._follow(stream)

    def show(self, e: m.Event) -> None:
        """The page gets an event. Where there is no room for one more stream, its captions stay without speakers."""
        if e.kind == "stream_ended" and e.stream in self._followed:
            self._followed[e.stream].ended = True
        if not isinstance(body := e.decode(), m.Transcript):
            return
        if e.stream not in self._followed and self._room(e.seq):
            self._follow(e.stream)
        if not self._back:
            self._begins[e.stream] = min(body.span[0], self._begins.get(e.stream, body.span[0]))
        if followed := self._followed.pop(e.stream, None):
            self._followed[e.stream], followed.seq = followed, e.seq

    def news(self) -> Iterator[tuple[str, News, bool]]:
        """Of each stream what the page has not been told, and whether that is anything of its speakers."""
        for stream, followed in self._followed.items():
            found = self._whose.changes(stream, followed.mark)
            others = bool(found.runs) or found.names != followed.names
            followed.mark, followed.names = found.mark, found.names
            begins = self._begins.get(stream, 0)
            sentences = {s: x for s, x in found.sentences.items() if _first(s) >= begins}
            yield stream, found._replace(sentences=sentences), others

    def close(self) -> None:
        for stream in self._followed:
            self._whose.release(stream)
        self._followed.clear()
        self._begins.clear()

    def _room(self, seq: int) -> bool:
        if len(self._followed) < MOST_STREAMS:
            return True
        gone = next((s for s, f in self._followed.items() if f.ended or f.seq < seq - SCROLLED), None)
        if gone is not None:
            del self._followed[gone]
            self._whose.release(gone)
        return gone is not None

    def _follow(self, stream: str) -> None:
        self._whose.hold(stream)
        new = not self._back and stream not in self._begins
        self._followed[stream] = _Followed(self._whose.mark(stream) if new else Mark())


def _first(segment: str) -> int:
    """The sample with which a segment begins, by its name."""
    first = segment.rpartition(":")[2]
    return int(first) if first.isdecimal() else 0


def _shown(runs: tuple[Run, ...]) -> list[list[str]]:
    return [[r.speaker, r.text] for r in runs] if any(r.speaker for r in runs) else []
