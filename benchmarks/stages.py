"""The whole stack on this machine: a backlog drained by every stage, then the same speech live, then on busy cores.

`python benchmarks/stages.py [--minutes 10] [--busy-minutes 5] [--only drain,live,busy] [--json]`. Transcriber
(tiny.en), diarizer, translator (to Portuguese) and summarizer share the card of the demo, which does not hold all of
them. Read speech, 1.5 s between two pieces; models are loaded and calibrated before anything is counted.

* `drain`: the audio lies in the backlog when the workers start. For each stage: processor seconds a second of audio,
  and the seconds from the first caption until its last output is in the journal, beside the length of the audio.
* `live`: at the pace of its time. How late each stage is, in the first and last third, and how far behind it fell.
* `busy`: the same beside `--burners` processes that do nothing but count. What is left out is left out in this order:
  interim text, fineness of diarization; finals never. What `status` said of it is printed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402
from sources import speech  # noqa: E402

from common import backlog, demo  # noqa: E402
from common import messages as m  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests.conftest import Processes, wait_for  # noqa: E402
from tests.speech import RATE, Samples, write_wav  # noqa: E402
from tests.system import Following, System, file_source, heard, quiet, translated  # noqa: E402

TARGETS = ("pt",)
STAGES = ("transcriber", "diarizer", "translator", "summarizer")
OTHERS = ("feed", "arbiter", "launcher", "viewer")
KINDS = {"transcriber": "transcript", "diarizer": "speaker_turn", "translator": "translation", "summarizer": "summary"}
LAG_MOST_S = 20.0  # who is later than this, with models that take turns of some seconds, has fallen behind
GROWS_S = 3.0  # and who is so much later in the last third than in the first is falling


class Cpu:
    """Processor seconds of each process of a system, its earlier incarnations too, as of the last look."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._seen: dict[tuple[str, int], float] = {}

    def look(self) -> None:
        for name in (*STAGES, *OTHERS, "capture@talk"):
            if pid := self._system.pid(name):
                try:
                    self._seen[name, pid] = sum(psutil.Process(pid).cpu_times()[:2])
                except psutil.Error:
                    continue

    def seconds(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for (name, _), s in self._seen.items():
            total[name] += s
        return total


class Seen(NamedTuple):
    """One sign of life: what it says of the stream and of the workers."""

    at: float  # wall clock
    late: dict[str, float]  # by worker
    notes: dict[str, str]


class Run(NamedTuple):
    """What one run gave. Wall clock."""

    began: float  # the first sample was heard, or the first caption came of a backlog
    ended: dict[str, float]  # when the last output of each stage came
    cpu_s: dict[str, float]
    events: list[m.Event]
    seen: list[Seen]
    interim: int
    coverage: m.Coverage
    swaps: int
    anchors: list[backlog.Anchor]


def settings_of(folder: Path) -> Settings:
    first = load(None, (f"data_dir={folder}/data", "transcriber.model=tiny.en", "transcriber.interim=true"), {})
    card, line = demo.tight_card(first)
    if not line:
        raise SystemExit("there is a real card here, or a simulated one that was chosen: this takes the demo's")
    more = [x for x in card if not x.startswith("summary.")]
    return load(None, (f"data_dir={folder}/data", "transcriber.model=tiny.en", "transcriber.interim=true", *more), {})


def calibrate(processes: Processes, settings: Settings, folder: Path) -> None:
    """Everybody measures what it needs, the summarizer with its first minutes."""
    write_wav(folder / "first.wav", speech(0.4, 2)[0])
    source = file_source(folder / "first.wav", "max", "first")
    system = System(processes, settings, source, summaries=True, speakers=True, targets=TARGETS)
    follower = Following(system.settings)
    system.start()
    wait_for(lambda: over(follower, "first"), 300.0, "every stage to calibrate")
    follower.close()
    system.stop()


def play(folder: Path, audio: Samples, live: bool, burners: int = 0) -> Run:
    settings = settings_of(folder)
    write_wav(folder / "calm.wav", quiet(0.5))
    write_wav(folder / "talk.wav", audio)
    calm = file_source(folder / "calm.wav", "max", "calm")
    processes, busy = Processes(folder, settings), list[subprocess.Popen[bytes]]()
    try:
        calibrate(processes, settings, folder)
        system = System(processes, settings, calm, summaries=True, speakers=True, targets=TARGETS)
        if not live:
            recorded(settings, audio)
        follower, cpu, seen = Following(system.settings), Cpu(system), list[Seen]()
        system.start()
        if live:
            for name in STAGES:
                system.up(name, 120.0)
            time.sleep(15.0)
            added = system("capture", "--source", f"{folder / 'talk.wav'} name=talk pace=realtime")
            if added.returncode:
                raise SystemExit(added.stdout + added.stderr)
            busy += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
        cpu.look()
        before, deadline = cpu.seconds(), time.monotonic() + 6 * len(audio) / RATE + 300
        while not over(follower):
            time.sleep(0.5)
            cpu.look()
            if beat := follower.last_beat:
                seen.append(seen_of(beat))
            if time.monotonic() > deadline or not system.launcher.alive:
                raise SystemExit("the stages do not come to the end:\n" + system.launcher.output()[-2000:])
        for process in busy:
            process.kill()
        cpu_s = {name: s - before.get(name, 0.0) for name, s in cpu.seconds().items()}
        stream = stream_of(follower)
        assert follower.last_beat
        coverage = follower.last_beat.streams[stream].coverage
        events = [e for e in system.journal() if e.stream == stream]
        swaps = re.search(r"swaps so far: (\d+)", system("gpu", "status").stdout)
        anchors = backlog.anchors(system.settings.streams / stream)
        follower.close()
        system.stop()
    finally:
        for process in busy:
            process.kill()
        processes.close()
    captions = [e.at_ns / 1e9 for e in events if e.kind == "transcript"]
    began = anchors[0].wall_ns / 1e9 - anchors[0].sample / RATE if live else captions[0]
    ended = {s: max((e.at_ns / 1e9 for e in events if e.kind == KINDS[s]), default=0.0) for s in STAGES}
    hypotheses = sum(h.stream == stream for h in follower.hypotheses)
    return Run(began, ended, cpu_s, events, seen, hypotheses, coverage, int(swaps[1]) if swaps else 0, anchors)


def recorded(settings: Settings, audio: Samples) -> None:
    """Audio that nobody has heard yet: captured live while no worker ran."""
    folder = settings.streams / "talk-1"
    writer = backlog.Writer(folder, 60 * RATE)
    writer.append(0, audio.tobytes())
    writer.close()
    meta = backlog.Meta(
        stream="talk-1", source="talk", lane="live", origin="benchmark", started_ns=time.time_ns(),
        resumable=False, ended=True, end=len(audio), end_reason="end of file",
    )  # fmt: skip
    backlog.write_meta(folder, meta)


def stream_of(follower: Following, source: str = "talk") -> str:
    beat = follower.last_beat
    return next((s for s in beat.streams if s.startswith(f"{source}-")), "") if beat else ""


def over(follower: Following, source: str = "talk") -> bool:
    """Captions, turns, translations and minutes of the speech are there to its end."""
    beat, stream = follower.last_beat, stream_of(follower, source)
    if not beat or not stream or not (heard(stream, beat) and translated(stream, beat, TARGETS)):
        return False
    s = beat.streams[stream]
    minutes = s.producers["summarizer"].positions if "summarizer" in s.producers else {}
    return minutes.get("transcript", 0) >= s.heads.get("transcript", 0)


def seen_of(beat: m.Beat) -> Seen:
    workers = beat.workers.values()
    late = {w.worker: max(w.lag_s.values(), default=0.0) for w in workers}
    return Seen(beat.at_ns / 1e9, late, {w.worker: w.note for w in workers if w.note})


# Figures


def whole(run: Run) -> list[str]:
    missed = [f"{run.coverage.pending} samples are pending"] if run.coverage.pending else []
    return missed + ([f"{run.coverage.gap} samples are a gap"] if run.coverage.gap else [])


def drained(run: Run, seconds: float) -> tuple[list[Figure], list[str]]:
    figures = []
    for stage in STAGES:
        figures.append(Figure(f"drain: {stage}, cpu a second of audio", run.cpu_s.get(stage, 0.0) / seconds, "cpu-s"))
    for stage in STAGES:
        took = run.ended[stage] - run.began
        figures.append(Figure.against(f"drain: {stage} done after (beside the audio)", took, "s", seconds))
    other = sum(run.cpu_s.get(name, 0.0) for name in OTHERS) / seconds
    figures.append(Figure("drain: feed, arbiter, launcher, page, cpu a second of audio", other, "cpu-s"))
    figures.append(Figure("drain: swaps", run.swaps, ""))
    return figures, whole(run)


def lived(run: Run, name: str, seconds: float) -> tuple[list[Figure], list[str]]:
    finals = demo.late_s(run.events, run.anchors, 1.0)
    into = demo.translated_late_s(run.events, TARGETS[0])
    turns = turns_late_s(run)
    figures, missed = [], whole(run)
    for what, late in (("finals, behind their last word", finals), ("turns, behind their end", turns),
                       ("translations, behind the caption", into)):  # fmt: skip
        third = max(1, len(late) // 3)
        first, last = statistics.median(late[:third]), statistics.median(late[-third:])
        figures.append(Figure(f"{name}: {what}, p50", statistics.median(late), "s"))
        figures.append(Figure(f"{name}: {what}, p95", float(np.percentile(late, 95)), "s"))
        figures.append(Figure.against(f"{name}: {what}, p50 of the last third, beside the first", last, "s", first))
        if last > first + GROWS_S:
            missed.append(f"{name}: {what}: {first:.1f} s in the first third, {last:.1f} s in the last: it grows")
    for stage in STAGES[:3]:
        worst = max((s.late.get(stage, 0.0) for s in run.seen), default=0.0)
        figures.append(Figure.against(f"{name}: {stage}, most audio behind (< {LAG_MOST_S:g})", worst, "s", LAG_MOST_S))
        if worst >= LAG_MOST_S:
            missed.append(f"{name}: the {stage} fell {worst:.0f} s behind")
    for stage in (*STAGES, "capture@talk"):
        figures.append(Figure(f"{name}: {stage}, cpu a second of audio", run.cpu_s.get(stage, 0.0) / seconds, "cpu-s"))
    figures.append(Figure(f"{name}: interim texts a second", run.interim / seconds, ""))
    for stage in STAGES[:2]:
        share = statistics.mean(stage in s.notes for s in run.seen) if run.seen else 0.0
        what = "interim text" if stage == "transcriber" else "fineness of diarization"
        figures.append(Figure(f"{name}: signs of life that say {what} is left out", 100 * share, "%"))
    figures.append(Figure(f"{name}: swaps", run.swaps, ""))
    return figures, missed


def turns_late_s(run: Run) -> list[float]:
    """Of each turn when it was first told: from its end, when it was to be heard, to the journal."""
    zero = run.anchors[0].wall_ns / 1e9 - run.anchors[0].sample / RATE
    found = []
    for e in run.events:
        body = e.decode() if e.kind == "speaker_turn" else None
        if isinstance(body, m.SpeakerTurn) and body.provisional:
            found.append(max(0.0, e.at_ns / 1e9 - zero - body.span[1] / RATE))
    return found


def said(run: Run) -> list[str]:
    """What the workers said of their ways of working, each sentence with its numbers left out, and when first."""
    first: dict[str, float] = {}
    times: Counter[str] = Counter()
    for s in run.seen:
        for worker, note in s.notes.items():
            text = f"{worker}: {' '.join('N' if w.strip('.,').replace('.', '').isdigit() else w for w in note.split())}"
            first.setdefault(text, s.at - run.began)
            times[text] += 1
    return [f"after {first[t]:5.0f} s, {n:4} times: {t}" for t, n in sorted(times.items(), key=lambda x: first[x[0]])]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--busy-minutes", type=float, default=5.0)
    parser.add_argument("--burners", type=int, default=2)
    parser.add_argument("--only", default="drain,live,busy")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures, missed = list[Figure](), list[str]()
    for name in args.only.split(","):
        minutes = args.busy_minutes if name == "busy" else args.minutes
        audio, _ = speech(minutes, 0)
        audio, seconds = audio[: round(minutes * 60 * RATE)], minutes * 60
        with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as folder:
            run = play(Path(folder), audio, name != "drain", args.burners if name == "busy" else 0)
        more, wrong = drained(run, seconds) if name == "drain" else lived(run, name, seconds)
        figures, missed = figures + more, missed + wrong
        for line in said(run):
            print(f"{name}: status said {line}", file=sys.stderr)
    show(figures, args.json)
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
