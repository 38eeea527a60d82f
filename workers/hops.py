"""One stream as the diarizer hears it: hops on a fixed grid of its samples, and a window of sound before each.

In: samples, holes, the end of the stream. Out: a `Hop` for the models where voice activity was heard since the last
one, else a `Step` (turns that are over, silence, a hole), and at times what a `Settling` found. What travels with the
position is in `State`; after each step the session begins anew from it, so one that was killed goes on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from common import backlog
from common import messages as m
from workers.clustering import Settled
from workers.session import Session, Work
from workers.settling import Settling
from workers.steps import Step
from workers.turns import Turn
from workers.vad import FRAME as VAD_FRAME
from workers.vad import Vad
from workers.voices import Rules, Voices
from workers.windows import FRAME, WINDOW

QUIET_SAMPLES = 5 * m.SAMPLE_RATE  # silence that is journaled at once
DEAF_SAMPLES = 30 * m.SAMPLE_RATE  # given up at once where sound cannot even be scanned
READ_SAMPLES = 16 * VAD_FRAME
SETTLE_SHARE = 20  # a clustering costs what the stream is long: the next one waits for this part of that
SETTLE_LONG = 8 * 3600 * m.SAMPLE_RATE  # longer than this counts as this


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What travels with the audio position."""

    vad: bytes = b""  # the network's state before the frame that holds the position
    voices: bytes = b""  # centroids, turns that are not over; in the space of `model`
    model: str = ""
    settled: int = 0  # where the last clustering was done
    windows: int = 0  # heard since then
    over: bool = False  # the end of the stream was heard
    named: dict[str, str] = {}  # speakers that a voiceprint was found for


_state = msgspec.msgpack.Decoder(State)


def unpack(state: bytes) -> State:
    return _state.decode(state) if state else State()


class Hop(Work, frozen=True, kw_only=True):
    """A window that ends where the position will be."""

    quiet: int = 0  # the last hop before it in which nobody spoke, when the journal has not been told of it
    start: int  # of the window
    upto: int  # its end; that of `span`, save where the stream ends between two frames
    pcm: bytes  # s16le of the window
    vad: bytes  # as in `State`, at the end of `span`
    last: bool = False  # the stream ends with it


class Hearer(msgspec.Struct, frozen=True, kw_only=True):
    """What sessions have in common."""

    vad: Vad
    model: str
    rules: Rules
    hop: int  # samples, a multiple of FRAME
    voiced_from: float  # least probability of speech
    settle_every: int  # samples, at least


