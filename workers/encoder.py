"""Whisper's encoder on as much audio as there is, in place of always 30 s.

The window is the speech and `PAD_S` of silence behind it, and the positional embedding is cut to match. With less
silence than that the decoder loops (docs/decisions/interim-text.md has the figures). The cost falls with the length.
"""

from __future__ import annotations

from typing import Any

from common.messages import SAMPLE_RATE

PAD_S = 2.0
PLACE = SAMPLE_RATE // 50  # samples of one place of the encoder, two frames of the spectrogram


def places(samples: int, most: int) -> int:
    """How many places so many samples of speech need; `most`: those of the whole window."""
    return min(most, -(-samples // PLACE) + round(PAD_S * SAMPLE_RATE) // PLACE)


def encode(torch: Any, model: Any, mel: Any, n: int) -> Any:
    """mel (mels, frames) -> (1, n, state): the first `n` places, as if the window ended behind them."""
    gelu, e = torch.nn.functional.gelu, model.encoder
    x = gelu(e.conv1(mel[None, :, : 2 * n]))
    x = gelu(e.conv2(x)).permute(0, 2, 1)
    x = (x + e.positional_embedding[: x.shape[1]]).to(x.dtype)
    for block in e.blocks:
        x = block(x)
    return e.ln_post(x)
