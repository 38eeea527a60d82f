"""What benchmarks/live.py makes of a record: first shown, settled, taken back."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from live_figures import Costs, Row, align, figures, quantile, read, standing, written
from live_table import Table, print_all

pytestmark = pytest.mark.pure
SAID = [("Ask", 1.0), ("not,", 2.0), ("what", 3.0)]


def test_a_word_is_shown_when_it_first_stands_at_its_place_and_settled_when_it_never_leaves_it_again() -> None:
    record = [
        Row(1.5, "s", "Ask"),
        Row(2.5, "s", "Ask knot"),
        Row(3.5, "s", "asked not what"),
        Row(4.5, "s", "Ask not, what!", True),
    ]
    found = figures(record, SAID)
    assert [(t.word, t.shown_s, t.settled_s) for t in found.timings] == [
        ("ask", 0.5, 3.5),
        ("not", 1.5, 1.5),
        ("what", 0.5, 0.5),
    ]
    assert found.taken_back == 3  # knot, Ask, asked
    assert found.taken_back_per_word == 1.0
    assert found.text == "Ask not, what!"


def test_a_text_that_goes_away_is_taken_back_whole() -> None:
    found = figures([Row(1.0, "s", "thank you"), Row(2.0, "s", "", True)], SAID)
    assert found.taken_back == 2 and found.final_words == 0 and found.timings == []


def test_finals_alone_are_shown_and_settled_at_once_and_wrong_words_are_timed_too() -> None:
    found = figures([Row(4.0, "a", "ask a knot", True), Row(5.0, "b", "what", True)], SAID)
    assert [(t.word, t.shown_s) for t in found.timings] == [("ask", 3.0), ("knot", 2.0), ("what", 2.0)]
    assert all(t.shown_s == t.settled_s for t in found.timings)


def test_a_beginning_is_aligned_to_the_beginning_of_what_follows() -> None:
    assert align("ab", "abab", open_end=True) == [0, 1]
    assert align("ac", "abc") == [0, 2]
    assert align("xb", "ab") == [0, 1]
    assert align("ab", "b") == [-1, 0]
    assert standing("axc", "abcd") == {0, 2}


def test_quantiles_are_values_that_occur() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert math.isnan(quantile([], 0.5))


def test_what_overtakes_its_final_is_old_news() -> None:
    late = [Row(1.5, "s", "Ask", True), Row(1.6, "s", "Ask knot"), Row(1.7, "t", "not", True)]
    found = figures(late, SAID)
    assert found.text == "Ask not" and found.taken_back == 0


def test_a_record_is_read_as_it_was_written() -> None:
    rows, costs = [Row(1.0, "s", "é"), Row(2.0, "s", "", True)], Costs(3.5, 700.0)
    assert read(written(rows, costs).splitlines()) == (rows, costs)
    assert read(['{"t": 1, "segment": "s", "text": "a"}', ""]) == ([Row(1, "s", "a")], Costs())


def test_systems_stand_side_by_side_and_a_bound_can_be_broken(capsys: pytest.CaptureFixture[str]) -> None:
    tables = {"ours": Table(), "theirs": Table()}
    for table, t in zip(tables.values(), (1.5, 9.0), strict=True):
        table.of(figures([Row(t, "s", "Ask", True)], SAID), 3, 66.7, 66.5)
    tables["ours"].costs(Costs(8.0, 690.0), 10.0)
    assert tables["ours"].broken == []
    assert len(tables["theirs"].broken) == 4
    print_all(tables, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["ours", "theirs"]
    assert lines[1].split()[-2:] == ["0.500", "8.000"]
    assert lines[-1].split()[-2:] == ["690.000", "-"]
