"""A stand-in for the transcriber that hears at any pace: the real base, backlog, VAD and cuts, and no model's work.

Started by `tests.standin_models` for a plan {"says_mib": 300}: it holds that many MiB of weights that are really moved.
Its captions are made-up words, three a second; no figure about words or decoding may come from it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import backlog, models
from common import messages as m
from common.process import Process
from tests.standin_models import MIB, ballast
from workers._torch import set_up
from workers.captioner import Captioner
from workers.session import Utterance
from workers.steps import Step
from workers.utterances import State, Utterances
from workers.vad import Rules, Vad

WORDS = ["the", "stand-in", "says", "something", "that", "nobody", "said"]
WORD_SAMPLES = m.SAMPLE_RATE // 3


class StandInTranscriber(Captioner):
    """See the module."""

    name = "transcriber"

    def __init__(self, process: Process, mib: int) -> None:
        super().__init__(process)
        self.mib = mib
        self.rules = Rules.of(process.settings.transcriber)

    def load(self, process: Process) -> Sequence[Any]:
        torch = set_up(1, process.settings.cache)
        self.vad = Vad(torch, models.available(process.settings, "silero_vad"))
        self.module = ballast(torch, self.mib, seed=2)
        return [self.module]

    def key(self) -> str:
        return f"stand-in transcriber {self.mib}"

    def working_bytes(self) -> int:
        return 20 * MIB

    def rehearse(self) -> Iterator[None]:
        yield

    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Utterances:
        return Utterances(folder, meta, at, self.vad, self.rules)

    def infer(self, state: bytes, work: Utterance) -> Generator[None, None, Step]:
        body = yield from self._says(work.stream, work.speech)
        return self._step(work, body)

    def skipped(self, state: bytes, work: Utterance, gap: m.Gap) -> Step:
        return self._step(work, gap)

    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Generator[None, None, m.Body]:
        return (yield from self._says(stream, gap.span))

    def _says(self, stream: str, span: m.Span) -> Generator[None, None, m.Body]:
        for weight in self.module.parameters():
            float(weight[:1000].sum())  # raises when they are away
        yield
        starts = range(span[0], max(span[0] + 1, span[1] - WORD_SAMPLES), WORD_SAMPLES)
        words = tuple(
            m.Word(text=f" {WORDS[i % len(WORDS)]}", span=(at, min(span[1], at + WORD_SAMPLES)), p=0.5)
            for i, at in enumerate(starts)
        )
        text = "".join(w.text for w in words).strip()
        segment = m.segment_id(stream, span[0])
        return m.Transcript(segment=segment, span=span, text=text, language="en", words=words, model="stand-in")

    def _step(self, work: Utterance, body: m.Body) -> Step:
        silence = (m.Silence(span=(work.span[0], work.speech[0])),) if work.speech[0] > work.span[0] else ()
        state = m.encode(State(vad=work.state))
        return Step(positions={"audio": work.span[1]}, events=(*silence, body), state=state)
