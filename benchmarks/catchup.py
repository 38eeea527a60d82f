"""Catching up with 60 s that waited: throughput, word errors and every other word, several at once beside one by one.

`python benchmarks/catchup.py [--model tiny.en|base] [--holes 3] [--all] [--json]`. A hole is a sonnet and a sentence of
LibriVox, about 60 s of a live stream that nobody has heard. The transcriber's own loop, cuts, model and weights, on the
device that the settings name (CUDA where there is one: then its wall clock counts, else cpu-seconds); in place of feed
and arbiter stands a journal in memory. `--all`: also other ways to go about it. Exit status 1: more than one point of
word error rate was lost. (`docs/decisions/catch-up.md` has the choice that this led to.)
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
from figures import Figure, show  # noqa: E402

from common import backlog, card, wire  # noqa: E402
from common import messages as m  # noqa: E402
from common.process import Process  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests import speech  # noqa: E402
from tests.speech import RATE, Samples, word_errors, words  # noqa: E402
from workers import decoding  # noqa: E402
from workers.poison import Poison  # noqa: E402
from workers.steps import Step  # noqa: E402
from workers.transcriber import Transcriber  # noqa: E402

POINT = 0.01  # of word error rate


class Way(NamedTuple):
    """How to catch up."""

    name: str
    batch_most: int = 16
    batch_windows: int = 0
    packed: bool = True


ALONE = Way("one by one", batch_most=1)
CHOSEN = Way("as by default")
OTHERS = [
    Way("packed, 4 windows at once", batch_windows=4),
    Way("not packed, 8 at once", batch_windows=8, batch_most=8, packed=False),
]


class Hole(NamedTuple):
    sound: Samples
    text: str


def holes(count: int) -> list[Hole]:
    pause = np.zeros(RATE, np.int16)
    found = []
    for sonnet, sentence in zip(speech.sonnet_parts(), speech.librivox(), strict=False):
        parts = [x for clip in (sonnet, sentence) for x in (speech.samples(clip.path), pause)]
        found.append(Hole(np.concatenate(parts), f"{sonnet.text} {sentence.text}"))
    return found[:count]


def clocks() -> tuple[float, float]:
    """(cpu-seconds, wall clock)"""
    return time.process_time(), time.perf_counter()


def since(began: tuple[float, float]) -> tuple[float, float]:
    return time.process_time() - began[0], time.perf_counter() - began[1]


class InMemory:
    """What the transcriber's loop needs of a runner: it always has its lease, and the journal takes every append."""

    ready, phase = True, ""
    control = SimpleNamespace(changed=lambda: None)  # nobody listens to how silent it is

    def __init__(self, run: Path) -> None:
        self.poison = Poison(run, "benchmark")
        self.at = m.At(n=0, positions={"meta": 1}, state=b"", head=0)
        self.texts: list[str] = []
        self.steps: list[tuple[float, float]] = []  # (cpu-seconds, wall clock) of each
        self.longest = (0.0, 0.0)  # of a piece of a step

    def step(self, work: Generator[None, None, Any], working_bytes: int = 0) -> Any:
        began = clocks()
        try:
            while True:
                at = clocks()
                try:
                    next(work)
                finally:
                    self.longest = max(self.longest[0], since(at)[0]), max(self.longest[1], since(at)[1])
        except StopIteration as end:
            self.steps.append(since(began))
            return end.value

    def commit(self, stream: str, expect_n: int, step: Step | None) -> m.At:
        if step and expect_n == self.at.n:
            self.texts += [b.text for b in step.events if isinstance(b, m.Transcript)]
            self.at = m.At(n=self.at.n + 1, positions=self.at.positions | step.positions, state=step.state, head=1)
        return self.at


class Run(NamedTuple):
    text: str
    decode: tuple[float, float]  # (cpu-seconds, wall clock)
    whole: tuple[float, float]  # with the scan
    steps: int
    longest: tuple[float, float]


