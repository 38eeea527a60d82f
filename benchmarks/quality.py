"""How good the captions are: real recordings through a whole running system with real weights, beside openai-whisper.

`python benchmarks/quality.py [--model tiny.en|base] [--language auto|en|...] [--json]`. Bounds stand in the names of
the figures; exit status 1 when one is broken. Figures without a bound are reported only. Takes about 10 minutes with
tiny.en, 25 with base; fetches about 100 MB of recordings when run for the first time.
`python benchmarks/quality.py diarization`: who said it (diarization.py); `... translation`: the captions in another
language (translation.py); both have options of their own. `... all [--json]`: these three, one after the other.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
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


class Bench:
    """Puts recordings together, has all of them heard by one system, then asks `whisper` itself and counts."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.name, self.language = settings.transcriber.model, settings.transcriber.language
        self.recordings: dict[str, Path] = {}
        self.heard: dict[str, Heard] = {}
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def add(self, name: str, audio: Samples) -> Path:
        path = self.recordings[name] = self.folder / f"{name}.wav"
        speech.write_wav(path, audio)
        return path

    def tape(self, name: str, clips: Iterable[tuple[str, Samples]]) -> Tape:
        tape = Tape(clips)
        self.add(name, tape.samples)
        return tape

    def hear(self) -> None:
        processes = Processes(self.folder, self.settings)
        try:
            self.heard = quality.hear(processes, self.settings, self.recordings, timeout_s=7200)
        finally:
            processes.close()
        self._direct = Direct(self.settings, self.name)

    def direct(self, audio: Samples) -> str:
        return self._direct(audio, None if self.language == "auto" else self.language)

    def figure(self, name: str, value: float, unit: str, baseline: float | None = None) -> None:
        known = baseline is not None
        self.figures.append(Figure.against(name, value, unit, baseline) if known else Figure(name, value, unit))

    def bounded(self, name: str, value: float, unit: str, bound: float, least: bool = False) -> None:
        """A figure whose baseline is its bound."""
        self.figure(f"{name} (bound {'≥' if least else '≤'} {bound:g})", value, unit, bound)
        if value < bound if least else value > bound:
            self.broken.append(self.figures[-1].name)

    def word_errors(self, name: str, clip: Clip, allowed: int | None = None, language: str = "en") -> None:
        """Word errors beside those of whisper called on the recording; at most `allowed` more."""
        ours = word_errors(clip.text, self.heard[name].text, language)
        alone = word_errors(clip.text, self.direct(samples(clip.path)), language)
        bound = "" if allowed is None else f" (bound direct + {allowed})"
        self.figure(f"word errors, {name}, {len(words(clip.text, language))} words{bound}", ours, "words", alone)
        if allowed is not None and ours > alone + allowed:
            self.broken.append(self.figures[-1].name)

    def phantoms(self, names: Iterable[str], clips: Iterable[Samples]) -> tuple[float, float]:
        """(words a minute of captions of recordings `names` of `clips` in which nobody speaks, minutes)"""
        length = sum(map(len, clips)) / RATE / 60
        found = 0
        for name in names:
            heard = self.heard[name]
            found += quality.phantom_words(heard)
            for t in (*heard.transcripts, *heard.suppressed):
                why = getattr(t, "reason", "captioned")
                seconds = (t.span[1] - t.span[0]) / RATE
                print(f"{name} {t.span[0] / RATE:.1f} s, {seconds:.1f} s long: {why}: {t.text}", file=sys.stderr)
        return found / length, length


def run(bench: Bench) -> None:
    """Every part puts its recordings together and says how to count them once all have been heard."""
    parts = [part(bench) for part in (said, not_said, in_turn, harder, foreign)]
    bench.hear()
    for count in parts:
        count()


def said(bench: Bench) -> Callable[[], None]:
    """English speech: words, their times, what is lost of them."""
    short = {"jfk": speech.jfk(), **{f"librivox.{i}": c for i, c in enumerate(speech.librivox())}}
    long = {**{f"sonnet.{i}": c for i, c in enumerate(speech.sonnet_parts(), 1)}, "sonnets": speech.sonnets()}
    clips = short | long
    bench.recordings |= {name: c.path for name, c in clips.items()}
    phrases = [p for c in speech.sonnet_parts() for p in quality.phrases(samples(c.path))]
    placed = [(name, samples(c.path)) for name, c in short.items()]
    tape = bench.tape("tape", [*placed, *((f"phrase.{i}", p) for i, p in enumerate(phrases))])

    def count() -> None:
        for name, clip in clips.items():
            bench.word_errors(name, clip, 1 if name in short else int(0.03 * len(words(clip.text))))
        word_times(bench, tape)
        suppressed = sum(quality.suppressed_words(bench.heard[name]) for name in (*clips, "tape"))
        total = sum(len(words(c.text)) for c in clips.values()) + len(words(bench.heard["tape"].text))
        bench.bounded("words said but suppressed", 100 * suppressed / total, "%", 0.5)
        parts = [quality.silenced_s(bench.heard[n], samples(c.path)) for n, c in clips.items()]
        parts += [quality.silenced_s(bench.heard["tape"], clip, at[0]) for at, clip in tape.places.values()]
        silenced, sounding = np.sum(parts, axis=0)
        bench.bounded("seconds of speech called silence", 100 * silenced / sounding, "%", 1.0)
        unclassified = sum(quality.unclassified(h) for h in bench.heard.values())
        bench.bounded("samples without exactly one class", unclassified, "samples", 0)

    return count


