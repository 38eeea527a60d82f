"""What people may order: status, evict, pin, unpin, swap. Each Command is carried out once, however often it comes.

In: Commands; out: Done or Refused, one line each. Orders change what the policy sees, never the ledger by themselves.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from arbiter import hands, show
from arbiter.effects import GRANTED, Effect
from arbiter.ledger import Ledger, Row
from arbiter.view import Memory, Plan
from common import messages as m
from common import topology
from common.process import Process

IDS_KEPT = 1000
AGAIN_S = 0.1  # for who asks whether a swap is over


class Desk(Protocol):
    """What an order may read and change."""

    p: Process
    ledger: Ledger
    notes: show.Notes
    memory: Memory
    plan: Plan | None

    def state(self, now: float) -> m.GpuState: ...
    def carry(self, effects: list[Effect], now: float) -> None: ...


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """A swap by hand that is under way: whom it moves, and since when."""

    burst: str  # the worker that comes, "" when all live ones leave and come back
    began_s: float
    leaves: dict[str, int]  # worker -> its epoch when the order came


class Orders:
    """Answers Commands."""

    def __init__(self) -> None:
        self._answers: dict[str, m.Answer] = {}
        self._swap: Swap | None = None

    def answer(self, desk: Desk, c: m.Command, now: float) -> m.Answer:
        if c.verb == "status":  # changes nothing: no need to remember
            return m.Done(detail=msgspec.json.encode(desk.state(now)).decode())
        if c.verb == "swapped":
            return self._swapped(desk, now)
        if c.id not in self._answers:
            self._answers[c.id] = self._carry_out(desk, c, now)
            if len(self._answers) > IDS_KEPT:
                del self._answers[next(iter(self._answers))]
        return self._answers[c.id]

    def _carry_out(self, desk: Desk, c: m.Command, now: float) -> m.Answer:
        if c.verb == "ping":
            return m.Done(detail=desk.p.name)
        if c.verb == "swap":
            return self._begin(desk, now)
        if c.verb not in ("evict", "pin", "unpin"):
            return m.Refused(reason=f"unknown verb {c.verb!r}; known: status, evict, pin, unpin, swap, swapped, ping")
        name = c.args.get("worker", "")
        known = {r.name for r in topology.TABLE if r.gpu != "no"} | {w.worker for w in desk.ledger.rows}
        if name not in known:
            return m.Refused(reason=f"no GPU worker {name!r}; there are: {', '.join(sorted(known))}")
        return self._evict(desk, name, now) if c.verb == "evict" else self._pin(desk, name, c.verb == "pin")

    def _evict(self, desk: Desk, name: str, now: float) -> m.Answer:
        if name in desk.notes.pins:
            return m.Refused(reason=f"{name} is pinned; first: swapscribe gpu unpin {name}")
        if not self._granted(desk.ledger, name):
            return m.Refused(reason=f"{name} is not on the GPU")
        for_s = desk.p.settings.gpu.evicted_for_s
        desk.notes.off_until_s[name] = now + for_s
        return m.Done(detail=f"{name} has to leave the GPU, and may come back in {for_s:.0f} s")

    def _pin(self, desk: Desk, name: str, yes: bool) -> m.Answer:
        pins = desk.notes.pins | {name} if yes else desk.notes.pins - {name}
        try:
            hands.write_pins(desk.p.run, pins)
        except OSError as e:
            return m.Refused(reason=f"it cannot be remembered: {e}", retry_after_s=1.0)
        desk.notes.pins = pins
        if yes:
            return m.Done(detail=f"{name} keeps the GPU once it has it, until: swapscribe gpu unpin {name}")
        return m.Done(detail=f"{name} may be asked to leave again")

    @staticmethod
    def _granted(ledger: Ledger, name: str = "") -> list[Row]:
        return [r for r in ledger.rows.values() if r.state is GRANTED and name in ("", r.incarnation.worker)]

    # A swap by hand

    def _begin(self, desk: Desk, now: float) -> m.Answer:
        rows = [r for r in desk.ledger.rows.values() if r.status and r.status.wants.bytes]
        if desk.memory.burst:
            return m.Refused(reason=f"{desk.memory.burst.who.worker} has the GPU for a burst already")
        waiting = [r for r in rows if r.status and r.status.wants.lane != "live" and r.state is not GRANTED]
        waiting.sort(key=lambda r: (r.status is not None and r.status.wants.lane == "batch", r.incarnation.worker))
        leaves = [r for r in self._granted(desk.ledger) if r.incarnation.worker not in desk.notes.pins]
        epochs = {r.incarnation.worker: r.epoch for r in leaves}
        if waiting:
            name = waiting[0].incarnation.worker
            if why := self._never(desk, waiting[0]):
                return m.Refused(reason=f"{name} cannot be served: {why}")
            desk.memory = msgspec.structs.replace(desk.memory, forced=name)
            self._swap = Swap(burst=name, began_s=now, leaves=epochs)
            return m.Done(detail=f"{name} gets the GPU now")
        if not leaves:
            return m.Refused(reason="nobody waits for the GPU, and nobody who could leave is on it")
        self._swap = Swap(burst="", began_s=now, leaves=epochs)
        for row in leaves:
            desk.carry(desk.ledger.revoke(row.incarnation, now, "swap by hand"), now)
        return m.Done(detail=f"nobody waits: {', '.join(epochs)} leaves the GPU and comes back")

    def _never(self, desk: Desk, row: Row) -> str:
        """Why a want does not fit even when everybody leaves who may be asked to."""
        assert row.status
        wants = row.status.wants
        pinned = [r for r in self._granted(desk.ledger) if r.incarnation.worker in desk.notes.pins]
        room = show.cap(desk.ledger, desk.p.settings.gpu) - sum(r.bytes for r in pinned)
        if (wants.least_bytes or wants.bytes) <= room:
            return ""
        said = desk.plan.waits.get(row.incarnation, "") if desk.plan else ""
        return f"{', '.join(r.incarnation.worker for r in pinned)} is pinned" if pinned else said or "it does not fit"

    def _swapped(self, desk: Desk, now: float) -> m.Answer:
        """Refused, with a time to ask again, while the swap is under way; then what it took."""
        swap = self._swap
        if swap is None:
            return m.Refused(reason="no swap by hand was begun since the arbiter began")
        rows = {r.incarnation.worker: r for r in desk.ledger.rows.values()}
        if swap.burst:
            began = desk.memory.forced != swap.burst
            over = began and (desk.memory.burst is None or desk.memory.burst.who.worker != swap.burst)
        else:
            over = True
        moved = {n: rows[n] for n in swap.leaves if n in rows}
        over = over and all(show.ready(r) and (r.epoch > swap.leaves[n] or swap.burst) for n, r in moved.items())
        if not over:
            return m.Refused(reason="under way", retry_after_s=AGAIN_S)
        self._swap = None
        names = [*([swap.burst] if swap.burst in rows else []), *moved]
        times = [_times(n, rows[n].status) for n in names]
        return m.Done(detail=f"{'; '.join(times)}; all of it {now - swap.began_s:.2f} s")


def _times(name: str, s: m.Status | None) -> str:
    if s is None or not s.reload_s:
        return f"{name}: not measured"
    return f"{name}: offload {s.offload_s * 1e3:.0f} ms, reload {s.reload_s * 1e3:.0f} ms at {s.reload_gb_s:.1f} GB/s"
