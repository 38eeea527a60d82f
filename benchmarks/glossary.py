"""What a glossary of ten rare names and words gains in speech, and whether any of them is heard where nobody speaks.

`python benchmarks/glossary.py [--model tiny.en|base] [--part said|not_said|gate] [--json]`. In one process, cut and
decoded as the transcriber does it, without feed or GPU. Speech: Shakespeare's sonnets, a sentence of LibriVox, two of a
telephone exchange. Sounds: music, noises and computed sounds, each for some seconds taken for an utterance (past the
voice gate), with the text of a sonnet before and without; then all of them through the gate. Exit status 1 when a bound
is broken. Takes some 10 minutes with tiny.en, three times as long with base.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import msgspec  # noqa: E402
from figures import Figure, show  # noqa: E402

from common import messages as m  # noqa: E402
from tests import speech  # noqa: E402
from tests.sounds import computed_sounds  # noqa: E402
from tests.speech import RATE, Clip, Samples, samples, word_errors  # noqa: E402
from tests.test_echo import Ear, text  # noqa: E402
from workers.glossary import words  # noqa: E402

# Chosen because they are rare, before any of them had been decoded with a glossary.
TERMS = ("Dashwood", "Asterisk", "PBX", "IVR", "churl", "niggarding", "buriest", "mak'st", "feel'st", "unear'd")
SOUND_S = 4.0


class Score(NamedTuple):
    """Of one way over all clips."""

    said: int  # terms in the texts that were read
    heard: int  # of them, in what was heard
    wrong: int  # terms where they were not said
    errors: int  # words


def terms_in(said: str) -> dict[str, int]:
    """How often each term is in a text; apostrophes do not count."""
    plain = words(said.replace("'", "").replace("’", ""))
    return {term: plain.count(term.replace("'", "").casefold()) for term in TERMS}


def clips() -> list[Clip]:
    exchange = [c for c in speech.prompts("en") if any(terms_in(c.text).values())]
    return [*speech.sonnet_parts(), speech.librivox()[0], *exchange]


def sounds() -> dict[str, Samples]:
    """In which nobody speaks."""
    recorded = {p.stem: samples(p) for p in speech.noise_and_music()}
    return recorded | computed_sounds()


class Bench:
    """The same recordings with and without the glossary."""

    def __init__(self, ear: Ear) -> None:
        self.ear = ear
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def tell(self, terms: tuple[str, ...]) -> None:
        t = self.ear.transcriber
        t.s = t.decoder.s = t.decoder.prompts.s = msgspec.structs.replace(t.s, glossary=terms)

    def speech(self, terms: tuple[str, ...]) -> Score:
        self.tell(terms)
        said = heard = wrong = errors = 0
        for clip in clips():
            there, got = terms_in(clip.text), text(self.ear.hear(samples(clip.path))[0])
            found = terms_in(got)
            said += sum(there.values())
            heard += sum(min(n, found[term]) for term, n in there.items())
            wrong += sum(max(0, n - there[term]) for term, n in found.items())
            errors += word_errors(clip.text, got)
            print(f"{'with' if terms else 'without'}, {clip.path.stem}: {got}", file=sys.stderr)
        return Score(said, heard, wrong, errors)

    def invented(self, terms: tuple[str, ...], state: bytes) -> tuple[int, int]:
        """(terms, words) of captions of sounds that are taken for utterances."""
        self.tell(terms)
        named = total = 0
        for name, sound in sounds().items():
            for body in self.ear.infer(state, sound[: round(SOUND_S * RATE)]).events:
                if isinstance(body, m.Transcript):
                    named += sum(terms_in(body.text).values())
                    total += len(words(body.text))
                    print(f"{name}: {body.text}", file=sys.stderr, flush=True)
        return named, total

    def through_the_gate(self, terms: tuple[str, ...]) -> int:
        self.tell(terms)
        bodies = [b for sound in sounds().values() for b in self.ear.hear(sound)[0]]
        return sum(sum(terms_in(b.text).values()) for b in bodies if isinstance(b, m.Transcript))

    def bounded(self, name: str, value: float, unit: str, most: float) -> None:
        self.figures.append(Figure.against(f"{name} (≤ {most:g})", value, unit, most))
        if value > most:
            self.broken.append(name)

    def said(self) -> None:
        without, told = self.speech(()), self.speech(TERMS)
        self.figures += [
            Figure.against(f"rare words heard, of {told.said}", told.heard, "words", without.heard),
            Figure.against("word errors in all", told.errors, "words", without.errors),
        ]
        self.bounded("rare words heard where they were not said", told.wrong, "words", 0)

    def not_said(self) -> None:
        _, state = self.ear.hear(samples(speech.sonnet_parts()[0].path), utterances=2)
        for before, place in ((state, "after a sonnet"), (b"", "at the beginning")):
            named, total = self.invented(TERMS, before)
            self.bounded(f"rare words invented, {len(sounds())} sounds {place}", named, "words", 0)
            self.figures.append(Figure(f"words invented, sounds {place}", total, "words"))

    def gate(self) -> None:
        self.bounded("rare words invented, sounds through the gate", self.through_the_gate(TERMS), "words", 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--language", default="en")
    parser.add_argument("--part", choices=("said", "not_said", "gate"), action="append", help="repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    try:
        bench = Bench(Ear(folder, f"transcriber.model={args.model}", f"transcriber.language={args.language}"))
        for part in args.part or ("said", "not_said", "gate"):
            getattr(bench, part)()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(bench.figures, args.json)
    for name in bench.broken:
        print(f"broken: {name}", file=sys.stderr)
    return int(bool(bench.broken))


if __name__ == "__main__":
    sys.exit(main())
