"""Who said it: real recordings through a whole running system, beside the offline pipelines on the same weights.

`python benchmarks/quality.py diarization [--only phone,four] [--no-ami] [--json]`: a telephone call of two, composed
meetings of three, four and six (examples/make_meeting.py) at the pace of their time, and 12 excerpts of meetings (AMI)
as fast as they go. Takes 8 minutes for what is played, and the time that the offline pipelines need; with --no-ami,
half of that. Word errors by speaker need meeteval (`pip install -c constraints.txt -e '.[cpwer]'`).

Settled: what the journal holds once a stream is over. Provisional: what a subscriber that takes no notice of relabels
shows 3 s after each turn of the reference; first: the same, however late. Offline: pyannote's pipeline, and whisper
with it, on the utterances that the system cut and on the whole recording. A collar of 0.25 s is half before and half
behind each edge. Bounds stand in the names of the figures; exit status 1 when one is broken. AMI is reported as it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figures import Figure, show
from listening import Heard, Recording, Stage

from benchmarks.scores import Score, Turns, WordErrors, by_speaker, cpwer, plain, rttm, score
from common.settings import Settings, load
from examples.make_meeting import MEETINGS, compose
from tests import speech
from tests.diarization import provisional
from tests.offline_speakers import Offline
from tests.offline_words import Words, who_said
from tests.speech import RATE, samples

PHONE, TOGETHER = "phone", "composed meetings together"
COLLARS_S = (0.0, 0.25)
SETTLED, PROVISIONAL = {PHONE: 1.0}, {PHONE: 12.0}  # points of DER above the offline pipeline's, collar 0
SETTLED |= dict.fromkeys((*MEETINGS, TOGETHER), 3.0)
CHANGED = 10.0  # % of the words of a composed meeting, whose speaker changed after it was shown
CPWER = 3.0  # points above the offline pipelines'


def phone() -> Recording:
    """Two people, 30 s, in the wheel of pyannote.audio."""
    path = speech.talks()[0].path
    return Recording(PHONE, samples(path), rttm(path.with_suffix(".rttm"))["sample"], {})


def meetings() -> Iterator[Recording]:
    for name in MEETINGS:
        made = compose(name)
        turns = [(a / RATE, b / RATE, who) for a, b, who in made.turns]
        yield Recording(name, made.samples, turns, by_speaker((who, word.text) for word, who in made.words))


def ami() -> Iterator[Recording]:
    for talk in speech.talks()[1:]:
        name = plain(talk.path.stem)
        kind = "development" if name.startswith("dev") else "train"
        yield Recording(name, samples(talk.path), rttm(talk.path.parent / f"debug.{kind}.rttm")[name], {})


class Sides(NamedTuple):
    """One recording by the system and by the offline pipeline."""

    recording: Recording
    heard: Heard
    offline: Turns

    def score(self, of: str, collar_s: float) -> Score:
        return scored([self], of, collar_s)

    @property
    def provisional(self) -> Turns:
        return provisional(self.heard.told, self.recording.turns)

    @property
    def settled(self) -> Turns:
        return self.heard.settled

    @property
    def first(self) -> Turns:
        """What was told provisionally, however late."""
        return [t.turn for t in self.heard.told]


def speakers(turns: Turns) -> set[str]:
    return {who for *_, who in turns}


def scored(sides: Sequence[Sides], of: str, collar_s: float) -> Score:
    """`of`: settled, provisional, first or offline"""
    return score([(s.recording.turns, getattr(s, of), s.recording.length_s) for s in sides], collar_s)


SPEAKERS = (  # how many there are, by the reference, by the system, by the offline pipeline
    lambda s: len(speakers(s.recording.turns)),
    lambda s: len(speakers(s.settled)),
    lambda s: len(speakers(s.offline)),
)


class Report:
    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def plain(self, name: str, value: float, unit: str) -> None:
        self.figures.append(Figure(name, value, unit))

    def beside(self, name: str, value: float, unit: str, offline: float, more: float | None = None) -> None:
        """A figure whose baseline is the offline pipeline's; bounded: at most `more` above it."""
        bound = "" if more is None else f" (bound offline + {more:g})"
        self.figures.append(Figure.against(name + bound, value, unit, offline))
        if more is not None and not value <= offline + more:
            self.broken.append(self.figures[-1].name)

    def bounded(self, name: str, value: float, unit: str, bound: float) -> None:
        self.figures.append(Figure.against(f"{name} (bound ≤ {bound:g})", value, unit, bound))
        if not value <= bound:
            self.broken.append(self.figures[-1].name)

    def turns(self, name: str, sides: Sequence[Sides], live: bool = True) -> None:
        """DER and JER of one recording, or of several counted together."""
        for collar_s in COLLARS_S:
            offline = scored(sides, "offline", collar_s)
            for of, bounds in {"settled": SETTLED, "provisional": PROVISIONAL, "first": {}}.items():
                if of == "provisional" and not live:
                    continue
                found, what = scored(sides, of, collar_s), f"{of}, collar {collar_s:g}"
                self.beside(f"{name}: DER {what}", found.der, "%", offline.der, None if collar_s else bounds.get(name))
                self.beside(f"{name}: JER {what}", found.jer, "%", offline.jer)
                for part in () if collar_s else ("missed", "false_alarm", "confusion"):
                    there = f"{name}: {part.replace('_', ' ')} {what}"
                    self.beside(there, getattr(found, part), "%", getattr(offline, part))
        true, settled, theirs = (sum(map(count, sides)) for count in SPEAKERS)
        self.beside(f"{name}: speakers settled, of {true}", settled, "", theirs)

    def shown(self, name: str, side: Sides) -> None:
        """What people saw, and what it took."""
        words, nobodys, changed, ever = side.heard.shown.counted()
        share = 100 / max(1, words)
        what = f"{name}: words whose speaker changed after it was shown"
        if name in MEETINGS:
            self.bounded(what, share * changed, "%", CHANGED)
        else:
            self.plain(what, share * changed, "%")
        self.plain(f"{name}: the same, also if it changed back", share * ever, "%")
        self.plain(f"{name}: words of nobody at the end", share * nobodys, "%")
        self.late(f"{name}: turns, told after their end", [t.at_s - t.turn[1] for t in side.heard.told])
        self.late(f"{name}: captions after their last word", side.heard.captions_late_s)
        for worker, cost in side.heard.costs.items():
            self.plain(f"{name}: {worker}, cpu a second of sound (RTF)", cost.cpu, "cpu-s")
            self.plain(f"{name}: {worker}, most resident memory", cost.rss_mib, "MiB")
            self.bounded(f"{name}: {worker}, processes", cost.lives, "", 1)

    def late(self, name: str, late_s: list[float]) -> None:
        for p in (50, 95):
            self.plain(f"{name}, p{p}", float(np.percentile(late_s, p)) if late_s else float("nan"), "s")

    def words(self, side: Sides, whisper: Words) -> None:
        """Word errors by speaker, beside whisper on the same utterances and on the whole, with offline speakers."""
        r, heard = side.recording, side.heard
        ours = cpwer(r.said, by_speaker((run.speaker, run.text) for run in heard.shown.runs))
        spans = sorted(t.span for t in heard.transcripts)
        for what, words, more in (
            ("whisper by utterance", whisper.of_parts(r.audio, spans), CPWER),
            ("whisper on the whole", whisper.words(r.audio), None),
        ):
            theirs: WordErrors = cpwer(r.said, by_speaker(who_said(words, side.offline)))
            name = f"{r.name}: cpWER, {ours.words} words, offline: {what}"
            self.beside(name, ours.percent, "%", theirs.percent, more)


