"""Turns that were told, beside who is found to have spoken: which ids stay, and relabels from one to the other. Pure.

Relabels of one append all look at the labels before it, so that two speakers can change places; `relabelled` carries
them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from common.messages import Relabel, Span
from workers.matching import assign
from workers.turns import Turn, name
from workers.windows import FRAME, Active, runs


def relabelled(turns: Iterable[Turn], relabels: Iterable[Relabel]) -> list[Turn]:
    """FINAL. Turns as they are called after the relabels of ONE append; a span that cuts a turn splits it, "" is gone.

    Over several appends: one call each, in the order of the journal, with the turns told in between added.
    """
    rules: dict[str, list[tuple[Span | None, str]]] = {}
    for r in relabels:
        rules.setdefault(r.source, []).append((r.span, r.target))
    out: list[Turn] = []
    for turn in turns:
        mine = rules.get(turn.speaker, [])
        cuts = sorted({*turn.span, *(x for span, _ in mine if span for x in span if turn.span[0] < x < turn.span[1])})
        for begin, end in pairwise(cuts):
            to = [target for span, target in mine if span is None or span[0] <= begin < span[1]]
            label = to[-1] if to else turn.speaker
            if label:
                out.append(Turn((begin, end), label))
    return sorted(out)


def span_of(begin: int, end: int) -> Span:
    return (int(begin) * FRAME, int(end) * FRAME)


class Told:
    """Frames of the turns that were told, by number."""

    def __init__(self, turns: Sequence[Turn], upto: int) -> None:
        self.on: dict[int, Active] = {}
        for turn in turns:
            on = self.on.setdefault(int(turn.speaker[1:]), np.zeros(upto, np.bool_))
            on[turn.span[0] // FRAME : -(-turn.span[1] // FRAME)] = True

    def outside(self, covered: Active) -> set[int]:
        """Who speaks where no window was kept."""
        return {number for number, on in self.on.items() if (on & ~covered).any()}


def named(found: Active, before: Told, born: int) -> tuple[list[int], int]:
    """Numbers of the clusters: what each shares the most speech with, or new ones by first appearance."""
    old = sorted(before.on)
    shared = np.array([[int((row & before.on[n]).sum()) for n in old] for row in found]).reshape(len(found), len(old))
    numbers = [0] * len(found)
    for k, column in assign(shared):
        if shared[k, column] > 0:
            numbers[k] = old[column]
    for k in sorted(range(len(found)), key=lambda k: int(found[k].argmax())):
        if not numbers[k]:
            born += 1
            numbers[k] = born
    return numbers, born


def changes(before: Told, after: dict[int, Active], covered: Active, since: int) -> list[Relabel]:
    """For frames before `since`: who is not there after all, and who is instead. Sets, so that no order matters."""
    if not since:
        return []
    everybody = sorted({*before.on, *after})
    none = np.zeros(since, np.bool_)
    old = np.array([before.on[n][:since] if n in before.on else none for n in everybody])
    new = np.array([after[n][:since] if n in after else none for n in everybody])
    gone, come = old & ~new & covered[:since], new & ~old & covered[:since]
    pairs: dict[tuple[int, int], Active] = {}
    left = come.copy()
    for a in range(len(everybody)):
        for b in range(len(everybody)):
            both = gone[a] & left[b]
            if both.any():
                pairs[a, b] = both
                gone[a] &= ~both
                left[b] &= ~both
    return [
        Relabel(source=name(everybody[a]), target=name(everybody[b]), span=span_of(begin, end))
        for (a, b), on in pairs.items()
        for begin, end in joined(runs(on), old[a] & ~on)
    ]


def withdrawn(before: Told, covered: Active, since: int) -> list[Relabel]:
    """From `since` on: what was provisional is taken away where windows say it better."""
    return [
        Relabel(source=name(number), target="", span=span_of(begin, end))
        for number in sorted(before.on)
        for begin, end in joined(
            [(b + since, e + since) for b, e in runs((before.on[number] & covered)[since:])],
            before.on[number] & ~covered,
        )
    ]


def joined(spans: Sequence[tuple[int, int]], other: Active) -> list[tuple[int, int]]:
    """Spans of frames, as few as can be: those between which nothing of `other` lies are one."""
    out: list[tuple[int, int]] = []
    for begin, end in spans:
        if out and not other[out[-1][1] : begin].any():
            out[-1] = (out[-1][0], end)
        else:
            out.append((begin, end))
    return out
