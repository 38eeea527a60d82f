"""The measures of "who said it" on cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scores import Turns, by_speaker, rttm, score
from common import messages as m
from common.messages import Body
from tests.diarization import Shown, Told, outside, provisional
from tests.test_join import Journal, s

pytestmark = pytest.mark.pure
TALK: Turns = [(0.0, 4.0, "a"), (4.0, 8.0, "b"), (8.0, 10.0, "a")]


def der(hypothesis: Turns, collar_s: float = 0.0, reference: Turns = TALK) -> tuple[float, ...]:
    found = score([(reference, hypothesis, 12.0)], collar_s)
    assert found.der == pytest.approx(found.missed + found.false_alarm + found.confusion)
    return tuple(round(x, 3) for x in (found.missed, found.false_alarm, found.confusion))


def test_other_names_are_no_error() -> None:
    assert der([(a, b, {"a": "S2", "b": "S1"}[who]) for a, b, who in TALK]) == (0, 0, 0)
    assert score([(TALK, [(a, b, who * 2) for a, b, who in TALK], 12.0)]).jer == 0


def test_missed_and_invented_and_confused_speech() -> None:
    assert der(TALK[:2]) == (20, 0, 0)
    assert der([*TALK, (10.0, 11.0, "b")]) == (0, 10, 0)
    assert der([*TALK[:2], (8.0, 10.0, "b")]) == (0, 0, 20)
    assert der([]) == (100, 0, 0)
    assert der([(0.0, 10.0, "x")]) == (0, 0, 40), "one speaker for all: the other one's speech is confused"


def test_overlap_counts_for_both() -> None:
    both = [(0.0, 6.0, "a"), (4.0, 10.0, "b")]  # 12 s of speech
    assert der(both, reference=both) == (0, 0, 0)
    assert der([(0.0, 6.0, "a"), (6.0, 10.0, "b")], reference=both) == (round(100 * 2 / 12, 3), 0, 0)


def test_a_collar_forgives_edges() -> None:
    late = [(a + 0.1, b, who) for a, b, who in TALK]
    assert der(late)[0] == 3
    assert der(late, 0.25) == (0, 0, 0)


def test_pieces_that_touch_or_overlap_are_one_turn() -> None:
    assert der([(0.0, 2.0, "a"), (2.0, 4.0, "a"), (3.0, 4.0, "a"), *TALK[1:]]) == (0, 0, 0)


def test_recordings_are_counted_together() -> None:
    silent_then_right = score([(TALK, [], 12.0), (TALK, TALK, 12.0)])
    assert silent_then_right.der == pytest.approx(50)
    assert silent_then_right.missed == pytest.approx(50)


def test_speakers_of_another_recording_are_others() -> None:
    swapped = [(a, b, {"a": "b", "b": "a"}[who]) for a, b, who in TALK]
    assert score([(TALK, TALK, 12.0), (TALK, swapped, 12.0)]).der == 0


def test_a_label_that_comes_late_is_not_there() -> None:
    told = [Told(TALK[0], 6.9), Told(TALK[1], 11.1), Told(TALK[2], 12.9)]
    assert provisional(told, TALK) == [TALK[0], TALK[2]], "b's turn ended at 8 s, and 3 s later nothing was shown"


def test_of_a_piece_only_the_part_is_late_whose_turn_ended_long_ago() -> None:
    told = [Told((3.0, 6.0, "x"), 9.0)]  # a's turn ended at 4 s: too late for it; b's ended at 8 s
    assert provisional(told, TALK) == [(4.0, 6.0, "x")]
    over = [(0.0, 4.0, "a"), (3.0, 8.0, "b")]
    assert provisional(told, over) == [(3.0, 6.0, "x")], "where both speak, the later end counts"


def test_what_is_invented_counts_whenever_it_comes() -> None:
    assert provisional([Told((10.5, 11.5, "x"), 60.0)], TALK) == [(10.5, 11.5, "x")]


def test_outside() -> None:
    assert outside([(0, 10)], [(2, 3), (9, 12)]) == [(0, 2), (3, 9)]
    assert outside([(2, 3)], [(0, 5)]) == []


def shown(*batches: list[Body]) -> Shown:
    """A subscriber who has four words, and to whom each batch comes at once."""
    journal, found = Journal(), Shown()
    journal.say(0.0, "one", "two", "three", "four")
    found.take(journal.events)
    for batch in batches:
        had = len(journal.events)
        for body in batch:
            journal.add(body)
        found.take(journal.events[had:])
    return found


def turn(speaker: str, start: float, end: float) -> Body:
    return m.SpeakerTurn(span=s(start, end), speaker=speaker, provisional=True)


def test_a_label_that_comes_after_its_word_changes_nothing_that_was_shown() -> None:
    assert shown().counted() == (4, 4, 0, 0)
    assert shown([turn("S1", 0, 1.4)]).counted() == (4, 2, 0, 0)
    assert shown([turn("S1", 0, 1.4)], [turn("S2", 3, 4)]).counted() == (4, 0, 0, 0)


def test_a_word_that_is_relabelled_is_counted() -> None:
    both = [turn("S1", 0, 2), turn("S2", 2, 4)]
    relabel, back = (m.Relabel(source=a, target=b, span=s(2, 3)) for a, b in (("S2", "S1"), ("S1", "S2")))
    assert shown(both, [relabel]).counted() == (4, 0, 1, 1)
    assert shown(both, [relabel], [back]).counted() == (4, 0, 0, 1), "it is what it was, and was not in between"
    assert shown([*both, relabel]).counted() == (4, 0, 0, 0), "nobody saw it otherwise"
    assert shown(both, [m.Relabel(source="S2", target="S3")]).counted() == (4, 0, 2, 2)


def test_runs_are_in_the_order_of_time() -> None:
    found = shown([turn("S1", 0, 2), turn("S2", 2, 4)])
    assert by_speaker((r.speaker, r.text) for r in found.runs) == {"S1": "one two", "S2": "three four"}


def test_rttm(tmp_path: Path) -> None:
    path = tmp_path / "x.rttm"
    path.write_text("SPEAKER x 1 1.50 2.25 <NA> <NA> a <NA> <NA>\nSPEAKER y 1 0 1 <NA> <NA> b <NA> <NA>\n")
    assert rttm(path) == {"x": [(1.5, 3.75, "a")], "y": [(0.0, 1.0, "b")]}
