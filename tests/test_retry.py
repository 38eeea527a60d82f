"""A place that ends the transcriber is given up after three times, the rest goes on, and a person can try it again.

Real processes, real weights, real speech; a stand-in adds the faults.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from common import messages as m
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.speech import RATE, word_errors
from tests.system import RECORDING, Following, System, assert_whole, body, file_source, recording_text, text

BAD = {"segv": 18 * RATE, "raise": 28 * RATE}  # samples in the middle of sentences
pytestmark = pytest.mark.speech


def test_a_place_that_kills_is_given_up_after_three_times_and_retried(processes: Processes, settings: Settings) -> None:
    """One utterance ends the transcriber by a signal, another by an exception; a person tries again, twice."""
    settings.data.mkdir()
    faults = settings.data / "fault-transcriber"
    faults.write_text("".join(f"{kind} {sample}\n" for kind, sample in BAD.items()))
    small = msgspec.structs.replace(settings.capture, file_s=2)  # an utterance lies in several files of the backlog
    settings = msgspec.structs.replace(settings, capture=small)
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
