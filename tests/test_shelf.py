"""Books of streams that are over are put away, and nothing that is owed is lost with them. The feed is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import messages as m
from common import wire
from common.settings import Settings, SummarySettings
from tests.test_minutes import ACTIONS, RATE, RULES, Journal, everything, spoken, texts
from workers import shelf
from workers.minutes import KINDS
from workers.shelf import Shelf
from workers.steps import Step

pytestmark = pytest.mark.joined
PAUSE = 70.0


class StandInFeed:
    """Journals of some streams, a shelf that follows them, and the base as the shelf sees it."""

    def __init__(self, rules: SummarySettings = RULES) -> None:
        self.journals: dict[str, Journal] = {}
        self.reads = list[str]()  # streams that were read from the journal
        self.reachable = True
        self.edges = 0
        self.start(rules)

    def start(self, rules: SummarySettings = RULES) -> None:
        """The summarizer, after a kill."""
        self.rules, self.shelf = rules, Shelf(Settings(summary=rules))
        self.told: dict[str, int] = {}
        self.reads.clear()

    def __getitem__(self, stream: str) -> Journal:
        return self.journals.setdefault(stream, Journal())

    def commit(self, stream: str, expect_n: int, step: Step | None) -> m.At:
        j = self[stream]
        if step and expect_n == j.at.n:
            positions = j.at.positions | step.positions
            j.at = m.At(n=j.at.n + 1, positions=positions, state=step.state, head=len(j.events))
        return j.at

    def edge(self) -> None:
        self.edges += 1

    def replay(self, settings: Settings, kinds: Any, stream: str, timeout_s: float) -> Iterator[m.Event]:
        self.reads.append(stream)
        if not self.reachable:
            raise wire.Unreachable
        yield from (self.of(stream, e) for e in self[stream].events if e.kind in kinds)

    @staticmethod
    def of(stream: str, e: m.Event) -> m.Event:
        return msgspec.structs.replace(e, stream=stream)

    def look(self) -> None:
        """What came since the last one."""
        for stream, j in self.journals.items():
            for e in j.events[self.told.get(stream, 0) :]:
                if e.kind in KINDS:
                    assert self.shelf.take(self, self.of(stream, e))  # type: ignore[arg-type]
            self.told[stream] = len(j.events)
        assert self.shelf.tidy(self)  # type: ignore[arg-type]

    def write(self, stream: str) -> list[tuple[str, ...]]:
        """All minutes of the stream that are due."""
        book = self.shelf.books.get(stream)
        return [said for _, _, said in everything(self[stream], book)] if book else []

    @property
    def held(self) -> list[str]:
        return list(self.shelf.books)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> StandInFeed:
    made = StandInFeed()
    monkeypatch.setattr(shelf, "replay", made.replay)
    return made


def recording(j: Journal) -> None:
    j.say("one")
    j.silent(PAUSE)
    j.say("two")
    j.end()


def test_of_many_recordings_those_are_held_that_minutes_are_owed_of(feed: StandInFeed) -> None:
    for i in range(20):
        recording(feed[f"f{i}"])
    feed["goes-on"].say("still")
    feed.look()
    assert len(feed.held) == 21, "nothing is written yet"
    for i in range(15):
        assert feed.write(f"f{i}") == [("one",), ("two",)]
    feed.look()
    left = [*(f"f{i}" for i in range(15, 20)), "goes-on"]
    assert feed.held == left and feed.reads == []
    feed.start()
    feed.look()
    assert feed.held == left and feed.reads == [], "the places tell it"
    assert feed.write("f15") == [("one",), ("two",)], "and what is owed is there after a kill"


def test_a_stream_of_silence_is_put_away_too(feed: StandInFeed) -> None:
    feed["s"].silent(500.0)
    feed.look()
    assert feed.held == ["s"]
    feed["s"].end()
    feed.look()
    assert feed.held == [] and feed["s"].at.positions == {"over": 2}


def test_no_kill_loses_minutes_that_are_owed(feed: StandInFeed) -> None:
    recording(feed["s"])
    feed.look()
    for expected in [("one",), ("two",)]:
        feed.start()
        feed.look()
        book = feed.shelf.books["s"]
        cut = book.due()
        assert cut and tuple(texts(book, cut)) == expected and "over" not in feed["s"].at.positions
        feed["s"].commit(book, cut)
    feed.start()
    feed.look()
    assert feed.held == [] and feed["s"].at.positions["over"] == 4


@pytest.mark.parametrize("killed", [False, True])
def test_news_of_a_stream_that_was_put_away_bring_it_back(feed: StandInFeed, killed: bool) -> None:
    recording(feed["s"])
    feed.look()
    feed.write("s")
    feed.look()
    if killed:
        feed.start()
        feed.look()
    assert feed.held == []
    feed["s"].add(m.SpeakerName(speaker="S1", name="Ann"), "cli.1")
    feed["s"].add(m.Relabel(source="S2", target="S1"), "diarizer")
    feed.look()
    assert feed.held == [] and feed.reads == [], "nothing can be due for that"
    feed["s"].add(spoken(20 * RATE, 25 * RATE, "a retried gap"))
    feed.look()
    assert feed.reads == ["s"]
    asked = feed["s"].ask()
    feed.look()
    assert feed.write("s") == [("a retried gap",)]
    assert feed["s"].at.positions["wanted"] == asked
    feed.look()
    assert feed.held == [] and feed["s"].at.positions["over"] == asked
    feed["s"].add(spoken(0, 5 * RATE, "won", 1))
    feed.look()
    assert feed.held == [] and feed.write("s") == [], "a correction of text that minutes are about is no news"


def test_a_purged_recording_that_comes_again_gets_its_minutes_again(feed: StandInFeed) -> None:
    recording(feed["s"])
    feed.look()
    feed.write("s")
    feed.look()
    j = feed["s"]
    seqs = (1, len(j.events))
    j.events[:] = [e.tombstone() for e in j.events]
    j.add(m.Purged(stream="s", seqs=(seqs,)), "feed")
    j.at, j.clock = m.At(n=j.at.n + 2, positions={}, state=b"", head=len(j.events)), 0
    feed.look()
    assert feed.held == []
    feed.start()
    feed.look()
    assert feed.held == [] and feed.write("s") == []
    j.add(m.StreamStarted(source="s", lane="batch", started_ns=0))
    feed.look()
    assert feed.held == ["s"], "it goes on"
    recording(j)
    feed.look()
    assert feed.write("s") == [("one",), ("two",)]
    feed.look()
    assert feed.held == []


def test_a_purge_while_it_is_put_away_is_noticed(feed: StandInFeed) -> None:
    recording(feed["s"])
    feed.look()
    feed.write("s")
    feed["s"].at = msgspec.structs.replace(feed["s"].at, n=feed["s"].at.n + 2, state=b"")
    feed.look()
    assert feed.held == ["s"] and "over" not in feed["s"].at.positions
    feed.reachable = False
    feed.look()
    assert feed.held == ["s"] and feed.shelf.books["s"].stale, "tried again"
    feed.reachable = True
    feed.look()
    assert feed.held == [] and feed["s"].at.positions["over"] == 4


def test_text_without_minutes_is_not_held_but_never_forgotten(feed: StandInFeed) -> None:
    feed.start(SummarySettings(interval_s=0.0, at_end=False))
    recording(feed["s"])
    feed.look()
    assert feed.held == [] and feed["s"].at.positions == {}, "other settings may want minutes of it"
    feed["s"].ask()
    feed.look()
    assert feed.write("s") == [("one", "two")]
    recording(feed["t"])
    feed.look()
    feed.start(RULES)
    feed.look()
    assert feed.held == ["t"] and feed.write("t") == [("one",), ("two",)]


def test_leases_are_obeyed_while_a_long_stream_is_read(feed: StandInFeed) -> None:
    for _ in range(shelf.EDGE_EVERY * 2):
        feed["s"].say("word", 0.1)
    feed["s"].end()
    feed.look()
    feed.write("s")
    feed.look()
    feed["s"].ask()
    feed.look()
    assert feed.reads == ["s"] and feed.edges == 2


@given(ACTIONS, st.lists(st.sampled_from(["late", "ask", "kill", "look", "write"]), max_size=12))
def test_who_puts_books_away_writes_the_same_minutes(actions: list[tuple[str, float]], afterwards: list[str]) -> None:
    """As one summarizer that reads it all at the end."""
    feed, whole, written, said = StandInFeed(), Journal(), list[tuple[str, ...]](), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "replay", feed.replay)
        for what, seconds in [*actions, ("end", 0.0), *((what, 0.0) for what in afterwards)]:
            for j in (feed["s"], whole):
                if what == "say":
                    j.say(f"line {said}", seconds)
                elif what == "silent":
                    j.silent(seconds)
                elif what in ("ask", "end"):
                    getattr(j, what)()
                elif what == "late":
                    j.add(spoken(said, said + 1, f"late {said}"))
            said += what in ("say", "late")
            if what == "kill":
                feed.start()
            feed.look()
            if what == "write":
                written += feed.write("s")
        written += feed.write("s")
        feed.look()
        assert written == [texts for _, _, texts in everything(whole, whole.book())]
        assert feed.held == []
