"""Three live sources, and a file of ten minutes beside them: does the file keep live captions waiting, is it finished?

`python benchmarks/sources.py [--file-minutes 10] [--quiet-s 75] [--json]`. A running system captions three sources at
the pace of their time (read speech, each in another order, 1.5 s between two pieces), interim text on. In turns, the
system has nothing else to do for `--quiet-s`, then `swapscribe transcribe` gives it a third of the file, until
that is done: three times each. What is measured in quiet turns stands beside what is measured in the others, so that
both come from one run. Whisper tiny.en.

Delay of a final: from the end of its last word, when it was to be heard, to its Transcript in the hands of a
subscriber. A batch step is one decoding of the transcriber for the file (`delays` of its batch lane, p50).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import backlog  # noqa: E402
from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests.conftest import Processes, clean_environment, wait_for  # noqa: E402
from tests.speech import RATE, Clip, Samples, librivox, samples, sonnet_parts, word_errors, words, write_wav  # noqa: E402
from tests.swaps import log_rows  # noqa: E402
from tests.system import RECORDING, System, file_source, quiet, recording_text  # noqa: E402

SOURCES = ("hall", "stage", "radio")
TURNS = 3
LAG_MOST_S = 20.0  # a live source that is later than this is not bounded


def speech(minutes: float, shift: int) -> tuple[Samples, str]:
    """So many minutes of read speech, beginning at piece `shift`, and what is said in it."""
    clips = [Clip(RECORDING, recording_text()), *sonnet_parts(), *librivox()]
    pieces, said, n = [quiet(1.0)], list[str](), shift
    while sum(map(len, pieces)) < minutes * 60 * RATE:
        clip = clips[n % len(clips)]
        pieces += [samples(clip.path), quiet(1.5)]
        said.append(clip.text)
        n += 1
    return np.concatenate(pieces), " ".join(said)


class Final(NamedTuple):
    """One Transcript as it came."""

    stream: str
    got: float  # wall clock
    end: int  # of its last word, in samples


class Heard(threading.Thread):
    """A subscriber: finals, how many Hypotheses, and what each sign of life says of the transcriber."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._client = FeedClient(settings, ("transcript", "stream_ended"), hypotheses=True)
        self.finals: list[Final] = []
        self.interim: list[float] = []  # wall clock
        self.ended: set[str] = set()
        self.lags: list[tuple[float, float]] = []  # wall clock, the worst live lag
        self.step_s = 0.0  # of the file
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for got in self._client.poll(0.25):
                if isinstance(got, m.Hypothesis):
                    self.interim.append(time.time())
                elif isinstance(got, m.Event):
                    body = got.decode()
                    if isinstance(body, m.Transcript):
                        end = body.words[-1].span[1] if body.words else body.span[1]
                        self.finals.append(Final(got.stream, time.time(), end))
                    elif isinstance(body, m.StreamEnded):
                        self.ended.add(got.stream)
            if beat := self._client.last_beat:
                mine = [w for w in beat.workers.values() if w.worker == "transcriber"]
                live = [s for w in mine for stream, s in w.lag_s.items() if stream.startswith(SOURCES)]
                self.lags.append((time.time(), max(live, default=0.0)))
                steps = [d.p50_s for w in mine for d in w.delays if (d.lane, d.stage) == ("batch", "decode")]
                self.step_s = max(steps, default=self.step_s)
        self._client.close()


class Played(NamedTuple):
    """What one run gave; turns are (begin, end) on the wall clock."""

    quiet_turns: list[tuple[float, float]]
    file_turns: list[tuple[float, float]]
    late: list[tuple[float, float]]  # of each live final: when it came, how late
    heard: Heard
    file_s: float  # audio of the file
    wer: float  # of the file, %

    def within(self, turns: list[tuple[float, float]]) -> list[float]:
        return [s for at, s in self.late if any(a <= at <= b for a, b in turns)]

    def interim_rate(self, turns: list[tuple[float, float]]) -> float:
        found = sum(any(a <= at <= b for a, b in turns) for at in self.heard.interim)
        return found / sum(b - a for a, b in turns)


