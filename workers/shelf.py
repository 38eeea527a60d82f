"""The books of all streams: opened when something is said, put away when the stream is over and nothing of it is due.

In: events in the order of the journal. Out: `books`, where what is due can be seen. That a stream is over is journaled
(the position `over` of `minutes`), so that after a restart no book is made of it: of a thousand recordings those are
held that minutes are owed of. News of a stream that was put away bring its book back, read from the journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import messages as m
from common import wire
from common.feed_client import replay
from common.settings import Settings
from workers.minutes import KINDS, Book

if TYPE_CHECKING:
    from workers.base import Runner

NEWS = ("transcript", "summary_wanted", "stream_started", "stream_ended")  # other kinds make nothing due by themselves
EDGE_EVERY = 500  # events that are read: then leases are looked at


class Shelf:
    """See the module. What says whether it worked says False when we are told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.books: dict[str, Book] = {}
        self._over: dict[str, int] = {}  # streams that were put away: nothing is due of what came up to this seq

    def clear(self) -> None:
        self.books.clear()
        self._over.clear()

    def take(self, runner: Runner, e: m.Event) -> bool:
        stream = e.stream
        if stream not in self.books and stream not in self._over and not self._open(runner, stream):
            return False
        if book := self.books.get(stream):
            book.take(e)
        elif e.seq > self._over[stream] and e.kind in NEWS:
            return self._read(runner, stream)
        return True

    def tidy(self, runner: Runner) -> bool:
        """After each round of news: read anew what was moved, put away what is over."""
        for stream, book in list(self.books.items()):
            if book.stale and not self._read(runner, stream):
                return False
            if self.books[stream].over and not self._put_away(runner, self.books[stream]):
                return False
        return True

    def _open(self, runner: Runner, stream: str) -> bool:
        at = runner.commit(stream, -1, None)
        if at is None:
            return False
        if over := at.positions.get("over", 0):
            self._over[stream] = over
        else:
            self.books[stream] = Book(stream, at, self.settings.summary)
        return True

    def _read(self, runner: Runner, stream: str) -> bool:
        """Make the book anew from the journal: it was put away, or somebody else moved our place."""
        at = runner.commit(stream, -1, None)
        if at is None:
            return False
        book = Book(stream, at, self.settings.summary)
        try:
            for i, e in enumerate(replay(self.settings, kinds=KINDS, stream=stream, timeout_s=1.0), 1):
                book.take(e)
                if i % EDGE_EVERY == 0:
                    runner.edge()
            book.stale = False  # purges that it has read are in its place
        except wire.Unreachable:
            book.stale = True  # the next look tries again
        self._over.pop(stream, None)
        self.books[stream] = book
        return True

    def _put_away(self, runner: Runner, book: Book) -> bool:
        if book.complete:
            step = book.closing()
            at = runner.commit(book.stream, book.at.n, step)
            if at is None:
                return False
            if not book.carried_out(at, step):
                return True  # it is stale now
        self._over[book.stream] = book.seen
        del self.books[book.stream]
        return True
