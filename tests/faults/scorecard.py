"""Plays a live stream with swaps under faults drawn from a seed, checks everything, and writes docs/faults.md.

    make faults N=200 SEED="1 2 3"        one run for each seed; exit status 1 when anything was violated
    python -m tests.faults.scorecard --faults 20 --seed 7 --keep FOLDER --no-doc

The clip (real speech) is first transcribed without any fault: what a run must come to. Each run leaves its faults (a
line each), the arbiter's decisions and all logs in KEEP/seed-N, and a result.json from which the page is made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from common import backlog
from common.settings import Settings
from tests.conftest import ROOT, Processes, wait_for
from tests.faults import page
from tests.faults.checker import CHECKS, Decision, Evidence, backlog_differs, violations
from tests.faults.inject import Done, Injector
from tests.faults.schedule import Fault, draw
from tests.faults.system import (
    CARD_MIB,
    DISK_MIB,
    EVERYBODY,
    MARGIN_MIB,
    MIB,
    SPEAKERS,
    TARGETS,
    CardWatch,
    FaultSystem,
)
from tests.faults.troubled import DECISIONS
from tests.small_disk import small_disk
from tests.swaps import log_rows
from tests.system import Following, Undisturbed, file_source, heard, translated

APART_S = 2.5
LONGER = 1.2  # than the faults need if each meets something
CLIP_S = 106.0  # of what `compose` makes of one repetition
DRAINS_WITHIN_S = 120.0  # the next event at least
T = TypeVar("T")


class Run:
    """One run: `play` returns what was found. `folder` outlives it: logs, decisions, faults."""

    def __init__(self, undisturbed: Undisturbed, folder: Path, pace: float = 1.0) -> None:
        self.undisturbed, self.folder, self.pace = undisturbed, folder, pace
        folder.mkdir(parents=True)

    def play(self, seed: int, count: int, apart_s: float = APART_S) -> page.Result:
        """Until `count` faults have met something, or the drawn ones are used up."""
        place = Path(tempfile.mkdtemp(prefix="sw-"))  # short: a socket's path has 107 bytes
        settings = Settings(data_dir=str(place / "data"))
        processes = Processes(place, settings)
        try:
            with small_disk(settings.data, DISK_MIB):
                source = file_source(self.undisturbed.clip, f"{self.pace:.3f}")
                system = FaultSystem(processes, settings, self.folder, source)
                try:
                    return self._play(system, draw(seed, count, apart_s), count, seed)
                finally:
                    processes.close()
        finally:
            for started in processes.started:  # the launchers' words
                shutil.copy(started.log, self.folder / "logs" / started.log.name)
            shutil.rmtree(place, ignore_errors=True)

    def _play(self, system: FaultSystem, faults: list[Fault], count: int, seed: int) -> page.Result:
        began = time.time()
        system.start()
        card = CardWatch(system.run, system.settings)
        stream = wait_for(lambda: backlog.streams(system.settings.streams), 120.0, "a stream")[0].name
        injector = Injector(system, self.folder, time.monotonic())
        for fault in faults:
            while (left_s := injector.began + fault.at_s - time.monotonic()) > 0:
                time.sleep(min(left_s, 0.1))
            while injector.enough(count) and injector.under_way:  # which of them meets something is not known yet
                time.sleep(0.1)
            if injector.enough(count):
                break
            injector.inflict(fault)
        injector.finish()
        evidence = self._evidence(system, stream, injector.done, card)
        found = violations(evidence)
        (self.folder / "violations").write_text("".join(f"{v}\n" for v in found))
        if found:  # all there is to find out why
            shutil.copytree(system.settings.data, self.folder / "data", ignore=shutil.ignore_patterns("logs", "run"))
        return page.Result(
            seed=seed,
            faults=sorted(injector.done, key=lambda d: d.number),
            violations=found,
            minutes=(time.time() - began) / 60,
            audio_s=self.undisturbed.end / 16_000,
            captions=len([x for x in evidence.events if x.kind == "transcript"]),
            summaries=len([x for x in evidence.events if x.kind == "summary"]),
            grants=len([1 for d in evidence.decisions if d.event == "lease" and d.granted]),
            looks=card.looks,
            strict_looks=card.strict,
            most_mib=card.most_bytes // MIB,
            card_mib=CARD_MIB - MARGIN_MIB,
            machine=page.machine(),
            commit=commit(),
            date=time.strftime("%Y-%m-%d"),
        )

    def _evidence(self, system: FaultSystem, stream: str, done: list[Done], card: CardWatch) -> Evidence:
        """Waits until everything is done and everybody is up, asks, stops the system, and looks for what is left."""
        wrong = [f"{d.target} after fault {d.number} ({d.kind})" for d in done if d.recovered_s < 0]
        wrong += self._drain(system)
        events = system.journal()
        truth = system.state_hash()
        late = Following(system.settings)
        hashes = {"feed": truth.sha256}
        for name, follower in (("connected throughout", system.follower), ("late joiner", late)):
            with contextlib.suppress(Exception):
                follower.wait_seq(truth.upto)
            hashes[name] = str(follower.error or follower.state_hash(truth.upto))
        status = system.launcher.stop(90.0)
        card.close()
        with contextlib.suppress(BaseException):
            wait_for(lambda: not system.of_this_run(), 10.0)
        removed = [r for r in log_rows(system.settings.data, "capture@talk") if r["event"] == "audio removed"]
        audio = backlog_differs(system.settings.streams / stream, self.undisturbed.audio, removed)
        others = [p for p in backlog.streams(system.settings.streams) if p.name != stream]
        return Evidence(
            stream=stream,
            events=events,
            lines=self.undisturbed.lines,
            appends=self.undisturbed.appends,
            turns=self.undisturbed.turns,
            targets=system.settings.translate.targets,
            translations=self.undisturbed.translations,
            audio=audio + [f"another stream: {p.name}" for p in others],
            delivered=[x.seq for x in system.follower.events],
            hashes=hashes,
            rules=system.settings.summary,
            card_bytes=(CARD_MIB - MARGIN_MIB) * MIB,
            most_bytes=card.most_bytes,
            too_much=card.too_much,
            decisions=decisions(self.folder / DECISIONS),
            left_processes=system.of_this_run(),
            left_bytes=sum(card.card.by_pid().values()),
            stop_status=status,
            unrecovered=wrong,
            tracebacks=tracebacks(self.folder / "logs"),
        )

    def _drain(self, system: FaultSystem) -> list[str]:
        """Nothing to do any more. What does not come in time is a violation, not an exception."""
        wrong = []

        def summarised() -> bool:
            beat = system.follower.last_beat
            transcripts = [x for x in system.follower.events if x.kind == "transcript"]
            places = beat.streams[transcripts[-1].stream].producers if beat and transcripts else {}
            at = places["summarizer"].positions.get("transcript", 0) if "summarizer" in places else 0
            return bool(transcripts) and at >= transcripts[-1].seq

        def stream() -> str:
            ended = system.follower.find("stream_ended")
            return ended.stream if ended else ""

        for what, state in (
            ("the stream's end", lambda: system.follower.find("stream_ended")),
            ("minutes of everything", summarised),
            ("turns of everything", lambda: heard(stream(), system.follower.last_beat)),
            ("translations of everything", lambda: translated(stream(), system.follower.last_beat, TARGETS)),
            ("everybody to be up", lambda: all(map(system.pid, EVERYBODY)) and system.follower.well()),
        ):
            seen, waited = -1, None
            while waited is None and len(system.follower.events) != seen:  # as long as something comes
                seen = len(system.follower.events)
                waited = until(state, DRAINS_WITHIN_S)
            if not waited:
                wrong.append(f"nothing came in {DRAINS_WITHIN_S:.0f} s of waiting for {what}")
        return wrong


def until(state: Callable[[], T], within_s: float) -> T | None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError, KeyError):
            if result := state():
                return result
        time.sleep(0.05)
    return None


def decisions(path: Path) -> list[Decision]:
    return [msgspec.json.decode(line, type=Decision) for line in path.read_bytes().splitlines()]


def tracebacks(folder: Path) -> list[str]:
    """Of each log, each exception that got into it: its last line."""
    out = []
    for path in sorted(folder.glob("*.log*")):
        inside = False
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    if trace := json.loads(line).get("traceback"):
                        out.append(f"{path.name}: {trace.splitlines()[-1][:200]}")
                inside = False
            elif line.startswith("Traceback (most recent call last)"):
                inside = True
            elif inside and line[:1] not in (" ", ""):
                out.append(f"{path.name}: {line[:200]}")
                inside = False
    return out


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, nargs="*", default=[])
    parser.add_argument(
        "--keep",
        type=lambda name: Path(name).resolve(),
        help="where the runs leave their logs (default: a temporary folder)",
    )
    parser.add_argument("--no-doc", action="store_true", help="do not write docs/faults.md")
    parser.add_argument("--apart", type=float, default=APART_S, help="seconds between two faults, on average")
    args = parser.parse_args()
    if os.geteuid() != 0:  # to fill a file system of our own
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.faults.scorecard", *sys.argv[1:]])
    seeds = args.seed or [random.SystemRandom().randrange(10**6)]
    keep = args.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    repeats = math.ceil(args.faults * args.apart * LONGER / CLIP_S)
    print(f"{args.faults} faults for each of {seeds}; logs in {keep}", flush=True)
    print(f"first without any fault: {repeats * CLIP_S / 60:.1f} min of speech", flush=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        undisturbed = Undisturbed(Path(folder), repeats, timeout_s=600.0 * repeats, speakers=SPEAKERS, targets=TARGETS)
        for seed in seeds:
            where = keep / f"seed-{seed}"
            shutil.rmtree(where, ignore_errors=True)
            result = Run(undisturbed, where).play(seed, args.faults, args.apart)
            (where / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
            results.append(result)
            print(page.line(result), flush=True)
            for violation in result.violations:
                print(f"  {violation}", flush=True)
    if not args.no_doc:
        page.write(results, CHECKS)
    return 1 if any(r.violations for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
