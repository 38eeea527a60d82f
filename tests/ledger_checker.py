"""The checker of I1-I8 (DESIGN §4): it watches a world in memory, knows what is really true there, and asks no ledger.

(With two exceptions: what rows a ledger has, to compare them with the truth; and which answers of the device it is
right to ignore as too old, since then nobody can hold against it what they said.)
"""

from __future__ import annotations

import dataclasses

from arbiter import effects as e
from arbiter.ledger import Ledger, Limits
from common.messages import Incarnation, Lease
from workers.lease import Holder

TOTAL, MARGIN = 100, 2
SIZES = (0, 10, 20, 35, 60, 90)
LIMITS = Limits(margin_bytes=MARGIN)
PIDS = (1, 2, 3, 4)


class Violation(AssertionError):
    """The checker saw an invariant broken."""


@dataclasses.dataclass(eq=False)
class Process:
    """A worker, or a bystander (`holder` None) that happens to get a pid used before."""

    pid: int
    started: int
    holder: Holder | None
    residue: int = 0
    context: bool = False  # its residue is on the device
    held: int = 0  # device bytes under the lease; of the dead: not reclaimed yet
    load: Lease | None = None  # half of it is on the device
    alive: bool = True
    stopped: bool = False
    undying: bool = False  # in an uninterruptible call of the driver: SIGKILL waits
    killed: bool = False
    waiting: bool = False
    step_p99_s: float = 0.0
    stepped_at_s: float = 0.0

    @property
    def who(self) -> Incarnation:
        assert self.holder
        return self.holder.me

    @property
    def acted(self) -> int:
        assert self.holder
        return self.holder.place.acted

    @property
    def on_device(self) -> int:
        return self.held + (self.residue if self.context else 0)


@dataclasses.dataclass
class Answer:
    measured: e.Measured
    external: int  # of the bytes used: those of programs that are none of ours


