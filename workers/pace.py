"""How fast a language model reads and writes here, by its last bursts: how long one must last, how much it can read.

Pure: durations come in, estimates go out. Nothing outlives the process; until a burst has run, the longest piece of
the calibration stands in.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf
from typing import NamedTuple

PIECE_TOKENS = 8  # written in one piece
BLOCK_TOKENS = 16  # what a burst has to keep: see `generation.write`
ENOUGH_TOKENS = 32  # one that wrote so many was worth its swap
SHARE = 0.9  # of a longest hold: what is planned for a text that must be shortened


class Reading(NamedTuple):
    """One burst read so many tokens; the time grows faster than their number, for each looks at all before it."""

    tokens: int
    seconds: float

    @property
    def token_s(self) -> float:
        return self.seconds / self.tokens


class Pace:
    """See the module. Of the last two readings one may have been slow for a reason of its own."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque(maxlen=2)
        self._written_s = 0.0  # seconds for one token

    def burst(self, read: int, read_s: float, written: int, written_s: float) -> None:
        """What one burst did, be it whole or cut."""
        if read:
            self._readings.append(Reading(read, read_s))
        if written:
            self._written_s = written_s / written

    def least_s(self, tokens: int, piece_tokens: int, piece_s: float) -> float:
        """Until `tokens` are read and enough is written; it is rather more. 0: nothing is known.

        `piece_s`: the longest piece ever, be it one of reading `piece_tokens` or of writing several.
        """
        bounds = [ceil(tokens / piece_tokens) * piece_s] if piece_s else []
        if self._readings:
            slow = max(self._readings, key=lambda r: r.token_s)
            times = tokens / slow.tokens
            measured = slow.seconds * times * max(1.0, times)
            bounds = [min([measured, *bounds]) if times > 1 else measured]
        return bounds[0] + ENOUGH_TOKENS * (self._written_s or piece_s / PIECE_TOKENS) if bounds else 0.0

    def fits(self, tokens: int, hold_s: float) -> bool:
        """Whether bursts of `hold_s` that read so many can get on at all. It takes two bursts to deny that.

        What a machine was slow at once may be all right the next time.
        """
        return len(self._readings) < 2 or tokens <= self._readable(hold_s - BLOCK_TOKENS * self._written_s)

    def most_tokens(self, hold_s: float) -> float:
        """So many can be read with time left to write enough; inf: no limit is known."""
        if len(self._readings) < 2:
            return inf
        return max(1, self._readable(SHARE * hold_s - ENOUGH_TOKENS * self._written_s))

    def _readable(self, seconds: float) -> float:
        return seconds / min(r.token_s for r in self._readings)
