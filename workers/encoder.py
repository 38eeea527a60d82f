"""Whisper's encoder on as much audio as there is, in place of always 30 s.

The window is the speech and `PAD_S` of silence behind it, and the positional embedding is cut to match. Less silence
than that makes the decoder loop (docs/decisions/cropped-encoder.md has the figures). A cost of attention and of the
layers that falls with the length of the utterance.
"""

from __future__ import annotations

from typing import Any

PAD_S = 2.0
FRAME_S = 0.01  # of the spectrogram; the encoder has a place for every two


def places(samples: int, rate: int = 16_000, most: int = 1500, pad_s: float = PAD_S) -> int:
    """How many places of the encoder so many samples of speech need."""
    return min(most, round((samples / rate + pad_s) / FRAME_S / 2))


def encode(model: Any, mel: Any, n: int) -> Any:
    """mel (mels, frames) -> (1, n, state): the first `n` places, as if the window ended behind them."""
    from torch.nn import functional as f

    e = model.encoder
    x = f.gelu(e.conv1(mel[None, :, : 2 * n]))
    x = f.gelu(e.conv2(x)).permute(0, 2, 1)
    x = (x + e.positional_embedding[: x.shape[1]]).to(x.dtype)
    for block in e.blocks:
        x = block(x)
    return e.ln_post(x)