class Hops(Session[Hop]):
    """See the module. `stride` says how many hops the next step may have; `settling` begins a clustering."""

    def __init__(
        self,
        folder: Path,
        meta: backlog.Meta,
        at: m.At,
        hearer: Hearer,
        stride: Callable[[Hops], int],
        settling: Callable[[Hops], Settling],
    ) -> None:
        super().__init__(folder, meta, at)
        self.hearer = hearer
        self.stride = 1  # of the step under way
        self._stride, self._settling = stride, settling
        self._reader = backlog.Reader(folder)
        self._begin(at)

    def _begin(self, at: m.At) -> None:
        """Go on from the place of `at`: nothing is known of what lies behind it."""
        self.at, self.state = at, unpack(at.state)
        self.position = at.positions.get("audio", 0)
        self._found: Hop | None = None
        self._quiet = 0
        self._voiced = False
        self._job: Settling | None = None
        self._target = 0  # end of the hop under way; 0: not chosen yet
        self._first = max(0, self.position - WINDOW)  # sample
        self._pcm = bytearray()  # s16le from `_first` on; empty until something is there to be heard
        self._frame = self.position // VAD_FRAME  # the next one
        saved = self.state.vad
        self._vad = np.frombuffer(saved, np.float32) if saved else self.hearer.vad.start()

    @property
    def heard(self) -> int:
        return max(self.position, self._first + len(self._pcm) // backlog.BYTES)

    @property
    def reached(self) -> int:
        found = self._found  # another thread asks
        return found.span[1] if found else self.heard

    @property
    def done(self) -> bool:
        return super().done and self.state.over and not self.settling_due

    @property
    def scanning(self) -> str:
        return "settling" if self.settling_due else super().scanning

    @property
    def settling_due(self) -> bool:
        if not self.state.windows or self.position <= self.state.settled:
            return False
        apart = max(self.hearer.settle_every, min(self.state.settled, SETTLE_LONG) // SETTLE_SHARE)
        return self.state.over or self.position - self.state.settled >= apart

    def voices(self) -> Voices:
        """As they stand in the journal. Of another model's voices nothing is left but which ids are taken."""
        return voices_of(self.state, self.hearer)

    # Scan

    def scan(self) -> Step | Hop | None:
        if self._found:
            return self._found
        if self.settling_due:
            return self._settle()
        if not self._pcm:
            self._look_back()
        while True:
            if not self._target:
                self.stride = self._stride(self)
                hop = self.hearer.hop
                self._target = (self.heard // hop + self.stride) * hop
            if self.heard >= self._target:
                found = self._hop()
                if found:
                    return found
                continue
            chunk = self._reader.read(self.heard, min(READ_SAMPLES, self._target - self.heard))
            if chunk.pcm:
                self._hear(chunk.pcm)
            elif chunk.hole_end > chunk.start:
                if step := self._hole(chunk.hole_end):
                    return step
            elif self.meta.ended and self.heard >= self.meta.end and not self.state.over:
                return self._finish()
            else:
                return None

    def _look_back(self) -> None:
        """The window before the position; what is not there any more is silent."""
        while (at := self._first + len(self._pcm) // backlog.BYTES) < self.position:
            chunk = self._reader.read(at, self.position - at)
            missing = min(self.position, chunk.hole_end) - at if chunk.hole_end > at else self.position - at
            self._pcm += chunk.pcm or bytes(missing * backlog.BYTES)

    def _hear(self, pcm: bytes) -> None:
        self._pcm += pcm
        while (self._frame + 1) * VAD_FRAME <= self.heard:
            at = (self._frame * VAD_FRAME - self._first) * backlog.BYTES
            frame = np.frombuffer(bytes(self._pcm[at : at + VAD_FRAME * backlog.BYTES]), "<i2").astype(np.float32)
            p, self._vad = self.hearer.vad.step(frame / 32768.0, self._vad)
            self._voiced = self._voiced or p >= self.hearer.voiced_from
            self._frame += 1

    def _hop(self) -> Step | Hop | None:
        """The sound up to a hop is here: a window if somebody spoke; else what is told of silence, if that is due."""
        upto, self._target = self._target, 0
        if self._voiced:
            return self._window(upto)
        voices = self.voices()
        turns = voices.take(None, upto)
        if turns or upto - self.position >= QUIET_SAMPLES:
            return self._told(upto, turns, voices)
        self._quiet = upto
        return None

    def _window(self, upto: int, end: int = 0) -> Hop:
        """`end`: of the stream, if it has come."""
        start = max(0, upto - WINDOW)
        a, b = ((sample - self._first) * backlog.BYTES for sample in (start, upto))
        self._found = Hop(
            stream=self.meta.stream,
            span=(self.position, max(upto, end)),
            quiet=self._quiet,
            start=start,
            upto=upto,
            last=end > 0,
            pcm=bytes(self._pcm[a:b]),
            vad=self._vad.tobytes(),
        )
        return self._found

    def _told(self, upto: int, turns: list[Turn], voices: Voices, over: bool = False) -> Step:
        kept = replace(self.state, vad=self._vad.tobytes(), over=over, **heard_by(voices, self.hearer))
        return Step(positions={"audio": upto}, events=told(turns), state=m.encode(kept))

    def _hole(self, end: int) -> Step | None:
        """Nothing is there until sample `end`: silence up to the next hop, or as far as hops go."""
        if self._voiced or end < self._target:
            self._hear(bytes((min(end, self._target) - self.heard) * backlog.BYTES))
            return None
        self._vad = self.hearer.vad.start()
        voices, upto = self.voices(), end // self.hearer.hop * self.hearer.hop
        return self._told(upto, voices.take(None, upto), voices)

    def _finish(self) -> Step | Hop:
        """The stream has ended: a last window if somebody spoke, then what is open."""
        last = self.meta.end // FRAME * FRAME
        if self._voiced and last > self.position:
            return self._window(last, self.meta.end)
        voices = self.voices()
        return self._told(self.meta.end, voices.finish(self.meta.end), voices, over=True)

    # Settling, and what goes wrong

    def _settle(self) -> Step | None:
        """Begun when it is due; until its end there is nothing else to do, so that it changes the same everywhere."""
        if self._job is None:
            self._job = self._settling(self)
            self._job.start()
        if self._job.is_alive():
            return None
        job, self._job = self._job, None
        settled = job.outcome()
        if settled is None:
            return None
        voices = self.voices()
        voices.adopt(settled)
        return self._settled(voices, (*settled.relabels, *told(settled.turns, provisional=False)))

    def _settled(self, voices: Voices, events: tuple[m.Body, ...] = ()) -> Step:
        kept = replace(self.state, settled=self.position, windows=0, **heard_by(voices, self.hearer))
        return Step(positions={}, events=events, state=m.encode(kept))

    def deaf(self) -> Step | None:
        """Without a clustering that ended badly again and again; else without audio that did, which is one Gap."""
        if self.settling_due:
            return self._settled(self.voices())
        self._begin(self.at)
        start, end = self.position, self.position
        while end - start < DEAF_SAMPLES:
            chunk = self._reader.read(end, DEAF_SAMPLES - (end - start))
            if not chunk.pcm:
                break
            end = chunk.end
        if end == start:
            return None
        voices = self.voices()
        turns = voices.take(None, end // FRAME * FRAME)
        gap = m.Gap(span=(start, end), reason="failed", retryable=False)
        kept = replace(self.state, vad=self.hearer.vad.start().tobytes(), **heard_by(voices, self.hearer))
        return Step(positions={"audio": end}, events=(*told(turns), gap), state=m.encode(kept))

    def moved(self, at: m.At) -> None:
        self._begin(at)


def voices_of(state: State, hearer: Hearer) -> Voices:
    """Of another model's voices nothing is of use but which ids are taken."""
    voices = Voices.decode(state.voices, hearer.rules)
    if state.model in ("", hearer.model):
        return voices
    anew = Voices.decode(b"", hearer.rules)
    anew.adopt(Settled(born=voices.born))
    return anew


def heard_by(voices: Voices, hearer: Hearer) -> dict[str, Any]:
    """Fields of a `State`."""
    return {"voices": voices.encode(), "model": hearer.model}


def told(turns: Sequence[Turn], provisional: bool = True) -> tuple[m.SpeakerTurn, ...]:
    return tuple(m.SpeakerTurn(span=t.span, speaker=t.speaker, provisional=provisional) for t in turns)
