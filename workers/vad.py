"""Where speech is: Silero VAD frame by frame, and the rules that cut a stream into utterances and silence.

`Vad` is the network with its recurrent state in the caller's hands, so that a restart goes on bit for bit where the
journal stands. `Segmenter` is pure: cuts are a function of the frame probabilities since the last cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import SAMPLE_RATE
from common.settings import TranscriberSettings

FRAME = 512  # samples; Silero's window at 16 kHz
CONTEXT = 64  # samples of the frame before, which the network sees again
STATE = 2 * 128 + CONTEXT  # float32 values: LSTM (h, c), context
HYSTERESIS = 0.15  # speech ends below threshold minus this, as in Silero's own VADIterator
SMOOTH = 5  # frames averaged when the best pause is looked for
PAUSE = 0.35  # smoothed probability below which a place counts as a pause

Floats = npt.NDArray[np.float32]


class Vad:
    """Silero VAD (https://github.com/snakers4/silero-vad) as a function (frame, state) -> (probability, state)."""

    def __init__(self, torch: Any, path: Path) -> None:
        self._torch = torch
        # The profiling executor rewrites the graph after the first calls, which may change the last bits of a result.
        torch._C._jit_set_profiling_executor(False)
        self._net = torch.jit.load(str(path / "silero_vad.jit"))._model.eval()

    @staticmethod
    def start() -> Floats:
        return np.zeros(STATE, np.float32)

    def step(self, frame: Floats, state: Floats) -> tuple[float, Floats]:
        """`frame` (512,) in -1..1; returns P(speech) and the new state."""
        x = np.concatenate([state[-CONTEXT:], frame])
        p, lstm = self._net(
            self._torch.from_numpy(x[None]), self._torch.from_numpy(state[:-CONTEXT].reshape(2, 1, 128).copy())
        )
        return float(p), np.concatenate([lstm.numpy().ravel(), frame[-CONTEXT:]])


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The cutting rules in frames."""

    threshold: float
    pre_roll: int
    end_silence: int
    post_roll: int
    min_speech: int
    longest: int
    silence_run: int

    @property
    def ends_below(self) -> float:
        """Probability under which a frame is no longer speech."""
        return self.threshold - HYSTERESIS

    @classmethod
    def of(cls, s: TranscriberSettings) -> Rules:
        def frames(ms: float) -> int:
            return max(1, round(ms * SAMPLE_RATE / 1000 / FRAME))

        return cls(
            threshold=s.vad_threshold,
            pre_roll=frames(s.pre_roll_ms),
            end_silence=frames(s.end_silence_ms),
            post_roll=min(frames(s.post_roll_ms), frames(s.end_silence_ms)),
            min_speech=frames(s.min_speech_ms),
            longest=frames(s.max_utterance_s * 1000),
            silence_run=frames(s.silence_run_s * 1000),
        )


class Cut(NamedTuple):
    """Frames 0..start are silence, start..end an utterance (none when equal), voiced between the two of `voiced`."""

    start: int
    end: int
    voiced: tuple[int, int]


class Segmenter:
    """Fed one probability a frame; answers with a cut as soon as one is certain.

    Frames are counted from the last cut. After a cut the frames behind it are fed again by `rebase`: what follows
    depends on them alone, whether this process heard the frames before the cut or not.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.probs: list[float] = []
        self._run = 0  # frames of the speech run at the end that is not yet an utterance
        self._onset = -1  # first frame of the utterance under way
        self._last = -1  # its last frame of speech

    @property
    def speaking(self) -> bool:
        return self._onset >= 0

    @property
    def voice(self) -> tuple[int, int]:
        """First frame of the utterance under way, and the one after its last frame of speech so far."""
        return self._onset, self._last + 1

    def push(self, p: float) -> Cut | None:
        r, now = self.rules, len(self.probs)
        self.probs.append(p)
        low = r.ends_below
        if self._onset < 0:
            self._run = self._run + 1 if p >= (low if self._run else r.threshold) else 0
            if self._run < r.min_speech:
                if now + 1 >= r.silence_run + r.pre_roll + r.min_speech:
                    return Cut(r.silence_run, r.silence_run, (0, 0))
                return None
            self._onset = now + 1 - self._run
            self._last = now
        elif p >= low:
            self._last = now
        start = max(0, self._onset - r.pre_roll)
        if now - self._last >= r.end_silence:
            return Cut(start, self._last + 1 + r.post_roll, (self._onset, self._last + 1))
        if now + 1 - start >= r.longest:
            end = self._whole_run(self._best_pause(self._onset + r.longest // 3, now + 1), now + 1)
            return Cut(start, end, (self._onset, min(end, self._last + 1)))
        return None

    def finish(self) -> Cut | None:
        """The stream ends here: what is left, None when nothing is."""
        total = len(self.probs)
        if self._onset < 0:
            return Cut(total, total, (0, 0)) if total else None
        end = min(total, self._last + 1 + self.rules.post_roll)
        return Cut(max(0, self._onset - self.rules.pre_roll), end, (self._onset, self._last + 1))

    def rebase(self, end: int) -> Cut | None:
        """Forget the frames before `end`, hear the others again; a further cut among them comes at once."""
        rest = self.probs[end:]
        self.__init__(self.rules)  # type: ignore[misc]
        for i, p in enumerate(rest):
            cut = self.push(p)
            if cut:
                self.probs += rest[i + 1 :]  # not heard yet: they are fed again after this cut
                return cut
        return None

    def _whole_run(self, at: int, end: int) -> int:
        """The cut at frame `at` of `end`, moved where the sure speech behind it would be too short to be an utterance
        of its own, and would be lost: behind that, or before it while nobody knows how it goes on."""
        sure = [p >= self.rules.threshold for p in self.probs[:end]]
        if not (sure[at - 1] and (at == end or sure[at])):
            return at
        first = at
        while first > self._onset + 1 and sure[first - 1]:
            first -= 1
        last = at
        while last < end and sure[last]:
            last += 1
        if last - at >= self.rules.min_speech:
            return at
        return last if last < end else max(first, end - self.rules.min_speech)

    def _best_pause(self, first: int, end: int) -> int:
        """The frame in [first, end) after which to cut long speech: the latest pause, else the weakest place."""
        smooth = np.convolve(np.array(self.probs[first:end]), np.ones(SMOOTH) / SMOOTH, "same")
        smooth = smooth[SMOOTH // 2 : -(SMOOTH // 2)]  # the edges average over nothing
        pauses = np.flatnonzero(smooth < PAUSE)
        at = int(pauses[-1]) if len(pauses) else int(np.argmin(smooth))
        return first + SMOOTH // 2 + at + 1
