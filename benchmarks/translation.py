"""Translations: what the live path makes of sentences beside the same models on the whole sentences, and how late.

`python benchmarks/quality.py translation [--sentences 15] [--no-speech] [--json]`. Bounds stand in the names of the
figures; exit status 1 when one is broken. Takes six minutes; --no-speech, five.

Reference transcripts: sentences of the Universal Declaration of Human Rights, in English and in Portuguese, are cut
into segments wherever somebody may pause, and said at the pace of speech to a real feed, arbiter and translator
(tests/translating.py stands in for the transcriber). English is translated to Portuguese, Portuguese to English: two
targets at once. chrF: of the journal's translations with those of the whole sentences as reference; beside it, if each
segment were translated for itself; and of both with the human translation. From speech: the bundled recording through
a whole system, held against the direct translation of what is said in it, beside its word errors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from figures import Figure, show

from benchmarks.scorecard import whole
from benchmarks.scores import Translated, bleu, chrf, wer
from common import messages as m
from common.feed_client import FeedClient
from common.settings import Settings, load
from common.translations import Translations
from tests.conftest import Processes, wait_for
from tests.parallel_text import declaration
from tests.system import RECORDING, System, file_source, recording_text, text
from tests.translating import Stage, with_targets
from workers._torch import set_up
from workers.translation_models import Models
from workers.translation_models import load as load_models

CHRF, LATE_S = 95.0, 1.5  # bounds: at least, and at most for 95 of 100
PAUSES_S = (0.3, 0.8, 1.5)  # within a sentence: shorter than what ends one
SPEECH_S = 600.0  # until a recording of 44 s must be translated


class Spoken(NamedTuple):
    """One language's part of the reference."""

    language: str
    target: str
    sentences: list[str]
    human: list[str]
    pieces: list[tuple[str, float]]  # segments, and the pause before each


def spoken(source: str, target: str, count: int, seed: int) -> Spoken:
    """`count` sentences that end with a stop in both languages: what ends without one, nobody could know the end of."""
    chance = Random(seed)
    pairs = [p for p in zip(*declaration(source, target), strict=True) if all(text.endswith(".") for text in p)]
    chosen = [pairs[i] for i in sorted(chance.sample(range(len(pairs)), min(count, len(pairs))))]
    sentences = [said for said, _ in chosen]
    return Spoken(source, target, sentences, [human for _, human in chosen], list(cut(sentences, chance)))


def cut(sentences: Sequence[str], chance: Random) -> Iterator[tuple[str, float]]:
    """One text in segments of 3 to 14 words, whatever ends in them."""
    words = " ".join(sentences).split()
    while words:
        count = chance.randint(3, 14)
        yield " ".join(words[:count]), chance.choice(PAUSES_S)
        words = words[count:]


def directly(models: Models, texts: Sequence[str], source: str, target: str) -> list[Translated]:
    """Each for itself."""
    return [(t, whole(models.translate([t], source, target))[0].text) for t in texts]


class Figures:
    def __init__(self) -> None:
        self.all: list[Figure] = []
        self.broken: list[str] = []

    def plain(self, name: str, value: float, unit: str = "", baseline: float | None = None) -> None:
        known = baseline is not None
        self.all.append(Figure.against(name, value, unit, baseline) if known else Figure(name, value, unit))

    def bounded(self, name: str, value: float, unit: str, bound: float, least: bool = False) -> None:
        self.plain(f"{name} (bound {'≥' if least else '≤'} {bound:g})", value, unit, bound)
        if not (value >= bound if least else value <= bound):
            self.broken.append(self.all[-1].name)


def from_reference(figures: Figures, folder: Path, settings: Settings, models: Models, count: int, seed: int) -> None:
    both = [spoken(a, b, count, seed + i) for i, (a, b) in enumerate((("en", "pt"), ("pt", "en")))]
    processes = Processes(folder, settings)
    try:
        stage = Stage(processes, settings, *(s.target for s in both))
        stage.start()
        stage.beat_of_translator()
        say(stage, both)
        stage.over()
        for s in both:
            one_way(figures, s, stage, models)
        worker = stage.beat_of_translator()
        delay = next((d for d in worker.delays if d.stage == "translation"), None)
        if delay:
            name = f"{delay.count} sentences, from the commit that makes one whole"
            figures.plain(f"{name}, p50", delay.p50_s, "s")
            figures.bounded(f"{name}, p95", delay.p95_s, "s", LATE_S)
        else:
            figures.broken.append("no delay was measured")
    finally:
        processes.close()


