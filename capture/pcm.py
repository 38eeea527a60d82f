"""Raw PCM of any stated form to 16 kHz mono s16le; no library is loaded where nothing is to be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common.messages import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_BYTES = {"s16le": 2, "s16be": 2, "s24le": 3, "s32le": 4, "f32le": 4, "u8": 1, "mulaw": 1, "alaw": 1}
_PLAIN = {"s16le": "<i2", "s16be": ">i2", "s32le": "<i4", "f32le": "<f4", "u8": "u1"}


def converter(rate_hz: int, channels: int, form: str = "s16le") -> Callable[[bytes, bool], bytes]:
    """A function of (whole frames, is it the end) that returns the samples that are ready."""
    if (rate_hz, channels, form) == (SAMPLE_RATE, 1, "s16le"):
        return lambda pcm, last: pcm
    from capture.resample import Resampler

    resampler, unpack = Resampler(rate_hz), unpacker(form)
    return lambda pcm, last: resampler.push(unpack(pcm).reshape(-1, channels), last)


def unpacker(form: str) -> Callable[[bytes], NDArray[Any]]:
    """A function from bytes to samples of a type that the resampler knows."""
    import numpy as np

    if form in ("mulaw", "alaw"):
        table = np.array([(_mulaw if form == "mulaw" else _alaw)(code) for code in range(256)], np.int16)
        return lambda pcm: table[np.frombuffer(pcm, "u1")]
    if form == "s24le":
        return lambda pcm: _wider(np.frombuffer(pcm, "u1").reshape(-1, 3))
    if form == "f32le":  # what is no number is silence: a cast of it could be anything
        return lambda pcm: np.nan_to_num(np.frombuffer(pcm, "<f4"), nan=0.0, posinf=1.0, neginf=-1.0)
    return lambda pcm: np.frombuffer(pcm, _PLAIN[form])


def _wider(three: NDArray[np.uint8]) -> NDArray[np.int32]:
    """24-bit samples as the upper bytes of 32-bit ones."""
    import numpy as np

    four = np.zeros((len(three), 4), np.uint8)
    four[:, 1:] = three
    return four.view("<i4")[:, 0]


def _mulaw(code: int) -> int:
    """ITU-T G.711, table 2a, as 16 bits."""
    code = ~code & 0xFF
    size = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return -size if code & 0x80 else size


def _alaw(code: int) -> int:
    """ITU-T G.711, table 1a, as 16 bits."""
    code ^= 0x55
    part, size = code >> 4 & 7, (code & 0x0F) << 4
    size = size + 8 if part == 0 else size + 0x108 << part - 1
    return size if code & 0x80 else -size
