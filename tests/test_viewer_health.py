"""What the viewer judges of the system: /healthz against real processes, metrics, and the judgement alone."""

from __future__ import annotations

import re
import signal
import sys
import time
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from common import messages as m
from common.settings import Settings, Source
from tests.conftest import Processes, Started, wait_for
from tests.pages import SECOND, STREAM, Page, Producer, start_stream
from workers.health import STILL_S, UNHEARD_S, Health


def test_health_is_idle_without_a_stream_and_red_while_the_feed_is_stopped(processes: Processes, feed: Started) -> None:
    page = Page(processes)
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle")
    events = page.events()
    feed.signal(signal.SIGSTOP)
    wait_for(lambda: is_red(page.health(), r"feed silent for \d+ s"), what="red")

    def took_s() -> float:
        began = time.monotonic()
        assert page.get("/")[0] == 200
        return time.monotonic() - began

    assert any(took_s() < 1.0 for _ in range(5)), "the page waits for the feed"
    assert next(d for kind, _, d in events if kind == "status" and d["state"] == "red")["reasons"]
    feed.signal(signal.SIGCONT)
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle again")
    feed.kill()
    wait_for(lambda: is_red(page.health(), r"feed not running for \d+ s"), what="red without a feed")
    processes.start("workers.feed")
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle after a restart")


def test_health_is_green_while_captions_flow_and_says_what_fails(processes: Processes, producer: Producer) -> None:
    settings = processes.settings = msgspec.structs.replace(
        processes.settings, source=(Source(name="mic", kind="microphone"),)
    )
    page = Page(processes, red_lag_s=30.0)
    assert (
        wait_for(lambda: "mic has not begun; transcriber is not running" in page.health()[2] and page.health()[0])
        == 503
    )
    worker = processes.spawn(standin("transcriber", settings), "standin-transcriber")
    writer = start_stream(settings.streams / STREAM)

    def health_while_heard() -> tuple[int, str, str]:
        writer.append(writer.end, b"\0\0" * 16)  # so little that nobody is late however often we ask
        return page.health()

    def flowing() -> bool:
        return health_while_heard() == (200, "ok", "")

    wait_for(flowing, what="green")
    worker.kill()
    wait_for(lambda: is_red(health_while_heard(), "transcriber is not running"), what="red without a transcriber")
    processes.spawn(standin("transcriber", settings), "standin-transcriber")
    wait_for(flowing, what="green with a new transcriber")
    wait_for(lambda: is_red(page.health(), r"capture@mic: no audio for \d+ s"), what="red when the audio stands still")
    wait_for(flowing, what="green when audio returns")
    writer.append(writer.end, b"\0\0" * 40 * SECOND)
    late = rf"{STREAM}: captions are \d+ s late"
    wait_for(lambda: is_red(health_while_heard(), late), what="red when captions are late")
    producer.append(m.Silence(span=(0, writer.end)), audio=writer.end)
    wait_for(flowing, what="green when caught up")


def is_red(health: tuple[int, str, str], why: str) -> bool:
    """For this reason alone."""
    code, state, reasons = health
    return (code, state) == (503, "red") and re.fullmatch(why, reasons) is not None


def standin(name: str, settings: Settings) -> list[str]:
    return [sys.executable, "-m", "tests.standin_process", name, "--set", f"data_dir={settings.data_dir}"]


def test_metrics_can_be_parsed_and_count(processes: Processes, producer: Producer) -> None:
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=1))
    producer.say("one")
    page = Page(processes)

    def samples() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(page.get("/metrics")[1])
        return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    got = wait_for(lambda: (s := samples()).get(("swapscribe_seq_head",)) == 3 and s, what="the beat in the metrics")
    assert got["swapscribe_coverage_samples", "text", STREAM] == SECOND
    assert got["swapscribe_coverage_samples", "silence", STREAM] == SECOND
    assert got["swapscribe_lag_seconds", STREAM] == 0
    assert got["swapscribe_appends_total", "transcriber", STREAM] == 2
    up = {k[1]: v for k, v in got.items() if k[0] == "swapscribe_process_up"}
    assert up == {"feed": 1, "arbiter": 0, "transcriber": 0, "summarizer": 0, "diarizer": 0, "viewer": 1}


def stream(**change: Any) -> m.StreamBeat:
    base: dict[str, Any] = {
        "source": "mic",
        "lane": "live",
        "ended": False,
        "audio_head": 0,
        "heads": {},
        "producers": {},
    }
    return m.StreamBeat(**base | {"lag_s": 0.0, "coverage": m.Coverage()} | change)


def beat(streams: dict[str, m.StreamBeat], trouble: str = "", **captures: m.Doorbell) -> m.Beat:
    return m.Beat(
        protocol=1, journal="j", head=1, at_ns=1, streams=streams, workers={}, captures=captures, trouble=trouble
    )


ALIVE = {"feed": True, "capture@mic": True, "transcriber": True, "viewer": True}
LIVE = Settings(source=(Source(name="mic", kind="microphone"),))


