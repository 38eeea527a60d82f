"""Who speaks now: local speakers of overlapping windows matched to the voices of a stream. Pure; no model, no clock.

In: windows that end at hops, in order, with what the models heard in them (`speaker_models.Ears`). Out: turns, once
they lie far enough in the past that later windows would hardly change them. `Voices.encode` is all that must travel
with the position: the same windows give the same turns wherever it was taken up. After Coria et al. 2021,
"Overlap-aware low-latency online speaker diarization based on end-to-end local segmentation"; here a local speaker is
also followed from window to window by when it speaks, so that few windows need an embedding.

Places in time are sample numbers of the stream; hops, windows and turns begin and end on multiples of FRAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import SAMPLE_RATE, Span
from workers.matching import assign

if TYPE_CHECKING:
    from workers.clustering import Settled

FRAME = 270  # samples; one output frame of the segmentation network
LOCALS = 3  # speakers that the network tells apart within a window
WINDOW = 592 * FRAME  # samples heard at once: 10 s
LEAD = 2  # frame i of a window is the frame of the stream that begins about `start + (i + LEAD) * FRAME`
CAP = 32  # voices of a stream whose number is not known: its state must stay small
GAP = 60  # frames: a pause of a second
ENOUGH = 5 * SAMPLE_RATE  # samples embedded at most: more tells hardly more of a voice, and takes longer
BRIEF = 15  # frames of speech alone: with less there is no embedding

Floats = npt.NDArray[np.float32]
Active = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint8]


def on_grid(samples: float) -> int:
    """The nearest number of samples that is a multiple of FRAME."""
    return round(samples / FRAME) * FRAME


def seconds(frames: float) -> float:
    return frames * FRAME / SAMPLE_RATE


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided how; docs/decisions/speakers.md has the figures. `speakers.*` settings are mapped to these."""

    most: int = 0  # speakers of a stream, where known; 0: not known
    latency: int = on_grid(1.5 * SAMPLE_RATE)  # samples between a window's end and what it settles
    threshold: float = 0.55  # cosine distance above which a voice is a new one
    piece: int = on_grid(2.0 * SAMPLE_RATE)  # an open turn is told in pieces of at most about so many samples
    refresh_s: float = 1.0  # of new speech alone, then a voice that is being followed is embedded again
    new_s: float = 1.0  # of speech alone: less does not make a new voice when there are others
    together: float = 0.85  # distance of two clusters' centroids up to which re-clustering takes them for one voice
    least_s: float = 2.0  # of speech: a smaller cluster is given to the nearest larger one

    @property
    def cap(self) -> int:
        return min(self.most, CAP) if self.most else CAP


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
        return cls(kept.start, kept.samples, _unpacked(kept.active, kept.frames), embeddings)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    start: int
    samples: int
    frames: int
    active: bytes
    which: list[bool]
    dimension: int
    embeddings: bytes


def _unpacked(data: bytes, frames: int) -> Active:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=frames * LOCALS)
    return bits.reshape(frames, LOCALS).astype(np.bool_)


class Turn(NamedTuple):
    """FINAL. A stretch of one speaker. A long turn comes in pieces that touch each other."""

    span: Span
    speaker: str  # S1, S2, … in the order of their first appearance in the stream; never used twice


class Voice(NamedTuple):
    """FINAL. One speaker of the stream so far."""

    speaker: str
    centroid: Floats  # (dimension,), of unit length
    seconds: float  # of speech that it was made from


def name(number: int) -> str:
    return f"S{number}"


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


