"""An hour of swaps: does anything grow that should not?

`python benchmarks/soak.py [--minutes 60] [--tenfold-minutes 10] [--rows FILE] [--json]`. Real processes (launcher,
capture, transcriber, summarizer, arbiter, feed, viewer) on a simulated card of 700 MiB that holds one of two models.

`real`: Whisper tiny.en and SmolLM2-135M on real speech at real-time pace, minutes due every 10 s of it, and a swap by
hand every 10 s, as `swapscribe gpu swap` orders it: the minutes that wait are written, or else everybody leaves the
card and comes back. Nothing but these orders starts a burst. `tenfold`: 10 x pace, minutes of 300 s of the stream
each 30 s from the newest 1,024 tokens, a swap each second (when none is under way), and a STAND-IN for the transcriber,
whose words are made up.

Everything seen is a line of FILE at once; `--read FILE` makes the table of such a file again, also of a run that was
cut off. Status 1 when a bound is missed or a process ended; what the table holds is said in `soak_figures.py`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from math import inf
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from journal_size import journal_bytes  # noqa: E402
from soak_figures import read, tell  # noqa: E402
from soak_watch import Look, Operator, Rows, size_of  # noqa: E402

from common import messages as m  # noqa: E402
from common import wire  # noqa: E402
from common.feed_client import Appender  # noqa: E402
from common.settings import Settings, SummarySettings  # noqa: E402
from tests.conftest import Processes  # noqa: E402
from tests.speech import RATE, samples, write_wav  # noqa: E402
from tests.swaps import SwapSystem, gpu  # noqa: E402
from tests.system import RECORDING, System, assert_whole, file_source, quiet  # noqa: E402

CARD_MIB = 700
NEVER_S = 1e7
AFTER_S = 300.0  # most that the end of the stream may take in the journal
LAST_MINUTES_S = 5.0  # after which those of the end of the stream are wanted, if there are any


class Part(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    minutes: float  # on the clock
    pace: int
    swap_every_s: float
    interval_s: float  # of the stream: minutes of so much
    context_tokens: int = 4096
    plans: dict[str, Any] = {}  # of tests.standin_models
    lag_hard_s: float = 20.0


def clip(path: Path, seconds: float) -> int:
    """Real speech, a pause, speech backwards (sound that is no language), a pause, again and again; its samples."""
    speech = samples(RECORDING)
    pieces = [speech, quiet(9.3), speech[2 * RATE : 9 * RATE][::-1], quiet(2.1)]
    left = total = round(seconds * RATE)
    out = []
    while left > 0:
        for piece in pieces:
            out.append(piece[:left])
            left -= len(out[-1])
    write_wav(path, *out)
    return total


def play(part: Part, folder: Path, rows: Rows) -> None:
    rows.part = part.name
    folder.mkdir()
    total = clip(folder / "clip.wav", part.minutes * 60 * part.pace)
    settings = Settings(
        data_dir=str(folder / "data"),
        gpu=gpu(  # no rule of the policy begins a burst
            simulated_mib=CARD_MIB,
            silence_s=NEVER_S,
            patience_s=NEVER_S,
            overdue_s=NEVER_S,
            lag_hard_s=part.lag_hard_s,
        ),
        summary=SummarySettings(interval_s=part.interval_s, max_new_tokens=32, context_tokens=part.context_tokens),
    )
    processes = Processes(folder, settings)
    source = file_source(folder / "clip.wav", str(part.pace))
    system: System
    if part.plans:
        system = SwapSystem(processes, settings, part.plans, source, summaries=True)
    else:
        system = System(processes, settings, source, summaries=True)
    rows.put("began", minutes=part.minutes, pace=part.pace, swap_every_s=part.swap_every_s, samples=total)
    try:
        system.start()
        follow(part, system, rows)
    finally:
        processes.close()


def follow(part: Part, system: System, rows: Rows) -> None:
    look = Look(system, rows)
    operator = Operator(system.settings, rows, part.swap_every_s)
    heard = wire.subscriber([wire.ipc(system.settings, "pub")], ["event.stream_ended"])
    deadline = time.monotonic() + part.minutes * 60 + AFTER_S
    stream, ended_at = "", inf
    while time.monotonic() < deadline and (look.minutes_wait() or time.monotonic() < ended_at + LAST_MINUTES_S):
        look.turn(operator.swaps)
        if not operator.is_alive() and started(system, look.gpu):
            operator.start()
        if frames := wire.receive(heard):
            stream = msgspec.msgpack.decode(frames[-1], type=m.Event).stream
            ended_at = time.monotonic()
            rows.put("stream ended", swaps=operator.swaps)
        time.sleep(0.05)
    if operator.is_alive():
        operator.close()
    look.turn(operator.swaps)
    live = look.gpu.swaps if look.gpu else 0
    heard.close()
    look.close()
    if not stream:
        rows.put("failed", why=f"the stream had not ended {AFTER_S:.0f} s after its audio")
        return
    events = system.journal()
    end = assert_whole(events, stream)  # raises when a sample has no class, or two
    places = [(p, stream, at) for p in ("transcriber", "summarizer") if (at := place(system, p, stream))]
    computed = journal_bytes(events, places)
    system.stop()  # its journal is one file again
    audio = sum(f.stat().st_size for f in (system.settings.streams / stream / "audio").iterdir())
    kinds = [e.kind for e in events]
    rows.put(
        "bytes",
        journal=size_of(system.settings.data / "journal"),
        journal_computed=computed,
        audio=audio,
        samples=end,
        live_swaps=live,
        events=len(events),
        minutes=kinds.count("summary"),
        captions=kinds.count("transcript"),
        gaps=kinds.count("gap"),
    )


def started(system: System, state: m.GpuState | None) -> bool:
    """Both are there, and the transcriber knows its size: swaps during its calibration would begin it again."""
    names = {w.worker for w in state.workers} if state else set()
    return {"transcriber", "summarizer"} <= names and " calibrated" in system.log("transcriber").replace('"', " ")


def place(system: System, producer: str, stream: str) -> m.At | None:
    asker = Appender(system.settings, producer)
    try:
        at = asker.at(stream)
    finally:
        asker.close()
    return at if isinstance(at, m.At) and at.n else None


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of the real models, at real-time pace; 0: none")
    parser.add_argument("--tenfold-minutes", type=float, default=10.0, help="of 10 x pace, on the clock; 0: none")
    parser.add_argument("--rows", default="", metavar="FILE", help="everything seen (default: soak-TIME.jsonl here)")
    parser.add_argument("--read", default="", metavar="FILE", help="no run: the table of such a file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.read:
        return tell(read(Path(args.read)), args.json)
    parts = [
        Part(name="real", minutes=args.minutes, pace=1, swap_every_s=10.0, interval_s=10.0),
        Part(
            name="tenfold",
            minutes=args.tenfold_minutes,
            pace=10,
            swap_every_s=1.0,
            interval_s=300.0,
            context_tokens=1024,  # 4,096 take 40 s to read, and nothing would be left for captions
            plans={"transcriber": {"says_mib": 400}},  # beside it there is no room for the summarizer
            lag_hard_s=200.0,  # its lag is counted in seconds of the stream
        ),
    ]
    file = Path(args.rows or f"soak-{time.strftime('%Y%m%dT%H%M%S')}.jsonl")
    print(f"everything seen: {file}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, interrupt)
    with file.open("w") as out, tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as name:
        rows = Rows(out)
        rows.put("machine", cpus=os.cpu_count(), load=os.getloadavg()[0])
        try:
            for part in parts:
                if part.minutes > 0:
                    play(part, Path(name, part.name), rows)
        except KeyboardInterrupt:
            rows.put("failed", why="interrupted")
        except BaseException as e:  # the table of what was seen comes first
            rows.put("failed", why=repr(e)[:500])
    return tell(read(file), args.json)


if __name__ == "__main__":
    sys.exit(main())
