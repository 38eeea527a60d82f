"""Translations on the page: under their captions, by speaker, and gone or new when words are corrected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common import messages as m
from common.feed_client import Appender
from common.settings import Settings
from tests.conftest import Processes
from tests.pages import SECOND, STREAM, Events, Page, Producer, lasting_port, until
from tests.standin_turns import StandinTurns

pytestmark = pytest.mark.processes


class StandinTranslator:
    """Appends translations as `translator.pt` would: whole sentences, as they are told."""

    def __init__(self, settings: Settings) -> None:
        self._appender, self._n = Appender(settings, "translator.pt"), 0

    def translate(self, segment: str, text: str, **more: Any) -> None:
        body = m.Translation(segment=segment, revision=more.pop("revision", 0), target="pt", text=text, **more)
        answer = self._appender.append(STREAM, self._n, {}, (body,))
        assert isinstance(answer, m.At) and answer.n == self._n + 1
        self._n = answer.n

    def close(self) -> None:
        self._appender.close()


@pytest.fixture
def translator(producer: Producer) -> Iterator[StandinTranslator]:
    translator = StandinTranslator(producer.settings)
    yield translator
    translator.close()


def told(events: Events, segment: str, wanted: list[list[str]]) -> None:
    """The page learns that these are the sentences that begin in a segment."""
    until(events, "translations", lambda d: d["sentences"].get(segment) == wanted)


def test_translations_follow_corrections_and_relabels(
    processes: Processes, producer: Producer, translator: StandinTranslator
) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=1))
    events = page.events()
    seq = producer.say("Good morning and so")
    first = next(d for kind, i, d in events if kind == "message" and i == seq)["segment"]
    producer.say("we begin.")
    second = m.segment_id(STREAM, 2 * SECOND)
    translator.translate(first, "Bom dia e assim começamos.", goes_on=(f"{second}/0",))
    told(events, first, [["pt", "Bom dia e assim começamos.", "", second, ""]])
    turns.turn("S1", 0, 3)
    told(events, first, [["pt", "Bom dia e assim começamos.", "S1", second, ""]])
    turns.relabel("S1", "S2", 0, 3)
    told(events, first, [["pt", "Bom dia e assim começamos.", "S2", second, ""]])
    span = (2 * SECOND, 3 * SECOND)
    better = m.Transcript(
        segment=second, revision=1, supersedes=f"{second}/0", span=span, text="they begin.", language="en", model="y"
    )
    producer.append(better)
    told(events, first, [])
    translator.translate(first, "Bom dia e assim começam.", goes_on=(f"{second}/1",), suspect="numbers")
    told(events, first, [["pt", "Bom dia e assim começam.", "S2", second, "numbers"]])
    again = page.events(0)  # a page that was away while all that happened
    told(again, first, [["pt", "Bom dia e assim começam.", "S2", second, "numbers"]])
    told(page.events(), first, [["pt", "Bom dia e assim começam.", "S2", second, "numbers"]])
    turns.close()


def test_a_viewer_that_was_killed_knows_the_translations_again(
    processes: Processes, producer: Producer, translator: StandinTranslator
) -> None:
    page = Page(processes, port=lasting_port())
    producer.say("Good morning.")
    first = m.segment_id(STREAM, 0)
    translator.translate(first, "Bom dia.")
    told(page.events(0), first, [["pt", "Bom dia.", "", first, ""]])
    page.process.kill()
    page = Page(processes, port=page.port)
    told(page.events(0), first, [["pt", "Bom dia.", "", first, ""]])
