"""A burst that is cut because captions are late, and killed as it goes on: its minutes continue from what it wrote.

Real feed, real arbiter, real summarizer with SmolLM2 on the simulated card. The transcriber is a stand-in twice: its
place on the card is held by `standin_gpu_worker`, which says how late it is, and its text is appended by the test.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from common import messages as m
from common.feed_client import Appender
from common.fetch import fetch
from common.settings import Settings, SummarySettings
from tests.conftest import Processes, Started, wait_for
from tests.gpu import Gpu
from tests.system import Following, body
from tests.test_minutes import RATE
from tests.test_summarizer import RECORDING
from workers.base import JOT_ANSWER_S
from workers.minutes import state_of

pytestmark = [pytest.mark.processes, pytest.mark.speech, pytest.mark.timeout(600)]
STANDIN: dict[str, Any] = {"want_mib": 700, "reload_s": 0.2}  # it and the summarizer do not fit beside each other
STEP_S = 0.2  # each step takes this much longer: on a fast machine a burst would be over before it keeps anything
SLACK_S = 3.0  # for five processes to be scheduled, one after the other
ONE_SLACK_S = JOT_ANSWER_S + 0.5  # for one, which may be waiting for the feed


def said(settings: Settings, stream: str) -> None:
    """A stream that was spoken and has ended: minutes are due."""
    appender, upto = Appender(settings, "transcriber"), 0
    bodies: list[m.Body] = [m.StreamStarted(source="t", lane="live", started_ns=1)]
    for text in RECORDING:
        span, upto = (upto, upto + 6 * RATE), upto + 6 * RATE
        segment = m.segment_id(stream, span[0])
        bodies.append(m.Transcript(segment=segment, span=span, text=text, language="en", model="test"))
    bodies.append(m.StreamEnded(end=upto, reason="end of the test"))
    answer = appender.append(stream, 0, {"audio": upto}, bodies)
    assert isinstance(answer, m.At) and answer.n == 1, answer
    appender.close()


def rows(process: Started, event: str, stream: str | None = None) -> list[dict[str, Any]]:
    """Of its log."""
    lines = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    return [row for row in lines if row["event"].startswith(event) and stream in (None, row.get("stream"))]


def test_a_burst_cut_by_late_captions_and_killed_goes_on_from_its_tokens(
    processes: Processes, settings: Settings
) -> None:
    fetch(Settings(), ["smollm2-135m"])
    settings = msgspec.structs.replace(
        settings,
        summary=SummarySettings(max_new_tokens=80, context_tokens=1024, prefill_tokens=128),
    )
    gpu = Gpu(processes, settings, lag_hard_s=10.0, max_hold_s=200.0, overdue_s=20.0, burst_min_s=0.0, max_cuts=5)
    slow = gpu.run / "gpu.faults"
    slow.write_text(f"summarizer lag-step {STEP_S}\n")
    processes.start("workers.feed", settings=gpu.settings)
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", **STANDIN)
    gpu.has("transcriber")
    first = processes.start("workers.summarizer", settings=gpu.settings)
    follower = Following(gpu.settings)
    probe = Appender(gpu.settings, "summarizer")  # only asks

    def minutes(stream: str) -> m.Summary:
        def found() -> Any:
            return next((body(e) for e in follower.events[:] if e.kind == "summary" and e.stream == stream), None)

        summary = wait_for(found, 240.0, f"minutes of {stream}")
        assert isinstance(summary, m.Summary)
        return summary

    def kept(stream: str, more_than: int) -> int:
        def tokens() -> int:
            at = probe.at(stream)
            draft = state_of(at).draft if isinstance(at, m.At) else None
            return len(draft.tokens) if draft and len(draft.tokens) > more_than else 0

        return wait_for(tokens, 240.0, f"more than {more_than} tokens in the journal")

    def end_of(stream: str) -> dict[str, Any]:
        """The log line of the first burst about it that is over."""
        return wait_for(lambda: rows(first, "minutes put off", stream) + rows(first, "minutes written", stream), 10.0)[
            0
        ]

    wait_for(lambda: follower.last_beat, 30.0, "the feed")
    said(gpu.settings, "whole")
    undisturbed = minutes("whole")
    written = end_of("whole")
    assert written["tokens"] > 64, "long enough to be cut and killed"

    # A machine that grew faster meanwhile is done before it may be cut, or has no whole block left to write after it.
    for stream in ("cut", "again", "thrice", "once-more", "at-last"):
        gpu.script("transcriber", **STANDIN)
        said(gpu.settings, stream)
        kept(stream, 0)
        late_at = time.time()
        gpu.script("transcriber", lag_s=11.0, **STANDIN)
        gpu.has("transcriber", timeout_s=60.0)
        back_at = time.time()
        gpu.script("transcriber", lag_s=4.0, **STANDIN)  # late enough to put the next off until it is overdue
        put_off = end_of(stream)
        if put_off["event"].startswith("minutes put off") and put_off["wrote"] < 64:
            break
    begun = rows(first, "minutes begun", stream)[-1]
    grant, left = rows(first, "granted")[-1], rows(first, "revoked")[-1]
    tokens = put_off["wrote"] // 16 * 16
    note = f"minutes put off at {tokens} tokens; resumes"
    assert put_off["event"] == note and put_off["went_on_from"] == 0 and put_off["wrote"] < 64 < written["tokens"]
    gpu.until(lambda w: note in w["summarizer"].reason, 15.0, "live.gpu to say so")
    reload_s = next(w for w in gpu.state().workers if w.worker == "transcriber").reload_s
    # The arbiter counts from its own grant, and what it counts has the reload in it.
    (granted,) = (r for r in rows(arbiter, "granted") if r["epoch"] == grant["epoch"])
    (revoked,) = (r for r in rows(arbiter, "revoked") if r["epoch"] == left["epoch"])
    burst_min_s = begun["least_s"] + grant["reload_ms"] / 1000
    leaves_s = STEP_S + put_off["longest_s"] + left["offload_ms"] / 1000
    took_s, bound_s = back_at - late_at, max(0.0, granted["at"] + burst_min_s - late_at) + leaves_s + reload_s
    print(f"back after {took_s:.2f} s, bound {bound_s:.2f} s + {SLACK_S}: {begun}, {put_off}, {left}")
    assert took_s <= bound_s + SLACK_S
    assert left["revoke_ms"] / 1000 <= leaves_s + ONE_SLACK_S
    assert revoked["at"] - granted["at"] >= burst_min_s - 0.1, "a burst must get on before it is cut"

    slow.write_text("summarizer lag-step 0.5\n")  # it is killed between what it keeps next and its end
    gpu.script("transcriber", **STANDIN)
    more = kept(stream, tokens)
    first.kill()
    slow.unlink()
    second = processes.start("workers.summarizer", settings=gpu.settings)
    summary = minutes(stream)
    (resumed,) = wait_for(lambda: rows(second, "minutes written"), 10.0, "the end of the minutes")
    begun_again = rows(first, "minutes begun", stream)[-1]
    assert begun_again["went_on_from"] == tokens, "cut: from all of its whole blocks"
    assert resumed["went_on_from"] >= more > tokens, "killed: from what was in the journal"
    assert resumed["read"] == resumed["prompt_tokens"] + resumed["went_on_from"]
    assert resumed["wrote"] == resumed["tokens"] - resumed["went_on_from"] < resumed["tokens"] == written["tokens"]
    renamed = msgspec.json.encode(undisturbed.bullets).replace(b'"whole:', f'"{stream}:'.encode())
    assert msgspec.json.encode(summary.bullets) == renamed
    assert [e for e in follower.events if e.kind == "gap"] == []
    follower.close()
    probe.close()
    gpu.close()
