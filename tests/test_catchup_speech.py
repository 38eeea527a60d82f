"""Real speech that waited, several utterances at once: fewer encoder runs, the same segments, hardly another word.

`benchmarks/catchup.py` measures it on three minutes; tests/test_catchup.py has the kills and the bad utterances.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.settings import Settings
from tests import speech
from tests.conftest import Processes, wait_for
from tests.speech import RATE, samples, word_errors
from tests.system import RECORDING, Following, assert_whole, body, quiet, recording_text, text, weights
from tests.test_echo import Ear, whole
from workers.language import Belief
from workers.session import Utterance
from workers.steps import Step
from workers.utterances import State

pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]
CLIPS = [*speech.librivox()[:4], speech.jfk()]


@pytest.fixture(scope="module")
def ear() -> Iterator[Ear]:
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    try:
        yield Ear(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hear(ear: Ear, most: int, windows: int = 1) -> tuple[list[m.Body], int, int]:
    """(what CLIPS become with `most` utterances at once, in so many windows at once; steps; runs of the encoder)"""
    ear.transcriber._windows = windows
    folder = Path(tempfile.mkdtemp(dir=ear.folder))
    writer = backlog.Writer(folder, 60 * RATE)
    writer.append(0, np.concatenate([x for c in CLIPS for x in (samples(c.path), quiet(0.7))]).astype("<i2").tobytes())
    meta = backlog.Meta(
        stream="s", source="s", lane="live", origin="", started_ns=1, resumable=True, ended=True, end=writer.end
    )
    at = m.At(n=0, positions={"audio": 0}, state=b"", head=0)
    session, found, steps, runs = ear.transcriber.open(folder, meta, at), list[m.Body](), 0, list[int]()
    hook = ear.transcriber.decoder.model.encoder.conv1.register_forward_hook(lambda *args: runs.append(1))
    try:
        while (told := session.scan()) is not None:
            done: list[Step] = []
            if isinstance(told, Utterance):
                steps += 1
                session.look_ahead(most, 60 * RATE)
                works = session.waiting(most)
                state = session.at.state
                one = ear.transcriber.infer
                if most > 1:
                    whole(ear.transcriber.infer_all(state, works, done))
                else:
                    done = [whole(one(state, works[0]))]  # type: ignore[list-item]
            else:
                done = [told]
            for step in done:
                at = m.At(n=at.n + 1, positions=step.positions, state=step.state, head=0)
                found += step.events
                session.moved(at)
    finally:
        hook.remove()
    assert at.positions["audio"] == meta.end
    return found, steps, len(runs)


def test_neighbours_decoded_at_once_are_the_same_segments_with_hardly_other_words(ear: Ear) -> None:
    alone, steps_alone, runs_alone = hear(ear, 1)
    reference = " ".join(c.text for c in CLIPS)
    said = [b for b in alone if isinstance(b, m.Transcript)]
    errors = word_errors(reference, " ".join(b.text for b in said))
    assert steps_alone == len(said) >= 6
    bodies, steps, runs = hear(ear, 16, windows=3)
    assert [(type(b), b.span) for b in bodies] == [(type(b), b.span) for b in alone]  # type: ignore[union-attr]
    assert steps < steps_alone and runs < runs_alone, "one by one would be as fast"
    heard = [b for b in bodies if isinstance(b, m.Transcript)]
    assert [b.segment for b in heard] == [b.segment for b in said]
    assert word_errors(reference, " ".join(b.text for b in heard)) <= errors + 1  # of 90
    for b in heard:
        assert "".join(w.text for w in b.words).strip() == b.text
        edges = [edge for w in b.words for edge in w.span]
        assert edges == sorted(edges) and b.span[0] <= edges[0] <= edges[-1] <= b.span[1]


def test_recordings_and_whoever_is_on_time_go_one_by_one(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    t = ear.transcriber
    t.choose_windows()
    at = SimpleNamespace(state=b"")
    live, recording = (
        SimpleNamespace(meta=SimpleNamespace(lane=lane, language=""), at=at) for lane in ("live", "batch")
    )
    assert [t.together(live, late_s) for late_s in (2.0, 9.0, 60.0)] == [1, 3, 16]  # type: ignore[arg-type]
    assert t.together(recording, 60.0) == 1, "the same captions each time"  # type: ignore[arg-type]
    monkeypatch.setattr(t.decoder.prompts, "fixed", lambda wanted: "")  # as a model does that has to find it out
    assert t.together(live, 60.0) == 1, "a window has one language"  # type: ignore[arg-type]
    at.state = m.encode(State(belief=Belief().heard({"en": 0.9, "fr": 0.05}, 5.0)))
    assert t.together(live, 60.0) == 16, "it is found out"  # type: ignore[arg-type]


def test_the_memory_of_a_batch_is_in_what_it_wants(ear: Ear) -> None:
    t = ear.transcriber
    t._windows = 2
    assert t.least_working_bytes() < t.working_bytes() == t.decoder.working_bytes(2)
    t.too_large()
    assert t.working_bytes() == t.least_working_bytes(), "less at once, once it did not fit"


def test_a_worker_killed_while_it_catches_up_loses_and_doubles_nothing(
    processes: Processes, settings: Settings
) -> None:
    """90 s wait for a lease; the worker gets it, does several at once, is killed, and goes on: much is left then."""
    weights()
    sound, folder = np.concatenate([samples(RECORDING), quiet(1.5)] * 2), settings.streams / "talk"
    writer = backlog.Writer(folder, 60 * RATE)
    writer.append(0, sound.tobytes())
    writer.close()
    meta = backlog.Meta(stream="talk", source="t", lane="live", origin="a test", started_ns=1, resumable=True)
    backlog.write_meta(folder, msgspec.structs.replace(meta, ended=True, end=len(sound), end_reason="end of file"))
    processes.start("workers.feed")
    follower = Following(settings)
    worker = processes.start("workers.transcriber")
    wait_for(lambda: "stream opened" in worker.output(), 60.0, "the stream to be opened")
    assert not follower.find("transcript"), "without a lease"
    processes.start("arbiter")
    wait_for(lambda: "utterances at once" in worker.output(), 180.0, "a batch")
    worker.kill()
    again = processes.start("workers.transcriber")
    follower.wait("stream_ended", 120.0)
    follower.close()
    events = follower.events
    assert assert_whole(events, "talk") == len(sound)
    assert Counter(e.kind for e in events)["gap"] == 0
    assert word_errors(" ".join([recording_text()] * 2), text(events, "talk")) <= 16
    assert max(body(e).span[1] for e in events if e.kind == "transcript") > 0.9 * len(sound)
    assert again.alive and "utterances at once" in again.output()