def play(args: argparse.Namespace, folder: Path) -> Played:
    settings = load(None, (f"data_dir={folder}/data", "transcriber.interim=true", "transcriber.model=tiny.en"), {})
    sources, parts = [], []
    for n, name in enumerate(SOURCES):
        write_wav(folder / f"{name}.wav", speech(args.minutes, 3 * n)[0])
        sources.append(file_source(folder / f"{name}.wav", "realtime", name))
    for n in range(TURNS):
        audio, said = speech(args.file_minutes / TURNS, 5 * n + 1)
        write_wav(folder / f"part{n}.wav", audio)
        parts.append((folder / f"part{n}.wav", len(audio) / RATE, said))
    processes = Processes(folder, settings)
    quiet_turns, file_turns, errors = list[tuple[float, float]](), list[tuple[float, float]](), 0
    try:
        system = System(processes, settings, *sources)
        heard = Heard(system.settings)
        heard.start()
        system.start()
        system.up("transcriber", 60.0)
        wait_for(lambda: any(r["event"] == "calibrated" for r in log_rows(settings.data, "transcriber")), 120.0)
        time.sleep(15.0)  # what came meanwhile is captioned
        for path, _, said in parts:
            began = time.time()
            time.sleep(args.quiet_s)
            between = time.time()
            errors += word_errors(said, transcribe(processes, system, path))
            quiet_turns.append((began, between))
            file_turns.append((between, time.time()))
        heard.over.set()
        heard.join()
        late = list[tuple[float, float]]()
        for stream in {f.stream for f in heard.finals if f.stream.startswith(SOURCES)}:
            anchor = backlog.anchors(system.settings.streams / stream)[0]
            zero = anchor.wall_ns / 1e9 - anchor.sample / RATE
            late += [(f.got, f.got - zero - f.end / RATE) for f in heard.finals if f.stream == stream]
        system.stop()
    finally:
        processes.close()
    wer = 100 * errors / sum(len(words(said)) for _, _, said in parts)
    return Played(quiet_turns, file_turns, late, heard, sum(s for _, s, _ in parts), wer)


def transcribe(processes: Processes, system: System, path: Path) -> str:
    """`swapscribe transcribe` of one file by the running system; its text."""
    argv = [sys.executable, "-m", "common.cli", "--config", str(processes.config(system.settings))]
    argv += ["transcribe", str(path), "--quiet"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), check=False)
    if done.returncode:
        raise SystemExit(f"transcribe: status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def figures_of(p: Played) -> tuple[list[Figure], list[str]]:
    alone, beside = p.within(p.quiet_turns), p.within(p.file_turns)
    worst_lag = max(s for at, s in p.heard.lags if at >= p.quiet_turns[0][0])
    took_s = sum(b - a for a, b in p.file_turns)
    bound = statistics.median(alone) + p.heard.step_s
    figures = [
        Figure("live finals without the file, p50 behind the last word", statistics.median(alone), "s"),
        Figure("one step for the file", p.heard.step_s, "s"),
        Figure.against(
            "live finals beside the file, p50 (<= without it + a step)", statistics.median(beside), "s", bound
        ),
        Figure.against("p95, beside the one without", percentile(beside), "s", percentile(alone)),
        Figure.against("worst, beside the one without", max(beside), "s", max(alone)),
        Figure.against("live finals, beside those without", len(beside), "", len(alone)),
        Figure.against(f"worst live lag (< {LAG_MOST_S:g})", worst_lag, "s", LAG_MOST_S),
        Figure("the file: seconds of audio a second", p.file_s / took_s, ""),
        Figure("the file: words wrong", p.wer, "%"),
        Figure.against(
            "interim texts a second, beside without", p.interim_rate(p.file_turns), "", p.interim_rate(p.quiet_turns)
        ),
    ]
    missed = []
    if statistics.median(beside) > bound:
        missed.append("live finals wait for more than a step of the file")
    if worst_lag >= LAG_MOST_S:
        missed.append("a live source fell behind")
    if any(s.startswith(SOURCES) for s in p.heard.ended):
        missed.append("a live source ended before the file: give it more --minutes")
    return figures, missed


def percentile(values: list[float]) -> float:
    return float(np.percentile(values, 95))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of each live source, at most")
    parser.add_argument("--file-minutes", type=float, default=10.0)
    parser.add_argument("--quiet-s", type=float, default=75.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as name:
        figures, missed = figures_of(play(args, Path(name)))
    show(figures, args.json)
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