class Checker:
    """What the world holds, and what must be true of it."""

    def __init__(self, figures: bool) -> None:
        self.figures = figures  # the driver tells figures of processes
        self.now = 1000.0
        self.slots: dict[int, Process] = {}
        self.processes: list[Process] = []  # workers: alive, or dead with bytes on the device
        self.external = 0  # bytes of programs that are none of ours
        self.down: list[Lease] = []
        self.disk = e.Roster()
        self.ledger: Ledger | None = None
        # What it remembers
        self.life = 0
        self.decided: dict[int, tuple[Incarnation, bool, int]] = {}
        self.forgotten: dict[int, tuple[Incarnation, bool, int]] = {}  # decided under a roster that is gone
        self.revoked: dict[Incarnation, float] = {}  # from when on a kill is lawful
        self.seen_external: int | None = None
        self.granted_at: dict[int, int] = {}  # epoch -> external bytes known when it was granted
        self.awaited: set[Incarnation] = set()  # in the roster at the start, nothing heard since
        self.known: set[Incarnation] = set()  # heard in this life
        self.roster_lost = False
        self.since: dict[tuple[Incarnation, int], float] = {}

    def at(self, who: Incarnation) -> Process | None:
        """The process that a pidfd verified by start time refers to."""
        found = self.slots.get(who.pid)
        return found if found and found.started == who.started_ticks else None

    def exposure(self, p: Process) -> int:
        """The most that a living worker may hold by what it has, or may still receive."""
        assert p.holder
        place, due = p.holder.place, p.holder.due()
        known = max(place.acted, due.epoch if due else 0)
        may = [x.bytes for x in self.down if x.granted and x.incarnation == p.who and x.epoch > known]
        if due and due.granted:
            may.append(due.bytes)
        if place.residency in ("loading", "resident"):
            may.append(place.lease_bytes)
        return max([p.held, *may])

    def check_lease(self, lease: Lease) -> None:
        stored = [r for r in self.disk.rows if r.incarnation == lease.incarnation]
        wanted = (lease.epoch, e.GRANTED if lease.granted else e.REVOKED, lease.bytes)
        if [(r.epoch, r.state, r.bytes) for r in stored] != [wanted] or self.disk.n < lease.epoch:
            raise Violation(f"I3: {lease} leaves and the roster on disk does not say so")
        self.check_decision(lease.incarnation, lease.epoch, lease.granted, lease.bytes)
        if not lease.granted:
            until = self.now + lease.offload_within_s
            self.revoked[lease.incarnation] = min(until, self.revoked.get(lease.incarnation, until))

    def check_decision(self, who: Incarnation, epoch: int, granted: bool, size: int) -> None:
        """When it is first seen: on disk, for an arbiter may die before it sends, and its successor does."""
        if granted and self.forgotten.get(epoch, (None,))[0] == who:
            return  # adopted, under the epoch that it has
        decision = (who, granted, size)
        if epoch not in self.decided:
            if epoch <= max(self.decided, default=0):
                raise Violation(f"I3: epoch {epoch} comes after {max(self.decided)}")
            if granted:
                self.check_grant(who, epoch, size)
        elif self.decided[epoch] != decision:
            raise Violation(f"I3: epoch {epoch} was {self.decided[epoch]} and is {decision}")
        self.decided[epoch] = decision

    def check_grant(self, who: Incarnation, epoch: int, size: int) -> None:
        assert self.ledger
        lost = {r.incarnation for r in self.ledger.rows.values() if r.state is e.LOST}
        if self.awaited - lost:
            raise Violation(f"granted before {self.awaited} were heard")
        if self.seen_external is None:
            raise Violation("I1: granted before the device was measured")
        self.granted_at[epoch] = self.seen_external
        if self.roster_lost:  # nobody could know better: only what is measured is told
            return
        if not self.figures:
            return  # words of workers may be a second old: 2 of 15,000 such histories exceed the cap by that
        need = size + self.seen_external + MARGIN
        for p in self.processes:
            if not p.alive:
                need += p.on_device
            elif p.who == who:
                need += p.residue
            else:
                exposed = self.exposure(p)
                need += exposed + (p.residue if p.context or exposed else 0)
        if need > TOTAL:
            raise Violation(f"I1: {size} for {who} makes {need} of {TOTAL}")

    def check_rows(self, before: dict[Incarnation, tuple[e.State, int]]) -> None:
        """I4: how rows ended."""
        assert self.ledger
        buried = 0  # bytes on the device of those whose row is removed now
        for who, (state, epoch) in before.items():
            row = self.ledger.rows.get(who)
            p = next((p for p in self.processes if p.who == who), None)
            dead = p is None or not p.alive
            after = row.state if row else None
            if after is e.FREE and state is not e.FREE:
                proven = p is None or (p.acted >= epoch and not p.held and (dead or not self.exposure(p)))
                if state is not e.REVOKED or not proven:
                    raise Violation(f"I4: {who} is free after {state} without proof")
            elif after is e.RECLAIMING and not dead:
                raise Violation(f"I4: {who} is taken for dead")
            elif after is None and state is not e.RECLAIMING:
                raise Violation(f"I4: {who} vanished from {state}")
            elif after is None and p:
                buried += p.on_device
            elif state in (e.KILLED, e.LOST) and after not in (e.KILLED, e.LOST, e.RECLAIMING):
                raise Violation(f"I4: {who} came back from {state} to {after}")
        dying = [r for r in self.ledger.rows.values() if r.state is e.RECLAIMING]
        unseen = sum(p.on_device for p in self.processes if any(p.who == r.incarnation for r in dying))
        accounted = self.ledger.foreign_bytes + sum(r.bytes for r in dying)
        if (
            self.figures and buried and buried + unseen > accounted
        ):  # of several dead, the device does not tell whose bytes are left
            raise Violation(f"I4: the dead hold {buried + unseen} bytes, {accounted} are accounted for")

    def check_bytes(self) -> None:
        """I2, and the device as a whole; after every action."""
        if self.ledger is None:
            return
        for p in self.processes:
            row = self.ledger.rows.get(p.who)
            if p.alive and p.held > (row.counted if row else 0) and (not self.roster_lost or p.who in self.known):
                raise Violation(f"I2: {p.who} holds {p.held}, its row is {row}")

    def allocate(self, p: Process, held: int) -> bool:
        """False: out of memory. A violation, unless foreign programs took what was granted."""
        used = self.external + sum(q.on_device for q in self.processes if q is not p)
        if used + held + p.residue <= TOTAL:
            p.held, p.context = held, True
            return True
        p.held = 0
        leases = [q.holder.place.lease for q in self.processes if q.alive and q.holder] + [p.load]
        known = [self.granted_at[x.epoch] for x in leases if x and x.epoch in self.granted_at]
        if self.figures and not self.roster_lost and self.external <= min(known, default=0):
            raise Violation(f"the device is full: {p.who} wants {held} beside {used}, {self.external} foreign")
        return False
