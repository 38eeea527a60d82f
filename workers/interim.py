"""Which words of an utterance that is still being spoken are shown, and when it is worth another look. Pure.

In: what the decoder made of the audio so far, again and again, always behind the words that are stable already. Out:
the stable words, which never change again, and the unstable ones. A word becomes stable when two decodings in a row
agree on it and on all before it: LocalAgreement-2 (Macháček et al. 2023, "Turning Whisper into Real-Time Transcription
System").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from common.messages import SAMPLE_RATE

PAUSE = SAMPLE_RATE // 5  # so much silence: the last words are worth a look at once
TAIL = 3 * SAMPLE_RATE // 10  # of silence heard behind them
GUARD = 10  # encoder places, 0.2 s: a word heard this near to the end of the audio may be cut in two
SURE = 0.5  # an unstable word whose tokens are all this probable is shown
_MARKS = re.compile(r"[\W_]+")


class UnderWay(NamedTuple):
    """An utterance that is still being spoken, as far as it is heard; in samples of its stream."""

    stream: str
    start: int  # its segment begins here
    onset: int  # the voice begins here
    voice_end: int  # and has last been heard before here
    heard: int
    pcm: bytes  # s16le from `start` to `heard`
    language: str = ""  # as its source says; empty: as in the settings
    glossary: tuple[str, ...] = ()  # of its source


class Piece(NamedTuple):
    """A word of the decoder, or the marks behind one: its text with leading space, its tokens, where it was heard."""

    text: str
    tokens: tuple[int, ...] = ()
    p: float = 1.0  # of its least probable token
    heard: int = 0  # place of the encoder (20 ms) that the decoder looked at while it wrote this

    @property
    def key(self) -> str:
        """What two decodings must agree on: letters and digits; empty for marks alone."""
        return _MARKS.sub("", self.text).casefold()


class Shown(NamedTuple):
    """`stable` + `unstable` is the text so far; each `stable` begins with the one before."""

    stable: str
    unstable: str


class Interim:
    """The words of one utterance. Marks behind the last stable word stay open: what follows decides on them."""

    def __init__(self, start: int, onset: int) -> None:
        self.start = start
        self.stable: tuple[Piece, ...] = ()
        self.language = ""  # once it is heard
        self.looks = 0
        self.away = False  # the GPU was, while this was spoken
        self.shown = Shown("", "")
        self._before: tuple[Piece, ...] = ()
        self._looked = onset

    def due(self, now: UnderWay, every: int) -> int:
        """Up to which sample to decode now; 0: nothing that is worth it has been said since the last time."""
        if now.heard - now.voice_end >= PAUSE:
            return 0 if self._looked >= now.voice_end + PAUSE else min(now.heard, now.voice_end + TAIL)
        return now.heard if now.heard - self._looked >= every else 0

    def looked(self, upto: int) -> None:
        self._looked, self.looks = max(self._looked, upto), self.looks + 1

    def take(self, pieces: Sequence[Piece], end: int | None) -> Shown:
        """The newest decoding behind the stable words. `end`: place where the audio stops while speech goes on."""
        agreed = agree(self._before, pieces)
        self.stable += tuple(pieces[:agreed])
        self._before = tuple(pieces[agreed:])
        stable = text(self.stable)
        rest = text(self._before[: showable(self._before, end)])
        self.shown = Shown(stable.lstrip(), rest if stable else rest.lstrip())
        return self.shown


def agree(before: Sequence[Piece], after: Sequence[Piece]) -> int:
    """How many pieces of `after`, up to its last agreed word, say the same words as `before`; marks do not count."""
    words = [p.key for p in before if p.key]
    same = end = 0
    for i, piece in enumerate(after):
        if not piece.key:
            continue
        if same == len(words) or piece.key != words[same]:
            break
        same, end = same + 1, i + 1
    return end


def showable(pieces: Sequence[Piece], end: int | None) -> int:
    """How many pieces are sure enough to be shown before another decoding agrees."""
    for i, piece in enumerate(pieces):
        if piece.key and (piece.p < SURE or (end is not None and piece.heard > end - GUARD)):
            return i
    return len(pieces)


def text(pieces: Sequence[Piece]) -> str:
    return "".join(p.text for p in pieces)


class LeftOut:
    """How much interim text of live streams is left out for finals: what suffers first is said."""

    OVER_S = 60.0
    FEW = 2  # one may be chance
    SELDOM = 3  # times as far apart as it should be

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._finals: tuple[tuple[float, int, float], ...] = ()  # replaced whole: another thread reads it

    def final(self, now: float, looks: int, spoken_s: float) -> None:
        """An utterance that was long enough is final at `now` (monotonic); it had so many looks."""
        self._finals = (*(f for f in self._finals if f[0] > now - self.OVER_S), (now, looks, spoken_s))

    def note(self, now: float) -> str:
        """For people; empty where nothing is left out."""
        finals = [(looks, spoken_s) for at, looks, spoken_s in self._finals if at > now - self.OVER_S]
        without = sum(not looks for looks, _ in finals)
        if without >= self.FEW:
            return f"no interim text for {without} of the last {len(finals)} captions: finals first"
        looked = [f for f in finals if f[0]]
        apart_s = sum(spoken_s for _, spoken_s in looked) / max(1, sum(looks for looks, _ in looked))
        if len(looked) >= self.FEW and apart_s > self.SELDOM * self._every_s:
            return f"interim text each {apart_s:.1f} s instead of {self._every_s:g}: finals first"
        return ""
