"""Finals in a window cropped to their speech, beside 30 s always: word errors, word times, cost by length, inventions.

`python benchmarks/crop.py [--model tiny.en|base] [--language auto|en|...] [--parts said,faint,talks,sounds,foreign]
[--share 1] [--rows FILE] [--json]`. The transcriber's own cuts, decoder and weights, in this process, utterance by
utterance, each way with its own text before; cpu-seconds of one thread, the two ways in turn. `said`: public speech
with its text (JFK, LibriVox, sonnets, telephone prompts) and word times of an aligner (live_words.jsonl). `faint`: the
same, 30 dB down. `talks`: meetings and a telephone call; nobody wrote down what is said there, so only what differs is
counted. `sounds`: noise and music, as the voice detector cuts them, and the beginnings of all of them, taken for an
utterance right after speech. `foreign`: prompts in four languages, for a model that knows them. `--share 4`: every
fourth recording. `--rows`: a line for each utterance. Exit status 1: over 0.2 points of word error rate lost, or more
words invented.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import msgspec  # noqa: E402
from catchup import differing  # noqa: E402
from figures import Figure, show  # noqa: E402

from common import backlog  # noqa: E402
from common import messages as m  # noqa: E402
from common.process import Process  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests import speech  # noqa: E402
from tests.in_process import run  # noqa: E402
from tests.sounds import computed_sounds  # noqa: E402
from tests.speech import RATE, Samples, samples, word_errors, words  # noqa: E402
from workers.session import Utterance  # noqa: E402
from workers.transcriber import Transcriber  # noqa: E402
from workers.utterances import State, unpack  # noqa: E402

WAYS = ("whole", "cropped")
BINS_S = (0.0, 2.0, 4.0, 8.0, 15.1)
POINTS = 0.2  # of word error rate
FAINT = 10 ** (-30 / 20)
FORCED_S = 4.0  # of a sound that is taken for an utterance


class Row(NamedTuple):
    """An utterance heard one way."""

    part: str
    name: str
    span: m.Span
    way: str
    cpu_s: float
    again: bool  # the whole window was asked after the cropped one
    text: str  # as shown
    hidden: str  # as suppressed
    language: str
    words: list[tuple[str, int, int]]


class Recording(NamedTuple):
    part: str
    name: str
    audio: Samples
    text: str = ""
    language: str = "en"


class Bench:
    """One transcriber, heard both ways."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, process = folder, Process("transcriber", settings, argparse.Namespace())
        self.transcriber = Transcriber(process)
        self.transcriber.load(process)
        self.decoder, self.asked = self.transcriber.decoder, 0
        whole = self.decoder._decode

        def counted(*args: Any) -> Any:
            self.asked += 1
            return whole(*args)

        vars(self.decoder)["_decode"] = counted

    def infer(self, way: str, state: bytes, work: Utterance) -> tuple[Any, float, bool]:
        """(step, cpu-seconds, whether the whole window was asked)"""
        self.decoder.whole = way == "whole"
        self.asked = 0
        began = time.process_time()
        step = run(self.transcriber.infer(state, work))
        return step, time.process_time() - began, self.asked > 0

    def hear(self, rec: Recording) -> Iterator[Row]:
        """Every utterance of a recording, both ways."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        writer = backlog.Writer(folder, 60 * RATE)
        writer.append(0, rec.audio.astype("<i2").tobytes())
        meta = backlog.Meta(
            stream="s", source="s", lane="live", origin="", started_ns=1, resumable=True, ended=True, end=writer.end
        )
        writer.close()
        backlog.write_meta(folder, meta)
        at = m.At(n=0, positions={"audio": 0}, state=b"", head=0)
        states = dict.fromkeys(WAYS, b"")
        session = self.transcriber.open(folder, meta, at)
        while session.position < meta.end:
            step = session.scan()
            if isinstance(step, Utterance):
                work = step
                for way in WAYS:
                    step, cpu_s, again = self.infer(way, states[way], work)
                    states[way] = step.state
                    yield row(rec, way, step.events[-1], cpu_s, again, work.speech)
            else:
                states = {w: kept(states[w], step.state) for w in WAYS}
            at = m.At(n=at.n + 1, positions=step.positions, state=step.state, head=0)
            session.moved(at)
        shutil.rmtree(folder)

    def forced(self, state: bytes, rec: Recording) -> Iterator[Row]:
        """A sound that the voice detector took for speech, right after the text of `state`."""
        first, sound = unpack(state).prompt_end, rec.audio[: round(FORCED_S * RATE)]
        span = (first, first + len(sound))
        work = Utterance(stream="s", span=span, speech=span, voiced=span, pcm=sound.astype("<i2").tobytes(), state=b"")
        for way in WAYS:
            step, cpu_s, again = self.infer(way, state, work)
            yield row(rec, way, step.events[-1], cpu_s, again, (0, len(sound)))


def kept(mine: bytes, step: bytes) -> bytes:
    """My text before, the step's voice detector."""
    return m.encode(msgspec.structs.replace(unpack(mine), vad=unpack(step).vad)) if mine else step