def say(stage: Stage, both: Sequence[Spoken]) -> None:
    """At the pace of speech, one language after the other, in one stream."""
    never, at = threading.Event(), time.monotonic()
    for s in both:
        for i, (segment, pause_s) in enumerate(s.pieces):
            before = stage.clock
            stage.say(segment, pause_s if i else 4.0, s.language)
            at += (stage.clock - before) / m.SAMPLE_RATE
            never.wait(max(0.0, at - time.monotonic()))
    stage.end()


def one_way(figures: Figures, s: Spoken, stage: Stage, models: Models) -> None:
    live = [(x.source, x.text) for x in stage.sentences(s.target)]
    wanted = directly(models, s.sentences, s.language, s.target)
    apart = directly(models, [segment for segment, _ in s.pieces], s.language, s.target)
    human = list(zip(s.sentences, s.human, strict=True))
    what = f"{s.language} to {s.target}, {len(s.sentences)} sentences in {len(s.pieces)} segments"
    figures.bounded(f"{what}: chrF beside whole sentences", chrf(live, wanted), "", CHRF, least=True)
    figures.plain("  the same, if each segment were translated for itself", chrf(apart, wanted))
    for name, measure in (("chrF", chrf), ("BLEU", bleu)):
        beside = f"  {name} beside the human translation (baseline: of whole sentences)"
        figures.plain(beside, measure(live, human), "", measure(wanted, human))
    figures.plain("  suspect sentences", sum(bool(x.suspect) for x in stage.sentences(s.target)))


def from_speech(figures: Figures, folder: Path, settings: Settings, models: Models) -> None:
    """What is heard has other words than what is said, so nothing but the whole can be held against the whole."""
    processes = Processes(folder, settings)
    try:
        system = System(processes, with_targets(settings, "pt"), file_source(RECORDING, "realtime"))
        system.start()
        ended = system.ended(SPEECH_S)
        sentences = translated(system, ended)
        heard = text(system.journal(), ended.stream)
        system.stop()
    finally:
        processes.close()
    said = recording_text()
    found = wer(said, heard)
    lines = [line.split("\t")[2] for line in RECORDING.with_suffix(".txt").read_text().splitlines()]
    wanted = [("", t) for _, t in directly(models, lines, "en", "pt")]
    figures.plain(f"from speech: word errors of {found.words} words", found.percent, "%")
    figures.plain("from speech: chrF beside the direct translation of what is said", chrf(sentences, wanted))


def translated(system: System, ended: m.Event) -> list[Translated]:
    """Sentences of the stream, without their sources, once the translator has come to its end."""
    client = FeedClient(system.settings, kinds=())

    def over() -> bool:
        client.poll(0.1)
        beat = client.last_beat.streams.get(ended.stream) if client.last_beat else None
        at = beat.producers.get("translator.pt") if beat else None
        return at is not None and at.positions.get("transcript", 0) >= ended.seq

    try:
        wait_for(over, SPEECH_S, "everything to be translated")
    finally:
        client.close()
    known = Translations()
    for e in system.journal(ended.stream):
        known.take(e)
    return [("", s.text) for s in known.sentences("pt")]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quality.py translation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sentences", type=int, default=15, metavar="N", help="in each language, of some 60")
    parser.add_argument("--seed", type=int, default=1, help="which sentences, and where they are cut")
    parser.add_argument("--no-speech", action="store_true", help="reference transcripts only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args(argv)
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = load(None, (f"data_dir={folder / 'data'}", "viewer.delays_over_s=3600", *args.set), {})
        models = load_models(set_up(settings.translate.threads, settings.cache), settings, settings.translate.models)
        from_reference(figures, folder, settings, models, args.sentences, args.seed)
        if not args.no_speech:
            (folder / "speech").mkdir()
            heard = load(None, (f"data_dir={folder / 'speech' / 'data'}", *args.set), {})
            from_speech(figures, folder / "speech", heard, models)
    show(figures.all, args.json)
    for what in figures.broken:
        print(f"broken: {what}", file=sys.stderr)
    return int(bool(figures.broken))
