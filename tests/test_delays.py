"""Delays of captions: the window, what a final's way is made of, how it is told. Pure."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import backlog, console
from common import messages as m
from common.delay_text import lines
from common.messages import SAMPLE_RATE as S
from common.settings import Settings
from workers.delays import LOOKED_AT_S, Delays, Timed, ago_s
from workers.health import Health
from workers.interim import UnderWay
from workers.session import Utterance
from workers.steps import Step
from workers.window import Window

pytestmark = pytest.mark.pure
NS = 10**9
NOW = 5000.0  # where clocks stand still, the monotonic one


def anchor(sample: int, at_s: float, boot: str = "here", ahead_s: float = 1e6) -> backlog.Anchor:
    """At `at_s` of the boot clock; the wall clock is `ahead_s` ahead of it."""
    return backlog.Anchor(sample=sample, wall_ns=int((at_s + ahead_s) * NS), boot_ns=int(at_s * NS), boot_id=boot)


# The window


def test_quantiles_are_values_that_occur_and_old_ones_do_not_count() -> None:
    window = Window(10.0)
    assert window.quantiles(0.0) is None
    for i in range(1, 101):
        window.add(float(i), i / 100)
    assert window.quantiles(1.0) == (100, 50.0, 95.0)
    assert window.quantiles(10.5) == (50, 75.0, 98.0)
    assert window.quantiles(20.0) is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.integers(1, 20))
def test_memory_is_bounded_by_age_and_by_count(values: list[float], most: int) -> None:
    window = Window(5.0, most)
    for i, value in enumerate(values):
        window.add(value, float(i))
    assert len(window) <= min(most, 5)
    newest = sorted(values[-min(most, 5) :])
    found = window.quantiles(float(len(values) - 1))
    assert found and found.of == len(newest) and newest[0] <= found.p50 <= found.p95 <= newest[-1]


# When a sample was heard


def test_a_sample_was_heard_by_the_nearest_anchor_before_it() -> None:
    anchors = [anchor(0, 100.0), anchor(60 * S, 170.0)]  # ten seconds were missing
    now = anchor(0, 180.0)
    assert ago_s(S, anchors, now) == pytest.approx(79.0)
    assert ago_s(61 * S, anchors, now) == pytest.approx(9.0)
    assert ago_s(30 * S, anchors[1:], now) == pytest.approx(40.0)  # before all that are known
    assert ago_s(99 * S, anchors, now) == 0.0  # a source that runs fast
    assert ago_s(S, [], now) == 0.0


def test_across_a_restart_of_the_machine_the_wall_clock_counts() -> None:
    assert ago_s(0, [anchor(0, 500.0, "before")], anchor(0, 20.0, ahead_s=1e6 + 500.0)) == pytest.approx(20.0)


# A final's way


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both clocks stand, whatever the disk takes."""
    now = anchor(0, NOW)
    monkeypatch.setattr("workers.delays.time", SimpleNamespace(monotonic=lambda: NOW))
    monkeypatch.setattr(backlog, "anchor_now", lambda sample: msgspec.structs.replace(now, sample=sample))


def session(folder: Path, heard_s: float, lane: str = "live") -> Any:
    """A stream whose sample 0 was heard `heard_s` ago."""
    now = backlog.anchor_now(0)
    first = backlog.Anchor(sample=0, wall_ns=0, boot_ns=now.boot_ns - int(heard_s * NS), boot_id=now.boot_id)
    backlog.Writer(folder, S).anchor(first)
    return SimpleNamespace(folder=folder, meta=SimpleNamespace(lane=lane, stream="s"), told_of=-1)


