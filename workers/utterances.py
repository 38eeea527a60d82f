"""One stream cut into utterances and silence: reads the backlog from the journal's position, runs the VAD, holds cuts.

In: samples, holes, the end of the stream. Out: `Work` for the model, or a `Step` (silence, a hole). The VAD's state
travels with the position, so a process that starts at any place of the journal cuts exactly as one that never died.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from common import backlog
from common import messages as m
from workers.hearing import Session, Work
from workers.interim import UnderWay
from workers.steps import Step
from workers.vad import FRAME, Cut, Rules, Segmenter, Vad

SCAN_SAMPLES = 30 * m.SAMPLE_RATE  # audio looked at before others get their turn


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What travels with the audio position: the VAD's recurrent state and the text before."""

    vad: bytes = b""
    prompt: tuple[int, ...] = ()
    prompt_end: int = 0
    model: str = ""  # whose tokens `prompt` are


_state = msgspec.msgpack.Decoder(State)


def unpack(state: bytes) -> State:
    return _state.decode(state) if state else State()


class Utterances(Session):
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
        self._states = [np.frombuffer(saved, np.float32) if saved else self._vad.start()]  # before frame 0, 1, 2, ...
        self._pcm = bytearray()  # s16le from `position` on
        self._segmenter = Segmenter(self._rules)
        self._cut: Cut | None = None
        self._final = 0  # a hole or the end of the stream stands at this sample; 0: not in sight
        self._voice_end = self.position  # first sample after the last frame of speech

    @property
    def _heard(self) -> int:
        return self.position + len(self._pcm) // backlog.BYTES

    @property
    def reached(self) -> int:
        # A cut that waits is a complete utterance nobody has processed: the lag is its age.
        cut = self._cut  # another thread asks
        return self.position + cut.end * FRAME if cut else self._heard

    @property
    def silence_s(self) -> float:
        return 0.0 if self._cut else backlog.seconds(self._heard - self._voice_end)

    def scan(self) -> Step | Work | None:
        budget = SCAN_SAMPLES
        while self._cut is None:
            if len(self._segmenter.probs) < len(self._pcm) // (FRAME * backlog.BYTES):
                self._frame()
                continue
            if self._final:
                return self._finish()
            if budget <= 0:
                break
            chunk = self._reader.read(self._heard, min(budget, 16 * FRAME))
            if chunk.pcm:
                self._pcm += chunk.pcm
                budget -= len(chunk.pcm) // backlog.BYTES
            elif chunk.hole_end > chunk.start or (self.meta.ended and self._heard >= self.meta.end > self.position):
                self._final = self._heard
                if self._heard == self.position:
                    return self._hole(chunk)
            else:
                return None
        return self._work(self._cut) if self._cut else None

    def under_way(self) -> UnderWay | None:
        if self._cut or not self._segmenter.speaking:
            return None
        origin, (onset, end) = self.position, self._segmenter.voice
        first, heard = max(0, onset - self._rules.pre_roll) * FRAME, len(self._segmenter.probs) * FRAME
        return UnderWay(
            stream=self.meta.stream,
            start=origin + first,
            onset=origin + onset * FRAME,
            voice_end=origin + end * FRAME,
            heard=origin + heard,
            pcm=bytes(self._pcm[first * 2 : heard * 2]),
        )

    def _frame(self) -> None:
        k = len(self._segmenter.probs)
        raw = bytes(self._pcm[k * FRAME * 2 : (k + 1) * FRAME * 2])
        frame = np.frombuffer(raw.ljust(FRAME * 2, b"\0"), "<i2").astype(np.float32) / 32768.0
        p, state = self._vad.step(frame, self._states[k])
        self._states.append(state)
        if p >= self._rules.ends_below:
            self._voice_end = self.position + (k + 1) * FRAME
        self._cut = self._segmenter.push(p)

    def _finish(self) -> Step | Work:
        """The audio stops at `_final`: hear the last, short frame and cut what is left."""
        if len(self._segmenter.probs) * FRAME < self._final - self.position:
            self._frame()
        cut = self._cut or self._segmenter.finish()
        assert cut is not None  # something was heard, else we would be at the hole itself
        self._cut = cut
        return self._work(cut)

    def _work(self, cut: Cut) -> Step | Work:
        def sample(frame: int) -> int:
            return min(self.position + frame * FRAME, self._final or self._heard)

        start, end = sample(cut.start), sample(cut.end)
        state = self._states[cut.end]
        if self._final and end == self._final:
            state = self._vad.start()  # what comes after a hole is heard afresh
        if cut.start == cut.end:
            kept = msgspec.structs.replace(unpack(self.at.state), vad=state.tobytes())
            return Step(positions={"audio": end}, events=(m.Silence(span=(self.position, end)),), state=m.encode(kept))
        return Work(
            stream=self.meta.stream,
            span=(self.position, end),
            speech=(start, end),
            voiced=(sample(cut.voiced[0]), sample(cut.voiced[1])),
            pcm=bytes(self._pcm[(start - self.position) * 2 : (end - self.position) * 2]),
            state=state.tobytes(),
        )

    def _hole(self, chunk: backlog.Chunk) -> Step:
        self._final = 0
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
        return Step(positions={"audio": end}, events=(gap,), state=m.encode(State(vad=self._vad.start().tobytes())))

    def moved(self, at: m.At) -> None:
        cut, position = self._cut, at.positions["audio"]
        if cut is None or (self._final and position >= self._final):
            self._begin(at)
            return
        self.at, self.position = at, position
        del self._pcm[: cut.end * FRAME * 2]
        del self._states[: cut.end]
        # Frames already heard are cut anew from here, exactly as a process that starts here would do.
        self._cut = self._segmenter.rebase(cut.end)
