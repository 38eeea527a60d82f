"""The diarization benchmark on a journal written by hand (a stand-in for a system): figures, and bounds that break."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.scores import Turns
from common import messages as m
from tests.conftest import ROOT
from tests.diarization import Shown, Told
from tests.test_join import Journal, s

sys.path.append(str(ROOT / "benchmarks"))

from diarization import PHONE, Report, Sides
from listening import Cost, Heard, Recording

pytestmark = pytest.mark.pure
TURNS: Turns = [(0.0, 2.0, "ann"), (2.0, 4.0, "ben")]
RIGHT: Turns = [(0.0, 2.0, "S1"), (2.0, 4.0, "S2")]
WRONG: Turns = [(0.0, 4.0, "S1")]


def heard(provisional: Turns, *later: m.Body, after_s: float = 1.0) -> Heard:
    """Four words; these turns, told `after_s` after their end; then this, in one append."""
    journal = Journal()
    shown = Shown()
    journal.say(0.0, "one", "two", "three", "four")
    journal.add(*(m.SpeakerTurn(span=s(a, b), speaker=who, provisional=True) for a, b, who in provisional))
    shown.take(journal.events)
    had = len(journal.events)
    if later:
        journal.add(*later)
    shown.take(journal.events[had:])
    told = [Told(turn, turn[1] + after_s) for turn in provisional]
    transcripts = [e.decode() for e in journal.events if e.kind == "transcript"]
    costs = {"diarizer": Cost(0.2, 300.0, 1)}
    return Heard(told, shown, [t for t in transcripts if isinstance(t, m.Transcript)], [1.5], costs)


def report(found: Heard, offline: Turns = RIGHT, name: str = PHONE) -> Report:
    recording = Recording(name, np.zeros(4 * 16_000, np.int16), TURNS, {})
    made = Report()
    made.turns(name, [Sides(recording, found, offline)])
    made.shown(name, Sides(recording, found, offline))
    return made


def value(made: Report, part: str) -> float:
    (figure,) = [f for f in made.figures if f.name.partition(" (")[0].endswith(part)]
    return figure.value


def test_a_system_that_is_right_at_once_breaks_no_bound() -> None:
    made = report(heard(RIGHT))
    assert not made.broken
    assert value(made, "DER settled, collar 0") == value(made, "DER provisional, collar 0") == 0
    assert value(made, "speakers settled, of 2") == 2
    assert value(made, "turns, told after their end, p50") == pytest.approx(1.0)


def test_what_is_put_right_later_is_wrong_provisionally_and_was_shown_otherwise() -> None:
    relabel = m.Relabel(source="S1", target="S2", span=s(2.0, 4.0))
    made = report(heard(WRONG, relabel))
    assert [name.partition(" (")[0] for name in made.broken] == [f"{PHONE}: DER provisional, collar 0"]
    made = report(heard(WRONG, relabel), name="four")
    assert value(made, "DER settled, collar 0") == 0
    assert value(made, "DER provisional, collar 0") == 50
    assert value(made, "words whose speaker changed after it was shown") == 50
    assert [name.partition(" (")[0] for name in made.broken] == ["four: words whose speaker changed after it was shown"]
    assert value(made, "the same, also if it changed back") == 50


def test_turns_that_are_settled_with_other_boundaries_take_the_place_of_what_was_provisional() -> None:
    gone = m.Relabel(source="S1", target="", span=s(0.0, 4.0))
    new = [m.SpeakerTurn(span=s(a, b), speaker=who, provisional=False) for a, b, who in RIGHT]
    assert value(report(heard(WRONG, gone, *new)), "DER settled, collar 0") == 0


def test_labels_that_come_too_late_are_missed_provisionally() -> None:
    made = report(heard(RIGHT, after_s=3.5))
    assert value(made, "missed provisional, collar 0") == 100
    assert value(made, "DER settled, collar 0") == 0


def test_the_bound_follows_the_offline_pipeline() -> None:
    assert f"{PHONE}: DER settled, collar 0 (bound offline + 1)" in report(heard(WRONG)).broken
    assert not [name for name in report(heard(WRONG), offline=WRONG).broken if "settled" in name]
