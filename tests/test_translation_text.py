"""Translations on a terminal: each is said once, and again when it is another one."""

from __future__ import annotations

import pytest

from common import messages as m
from common.console import Captions
from common.feed_client import Appender
from common.translation_text import KEPT, InOtherWords
from tests.conftest import wait_for
from tests.pages import SECOND, STREAM, Producer
from tests.test_join import RATE, Journal


class Terminal:
    """Lines as they are printed while a journal grows."""

    def __init__(self, *only: str) -> None:
        self.journal, self.words, self._read = Journal(), InOtherWords(only), 0

    def translate(self, segment: str, text: str, target: str = "pt", revision: int = 0, **more: object) -> None:
        body = m.Translation(segment=segment, revision=revision, target=target, text=text, **more)  # type: ignore[arg-type]
        self.journal.add(body, by=f"translator.{target}")

    def lines(self) -> list[str]:
        for e in self.journal.events[self._read :]:
            self.words.take(e)
        self._read = len(self.journal.events)
        return self.words.news()


@pytest.mark.pure
def test_each_is_said_once_and_again_when_the_words_were_corrected() -> None:
    t = Terminal()
    first = t.journal.say(0, "Good", "day.")
    assert t.lines() == []
    t.translate(first, "Bom dia.", span=(0, RATE))
    t.translate(first, "Guten Tag.", "de", suspect="copied")
    assert t.lines() == ["00:00.0  (pt) Bom dia.", "00:00.0  (de?) Guten Tag."]
    t.translate(first, "Bom dia.", span=(0, RATE))
    assert t.lines() == [], "it says nothing new"
    t.journal.say(0, "Good", "night.", revision=1)
    assert t.lines() == []
    t.translate(first, "Boa noite.", revision=1)
    t.translate(first, "Bom dia.")
    assert t.lines() == [], "of a text that is no more, and the newest one counts"
    t.translate(first, "Boa noite.", revision=1)
    assert t.lines() == ["00:00.0  (pt, anew) Boa noite."]


@pytest.mark.pure
def test_only_what_is_wanted_and_in_the_order_of_speech() -> None:
    t = Terminal("pt")
    segments = [t.journal.say(at, "word") for at in (0, 5)]
    t.translate(segments[1], "segunda")
    t.translate(segments[0], "segundo lugar", place=1, span=(RATE, RATE + 1))
    t.translate(segments[0], "primeiro", place=0, span=(0, RATE))
    t.translate(segments[0], "erste", "de")
    assert t.lines() == ["00:00.0  (pt) primeiro", "00:01.0  (pt) segundo lugar", "00:05.0  (pt) segunda"]


@pytest.mark.pure
def test_a_day_is_not_kept() -> None:
    t = Terminal()
    for at in range(0, 6 * KEPT // RATE, 60):
        t.translate(t.journal.say(at, "word"), "palavra")
        assert len(t.lines()) == 1
    most = 1.2 * KEPT / RATE / 60
    assert len(t.words._told) < most and len(t.words._known.sentences("pt")) < most


@pytest.mark.pure
def test_nor_is_a_day_of_music() -> None:
    t = Terminal()
    for at in range(0, 6 * KEPT // RATE, 60):
        span = (at * RATE, (at + 1) * RATE)
        t.journal.add(m.Suppressed(span=span, text="", reason="music", segment=f"x:{span[0]}"), by="transcriber")
        t.lines()
    assert len(t.words._known._texts.chosen) < 1.2 * KEPT / RATE / 60


@pytest.mark.processes
def test_a_terminal_prints_them_after_the_captions(producer: Producer) -> None:
    captions = Captions(producer.settings, after=0)
    translator = Appender(producer.settings, "translator.pt")
    producer.say("Good morning.")
    body = m.Translation(segment=m.segment_id(STREAM, 0), revision=0, target="pt", text="Bom dia.", span=(0, SECOND))
    assert isinstance(translator.append(STREAM, 0, {}, (body,)), m.At)
    lines: list[str] = []

    def both() -> bool:
        lines.extend(captions.lines())
        return len(lines) == 2

    wait_for(both, what="a caption and its translation")
    assert lines == ["00:00.0  Good morning.", "00:00.0  (pt) Bom dia."]
    translator.close()
