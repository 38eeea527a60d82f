"""Who speaks now: local speakers of overlapping windows matched to the voices of a stream. Pure; no model, no clock.

In: windows that end at hops, in order, with what the models heard in them (`speaker_models.Ears`). Out: turns, once
they lie far enough in the past that later windows would hardly change them. `Voices.encode` is all that must travel
with the position: the same windows give the same turns wherever it was taken up. After Coria et al. 2021,
"Overlap-aware low-latency online speaker diarization based on end-to-end local segmentation"; here a local speaker is
also followed from window to window by when it speaks, so that few windows need an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import SAMPLE_RATE
from workers.matching import assign
from workers.turns import Tally, Turn, name
from workers.windows import (
    BRIEF,
    FRAME,
    LEAD,
    LOCALS,
    Active,
    Floats,
    Window,
    followed,
    lone,
    newest,
    on_grid,
    seconds,
    unpacked,
)

if TYPE_CHECKING:
    from workers.clustering import Settled

CAP = 32  # voices of a stream whose number is not known: its state must stay small
STAY = 0.1  # cosine: by so much another voice must be nearer than the one that was followed


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided how; docs/decisions/speakers.md has the figures. `speakers.*` settings are mapped to these."""

    most: int = 0  # speakers of a stream, where known; 0: not known
    latency: int = on_grid(1.5 * SAMPLE_RATE)  # samples between a window's end and what it settles
    threshold: float = 0.55  # cosine distance above which a voice is a new one
    piece: int = on_grid(2.0 * SAMPLE_RATE)  # an open turn is told in pieces of at most about so many samples
    refresh_s: float = 1.0  # of new speech alone, then a voice that is being followed is embedded again
    new_s: float = 1.0  # of speech alone: less does not make a new voice when there are others
    perhaps: float = 0.2  # cosine from which a voice of less speech than that is taken for a known one
    split: float = 0.7  # cosine from which two local speakers of a window are one voice, if nobody else sounds so
    together: float = 0.85  # distance of two clusters' centroids up to which re-clustering takes them for one voice
    little_s: float = 5.0  # of speech: a cluster of less is part of another from cosine `alike` on
    alike: float = 0.5
    least_s: float = 2.0  # of speech: a smaller cluster is given to the nearest larger one
    apart: float = 0.5  # a local speaker that sounds by so much more like another's voice than like its own is that one

    @property
    def cap(self) -> int:
        return min(self.most, CAP) if self.most else CAP


class Voice(NamedTuple):
    """FINAL. One speaker of the stream so far."""

    speaker: str
    centroid: Floats  # (dimension,), of unit length
    seconds: float  # of speech that it was made from


