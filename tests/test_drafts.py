"""What a burst keeps in the journal on its way, when the feed is slow, dead, or has another place for us.

`StandInAnswer` writes 8 tokens a piece without a model; the journal is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from common import messages as m
from tests.test_minutes import Journal, spoken
from workers import drafts
from workers.minutes import Book, Draft
from workers.plans import Plan

pytestmark = pytest.mark.joined
PLAN = Plan(prompt=[1] * 100, first=0, room=100, asked=b"this")


class StandInAnswer:
    def __init__(self) -> None:
        self.tokens, self.read, self.loops = list[int](), 0, 0

    @property
    def kept(self) -> list[int]:
        return self.tokens[: len(self.tokens) // 16 * 16]

    def pieces(self, count: int) -> Iterator[None]:
        self.read += 100
        yield
        for _ in range(count):
            self.tokens += range(len(self.tokens), len(self.tokens) + 8)
            yield


class StandInRunner:
    """`answers`: False for each append in the middle of a step whose answer is lost, None for each that is."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.jots, self.commits = journal, 0, 0
        self.answers: list[bool | None] = []

    def jot(self, stream: str, expect_n: int, step: Any) -> m.At | None:
        self.jots += 1
        answers = self.answers.pop(0) if self.answers else True
        if answers is None:
            return None
        at = self.append(expect_n, step)
        return at if answers else None

    def commit(self, stream: str, expect_n: int, step: Any) -> m.At:
        self.commits += 1
        return self.append(expect_n, step)

    def append(self, expect_n: int, step: Any) -> m.At:
        j = self.journal
        if step and expect_n == j.at.n:
            j.at = m.At(n=j.at.n + 1, positions=j.at.positions | step.positions, state=step.state, head=len(j.events))
        return j.at


class Game:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(drafts, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.journal = Journal()
        self.journal.say("one")
        self.journal.end()
        self.runner = StandInRunner(self.journal)
        self.book = self.journal.book()
        assert drafts.settled(self.runner, self.book, 9)  # type: ignore[arg-type]
        self.answer = StandInAnswer()
        self.burst = drafts.Burst(self.runner, self.book, PLAN, self.answer)  # type: ignore[arg-type]

    def play(self, pieces: int, piece_s: float = 0.5) -> None:
        """So many pieces of writing after the one of reading, then the GPU is taken away."""
        all_of_them = self.burst.pieces(self.slowly(self.answer.pieces(pieces), piece_s))
        for _ in all_of_them:
            pass

    def slowly(self, pieces: Iterator[None], piece_s: float) -> Iterator[None]:
        for _ in pieces:
            self.now += piece_s
            yield

    @property
    def kept(self) -> int:
        draft = self.journal.book().draft
        return len(draft.tokens) if draft else 0


@pytest.fixture
def game(monkeypatch: pytest.MonkeyPatch) -> Game:
    return Game(monkeypatch)


def test_a_kill_loses_a_second_of_writing_at_most(game: Game) -> None:
    game.play(9)  # 72 tokens in 4.5 s
    assert game.kept == 64 and game.runner.jots == 4 and game.runner.commits == 1, "whole blocks; once a second"
    assert game.journal.at.positions == {} and game.journal.book().due(), "no position moves, they stay due"
    assert (game.burst.read_s, game.burst.written_s) == (0.5, 4.5)


def test_an_append_is_not_made_more_than_once_a_second(game: Game) -> None:
    game.play(64, piece_s=0.05)
    assert game.runner.jots == 3 and game.kept < 512
    assert game.burst.put_off() == game.kept == 512, "the rest is kept when the GPU is given back"


def test_a_feed_that_does_not_answer_is_left_alone_for_a_while(game: Game) -> None:
    game.runner.answers = [None]
    game.play(9)
    assert game.runner.jots == 1 and game.kept == 0
    assert game.burst.put_off() == game.kept == 64


@pytest.mark.parametrize("pieces", [5, 20])
def test_a_lost_answer_makes_nobody_a_stranger(game: Game, pieces: int) -> None:
    """The append was carried out: the next one meets a place that has moved, with our own draft in it."""
    game.runner.answers = [False]
    game.play(pieces)
    assert game.kept and not game.burst.gone
    assert game.burst.put_off() == game.kept == pieces * 8 // 16 * 16 and not game.book.stale


def test_a_lost_answer_does_not_cost_the_minutes(game: Game) -> None:
    game.runner.answers = [False]
    game.play(5)
    assert game.book.at.n < game.journal.at.n and game.burst.settle() and game.book.at == game.journal.at
    cut = game.book.due()
    assert cut
    step = game.book.step(cut)
    assert game.book.moved(game.runner.append(game.book.at.n, step), step), "they can be committed"


@pytest.mark.parametrize("lost", [False, True])
def test_nothing_of_a_purged_text_is_kept(game: Game, lost: bool) -> None:
    game.play(3)
    assert game.kept == 16
    game.runner.answers = [None] if lost else []
    game.journal.at = m.At(n=game.journal.at.n + 2, positions={}, state=b"", head=9)
    game.play(30)
    assert game.burst.gone and game.book.stale and game.journal.at.state == b""
    assert not game.burst.settle() and game.burst.put_off() == 16 and game.journal.at.state == b""


def test_a_purge_moves_also_one_who_has_never_written(game: Game) -> None:
    """Its place would else stay at 0, and words of a burst that began before the purge would be taken after it."""
    assert game.journal.at.n == 1
    fresh = Journal()
    fresh.say("one")
    fresh.end()
    fresh.at = m.At(n=0, positions={}, state=b"", head=0)
    book = fresh.book()
    runner = StandInRunner(fresh)
    fresh.add(m.Purged(stream="s", seqs=((1, 2),)), "feed")
    assert not drafts.settled(runner, book, 2), "not before everything is read that stood there then"  # type: ignore[arg-type]
    fresh.read(book)
    assert drafts.settled(runner, book, 3) and book.stale  # type: ignore[arg-type]


def test_a_draft_travels_with_the_place_and_goes_with_the_minutes() -> None:
    j = Journal()
    j.say("one")
    j.silent(30.0)
    j.add(spoken(0, 5, "two", 0))
    j.silent(40.0)
    book = j.book()
    draft = Draft(asked=b"this", tokens=(5, 6), loops=1, room=70)
    at = m.At(n=1, positions={}, state=book.noting(draft).state, head=0)
    assert book.noted(at, draft) and book.draft == draft == Book("s", at, j.rules).draft
    cut = book.due()
    assert cut and book.begin > 0
    assert Book("s", at, j.rules).begin == 0, "the interval still begins where the place says"
    other = m.At(n=2, positions={}, state=book.noting(Draft(asked=b"that", tokens=())).state, head=0)
    assert not book.noted(other, draft) and book.stale, "somebody else wrote"
