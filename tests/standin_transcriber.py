"""Stand-ins around the real transcriber: one with fault switches, one that ignores the name lock, and their launcher.

python -m tests.standin_transcriber --config F run-all    the real launcher; its transcriber is `faulty`
... faulty    the real transcriber, but the utterance with a sample that DATA/fault-transcriber names ends it
              (a line each: `segv SAMPLE`, `raise SAMPLE`)
... second    the real transcriber without the lock on its name
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common import launch
from common import messages as m
from common.child import wants
from common.launch import Launcher
from common.process import Process, arguments, main
from common.settings import load
from workers.base import Runner
from workers.session import Utterance
from workers.steps import Step
from workers.transcriber import Pieces, Transcriber


class FaultyTranscriber(Transcriber):
    """The real one until it meets the sample that the fault file names."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._faults = Path(process.settings.data, "fault-transcriber")

    def _meet(self, span: m.Span) -> None:
        lines = self._faults.read_text().splitlines() if self._faults.exists() else []
        for kind, sample in (line.split() for line in lines):
            if span[0] <= int(sample) < span[1]:
                if kind == "segv":
                    os.kill(os.getpid(), signal.SIGSEGV)
                raise ArithmeticError("the stand-in was told to fail here")

    def infer(self, state: bytes, work: Utterance) -> Pieces[Step]:
        self._meet(work.speech)
        return super().infer(state, work)

    def infer_all(self, state: bytes, works: Sequence[Utterance], steps: list[Step]) -> Pieces[None]:
        for work in works:
            self._meet(work.speech)
        return super().infer_all(state, works, steps)

    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Pieces[m.Body]:
        self._meet(gap.span)
        return super().again(stream, gap, pcm)


def faulty(process: Process) -> None:
    Runner(process, FaultyTranscriber(process)).run()


def launcher(config: str) -> None:
    launch.LONGEST_DELAY_S = 1.0  # twelve deaths in a row, each waited after, would take a minute
    settings = load(config, (), {})
    table = []
    for want in wants(settings, ["--config", config]):
        if want.name == "transcriber":
            want = msgspec.structs.replace(
                want, command=("-m", "tests.standin_transcriber", "--config", config, "faulty")
            )
        table.append(want)
    Launcher(settings, table, lambda line: print(f"-- {line}", flush=True)).run()


def second(config: str) -> None:
    args = arguments("second").parse_args(["--config", config])
    process = Process("transcriber", load(config, (), {}), args)
    signal.signal(signal.SIGTERM, process._stop)
    Runner(process, Transcriber(process)).run()


if __name__ == "__main__":
    config = sys.argv[2]
    if sys.argv[3] == "run-all":
        launcher(config)
    elif sys.argv[3] == "second":
        second(config)
    else:
        sys.argv.remove("faulty")
        main("transcriber", faulty, arguments(__doc__ or ""))