class Heard(msgspec.Struct, kw_only=True):
    """A voice in the making."""

    number: int
    total: bytes  # float32: embeddings weighted by the seconds they were made from
    seconds: float
    upto: int  # frame of the stream up to which it was embedded

    @property
    def vector(self) -> Floats:
        return np.frombuffer(self.total, np.float32)

    @property
    def unit(self) -> Floats:
        vector = self.vector
        unit: Floats = vector / max(float(np.linalg.norm(vector)), 1e-9)
        return unit

    def hear(self, embedding: Floats, weight: float, upto: int) -> None:
        self.total = (self.vector + np.float32(weight) * embedding).astype(np.float32).tobytes()
        self.seconds = round(self.seconds + weight, 4)
        self.upto = upto


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The window before: who its local speakers were (0: nobody, or not known)."""

    first: int
    frames: int
    active: bytes
    numbers: list[int]


class State(Tally, kw_only=True):
    """What travels with the position."""

    confirmed: int = 0  # by a clustering
    born: int = 0
    voices: list[Heard] = msgspec.field(default_factory=list)
    before: Before | None = None


class Voices:
    """FINAL signatures. The voices of one stream, and its turns that are not settled yet."""

    def __init__(self, rules: Rules, state: State | None = None) -> None:
        self.rules = rules
        self._s = state or State()

    @classmethod
    def decode(cls, data: bytes, rules: Rules) -> Voices:
        """From the journal's state; empty bytes: a stream begins. Raises msgspec.DecodeError on anything else."""
        return cls(rules, msgspec.msgpack.decode(data, type=State) if data else None)

    def encode(self) -> bytes:
        """A few kB: voices x dimension, and a second or two of activity."""
        return msgspec.msgpack.encode(self._s)

    @property
    def settled(self) -> int:
        """Sample up to which all turns are told."""
        return self._s.settled * FRAME

    @property
    def confirmed(self) -> int:
        """Sample up to which a clustering has settled the boundaries of turns."""
        return self._s.confirmed * FRAME

    @property
    def born(self) -> int:
        """Ids given out so far."""
        return self._s.born

    def known(self) -> list[Voice]:
        """For voiceprints and people; in the order of their ids."""
        return [Voice(name(v.number), v.unit, v.seconds) for v in sorted(self._s.voices, key=lambda v: v.number)]

    def wants(self, start: int, active: Active) -> Sequence[int]:
        """Which local speakers of a window that began at `start` should be embedded; changes nothing."""
        first = start // FRAME + LEAD
        stretches = newest(active)
        followed = self._followed(first, stretches)
        clear = lone(active) & stretches
        out = []
        for local in range(LOCALS):
            if stretches[:, local].sum() < BRIEF:
                continue
            voice = self._voice(followed[local])
            if voice is None or self._fresh(voice, first, clear[:, local]) >= self._refresh(voice):
                out.append(local)
        return out

    def take(self, window: Window | None, upto: int) -> list[Turn]:
        """A hop: `window` ends at `upto`, or None where VAD heard no speech since the last hop.

        Returns the turns (or pieces) that are settled by it, by their start. Hops come in order; some may be left out.
        """
        if window is not None and len(window.active):
            followed = self._followed(window.first, newest(window.active))
            numbers = self._match(window, followed)
            for local, (was, now) in enumerate(zip(followed, numbers, strict=True)):
                if was and now and was != now:
                    self._s.correct(window, local, was, now)
            self._s.vote(window, numbers)
            packed = np.packbits(newest(window.active)).tobytes()
            self._s.before = Before(
                first=window.first, frames=len(window.active), active=packed, numbers=[int(n) for n in numbers]
            )
        return self._s.settle((upto - self.rules.latency) // FRAME, self.rules.piece)

    def finish(self, end: int) -> list[Turn]:
        """The stream ended: all the rest, up to `end`."""
        turns = self._s.settle(-(-end // FRAME), self.rules.piece)
        turns += [Turn((begin * FRAME, end), name(n)) for n, begin in sorted(self._s.open.items())]
        self._s.open = {}
        return [Turn((t.span[0], min(t.span[1], end)), t.speaker) for t in turns if t.span[0] < min(t.span[1], end)]

    def adopt(self, settled: Settled) -> None:
        """After a `clustering.Settled`: what comes next is matched to the voices as they were found to be."""
        s = self._s
        before = {v.number: v for v in s.voices}
        s.voices = []
        for voice in settled.voices:
            number = int(voice.speaker[1:])
            total = (np.float32(voice.seconds) * voice.centroid).astype(np.float32).tobytes()
            upto = before[number].upto if number in before else 0
            s.voices.append(Heard(number=number, total=total, seconds=round(voice.seconds, 4), upto=upto))
        s.born = max(s.born, settled.born)
        s.confirmed = max(s.confirmed, settled.upto // FRAME)
        if s.before is not None and settled.last:
            old, new = s.before.numbers, list(settled.last)
            s.before = msgspec.structs.replace(s.before, numbers=new)
            s.rename({a: b for a, b in zip(old, new, strict=True) if a and b and a != b})

    # Who is it?

    def _voice(self, number: int) -> Heard | None:
        return next((v for v in self._s.voices if v.number == number), None)

    def _followed(self, first: int, active: Active) -> list[int]:
        """Numbers that local speakers have from the window before; 0: none."""
        before = self._s.before
        if before is None:
            return [0] * LOCALS
        past = followed(first, active, before.first, unpacked(before.active, before.frames))
        return [before.numbers[p] if p >= 0 else 0 for p in past]

    def _fresh(self, voice: Heard, first: int, clear: npt.NDArray[np.bool_]) -> float:
        """Seconds of speech alone since it was embedded."""
        return seconds(int(clear[max(0, voice.upto - first) :].sum()))

    def _refresh(self, voice: Heard) -> float:
        """A voice that is hardly known is looked at sooner."""
        return min(self.rules.refresh_s, max(0.5, voice.seconds / 2))

    def _match(self, window: Window, followed: Sequence[int]) -> list[int]:
        """Numbers of the window's local speakers; voices are made, and learn.

        Somebody who was heard too briefly to be told from others is nobody (0) until more is heard: better than a name
        that is taken back. Two local speakers are two voices, unless the network split one.
        """
        embedded, rules = window.embedded, self.rules
        clear = lone(window.active) & newest(window.active)
        talking = [local for local in range(LOCALS) if window.active[:, local].any()]
        numbers = [0] * LOCALS
        for local in talking:
            if not embedded[local]:
                numbers[local] = followed[local]
        asked = [local for local in talking if not numbers[local]]
        free = [v for v in self._s.voices if v.number not in numbers]
        scores = np.zeros((len(asked), len(free)))
        for row, local in enumerate(asked):
            for column, voice in enumerate(free):
                same = voice.number == followed[local]
                cosine = float(window.embeddings[local] @ voice.unit) if embedded[local] else -0.5
                scores[row, column] = cosine + (STAY if same else 0.0)
        for row, column in assign(scores):
            local, voice, score = asked[row], free[column], scores[row, column]
            sure = score >= 1 - rules.threshold or self._full
            if sure or (not (self._enough(clear[:, local]) and embedded[local]) and score >= rules.perhaps):
                numbers[local] = voice.number
        for local in asked:
            if not numbers[local] and embedded[local]:
                taken = [v for v in self._s.voices if v.number in numbers]
                near = [(float(window.embeddings[local] @ v.unit), v.number) for v in taken]
                if near and max(near)[0] >= rules.split:
                    numbers[local] = max(near)[1]
        for local in asked:
            may = not self._s.voices or self._enough(clear[:, local])
            if not numbers[local] and embedded[local] and may and not self._full:
                self._s.born += 1
                self._s.voices.append(
                    Heard(number=self._s.born, total=bytes(4 * window.embeddings.shape[1]), seconds=0.0, upto=0)
                )
                numbers[local] = self._s.born
        for local in asked:
            voice_now = self._voice(numbers[local])
            if voice_now is None or not embedded[local]:
                continue
            weight = self._fresh(voice_now, window.first, clear[:, local])
            if weight > 0:
                voice_now.hear(window.embeddings[local], weight, window.first + len(window.active))
        return numbers

    @property
    def _full(self) -> bool:
        return len(self._s.voices) >= self.rules.cap

    def _enough(self, clear: npt.NDArray[np.bool_]) -> bool:
        """To be a new voice."""
        return bool(clear.sum() >= round(self.rules.new_s * SAMPLE_RATE / FRAME))
