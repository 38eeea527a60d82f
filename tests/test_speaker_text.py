"""Speakers on a terminal: nothing is held back, and nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common import messages as m
from common.console import Captions
from common.feed_client import Appender
from common.past import Past
from common.settings import Settings
from common.speaker_text import KEPT, Who
from tests.conftest import Processes, wait_for
from tests.test_join import RATE, Journal, s


class Terminal:
    """Lines as they are printed while a journal grows."""

    def __init__(self) -> None:
        self.journal, self.who, self._read = Journal(), Who(), 0

    def lines(self) -> list[str]:
        out: list[str] = []
        for e in self.journal.events[self._read :]:
            self.who.join.take(e)
            if isinstance(body := e.decode(), m.Transcript):
                out += self.who.caption(body)
        self._read = len(self.journal.events)
        return out + self.who.news()


@pytest.mark.pure
def test_a_name_is_printed_where_it_changes() -> None:
    t = Terminal()
    t.journal.turn("S1", 0, 9)
    t.journal.turn("S2", 9, 20)
    for start in (0, 4, 12):
        t.journal.say(start, "one", "two")
    t.journal.say(17, "three", "four")
    assert t.lines() == ["00:00.0  S1: one two", "00:04.0  one two", "00:12.0  S2: one two", "00:17.0  three four"]
    t.journal.turn("S1", 20, 30)
    t.journal.say(19, "mine", "yours", "again")
    assert t.lines() == ["00:19.0  mine", "00:20.0  S1: yours again"]


@pytest.mark.pure
def test_a_caption_does_not_wait_for_its_speaker() -> None:
    t = Terminal()
    t.journal.say(1, "one", "two")
    assert t.lines() == ["00:01.0  one two"]
    t.journal.turn("S1", 1, 2)
    assert t.lines() == ["[00:01.0 S1]"]
    t.journal.turn("S1", 2, 3)
    assert t.lines() == [], "nothing new"
    t.journal.say(5, "three")
    assert t.lines() == ["00:05.0  three"]
    t.journal.turn("S1", 5, 6)
    assert t.lines() == [], "goes without saying"
    t.journal.turn("S2", 8, 9)
    t.journal.turn("S1", 9, 12)
    t.journal.say(8, "four", "five")
    t.journal.say(11, "six")
    assert t.lines() == ["00:08.0  S2: four", "00:09.0  S1: five", "00:11.0  six"]


@pytest.mark.pure
def test_relabels_and_names_are_news() -> None:
    t = Terminal()
    t.journal.turn("S1", 0, 100)
    for i in range(10):
        t.journal.say(i * 10, "word")
    t.lines()
    t.journal.relabel("S1", "S2", s(20, 22))
    assert t.lines() == ["[00:20.0 S2, not S1]"]
    t.journal.add(m.SpeakerName(speaker="S1", name="Ann"), by="cli.1")
    assert t.lines() == ["[S1 is Ann]"]
    t.journal.relabel("S1", "S3", s(40, 100), by="diarizer")
    assert t.lines() == ["[6 captions have other speakers now]"]
    t.journal.add(m.SpeakerName(speaker="S1", name=""), by="cli.3")
    assert t.lines() == ["[Ann is S1]"]
    t.journal.turn("S2", 110, 111)
    t.journal.say(110, "word")
    t.journal.say(120, "word")
    t.journal.turn("S1", 120, 121)
    assert t.lines() == ["01:50.0  S2: word", "02:00.0  word", "[02:00.0 S1]"]


@pytest.mark.pure
def test_a_turn_that_is_taken_away_and_found_again_is_no_news() -> None:
    t = Terminal()
    t.journal.turn("S1", 0, 9)
    t.journal.say(0, "one", "two")
    t.journal.say(4, "three")
    assert t.lines() == ["00:00.0  S1: one two", "00:04.0  three"]
    t.journal.relabel("S1", "", s(0, 9), by="diarizer")
    assert t.lines() == []
    t.journal.turn("S1", 0.1, 2.2)
    t.journal.turn("S2", 4, 5)
    assert t.lines() == ["[00:04.0 S2, not S1]"]


@pytest.mark.pure
def test_a_day_is_not_kept() -> None:
    t = Terminal()
    for i in range(0, 6 * KEPT // RATE, 60):
        t.journal.say(i, "word")
        t.journal.turn(f"S{i // 60 % 3 + 1}", i, i + 1)
        t.lines()
    assert len(t.who.join.pieces()) < 1.2 * KEPT / RATE / 60 and len(t.who._told) < 1.2 * KEPT / RATE / 60


@pytest.fixture
def feed(processes: Processes) -> Iterator[Settings]:
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    yield processes.settings


@pytest.mark.processes
def test_who_comes_late_learns_names_and_merges(feed: Settings) -> None:
    """Turns and a caption now, a name and a merge from before; then a speaker who comes after the caption."""
    diarizer, person, transcriber = (Appender(feed, name) for name in ("diarizer", "cli.1", "transcriber"))
    began = m.StreamStarted(source="mic", lane="live", started_ns=1)
    assert isinstance(transcriber.append("x", 0, {"audio": 0}, [began]), m.At)
    called = (m.SpeakerName(speaker="S1", name="Ann"), m.Relabel(source="S3", target="S1"))
    assert isinstance(person.append("x", 0, {}, called), m.At)
    captions = Captions(feed)
    wait_for(lambda: captions.lines() or captions.beat, what="the feed")
    said: list[str] = []

    def look() -> list[str]:
        said.extend(captions.lines())
        return said

    def text(start: float, n: int) -> m.At | m.Refused:
        span = s(start, start + 1)
        body = m.Transcript(segment=f"x:{span[0]}", span=span, text="word", language="en", model="x")
        return transcriber.append("x", n, {"audio": span[1]}, [body])

    assert isinstance(text(0, 1), m.At)
    wait_for(lambda: "00:00.0  word" in look(), what="the caption")
    assert said == ["00:00.0  word"], "at once"
    turn = m.SpeakerTurn(span=s(0, 1), speaker="S3", provisional=True)
    assert isinstance(diarizer.append("x", 0, {"audio": RATE}, [turn]), m.At)
    wait_for(lambda: any("Ann" in x for x in look()), what="who it was")
    assert said[1:] in (["[00:00.0 Ann]"], ["[00:00.0 S3]", "[00:00.0 Ann, not S3]"])
    for appender in (diarizer, person, transcriber):
        appender.close()


@pytest.mark.processes
def test_the_past_of_streams_is_read_once_and_then_what_came_since(feed: Settings) -> None:
    def name(stream: str, *names: str) -> None:
        """A producer for each append, as people's commands have it."""
        for n in names:
            appender = Appender(feed, f"cli.{n}")
            assert isinstance(appender.append(stream, 0, {}, [m.SpeakerName(speaker="S1", name=n)]), m.At)
            appender.close()

    past, read = Past(feed, ("speaker_name",)), list[str]()

    def look(*expected: str) -> None:
        def met() -> bool:
            read.extend(body.name for e in past.events() if isinstance(body := e.decode(), m.SpeakerName))
            return not past.busy

        wait_for(met, what="the past")
        assert read == list(expected)
        read.clear()

    name("x", "a", "b")
    name("y", "c")
    past.want("x")
    look("a", "b")
    past.want("y")
    past.want("x")
    look("c")
    name("x", *(f"n{i}" for i in range(5)))
    past.want("x")
    assert past.busy
    past.events()  # it is asked
    name("x", "late")
    past.want("x")
    look("n0", "n1", "n2", "n3", "n4", "late")
    past.want("y")
    past.events()
    past.forget("y")  # what comes is not taken for another's
    past.want("x")
    look()
    past.want("y")
    look("c")
    name("y", "d")
    past.want("y")
    past.events()  # it is asked for what came after "c"
    past.forget("y")
    past.want("y")
    look("c", "d")
