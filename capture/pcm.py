"""s16le PCM of any rate and number of channels to 16 kHz mono; no library is loaded where nothing is to be done."""

from __future__ import annotations

from collections.abc import Callable

from common.messages import SAMPLE_RATE


def converter(rate_hz: int, channels: int) -> Callable[[bytes, bool], bytes]:
    """A function of (whole frames, is it the end) that returns the samples that are ready."""
    if (rate_hz, channels) == (SAMPLE_RATE, 1):
        return lambda pcm, last: pcm
    import numpy as np

    from capture.resample import Resampler

    resampler = Resampler(rate_hz)
    return lambda pcm, last: resampler.push(np.frombuffer(pcm, "<i2").reshape(-1, channels), last)
