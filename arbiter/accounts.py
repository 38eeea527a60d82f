"""Whose the used bytes of a measurement are, as far as figures of processes or words of workers tell. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiter.effects import Measured

if TYPE_CHECKING:
    from arbiter.ledger import Row


def explained(m: Measured, living: list[Row]) -> int:
    """Used bytes that belong to living rows, none beyond what they are accounted for."""
    if m.by_pid is None:  # their own word is taken, if they had given it before the question
        held = sum(min(r.status.held_bytes, r.bytes) for r in living if r.status and r.settled < m.number)
        return held + sum(r.residue_bytes for r in living if r.peaked < m.number)
    accounted: dict[int, int] = {}
    for r in living:
        accounted[r.incarnation.pid] = accounted.get(r.incarnation.pid, 0) + r.counted + r.residue_bytes
    return sum(min(size, m.by_pid.get(pid, 0)) for pid, size in accounted.items())


def moving(m: Measured, living: list[Row]) -> int:
    """Used bytes that may belong to living rows which load or leave, though neither a figure nor their word says so."""
    rows = [r for r in living if r.counted and r.settled >= m.number and r.incarnation.pid not in (m.by_pid or ())]
    return sum(r.counted + (r.residue_bytes if r.peaked >= m.number else 0) for r in rows)
