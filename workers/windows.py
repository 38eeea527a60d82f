"""Ten seconds as the models hear them: who of a few speaks in each frame, and how they sound. Pure; no model.

Windows are what all the rest works on: voices are matched in them, they are kept on disk, and clustered anew. Local
speakers are numbered as the network happens to; which one of the window before each is, `followed` says.

Places in time are sample numbers of the stream; hops, windows and turns begin and end on multiples of FRAME.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import SAMPLE_RATE
from workers.matching import assign

FRAME = 270  # samples; one output frame of the segmentation network
LOCALS = 3  # speakers that the network tells apart within a window
WINDOW = 592 * FRAME  # samples heard at once: 10 s
LEAD = 2  # frame i of a window is the frame of the stream that begins about `start + (i + LEAD) * FRAME`
GAP = 60  # frames: a pause of a second
ENOUGH = 5 * SAMPLE_RATE  # samples embedded at most: more tells hardly more of a voice, and takes longer
BRIEF = 15  # frames of speech alone: with less there is no embedding
SAME = 0.8  # share of their speech in the frames of both that local speakers of two windows have together

Floats = npt.NDArray[np.float32]
Active = npt.NDArray[np.bool_]


def on_grid(samples: float) -> int:
    """The nearest number of samples that is a multiple of FRAME."""
    return round(samples / FRAME) * FRAME


def seconds(frames: float) -> float:
    return frames * FRAME / SAMPLE_RATE


class Window(NamedTuple):
    """FINAL. What the models heard in the samples `start` .. `start + samples`."""

    start: int  # first sample, a multiple of FRAME; what is before the stream is not heard: samples is less then
    samples: int
    active: Active  # (frames, LOCALS): who speaks in each frame; see `Ears.frames`
    embeddings: Floats  # (LOCALS, dimension), of unit length; nan rows: not asked for, or heard too briefly

    @property
    def end(self) -> int:
        return self.start + self.samples

    @property
    def first(self) -> int:
        """The stream's frame that the first of `active` is."""
        return self.start // FRAME + LEAD

    @property
    def embedded(self) -> Active:
        """(LOCALS,)"""
        return np.asarray(~np.isnan(self.embeddings).any(axis=1))

    def encode(self) -> bytes:
        """For the file of a stream; about 1 kB for one embedding. One window is one record: the caller frames it."""
        rows = self.embeddings[self.embedded]
        kept = _Kept(
            start=self.start,
            samples=self.samples,
            frames=len(self.active),
            active=np.packbits(self.active).tobytes(),
            which=[bool(x) for x in self.embedded],
            dimension=self.embeddings.shape[1],
            embeddings=rows.tobytes(),
        )
        return msgspec.msgpack.encode(kept)

    @classmethod
    def decode(cls, data: bytes) -> Window:
        """Raises msgspec.DecodeError or ValueError on what `encode` did not write."""
        kept = msgspec.msgpack.decode(data, type=_Kept)
        embeddings = np.full((LOCALS, kept.dimension), np.nan, np.float32)
        embeddings[np.array(kept.which, np.bool_)] = np.frombuffer(kept.embeddings, np.float32).reshape(
            -1, kept.dimension
        )
        return cls(kept.start, kept.samples, unpacked(kept.active, kept.frames), embeddings)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    start: int
    samples: int
    frames: int
    active: bytes
    which: list[bool]
    dimension: int
    embeddings: bytes


def unpacked(data: bytes, frames: int) -> Active:
    """(frames, LOCALS), from the bytes of `np.packbits`."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=frames * LOCALS)
    return bits.reshape(frames, LOCALS).astype(np.bool_)


def lone(active: Active) -> Active:
    """(frames, LOCALS): where each speaks and nobody else."""
    clear: Active = active & (active.sum(axis=1, keepdims=True) == 1)
    return clear


def newest(active: Active) -> Active:
    """(frames, LOCALS): each one's newest stretch, back to a pause of GAP frames.

    Whom the network takes for the same speaker after a longer pause may be another one; what an embedding says of a
    stretch holds for that stretch.
    """
    out = active.copy()
    for local in range(LOCALS):
        at = np.flatnonzero(active[:, local])
        pauses = np.flatnonzero(np.diff(at) > GAP)
        if len(pauses):
            out[: at[pauses[-1] + 1], local] = False
    return out


def alone(pcm: Floats, active: Active, local: int) -> Floats:
    """Samples of a window that are embedded: the end of the newest stretch of `local`, alone if that is enough."""
    stretch = newest(active)[:, local]
    mask = stretch & lone(active)[:, local]
    if mask.sum() < BRIEF:
        mask = stretch
    return pcm[mask[np.arange(len(pcm)) * len(mask) // len(pcm)]][-ENOUGH:]


def followed(first: int, active: Active, before: int, past: Active) -> list[int]:
    """Which local speaker of the window before each one was, by when they speak in the frames of both; -1: none.

    `first`, `before`: the stream's frames that the windows' first ones are.
    """
    out = [-1] * LOCALS
    begin, end = max(first, before), min(first + len(active), before + len(past))
    if begin >= end:
        return out
    old, new = past[begin - before : end - before], active[begin - first : end - first]
    shared = new.T.astype(np.int32) @ old.astype(np.int32)
    either = new.sum(axis=0)[:, None] + old.sum(axis=0)[None] - shared
    for local, was in assign(shared / np.maximum(either, 1)):
        if shared[local, was] > SAME * either[local, was]:
            out[local] = was
    return out


def runs(on: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[begin, end) of each stretch of frames that are on."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
