"""Words beside turns: who said each word, and so the runs of a segment. Pure; `join.py` says whose the turns are.

A word belongs to who talks during most of it. Alignment is not that exact, so one in no turn belongs to the nearest.
Where words stand apart by spaces, what follows without one is of the same word: nobody else says "-portrait" of
"self-portrait".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from common import messages as m
from common.spans import union

NEAR = m.SAMPLE_RATE // 2  # samples: a word in no turn belongs to the nearest one, if it is not farther away
UNSPACED = ("zh", "yue", "ja", "th", "lo", "my", "km", "bo")  # languages that set no space between words or sentences
NOBODY = ""  # who it was is not known, or not yet


class Run(NamedTuple):
    """Words of a segment, one after the other, by the same speaker. `words`: their [first, end) in the transcript."""

    speaker: str
    span: m.Span
    text: str
    words: tuple[int, int]


class Piece(NamedTuple):
    """A stretch of a turn and who it belongs to, all relabels done. In this order pieces are sorted, too."""

    start: int
    end: int
    speaker: str


def runs_of(text: m.Transcript, pieces: Iterable[Piece]) -> tuple[Run, ...]:
    """The words of a segment by speaker, given the pieces of turns within its `reach`, in order."""
    words = text.words or (m.Word(text=text.text, span=text.span, p=0.0),)
    voices = by_voice(pieces)
    apart = text.language in UNSPACED
    begins = [i for i, w in enumerate(words) if not i or apart or w.text[:1].isspace()]
    speakers, before = list[str](), NOBODY
    for at, end in zip(begins, [*begins[1:], len(words)], strict=True):
        before = speaker_of(_span(words[at:end]), voices, before)
        speakers += [before] * (end - at)
    runs, at = list[Run](), 0
    for speaker, group in groupby(speakers):
        end = at + len(list(group))
        said = "".join(w.text for w in words[at:end]) if end - at < len(words) else text.text
        runs.append(Run(speaker, _span(words[at:end]), said.strip(), (at, end if text.words else 0)))
        at = end
    return tuple(runs)


def _span(words: Sequence[m.Word]) -> m.Span:
    return (min(w.span[0] for w in words), max(w.span[1] for w in words))


def by_voice(pieces: Iterable[Piece]) -> dict[str, list[m.Span]]:
    """Where each speaker talks: stretches in order that do not touch, whatever pieces a turn came in."""
    spans: dict[str, list[m.Span]] = {}
    for p in pieces:
        spans.setdefault(p.speaker, []).append((p.start, p.end))
    return {speaker: union(s) for speaker, s in spans.items()}


def speaker_of(word: m.Span, voices: dict[str, list[m.Span]], before: str = NOBODY) -> str:
    """Who said a word: who talks during most of it, else the nearest within NEAR, else nobody.

    A tie, as where two talk at once, goes to who said the word before, else to whose stretch began first.
    """
    start, end = word[0], max(word[1], word[0] + 1)  # alignment gives some words no length
    best: tuple[tuple[int, bool, int], str] | None = None
    for speaker in sorted(voices, key=number):
        shared, away, began = 0, NEAR + 1, 0
        for a, b in voices[speaker]:
            over = min(end, b) - max(start, a)
            if over > 0:
                began = began if shared else a
                shared += over
            elif not shared and -over < away:
                away, began = -over, a
        if shared or away <= NEAR:
            rank = (shared or -away - 1, speaker == before, -began)
            if best is None or rank > best[0]:
                best = (rank, speaker)
    return best[1] if best else NOBODY


def number(speaker: str) -> tuple[int, str]:
    """Ids in the order in which speakers appeared: S2 before S10."""
    digits = speaker.lstrip("S")
    return (int(digits) if digits.isdecimal() and len(digits) < 10 else 2**31, speaker)


def reach(text: m.Transcript) -> m.Span:
    """Where a turn must be to have a say in who said the words."""
    spans = [text.span, *(w.span for w in text.words)]
    return (min(a for a, _ in spans) - NEAR - 1, max(b for _, b in spans) + NEAR + 2)
