"""What goes into the ledger and what comes out of it: states, the roster on disk, measurements, effects.

The loop carries effects out in their order and stops at the first that fails: a Lease never leaves before its roster.
"""

from __future__ import annotations

import enum

import msgspec

from common.messages import Incarnation, Lease


class State(enum.StrEnum):
    """Where an incarnation stands; its bytes count in every state but FREE."""

    FREE = "free"
    GRANTED = "granted"
    REVOKED = "revoked"  # asked to give back, until the deadline
    KILLED = "killed"  # the deadline passed
    RECLAIMING = "reclaiming"  # dead; the device has not shown its bytes free yet
    LOST = "lost"  # killed, and does not die


FREE, GRANTED, REVOKED, KILLED, RECLAIMING, LOST = State


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One row in the roster: all that must outlive the arbiter."""

    incarnation: Incarnation
    state: State
    epoch: int
    bytes: int
    residue_bytes: int
    offload_within_s: float


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk before any Lease leaves. FREE rows are not in it: they hold nothing and say hello again."""

    n: int = 0
    rows: tuple[Entry, ...] = ()


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The device as it was at one moment after `Measure(number)` was asked."""

    number: int
    total_bytes: int
    used_bytes: int
    by_pid: dict[int, int] | None  # None: the driver does not tell figures of processes (WSL, containers)


class SaveRoster(msgspec.Struct, frozen=True):
    roster: Roster  # write + rename; only then what follows it


class Send(msgspec.Struct, frozen=True):
    lease: Lease


class Watch(msgspec.Struct, frozen=True):
    incarnation: Incarnation  # open a pidfd, verify the start time; dead or another one's pid: `died`


class Kill(msgspec.Struct, frozen=True):
    incarnation: Incarnation  # SIGKILL through a pidfd whose start time was verified, else `died`


class Measure(msgspec.Struct, frozen=True):
    number: int


class Changed(msgspec.Struct, frozen=True):
    """For the log and for live.gpu."""

    incarnation: Incarnation
    state: State
    epoch: int
    bytes: int
    reason: str


Effect = SaveRoster | Send | Watch | Kill | Measure | Changed
