"""Who speaks now: local speakers of overlapping windows matched to the voices of a stream. Pure; no model, no clock.

In: windows that end at hops, in order, with what the models heard in them (`speaker_models.Ears`). Out: turns, once they
lie far enough in the past that later windows would not change them. `Voices.encode` is all that must travel with the
position: the same windows give the same turns wherever it was taken up. After Coria et al. 2021, "Overlap-aware
low-latency online speaker diarization based on end-to-end local segmentation".

Places in time are sample numbers of the stream; hops, windows and turns begin and end on multiples of FRAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import SAMPLE_RATE, Span

FRAME = 270  # samples; one output frame of the segmentation network
LOCALS = 3  # speakers that the network tells apart within a window
WINDOW = 592 * FRAME  # samples heard at once: 10 s

Floats = npt.NDArray[np.float32]
Active = npt.NDArray[np.bool_]


def on_grid(samples: float) -> int:
    """The nearest number of samples that is a multiple of FRAME."""
    return round(samples / FRAME) * FRAME


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """FINAL fields; their defaults are still being tuned. `speakers.*` settings are mapped to these."""

    most: int = 0  # speakers of a stream, where known; 0: not known
    latency: int = on_grid(1.0 * SAMPLE_RATE)  # samples between a window's end and what it settles
    threshold: float = 0.5  # cosine distance above which a voice is a new one
    piece: int = on_grid(2.0 * SAMPLE_RATE)  # an open turn is told in pieces of at most about so many samples


class Window(NamedTuple):
    """FINAL. What the models heard in the samples `start` .. `start + samples`."""

    start: int  # first sample, a multiple of FRAME; what is before the stream is not heard: samples is less then
    samples: int
    active: Active  # (frames, LOCALS): who speaks in each frame; see `Ears.frames`
    embeddings: Floats  # (LOCALS, dimension), of unit length; nan rows: not asked for, or heard too briefly

    @property
    def end(self) -> int:
        return self.start + self.samples

    def encode(self) -> bytes:
        """For the file of a stream; about 1 kB for one embedding. One window is one record: the caller frames it."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Window:
        """Raises msgspec.DecodeError or ValueError on what `encode` did not write."""
        raise NotImplementedError


class Turn(NamedTuple):
    """FINAL. A stretch of one speaker. A long turn comes in pieces that touch each other."""

    span: Span
    speaker: str  # S1, S2, … in the order of their first appearance in the stream; never used twice


class Voice(NamedTuple):
    """FINAL. One speaker of the stream so far."""

    speaker: str
    centroid: Floats  # (dimension,), of unit length
    seconds: float  # of speech that it was made from


class Voices:
    """FINAL signatures. The voices of one stream, and its turns that are not settled yet."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    @classmethod
    def decode(cls, data: bytes, rules: Rules) -> Voices:
        """From the journal's state; empty bytes: a stream begins. Raises msgspec.DecodeError on anything else."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """A few kB: voices x dimension, and a second or two of activity."""
        raise NotImplementedError

    @property
    def settled(self) -> int:
        """Sample up to which all turns are told."""
        raise NotImplementedError

    def known(self) -> list[Voice]:
        """For voiceprints and people; in the order of their ids."""
        raise NotImplementedError

    def wants(self, start: int, active: Active) -> Sequence[int]:
        """Which local speakers of a window that began at `start` should be embedded; changes nothing."""
        raise NotImplementedError

    def take(self, window: Window | None, upto: int) -> list[Turn]:
        """A hop: `window` ends at `upto`, or None where VAD heard no speech since the last hop.

        Returns the turns (or pieces) that are settled by it, by their start. Hops come in order; some may be left out.
        """
        raise NotImplementedError

    def finish(self, end: int) -> list[Turn]:
        """The stream ended: all the rest, up to `end`."""
        raise NotImplementedError

    def adopt(self, settled: Any) -> None:
        """After a `clustering.Settled`: what comes next is matched to the voices as they were found to be."""
        raise NotImplementedError
