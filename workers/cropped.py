"""The first try at a final: Whisper's encoder on the speech and some silence behind it, in place of always 30 s.

The decoder is trained on windows of 30 s; in a shorter one it says things again. So it gets 30 s: behind what the
encoder made of the speech stands what it makes of silence, which is the same each time. If the decoder goes round in
circles all the same it is stopped, and not believed; `decoding` then has the whole window heard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from common import models
from common.messages import SAMPLE_RATE
from common.settings import TranscriberSettings
from workers.captions import again
from workers.encoder import PLACE, encode, places
from workers.silence import KeptSilence
from workers.text_decoder import task

FRAME = PLACE // 2  # samples of one frame of the spectrogram
ROUND = 25  # places, 0.5 s: windows of a few sizes, for which kernels and memory are at hand
SILENT = -0.8  # whisper's spectrogram where nothing is to be heard, beside speech of usual loudness
# Beside silence that is always the same the decoder takes sounds for speech more easily ("you"). Shares of the usual
# thresholds: what they let pass and stop is in docs/decisions/cropped-finals.md; one word alone is often stopped.
SILENT_AT, UNSURE_AT = 0.25, 0.5
TOKENS_S = 10  # nobody speaks more in a second
TOKENS_MORE = 10


def whole(s: TranscriberSettings) -> bool:
    """Are finals decoded in whole windows from the first? A model that nobody has measured is not cropped unasked."""
    return s.window == "whole" or (s.window == "auto" and not models.model(s.model).cropped)


class Encoder:
    """Whisper's encoder at a cost that falls with the length of the speech."""

    def __init__(self, torch: Any, model: Any, kept: KeptSilence | None = None) -> None:
        self._torch, self._model, self._kept = torch, model, kept
        self._silence: Any = None  # (places, state), in RAM: what it makes of silence, found when it is first needed

    def __call__(self, mel: Any, frames: int) -> Any:
        """mel (mels, 3000, or as many as `window` asks for) with so many frames of sound -> (places, state)"""
        d = self._model.dims
        n = window(frames, d.n_audio_ctx)
        with self._torch.no_grad():
            if self._silence is None:
                self._silence = self._made_of_silence(mel)
            heard = encode(self._torch, self._model, mel, n)[0]
            return self._torch.cat([heard, self._silence[n:].to(heard.device)])

    def _made_of_silence(self, like: Any) -> Any:
        d = self._model.dims
        if self._kept:
            state = self._kept.get(self._torch, like)
            if state is not None and state.shape == (d.n_audio_ctx, d.n_audio_state):
                return state
        silence = like.new_full((1, d.n_mels, 2 * d.n_audio_ctx), SILENT)
        state = self._model.embed_audio(silence)[0].cpu()
        if self._kept:
            self._kept.put(self._torch, like, state)
        return state


def window(frames: int, most: int) -> int:
    """How many places of the encoder hear so many frames of speech; `most`: all there are."""
    return min(most, -(-places(frames * FRAME, most) // ROUND) * ROUND)


def decode(whisper: Any, model: Any, features: Any, options: Any, frames: int) -> list[Any | None]:
    """What whisper makes of features (windows, places, state) with so many frames of speech at most, greedy.

    None: it went round in circles, or said more than anybody can in that time; it was stopped there.
    """
    most = TOKENS_MORE + TOKENS_S * frames * FRAME // SAMPLE_RATE
    decoding = task(whisper, model, dataclasses.replace(options, sample_len=most))
    guard = Circles(decoding.sample_begin, decoding.tokenizer.eot)
    decoding.logit_filters.append(guard)
    results = decoding.run(features)
    endless = [i in guard.found or len(r.tokens) >= most or again(r.text) for i, r in enumerate(results)]
    return [None if bad else r for bad, r in zip(endless, results, strict=True)]


class Circles:
    """A filter of whisper's decoding: who says the same twice in a row has said enough."""

    def __init__(self, begin: int, eot: int) -> None:
        self._begin, self._eot = begin, eot
        self.found = set[int]()  # texts

    def apply(self, logits: Any, tokens: Any) -> None:
        """logits (texts, vocabulary), changed in place; tokens (texts, so far)"""
        for i, said in enumerate(tokens[:, self._begin :].tolist()):
            if said and said[-1] != self._eot and turns_round(said):
                self.found.add(i)
                logits[i] = -float("inf")
                logits[i, self._eot] = 0.0


def turns_round(tokens: Sequence[int]) -> bool:
    """True when the last tokens, one or more, stand there twice in a row."""
    return any(tokens[-n:] == tokens[-2 * n : -n] for n in range(1, len(tokens) // 2 + 1))
