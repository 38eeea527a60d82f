"""A burst that is cut short goes on later: what it keeps in the journal while it writes, and what the next begins from.

In: the pieces of one answer as they are carried out. Out: now and then an Append that moves no position and holds the
whole blocks written so far; and how fast that went. After a kill at most what was written in a second is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workers.minutes import Book, Draft
from workers.pace import Pace
from workers.plans import Plan
from workers.tenancy import close

if TYPE_CHECKING:
    from workers.base import Runner
    from workers.generation import Answer

KEEP_EVERY_S = 1.0  # an append is a sync to disk
SILENT_S = 5.0  # no more tries for so long when the feed did not answer: the GPU waits meanwhile
_OVER = object()


def settled(runner: Runner, book: Book, head: int) -> bool:
    """Whether no purged word can outlive its purge: one that comes now moves our place, one before `head` was read."""
    if book.at.n == 0:  # a purge moves only the places of those who have appended
        at = runner.commit(book.stream, 0, book.noting(None))
        if at is None or not book.noted(at, None):
            return False
        book.since = at.head
    return head >= book.since


class Burst:
    """One attempt at the minutes of `book`."""

    def __init__(self, runner: Runner, book: Book, plan: Plan, answer: Answer) -> None:
        self.runner, self.book, self.plan, self.answer = runner, book, plan, answer
        self.gone = False  # what it is about was purged, or carried out by somebody else
        self.read_s = self.written_s = self.longest_s = 0.0
        self._unsure = False
        self._next_s = time.monotonic() + KEEP_EVERY_S

    @property
    def written(self) -> int:
        """Tokens of this burst alone."""
        return len(self.answer.tokens) - len(self.plan.tokens)

    @property
    def figures(self) -> dict[str, float]:
        """What it did, for the log: tokens read and written in this burst, and of the whole answer; seconds."""
        return {
            "prompt_tokens": len(self.plan.prompt),
            "went_on_from": len(self.plan.tokens),
            "read": self.answer.read,
            "wrote": self.written,
            "tokens": len(self.answer.tokens),
            "read_s": round(self.read_s, 2),
            "wrote_s": round(self.written_s, 2),
            "seconds": round(self.read_s + self.written_s, 2),
            "longest_s": round(self.longest_s, 3),
        }

    @property
    def kept(self) -> int:
        """Tokens from which a later burst goes on."""
        draft = self.book.draft
        return len(draft.tokens) if draft and draft.asked == self.plan.asked else 0

    def pieces(self, pieces: Iterator[None]) -> Iterator[None]:
        """The same pieces, timed; whole blocks are kept on the way."""
        try:
            while True:
                began, read = time.monotonic(), self.answer.read
                if next(pieces, _OVER) is _OVER:
                    return
                now = time.monotonic()
                took_s = now - began
                if self.answer.read > read:
                    self.read_s += took_s
                else:
                    self.written_s += took_s
                self.longest_s = max(self.longest_s, took_s)
                if now >= self._next_s and not self._jot(now):
                    self.gone = True
                    return
                yield
        finally:
            close(pieces)

    def _draft(self) -> Draft | None:
        """What is worth keeping, if there is more of it than in the journal."""
        tokens = self.answer.kept
        if len(tokens) <= self.kept:
            return None
        return Draft(asked=self.plan.asked, tokens=tuple(tokens), loops=self.answer.loops, room=self.plan.room)

    def _jot(self, now: float) -> bool:
        draft = self._draft()
        if draft is None:
            return True
        at = self.runner.jot(self.book.stream, self.book.at.n, self.book.noting(draft))
        self._unsure, self._next_s = at is None, now + (SILENT_S if at is None else KEEP_EVERY_S)
        return at is None or self.book.noted(at, draft)

    def put_off(self) -> int:
        """The GPU is given back: keep what is there; returns how many tokens that are."""
        for _ in range(2):  # the first answer may be that to an earlier append, which we never had
            if (draft := self._draft()) is None:
                break
            at = self.runner.commit(self.book.stream, self.book.at.n, self.book.noting(draft))
            if at is None or not self.book.noted(at, draft):
                break
        return self.kept

    def settle(self) -> bool:
        """Before the minutes are committed: know our place. False: it was moved."""
        if self._unsure and (at := self.runner.commit(self.book.stream, -1, None)):
            self.book.noted(at, Draft(asked=self.plan.asked, tokens=()))
        return not self.book.stale

    def tell(self, pace: Pace) -> None:
        pace.burst(self.answer.read, self.read_s, self.written, self.written_s)
