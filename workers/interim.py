"""Which words of an utterance that is still being spoken may be shown: LocalAgreement-2. Pure.

In: what the decoder made of the audio so far, again and again, always behind the words that are stable already. Out:
the stable words, which never change again, and the unstable ones. A word becomes stable when two decodings in a row
agree on it and on all before it (Machacek et al. 2023, "Turning Whisper into a real-time transcription system", 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_MARKS = re.compile(r"[\W_]+")


class Piece(NamedTuple):
    """A word of the decoder, or the marks behind one: its text with leading space, its tokens, where it was heard."""

    text: str
    tokens: tuple[int, ...]
    p: float = 1.0  # of its least probable token
    heard: int = 0  # encoder place (20 ms) at which the decoder looked furthest while it wrote this

    @property
    def key(self) -> str:
        """What two decodings must agree on: letters and digits; empty for marks alone."""
        return _MARKS.sub("", self.text).casefold()


class Shown(NamedTuple):
    """`stable` + `unstable` is the text so far; each `stable` begins with the one before."""

    stable: str
    unstable: str


class Agreement:
    """The words of one utterance. Marks behind the last stable word stay open: what follows decides on them."""

    def __init__(self) -> None:
        self.stable: tuple[Piece, ...] = ()
        self._before: tuple[Piece, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the next decoding must begin with."""
        return tuple(t for piece in self.stable for t in piece.tokens)

    def take(self, pieces: Sequence[Piece], shown: int | None = None) -> Shown:
        """The newest decoding behind the stable words; of what is not stable yet, `shown` pieces may be shown."""
        agreed = agree(self._before, pieces)
        self.stable += tuple(pieces[:agreed])
        self._before = tuple(pieces[agreed:])
        rest = pieces[agreed:] if shown is None else pieces[agreed : max(agreed, shown)]
        stable = text(self.stable)
        return Shown(stable.lstrip(), text(rest) if stable else text(rest).lstrip())


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


def text(pieces: Sequence[Piece]) -> str:
    return "".join(p.text for p in pieces)
