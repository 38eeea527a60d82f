"""What the soak benchmark calls growth: a leak, lag that rises and a bloated journal are seen, noise is not."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from common import messages as m
from tests.conftest import ROOT
from workers.journal import Journal, Reader

sys.path.append(str(ROOT / "benchmarks"))

from journal_size import journal_bytes
from soak_figures import Table, figures_of, read

pytestmark = pytest.mark.pure
MIB = 2**20


def hour(leak_mib: float = 0.0, later_s: float = 0.0, **sizes: int) -> list[dict[str, Any]]:
    """Rows of an hour: 360 swaps; weights are away from the card in three looks of ten, and noise."""
    rng = random.Random(7)
    rows: list[dict[str, Any]] = [{"row": "began", "part": "real", "at": 0.0, "samples": 57_600_000}]
    for t in range(1, 3600):
        swaps, away = t // 10, t % 10 < 3
        step = rng.uniform(0, 80) if rng.random() < 0.3 else rng.gauss(0, 2)
        rss = round((600 + leak_mib * swaps / 100 - 140 * away + step) * MIB)
        rows.append({"row": "memory", "part": "real", "at": float(t), "swaps": swaps, "rss": {"transcriber": rss}})
        lag = rng.random() / 4 + (later_s if t > 2700 else 0.0)
        rows.append({"row": "lag", "part": "real", "at": float(t), "lag_s": lag, "head": 16_000 * t})
    rows.append({"row": "sizes", "part": "real", "at": 3600.0, "pss": {}, "live_swaps": 360, "bytes": {"logs": 0}})
    sizes = {"journal": 2_000_000, "journal_computed": 2_000_000, "audio": 115_200_000} | sizes
    counts = {"events": 0, "minutes": 0, "captions": 0, "gaps": 0}
    return [*rows, {"row": "bytes", "part": "real", "at": 3601.0, **counts, **sizes}]


def missed(rows: list[dict[str, Any]]) -> list[str]:
    table = Table()
    figures_of("real", rows, table)
    return table.missed


def test_an_hour_without_growth_misses_nothing() -> None:
    assert missed(hour()) == []


@pytest.mark.parametrize(
    "trouble, what",
    [
        ({"leak_mib": 2.5}, "RSS"),
        ({"later_s": 0.1}, "lag"),
        ({"journal": 2_110_000}, "journal"),
        ({"journal": 1_890_000}, "journal"),
        ({"audio": 121_000_000}, "backlog"),
    ],
)
def test_growth_is_seen(trouble: dict[str, Any], what: str) -> None:
    (one,) = missed(hour(**trouble))
    assert what in one


def test_a_run_that_was_cut_off_says_what_it_saw(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"row": "began", "part": "real", "at": 1.0, "samples": 5}\n{"row": "mem')
    (row,) = read(file)
    assert row["row"] == "began"
    assert any("did not come to its end" in what for what in missed(hour()[:-1]))


def test_a_journal_is_as_large_as_its_events_need(tmp_path: Path) -> None:
    """And one whose rows are larger than what is replayed of them is not."""
    rng, journal = random.Random(3), Journal(tmp_path)
    stream, at, n = "talk-20261124T230000Z", 0, 0
    for _ in range(600):
        length = rng.randrange(16_000, 128_000)
        words = tuple(
            m.Word(text=" word" * rng.randrange(1, 3), span=(at + 5000 + k, at + 5001 + k), p=0.1234)
            for k in range(length // 5_000)
        )
        segment, span = m.segment_id(stream, at + 5000), (at + 5000, at + 5000 + length)
        said = m.Transcript(
            segment=segment, span=span, text=" word" * len(words), language="en", words=words, model="x"
        )
        bodies = (m.raw(m.Silence(span=(at, at + 5000))), m.raw(said))
        at = span[1]
        place = {"positions": {"audio": at}, "state": b"s" * 1400}
        append = m.Append(producer="transcriber", stream=stream, expect_n=n, events=bodies, **place)  # type: ignore[arg-type]
        answers, _ = journal.append([append])
        assert isinstance(answers[0], m.At)
        n = answers[0].n
    events: list[m.Event] = []
    reader = Reader(journal.path, journal.id)
    while page := reader.page(m.Replay(after=len(events))).events:
        events += page
    places = [("transcriber", stream, journal.at("transcriber", stream))]
    reader.close()
    journal.close()
    size = journal.path.stat().st_size
    assert 0.95 <= size / journal_bytes(events, places) <= 1.05
    assert size / journal_bytes(events[: len(events) * 9 // 10], places) > 1.05
