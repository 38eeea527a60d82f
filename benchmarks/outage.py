"""kill -9 of the transcriber while somebody speaks, with interim text on: how long until there are captions again.

`python benchmarks/outage.py [--kills 4] [--json]` plays public speech at the pace of its time into a
running system and kills in the middle of an utterance, 20 s apart (a life of less is restarted later each time). Of
each kill: seconds until the first text that a subscriber sees, and what they went into: the launcher's restart, Python
and the libraries, the weights, the lease, then audio until text. At the end the finals must be those of a run without
kills and without interim text, so no word spoken before or during an outage is lost, or the command fails.

Before the later half of the kills the launcher's spare is killed, so that the transcriber is started from nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import Settings  # noqa: E402
from common.spare import MODULE  # noqa: E402
from tests.conftest import Processes, wait_for  # noqa: E402
from tests.speech import RATE, samples, sonnet_parts, write_wav  # noqa: E402
from tests.swaps import log_rows  # noqa: E402
from tests.system import (  # noqa: E402
    RECORDING,
    System,
    Undisturbed,
    done_to_the_end,
    file_source,
    one_by_one,
    quiet,
    with_interim,
)

APART_S = 21.0
BOUND_S = 5.0
TARGETS = ("pt",)
PHASES = (  # until the log says so; the first is the launcher's doing
    ("restart by the launcher, Python and our imports", "started"),
    ("libraries and weights", "model loaded"),
    ("lease and reload", "granted"),
)


class Seen(threading.Thread):
    """The moments (wall clock) at which text came, and of which stretch of the stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._client = FeedClient(settings, ("transcript", "stream_ended"), hypotheses=True)
        self.texts: list[tuple[float, m.Span]] = []
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.is_set():
            for got in self._client.poll(0.5):
                if isinstance(got, m.Hypothesis) and got.stable + got.unstable:
                    self.texts.append((time.time(), got.span))
                elif isinstance(got, m.Event):
                    match got.decode():
                        case m.Transcript(span=span):
                            self.texts.append((time.time(), span))
                        case m.StreamEnded():
                            self.ended.set()


def kill(system: System, seen: Seen) -> tuple[float, float, list[dict[str, Any]]]:
    """In the middle of an utterance: when that was, when there was text again, and the log of the new life."""
    known = len(seen.texts)
    wait_for(lambda: len(seen.texts) > known, 30.0, "somebody to speak")
    pid, at = system.kill("transcriber"), time.time()
    late = at + 0.2  # what it had sent before may still be on its way
    wait_for(lambda: seen.texts[-1][0] > late, 60.0, "text after the kill")
    back = next(t for t, _ in seen.texts if t > late)
    rows = [r for r in log_rows(system.settings.data, "transcriber") if r["at"] > at]
    print(f"kill of pid {pid}: text again after {back - at:.2f} s", file=sys.stderr, flush=True)
    return at, back, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    out = {how: (list[float](), dict[str, list[float]]()) for how in ("out of a spare", "from nothing")}
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        folder = Path(name)
        pieces = [samples(RECORDING), *(samples(c.path) for c in sonnet_parts())]
        sound = np.concatenate([x for piece in pieces for x in (piece, quiet(1.0))])
        write_wav(folder / "clip.wav", sound[: round((args.kills + 1) * (APART_S + 5.0) * RATE)])
        settings = with_interim(one_by_one(Settings(data_dir=f"{name}/killed")))
        all_stages = {"speakers": settings.speakers, "targets": TARGETS}
        undisturbed = Undisturbed(folder, clip=folder / "clip.wav", timeout_s=600.0, **all_stages)
        processes = Processes(folder, settings)
        try:
            source = file_source(undisturbed.clip, "realtime")
            system = System(processes, settings, source, summaries=True, speakers=True, targets=TARGETS)
            seen = Seen(system.settings)
            system.start()
            for n in range(args.kills):
                threading.Event().wait(APART_S)
                if seen.ended.is_set():
                    break
                waiting = [p for p in psutil.Process(system.launcher.pid).children() if MODULE in p.cmdline()]
                if n >= args.kills / 2:
                    for spare in waiting:
                        spare.kill()
                    waiting.clear()
                back_s, phases = out["out of a spare" if waiting else "from nothing"]
                at, back, rows = kill(system, seen)
                back_s.append(back - at)
                since = at
                for phase, event in PHASES:
                    until = next(r["at"] for r in rows if r["event"] == event)
                    phases.setdefault(phase, []).append(until - since)
                    since = until
                phases.setdefault("audio until text", []).append(back - since)
            assert seen.ended.wait(120.0), "the stream does not end"
            stream = next(iter(system.journal())).stream
            done_to_the_end(system, stream)
            undisturbed.assert_same(system, stream)
            system.stop()
        finally:
            processes.close()
    figures = []
    for how, (back_s, phases) in out.items():
        if back_s:
            figures.append(Figure.against(f"{how}: text again, longest of {len(back_s)}", max(back_s), "s", BOUND_S))
            figures.append(Figure(f"{how}: text again, median", statistics.median(back_s), "s"))
        figures += [Figure(f"of that: {phase}, median", statistics.median(x), "s") for phase, x in phases.items()]
    show(figures, args.json)
    what = f"{len(undisturbed.lines)} captions, silences and gaps, all turns and all translations"
    print(f"{what} are those of a run without kills", file=sys.stderr)
    return int(max(out["out of a spare"][0], default=inf) > BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
