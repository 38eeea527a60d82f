"""What a person reads about the GPU: the arbiter's GpuState as lines. Pure.

The same words stand in `swapscribe gpu status`, `swapscribe status` and between the captions.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import messages as m
from common.topology import COVERAGE_PRODUCER

MIB = 2**20
SWAPPING = ("making room", "burst", "giving back")


def mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB".replace(",", " ")


def summary(g: m.GpuState) -> str:
    """One line: how full, what goes on, who waits."""
    waits = [f"{w.worker} waits: {w.reason}" for w in g.workers if w.waits_s and w.reason]
    phase = f"{g.phase} ({g.reason})" if g.reason else g.phase
    parts = [phase, *waits, resume(g), g.trouble]
    card = "simulated card, " if g.simulated else ""
    return f"{card}{mib(g.counted_bytes)} of {mib(g.cap_bytes)} leased; " + "; ".join(p for p in parts if p)


def resume(g: m.GpuState) -> str:
    return f"captions resume in about {g.captions_resume_in_s:.0f} s" if g.captions_resume_in_s >= 0 else ""


def speeds(w: m.GpuWorker) -> str:
    """Measured seconds and rates, empty before the first reload."""
    parts = [f"reload {w.reload_s:.2f} s" + (f" at {w.reload_gb_s:.1f} GB/s" if w.reload_gb_s else "")]
    parts += [f"offload {w.offload_s * 1e3:.0f} ms"] if w.offload_s else []
    return ", ".join(parts) if w.reload_s else ""


def lines(g: m.GpuState) -> Iterator[str]:
    """Everything there is to know: the device, the phase, a row per worker."""
    used = f"total {mib(g.total_bytes)}, used {mib(g.used_bytes)}, of other programs {mib(g.foreign_bytes)}"
    yield f"{g.device or 'the device'}: {used if g.total_bytes else 'not measured yet'}"
    yield f"leases: {mib(g.counted_bytes)} of {mib(g.cap_bytes)}; swaps so far: {g.swaps}"
    yield "phase: " + "; ".join(p for p in (g.phase, g.reason, resume(g)) if p)
    if g.trouble:
        yield f"trouble: {g.trouble}"
    for w in g.workers:
        held = (
            f"{mib(w.bytes)} leased" if w.bytes else f"wants {mib(w.wants_bytes)}" if w.wants_bytes else "wants nothing"
        )
        pinned = " pinned" if w.pinned else ""
        yield f"{w.worker:<14} {w.state:<10} {w.residency:<10} {held:<20} {w.lane}{pinned}  {speeds(w)}".rstrip()
        if w.waits_s:
            yield f"    waits for {w.waits_s:.0f} s" + (f": {w.reason}" if w.reason else "")
        elif w.reason:
            yield f"    {w.reason}"
    if not g.workers:
        yield "no GPU worker has spoken yet"


class Pauses:
    """One line when captions pause for a burst, one when they go on."""

    def __init__(self) -> None:
        self._since: float | None = None

    def lines(self, g: m.GpuState, now: float) -> Iterator[str]:
        waits = g.captions_resume_in_s >= 0 and g.phase in SWAPPING
        if waits and self._since is None:
            has = [w.worker for w in g.workers if w.worker != COVERAGE_PRODUCER and (w.bytes or w.wants_bytes)]
            has.sort(key=lambda name: name not in g.reason)
            who = f"{has[0]} has the GPU" if has else g.reason
            self._since = now
            yield f"[captions pause: {who}, back in about {max(1, round(g.captions_resume_in_s))} s]"
        elif self._since is not None and g.captions_resume_in_s < 0:
            yield f"[captions resume after {now - self._since:.1f} s]"
            self._since = None