def not_said(bench: Bench) -> Callable[[], None]:
    """Noise and music; computed noises; the music backwards and 25 dB down."""
    sounds = [(p.stem, samples(p)) for p in speech.noise_and_music()]
    music = {f"music.{i}": a for i, (_, a) in enumerate(s for s in sounds if len(s[1]) >= MUSIC_S * RATE)}
    noise = {"noise": bench.tape("noise", [s for s in sounds if len(s[1]) < MUSIC_S * RATE]).samples, **music}
    for name, audio in music.items():
        bench.add(name, audio)
    computed = computed_sounds()
    bench.tape("computed", computed.items())
    altered = {f"backwards.{name}": a[::-1] for name, a in music.items()}
    altered |= {f"faint.{name}": np.rint(a * 10 ** (-25 / 20)).astype(np.int16) for name, a in music.items()}
    bench.tape("altered", altered.items())

    def count() -> None:
        rate, length = bench.phantoms(noise, [a for _, a in sounds])
        bench.bounded(f"phantom words, noise and music, {length:.1f} min", rate, "words/min", 0.5)
        alone = sum(len(words(bench.direct(a))) for a in noise.values()) / length
        bench.figure("phantom words, the same, beside whisper called directly", rate, "words/min", alone)
        for name, clips in (("computed", computed), ("altered", altered)):
            rate, length = bench.phantoms([name], clips.values())
            bench.figure(f"phantom words, {name} sounds, {length:.1f} min", rate, "words/min")

    return count


def in_turn(bench: Bench) -> Callable[[], None]:
    """Talk and sounds in turn: the decoder has text before it, and the voice detector has just heard a voice."""
    talk = [samples(c.path) for c in speech.librivox()]
    sounds = {p.stem: samples(p)[: 12 * RATE] for p in speech.noise_and_music()}
    both = [x for i, s in enumerate(sounds.items()) for x in ((f"talk.{i}", talk[i % len(talk)]), s)]
    tape = bench.tape("radio", both)

    def count() -> None:
        spans = {name: tape.places[name][0] for name in sounds}
        phantoms = 0
        for t in bench.heard["radio"].transcripts:
            middle = (t.span[0] + t.span[1]) // 2
            for name in (n for n, (start, end) in spans.items() if start <= middle < end):
                phantoms += len(words(t.text))
                print(f"radio, {name}: captioned: {t.text}", file=sys.stderr)
        length = sum(map(len, sounds.values())) / RATE / 60
        bench.figure(f"phantom words, sounds between talk, {length:.1f} min", phantoms / length, "words/min")

    return count


def harder(bench: Bench) -> Callable[[], None]:
    """The sonnets 30 dB down, and over music 10 dB below them."""
    clip = speech.sonnets()
    talk = samples(clip.path).astype(np.float64)
    music = np.resize(samples(next(p for p in speech.noise_and_music() if "simplicity" in p.name)), len(talk)) * 1.0
    music *= np.sqrt(np.square(talk).mean() / np.square(music).mean()) * 10 ** (-10 / 20)
    waves = {"quiet": talk * 10 ** (-30 / 20), "over.music": (talk + music) / 2}
    clips = {n: Clip(bench.add(n, np.rint(w).astype(np.int16)), clip.text) for n, w in waves.items()}

    def count() -> None:
        for name, clip in clips.items():
            bench.word_errors(name, clip)
            bench.figure(f"words suppressed, {name}", quality.suppressed_words(bench.heard[name]), "words")

    return count


def foreign(bench: Bench) -> Callable[[], None]:
    """Sentences of telephone exchanges in five languages, for a model that knows them."""
    codes = speech.VOICES if bench.language == "auto" else [bench.language] if bench.language in speech.VOICES else []
    clips = {}
    for code in [] if bench.name.endswith(".en") else codes:
        some = speech.prompts(code)[:: len(speech.prompts(code)) // 12][:12]
        bench.tape(f"prompts.{code}", [(c.path.stem, samples(c.path)) for c in some])
        clips[code] = Clip(bench.recordings[f"prompts.{code}"], " ".join(c.text for c in some))

    def count() -> None:
        for code, clip in clips.items():
            bench.word_errors(f"prompts.{code}", clip, language=code)
            other = sum(t.language != code for t in bench.heard[f"prompts.{code}"].transcripts)
            bench.figure(f"captions in another language than {code}", other, "captions")

    return count


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


def captions(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Settings().transcriber.model)
    parser.add_argument("--language", default="auto", help="the transcriber's language setting, and whisper's")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    settings = load(None, (f"data_dir={folder / 'data'}", f"transcriber.model={args.model}"), {})
    chosen = msgspec.structs.replace(settings.transcriber, language=args.language)
    bench = Bench(folder, msgspec.structs.replace(settings, transcriber=chosen))
    try:
        run(bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(bench.figures, args.json)
    for name in bench.broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(bench.broken))


def diarization(argv: Sequence[str]) -> int:
    import diarization as part

    return part.main(argv)


def translation(argv: Sequence[str]) -> int:
    import translation as part

    return part.main(argv)


def main() -> int:
    parts = {"captions": captions, "diarization": diarization, "translation": translation}
    named = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in (*parts, "all") else ""
    chosen = [*parts.values()] if named == "all" else [parts[named or "captions"]]
    return max([part(sys.argv[2 if named else 1 :]) for part in chosen])


if __name__ == "__main__":
    sys.exit(main())
