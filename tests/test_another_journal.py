"""What was heard of a journal that is gone changes nothing in the one that took its place."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from common import messages as m
from common.settings import Settings
from workers import retry
from workers.retry import Retries
from workers.shelf import Shelf
from workers.steps import Step
from workers.summarizer import Summarizer

pytestmark = pytest.mark.joined


def event(seq: int, body: m.Body) -> m.Event:
    kind = str(body.__struct_config__.tag)
    return m.Event(seq=seq, prev=0, stream="s", kind=kind, producer="p", n=1, at_ns=0, body=m.encode(body))


class Client:
    """A feed client that is told what came, and of which journal."""

    def __init__(self) -> None:
        self.follower, self.head, self.came = SimpleNamespace(journal="old"), 0, list[m.Event]()

    def poll(self, timeout_s: float) -> list[m.Event]:
        out, self.came = self.came, []
        return out


class Runner:
    """The new journal's place of the transcriber."""

    def __init__(self, head: int) -> None:
        self.at = m.At(n=1, positions={}, state=b"", head=head)

    def commit(self, stream: str, expect_n: int, step: Step | None) -> m.At:
        if step:
            self.at = m.At(n=self.at.n + 1, positions=self.at.positions | step.positions, state=b"", head=self.at.head)
        return self.at


@pytest.mark.parametrize("head", [40, 5000])
def test_a_retry_of_an_old_journal_hides_none_of_the_new_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(retry, "open_gaps", lambda settings, stream, span, before: asked.append(before) or [])
    retries: Any = object.__new__(Retries)
    retries.settings, retries.process, retries._client = settings, SimpleNamespace(stopping=False), Client()
    retries.waiting = [event(900, m.Retry(span=(0, 9)))]  # it could not be carried out, and the journal was lost
    retries.look()
    retries._client.came = [event(30, m.Retry(span=(0, 9)))]
    retries.look()
    runner: Any = Runner(head)
    while retries.waiting:
        retries.carry_out(runner)
    assert asked[0] == 30 and runner.at.positions["retry"] <= head


def test_minutes_of_a_new_journal_have_no_words_of_the_old_one(settings: Settings) -> None:
    taken: list[int] = []
    shelf: Any = Shelf(settings)
    shelf.take = lambda runner, e: taken.append(e.seq)
    summarizer: Any = object.__new__(Summarizer)
    summarizer._client, summarizer._journal, summarizer._waiting = Client(), "", []
    summarizer.shelf, summarizer.books, summarizer._due_s = shelf, shelf.books, {}
    summarizer._client.came = [event(7, m.SummaryWanted())]  # events before it are still to come
    summarizer.look(None, time.monotonic())
    summarizer._client.follower.journal, summarizer._client.head = "new", 10
    summarizer.look(None, time.monotonic())
    assert taken == []
