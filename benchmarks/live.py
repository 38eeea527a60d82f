"""Live captions as a subscriber sees them: how soon words are shown, how soon they are settled, what they cost.

`python benchmarks/live.py [--model tiny.en] [--policy agreement|none] [--share 1] [--record FILE] [--json]` plays
public speech, utterances with 1.5 s between them, at the pace of its time into a running system (the launcher and
everything it starts) and prints figures with their bounds; takes as long as the speech, 7.5 minutes, and the decoding
of the utterances one by one before it. `--share 4`: every fourth utterance; `--seconds 60`: the first minute only.
Another system is played the same speech (`--wav FILE`) and its record (format: live_figures.py) stands beside ours:
`--peer NAME=FILE`, any number; `--no-run`: nothing of ours. Word times come from live_words.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from live_figures import Costs, Row, Word, figures, read, written  # noqa: E402
from live_table import Table, print_all  # noqa: E402

from common import backlog  # noqa: E402
from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests import speech  # noqa: E402
from tests.conftest import Processes, wait_for  # noqa: E402
from tests.quality import Direct  # noqa: E402
from tests.speech import RATE, Samples, samples, word_errors, words, write_wav  # noqa: E402
from tests.swaps import log_rows  # noqa: E402
from tests.system import System, file_source, quiet  # noqa: E402

PAUSE_S = 1.5
TARGETS = ("pt",)
EVERYBODY = ("launcher", "feed", "arbiter", "viewer", "transcriber", "diarizer", "translator", "summarizer")


class Speech(NamedTuple):
    """What is played: utterances one by one and joined, and every word with the second in which it ends."""

    parts: list[tuple[str, Samples]]
    joined: Samples
    said: list[Word]


def compose(share: int, seconds: float) -> Speech:
    parts, pieces, said, at = [], [quiet(1.0)], [], RATE
    rows = [json.loads(line) for line in Path(__file__).with_name("live_words.jsonl").read_text().splitlines()]
    for row in rows[::share]:
        first, end = row["span"]
        if at + end - first > seconds * RATE:
            break
        audio = clip(row["clip"])[first:end]
        parts.append((row["text"], audio))
        said += [(word, (at + stop - first) / RATE) for word, _, stop in row["words"]]
        pieces += [audio, quiet(PAUSE_S)]
        at += len(audio) + round(PAUSE_S * RATE)
    return Speech(parts, np.concatenate(pieces), said)


def clip(name: str) -> Samples:
    kind, _, rest = name.partition(".")
    match kind:
        case "jfk":
            return samples(speech.jfk().path)
        case "librivox":
            return samples(speech.librivox()[int(rest)].path)
        case "sonnet":
            return samples(speech.sonnet_parts()[int(rest) - 1].path)
        case _:
            return samples(next(c.path for c in speech.prompts("en") if c.path.stem == rest))


class Subscriber(threading.Thread):
    """Writes down what comes, when it comes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._client = FeedClient(settings, ("transcript", "suppressed", "gap", "stream_ended"), hypotheses=True)
        self.rows: list[Row] = []  # `t` is the wall clock
        self.stable: dict[str, str] = {}  # of each segment, the last before its final
        self.broken_promises = 0  # stable words that changed
        self.error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._follow()
        except BaseException as e:
            self.error = e

    def _follow(self) -> None:
        while not self.ended.is_set():
            for got in self._client.poll(0.5):
                now = time.time()
                if not getattr(got, "stream", "").startswith("talk-"):
                    continue
                if isinstance(got, m.Hypothesis):
                    self.broken_promises += not got.stable.startswith(self.stable.get(got.segment, ""))
                    self.stable[got.segment] = got.stable
                    self.rows.append(Row(now, got.segment, got.stable + got.unstable))
                elif isinstance(got, m.Event):
                    match got.decode():
                        case m.Transcript(segment=segment, text=text):
                            self.rows.append(Row(now, segment, text, True))
                        case m.Suppressed(segment=segment) | m.Gap(segment=segment):
                            self.rows.append(Row(now, segment, "", True))
                        case m.StreamEnded():
                            self.ended.set()


class Watched:
    """CPU seconds of every process of the system, and the most memory of the transcriber, looked at each second; by the
    kernel's own count also the most between two looks."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.rss_mib = self.pss_mib = self.peak_mib = 0.0
        self._cpu: dict[tuple[str, int], float] = {}

    def begin(self) -> None:
        """What loading took is no part of it."""
        Path(f"/proc/{self._system.pid('transcriber')}/clear_refs").write_text("5")

    def look(self) -> None:
        for name in (*EVERYBODY, "capture@talk"):
            pid = self._system.pid(name)
            if not pid:
                continue
            try:
                process = psutil.Process(pid)
                self._cpu[name, pid] = sum(process.cpu_times()[:2])
                if name == "transcriber":
                    memory = process.memory_full_info()
                    self.rss_mib = max(self.rss_mib, memory.rss / 2**20)
                    self.pss_mib = max(self.pss_mib, memory.pss / 2**20)
                    self.peak_mib = peak_mib(pid)
            except (psutil.Error, OSError, StopIteration):  # it has just ended
                continue

    def cpu_s(self, name: str = "") -> float:
        return sum(s for (who, _), s in self._cpu.items() if name in ("", who))


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


class Run(NamedTuple):
    """What one run of a system gave."""

    rows: list[Row]
    costs: Costs  # of the transcriber
    all_cpu_s: float  # of everything that runs
    pss_mib: float  # of the transcriber, its share of pages that others have too
    peak_mib: float  # of the transcriber, at any moment
    card_mib: float  # of its memory: what would be on a card, were it not simulated
    stable: list[tuple[str, str]]  # of each segment: the stable words before its final, the final
    broken_promises: int  # stable words that changed


def logged(settings: Settings, event: str) -> list[dict[str, Any]]:
    """The transcriber's lines of this event."""
    if not (settings.data / "logs" / "transcriber.log").exists():
        return []
    return [r for r in log_rows(settings.data, "transcriber") if r["event"] == event]


