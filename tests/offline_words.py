"""Whisper itself with the times of its words, the yardstick of who-said-what: on a whole recording, or on parts of it.

Words(settings)(samples) -> [(word, first sample, end), ...]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.scores import Turns
from common import messages as m
from common.settings import Settings
from common.speaker_runs import NOBODY, Piece, by_voice, speaker_of
from tests.quality import Direct
from tests.speech import RATE, Samples
from tests.system import quiet

PAD_S = 0.3  # of a quiet room around a part


class Word(NamedTuple):
    text: str
    span: m.Span


class Words(Direct):
    """openai-whisper with its defaults, and word times."""

    def __init__(self, settings: Settings) -> None:
        name = settings.transcriber.model
        super().__init__(settings, name)
        if name in self._whisper._ALIGNMENT_HEADS:
            self._model.set_alignment_heads(self._whisper._ALIGNMENT_HEADS[name])

    def words(self, audio: Samples, at: int = 0) -> list[Word]:
        """Of the whole, as if it began at sample `at`."""
        self._torch.manual_seed(0)  # its fallback is sampled
        sound = audio.astype(np.float32) / 32768
        said = self._whisper.transcribe(self._model, sound, language="en", fp16=False, word_timestamps=True)
        found = [w for segment in said["segments"] for w in segment["words"]]
        return [Word(w["word"], (at + round(w["start"] * RATE), at + round(w["end"] * RATE))) for w in found]

    def of_parts(self, audio: Samples, parts: Iterable[m.Span]) -> list[Word]:
        """Each part alone."""
        pad, out = quiet(PAD_S), list[Word]()
        for start, end in parts:
            out += self.words(np.concatenate([pad, audio[start:end], pad]), start - len(pad))
        return out


def who_said(words: Iterable[Word], turns: Turns) -> list[tuple[str, str]]:
    """(speaker, word) by the rule of captions (common.speaker_runs)."""
    voices = by_voice(Piece(round(a * RATE), round(b * RATE), who) for a, b, who in turns)
    out, before = list[tuple[str, str]](), NOBODY
    for word in words:
        before = speaker_of(word.span, voices, before)
        out.append((before, word.text.strip()))
    return out
