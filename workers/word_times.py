"""When each word of a text was spoken: by cross-attention alignment, within the voice of its utterance.

In: what a model has heard, and the tokens it wrote down. Out: words with seconds from a window's start, shared out
among the utterances packed into that window, then as samples of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common import messages as m
from workers.captions import Floats, loud, owners, snapped

EDGE_SAMPLES = m.SAMPLE_RATE // 5  # words may reach this far beyond what the VAD calls voice


def timed(
    whisper: Any, model: Any, tokenizer: Any, mel: Any, frames: int, features: Any, tokens: Sequence[int]
) -> list[dict[str, Any]]:
    """Words with seconds from the window's start. Of `mel` (n_mels, 3000) so many frames hold sound."""
    segment: dict[str, Any] = {"seek": 0, "start": 0.0, "end": frames / 100, "tokens": tokens}
    whisper.timing.add_word_timestamps(
        segments=[segment],
        model=Heard(model, features),
        tokenizer=tokenizer,
        mel=mel,
        num_frames=frames,
        last_speech_timestamp=0.0,
    )
    found: list[dict[str, Any]] = segment["words"]
    return found


def shares(words: list[dict[str, Any]], spoken: Sequence[tuple[m.Span, m.Span]]) -> Iterator[list[dict[str, Any]]]:
    """For each utterance of a window, (span, voiced): its words in seconds from its own start."""
    starts = np.cumsum([0, *(span[1] - span[0] for span, _ in spoken)]) / m.SAMPLE_RATE
    voices = [
        (at + (voiced[0] - span[0]) / m.SAMPLE_RATE, at + (voiced[1] - span[0]) / m.SAMPLE_RATE)
        for at, (span, voiced) in zip(starts, spoken, strict=False)
    ]
    owner = owners([(w["start"], w["end"]) for w in words], voices)
    for k, at in enumerate(starts[:-1]):
        mine = [w for w, whose in zip(words, owner, strict=True) if whose == k]
        yield [w | {"start": w["start"] - at, "end": w["end"] - at} for w in mine]


def placed(words: list[dict[str, Any]], span: m.Span, voiced: m.Span, audio: Floats) -> tuple[m.Word, ...]:
    """Words in seconds from the utterance's start as samples of the stream: monotone, within the voice."""
    low, high = max(span[0], voiced[0] - EDGE_SAMPLES), min(span[1], voiced[1] + EDGE_SAMPLES)
    found, at = [], low
    for w in words:
        start = min(max(span[0] + round(w["start"] * m.SAMPLE_RATE), at), high)
        end = min(max(span[0] + round(w["end"] * m.SAMPLE_RATE), start), high)
        found.append(m.Word(text=w["word"], span=(start, end), p=round(float(w["probability"]), 4)))
        at = end
    return snapped(tuple(found), loud(audio), span[0], high)


class Heard:
    """A model that has heard this audio: whisper's alignment asks for a full forward, but the encoder ran before."""

    def __init__(self, model: Any, features: Any) -> None:
        self._model, self._features = model, features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, mel: Any, tokens: Any) -> Any:
        return self._model.decoder(tokens, self._features[None])