def play(settings: Settings, folder: Path, audio: Samples) -> Run:
    write_wav(folder / "talk.wav", audio)
    processes = Processes(folder, settings)
    try:
        write_wav(folder / "calm.wav", quiet(0.5))
        calm = file_source(folder / "calm.wav", "max", "calm")
        # Calibrates, so that it is no part of what is measured.
        first = System(processes, settings, calm, summaries=True, speakers=True, targets=TARGETS)
        first.start()
        wait_for(lambda: first.pid("transcriber") and logged(settings, "calibrated"), 120.0, "the calibration")
        first.stop()
        known = len(logged(settings, "granted"))
        system = System(processes, settings, calm, summaries=True, speakers=True, targets=TARGETS)
        subscriber, watched = Subscriber(system.settings), Watched(system)
        subscriber.start()
        system.start()
        wait_for(lambda: len(logged(settings, "granted")) > known, 120.0, "the model: nobody speaks before")
        watched.begin()
        added = system("capture", "--source", f"{folder / 'talk.wav'} name=talk pace=realtime")
        if added.returncode:
            raise SystemExit(added.stdout + added.stderr)
        while not subscriber.ended.wait(1.0):
            watched.look()
            if not system.launcher.alive:
                raise SystemExit(system.launcher.output())
            if subscriber.error:
                raise subscriber.error
        watched.look()
        stream = next(r.segment for r in subscriber.rows).rpartition(":")[0]
        began = backlog.anchors(system.settings.streams / stream)[0]
        system.stop()
        loaded = logged(settings, "model loaded")
    finally:
        processes.close()
    zero = began.wall_ns / 1e9 - began.sample / RATE
    rows = [r._replace(t=r.t - zero) for r in subscriber.rows]
    finals = {r.segment: r.text for r in rows if r.final}
    stable = [(text, finals.get(segment, "")) for segment, text in subscriber.stable.items()]
    costs = Costs(watched.cpu_s("transcriber"), watched.rss_mib)
    card_mib = loaded[-1]["weights_mib"] if loaded[-1]["device"] == "simulated" else 0.0
    return Run(
        rows, costs, watched.cpu_s(), watched.pss_mib, watched.peak_mib, card_mib, stable, subscriber.broken_promises
    )


def offline(settings: Settings, spoken: Speech) -> float:
    """Word errors in percent of whisper itself on each utterance alone."""
    direct = Direct(settings, settings.transcriber.model)
    pad = quiet(0.3)
    heard = " ".join(direct(np.concatenate([pad, audio, pad]), "en") for _, audio in spoken.parts)
    return error_rate(spoken, heard)


def error_rate(spoken: Speech, heard: str) -> float:
    text = " ".join(text for text, _ in spoken.parts)
    return 100 * word_errors(text, heard) / len(words(text))


def tables(args: argparse.Namespace, spoken: Speech) -> dict[str, Table]:
    """Each system's figures."""
    found, audio_s = dict[str, Table](), len(spoken.joined) / RATE
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        interim = str(args.policy != "none").lower()
        chosen = (f"data_dir={name}/data", f"transcriber.model={args.model}", f"transcriber.interim={interim}")
        settings = load(None, (*chosen, *args.set), {})
        offline_wer = None if args.no_offline else offline(settings, spoken)

        def table(who: str, rows: list[Row], costs: Costs) -> Table:
            what = figures(rows, spoken.said)
            found[who] = Table()
            found[who].of(what, len(spoken.said), error_rate(spoken, what.text), offline_wer)
            found[who].costs(costs, audio_s)
            return found[who]

        if not args.no_run:
            run = play(settings, Path(name), spoken.joined)
            if args.record:
                args.record.write_text(written(run.rows, run.costs))
            ours = table("swapscribe", run.rows, run.costs)
            ours.plain("of that: weights on the simulated card", run.card_mib, "MiB")
            ours.plain("most memory of its own (PSS)", run.pss_mib, "MiB")
            ours.plain("most resident memory at any moment", run.peak_mib, "MiB")
            ours.plain("everything that runs, cpu a second of audio", run.all_cpu_s / audio_s, "cpu-s")
            ours.stable(run.stable, run.broken_promises)
    for peer in args.peer:
        who, _, file = peer.partition("=")
        table(who, *read(Path(file).read_text().splitlines()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--policy", choices=["agreement", "none"], default="agreement")
    parser.add_argument("--share", type=int, default=1, help="play every so manieth utterance")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="play only the first so many seconds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system")
    parser.add_argument("--record", type=Path, help="write what the subscriber saw as JSON lines")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FILE", help="a record of another system")
    parser.add_argument("--no-run", action="store_true", help="only the records of others")
    parser.add_argument("--wav", type=Path, help="write the speech for another system, and end")
    parser.add_argument("--no-offline", action="store_true", help="do not decode the utterances one by one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.no_run and not args.peer:
        parser.error("--no-run needs a --peer")
    spoken = compose(args.share, args.seconds)
    if not spoken.parts:
        parser.error(f"--seconds {args.seconds:g}: no utterance is so short")
    if args.wav:
        write_wav(args.wav, spoken.joined)
        return 0
    found = tables(args, spoken)
    print_all(found, args.json)
    broken = found["swapscribe"].broken if "swapscribe" in found else []
    for name in broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
