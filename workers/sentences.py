"""Transcripts of a stream in the order in which they were said -> whole sentences. Pure.

A pause cuts speech into segments, and people pause within a sentence. So one that has no end yet is held until it ends
in a later segment, or until `hold_s` of the stream passed without more of it. Where a sentence ends is the library's to
say (abbreviations, initials, quotes, other scripts). The sentences are a function of texts and spans alone: of when
anything was known, and of kills in between, they know nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import sentencex

from common import messages as m
from common.speaker_runs import UNSPACED

# Begins a sentence wherever one can begin; but "Mr." goes on before a name, so nothing is cut behind it.
NAME = "Xavier"
LONGEST = 400  # characters: a recogniser that sets no stops must not hold them for ever


class Sentence(msgspec.Struct, frozen=True, kw_only=True):
    """What is translated at once."""

    segment: str  # in which it begins
    place: int  # number among those that begin there, from 0
    parts: tuple[str, ...]  # `segment/revision` of all the texts that have words of it, in order
    span: m.Span
    text: str
    language: str

    @property
    def key(self) -> tuple[str, int]:
        return (self.segment, self.place)

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(part.rpartition("/")[0] for part in self.parts)


class _Words(NamedTuple):
    """A piece of a text whose span is known."""

    text: str
    span: m.Span
    of: m.Transcript


class Sentences:
    """One stream. What is returned is over; what is held is in `open`."""

    def __init__(self, hold_s: float) -> None:
        self._hold = round(hold_s * m.SAMPLE_RATE)
        self._held: list[_Words] = []
        self._begun: tuple[str, int] = ("", 0)  # segment in which the last sentence began, and how many did there

    @property
    def open(self) -> tuple[str, ...]:
        """Segments of which some words are held."""
        return tuple(dict.fromkeys(w.of.segment for w in self._held))

    def add(self, text: m.Transcript) -> list[Sentence]:
        """The next text; the sentences that are over now."""
        if not text.text.strip():
            return []
        over = self.reach(text.span[0])
        length = sum(len(w.text) for w in self._held) + len(text.text)
        if self._held and (text.language != self._held[-1].of.language or length > LONGEST):
            over += self.end()
        self._held += _words(text, bool(self._held))
        whole = "".join(w.text for w in self._held)
        at = 0
        *ended, last = sentencex.segment(text.language, whole)
        if ends(last, text.language):
            ended.append(last)
        for sentence in ended:
            over += self._sentence(at, at + len(sentence))
            at += len(sentence)
        self._held = _cut(self._held, at, len(whole))
        return over

    def reach(self, sample: int) -> list[Sentence]:
        """All that was said before `sample` is known."""
        return self.end() if self._held and sample - self._held[-1].span[1] >= self._hold else []

    def end(self) -> list[Sentence]:
        """There is no more of it: what is held is a sentence."""
        over = self._sentence(0, sum(len(w.text) for w in self._held))
        self._held = []
        return over

    def _sentence(self, start: int, end: int) -> list[Sentence]:
        words = _cut(self._held, start, end)
        text = " ".join("".join(w.text for w in words).split())
        if not text:
            return []
        segment, language = words[0].of.segment, words[0].of.language
        place = self._begun[1] if self._begun[0] == segment else 0
        self._begun = (segment, place + 1)
        parts = tuple(dict.fromkeys(f"{w.of.segment}/{w.of.revision}" for w in words))
        span = (min(w.span[0] for w in words), max(w.span[1] for w in words))
        return [Sentence(segment=segment, place=place, parts=parts, span=span, text=text, language=language)]


def ends(text: str, language: str) -> bool:
    """Whether another sentence may begin behind `text`."""
    text = text.rstrip()
    return len(sentencex.segment(language, f"{text} {NAME}")[-1]) <= len(NAME)


def _words(text: m.Transcript, follows: bool) -> list[_Words]:
    """With a space before them if others stand before."""
    words = [_Words(w.text, w.span, text) for w in text.words]
    if "".join(w.text for w in words).split() != text.text.split():
        words = [_Words(text.text.strip(), text.span, text)]
    first = words[0].text.lstrip()
    space = " " if follows and text.language not in UNSPACED else ""
    return [words[0]._replace(text=space + first), *words[1:]]


def _cut(words: list[_Words], start: int, end: int) -> list[_Words]:
    """The characters `start` to `end` of what the words say together. Time within a word is shared out by length."""
    out, at = list[_Words](), 0
    for w in words:
        a, b = max(start - at, 0), min(end - at, len(w.text))
        if a < b and w.text[a:b].strip():
            out.append(w._replace(text=w.text[a:b], span=(_when(w, a), _when(w, b))))
        at += len(w.text)
    return out


def _when(w: _Words, character: int) -> int:
    heard = len(w.text.lstrip())  # a word carries the space before it
    after = max(0, character - (len(w.text) - heard))
    return w.span[0] + (w.span[1] - w.span[0]) * after // heard