WORK = Utterance(
    stream="s", span=(0, 3 * S), speech=(S // 2, 3 * S), voiced=(S, 5 * S // 2), pcm=b"", state=b"", certain=3 * S
)


def said(*ends: int, kind: str = "transcript") -> Step:
    words = tuple(m.Word(text=" a", span=(end - 10, end), p=1.0) for end in ends)
    body = m.Transcript(segment="s:1", span=WORK.speech, text="a", language="en", words=words, model="m")
    other = m.Suppressed(span=WORK.speech, text="", reason="loop")
    return Step(positions={}, events=(body if kind == "transcript" else other,), state=b"")


def found(delays: Delays, lane: str = "live") -> dict[str, float]:
    assert {d.lane for d in delays.figures()} <= {lane}
    return {d.stage: d.p50_s for d in delays.figures()}


def test_the_stages_of_a_final_add_up_to_its_delay(tmp_path: Path, still: None) -> None:
    delays = Delays(300.0, interim=False)
    delays.final(session(tmp_path, 10.0), WORK, said(S, 2 * S), Timed(NOW - 1.5, NOW - 0.5))
    got = found(delays)
    assert got == pytest.approx({"total": 8.0, "end": 1.0, "wait": 5.5, "decode": 1.0, "commit": 0.5}, abs=0.005)
    assert sum(v for k, v in got.items() if k != "total") == pytest.approx(got["total"], abs=0.005)


def test_without_words_the_voice_counts_and_what_is_no_caption_does_not(tmp_path: Path, still: None) -> None:
    delays = Delays(300.0, interim=False)
    one = session(tmp_path, 10.0)
    delays.final(one, WORK, said(kind="suppressed"), Timed(NOW, NOW))
    assert not delays.figures()
    delays.final(one, WORK, said(), Timed(NOW, NOW))
    assert found(delays)["end"] == pytest.approx(0.5)


def test_a_recording_is_heard_at_no_time(tmp_path: Path, still: None) -> None:
    delays = Delays(300.0, interim=True)
    delays.final(session(tmp_path, 10.0, "batch"), WORK, said(S), Timed(NOW - 1.0, NOW))
    assert set(found(delays, "batch")) == {"decode", "commit"}


def test_the_first_text_of_an_utterance_counts_once_and_it_may_be_the_final(tmp_path: Path, still: None) -> None:
    delays = Delays(300.0, interim=True)
    one = session(tmp_path, 10.0)
    under_way = UnderWay("s", WORK.speech[0], WORK.voiced[0], 2 * S, 2 * S, b"")
    delays.text(one, under_way)
    delays.text(one, under_way)
    delays.final(one, WORK, said(S), Timed(NOW, NOW))
    (first,) = (d for d in delays.figures() if d.stage == "first_text")
    assert first.count == 1 and first.p50_s == pytest.approx(9.0, abs=0.005)
    one.told_of = -1
    short = msgspec.structs.replace(WORK, voiced=(S, 2 * S))
    delays.final(one, short, said(S), Timed(NOW, NOW))
    assert {d.count for d in delays.figures() if d.stage == "first_text"} == {2}
    assert "text_left_out" not in found(delays), "so short a word may be over before anybody looks"
    assert backlog.seconds(WORK.voiced[1] - WORK.voiced[0]) >= LOOKED_AT_S
    delays.final(one, WORK, said(S), Timed(NOW, NOW))
    assert found(delays)["text_left_out"] == pytest.approx(9.0, abs=0.005)
    off = Delays(300.0, interim=False)
    off.final(one, WORK, said(S), Timed(NOW, NOW))
    assert "first_text" not in found(off)


# How it is told


def delay(stage: str, p50_s: float, p95_s: float, lane: str = "live") -> m.Delay:
    return m.Delay(lane=lane, stage=stage, count=7, p50_s=p50_s, p95_s=p95_s)


def test_one_line_a_lane_and_stages_of_other_workers_by_their_names() -> None:
    of = {"worker": "transcriber", "pid": os.getpid(), "phase": "idle", "delays_over_s": 300.0}
    live = (delay("decode", 1, 2), delay("end", 0.5, 0.75), delay("total", 2, 3), delay("first_text", 0.8, 1.2))
    got = list(lines(m.WorkerStatus(delays=(delay("decode", 4, 5, "batch"), *live), **of)))  # type: ignore[arg-type]
    assert got == [
        "transcriber, live: 2.00/3.00 s behind the word (end of speech 0.50/0.75, decoding 1.00/2.00); "
        "first text 0.80/1.20 s behind the voice; p50/p95 of 7 in 300 s",
        "transcriber, batch: decoding 4.00/5.00 s; p50/p95 of 7 in 300 s",
    ]
    assert list(lines(m.WorkerStatus(**of))) == []  # type: ignore[arg-type]
    (other,) = lines(m.WorkerStatus(delays=(delay("ponder", 1, 2),), **of))  # type: ignore[arg-type]
    (busy,) = lines(m.WorkerStatus(delays=(*live, delay("text_left_out", 5, 6)), **of))  # type: ignore[arg-type]
    assert "; no text before the final of 7 captions; " in busy and "5.00" not in busy
    assert "ponder 1.00/2.00" in other


def test_terminal_page_and_metrics_say_the_same() -> None:
    told = m.WorkerStatus(
        worker="transcriber",
        pid=7,
        phase="idle",
        delays=(delay("total", 2, 3), delay("end", 0.5, 1)),
        delays_over_s=300,
    )
    beat = m.Beat(
        protocol=1, journal="j", head=1, at_ns=1, streams={}, workers={"transcriber": told}, captures={}, trouble=""
    )
    (line,) = (f"delay of the {line}" for line in lines(told))
    assert line in console.status(Settings(), {"transcriber": 7, "feed": 8}, {}, beat)
    health, alive = Health(Settings(), 0.0), {"feed": True, "transcriber": True}
    health.take(beat, 0.0)
    assert [f"delay of the {d}" for d in health.status(alive, 0.0)["delays"]] == [line]
    (family,) = (f for f in health.metrics(alive) if f.name == "swapscribe_delay_seconds")
    got = {tuple(s.labels[k] for k in ("worker", "lane", "stage", "quantile")): s.value for s in family.samples}
    assert got["transcriber", "live", "total", "0.95"] == 3 and got["transcriber", "live", "end", "0.5"] == 0.5
    assert len(got) == 4


def test_a_feed_or_worker_of_before_is_understood() -> None:
    old = msgspec.msgpack.encode({"type": "worker_status", "worker": "transcriber", "pid": 1, "phase": "idle"})
    assert msgspec.msgpack.decode(old, type=m.WorkerStatus).delays == ()
