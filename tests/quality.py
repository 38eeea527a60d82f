"""How good captions are: recordings through a whole running system, held against what is said in them and when.

    heard = hear(processes, settings, {"jfk": path, ...}); heard["jfk"].text, .words, .suppressed, .silent

A figure needs a reference: the words that are said (tests.speech), openai-whisper called directly on the same samples
(`Direct`), and the bounds of each clip's energy (`sound_bounds`), because no recording here comes with word times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import messages as m
from common import models
from common.feed_client import FeedClient
from common.settings import Settings, Source
from tests.conftest import Processes, wait_for
from tests.speech import RATE, Samples, words, write_wav
from tests.system import TILES, System, assert_whole, body, quiet

EDGE_S = 0.3  # how far a word's edge may be from the sound's
BELOW_PEAK_DB = 25.0  # sound: see sound_bounds
FRAME = RATE // 100  # 10 ms
SUSTAINED = 3  # frames


class Heard(NamedTuple):
    """What the journal holds about one recording."""

    end: int
    transcripts: list[m.Transcript]
    suppressed: list[m.Suppressed]
    silent: list[m.Span]
    coverage: m.Coverage  # the sums of the feed's beat

    @property
    def text(self) -> str:
        return " ".join(t.text for t in self.transcripts)

    @property
    def words(self) -> list[m.Word]:
        return [w for t in self.transcripts for w in t.words]

    def within(self, span: m.Span) -> list[m.Word]:
        """The words spoken during `span`, half a second around it included."""
        return [w for w in self.words if w.span[1] > span[0] - RATE // 2 and w.span[0] < span[1] + RATE // 2]


def hear(
    processes: Processes, settings: Settings, recordings: Mapping[str, Path], timeout_s: float = 240.0
) -> dict[str, Heard]:
    """Each recording as one source of one running system, as fast as it goes; by source name."""
    sources = [Source(name=name, kind="file", path=str(path), pace="max") for name, path in recordings.items()]
    system = System(processes, settings, *sources)
    launcher = system.start()
    beats = FeedClient(system.settings, kinds=())
    coverage: dict[str, m.Coverage] = {}

    def finished() -> bool:
        assert launcher.alive, launcher.output()
        for beat in beats.poll(0.5):
            if isinstance(beat, m.Beat):
                coverage.update({s: b.coverage for s, b in beat.streams.items() if "stream_ended" in b.heads})
        return len(coverage) == len(sources)

    wait_for(finished, timeout_s, f"{len(sources)} recordings to be transcribed")
    beats.close()
    events = system.journal()
    system.stop()
    found = {}
    for e in events:
        if e.kind == "stream_started":
            mine = [body(x) for x in events if x.stream == e.stream and x.kind in TILES]
            assert not [b for b in mine if isinstance(b, m.Gap)], f"{e.stream} has gaps"
            found[body(e).source] = Heard(
                assert_whole(events, e.stream),
                [b for b in mine if isinstance(b, m.Transcript)],
                [b for b in mine if isinstance(b, m.Suppressed)],
                [b.span for b in mine if isinstance(b, m.Silence)],
                coverage[e.stream],
            )
    return found


class Direct:
    """openai-whisper itself, called with its defaults on a whole recording."""

    def __init__(self, settings: Settings, name: str) -> None:
        import torch
        import whisper
        from safetensors.torch import load_file

        folder = models.available(settings, name, check=True)
        self._model = whisper.model.Whisper(whisper.ModelDimensions(**models.stored(folder).dims))
        weights = {k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}
        self._model.load_state_dict(weights, strict=False)
        self._model.eval()
        self._torch, self._whisper = torch, whisper

    def __call__(self, audio: Samples, language: str | None = None) -> str:
        self._torch.manual_seed(0)  # its fallback is sampled
        result: dict[str, Any] = self._whisper.transcribe(
            self._model, audio.astype(np.float32) / 32768, language=language, fp16=False
        )
        return str(result["text"])


class Tape:
    """Recordings put one after the other at known samples, in a quiet room."""

    def __init__(self, clips: Iterable[tuple[str, Samples]], seed: int = 1) -> None:
        self.places: dict[str, tuple[m.Span, Samples]] = {}
        pieces: list[Samples] = []
        at = 0
        pauses = np.random.default_rng(seed)
        for name, clip in clips:
            pause = quiet(float(pauses.uniform(1.5, 3.5)), seed=at + 1)
            pieces += [pause, clip]
            at += len(pause) + len(clip)
            self.places[name] = ((at - len(clip), at), clip)
        self.samples = np.concatenate([*pieces, quiet(2.0)])

    def write(self, path: Path) -> Path:
        write_wav(path, self.samples)
        return path


def sounding(clip: Samples, below_peak_db: float = BELOW_PEAK_DB) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """10-ms frames (n,) whose RMS is within `below_peak_db` of the loudest one's.

    25 dB, because the room is not far below it in these recordings: at -32 dB with Kennedy, at -35 dB with LibriVox.
    """
    frames = clip[: len(clip) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    level = np.sqrt(np.square(frames).mean(axis=1))
    return np.asarray(level >= level.max() * 10 ** (-below_peak_db / 20))


def sound_bounds(clip: Samples, below_peak_db: float = BELOW_PEAK_DB) -> m.Span:
    """First and last sample of sound: of the first and last 30 ms in which every frame sounds."""
    sound = sounding(clip, below_peak_db)
    held = np.flatnonzero(np.convolve(sound, np.ones(SUSTAINED), "valid") == SUSTAINED)
    return int(held[0]) * FRAME, int(held[-1] + SUSTAINED) * FRAME


def phrases(clip: Samples, pause_s: float = 0.25, least_s: float = 1.0) -> list[Samples]:
    """A long recording cut where nobody speaks for `pause_s`, with 120 ms around each phrase."""
    sound = np.flatnonzero(sounding(clip, 32.0))
    cuts = np.flatnonzero(np.diff(sound) > pause_s * 100)
    starts, ends = sound[np.r_[0, cuts + 1]], sound[np.r_[cuts, len(sound) - 1]] + 1
    return [
        clip[max(0, (a - 12) * FRAME) : (b + 12) * FRAME]
        for a, b in zip(starts, ends, strict=True)
        if b - a >= least_s * 100
    ]


def edge_errors(heard: Heard, tape: Tape, below_peak_db: float = BELOW_PEAK_DB) -> dict[str, tuple[float, float]]:
    """Seconds from the sound's start to the first word's, and from its end to the last word's, for each clip.

    A clip without words is infinitely wrong.
    """
    errors = {}
    for name, (span, clip) in tape.places.items():
        start, end = sound_bounds(clip, below_peak_db)
        said = heard.within(span)
        first = said[0].span[0] - span[0] - start if said else np.inf
        last = said[-1].span[1] - span[0] - end if said else np.inf
        errors[name] = (first / RATE, last / RATE)
    return errors


def share_of_edges(errors: dict[str, tuple[float, float]]) -> float:
    return float(np.mean([abs(e) <= EDGE_S for pair in errors.values() for e in pair]))


def disordered(heard: Heard) -> list[m.Word]:
    """Words that end before they begin, begin before their predecessor ends, or leave their transcript's span."""
    wrong, at = [], 0
    for t in heard.transcripts:
        for w in t.words:
            if not (max(at, t.span[0]) <= w.span[0] <= w.span[1] <= t.span[1]):
                wrong.append(w)
            at = w.span[1]
    return wrong


def silenced_s(heard: Heard, clip: Samples, at: int = 0) -> tuple[float, float]:
    """(seconds of sound in `clip`, placed at sample `at`, that were called silence, all its seconds of sound)"""
    sound = sounding(clip)
    silent = np.zeros(len(sound), np.bool_)
    for start, end in heard.silent:
        silent[max(0, -(-(start - at) // FRAME)) : max(0, (end - at) // FRAME)] = True
    return float((sound & silent).sum()) / 100, float(sound.sum()) / 100


def suppressed_words(heard: Heard) -> int:
    """Words that were decoded and not shown, at least one for each place where that happened."""
    return sum(max(1, len(words(s.text))) for s in heard.suppressed)


def phantom_words(heard: Heard) -> int:
    """All words of captions, for a recording in which nobody speaks."""
    return len(words(heard.text))


def unclassified(heard: Heard) -> int:
    """Samples by which the feed's sums of the classes differ from the length of the audio, or that wait."""
    c = heard.coverage
    return abs(heard.end - (c.text + c.silence + c.suppressed + c.gap)) + c.pending
