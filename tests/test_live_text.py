"""Interim text of a whole running system, a kill in the middle of it: it comes, it keeps its word, and the finals are
those of a run without it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import msgspec
import pytest

from common import messages as m
from common.feed_client import FeedClient
from common.settings import Settings
from tests import speech
from tests.conftest import CALIBRATION, Processes, wait_for
from tests.speech import samples, write_wav
from tests.system import System, assert_whole, content, file_source, one_by_one, quiet

pytestmark = [pytest.mark.processes, pytest.mark.speech]
PACE = "0.5"  # a look must come while there is speech, on a busy machine too


def with_interim(settings: Settings, on: bool) -> Settings:
    chosen = msgspec.structs.replace(one_by_one(settings).transcriber, interim=on)
    return msgspec.structs.replace(settings, transcriber=chosen)


@pytest.fixture
def clip(folder: Path) -> Path:
    path = folder / "clip.wav"
    talk = [samples(c.path) for c in speech.librivox()[:2]]
    write_wav(path, quiet(0.5), talk[0], quiet(1.0), talk[1], quiet(1.0))
    return path


def journal(processes: Processes, settings: Settings, clip: Path) -> list[str]:
    """Of a run without interim text, as fast as it goes."""
    system = System(processes, with_interim(settings, False), file_source(clip, "1000"))
    system.start()
    stream = system.ended(300.0).stream
    lines = content(system.journal(), stream)
    system.stop()
    return lines


def test_interim_text_comes_before_its_final_and_changes_no_final_also_when_killed(
    processes: Processes, settings: Settings, folder: Path, clip: Path
) -> None:
    plain = msgspec.structs.replace(settings, data_dir=str(folder / "plain"))
    expected = journal(processes, plain, clip)
    settings.data.mkdir()
    shutil.copy(plain.data / CALIBRATION, settings.data)  # a calibration takes as long as the speech
    system = System(processes, with_interim(settings, True), file_source(clip, PACE))
    seen: list[m.Hypothesis] = []
    done: dict[str, m.Span] = {}
    ended: list[str] = []
    client = FeedClient(system.settings, ("transcript", "stream_ended"), hypotheses=True)

    def follow() -> None:
        for got in client.poll(0.2):
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

    system.start()
    wait_for(lambda: told(2), 180.0, "interim text")
    system.kill("transcriber")
    lived = len(seen)
    wait_for(lambda: follow() or ended, 240.0, "the end of the stream")
    client.close()
    events = system.journal()
    assert_whole(events, ended[0])
    assert content(events, ended[0]) == expected
    assert {h.segment for h in seen} <= set(done), "segments are those of the finals"
    for life in (seen[:lived], seen[lived:]):
        for before, after in itertools.pairwise(life):
            if before.segment == after.segment:
                assert after.revision > before.revision
                assert after.stable.startswith(before.stable)
    for h in seen:
        assert h.span[0] == done[h.segment][0], "nothing from before the utterance"
    system.stop()
