"""One stream cut into utterances and silence: reads the backlog from the journal's position, runs the VAD, holds cuts.

In: samples, holes, the end of the stream. Out: an `Utterance` for the model, or a `Step` (silence, a hole). The VAD's
state travels with the position, so a process that starts at any place of the journal cuts exactly as one that never
died. Who is late may look ahead at several finished cuts: they are the ones that would be found one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from common import backlog
from common import messages as m
from workers.interim import UnderWay
from workers.language import Belief
from workers.session import Speech, Utterance
from workers.steps import Step
from workers.vad import FRAME, Cut, Floats, Rules, Segmenter, Vad

SCAN_SAMPLES = 30 * m.SAMPLE_RATE  # audio looked at before others get their turn


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What travels with the audio position: the VAD's recurrent state, the text before, which language is spoken."""

    vad: bytes = b""
    prompt: tuple[int, ...] = ()
    prompt_end: int = 0
    model: str = ""  # whose tokens `prompt` are
    belief: Belief = Belief()


_state = msgspec.msgpack.Decoder(State)


def unpack(state: bytes) -> State:
    return _state.decode(state) if state else State()


class Found(NamedTuple):
    """A cut in samples of the stream: silence, then an utterance from `start` to `end` (none when they are equal)."""

    first: int
    start: int
    end: int
    voiced: m.Span
    state: Floats  # of the VAD at `end`
    certain: int  # the cut follows from the audio before this sample


