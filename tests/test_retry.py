"""A place that ends the transcriber is given up after three times, the rest goes on, and a person can try it again.

Real processes, real weights, real speech; a stand-in adds the faults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec
import pytest

from common import backlog
from common import messages as m
from common.feed_client import Appender, replay
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.speech import RATE, samples, word_errors
from tests.system import (
    RECORDING,
    Following,
    System,
    assert_whole,
    body,
    file_source,
    one_by_one,
    recording_text,
    text,
    weights,
)

BAD = {"segv": 18 * RATE, "raise": 28 * RATE}  # samples in the middle of sentences
pytestmark = pytest.mark.speech


def test_a_place_that_kills_is_given_up_after_three_times_and_retried(processes: Processes, settings: Settings) -> None:
    """One utterance ends the transcriber by a signal, another by an exception; a person tries again, twice."""
    settings.data.mkdir()
    faults = settings.data / "fault-transcriber"
    faults.write_text("".join(f"{kind} {sample}\n" for kind, sample in BAD.items()))
    small = msgspec.structs.replace(settings.capture, file_s=2)  # an utterance lies in several files of the backlog
    settings = msgspec.structs.replace(one_by_one(settings), capture=small)  # each death is counted
    system = System(processes, settings, file_source(RECORDING, "50"), program="tests.standin_transcriber")
    system.start()
    follower = Following(system.settings)
    stream = follower.wait("stream_ended", 180.0).stream
    events = system.journal()
    assert_whole(events, stream)
    gaps = [body(e) for e in events if e.kind == "gap"]
    assert [(g.reason, g.retryable, g.revision) for g in gaps] == [("failed", True, 0)] * 2
    assert all(g.span[0] <= sample < g.span[1] for g, sample in zip(gaps, BAD.values(), strict=True))
    assert sum(e.kind == "transcript" for e in events) >= 3, "the rest goes on"
    deaths = system.launcher.output()
    assert deaths.count("transcriber died (signal 11)") == deaths.count("transcriber died (exit 1)") == 3, deaths
    assert system.log("transcriber").count('"event": "gave up"') == 2
    lost = sum(g.span[1] - g.span[0] for g in gaps)
    before = coverage(follower, stream, lambda c: c.gap == lost)

    # The cause is still there: the worker must not die of it for ever.
    done = system("retry", stream)
    assert done.returncode == 0 and "2 failed parts will be transcribed again" in done.stdout, done.stderr
    wait_for(lambda: len([e for e in follower.events if e.kind == "gap"]) == 4, 120.0, "the failure of the retry")
    assert coverage(follower, stream) == before

    faults.unlink()
    done = system("retry", stream)
    assert done.returncode == 0 and "2 failed parts" in done.stdout, done.stderr
    again = wait_for(lambda: len(found := retried(follower)) == 2 and found, 60.0, "the retried captions")
    assert [body(e).span for e in again] == [g.span for g in gaps]
    assert all(body(e).text and body(e).words and body(e).revision == 2 for e in again)
    after = coverage(follower, stream, lambda c: c.gap == 0)
    assert after.text == before.text + lost
    assert (after.silence, after.suppressed, after.pending) == (before.silence, before.suppressed, 0)
    events = system.journal()
    assert_whole(events, stream)
    assert word_errors(recording_text(), text(events, stream)) <= 8
    assert "nothing failed" in system("retry", stream).stderr
    assert [e.seq for e in follower.events] == list(range(1, len(events) + 1))
    follower.close()
    system.stop()


def test_a_retry_in_the_middle_of_a_live_stream(processes: Processes, settings: Settings) -> None:
    """The worker goes on at the place that it had, with the append count that the retry left."""
    weights()
    sound, half = samples(RECORDING), round(21.5 * RATE)
    folder = settings.streams / "talk"
    writer = backlog.Writer(folder, 60 * RATE)
    meta = backlog.Meta(stream="talk", source="t", lane="live", origin="a test", started_ns=1, resumable=True)
    backlog.write_meta(folder, meta)
    writer.append(0, sound[:half].tobytes())
    faults = settings.data / "fault-transcriber"
    faults.write_text(f"raise {BAD['segv']}\n")
    processes.start("workers.feed")
    processes.start("arbiter")
    follower = Following(settings)
    argv = [sys.executable, "-m", "tests.standin_transcriber", "--config", str(processes.config()), "faulty"]
    for _ in range(3):
        assert processes.spawn(argv, "faulty").wait(60.0) == 1
    worker = processes.spawn(argv, "faulty")
    gap = body(follower.wait("gap"))
    faults.unlink()
    appender = Appender(settings, "cli.test")
    assert isinstance(appender.append("talk", 0, events=(m.Retry(span=gap.span),)), m.At)
    appender.close()
    (again,) = wait_for(lambda: retried(follower), 30.0, "the retried caption")
    assert body(again).span == gap.span and body(again).revision == 1
    writer.append(half, sound[half:].tobytes())
    writer.close()
    ended = msgspec.structs.replace(meta, ended=True, end=len(sound), end_reason="end of file")
    backlog.write_meta(folder, ended)
    follower.wait("stream_ended")
    assert worker.alive and "feed refused" not in worker.output()
    events = list(replay(settings))
    assert assert_whole(events, "talk") == len(sound)
    assert word_errors(recording_text(), text(events, "talk")) <= 8
    follower.close()


def retried(follower: Following) -> list[m.Event]:
    return [e for e in follower.events if e.kind == "transcript" and body(e).supersedes]


def coverage(follower: Following, stream: str, wanted: Callable[[m.Coverage], bool] = lambda c: True) -> m.Coverage:
    """Of a beat from now on that shows what is wanted."""
    old = follower.last_beat

    def look() -> m.Coverage | None:
        beat = follower.last_beat
        found = beat.streams.get(stream) if beat and beat is not old else None
        return found.coverage if found and wanted(found.coverage) else None

    found = wait_for(look, 20.0, "such a coverage in the beat")
    assert found
    return found
