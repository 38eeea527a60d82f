"""Stretches of samples: which of many touch one, what several cover, what one cuts out of another. Pure.

And stretches of the journal, as a purge names them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from common.messages import SAMPLE_RATE, Span

Key = TypeVar("Key", int, str)


class Spans(Generic[Key]):
    """Keys with a span each, to be asked for by place. Cheap as long as spans are short beside the whole."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, int, Key]] = []
        self._longest = 0

    def add(self, span: Span, key: Key) -> None:
        insort(self._sorted, (*span, key))
        self._longest = max(self._longest, span[1] - span[0])

    def remove(self, span: Span, key: Key) -> None:
        del self._sorted[bisect_left(self._sorted, (*span, key))]

    def touching(self, span: Span) -> list[Key]:
        """Keys whose spans share a sample with `span`, in the order of these spans."""
        low = bisect_left(self._sorted, (span[0] - self._longest,))
        high = bisect_right(self._sorted, (span[1],))
        return [key for a, b, key in self._sorted[low:high] if a < span[1] and span[0] < b]


class Seqs:
    """A set of seqs, made of runs with both ends inclusive. However many there are, to ask for one is cheap."""

    def __init__(self, runs: Iterable[Span] = ()) -> None:
        self._runs: list[Span] = []  # [first, end) in order, that neither touch nor overlap
        self.add(runs)

    def add(self, runs: Iterable[Span]) -> None:
        self._runs = union([*self._runs, *((first, last + 1) for first, last in runs)])

    def __contains__(self, seq: int) -> bool:
        at = bisect_left(self._runs, (seq + 1,))
        return at > 0 and seq < self._runs[at - 1][1]

    def of(self, held: Collection[int]) -> list[int]:
        """Those of `held` that are in the set."""
        if sum(end - first for first, end in self._runs) < len(held):
            return [seq for run in self._runs for seq in range(*run) if seq in held]
        return [seq for seq in held if seq in self]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same samples as stretches in order that neither touch nor overlap."""
    out: list[Span] = []
    for a, b in sorted(spans):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def parts_within(span: Span, cut: Span) -> Iterator[tuple[int, int, bool]]:
    """`span` cut at the ends of `cut`: (start, end, whether it lies inside), in order."""
    low, high = max(span[0], cut[0]), min(span[1], cut[1])
    if low >= high:
        yield (*span, False)
        return
    for a, b, inside in ((span[0], low, False), (low, high, True), (high, span[1], False)):
        if a < b:
            yield a, b, inside


def clock(samples: int) -> str:
    """Place in a stream: `00:12.3`, with hours when there are any."""
    tenths = samples * 10 // SAMPLE_RATE
    hours, rest = divmod(tenths, 36_000)
    return f"{hours}:" * bool(hours) + f"{rest // 600:02d}:{rest % 600 // 10:02d}.{rest % 10}"