def run(settings: Settings, folder: Path, only: Sequence[str], with_ami: bool, fast: bool) -> Report:
    live = [r for r in (phone(), *meetings()) if not only or r.name in only]
    excerpts = list(ami()) if with_ami else []
    with Stage(folder, settings) as stage:
        heard = {} if fast else {r.name: stage.play(r) for r in live}
        heard |= stage.play_all([*live, *excerpts] if fast else excerpts)
        for note, worker in stage.subscriber.notes.items():
            print(f"{worker}: {note}", file=sys.stderr)
    offline = Offline()
    sides = {r.name: Sides(r, heard[r.name], offline(r.audio)) for r in (*live, *excerpts)}
    report = Report()
    for r in live:
        report.turns(r.name, [sides[r.name]], not fast)
    composed = [sides[r.name] for r in live if r.said]
    if len(composed) > 1:
        report.turns(TOGETHER, composed, not fast)
    for r in excerpts:
        report.turns(f"AMI {r.name}", [sides[r.name]], live=False)
    if excerpts:
        report.turns("AMI together", [sides[r.name] for r in excerpts], live=False)
    for r in [] if fast else live:
        report.shown(r.name, sides[r.name])
    if find_spec("meeteval"):
        whisper = Words(settings)
        for side in composed:
            report.words(side, whisper)
    else:
        print("no word errors by speaker: pip install -c constraints.txt -e '.[cpwer]'", file=sys.stderr)
    return report


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quality.py diarization", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model, help="of the transcriber, and whisper's")
    parser.add_argument("--only", default="", help=f"of {PHONE}, {', '.join(MEETINGS)}: these, with commas")
    parser.add_argument("--no-ami", action="store_true")
    parser.add_argument("--fast", action="store_true", help="play nothing at its pace: what is settled, and no times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the data and logs of the system there")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as name:
        chosen = (
            f"data_dir={(args.keep or Path(name)).absolute()}/data",
            f"transcriber.model={args.model}",
            "transcriber.language=en",
            *args.set,
        )
        only = [o for o in args.only.split(",") if o]
        report = run(load(None, chosen, {}), Path(name), only, not args.no_ami, args.fast)
    show(report.figures, args.json)
    for what in report.broken:
        print(f"broken: {what}", file=sys.stderr)
    return int(bool(report.broken))
