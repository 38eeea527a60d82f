"""Real speech in several languages with the real `base`: the language is found, followed, and the same after a restart.

With real weights, without feed or GPU, as in tests/test_echo.py. Sentences of telephone exchanges (Asterisk), LibriVox.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from tests import sounds, speech
from tests.speech import RATE, Samples, samples, word_errors
from tests.system import quiet, weights
from tests.test_echo import Ear, text, whole
from workers.language import Belief
from workers.session import Utterance
from workers.steps import Step
from workers.utterances import State, unpack

pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def base() -> Iterator[Ear]:
    weights("base")
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    try:
        yield Ear(folder, "transcriber.model=base")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def talk() -> list[tuple[str, speech.Clip]]:
    """English, then Spanish, then English again: an utterance each."""
    english, spanish = speech.librivox(), speech.prompts("es")
    one = [c for c in spanish if 4.0 < len(samples(c.path)) / RATE < 7.0]
    return [("en", english[1]), ("es", one[0]), ("es", one[3]), ("en", english[4])]


def recording() -> Samples:
    return np.concatenate([x for _, c in talk() for x in (samples(c.path), quiet(0.9))])


def stream(folder: Path, sound: Samples) -> tuple[Path, backlog.Meta]:
    folder = Path(tempfile.mkdtemp(dir=folder))
    writer = backlog.Writer(folder, 60 * RATE)
    writer.append(0, sound.astype("<i2").tobytes())
    meta = backlog.Meta(
        stream="s", source="s", lane="live", origin="", started_ns=1, resumable=True, ended=True, end=writer.end
    )
    backlog.write_meta(folder, meta)
    return folder, meta


def hear(ear: Ear, folder: Path, meta: backlog.Meta, at: m.At, most: int = 1) -> list[tuple[m.At, m.Body]]:
    """What a process makes of the stream that begins at this place: its captions, and the place after each."""
    t = ear.transcriber
    session, found = t.open(folder, meta, at), list[tuple[m.At, m.Body]]()
    while (told := session.scan()) is not None:
        steps: list[Step] = [] if isinstance(told, Utterance) else [told]
        if isinstance(told, Utterance) and most > 1:
            session.look_ahead(most, 60 * RATE)
            whole(t.infer_all(session.at.state, session.waiting(most), steps))
        elif isinstance(told, Utterance):
            steps = [whole(t.infer(session.at.state, told))]
        for step in steps:
            at = m.At(n=at.n + 1, positions=step.positions, state=step.state, head=0)
            found += [(at, b) for b in step.events if isinstance(b, m.Transcript | m.Suppressed)]
            session.moved(at)
    return found


START = m.At(n=0, positions={"audio": 0}, state=b"", head=0)


class Heard(NamedTuple):
    """The whole recording, one utterance after the other."""

    folder: Path
    meta: backlog.Meta
    places: list[tuple[m.At, m.Body]]


@pytest.fixture(scope="module")
def heard(base: Ear) -> Heard:
    folder, meta = stream(base.folder, recording())
    return Heard(folder, meta, hear(base, folder, meta, START))


def test_a_switch_is_followed_and_a_second_life_says_the_same(base: Ear, heard: Heard) -> None:
    bodies = [b for _, b in heard.places]
    assert all(isinstance(b, m.Transcript) for b in bodies), bodies
    last = [(b.span[1] - 1, b.language) for b in bodies if isinstance(b, m.Transcript)]
    at = 0
    for code, clip in talk():
        end = at + len(samples(clip.path))
        assert {language for where, language in last if at <= where < end + RATE} == {code}, last
        at = end + round(0.9 * RATE)
    spanish = " ".join(b.text for b in bodies if isinstance(b, m.Transcript) and b.language == "es")
    reference = " ".join(c.text for code, c in talk() if code == "es")
    assert word_errors(reference, spanish, "es") <= 0.4 * len(speech.words(reference, "es")), spanish
    switched = next(k for k, b in enumerate(bodies) if isinstance(b, m.Transcript) and b.language == "es")
    again = hear(base, heard.folder, heard.meta, heard.places[switched][0])  # killed right after this append
    assert [b for _, b in again] == bodies[switched + 1 :]
    assert again[-1][0].state == heard.places[-1][0].state


def test_several_at_once_each_have_their_language(base: Ear, heard: Heard) -> None:
    """Packed into one window once the language is settled; who speaks another one in between is heard alone."""
    settled = State(belief=Belief().heard({"en": 0.98, "es": 0.02}, 5.0), model="base")
    start = m.At(n=0, positions={"audio": 0}, state=m.encode(settled), head=0)
    at_once = [b for _, b in hear(base, heard.folder, heard.meta, start, most=8)]
    languages = [
        [(b.span, getattr(b, "language", "")) for b in bodies] for bodies in (at_once, [b for _, b in heard.places])
    ]
    assert languages[0] == languages[1]


def test_a_language_that_was_asked_for_is_kept_whatever_is_heard(base: Ear) -> None:
    bodies, state = base.hear(samples(talk()[1][1].path), language="en")
    assert {b.language for b in bodies if isinstance(b, m.Transcript)} <= {"en"} and unpack(state).belief.best == ""


def test_english_that_was_found_out_is_heard_as_english_that_was_asked_for(base: Ear) -> None:
    sound = samples(speech.librivox()[2].path)
    assert text(base.hear(sound)[0]) == text(base.hear(sound, language="en")[0]) != ""


def test_noise_changes_no_belief(base: Ear) -> None:
    _, state = base.hear(np.concatenate([samples(talk()[0][1].path), quiet(0.9)]))
    step = base.infer(state, sounds.computed_sounds()["white noise -40 dBFS"][: 4 * RATE])
    assert isinstance(step.events[-1], m.Suppressed)
    assert unpack(step.state).belief == unpack(state).belief


def test_a_stream_in_a_language_that_the_model_does_not_know_waits_with_the_reason(tmp_path: Path) -> None:
    weights()
    ear = Ear(tmp_path)
    _, meta = stream(tmp_path, quiet(1.0))
    assert ear.transcriber.refuses(meta) == ""
    for code in ("pt", "xx"):
        why = ear.transcriber.refuses(msgspec.structs.replace(meta, language=code))
        assert why.startswith(f"model tiny.en does not know language '{code}'; one that does: ")
        assert ("swapscribe models fetch base, then set transcriber.model=base" in why) == (code == "pt")