@pytest.mark.parametrize(
    ("said", "alive", "after_s", "reasons"),
    [
        (beat({"s": stream()}), ALIVE, 0.0, []),
        (beat({"s": stream()}), ALIVE, UNHEARD_S + 1, ["feed silent for 4 s"]),
        (beat({"s": stream()}), ALIVE | {"feed": False}, UNHEARD_S + 1, ["feed not running for 4 s"]),
        (beat({"s": stream()}, trouble="disk full"), ALIVE, 0.0, ["feed: disk full"]),
        (beat({"s": stream(lag_s=21.0)}), ALIVE, 0.0, ["s: captions are 21 s late"]),
        (beat({"s": stream(lag_s=21.0, ended=True)}), ALIVE, 0.0, ["s: captions are 21 s late"]),
        (beat({"s": stream(lag_s=21.0, lane="batch", source="f")}), ALIVE, 0.0, []),
        (beat({"s": stream()}), ALIVE | {"transcriber": False}, 0.0, ["transcriber is not running"]),
        (beat({}), ALIVE | {"capture@mic": False}, 0.0, ["capture@mic has not begun"]),
        (beat({"s": stream(ended=True)}), ALIVE | {"capture@mic": False}, 0.0, []),
        (
            beat({"s": stream()}, mic=m.Doorbell(source="mic", stream="s", end=1, state="disk_full", detail="/data")),
            ALIVE,
            0.0,
            ["capture@mic: disk full /data"],
        ),
    ],
)
def test_each_trouble_has_its_reason(said: m.Beat, alive: dict[str, bool], after_s: float, reasons: list[str]) -> None:
    health = Health(LIVE, 0.0)
    health.take(said, 1.0)
    assert list(health.reasons(alive, 1.0 + after_s)) == reasons
    assert health.status(alive, 1.0 + after_s)["state"] == "red" if reasons else "ok"


def test_audio_that_stands_still_is_red_and_an_ended_stream_is_idle() -> None:
    health = Health(LIVE, 0.0)
    for second in range(20):
        health.take(beat({"s": stream(audio_head=min(second, 5))}), float(second))
        expected = [f"capture@mic: no audio for {second - 5} s"] if second > 5 + STILL_S else []
        assert list(health.reasons(ALIVE, float(second))) == expected
    health.take(beat({"s": stream(audio_head=5, ended=True)}), 20.0)
    assert health.status(ALIVE, 20.0)["state"] == "idle"


def test_a_stream_that_a_kill_left_open_and_nobody_wants_any_more_is_no_trouble() -> None:
    health = Health(LIVE, 0.0)
    for second in range(20):
        health.take(beat({"s": stream(audio_head=second), "old": stream(source="recording")}), float(second))
    assert list(health.reasons(ALIVE, 19.0)) == []
    assert list(health.reasons(ALIVE | {"capture@recording": True}, 19.0)) == ["capture@recording: no audio for 19 s"]


def test_streams_that_are_over_leave_the_metrics_and_the_memory() -> None:
    """The beat names what is live or has just changed, and a few others in turn: a year's streams are not kept."""
    health, quiet = Health(LIVE, 0.0), ALIVE | {"capture@mic": False}
    late = stream(source="f", lane="batch", ended=True, lag_s=9.0, coverage=m.Coverage(pending=9))
    health.take(beat({"open": stream(audio_head=7, source="f"), "late": late}), 0.0)
    for day in range(1, 1000):
        health.take(beat({f"s{day}": stream(ended=True)}), float(day))
    shown = {s.labels["stream"] for f in health.metrics(ALIVE) for s in f.samples if "stream" in s.labels}
    assert shown == {"open", "late", "s999"} == set(health.streams) == set(health.moved)
    assert health.moved["open"] == (7, 0.0), "since when it stands is remembered"
    assert list(health.reasons(quiet, 999.0)) == []
    health.take(beat({"other": stream(source="f", ended=True)}), 1000.0)
    assert list(health.reasons(quiet, 1000.0)) == [], "mic had a stream, although none is shown any more"
    health.take(msgspec.structs.replace(beat({}), journal="another"), 1001.0)
    assert not health.streams and not health.moved
    assert list(health.reasons(quiet, 1001.0)) == ["capture@mic has not begun"]


def test_a_worker_that_complains_is_red() -> None:
    health = Health(LIVE, 0.0)
    said = m.WorkerStatus(worker="transcriber", pid=1, phase="idle", detail="s cannot be read: I/O error")
    health.take(msgspec.structs.replace(beat({"s": stream()}), workers={"transcriber": said}), 0.0)
    assert list(health.reasons(ALIVE, 0.0)) == ["transcriber: s cannot be read: I/O error"]


def test_nothing_heard_at_all_is_red() -> None:
    assert list(Health(Settings(), 0.0).reasons(ALIVE, 2.0)) == ["feed silent for 2 s"]


@pytest.mark.pure
def test_a_capture_whose_source_has_ended_is_not_down() -> None:
    health, gone = Health(Settings(), 0.0), {"capture@mic": False, "feed": True}
    assert health.processes(gone)["capture@mic"] == "down", "nothing is known of its source"
    health.take(beat({"mic-1": stream()}), 1.0)
    assert health.processes(gone)["capture@mic"] == "down"
    health.take(beat({"mic-1": stream(ended=True)}), 2.0)
    health.take(beat({}), 3.0)  # no news of it
    assert health.processes(gone)["capture@mic"] == "ended"
    assert health.processes({"capture@mic": True})["capture@mic"] == "up"
    health.take(beat({"mic-2": stream()}), 4.0)
    health.take(beat({"mic-1": stream(ended=True)}), 5.0)
    assert health.processes(gone)["capture@mic"] == "down", "its next stream is open"
