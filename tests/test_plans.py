"""Minutes that take longer than a burst may last end all the same, in several bursts. A model of arithmetic only."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar

import pytest

from common import messages as m
from common.process import Log
from common.settings import GpuSettings, SummarySettings
from tests.test_minutes import Journal
from workers.minutes import Book, Draft, Line
from workers.plans import Plan, Planner, Prompt
from workers.poison import Poison

pytestmark = pytest.mark.pure
LINES, LINE_TOKENS, BESIDE, NEW, BLOCK = 40, 50, 100, 96, 16
ROOM = LINES * LINE_TOKENS
T = TypeVar("T")


class StandInModel:
    """So many seconds for a token that is read or written; each line has as many tokens as any."""

    def __init__(self, read_s: float, write_s: float, hold_s: float) -> None:
        self.read_s, self.write_s, self.hold_s = read_s, write_s, hold_s
        self.reload_s, self.piece_s = 0.0, 256 * read_s
        self.edges = 0  # at which leases could be obeyed
        self.poison = Poison(Path("nowhere"), "w")
        self.planner = Planner(
            self.prompt, lambda p: repr(list(p)).encode(), SummarySettings(max_new_tokens=NEW), GpuSettings()
        )
        self.planner.know(ROOM, ROOM + BESIDE + NEW, 10**6)
        self.journal = Journal()
        for i in range(LINES):
            self.journal.say(f"line {i}", 1.0)
        self.journal.end()
        self.book = self.journal.book()
        self.plans: list[Plan] = []

    def edge(self) -> None:
        self.edges += 1

    def prompt(self, lines: Sequence[Line], room: int) -> Generator[None, None, Prompt]:
        first = len(lines) - min(len(lines), max(1, room // LINE_TOKENS))
        yield
        return list(range(BESIDE + LINE_TOKENS * (len(lines) - first))), first

    @property
    def lines(self) -> list[Line]:
        cut = self.book.due()
        assert cut
        return self.book.lines(cut)

    def burst(self) -> bool:
        """Whether the minutes are written when the GPU must be given back."""
        plan = self.planner.begin(self, self.book, self.lines, Log("test"))  # type: ignore[arg-type]
        self.plans.append(plan)
        reading_s = (len(plan.prompt) + len(plan.tokens)) * self.read_s
        if reading_s > self.hold_s:
            self.planner.pace.burst(int(self.hold_s / self.read_s), self.hold_s, 0, 0.0)
            return False
        wrote = min(NEW - len(plan.tokens), int(min(1e9, self.hold_s - reading_s) / self.write_s))
        self.planner.pace.burst(len(plan.prompt) + len(plan.tokens), reading_s, wrote, wrote * self.write_s)
        tokens = len(plan.tokens) + wrote
        draft = Draft(asked=plan.asked, tokens=tuple(range(tokens // BLOCK * BLOCK)), room=plan.room)
        at = m.At(n=self.book.at.n + 1, positions={}, state=self.book.noting(draft).state, head=0)
        assert self.book.noted(at, draft)
        return tokens == NEW

    def bursts(self) -> int:
        for count in range(1, 20):
            if self.burst():
                return count
        raise AssertionError("it never ends")


def whole(work: Generator[None, None, T]) -> T:
    """What it comes to."""
    out: list[T] = []

    def pieces() -> Generator[None, None, None]:
        out.append((yield from work))

    for _ in pieces():
        pass
    return out[0]


def test_an_answer_longer_than_a_hold_is_written_in_several() -> None:
    world = StandInModel(read_s=0.02, write_s=0.5, hold_s=60.0)  # 42 s to read, 48 s to write
    assert world.bursts() == 3
    assert [len(p.tokens) for p in world.plans] == [0, 32, 64]
    assert {p.first for p in world.plans} == {0}, "all of the text is read"


def test_a_text_that_cannot_be_read_in_one_hold_is_shortened_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = StandInModel(read_s=0.05, write_s=0.1, hold_s=60.0)  # 105 s to read
    with caplog.at_level(logging.WARNING, "swapscribe"):
        assert world.bursts() <= 4
    assert [p.first for p in world.plans[:2]] == [0, 0], "once may be chance"
    last = world.plans[-1]
    assert 0 < last.first < LINES // 2 + 10, "the newest lines, not fewer than fit"
    assert "takes longer to read than a burst may last" in caplog.text
    assert world.plans[2].asked == last.asked, "and it goes on with the same text"


def test_the_same_model_that_is_held_to_nothing_reads_everything() -> None:
    world = StandInModel(read_s=0.05, write_s=0.1, hold_s=60.0)
    world.burst()
    world.burst()
    world.hold_s = inf
    assert world.burst() and world.plans[-1].first == 0


def test_a_draft_of_a_shortened_text_is_found_again_by_another_process() -> None:
    world = StandInModel(read_s=0.05, write_s=0.3, hold_s=60.0)
    for _ in range(3):
        world.burst()
    assert world.book.draft and world.plans[-1].first > 0
    fresh = StandInModel(read_s=0.05, write_s=0.3, hold_s=60.0)
    fresh.book = Book("s", world.book.at, world.journal.rules)
    world.journal.read(fresh.book)
    plan = whole(fresh.planner.plan(fresh.book, fresh.lines, fresh.hold_s))
    assert plan.tokens == world.book.draft.tokens and plan.asked == world.plans[-1].asked


def test_leases_are_obeyed_while_a_question_is_made_and_a_text_that_breaks_it_counts(tmp_path: Path) -> None:
    world = StandInModel(read_s=0.05, write_s=0.1, hold_s=60.0)
    world.poison = Poison(tmp_path, "w")
    for _ in range(3):
        before = world.edges
        world.burst()
    assert world.edges - before == 2, "all of it, then what is read of it"

    def broken(lines: Sequence[Line], room: int) -> Generator[None, None, Prompt]:
        raise ValueError("broken")
        yield

    world.planner._prompt = broken
    cut = world.book.due()
    for _ in range(3):
        assert cut and world.poison.allows("s", cut.upto)
        with pytest.raises(ValueError, match="broken"):
            world.burst()
    assert not world.poison.allows("s", cut.upto)


def test_what_waits_is_told_before_it_begins() -> None:
    world = StandInModel(read_s=0.02, write_s=0.5, hold_s=60.0)
    world.planner.look_ahead(world, world.book, world.lines)  # type: ignore[arg-type]
    assert world.planner.note == "" and world.planner.least_s == (9 + 32 / 8) * 5.12, "2,100 tokens are nine pieces"
    world.burst()
    world.planner.look_ahead(world, world.book, world.lines)  # type: ignore[arg-type]
    assert world.planner.note == "minutes put off at 32 tokens; resumes"
    assert world.planner.least_s == pytest.approx(2132 * 0.02 * 2132 / 2100 + 32 * 0.5)