def row(rec: Recording, way: str, body: Any, cpu_s: float, again: bool, span: m.Span) -> Row:
    shown = isinstance(body, m.Transcript)
    timed = [(w.text, *w.span) for w in body.words] if shown else []
    said, language = (body.text, body.language) if shown else ("", "")
    hidden = "" if shown else f"{body.reason}: {body.text}"
    return Row(rec.part, rec.name, span, way, cpu_s, again, said, hidden, language, timed)


def recordings(parts: Iterable[str], share: int) -> list[Recording]:
    found = list[Recording]()
    if {"said", "faint"} & {*parts}:
        said = [Recording("said", "jfk", samples(speech.jfk().path), speech.jfk().text)]
        said += [
            Recording("said", f"{kind}.{i}", samples(c.path), c.text)
            for kind, clips, first in (("librivox", speech.librivox(), 0), ("sonnet", speech.sonnet_parts(), 1))
            for i, c in enumerate(clips, first)
        ]
        prompts = {c.path.stem: c for c in speech.prompts("en")}  # one has two texts
        names = list(prompts)[::share]
        said += [Recording("said", f"prompt.{n}", samples(prompts[n].path), prompts[n].text) for n in names]
        found += said if "said" in parts else []
        if "faint" in parts:
            found += [r._replace(part="faint", audio=(r.audio * FAINT).astype("<i2")) for r in said]
    if "talks" in parts:
        found += [Recording("talks", t.path.stem, samples(t.path)) for t in speech.talks()[::share]]
    if "sounds" in parts:
        found += [Recording("sounds", p.stem, samples(p)) for p in speech.noise_and_music()[::share]]
        found += [Recording("sounds", name, a) for name, a in list(computed_sounds().items())[::share]]
    if "foreign" in parts:
        for code in (c for c in speech.VOICES if c != "en"):
            some = speech.prompts(code)[:: len(speech.prompts(code)) // 12][:12:share]
            found += [Recording("foreign", f"{code}.{c.path.stem}", samples(c.path), c.text, code) for c in some]
    return found


def hear(bench: Bench, recs: list[Recording]) -> Iterator[Row]:
    for rec in recs:
        yield from bench.hear(rec)
    sounds = [r for r in recs if r.part == "sounds"]
    if sounds:  # the detector lets few of them pass
        said = bench.decoder.prompts.tokenizer("en").encode(" " + speech.librivox()[0].text)
        before = State(prompt=tuple(said), prompt_end=RATE, model=bench.transcriber.s.model)
        for rec in sounds:
            yield from bench.forced(m.encode(before), rec._replace(part="forced"))


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """(whole, cropped) of each utterance."""
    found = list(zip(rows[::2], rows[1::2], strict=True))
    assert all((a.name, a.span, a.way, b.way) == (b.name, b.span, *WAYS) for a, b in found)
    return found


def figures(recs: list[Recording], rows: list[Row]) -> tuple[list[Figure], list[str]]:
    found, broken, both = list[Figure](), list[str](), pairs(rows)
    for part in dict.fromkeys(r.part for r in rows):
        mine = [pair for pair in both if pair[0].part == part]
        found.append(Figure(f"{part}: utterances", len(mine), ""))
        other = [d for a, b in mine for d in differing(a.text, b.text)]
        for a, b in (pair for pair in mine if pair[0].text != pair[1].text):
            print(f"{a.name} {a.span[0] / RATE:.1f} s: {a.text!r} / {b.text!r}", file=sys.stderr)
        found.append(Figure(f"{part}: texts that differ", sum(a.text != b.text for a, b in mine), ""))
        found.append(Figure(f"{part}: places with other words", len(other), ""))
        doubts = sum(b.again for _, b in mine)
        found.append(Figure(f"{part}: the whole window asked, too", 100 * doubts / len(mine), "%"))
        found += cost(part, mine)
        if part in ("sounds", "forced"):
            whole, crop = (sum(len(words(pair[i].text)) for pair in mine) for i in (0, 1))
            found.append(Figure.against(f"{part}: words invented", crop, "words", whole))
            broken += [found[-1].name] if crop > whole else []
        for language in dict.fromkeys(r.language for r in recs if r.part == part and r.text):
            figure = errors(part, language, [r for r in recs if r.part == part and r.language == language], mine)
            found.append(figure)
            broken += [figure.name] if figure.value > (figure.baseline or 0) + POINTS else []
        if part == "said":
            found += word_times(mine)
        hidden = [sum(len(words(pair[i].hidden.partition(": ")[2])) for pair in mine) for i in (0, 1)]
        found.append(Figure.against(f"{part}: words suppressed", hidden[1], "words", hidden[0]))
    return found, broken


def cost(part: str, mine: list[tuple[Row, Row]]) -> Iterator[Figure]:
    """cpu-seconds an utterance, by its length."""
    for low, high in itertools.pairwise(BINS_S):
        some = [p for p in mine if low <= (p[0].span[1] - p[0].span[0]) / RATE < high]
        if some:
            whole, crop = (statistics.mean(pair[i].cpu_s for pair in some) for i in (0, 1))
            yield Figure.against(f"{part}: {low:.0f} to {high:.0f} s long, {len(some)}: each", crop, "cpu-s", whole)
    whole, crop = (sum(pair[i].cpu_s for pair in mine) for i in (0, 1))
    yield Figure.against(f"{part}: all", crop, "cpu-s", whole)


def errors(part: str, language: str, recs: list[Recording], mine: list[tuple[Row, Row]]) -> Figure:
    total, wrong = 0, [0, 0]
    for rec in recs:
        said = [" ".join(pair[i].text for pair in mine if pair[0].name == rec.name) for i in (0, 1)]
        wrong = [n + word_errors(rec.text, text, language) for n, text in zip(wrong, said, strict=True)]
        total += len(words(rec.text, language))
    name = f"{part}: word error rate, {language}, {len(recs)} recordings, {total} words"
    return Figure.against(name, 100 * wrong[1] / total, "%", 100 * wrong[0] / total)


def word_times(mine: list[tuple[Row, Row]]) -> Iterator[Figure]:
    """How far the ends of words are from the aligner's, where that knows the recording, and from each other."""
    aligned = dict[str, list[tuple[str, int, int]]]()
    for line in Path(__file__).with_name("live_words.jsonl").read_text().splitlines():
        known = json.loads(line)
        aligned.setdefault(known["clip"], []).extend(tuple(w) for w in known["words"])
    off: tuple[list[float], list[float]] = ([], [])
    for pair in mine:
        for i, heard in enumerate(pair):
            there = [(words(w), end) for w, _, end in aligned.get(heard.name, [])]
            for word, _, end in heard.words:
                near = [abs(e - end) / RATE for w, e in there if w == words(word) and abs(e - end) < RATE]
                off[i].extend([min(near)] if near else [])
    same = [(a, b) for a, b in mine if a.text == b.text]
    apart = [abs(x[2] - y[2]) / RATE for a, b in same for x, y in zip(a.words, b.words, strict=True)]
    for share in (50, 95, 99):
        if min(map(len, off)) > 1:
            whole, crop = (statistics.quantiles(some, n=100)[share - 1] for some in off)
            name = f"said: a word's end from the aligner's, p{share}, {len(off[1])} words"
            yield Figure.against(name, crop, "s", whole)
        if len(apart) > 1:
            value = statistics.quantiles(apart, n=100)[share - 1]
            yield Figure(f"said: a word's end from itself the other way, p{share}", value, "s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--language", default="auto")
    parser.add_argument("--parts", default="said,faint,talks,sounds")
    parser.add_argument("--share", type=int, default=1, help="every so many recordings one")
    parser.add_argument("--rows", help="a file that gets a JSON line for each utterance and way")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    more = (f"data_dir={folder / 'data'}", f"transcriber.model={args.model}", f"transcriber.language={args.language}")
    recs, rows = recordings(args.parts.split(","), args.share), list[Row]()
    try:
        bench = Bench(folder, load(None, more, {}))
        for _ in bench.hear(Recording("warm", "warm", samples(speech.librivox()[0].path))):
            pass  # the first of everything is compiled, or slow
        with open(args.rows or "/dev/null", "w") as out:
            for one in hear(bench, recs):
                rows.append(one)
                print(json.dumps(one._asdict()), file=out, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found, broken = figures(recs, rows)
    show(found, args.json)
    for name in broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
