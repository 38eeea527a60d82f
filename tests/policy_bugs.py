"""Planted bugs: the policy with one rule taken away, for the proof that the checker of schedules sees it.

`BUGS` has for each: its name, the promise that it breaks first (any of several), and the policy to play with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any
from unittest import mock

import msgspec

from arbiter import policy
from arbiter.view import Plan, View, Worker
from common.settings import GpuSettings

Decide = Callable[[View, GpuSettings, float], Plan]
change = msgspec.structs.replace


def without(**settings: Any) -> Decide:
    """The rule's setting is such that it never says anything."""
    return lambda view, s, now: policy.decide(view, change(s, **settings), now)


def seen(**fields: Any) -> Decide:
    """Every worker looks so to the policy."""
    return lambda view, s, now: policy.decide(
        change(view, workers=tuple(change(w, **fields) for w in view.workers)), s, now
    )


def made_by(cls: type[policy._Decision]) -> Decide:
    return lambda view, s, now: cls(view, s, now).plan()


class NotFirst(policy._Decision):
    """A burst begins whoever of the live ones is missing."""

    def _starts(self, w: Worker) -> str:
        kept, self.kept = self.kept, []
        try:
            return super()._starts(w)
        finally:
            self.kept = kept


class NotBackFirst(policy._Decision):
    """Overdue ones follow each other, and nobody comes back in between."""

    def _starts(self, w: Worker) -> str:
        self.memory = change(self.memory, ended_s=-inf)
        return super()._starts(w)


class NeverOver(policy._Decision):
    """A burst has the GPU for as long as it likes; what others lose meanwhile is reckoned as ever."""

    def _end(self, *args: Any) -> str:
        return self._endless(super()._end, *args)

    def _grant(self, *args: Any) -> Any:
        return self._endless(super()._grant, *args)

    def _endless(self, step: Any, *args: Any) -> Any:
        was, self.set = self.set, change(self.set, max_hold_s=inf)
        try:
            return step(*args)
        finally:
            self.set = was


class NewRidersLeave(policy._Decision):
    """Who rides free makes room as soon as another may begin."""

    def _starts(self, w: Worker) -> str:
        was = self.others
        self.others = [change(o, granted_at_s=-inf) if o is not w else o for o in was]
        try:
            return super()._starts(w)
        finally:
            self.others = was


class TwoLoads(policy._Decision):
    """The bus is everybody's."""

    def _grant(self, *args: Any) -> Any:
        was, self.set = self.set, change(self.set, stuck_after_s=0.0)
        try:
            return super()._grant(*args)
        finally:
            self.set = was


class SmallestFirst(policy._Decision):
    """Those who left come back in any order."""

    def plan(self) -> Plan:
        self.live.reverse()
        return super().plan()


class NoTurns(policy._Decision):
    """Who waits for longest is first, also when it has just had its turn."""

    def _since(self, w: Worker) -> float:
        return w.since_s


class NobodyRides(policy._Decision):
    """What fits beside everybody waits for a pause like any other burst."""

    def _beside(self, left: int, all_live: bool, pinned: list[Worker]) -> list[Worker]:
        return []


class AsExpected(policy._Decision):
    """The rest is counted from what the swap should have taken."""

    def _returned(self) -> None:
        self.memory = change(self.memory, returning=False)


class OnlyWhoLeaves(policy._Decision):
    """A swap by hand that begins before all are back costs nothing, for nobody leaves for it."""

    def _remember(self, w: Worker, start: str, target: list[Worker]) -> None:
        was, self.kept = self.kept, []
        super()._remember(w, start, target)
        self.kept = was


class NotByHand(policy._Decision):
    """A swap by hand waits like any other burst."""

    def _starts(self, w: Worker) -> str:
        was, self.memory = self.memory, change(self.memory, forced="")
        said = super()._starts(w)
        self.memory = change(self.memory, forced=was.forced)
        return said


def everybody_leaves(view: View, s: GpuSettings, now: float) -> Plan:
    """All who are there make room, and not the cheapest."""

    def keep(workers: Sequence[Worker], room: int, fixed: Sequence[Worker], *_: Any) -> list[Worker]:
        fits = sum(w.want_bytes for w in workers) <= room
        return [w for w in workers if fits or w in fixed]

    with mock.patch.object(policy, "keep", keep):
        return policy.decide(view, s, now)


def never_refuses(view: View, s: GpuSettings, now: float) -> Plan:
    """There is always room, it believes."""
    return policy.decide(change(view, cap_bytes=4 * view.cap_bytes), s, now)


def no_batch_lane(view: View, s: GpuSettings, now: float) -> Plan:
    """Batch work is a burst like any other."""
    lanes = {"batch": "burst"}
    workers = tuple(change(w, lane=lanes.get(w.lane, w.lane)) for w in view.workers)
    return policy.decide(change(view, workers=workers), s, now)


BUGS: dict[str, tuple[str, Decide]] = {
    "refuse": ("burst wait|live wait|cap|free ride", never_refuses),
    "free ride": ("free ride|burst wait", made_by(NobodyRides)),
    "silence": ("silence", without(silence_s=0.0)),
    "patience": ("calm|free ride", without(patience_s=inf)),
    "between captions": ("silence", seen(owes=False)),
    "piece by piece": ("piece by piece", seen(pieces=0)),
    "overdue": ("burst wait|calm", without(overdue_s=inf)),
    "lag soft": ("lag soft", without(lag_soft_s=inf)),
    "rest": ("rest", without(rest_swaps=0.0)),
    "rest counts what it took": ("rest", made_by(AsExpected)),
    "rest counts who was away": ("rest|back first", made_by(OnlyWhoLeaves)),
    "over": ("live wait|burst wait", made_by(NeverOver)),
    "cut": ("live wait with lag", without(lag_hard_s=inf)),
    "burst min": ("burst min", without(burst_min_s=0.0)),
    "burst min of its own": ("burst min", seen(burst_min_s=0.0)),
    "burst min of a rider": ("burst min", made_by(NewRidersLeave)),
    "max cuts": ("max cuts", without(max_cuts=99)),
    "live first": ("first|back first|calm", made_by(NotFirst)),
    "back first": ("back first", made_by(NotBackFirst)),
    "one at a time": ("one at a time", made_by(TwoLoads)),
    "give-back order": ("give-back order", made_by(SmallestFirst)),
    "turns": ("burst wait|overdue", made_by(NoTurns)),
    "cheapest": ("cheapest", everybody_leaves),
    "weight": ("give-back order|cheapest", without(transcriber_weight=1.0, translator_weight=1.0)),
    "keep": ("keep", without(keep_at_least_s=0.0, keep_reloads=0.0)),
    "pin": ("pin", seen(pinned=False)),
    "evict": ("evict|free ride", seen(off_until_s=0.0)),
    "by hand": ("by hand", made_by(NotByHand)),
    "batch last": ("batch last", no_batch_lane),
}
