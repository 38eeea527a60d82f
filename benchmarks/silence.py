"""Bursts begin in pauses: how often, and what captions gain by it beside a fixed timer.

`python benchmarks/silence.py [--minutes 12.5] [--interval 60] [--cases pauses,timer] [--rows FILE] [--json]`. A
telephone call of two and twelve excerpts of meetings (AMI), strung together with their own pauses, at real-time pace.
Real processes, Whisper tiny.en and SmolLM2-135M, on a simulated card that holds one of them. Settings are the defaults
but for the card's size, no diarizer, `summary.interval_s` 60 (so that there are enough bursts; every 20 s is more than
two cores can do beside captions) and `summary.max_new_tokens` 32 (a burst of seconds, as on a GPU). `timer`: the same,
but a burst begins as soon as it is due, whoever speaks and however late captions are, and the interval is such that
there are as many of them as in the case before it.

A burst begins when the arbiter revokes the transcriber's lease (its log, wall clock). What was to be heard then is
told by the audio alone: the anchors of the backlog say which sample was heard at that time, and it is silence when the
VAD, over the whole recording and apart from any run, hears no voice in the `gpu.silence_s` before that sample. Beside
it, the turns of the reference. A start by patience or overdue (`live.gpu` says so) is a miss even in a pause; one in
silence is none, however long it waited: minutes given back after a piece go on waiting. Caption delay: from
the end of the last word of a segment, when it was to be heard, to its Transcript in the hands of a subscriber.
Nothing is counted until the first minutes are written: the models are loaded and calibrated by then.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import backlog, models  # noqa: E402
from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import GpuSettings, Settings, SummarySettings  # noqa: E402
from tests import speech  # noqa: E402
from tests.conftest import Processes  # noqa: E402
from tests.swaps import Watch, log_rows  # noqa: E402
from tests.system import System, assert_whole, body, file_source  # noqa: E402
from workers._torch import set_up  # noqa: E402
from workers.vad import FRAME, Rules, Vad  # noqa: E402

RATE = m.SAMPLE_RATE
START_S = 60.0  # not counted beside the first interval, at whose end the summarizer measures itself
TOLD_WITHIN_S = 0.1  # a subscriber may be told of it before the arbiter's log has it
CARD_MIB = 700
SHARE = 0.8
DEFAULTS = GpuSettings()
MARGIN_MIB = DEFAULTS.margin_mib
CARD = GpuSettings(device="simulated", simulated_mib=CARD_MIB + MARGIN_MIB)
CASES = {
    "pauses": CARD,
    "timer": msgspec.structs.replace(CARD, overdue_s=0.0),
}


class Tape:
    """The recording, and when somebody speaks in it: by the VAD (frames), and by the reference (turns, seconds)."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        talks = speech.talks()
        order, rng = list(talks), random.Random(1)
        pieces, self.turns, at = [], list[tuple[float, float]](), 0
        while at < seconds * RATE:
            for talk in order:
                pieces.append(speech.samples(talk.path))
                self.turns += [(at / RATE + a, at / RATE + b) for a, b in talk.turns]
                at += len(pieces[-1])
            rng.shuffle(order)
        whole = np.concatenate(pieces)[: round(seconds * RATE)]
        speech.write_wav(path, whole)
        self.seconds = len(whole) / RATE
        self.voiced = voiced(whole)

    def silence_s(self, sample: int) -> float:
        """For how long nobody has spoken at this sample, by the VAD."""
        before = np.flatnonzero(self.voiced[: sample // FRAME + 1])
        return max(0.0, (sample - (int(before[-1]) + 1) * FRAME) / RATE) if len(before) else sample / RATE

    def silence_by_reference_s(self, sample: int) -> float:
        at = sample / RATE
        return min((max(0.0, at - end) for begin, end in self.turns if begin <= at), default=at)


def voiced(audio: speech.Samples) -> Any:
    """(frames,) bool: voice by the VAD, over the whole recording."""
    settings = Settings()
    vad = Vad(set_up(1, settings.cache), models.available(settings, "silero_vad"))
    below = Rules.of(settings.transcriber).ends_below
    state, out = vad.start(), []
    for i in range(0, len(audio) - FRAME + 1, FRAME):
        p, state = vad.step(audio[i : i + FRAME].astype(np.float32) / 32768.0, state)
        out.append(p >= below)
    return np.array(out)


class Heard(threading.Thread):
    """A subscriber that notes when it got each transcript."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.transcripts: list[tuple[float, m.Transcript]] = []  # wall clock
        self.ended = False
        self._client = FeedClient(settings, kinds=("transcript", "stream_ended"))
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            for e in self._client.poll(0.1):
                if isinstance(e, m.Event) and e.kind == "transcript":
                    self.transcripts.append((time.time(), body(e)))
                elif isinstance(e, m.Event) and e.kind == "stream_ended":
                    self.ended = True

    def close(self) -> None:
        self._over.set()
        self.join()
        self._client.close()


class Start(NamedTuple):
    """A burst for which the transcriber had to leave."""

    sample: int  # what was to be heard when it was decided
    silence_s: float
    by_reference_s: float
    waited_s: float  # since its minutes were due
    by: str  # what let it begin: silence, patience or overdue


class Played(NamedTuple):
    starts: list[Start]
    captions: list[tuple[float, float]]  # end of its last word in the recording, how late it came; seconds
    minutes: int

    @property
    def delays(self) -> list[float]:
        return [late for _, late in self.captions]


def play(name: str, tape: Tape, folder: Path, interval_s: float, counts_s: float) -> Played:
    """What begins or ends before `counts_s` of the recording is not in it."""
    folder.mkdir()
    summary = SummarySettings(interval_s=interval_s, max_new_tokens=32)
    settings = Settings(data_dir=str(folder / "data"), gpu=CASES[name], summary=summary)
    processes = Processes(folder, settings)
    try:
        system = System(processes, settings, file_source(tape.path, "realtime"), summaries=True)
        system.start()
        watch, heard = Watch(system.settings), Heard(system.settings)
        deadline = time.monotonic() + tape.seconds + 180
        while not heard.ended and time.monotonic() < deadline:
            time.sleep(0.5)
        ended = time.time()
        watch.close()
        heard.close()
        events = system.journal()
        stream = next(e.stream for e in events if e.kind == "stream_started")
        assert_whole(events, stream)  # nothing may be lost
        at = clock(system.settings.streams / stream)
        starts = [start(t, at, tape, watch) for t in decisions(system) if t < ended]
        captions = [(end_of(t) / RATE, got - at.wall(end_of(t))) for got, t in heard.transcripts]
        system.stop()
        return Played(
            [s for s in starts if s.sample > counts_s * RATE],
            [c for c in captions if c[0] > counts_s],
            sum(e.kind == "summary" for e in events),
        )
    finally:
        processes.close()


def end_of(t: m.Transcript) -> int:
    return t.words[-1].span[1] if t.words else t.span[1]


class Clock:
    """Sample of the stream <-> wall clock, by the anchors that capture wrote each minute."""

    def __init__(self, anchors: list[backlog.Anchor]) -> None:
        self.anchors = anchors

    def sample(self, wall_s: float) -> int:
        a = next((a for a in reversed(self.anchors) if a.wall_ns <= wall_s * 1e9), self.anchors[0])
        return max(0, a.sample + round((wall_s - a.wall_ns / 1e9) * RATE))

    def wall(self, sample: int) -> float:
        a = next((a for a in reversed(self.anchors) if a.sample <= sample), self.anchors[0])
        return a.wall_ns / 1e9 + (sample - a.sample) / RATE


def clock(folder: Path) -> Clock:
    lines = (folder / "anchors.jsonl").read_bytes().splitlines()
    return Clock([msgspec.json.decode(line, type=backlog.Anchor) for line in lines])


def decisions(system: System) -> list[float]:
    """When (wall clock) the arbiter revoked the transcriber for the summarizer."""
    rows = log_rows(system.settings.data, "arbiter")
    return [
        r["at"]
        for r in rows
        if r["event"] == "revoked" and r["worker"] == "transcriber" and "summarizer" in r.get("reason", "")
    ]


def by(watch: Watch, at: float) -> str:
    """What let the burst begin, as `live.gpu` said then: silence, patience or overdue; empty: it was not heard."""
    reasons = (s.reason for t, s in watch.states if t >= at - TOLD_WITHIN_S and s.phase == "making room")
    return next(reasons, "").rpartition(" by ")[2]


def start(at: float, clock: Clock, tape: Tape, watch: Watch) -> Start:
    sample = clock.sample(at)
    before = [s for t, s in watch.states if t < at]
    waits = [w.waits_s for s in before[-1:] for w in s.workers if w.worker == "summarizer"]
    heard_at = next((t for t, s in reversed(watch.states) if t < at), at)
    waited = waits[0] + at - heard_at if waits else 0.0
    return Start(sample, tape.silence_s(sample), tape.silence_by_reference_s(sample), waited, by(watch, at))


def figures_of(name: str, p: Played) -> list[Figure]:
    need = DEFAULTS.silence_s
    hits = [s for s in p.starts if s.silence_s >= need and s.by == "silence"]
    by_reference = [s for s in p.starts if s.by_reference_s >= need and s.by == "silence"]
    return [
        Figure(f"{name}: bursts", len(p.starts), ""),
        Figure(f"{name}: minutes written", p.minutes, ""),
        Figure(f"{name}: began after {need} s of silence, by the VAD", len(hits), ""),
        Figure(f"{name}: the same, by the reference", len(by_reference), ""),
        Figure(f"{name}: began by patience or overdue", sum(s.by != "silence" for s in p.starts), ""),
        Figure(f"{name}: waited for a pause, median", median([s.waited_s for s in p.starts]), "s"),
        Figure(f"{name}: waited for a pause, longest", max((s.waited_s for s in p.starts), default=0.0), "s"),
        Figure(f"{name}: captions", len(p.delays), ""),
        Figure(f"{name}: caption delay, median", median(p.delays), "s"),
        Figure(f"{name}: caption delay, 95 %", percentile(p.delays, 95), "s"),
    ]


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")


def percentile(values: list[float], p: float) -> float:
    return float(np.percentile(values, p)) if values else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12.5, help="of which the first two are not counted")
    parser.add_argument("--interval", type=float, default=60.0, metavar="S", help="of the minutes in the first case")
    parser.add_argument("--cases", default="pauses,timer")
    parser.add_argument("--rows", default="", metavar="FILE", help="each burst and each delay, as JSON")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    missed: list[str] = []
    figures: list[Figure] = []
    played: dict[str, Played] = {}
    interval_s, counts_s = args.interval, args.interval + START_S
    with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as folder:
        tape = Tape(Path(folder, "talks.wav"), args.minutes * 60)
        for name in args.cases.split(","):
            played[name] = p = play(name, tape, Path(folder, name), interval_s, counts_s)
            interval_s = (tape.seconds - counts_s) / max(1, len(p.starts))  # of a timer with as many bursts
            figures += figures_of(name, p)
            if args.rows:
                rows = {
                    n: {"starts": [s._asdict() for s in x.starts], "captions": x.captions} for n, x in played.items()
                }
                Path(args.rows).write_text(json.dumps(rows))
    if "pauses" in played:
        p = played["pauses"]
        hits = sum(s.silence_s >= DEFAULTS.silence_s and s.by == "silence" for s in p.starts)
        share = hits / len(p.starts) if p.starts else 0.0
        figures.append(Figure(f"pauses: share that began in silence (>= {SHARE:g})", share, "", SHARE))
        if share < SHARE:
            missed.append(figures[-1].name)
    if played.keys() >= {"pauses", "timer"}:
        worst = {n: max(x.delays, default=float("nan")) for n, x in played.items()}
        label = "caption delay, worst, beside the timer's (lower)"
        figures.append(Figure.against(label, worst["pauses"], "s", worst["timer"]))
        if not worst["pauses"] < worst["timer"]:
            missed.append(label)
    show(figures, args.json)
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
