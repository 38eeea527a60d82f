"""Subtitles of a stream: text cut where a sentence or a pause ends, shown long enough to be read. Pure.

At most two lines of 42 columns and about 6 s (the guides of BBC and Netflix agree on these within a few units), at 17
columns a second where the speech leaves the time for it. A cue that needs more time than it took to say goes on into
the pause behind it, or holds the next one up for a moment; cues never overlap, and never fall behind for longer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from common import messages as m
from common.passages import Passage
from common.speaker_runs import UNSPACED

LINE_COLUMNS = 42
CUE_S = 6.0  # of speech
LEAST_CUE_S, LONGEST_CUE_S = 1.0, 7.0  # on the screen
COLUMNS_S = 17.0
LATE_S = 0.7  # a cue comes so much later than its words at most, for the sake of the one before
PAUSE_S = 0.8
SENTENCE_ENDS = ".?!…。？！｡။།។"
CLAUSE_ENDS = ",;:—、，；：､၊"
CLOSERS = "\"'”’)»」』）】》〉"
_UNSPACED_ENDS = "".join(c for c in SENTENCE_ENDS + CLAUSE_ENDS if not c.isascii() and c not in "—…")
# What stands between two ends in a script without spaces, with the marks and what they close.
_CLAUSE = re.compile(f"[^{_UNSPACED_ENDS}]*[{_UNSPACED_ENDS}]+[{re.escape(CLOSERS)}]*|[^{_UNSPACED_ENDS}]+")


class Cue(NamedTuple):
    """One subtitle."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]
    speaker: str = ""  # what to call who says it; "" if that is not known


def cues(passages: Iterable[Passage], names: bool = False) -> list[Cue]:
    """Subtitles in order. `names`: where the speaker changes, the text begins with the name."""
    found = [
        (seconds(words[0].span[0]), seconds(words[-1].span[1]), wrapped("".join(w.text for w in words)), p.speaker)
        for p in passages
        for words in _cut(list(_words(p, f"{p.speaker}:" if names and p.changes and p.speaker else "")))
    ]
    out: list[Cue] = []
    for i, (said_s, over_s, lines, speaker) in enumerate(found):
        start_s = max(said_s, out[-1].end_s if out else 0.0)
        wanted_s = max(LEAST_CUE_S, sum(map(columns, lines)) / COLUMNS_S)
        end_s = max(over_s, start_s + min(wanted_s, LONGEST_CUE_S))
        if i + 1 < len(found):  # what is being said is shown; only who cannot be read yet stays a moment longer
            next_s = found[i + 1][0]
            end_s = min(end_s, max(next_s, min(start_s + wanted_s, next_s + LATE_S)))
        end_s = max(start_s + 0.001, min(end_s, start_s + LONGEST_CUE_S))
        out.append(Cue(round(start_s, 3), round(end_s, 3), lines, speaker))
    return out


def _words(p: Passage, name: str = "") -> Iterator[m.Word]:
    """The words of a passage, none wider than a line. `name` goes before them and takes no time."""
    words = [w for w in p.words if w.text.strip()] or [m.Word(text=f" {p.text}", span=p.span, p=0.0)]
    start = words[0].span[0]
    for word in (*([m.Word(text=f" {name}", span=(start, start), p=0.0)] if name else []), *words):
        yield from _parts(word, p.language in UNSPACED)


def _parts(word: m.Word, unspaced: bool) -> Iterator[m.Word]:
    """A word, or a whole text, cut at its spaces, in a script without them behind clauses, and where it is too wide;
    its time shared out by length."""
    text = " " * word.text[:1].isspace() + " ".join(word.text.split())
    between = re.findall(" ?[^ ]+", text)
    clauses = [clause for part in between for clause in (_CLAUSE.findall(part) if unspaced else [part])]
    parts = [piece for clause in clauses for piece in _narrow(clause)]
    (start, end), total, at = word.span, sum(map(len, parts)), 0
    for part in parts:
        from_, to = (start + (end - start) * n // total for n in (at, at + len(part)))
        yield m.Word(text=part, span=(from_, to), p=word.p)
        at += len(part)


def _narrow(text: str) -> Iterator[str]:
    """In as few pieces as fit a line, nearly even ones: a script without spaces, or an address."""
    while (wide := columns(text.strip())) > LINE_COLUMNS:
        head = _fitting(text, -(-wide // -(-wide // LINE_COLUMNS)))
        yield head
        text = text[len(head) :]
    yield text


def _cut(words: list[m.Word]) -> Iterator[list[m.Word]]:
    """Words in groups that fit one subtitle: up to the last good end before it is full."""
    while words:
        size = 0
        for i, word in enumerate(words):
            late = (word.span[1] - words[0].span[0]) > CUE_S * m.SAMPLE_RATE
            pause = i and word.span[0] - words[i - 1].span[1] > PAUSE_S * m.SAMPLE_RATE
            if i and (late or pause or len(wrapped("".join(w.text for w in words[: i + 1]))) > 2):
                break
            size = i + 1
        if size < len(words) and not (words[size].span[0] - words[size - 1].span[1] > PAUSE_S * m.SAMPLE_RATE):
            size = _good_end(words, size)
        yield words[:size]
        words = words[size:]


def _good_end(words: list[m.Word], size: int) -> int:
    """The last end of a sentence among the first `size` words, else of a clause, if not too much is left over."""
    for marks in (SENTENCE_ENDS, CLAUSE_ENDS):
        for n in range(size, size // 2, -1):
            if words[n - 1].text.rstrip(CLOSERS)[-1:] in marks:
                return n
    return size


def wrapped(text: str) -> tuple[str, ...]:
    """One line if it fits, else two or more that are as even as can be."""
    text = text.strip()
    if columns(text) <= LINE_COLUMNS:
        return (text,)
    breaks = [i for i in range(1, len(text)) if text[i] == " " or _clause_ends(text, i)]
    fitting = [i for i in breaks if max(columns(text[:i]), columns(text[i:].strip())) <= LINE_COLUMNS]
    if fitting:
        best = min(fitting, key=lambda i: abs(columns(text[:i]) - columns(text[i:].strip())))
        return (text[:best], text[best:].strip())
    most = len(_fitting(text, LINE_COLUMNS))
    inside = next((i for i in range(most, 0, -1) if text[i] not in _UNSPACED_ENDS + CLOSERS), most)
    cut = max((i for i in breaks if i <= most), default=inside)
    return (text[:cut].strip(), *wrapped(text[cut:]))


def _clause_ends(text: str, at: int) -> bool:
    """Does a clause of a script without spaces end before this letter?"""
    return text[at] not in _UNSPACED_ENDS + CLOSERS and text[:at].rstrip(CLOSERS)[-1:] in (*_UNSPACED_ENDS,)


def columns(text: str) -> int:
    """Width on a screen: Chinese, Japanese and Korean letters have two columns, combining marks none."""
    return len(text) if text.isascii() else sum(map(_column, text))


def _column(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _fitting(text: str, wide: int) -> str:
    """The longest beginning of at most `wide` columns, at least one letter."""
    for n, width in enumerate(accumulate(map(_column, text))):
        if width > wide:
            return text[: max(1, n)]
    return text


def seconds(samples: int) -> float:
    return round(samples / m.SAMPLE_RATE, 3)
