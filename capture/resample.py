"""Any PCM to 16 kHz mono s16: average of the channels, then one pass of soxr HQ, then one rounding.

The result is a function of the samples alone, not of how they were cut into pieces (a test holds it to that), so a
file decoded again after a crash gives the same samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from common.messages import SAMPLE_RATE


class Resampler:
    """Streaming conversion of one sound."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._stream: Any = None
        if rate_hz != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def push(self, sound: NDArray[Any], last: bool = False) -> bytes:
        """`sound`: (samples, channels), any PCM type. Returns s16le of what is ready."""
        mono = as_float(sound).mean(axis=1, dtype=np.float32) if sound.shape[1] != 1 else as_float(sound)[:, 0]
        if self._stream is not None:
            mono = self._stream.resample_chunk(np.ascontiguousarray(mono), last=last)
        pcm: bytes = np.clip(np.rint(mono * 32768.0), -32768, 32767).astype("<i2").tobytes()
        return pcm

    def flush(self) -> bytes:
        return self.push(np.zeros((0, 1), np.float32), last=True) if self._stream is not None else b""


def as_float(sound: NDArray[Any]) -> NDArray[np.float32]:
    """Any PCM type to float32, full scale 1."""
    if sound.dtype.kind == "f":
        return sound.astype(np.float32, copy=False)
    zero, full_scale = (128, 128) if sound.dtype == np.uint8 else (0, 2 ** (8 * sound.dtype.itemsize - 1))
    return ((sound.astype(np.float64) - zero) / full_scale).astype(np.float32)
