"""What of a stream is due in one language. Pure.

How far, how late, what next: all that is asked for each sentence costs the same with thousands due, as where a target
is wanted late. The control thread may ask, too.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Set
from typing import NamedTuple

from workers.sentences import Sentence

Key = tuple[str, int]  # segment, place
_Rank = tuple[tuple[float, ...], Key]


class _Waiting(NamedTuple):
    sentence: Sentence
    ranks: tuple[_Rank, _Rank, _Rank]  # by place in the stream, by when it was known, by place in the journal


class Due:
    """Sentences to be translated, and translations to be taken back."""

    def __init__(self) -> None:
        self.gone: set[Key] = set()  # to be taken back
        self._waiting: dict[Key, _Waiting] = {}
        self._orders: tuple[list[_Rank], list[_Rank], list[_Rank]] = ([], [], [])

    def __len__(self) -> int:
        return len(self._waiting) + len(self.gone)

    def keys(self) -> set[Key]:
        return {*self._waiting, *self.gone}

    def translate(self, s: Sentence, known_s: float, seq: int) -> None:
        """`known_s`: since when, monotonic clock. `seq`: the first event that has words of it."""
        new = _Waiting(s, ((s.span, s.key), ((known_s,), s.key), ((seq,), s.key)))
        if self._waiting.get(s.key) != new:
            self.done(s.key)
            self._waiting[s.key] = new
            for order, rank in zip(self._orders, new.ranks, strict=True):
                insort(order, rank)

    def take_back(self, key: Key) -> None:
        self.done(key)
        self.gone.add(key)

    def done(self, key: Key) -> None:
        """Nothing is due about it."""
        self.gone.discard(key)
        if was := self._waiting.pop(key, None):
            for order, rank in zip(self._orders, was.ranks, strict=True):
                del order[bisect_left(order, rank)]

    def first(self, most: int) -> list[Sentence]:
        """So many, in the order in which they were said."""
        return [self._waiting[key].sentence for _, key in self._orders[0][:most]]

    def oldest_s(self) -> float:
        """When the one was known that waits longest; 0: none waits."""
        return next((since_s for (since_s,), _ in self._orders[1][:1]), 0.0)

    def first_seq(self, but: Set[Key]) -> int | None:
        """The first event that has words of one, `but` those."""
        return next((int(seq) for (seq,), key in self._orders[2] if key not in but), None)
