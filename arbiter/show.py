"""The arbiter's books in other shapes: as the policy's view, and as the GpuState that people see. Pure.

In: the ledger, what the loop notes beside it (`Notes`), the newest plan. Nothing is kept here.
"""

from __future__ import annotations

import dataclasses
from math import inf

from arbiter.effects import GRANTED
from arbiter.ledger import Ledger, Row
from arbiter.view import Memory, Plan, View, Worker, gib
from common import messages as m
from common.messages import Incarnation
from common.settings import GpuSettings
from common.topology import COVERAGE_PRODUCER


@dataclasses.dataclass
class Notes:
    """What the ledger has no use for: since when, by whose order, as measured."""

    device: str = ""
    simulated: bool = False
    used_bytes: int = 0
    trouble: str = ""
    unnamed: bool = False  # the driver's list of processes lacked one that surely held memory
    pins: set[str] = dataclasses.field(default_factory=set)
    off_until_s: dict[str, float] = dataclasses.field(default_factory=dict)  # worker -> when it may come back
    moved_s: dict[Incarnation, float] = dataclasses.field(default_factory=dict)  # when its state changed
    wanted_s: dict[Incarnation, float] = dataclasses.field(default_factory=dict)  # when it was first heard to want
    reasons: dict[Incarnation, str] = dataclasses.field(default_factory=dict)  # of the ledger, for its state


def ready(row: Row) -> bool:
    """It may use the GPU, and can."""
    s = row.status
    return row.state is GRANTED and s is not None and s.acted >= row.epoch and s.residency == "resident"


def cap(ledger: Ledger, settings: GpuSettings) -> int:
    return min(ledger.cap(), settings.cap_mib * 2**20 or ledger.cap())


def cap_sum(ledger: Ledger, settings: GpuSettings) -> str:
    """How the cap comes about: ` (15.9 GiB total - 256 MiB margin - 2.5 GiB foreign)`."""
    residue = sum(r.residue_bytes for r in ledger.rows.values())
    parts = [(ledger.limits.margin_bytes, "margin"), (ledger.foreign_bytes, "foreign"), (residue, "CUDA contexts")]
    text = "".join(f" - {gib(size)} {what}" for size, what in parts if size)
    limit = f", at most {gib(settings.cap_mib * 2**20)} by gpu.cap_mib" if settings.cap_mib else ""
    return f" ({gib(ledger.total_bytes or 0)} total{text}{limit})"


def view(ledger: Ledger, notes: Notes, memory: Memory, settings: GpuSettings) -> View:
    return View(
        workers=tuple(_worker(r, notes) for r in ledger.rows.values()),
        cap_bytes=cap(ledger, settings),
        sum_text=cap_sum(ledger, settings),
        memory=memory,
    )


def _since_s(row: Row, notes: Notes) -> float:
    """When it began to want: by its own word, if it makes sense."""
    first = notes.wanted_s.get(row.incarnation, 0.0)
    said = row.status.wants.since_s if row.status else 0.0
    return min(said, first) if said > 0 else first


def _worker(row: Row, notes: Notes) -> Worker:
    who, s = row.incarnation, row.status
    granted_at_s, pinned = notes.moved_s.get(who, 0.0), who.worker in notes.pins
    off_until_s = notes.off_until_s.get(who.worker, 0.0)
    if s is None:
        return Worker(
            who=who,
            state=row.state,
            bytes=row.counted,
            granted_at_s=granted_at_s,
            pinned=pinned,
            off_until_s=off_until_s,
        )
    return Worker(
        who=who,
        state=row.state,
        bytes=row.counted,
        want_bytes=s.wants.bytes,
        least_bytes=s.wants.least_bytes,
        measured=s.wants.measured,
        cramped=bool(s.complaint),
        lane=s.wants.lane,
        since_s=_since_s(row, notes),
        ready=ready(row),
        granted_at_s=granted_at_s,
        lag_s=s.lag_s,
        silence_s=s.silence_s if who.worker == COVERAGE_PRODUCER else inf,  # the others do not listen
        reload_s=s.reload_s,
        offload_s=s.offload_s,
        burst_min_s=s.burst_min_s,
        owes=s.owes,
        pieces=s.pieces,
        pinned=pinned,
        off_until_s=off_until_s,
    )


def resume_in_s(seen: View, settings: GpuSettings, now: float) -> float:
    """When captions go on, as far as it can be told; -1 when they do not wait for the GPU."""
    workers = {w.who: w for w in seen.workers}
    waits = [w for w in seen.workers if w.name == COVERAGE_PRODUCER and w.want_bytes and not w.ready]
    if not waits or any(w.name == COVERAGE_PRODUCER and w.ready for w in seen.workers):
        return -1.0
    one, burst = waits[-1], seen.memory.burst
    if one.state is GRANTED:
        return max(0.0, one.load_s - (now - one.granted_at_s))
    left_s = max(0.0, one.off_until_s - now)
    if burst and burst.who != one.who and burst.who in workers:
        ran, came_s = max(0.0, now - burst.held_s), burst.ready_s - burst.held_s
        longest = settings.max_hold_s + (came_s if burst.ready_s < inf else workers[burst.who].load_s)
        lasts = seen.memory.lasted_s.get(burst.who.worker, longest)
        lasts = min(lasts if lasts > ran else longest, longest)
        left_s = max(left_s, lasts - ran, 0.0) + workers[burst.who].offload_s
    return left_s + one.load_s


def state(ledger: Ledger, notes: Notes, seen: View, plan: Plan | None, settings: GpuSettings, now: float) -> m.GpuState:
    return m.GpuState(
        device=notes.device,
        simulated=notes.simulated,
        total_bytes=ledger.total_bytes or 0,
        used_bytes=notes.used_bytes,
        foreign_bytes=ledger.foreign_bytes,
        cap_bytes=max(0, seen.cap_bytes) if ledger.total_bytes else 0,
        counted_bytes=ledger.counted(),
        phase=plan.phase if plan else "idle",
        reason=plan.reason if plan else "the device has not been measured yet",
        captions_resume_in_s=round(resume_in_s(seen, settings, now), 1),
        swaps=seen.memory.swaps,
        workers=tuple(_shown(r, notes, plan, now) for r in ledger.rows.values()),
        trouble=notes.trouble,
    )


def _shown(row: Row, notes: Notes, plan: Plan | None, now: float) -> m.GpuWorker:
    who, s = row.incarnation, row.status
    wants = s.wants.bytes if s else 0
    waits = bool(wants) and not ready(row)
    own = "" if row.state in (GRANTED, "free") else notes.reasons.get(who, "")
    why = own or (plan.waits.get(who, "") if plan else "")
    complaint = s.complaint if s else "not heard since the arbiter began"
    note = s.note if s else ""
    return m.GpuWorker(
        worker=who.worker,
        pid=who.pid,
        state=str(row.state),
        residency=s.residency if s else "absent",
        lane=s.wants.lane if s else "live",
        bytes=row.counted,
        held_bytes=s.held_bytes if s else 0,
        wants_bytes=wants,
        waits_s=round(max(0.0, now - _since_s(row, notes)), 1) if waits else 0.0,
        reason="; ".join(t for t in (why, complaint, note) if t),
        lag_s=s.lag_s if s else 0.0,
        reload_s=s.reload_s if s else 0.0,
        reload_gb_s=s.reload_gb_s if s else 0.0,
        offload_s=s.offload_s if s else 0.0,
        pinned=who.worker in notes.pins,
    )
