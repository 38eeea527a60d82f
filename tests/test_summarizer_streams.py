"""The summarizer with many streams, and with long ones: what it keeps of them, and what it does while it waits.

No model; the journal is in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.process import Log
from common.settings import GpuSettings, Settings, SummarySettings
from tests.test_minutes import RULES, Journal
from tests.test_plans import whole
from workers.minutes import Line
from workers.plans import Planner, Prompt
from workers.poison import MAX_FAILURES, Poison
from workers.summarizer import Summarizer

pytestmark = pytest.mark.joined
FAR = 10**9


class StandInRunner:
    """The base as a worker sees it, without a GPU."""

    def __init__(self, run: Path) -> None:
        self.poison, self.ready = Poison(run, "summarizer"), False
        self.hold_s, self.reload_s, self.piece_s = 60.0, 0.0, 0.0

    def edge(self) -> None:
        pass


def question(lines: Sequence[Line], room: int) -> Generator[None, None, Prompt]:
    yield
    return [1], 0


def made(rules: SummarySettings = RULES) -> Summarizer:
    settings = Settings(summary=rules)
    summarizer = Summarizer(SimpleNamespace(settings=settings, log=Log("test")))  # type: ignore[arg-type]
    summarizer.planner = Planner(question, lambda prompt: b"", rules, GpuSettings())
    summarizer._client = SimpleNamespace(head=FAR)  # type: ignore[assignment]
    return summarizer


def test_streams_that_wait_for_the_gpu_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(Poison, "_write", lambda poison: written.append(poison))
    summarizer, runner = made(), StandInRunner(tmp_path)
    for i in range(20):
        journal = Journal()
        journal.say("waits")
        journal.end()
        summarizer.books[f"s{i}"] = book = journal.book()
        book.stream, book.at, summarizer._due_s[f"s{i}"] = f"s{i}", _begun(book.at), float(i)
    assert not summarizer.turn(runner), "nothing can be done"  # type: ignore[arg-type]
    written.clear()
    assert not summarizer.turn(runner) and written == []  # type: ignore[arg-type]


def test_a_crash_while_it_looks_ahead_counts_and_a_kill_while_it_waits_does_not(tmp_path: Path) -> None:
    summarizer, runner = made(), StandInRunner(tmp_path)
    open_while_reading: list[str] = []

    def read(lines: Sequence[Line], room: int) -> Generator[None, None, Prompt]:
        open_while_reading.append(runner.poison._all.open)
        return question(lines, room)

    summarizer.planner._prompt = read
    journal = Journal()
    journal.say("waits")
    journal.end()
    summarizer.books["s"] = book = journal.book()
    book.at, summarizer._due_s["s"] = _begun(book.at), 0.0
    assert not summarizer.turn(runner) and open_while_reading == ["s"]  # type: ignore[arg-type]
    assert runner.poison._all.open == ""
    for _ in range(MAX_FAILURES):
        runner.poison.begin("s", 1)
        runner.poison.failed()
    said: list[Any] = []
    runner.commit = lambda stream, n, step: said.append(step) or None  # type: ignore[attr-defined]
    assert summarizer.turn(runner) and said[0].events[0].reason == "failed", "that needs no GPU"  # type: ignore[arg-type]


def _begun(at: Any) -> Any:
    """There is a place, so that a purge would move it."""
    return type(at)(n=1, positions=at.positions, state=at.state, head=at.head)


class StandInTokenizer:
    """Each word is a token; it counts the lines that it is given."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, line: str, **options: bool) -> dict[str, list[int]]:
        self.lines += 1
        words = [word for part in line.split() for word in (part, "digit" * part.count("0"))]  # a number may be longer
        return {"input_ids": [len(word) for word in words if word]}


def reading(summarizer: Summarizer) -> StandInTokenizer:
    """Gives it a tokenizer, and the little that `load` takes from one."""
    tokenizer = StandInTokenizer()
    summarizer.tokenizer, summarizer._controls, summarizer._added = tokenizer, [], frozenset()
    summarizer._before, summarizer._after = [-1], [-2]
    return tokenizer


def all_of_them_first(summarizer: Summarizer, lines: Sequence[Line], room: int) -> Prompt:
    """The same question, in the slow way: every line is read, then those that fit are numbered anew."""
    rows = [summarizer._line_tokens(i, line) for i, line in enumerate(lines, 1)]
    first = len(rows)
    while first and sum(map(len, rows[first - 1 :])) <= room:
        first -= 1
    first = max(0, min(first, len(rows) - 1))
    if first:
        rows = [summarizer._line_tokens(i, line) for i, line in enumerate(lines[first:], 1)]
    return [-1, *[token for row in rows for token in row][-room:], -2], first


@given(st.lists(st.integers(0, 30), max_size=120), st.integers(1, 300))
def test_the_newest_lines_that_fit_are_asked_about(sizes: list[int], room: int) -> None:
    summarizer = made()
    reading(summarizer)
    lines = [line(i, "word " * size) for i, size in enumerate(sizes)]
    assert whole(summarizer.prompt(lines, room)) == all_of_them_first(summarizer, lines, room)


def test_of_a_long_day_no_more_is_read_than_has_place() -> None:
    summarizer = made()
    tokenizer = reading(summarizer)
    lines = [line(i, "said " * 19) for i in range(5000)]
    pieces = sum(1 for _ in summarizer.prompt(lines, 2000))
    assert tokenizer.lines <= 2 * 100 + 1 and pieces >= tokenizer.lines - 1, "and leases are looked at between two"


def line(i: int, text: str) -> Line:
    return Line(segment=f"s:{i}", revision=0, seq=i, span=(i, i + 1), text=text)