class Bench:
    """One transcriber, its weights on the device; its settings change between two holes."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        process = Process("transcriber", settings, argparse.Namespace())
        self.transcriber = Transcriber(process)
        modules = self.transcriber.load(process)
        from workers.residency import Residency, open_device

        self.device = open_device(settings, wire.run_dir(settings), "transcriber")
        self.residency = Residency(self.device, modules)
        self.device.limit(self.residency.weights_bytes * 4 + (8 << 30))
        self.residency.reload()

    def hear(self, hole: Hole, way: Way, name: str) -> Run:
        t, s = self.transcriber, self.settings.transcriber
        t.s = t.decoder.s = msgspec.structs.replace(s, batch_most=way.batch_most, batch_windows=way.batch_windows)
        t.choose_windows()
        decoding.WINDOW_SAMPLES = 28 * RATE if way.packed else 1
        folder = self.settings.streams / name
        writer = backlog.Writer(folder, 60 * RATE)
        writer.append(0, hole.sound.astype("<i2").tobytes())
        writer.close()
        meta = backlog.Meta(
            stream=name, source="hole", lane="live", origin="benchmark", started_ns=time.time_ns(), resumable=True,
            ended=True, end=len(hole.sound), end_reason="end of file",
        )  # fmt: skip
        backlog.write_meta(folder, meta)
        runner: Any = InMemory(self.folder)
        began = clocks()
        t.look(runner, 0.0)
        while runner.at.positions.get("meta") != 2:
            t.turn(runner)
        whole = since(began)
        shutil.rmtree(folder)
        decode = sum(c for c, _ in runner.steps), sum(w for _, w in runner.steps)
        return Run(" ".join(runner.texts), decode, whole, len(runner.steps), runner.longest)


def differing(one: str, other: str) -> list[str]:
    """Words that are not the same, each beside what stands there instead."""
    a, b = words(one), words(other)
    found = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return [f"{' '.join(a[i:j]) or '-'} / {' '.join(b[k:n]) or '-'}" for tag, i, j, k, n in found if tag != "equal"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--holes", type=int, default=3, help="1 to 3")
    parser.add_argument("--all", action="store_true", help="other ways to catch up, too")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    more = (f"data_dir={folder / 'data'}", f"transcriber.model={args.model}", "transcriber.language=en")
    settings = load(None, more, {})
    cuda = card.kind(settings) == "cuda"
    ways = [ALONE, CHOSEN, *(OTHERS if args.all else [])]
    runs: dict[Way, list[Run]] = {way: [] for way in ways}
    said = holes(args.holes)
    try:
        bench = Bench(folder, settings)
        bench.hear(Hole(said[0].sound[: 8 * RATE], ""), ALONE, "warm")  # the first of everything is compiled, or slow
        for i, hole in enumerate(said):
            for k, way in enumerate(ways):
                runs[way].append(bench.hear(hole, way, f"hole-{i}-{k}"))
                print(f"hole {i}, {way.name}: {runs[way][-1].decode[0]:.1f} cpu-s", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    audio_s = sum(len(h.sound) for h in said) / RATE
    total = sum(len(words(h.text)) for h in said)
    errors = {w: sum(word_errors(h.text, r.text) for h, r in zip(said, runs[w], strict=True)) for w in ways}
    clock, unit = (1, "s") if cuda else (0, "cpu-s")
    figures = [Figure(f"audio of {len(said)} holes, {total} words", audio_s, "s")]
    for way in ways:
        rows, base = runs[way], runs[ALONE]
        for what, mine, theirs in (
            ("decoding", sum(r.decode[clock] for r in rows), sum(r.decode[clock] for r in base)),
            ("with the scan", sum(r.whole[clock] for r in rows), sum(r.whole[clock] for r in base)),
        ):
            name = f"{way.name}: throughput, {what}, per {unit}"
            figures.append(Figure.against(name, audio_s / mine, "s", audio_s / theirs))
        figures.append(Figure.against(f"{way.name}: steps", sum(r.steps for r in rows), "", sum(r.steps for r in base)))
        longest = [max(r.longest[clock] for r in some) for some in (rows, base)]
        figures.append(Figure.against(f"{way.name}: longest piece of a step", longest[0], unit, longest[1]))
        rates = 100 * errors[way] / total, 100 * errors[ALONE] / total
        figures.append(Figure.against(f"{way.name}: word error rate", rates[0], "%", rates[1]))
        if way is not ALONE:
            other = [d for one, r in zip(base, rows, strict=True) for d in differing(one.text, r.text)]
            print(f"{way.name}: {len(other)} places differ from one by one: {'; '.join(other)}", file=sys.stderr)
    show(figures, args.json)
    lost = (errors[CHOSEN] - errors[ALONE]) / total
    if lost > POINT:
        print(f"broken: {100 * lost:.1f} points of word error rate lost, at most 1 is allowed", file=sys.stderr)
    return int(lost > POINT)


if __name__ == "__main__":
    sys.exit(main())
