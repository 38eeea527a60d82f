"""What was measured in the last so many seconds, as quantiles. Pure: `now` is told, on any clock that only rises.

Memory is bounded by count beside age. One thread adds, another may read.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

MOST = 1024  # kept at most: of more in the time, only the newest count


class Quantiles(NamedTuple):
    """Values that occur: the smallest one that half, or 95 %, of all do not exceed."""

    of: int  # how many
    p50: float
    p95: float


class Window:
    """Values with the moments at which they were measured."""

    def __init__(self, span_s: float, most: int = MOST) -> None:
        self.span_s = span_s
        self._kept: deque[tuple[float, float]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, value: float, now: float) -> None:
        while self._kept and self._kept[0][0] <= now - self.span_s:
            self._kept.popleft()
        self._kept.append((now, value))

    def quantiles(self, now: float) -> Quantiles | None:
        """None: nothing was measured in that time."""
        kept = tuple(self._kept)  # in one go, for it may be added to meanwhile
        values = sorted(value for at, value in kept if at > now - self.span_s)
        return Quantiles(len(values), _at_most(values, 0.5), _at_most(values, 0.95)) if values else None


def _at_most(ordered: list[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
