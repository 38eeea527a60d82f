"""Whisper's decoding without the products nobody reads says what whisper's own says. Real tiny.en, real speech."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common import models
from common.settings import Settings
from tests.speech import jfk, librivox, samples
from tests.system import weights
from workers._torch import set_up, whisper_without_compiler
from workers.text_decoder import task

PROMPT = " It was said before, and a sentence goes on here."


@pytest.fixture(scope="module")
def whisper() -> Any:
    return whisper_without_compiler()


@pytest.fixture(scope="module")
def model(whisper: Any) -> Any:
    weights()
    set_up(1, Settings().cache)
    from safetensors.torch import load_file

    folder = models.available(Settings(), "tiny.en")
    model = whisper.model.Whisper(whisper.ModelDimensions(**models.stored(folder).dims))
    model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def heard(whisper: Any, model: Any) -> Any:
    """(texts, places, state) of three utterances."""
    import torch

    audio = [samples(c.path).astype(np.float32) / 32768.0 for c in (jfk(), *librivox()[:2])]
    mel = [whisper.pad_or_trim(whisper.log_mel_spectrogram(torch.from_numpy(a), padding=480_000), 3000) for a in audio]
    return model.embed_audio(torch.stack(mel))


@pytest.mark.parametrize("prompt", [None, PROMPT], ids=["no prompt", "prompt"])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_it_says_what_whisper_says(
    whisper: Any, model: Any, heard: Any, prompt: str | None, temperature: float
) -> None:
    import torch

    options = whisper.DecodingOptions(
        language="en", temperature=temperature, prompt=prompt, without_timestamps=True, fp16=False
    )
    torch.manual_seed(1)
    theirs = model.decode(heard, options)
    torch.manual_seed(1)
    ours = task(whisper, model, options).run(heard)
    assert [r.tokens for r in ours] == [r.tokens for r in theirs] and all(r.tokens for r in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert a.no_speech_prob == pytest.approx(b.no_speech_prob, rel=1e-3)
        assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=1e-4)
    assert len({r.no_speech_prob for r in ours}) == 3, "each text has its own"