class State(msgspec.Struct, kw_only=True):
    """What travels with the position. Votes are for the frames from `settled` on, one row for each number."""

    settled: int = 0  # frame of the stream
    confirmed: int = 0  # by a clustering
    born: int = 0
    voices: list[Heard] = []
    before: Before | None = None
    windows: bytes = b""  # per frame: how many windows heard it
    speakers: bytes = b""  # and how many speakers they heard in it, all together
    votes: dict[int, bytes] = {}
    open: dict[int, int] = {}  # number -> frame that its turn (or the piece that is not told) began in


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
            numbers = self._match(window)
            self._vote(window, numbers)
            packed = np.packbits(newest(window.active)).tobytes()
            self._s.before = Before(
                first=window.first, frames=len(window.active), active=packed, numbers=[int(n) for n in numbers]
            )
        return self._settle((upto - self.rules.latency) // FRAME)

    def finish(self, end: int) -> list[Turn]:
        """The stream ended: all the rest, up to `end`."""
        turns = self._settle(-(-end // FRAME))
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
            self._rename({a: b for a, b in zip(old, new, strict=True) if a and b and a != b})

    def _rename(self, names: dict[int, int]) -> None:
        """Speakers of what is not settled yet are called otherwise."""
        s, votes, begun = self._s, dict[int, bytes](), dict[int, int]()
        for number, data in s.votes.items():
            new = names.get(number, number)
            votes[new] = _sum(votes[new], data) if new in votes else data
        for number, begin in s.open.items():
            new = names.get(number, number)
            begun[new] = min(begin, begun.get(new, begin))
        s.votes, s.open = votes, begun

    # Who is it?

    def _voice(self, number: int) -> Heard | None:
        return next((v for v in self._s.voices if v.number == number), None)

    def _followed(self, first: int, active: Active) -> list[int]:
        """Numbers that local speakers have from the window before; 0: none."""
        before = self._s.before
        if before is None:
            return [0] * LOCALS
        past = followed(first, active, before.first, _unpacked(before.active, before.frames))
        return [before.numbers[p] if p >= 0 else 0 for p in past]

    def _fresh(self, voice: Heard, first: int, clear: npt.NDArray[np.bool_]) -> float:
        """Seconds of speech alone since it was embedded."""
        return seconds(int(clear[max(0, voice.upto - first) :].sum()))

    def _refresh(self, voice: Heard) -> float:
        """A voice that is hardly known is looked at sooner."""
        return min(self.rules.refresh_s, max(0.5, voice.seconds / 2))

    def _match(self, window: Window) -> list[int]:
        """Numbers of the window's local speakers; voices are made, and learn."""
        stretches = newest(window.active)
        followed, embedded, rules = self._followed(window.first, stretches), window.embedded, self.rules
        clear = lone(window.active) & stretches
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
            local, voice = asked[row], free[column]
            enough = clear[:, local].sum() >= self._frames(rules.new_s)
            if scores[row, column] >= 1 - rules.threshold or not (enough and embedded[local]) or self._full:
                numbers[local] = voice.number
        for local in asked:
            if not numbers[local] and embedded[local] and not self._full:
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

    @staticmethod
    def _frames(s: float) -> int:
        return round(s * SAMPLE_RATE / FRAME)

    # When?

    def _vote(self, window: Window, numbers: Sequence[int]) -> None:
        s = self._s
        skip = max(0, s.settled - window.first)
        active, stretches = window.active[skip:], newest(window.active)[skip:]
        begin = window.first + skip - s.settled
        end = begin + len(active)
        size = max(end, len(s.windows))

        def added(old: bytes, more: npt.NDArray[np.bool_] | Counts) -> bytes:
            out = np.zeros(size, np.uint8)
            out[: len(old)] = np.frombuffer(old, np.uint8)
            out[begin:end] += more.astype(np.uint8)
            return out.tobytes()

        s.windows = added(s.windows, np.ones(len(active), np.uint8))
        s.speakers = added(s.speakers, active.sum(axis=1).astype(np.uint8))
        s.votes = {n: added(v, np.zeros(len(active), np.uint8)) for n, v in s.votes.items()}
        for local, number in enumerate(numbers):
            if number:
                s.votes[number] = added(s.votes.get(number, b""), stretches[:, local])

    def _settle(self, upto: int) -> list[Turn]:
        """Decide the frames before `upto`."""
        s = self._s
        n = upto - s.settled
        if n <= 0:
            return []
        count = min(n, len(s.windows))
        n = min(n, count + 1)  # behind that nobody speaks, be it for hours
        windows = np.frombuffer(s.windows, np.uint8)[:count].astype(np.float32)
        speakers = np.frombuffer(s.speakers, np.uint8)[:count]
        how_many = np.rint(speakers / np.maximum(windows, 1)).astype(int)
        numbers = sorted(s.votes)
        votes = np.zeros((len(numbers), n), np.int32)
        for row, number in enumerate(numbers):
            votes[row, :count] = np.frombuffer(s.votes[number], np.uint8)[:count]
        on = chosen(votes, np.pad(how_many, (0, n - count)))
        turns = []
        for row, number in enumerate(numbers):
            turns += self._turns(number, on[row])
        for number in [x for x in s.open if x not in s.votes]:
            turns += self._turns(number, np.zeros(n, np.bool_))
        s.settled = upto
        s.windows, s.speakers = s.windows[n:], s.speakers[n:]
        s.votes = {number: v[n:] for number, v in s.votes.items() if any(v[n:])}
        return sorted(turns)

    def _turns(self, number: int, on: npt.NDArray[np.bool_]) -> list[Turn]:
        """What of a speaker's turns is told now, of the frames from `settled` on."""
        s, out = self._s, []
        before = number in s.open
        edges = np.flatnonzero(np.diff(np.concatenate([[before], on]).astype(np.int8)))
        for edge in edges:
            at = s.settled + int(edge)
            if number in s.open:
                begin = s.open.pop(number)
                if begin < at:
                    out.append(Turn((begin * FRAME, at * FRAME), name(number)))
            else:
                s.open[number] = at
        end = s.settled + len(on)
        if number in s.open and (end - s.open[number]) * FRAME >= self.rules.piece:
            out.append(Turn((s.open[number] * FRAME, end * FRAME), name(number)))
            s.open[number] = end
        return out


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


def _sum(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, np.uint8) + np.frombuffer(b, np.uint8)).tobytes()


SAME = 0.8  # share of their speech in the frames of both that local speakers of two windows have together
STAY = 0.1  # cosine: by so much another voice must be nearer than the one that was followed


def chosen(votes: npt.NDArray[np.generic], how_many: npt.NDArray[np.int_]) -> Active:
    """(rows, frames): for each frame the rows with the most votes, as many as speak in it; the first of equals."""
    order = np.argsort(-votes.astype(np.float32), axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(votes))[:, None], axis=0)
    on: Active = (rank < how_many[None]) & (votes.astype(np.float32) > 0)
    return on
