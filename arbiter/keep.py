"""Who stays when not all have room: the cheapest eviction. Pure.

In: live workers, the bytes there are, who must not leave, for how long the others would be away. Out: those to keep,
so that what is lost by the absence of the others (seconds away and of reload, x weight) is least.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import inf

from arbiter.view import Worker
from common.settings import GpuSettings
from common.topology import COVERAGE_PRODUCER

MOST_COMPARED = 10  # workers, the first by weight: every subset of them is looked at; of more, who still fits is kept
FOR_GOOD_S = 3600.0  # away until something else changes: then the weight decides, and the reload hardly


def weight(w: Worker, settings: GpuSettings) -> float:
    """What a second without it costs."""
    known = {COVERAGE_PRODUCER: settings.transcriber_weight, "translator": settings.translator_weight}
    return known.get(w.name, 1.0)


def keep(
    workers: Sequence[Worker], room: int, fixed: Sequence[Worker], settings: GpuSettings, away_s: float = FOR_GOOD_S
) -> list[Worker]:
    """The ones to keep in `room` bytes, in their order; `fixed` ones whatever they take."""
    room -= sum(w.want_bytes for w in workers if w in fixed)
    free = [w for w in workers if w not in fixed]
    if sum(w.want_bytes for w in free) <= room:
        return list(workers)
    cost = {w.who: (away_s + w.load_s) * weight(w, settings) * (settings.keep_here if w.ready else 1.0) for w in free}
    compared, rest = free[:MOST_COMPARED], free[MOST_COMPARED:]
    best: tuple[Worker, ...] = ()
    least = inf
    for n in range(len(compared), -1, -1):
        for some in combinations(compared, n):
            lost = sum(cost[w.who] for w in compared if w not in some)
            if lost < least and sum(w.want_bytes for w in some) <= room:
                best, least = some, lost
    chosen = list(best)
    room -= sum(w.want_bytes for w in chosen)
    for w in rest:
        if w.want_bytes <= room:
            chosen.append(w)
            room -= w.want_bytes
    return [w for w in workers if w in fixed or w in chosen]
