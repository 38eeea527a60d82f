"""How good the captions are: real recordings through a whole running system with real weights, beside openai-whisper.

`python benchmarks/quality.py [--model tiny.en|base] [--language auto|en|...] [--json]`. Bounds stand in the names of
the figures; exit status 1 when one is broken. Figures without a bound are reported only. Takes about 10 minutes with
tiny.en, 25 with base; fetches about 100 MB of recordings when run for the first time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
from figures import Figure, show  # noqa: E402

from common.settings import Settings, load  # noqa: E402
from tests import quality, speech  # noqa: E402
from tests.conftest import Processes  # noqa: E402
from tests.quality import Direct, Heard, Tape  # noqa: E402
from tests.sounds import computed_sounds  # noqa: E402
from tests.speech import RATE, Clip, Samples, samples, word_errors, words  # noqa: E402

MUSIC_S = 25.0  # pieces of the noise set from this length are streams of their own
Recordings = dict[str, Path]


class Bench:
    """Puts recordings together, has all of them heard by one system, then asks `whisper` itself and counts."""

    def __init__(self, folder: Path, settings: Settings, language: str) -> None:
        self.folder, self.settings, self.language = folder, settings, language
        self.name = settings.transcriber.model
        self.recordings: Recordings = {}
        self.heard: dict[str, Heard] = {}
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def tape(self, name: str, clips: list[tuple[str, Samples]]) -> Tape:
        tape = Tape(clips)
        self.recordings[name] = tape.write(self.folder / f"{name}.wav")
        return tape

    def hear(self) -> None:
        processes = Processes(self.folder, self.settings)
        try:
            self.heard = quality.hear(processes, self.settings, self.recordings, timeout_s=7200)
        finally:
            processes.close()

    def figure(self, name: str, value: float, unit: str, baseline: float | None = None) -> None:
        if baseline is None:
            self.figures.append(Figure(name, value, unit))
        else:
            self.figures.append(Figure.against(name, value, unit, baseline))

    def bounded(self, name: str, value: float, unit: str, bound: float, least: bool = False) -> None:
        """A figure whose baseline is its bound."""
        self.figure(f"{name} (bound {'≥' if least else '≤'} {bound:g})", value, unit, bound)
        if value < bound if least else value > bound:
            self.broken.append(self.figures[-1].name)

    def told(self, what: str, heard: Heard) -> None:
        """On stderr: what was captioned or suppressed and should perhaps not."""
        for t in (*heard.transcripts, *heard.suppressed):
            why = getattr(t, "reason", "captioned")
            print(f"{what} {t.span[0] / RATE:.1f} s, {(t.span[1] - t.span[0]) / RATE:.1f} s long: {why}: {t.text}",
                  file=sys.stderr)  # fmt: skip


def run(bench: Bench) -> None:
    clips = {"jfk": speech.jfk(), **{f"librivox.{i}": c for i, c in enumerate(speech.librivox())}}
    long = {**{f"sonnet.{i}": c for i, c in enumerate(speech.sonnet_parts(), 1)}, "sonnets": speech.sonnets()}
    bench.recordings |= {name: c.path for name, c in (clips | long).items()}
    spoken = [(name, samples(c.path)) for name, c in clips.items()]
    phrases = [p for c in speech.sonnet_parts() for p in quality.phrases(samples(c.path))]
    placed = bench.tape("tape", [*spoken, *((f"phrase.{i}", p) for i, p in enumerate(phrases))])

    sounds = [(p.stem, samples(p)) for p in speech.noise_and_music()]
    music = {f"music.{i}": a for i, (_, a) in enumerate(s for s in sounds if len(s[1]) >= MUSIC_S * RATE)}
    noise = {"noise": bench.tape("noise", [s for s in sounds if len(s[1]) < MUSIC_S * RATE]).samples, **music}
    minutes_of = {"noise": minutes(a for _, a in sounds)}
    for name, audio in music.items():
        bench.recordings[name] = bench.folder / f"{name}.wav"
        speech.write_wav(bench.recordings[name], audio)
    computed = computed_sounds()
    bench.tape("computed", list(computed.items()))
    minutes_of["computed"] = minutes(computed.values())
    backwards = [(f"backwards.{name}", a[::-1]) for name, a in music.items()]
    faint = [(f"faint.{name}", np.rint(a * 10 ** (-25 / 20)).astype(np.int16)) for name, a in music.items()]
    bench.tape("altered", backwards + faint)
    minutes_of["altered"] = minutes(a for _, a in backwards + faint)
    between = [(name, a[: 12 * RATE]) for name, a in sounds]
    radio = bench.tape("radio", [x for i, s in enumerate(between) for x in ((f"talk.{i}", spoken[1 + i % 5][1]), s)])
    hard = harder(bench, speech.sonnets(), sounds)
    foreign = prompts(bench)

    bench.hear()
    direct = Direct(bench.settings, bench.name)
    language = None if bench.language == "auto" else bench.language
    for name, clip in (clips | long).items():
        ours, alone = (
            word_errors(clip.text, t) for t in (bench.heard[name].text, direct(samples(clip.path), language))
        )
        allowed = 1 if name in clips else int(0.03 * len(words(clip.text)))
        bench.figure(
            f"word errors, {name}, {len(words(clip.text))} words (bound direct + {allowed})", ours, "words", alone
        )
        if ours > alone + allowed:
            bench.broken.append(bench.figures[-1].name)
    word_times(bench, placed)

    said = clips | long
    suppressed = sum(quality.suppressed_words(bench.heard[name]) for name in (*said, "tape"))
    total = sum(len(words(c.text)) for c in said.values()) + len(words(bench.heard["tape"].text))
    bench.bounded("words said but suppressed", 100 * suppressed / total, "%", 0.5)
    parts = [quality.silenced_s(bench.heard[n], samples(c.path)) for n, c in said.items()]
    parts += [quality.silenced_s(bench.heard["tape"], clip, at[0]) for at, clip in placed.places.values()]
    silenced, sounding = np.sum(parts, axis=0)
    bench.bounded("seconds of speech called silence", 100 * silenced / sounding, "%", 1.0)
    bench.bounded(
        "samples without exactly one class", sum(map(quality.unclassified, bench.heard.values())), "samples", 0
    )

    length = minutes_of["noise"]
    phantoms = sum(quality.phantom_words(bench.heard[name]) for name in noise) / length
    bench.bounded(f"phantom words, noise and music, {length:.1f} min", phantoms, "words/min", 0.5)
    alone = sum(len(words(direct(a, language))) for a in noise.values()) / length
    bench.figure("phantom words, the same, beside whisper called directly", phantoms, "words/min", alone)
    for name in ("computed", "altered"):
        phantoms = quality.phantom_words(bench.heard[name]) / minutes_of[name]
        bench.figure(f"phantom words, {name} sounds, {minutes_of[name]:.1f} min", phantoms, "words/min")
    for name in (*noise, "computed", "altered"):
        bench.told(name, bench.heard[name])
    broadcast(bench, radio, {name for name, _ in between})
    for name, clip in hard.items():
        ours, alone = (
            word_errors(clip.text, t) for t in (bench.heard[name].text, direct(samples(clip.path), language))
        )
        bench.figure(f"word errors, {name}", ours, "words", alone)
        bench.figure(f"words suppressed, {name}", quality.suppressed_words(bench.heard[name]), "words")
    for code, (tape, text) in foreign.items():
        ours, alone = (
            word_errors(text, t, code) for t in (bench.heard[f"prompts.{code}"].text, direct(tape.samples, language))
        )
        bench.figure(f"word errors, {code}, {len(words(text, code))} words", ours, "words", alone)
        other = sum(t.language != code for t in bench.heard[f"prompts.{code}"].transcripts)
        bench.figure(f"captions in another language than {code}", other, "captions")


def minutes(clips: Iterable[Samples]) -> float:
    return sum(map(len, clips)) / RATE / 60


def word_times(bench: Bench, tape: Tape) -> None:
    heard = bench.heard["tape"]
    for below_db in (20, 25, 30, 35):
        share = 100 * quality.share_of_edges(quality.edge_errors(heard, tape, below_db))
        name = f"word edges within {quality.EDGE_S} s of sound {below_db} dB below peak, {len(tape.places)} clips"
        if below_db == quality.BELOW_PEAK_DB:
            bench.bounded(name, share, "%", 90, least=True)
        else:
            bench.figure(name, share, "%")
    bench.bounded("words out of order", sum(len(quality.disordered(h)) for h in bench.heard.values()), "words", 0)


def broadcast(bench: Bench, radio: Tape, sounds: set[str]) -> None:
    """Talk and sounds in turn: the decoder has text before it, and the voice detector has just heard a voice."""
    heard = bench.heard["radio"]
    spans = {name: span for name, (span, _) in radio.places.items() if name in sounds}
    length = sum(end - start for start, end in spans.values()) / RATE / 60
    phantoms = 0
    for t in heard.transcripts:
        middle = (t.span[0] + t.span[1]) // 2
        hit = [name for name, (start, end) in spans.items() if start <= middle < end]
        if hit:
            phantoms += len(words(t.text))
            print(f"radio, {hit[0]}: captioned: {t.text}", file=sys.stderr)
    bench.figure(f"phantom words, sounds between talk, {length:.1f} min", phantoms / length, "words/min")


def harder(bench: Bench, clip: Clip, sounds: list[tuple[str, Samples]]) -> dict[str, Clip]:
    """The sonnets 30 dB down, and over music 10 dB below them."""
    talk = samples(clip.path).astype(np.float64)
    music = np.resize(next(a for name, a in sounds if name.startswith("macroform-the")), len(talk)).astype(np.float64)
    music *= np.sqrt(np.square(talk).mean() / np.square(music).mean()) * 10 ** (-10 / 20)
    found = {}
    for name, audio in {"quiet": talk * 10 ** (-30 / 20), "over.music": (talk + music) / 2}.items():
        bench.recordings[name] = bench.folder / f"{name}.wav"
        speech.write_wav(bench.recordings[name], np.clip(np.rint(audio), -32768, 32767).astype(np.int16))
        found[name] = Clip(bench.recordings[name], clip.text)
    return found


def prompts(bench: Bench, at_most: int = 12) -> dict[str, tuple[Tape, str]]:
    """Sentences in other languages, for a model that knows them."""
    found = {}
    for code in () if bench.name.endswith(".en") else speech.VOICES if bench.language == "auto" else [bench.language]:
        if code in speech.VOICES:
            clips = speech.prompts(code)
            clips = clips[:: max(1, len(clips) // at_most)][:at_most]
            tape = bench.tape(f"prompts.{code}", [(c.path.stem, samples(c.path)) for c in clips])
            found[code] = (tape, " ".join(c.text for c in clips))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--language", default="auto", help="the transcriber's language setting, and whisper's")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    settings = load(None, (f"data_dir={folder / 'data'}", f"transcriber.model={args.model}"), {})
    chosen = msgspec.structs.replace(settings.transcriber, language=args.language)
    bench = Bench(folder, msgspec.structs.replace(settings, transcriber=chosen), args.language)
    try:
        run(bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(bench.figures, args.json)
    for name in bench.broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(bench.broken))


if __name__ == "__main__":
    sys.exit(main())
