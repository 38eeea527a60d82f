"""Live captions as a subscriber sees them: how soon words are shown, how soon they are settled, what they cost.

`python benchmarks/live.py [--model tiny.en] [--policy agreement|none] [--share 1] [--record FILE] [--json]` plays
public speech, utterances with 1.5 s between them, at the pace of its time into a running system (the launcher and
everything it starts) and prints figures with their bounds; takes as long as the speech, 7.5 minutes. `--share 4`:
every fourth utterance. `--figures FILE` takes a record that was made of any other system in place of a run (format:
live_figures.py; the speech to play to it: `--wav FILE`). Word times come from live_words.jsonl.
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

from figures import Figure, show  # noqa: E402
from live_figures import Figures, Row, Word, figures  # noqa: E402

from common import backlog  # noqa: E402
from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests import speech  # noqa: E402
from tests.conftest import Processes  # noqa: E402
from tests.quality import Direct  # noqa: E402
from tests.speech import RATE, Samples, samples, word_errors, words, write_wav  # noqa: E402
from tests.system import System, file_source, quiet  # noqa: E402

PAUSE_S = 1.5
BOUNDS = {"shown": (1.2, 2.5), "settled": (1.5, 3.0)}  # s: p50, p95
TAKEN_BACK, WER_MORE, CPU, MEMORY_MIB = 0.1, 0.5, 0.8, 700


class Speech(NamedTuple):
    """What is played: utterances one by one and joined, and every word with the second in which it ends."""

    parts: list[tuple[str, Samples]]
    joined: Samples
    said: list[Word]


def compose(share: int) -> Speech:
    parts, pieces, said, at = [], [quiet(1.0)], [], RATE
    rows = [json.loads(line) for line in Path(__file__).with_name("live_words.jsonl").read_text().splitlines()]
    for row in rows[::share]:
        first, end = row["span"]
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
        self.unstable_changes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            for got in self._client.poll(0.5):
                now = time.time()
                if not getattr(got, "stream", "").startswith("talk-"):
                    continue
                if isinstance(got, m.Hypothesis):
                    self.unstable_changes += not got.stable.startswith(self.stable.get(got.segment, ""))
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


class Costs:
    """CPU seconds of every process of the system, and the most memory of the transcriber, sampled."""

    def __init__(self, system: System) -> None:
        self._system, self.most_mib, self.without_card_mib = system, 0.0, 0.0
        self._cpu: dict[tuple[str, int], float] = {}

    def look(self) -> None:
        for name in ("launcher", "feed", "arbiter", "viewer", "transcriber", "capture@talk"):
            pid = self._system.pid(name)
            if not pid:
                continue
            try:
                process = psutil.Process(pid)
                self._cpu[name, pid] = sum(process.cpu_times()[:2])
                if name == "transcriber":
                    self.most_mib = max(self.most_mib, process.memory_info().rss / 2**20)
            except psutil.Error:
                continue

    def cpu_s(self, name: str = "") -> float:
        return sum(s for (who, _), s in self._cpu.items() if name in ("", who))


class Run(NamedTuple):
    """What one run of a system gave."""

    rows: list[Row]
    costs: dict[str, float]  # of the whole run, in cpu-seconds and MiB
    stable: list[tuple[str, str]]  # of each segment: the stable words before its final, the final
    broken_promises: int  # stable words that changed


def play(settings: Settings, folder: Path, audio: Samples) -> Run:
    write_wav(folder / "talk.wav", audio)
    processes = Processes(folder, settings)
    try:
        # Calibrates, so that it is no part of what is measured.
        write_wav(folder / "calm.wav", quiet(0.5))
        first = System(processes, settings, file_source(folder / "calm.wav", "max", "calm"), summaries=True)
        first.start()
        first.up("transcriber", 60.0)
        while not (settings.data / "calibration.json").exists():
            time.sleep(0.2)
        first.stop()
        system = System(processes, settings, file_source(folder / "talk.wav", "realtime"), summaries=True)
        subscriber, costs = Subscriber(system.settings), Costs(system)
        subscriber.start()
        system.start()
        while not subscriber.ended.wait(1.0):
            costs.look()
            if not system.launcher.alive:
                raise SystemExit(system.launcher.output())
        costs.look()
        stream = next(r.segment for r in subscriber.rows).rpartition(":")[0]
        began = backlog.anchors(system.settings.streams / stream)[0]
        system.stop()
    finally:
        processes.close()
    zero = began.wall_ns / 1e9 - began.sample / RATE
    rows = [r._replace(t=r.t - zero) for r in subscriber.rows]
    finals = {r.segment: r.text for r in rows if r.final}
    stable = [(text, finals.get(segment, "")) for segment, text in subscriber.stable.items()]
    spent = {"transcriber": costs.cpu_s("transcriber"), "all": costs.cpu_s(), "mib": costs.most_mib}
    return Run(rows, spent, stable, subscriber.unstable_changes)


def offline(settings: Settings, spoken: Speech) -> float:
    """Word errors in percent of whisper itself on each utterance alone."""
    direct = Direct(settings, settings.transcriber.model)
    pad = quiet(0.3)
    heard = " ".join(direct(np.concatenate([pad, audio, pad]), "en") for _, audio in spoken.parts)
    return error_rate(spoken, heard)


def error_rate(spoken: Speech, heard: str) -> float:
    text = " ".join(text for text, _ in spoken.parts)
    return 100 * word_errors(text, heard) / len(words(text))


class Table:
    """Figures with bounds in their names, and which are broken."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def bounded(self, name: str, value: float, unit: str, bound: float) -> None:
        self.figures.append(Figure.against(f"{name} (bound ≤ {bound:g})", value, unit, bound))
        if not value <= bound:
            self.broken.append(self.figures[-1].name)

    def plain(self, name: str, value: float, unit: str) -> None:
        self.figures.append(Figure(name, value, unit))

    def of(self, found: Figures, spoken: Speech, offline_wer: float | None) -> None:
        for what, (middle, most) in BOUNDS.items():
            share = found.shown if what == "shown" else found.settled
            self.bounded(f"words {what}, p50 after their end", share(0.5), "s", middle)
            self.bounded(f"words {what}, p95 after their end", share(0.95), "s", most)
        self.bounded("words taken back per final word", found.taken_back_per_word, "words", TAKEN_BACK)
        wer = error_rate(spoken, found.text)
        if offline_wer is None:
            self.plain("word errors", wer, "%")
        else:
            self.bounded(f"word errors, offline {offline_wer:.2f} %", wer, "%", offline_wer + WER_MORE)
        self.plain("final words that were timed", len(found.timings), f"of {len(spoken.said)}")

    def of_run(self, run: Run, audio_s: float) -> None:
        self.bounded("transcriber, cpu a second of audio", run.costs["transcriber"] / audio_s, "cpu-s", CPU)
        self.plain("everything that runs, cpu a second of audio", run.costs["all"] / audio_s, "cpu-s")
        self.bounded("transcriber, most memory (RSS, simulated card's included)", run.costs["mib"], "MiB", MEMORY_MIB)
        self.bounded("stable words that changed before their final", run.broken_promises, "", 0)
        pairs = [(figures([Row(0, "", a), Row(1, "", b)], []), len(a.split())) for a, b in run.stable if b]
        share = 100 * sum(f.taken_back for f, _ in pairs) / max(1, sum(n for _, n in pairs))
        self.bounded("stable words that differ from their final", share, "%", 5.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--policy", choices=["agreement", "none"], default="agreement")
    parser.add_argument("--share", type=int, default=1, help="play every so manieth utterance")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system")
    parser.add_argument("--record", type=Path, help="write what the subscriber saw as JSON lines")
    parser.add_argument("--figures", type=Path, help="take this record of another system in place of a run")
    parser.add_argument("--wav", type=Path, help="write the speech for another system, and end")
    parser.add_argument("--no-offline", action="store_true", help="do not decode the utterances one by one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    spoken = compose(args.share)
    if args.wav:
        write_wav(args.wav, spoken.joined)
        return 0
    table = Table()
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        interim = str(args.policy != "none").lower()
        chosen = (f"data_dir={name}/data", f"transcriber.model={args.model}", f"transcriber.interim={interim}")
        settings = load(None, (*chosen, *args.set), {})
        offline_wer = None if args.no_offline else offline(settings, spoken)
        if args.figures:
            lines = args.figures.read_text().splitlines()
            table.of(figures([Row(**json.loads(line)) for line in lines], spoken.said), spoken, offline_wer)
        else:
            run = play(settings, Path(name), spoken.joined)
            if args.record:
                record: list[dict[str, Any]] = [r._asdict() for r in run.rows]
                args.record.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in record))
            table.of(figures(run.rows, spoken.said), spoken, offline_wer)
            table.of_run(run, len(spoken.joined) / RATE)
    show(table.figures, args.json)
    for name in table.broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(table.broken))


if __name__ == "__main__":
    sys.exit(main())
