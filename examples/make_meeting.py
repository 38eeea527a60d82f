"""Composes meetings from recordings of single speakers: who speaks when, and which words, is known to the sample.

    python -m examples.make_meeting                  builds the bundled one: examples/meeting.*
    python -m examples.make_meeting four six DIR     writes these meetings of MEETINGS to DIR

    NAME.flac   the sound, 16 kHz mono
    NAME.rttm   a line for each stretch that one speaker speaks without a pause of 0.4 s
    NAME.tsv    a line for each word: start and end in seconds, speaker, word

The speakers take turns as their recordings go on; everybody with more than one piece comes back. Some begin before the
one before them has finished, and never do more than two speak at once. Running it again gives the same samples.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from examples.make_recording import write_flac
from tests.speakers import Piece, Word, pieces
from tests.speech import RATE, Samples

HERE = Path(__file__).resolve().parent
TURN_S = (2.0, 9.0)  # how long somebody speaks before another wants to
GAP_S = (0.2, 1.2)  # between two turns
INTERRUPTED = 0.5  # share of turns that begin before the one before them ends
OVERLAP_S = (0.4, 1.6)  # by so much
BREATH_S = 0.9  # a longer pause inside a turn is shortened to this
EDGE_S = 1.0  # before the first and behind the last word


class Cast(NamedTuple):
    """Which pieces of whom, and the number that decides everything else."""

    seed: int
    pieces: dict[str, slice]


ALL = slice(None)
MEETINGS = {
    "meeting": Cast(4, {"kennedy": ALL, "austen": slice(1, None), "sonnets": slice(5)}),  # bundled: public domain
    "four": Cast(1, {"kennedy": ALL, "austen": ALL, "sonnets": slice(14), "cities": ALL}),
    "six": Cast(
        2,
        {"kennedy": ALL, "austen": ALL, "sonnets": slice(14, None), "cities": ALL, "michael": ALL, "wizard": ALL},
    ),
}


class Placed(NamedTuple):
    start: int  # of the piece's first sample
    piece: Piece

    @property
    def span(self) -> tuple[int, int]:
        """First sample of the first word, end of the last."""
        return self.start + self.piece.words[0].start, self.start + self.piece.words[-1].end


class Meeting:
    """Placed pieces and their sum."""

    def __init__(self, placed: list[Placed], seed: int) -> None:
        self.placed = placed
        end = max(p.start + len(p.piece.audio) for p in placed) + round(EDGE_S * RATE)
        # Nearly silent (±1 of 32768) rather than zero, as a quiet room is.
        mix = np.random.default_rng(seed).integers(-1, 1, end, endpoint=True).astype(np.int32)
        for start, piece in placed:
            mix[start : start + len(piece.audio)] += piece.audio
        self.samples: Samples = np.clip(mix, -32768, 32767).astype(np.int16)

    @property
    def turns(self) -> list[tuple[int, int, str]]:
        """(start, end, speaker), by start"""
        return sorted((*p.span, p.piece.speaker) for p in self.placed)

    @property
    def words(self) -> list[tuple[Word, str]]:
        """Each word at its place in the meeting and its speaker, by start."""
        found = [
            (Word(w.text, at + w.start, at + w.end), piece.speaker) for at, piece in self.placed for w in piece.words
        ]
        return sorted(found, key=lambda f: (f[0].start, f[1]))

    @property
    def overlap(self) -> float:
        """The share of speech in which two speak."""
        count = np.zeros(len(self.samples), np.int8)
        for start, end, _ in self.turns:
            count[start:end] += 1
        return float((count > 1).sum() / (count > 0).sum())

    def write(self, folder: Path, name: str) -> Path:
        write_flac(folder / f"{name}.flac", self.samples)
        rows = [
            f"SPEAKER {name} 1 {a / RATE:.4f} {(b - a) / RATE:.4f} <NA> <NA> {who} <NA> <NA>\n"
            for a, b, who in self.turns
        ]
        (folder / f"{name}.rttm").write_text("".join(rows))
        lines = [f"{w.start / RATE:.4f}\t{w.end / RATE:.4f}\t{who}\t{w.text}\n" for w, who in self.words]
        (folder / f"{name}.tsv").write_text("".join(lines))
        return folder / f"{name}.flac"


def compose(name: str) -> Meeting:
    cast = MEETINGS[name]
    chance = Random(cast.seed)
    placed: list[Placed] = []
    at = before = round(EDGE_S * RATE)  # where the last turn ends, and the one before it
    for turn in turns_of({who: list(pieces(who)[part]) for who, part in cast.pieces.items()}, chance):
        length = sum(len(p.audio) for p in turn)
        start = at + round(between(GAP_S, chance) * RATE) if placed else at
        if chance.random() < INTERRUPTED and placed:
            over = min(round(between(OVERLAP_S, chance) * RATE), length // 2, len(placed[-1].piece.audio) // 2)
            start = max(at - over, before)
        before = at
        for piece in turn:
            placed.append(Placed(start, piece))
            at = start + len(piece.audio)
            start = at + round(min(piece.pause_s, BREATH_S) * RATE)
    return Meeting(placed, cast.seed)


def turns_of(left: dict[str, list[Piece]], chance: Random) -> list[list[Piece]]:
    """Who says what next until all is said. Nobody follows himself while another has something left."""
    half = {who: -(-len(some) // 2) for who, some in left.items()}  # so that he comes back
    turns: list[list[Piece]] = []
    while any(left.values()):
        last = turns[-1][0].speaker if turns else None
        others = [who for who, some in left.items() if some and who != last] or [last]
        # Whoever has more left speaks sooner, so that nobody is left to speak alone.
        who = chosen(others, [sum(len(p.audio) for p in left[w]) for w in others], chance)
        wanted, turn = between(TURN_S, chance) * RATE, [left[who].pop(0)]
        while left[who] and len(turn) < half[who] and sum(len(p.audio) for p in turn) < wanted:
            turn.append(left[who].pop(0))
        turns.append(turn)
    return turns


# From random() alone, which gives the same numbers in every version of Python.


def between(span: tuple[float, float], chance: Random) -> float:
    return span[0] + (span[1] - span[0]) * chance.random()


def chosen(names: list[str], weights: list[int], chance: Random) -> str:
    at = chance.random() * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        at -= weight
        if at < 0:
            return name
    return names[-1]


def main() -> None:
    *names, folder = sys.argv[1:] or ["meeting", str(HERE)]
    for name in names:
        meeting = compose(name)
        path = meeting.write(Path(folder), name)
        size, length = path.stat().st_size / 1e6, len(meeting.samples) / RATE
        speakers = {who for *_, who in meeting.turns}
        who = f"{len(speakers)} speakers, two at once in {100 * meeting.overlap:.1f} % of their speech"
        print(f"{path}: {length:.1f} s, {who}, {len(meeting.words)} words, {size:.2f} MB")


if __name__ == "__main__":
    main()
