"""What people see of "who said it" while it goes on. No model here; the measures are those of benchmarks.scores.

provisional(told, reference)                         what was shown of who speaks soon after each turn
Shown().take(events)                                 words whose speaker changed after it was shown
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.scores import Turn, Turns
from common import messages as m
from common.join import Join
from common.speaker_runs import NOBODY, Run

SOON_S = 3.0  # after the end of a turn its label is to be there


class Told(NamedTuple):
    """A turn of the journal, and when a subscriber had it: seconds of the stream that had been heard by then."""

    turn: Turn
    at_s: float


def provisional(told: Sequence[Told], reference: Turns, soon_s: float = SOON_S) -> Turns:
    """What a subscriber that takes no notice of relabels shows `soon_s` after the end of each turn of the reference.

    What it is told of a turn later than that does not count: the turn is missed there. Where two turns of the reference
    overlap, the later end counts. What is told where nobody speaks counts whenever it comes.
    """
    shown: Turns = []
    for (start, end, who), at_s in told:
        soon = [(a, b) for a, b, _ in reference if at_s <= b + soon_s]
        late = outside([(a, b) for a, b, _ in reference if at_s > b + soon_s], soon)
        shown += [(a, b, who) for a, b in outside([(start, end)], late)]
    return shown


def outside(spans: Iterable[tuple[float, float]], others: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The parts of `spans` that are in none of `others`."""
    left = list(spans)
    for a, b in others:
        left = [p for start, end in left for p in ((start, min(end, a)), (max(start, b), end)) if p[0] < p[1]]
    return left


class Shown:
    """A subscriber's captions: the speaker that each word was first shown with, and the one it has now.

    A word that is nobody's again has another speaker than the one it had.
    """

    def __init__(self) -> None:
        self.join = Join()
        self._mark = 0
        self._first: dict[tuple[str, int], str] = {}  # segment, word -> speaker
        self._ever: set[tuple[str, int]] = set()  # words that had another one than at first, at some time
        self._now: dict[str, list[str]] = {}

    def take(self, events: Iterable[m.Event]) -> None:
        """What came at once is shown at once."""
        for e in events:
            self.join.take(e)
        changed = self.join.since(self._mark)
        self._mark = self.join.mark
        for segment in changed:
            runs = self.join.runs(segment)
            self._now[segment] = [r.speaker for r in runs for _ in range(*r.words)]
            for i, who in enumerate(self._now[segment]):
                key = (segment, i)
                if who != NOBODY:
                    self._first.setdefault(key, who)
                if self._first.get(key, who) != who:
                    self._ever.add(key)

    @property
    def runs(self) -> list[Run]:
        """Of all segments, by time."""
        return sorted((r for segment in self._now for r in self.join.runs(segment)), key=lambda r: r.span)

    def counted(self) -> tuple[int, int, int, int]:
        """Words; of them without a speaker; with another speaker now than the first one shown; ever so."""
        now = {(segment, i): who for segment, all_of in self._now.items() for i, who in enumerate(all_of)}
        changed = sum(key in self._first and self._first[key] != who for key, who in now.items())
        return len(now), sum(who == NOBODY for who in now.values()), changed, len(self._ever & now.keys())
