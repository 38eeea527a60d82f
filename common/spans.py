"""Stretches of samples: which of many touch one, what several cover, what one cuts out of another. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
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
