"""Interim text of a whole running system, with a kill in the middle of it: it comes, it keeps its word, and the finals
are those that the transcriber makes of the same audio without any of it."""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import msgspec
import pytest

from common import messages as m
from common.feed_client import FeedClient
from common.settings import Settings
from tests import speech
from tests.conftest import Processes, wait_for
from tests.in_process import finals
from tests.speech import samples, write_wav
from tests.system import System, content, file_source, one_by_one, quiet

pytestmark = [pytest.mark.processes, pytest.mark.speech]
PACE = "0.5"  # a look must come while there is speech, on a busy machine too


@pytest.fixture
def calibrated(processes: Processes, settings: Settings, folder: Path) -> Settings:
    """Settings of a data folder that knows what the model needs: the speech must not wait for that."""
    settings = one_by_one(settings)
    with_text = msgspec.structs.replace(settings.transcriber, interim=True)
    settings = msgspec.structs.replace(settings, transcriber=with_text)
    write_wav(folder / "calm.wav", samples(speech.librivox()[2].path), quiet(1.0))
    system = System(processes, settings, file_source(folder / "calm.wav", "max", "calm"))
    system.start()
    system.ended()  # it has decoded: whatever an earlier test left of calibrations, this one's is there
    system.stop()
    return settings


def test_interim_text_comes_before_its_final_and_changes_no_final_also_when_killed(
    processes: Processes, calibrated: Settings, folder: Path
) -> None:
    talk = [samples(c.path) for c in speech.librivox()[:2]]
    write_wav(folder / "clip.wav", quiet(0.5), talk[0], quiet(1.0), talk[1], quiet(1.0))
    system = System(processes, calibrated, file_source(folder / "clip.wav", PACE))
    seen: list[m.Hypothesis] = []
    done: dict[str, m.Span] = {}
    ended: list[str] = []
    client = FeedClient(system.settings, ("transcript", "stream_ended"), hypotheses=True)

    def follow() -> None:
        for got in client.poll(0.2):
            if not getattr(got, "stream", "").startswith("talk-"):
                continue
            if isinstance(got, m.Hypothesis):
                assert got.segment not in done, "interim text after its final"
                seen.append(got)
            elif isinstance(got, m.Event):
                body = got.decode()
                if isinstance(body, m.Transcript):
                    done[body.segment] = body.span
                elif isinstance(body, m.StreamEnded):
                    ended.append(got.stream)

    def told(least: int) -> bool:
        follow()
        return len(seen) >= least

    grants = system.log("transcriber").count('"granted"')
    system.start()
    system.signal("capture@talk", signal.SIGSTOP)  # nobody speaks before there is somebody to hear it
    wait_for(lambda: system.log("transcriber").count('"granted"') > grants, 120.0, "the model")
    system.signal("capture@talk", signal.SIGCONT)
    wait_for(lambda: told(2), 90.0, "interim text")
    system.signal("transcriber", signal.SIGSTOP)  # all that it has said comes here, and nothing of its next life
    passed_on_ns = time.time_ns() + 10**9  # a beat of then has what waited at the feed before it
    wait_for(lambda: follow() or (client.last_beat and client.last_beat.at_ns > passed_on_ns), what="a beat")
    system.kill("transcriber")
    lived = len(seen)
    wait_for(lambda: follow() or ended, 120.0, "the end of the stream")
    client.close()
    stream = ended[0]
    lines = content(system.journal(stream), stream)
    shown = system("status").stdout
    system.stop()
    assert "delay of the transcriber, live: " in shown and "behind the word" in shown and "first text" in shown, shown
    assert lines == finals(system.settings.streams / stream)
    assert {h.segment for h in seen} <= set(done), "segments are those of the finals"
    for life in (seen[:lived], seen[lived:]):
        for before, after in itertools.pairwise(life):
            if before.segment == after.segment:
                assert after.revision > before.revision
                assert after.stable.startswith(before.stable)
    for h in seen:
        assert h.span[0] == done[h.segment][0], "nothing from before the utterance"