class Utterances(Speech):
    """Scans one stream: voice activity from the journal's position on, cut into work."""

    def __init__(self, folder: Path, meta: backlog.Meta, at: m.At, vad: Vad, rules: Rules) -> None:
        super().__init__(folder, meta, at)
        self._reader = backlog.Reader(folder)
        self._vad, self._rules = vad, rules
        self._begin(at)

    def _begin(self, at: m.At) -> None:
        """Start over at the place of `at`: nothing heard beyond it."""
        self.at = at
        self.position = at.positions.get("audio", 0)
        saved = unpack(at.state).vad
        self._pcm = bytearray()  # s16le from `position` on
        self._found: list[Found] = []  # cuts that wait, from `position` on
        self._front = self.position  # where the last of them ends; frames are counted from here
        self._states = [np.frombuffer(saved, np.float32) if saved else self._vad.start()]  # before frame 0, 1, 2, ...
        self._segmenter = Segmenter(self._rules)
        self._final = 0  # a hole or the end of the stream stands at this sample; 0: not in sight
        self._voice_end = self.listened = self.position  # first sample after the last frame of speech

    @property
    def heard(self) -> int:
        return self.position + len(self._pcm) // backlog.BYTES

    @property
    def reached(self) -> int:
        # A cut that waits is a complete utterance nobody has processed: the lag is its age.
        waiting = self._found[:1]  # another thread asks
        return waiting[0].end if waiting else self.heard

    @property
    def silence_s(self) -> float:
        # An utterance that is not over is no silence yet, however long its pause: it would be decoded whole afterwards.
        if self._segmenter.speaking or self.owes:
            return 0.0
        return max(0.0, backlog.seconds(self.listened - self._voice_end))

    @property
    def owes(self) -> bool:
        return any(f.end > f.start for f in self._found)  # another thread asks

    def scan(self) -> Step | Utterance | None:
        if not self._found and (hole := self._find(SCAN_SAMPLES)):
            return hole
        return self._told(self._found[0]) if self._found else None

    def look_ahead(self, most: int, samples: int = SCAN_SAMPLES) -> bool:
        """Hear on until `most` cuts wait, `samples` at most. False: that many wait, or there is nothing to hear."""
        before, count = self.heard, len(self._found)
        while len(self._found) < most and self._found and (left := before + samples - self.heard) > 0:
            known = len(self._found), self.heard
            self._find(left)
            if known == (len(self._found), self.heard):
                break
        return self.heard > before or len(self._found) > count

    def waiting(self, most: int) -> list[Utterance]:
        """The utterances that were found right behind each other from the position on, `most` of them."""
        run: list[Utterance] = []
        for found in self._found[:most]:
            told = self._told(found)
            if not isinstance(told, Utterance):
                break  # a long silence
            run.append(told)
        return run

    def _find(self, budget: int) -> Step | None:
        """Hear on until another cut is certain, no more than `budget` samples. A Step: a hole at the position."""
        count = len(self._found)
        while len(self._found) == count:
            if len(self._segmenter.probs) < (self.heard - self._front) // FRAME:
                self._frame()
                continue
            if self._final:
                self._finish()
                break
            if budget <= 0:
                break
            chunk = self._reader.read(self.heard, min(budget, 16 * FRAME))
            if chunk.pcm:
                self._pcm += chunk.pcm
                budget -= len(chunk.pcm) // backlog.BYTES
            elif chunk.hole_end > chunk.start or (self.meta.ended and self.heard >= self.meta.end > self.position):
                if self.heard == self.position:
                    return self._hole(chunk)
                self._final = self.heard
            else:
                break
        return None

    def under_way(self) -> UnderWay | None:
        if self._found or not self._segmenter.speaking:
            return None  # nothing waits, so the segmenter counts from the position
        origin, (onset, end) = self.position, self._segmenter.voice
        first, heard = max(0, onset - self._rules.pre_roll) * FRAME, len(self._segmenter.probs) * FRAME
        return UnderWay(
            stream=self.meta.stream,
            start=origin + first,
            onset=origin + onset * FRAME,
            voice_end=origin + end * FRAME,
            heard=origin + heard,
            pcm=bytes(self._pcm[first * 2 : heard * 2]),
            language=self.meta.language,
            glossary=self.meta.glossary,
        )

    def _frame(self) -> None:
        k = len(self._segmenter.probs)
        at = self._front - self.position + k * FRAME
        raw = bytes(self._pcm[at * 2 : (at + FRAME) * 2])
        frame = np.frombuffer(raw.ljust(FRAME * 2, b"\0"), "<i2").astype(np.float32) / 32768.0
        p, state = self._vad.step(frame, self._states[k])
        self._states.append(state)
        if p >= self._rules.ends_below:
            self._voice_end = self._front + (k + 1) * FRAME
        self.listened = self._front + (k + 1) * FRAME
        self._take(self._segmenter.push(p))

    def _finish(self) -> None:
        """The audio stops at `_final`: hear the last, short frame and cut what is left."""
        count = len(self._found)
        if len(self._segmenter.probs) * FRAME < self._final - self._front:
            self._frame()
        if len(self._found) == count and self._front < self._final:
            self._take(self._segmenter.finish())

    def _take(self, cut: Cut | None) -> None:
        """Keep a cut, and look for others in the frames behind it that are heard already: they are cut anew from
        there, exactly as a process that starts there would do."""
        front = self._front

        def sample(frame: int) -> int:
            return min(front + frame * FRAME, self._final or self.heard)

        certain = sample(len(self._segmenter.probs))
        while cut:
            front = self._front
            end = sample(cut.end)
            # What comes after a hole is heard afresh.
            state = self._vad.start() if self._final and end == self._final else self._states[cut.end]
            voiced = sample(cut.voiced[0]), sample(cut.voiced[1])
            found = Found(front, sample(cut.start), end, voiced, state, certain)
            self._found = [*self._found, found]
            self._front = end
            if end == self._final:
                return
            del self._states[: cut.end]
            cut = self._segmenter.rebase(cut.end)

    def _told(self, found: Found) -> Step | Utterance:
        span = (found.first, found.end)
        if found.start == found.end:
            kept = msgspec.structs.replace(unpack(self.at.state), vad=found.state.tobytes())
            return Step(positions={"audio": found.end}, events=(m.Silence(span=span),), state=m.encode(kept))
        return Utterance(
            stream=self.meta.stream,
            span=span,
            speech=(found.start, found.end),
            certain=found.certain,
            voiced=found.voiced,
            pcm=bytes(self._pcm[(found.start - self.position) * 2 : (found.end - self.position) * 2]),
            state=found.state.tobytes(),
            language=self.meta.language,
            glossary=self.meta.glossary,
        )

    def _hole(self, chunk: backlog.Chunk) -> Step:
        span = (chunk.start, chunk.hole_end)
        kept = msgspec.structs.replace(unpack(self.at.state), vad=self._vad.start().tobytes())
        gap = m.Gap(span=span, reason=chunk.reason, retryable=False, segment=m.segment_id(self.meta.stream, span[0]))
        return Step(positions={"audio": chunk.hole_end}, events=(gap,), state=m.encode(kept))

    def deaf(self) -> Step | None:
        """Give up at most SCAN_SAMPLES that cannot be heard; what was captured by now is one Gap."""
        self._begin(self.at)
        start, end = self.position, self.position
        while end - start < SCAN_SAMPLES:
            chunk = self._reader.read(end, SCAN_SAMPLES - (end - start))
            if not chunk.pcm:
                break
            end = chunk.end
        if end == start:
            return None
        segment = m.segment_id(self.meta.stream, start)
        gap = m.Gap(span=(start, end), reason="failed", retryable=True, segment=segment)
        after = State(vad=self._vad.start().tobytes(), belief=unpack(self.at.state).belief)
        return Step(positions={"audio": end}, events=(gap,), state=m.encode(after))

    def moved(self, at: m.At) -> None:
        position = at.positions["audio"]
        ends = [f.end for f in self._found]
        if position not in ends or position == self._final:
            self._begin(at)
            return
        del self._pcm[: (position - self.position) * 2]
        self._found = self._found[ends.index(position) + 1 :]
        self.at, self.position = at, position
