"""The text of the utterance before is the decoder's prompt: it must not be heard again where nobody speaks.

With real weights, without feed or GPU: utterances are cut and decoded in this process, as the transcriber does it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.process import Process
from common.settings import load
from tests import sounds, speech
from tests.speech import RATE, Samples
from tests.system import quiet
from workers.glossary import words
from workers.session import Utterance
from workers.steps import Step
from workers.transcriber import Transcriber
from workers.utterances import unpack

pytestmark = pytest.mark.speech


def whole(pieces: Generator[None, None, Step]) -> Step:
    """A step without anybody in between."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            step: Step = end.value
            return step


class Ear:
    """A transcriber's two halves, taken in turn over one recording after the other. `overrides`: as for --set."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        settings = load(None, (f"data_dir={folder / 'data'}", *overrides), {})
        process = Process("transcriber", settings, argparse.Namespace())
        self.folder, self.transcriber = folder, Transcriber(process)
        self.transcriber.load(process)

    def hear(
        self, sound: Samples, utterances: int = 1000, language: str = "", state: bytes = b""
    ) -> tuple[list[m.Body], bytes]:
        """What becomes of (the first few of) the utterances in a recording, and the state after them."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        writer = backlog.Writer(folder, 60 * RATE)
        writer.append(0, sound.astype("<i2").tobytes())
        meta = backlog.Meta(
            stream="s",
            source="s",
            lane="live",
            origin="",
            started_ns=1,
            resumable=True,
            ended=True,
            end=writer.end,
            language=language,
        )
        backlog.write_meta(folder, meta)
        at = m.At(n=0, positions={"audio": 0}, state=state, head=0)
        session, found = self.transcriber.open(folder, meta, at), list[m.Body]()
        while len(found) < utterances and (step := session.scan()) is not None:
            if isinstance(step, Utterance):
                step = whole(self.transcriber.infer(at.state, step))
                found.append(step.events[-1])
            at = m.At(n=at.n + 1, positions=step.positions, state=step.state, head=0)
            session.moved(at)
        return found, at.state

    def infer(self, state: bytes, sound: Samples) -> Step:
        """A sound right after the place of `state`, taken for an utterance."""
        first = unpack(state).prompt_end
        span = (first, first + len(sound))
        pcm = sound.astype("<i2").tobytes()
        work = Utterance(stream="s", span=span, speech=span, voiced=span, pcm=pcm, state=unpack(state).vad)
        return whole(self.transcriber.infer(state, work))


@pytest.fixture(scope="module")
def ear() -> Iterator[Ear]:
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    try:
        yield Ear(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def text(bodies: list[m.Body]) -> str:
    return " ".join(b.text for b in bodies if isinstance(b, m.Transcript))


def test_noise_right_after_speech_is_not_the_speech_again(ear: Ear) -> None:
    """Sonnet 1 begins with its number: with this text as its prompt tiny.en is sure that it hears "1" in these."""
    spoken, state = ear.hear(speech.samples(speech.sonnet_parts()[0].path), utterances=2)
    assert "From fairest creatures" in text(spoken) and unpack(state).prompt
    for name in ("white noise -50 dBFS", "white noise -40 dBFS", "pink noise -50 dBFS", "pink noise -40 dBFS"):
        step = ear.infer(state, sounds.computed_sounds()[name][: 4 * RATE])
        (body,) = step.events
        assert isinstance(body, m.Suppressed), (name, body)
        assert unpack(step.state).prompt == unpack(state).prompt, "what is not shown is nobody's prompt"


TERMS = ("Dashwood", "Asterisk", "Niamh", "PBX", "IVR")


def test_a_name_of_the_glossary_is_spelled_as_it_stands_there_and_not_heard_in_noise(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clip,) = [c for c in speech.prompts("en") if c.path.stem == "demo-moreinfo"]
    sound = speech.samples(clip.path)
    assert "Asterisk" not in text(ear.hear(sound)[0]).split()[0], "else this proves nothing"
    monkeypatch.setattr(ear.transcriber, "s", msgspec.structs.replace(ear.transcriber.s, glossary=TERMS))
    heard, state = ear.hear(sound)
    assert text(heard).startswith("Asterisk is an ")
    for name in ("white noise -50 dBFS", "pink noise -40 dBFS"):
        (body,) = ear.infer(state, sounds.computed_sounds()[name][: 4 * RATE]).events
        assert isinstance(body, m.Suppressed) or not set(words(body.text)) & {t.casefold() for t in TERMS}, body


def test_what_is_really_said_twice_is_heard_twice(ear: Ear) -> None:
    clip, pause = speech.jfk(), quiet(1.0)
    once = speech.samples(clip.path)
    bodies, _ = ear.hear(np.concatenate([once, pause, once, pause]))
    assert not [b for b in bodies if not isinstance(b, m.Transcript)], bodies
    assert speech.word_errors(f"{clip.text} {clip.text}", text(bodies)) <= 2, text(bodies)


def test_a_sentence_whose_words_are_its_own_prompt_is_heard(ear: Ear) -> None:
    """The hardest case of saying it twice: the decoder repeats the prompt, and so does the speaker."""
    for clip in speech.librivox()[1:3]:
        sound = speech.samples(clip.path)
        (first, *rest), state = ear.hear(sound)
        assert not rest and isinstance(first, m.Transcript)
        (again,) = ear.infer(state, sound).events
        assert isinstance(again, m.Transcript) and speech.word_errors(clip.text, again.text) <= 1, again
