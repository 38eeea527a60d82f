"""The real ledger and the real policy on simulated time, with workers that are models of workers (stand-ins).

In: a card, settings, actors. Out: what happened, told to watchers. Event-driven: time jumps from one event to the
next, so that a day takes seconds. Nothing is lost on the way here (for that: `tests/ledger_world.py`); an actor may
be deaf, slow or die. `arbiter/simulate.py` plays days in it, `tests/policy_schedules.py` a hundred thousand schedules.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Protocol

from arbiter import effects as e
from arbiter import show
from arbiter.ledger import Ledger, Limits
from arbiter.policy import decide
from arbiter.view import Memory, Plan
from common.messages import Incarnation, Lease, Status, Want
from common.settings import GpuSettings

NOTHING = Want(bytes=0)


class Actor:
    """The worker's end of the lease (DESIGN §4), as plain as it can be, with times in place of work.

    What it wants, and what it does while it is resident, is the business of those that inherit it.
    """

    def __init__(self, name: str, size: int, lane: str, *, reload_s: float, offload_s: float, step_s: float) -> None:
        self.name, self.size, self.lane = name, size, lane
        self.reload_s, self.offload_s, self.step_s = reload_s, offload_s, step_s
        self.residue_bytes = 0
        self.burst_min_s = 0.0
        self.pieces = 0  # of its work that are done, in all its lives
        self.alive = False
        self.deaf = False  # it never carries out a revocation: the deadline kills it
        self.born(0)

    def born(self, pid: int) -> None:
        """The first life, or the next one: it knows nothing of the last."""
        self.me = Incarnation(worker=self.name, pid=pid, started_ticks=1, nonce=f"{pid:016x}")
        self.acted, self.residency, self.held = 0, "offloaded", 0
        self.pending: Lease | None = None
        self.lease: Lease | None = None
        self.want = NOTHING
        self.busy_until = 0.0  # of the step under way
        self.loads = 0  # number of the newest reload: an older one that ends later was turned back
        self.loaded_in_s = 0.0

    # What those that inherit say

    def lag_s(self, now: float) -> float:
        return 0.0

    def silence_s(self, now: float) -> float:
        return 3600.0

    def owes(self, now: float) -> bool:
        return False

    def came(self, world: World) -> None:
        """It is resident."""

    def left(self, world: World) -> None:
        """It is not any more."""

    # The lease

    @property
    def resident(self) -> bool:
        return self.residency == "resident"

    def wish(self, world: World, yes: bool = True) -> None:
        """Want the GPU from now on, or no longer."""
        if yes != (self.want.bytes > 0):
            self.want = Want(bytes=self.size, lane=self.lane, since_s=world.now) if yes else NOTHING
            world.heard(self)

    def status(self, now: float) -> Status:
        due = self.pending if self.pending and self.pending.granted else None
        gave_up = self.lease is not None and self.residency == "offloaded"
        return Status(
            incarnation=self.me,
            acted=self.acted,
            pending=max(self.acted, self.pending.epoch if self.pending else 0),
            residency=self.residency,
            held_bytes=self.held,
            lease_bytes=max(self.lease.bytes if self.lease else 0, due.bytes if due else 0),
            residue_bytes=self.residue_bytes,
            peak_bytes=self.residue_bytes,
            wants=NOTHING if gave_up else self.want,
            lag_s=self.lag_s(now),
            silence_s=self.silence_s(now),
            owes=self.owes(now),
            step_p99_s=self.step_s,
            offload_p99_s=self.offload_s,
            reload_s=self.loaded_in_s,
            offload_s=self.offload_s,
            burst_min_s=self.burst_min_s,
            positions={"work": self.pieces},
            pieces=self.pieces,
        )

    def accept(self, world: World, lease: Lease) -> None:
        newest = max(self.acted, self.pending.epoch if self.pending else 0)
        if lease.incarnation != self.me or lease.epoch <= newest or not self.alive:
            return
        self.pending = lease
        if lease.granted:
            world.at(world.now, lambda: self._load(world, lease))
        elif not self.deaf:
            edge = world.now if self.residency == "loading" else max(world.now, self.busy_until)
            world.at(edge + (self.offload_s if self.held else 0.0), lambda: self._leave(world, lease))

    def _load(self, world: World, lease: Lease) -> None:
        if self.pending is not lease or not self.alive:
            return
        self.lease, self.residency, self.held = lease, "loading", lease.bytes
        self.loads += 1
        took, which, me = world.reload_s(self), self.loads, self.me
        world.at(world.now + took, lambda: self._loaded(world, lease, which, me, took))
        world.heard(self)

    def _loaded(self, world: World, lease: Lease, which: int, me: Incarnation, took: float) -> None:
        if self.me == me and self.loads == which and self.residency == "loading" and self.pending is lease:
            self.acted, self.residency, self.pending, self.loaded_in_s = lease.epoch, "resident", None, took
            world.heard(self)
            if lease.max_hold_s:
                world.at(world.now + lease.max_hold_s, lambda: self._enough(world, lease))
            self.came(world)

    def _leave(self, world: World, lease: Lease) -> None:
        if self.pending is lease and self.alive:
            self.acted, self.pending, self.lease = lease.epoch, None, None
            self._away(world)

    def _enough(self, world: World, lease: Lease) -> None:
        """The longest hold is over and nobody said so: no arbiter, or a late one."""
        if self.lease is lease and self.resident and self.alive and world.now >= self.busy_until:
            self.acted = lease.epoch
            self._away(world)
        elif self.lease is lease and self.resident and self.alive:
            world.at(self.busy_until, lambda: self._enough(world, lease))

    def _away(self, world: World) -> None:
        was, self.residency, self.held = self.resident, "offloaded", 0
        self.loads += 1
        if was:
            self.left(world)
        world.heard(self)


class Watcher(Protocol):
    """Somebody who looks at the world after each event, and at each plan."""

    def saw(self, world: World) -> None: ...
    def planned(self, world: World, plan: Plan) -> None: ...
    def changed(self, world: World, change: e.Changed) -> None: ...


class World:
    """A card, the arbiter's two halves, and time."""

    def __init__(self, settings: GpuSettings, limits: Limits, total_bytes: int, status_every_s: float = 1.0) -> None:
        self.set, self.total_bytes, self.status_every_s = settings, total_bytes, status_every_s
        self.now = 0.0
        self.decide = decide
        self.ledger = Ledger(limits, e.Roster())
        self.memory, self.notes = Memory(), show.Notes()
        self.plan: Plan | None = None
        self.actors: dict[int, Actor] = {}  # by pid: those that live
        self.dead: dict[int, int] = {}  # pid -> bytes that the driver has not given back yet
        self.foreign_bytes = 0
        self.reclaim_s = 0.0
        self.watchers: list[Watcher] = []
        self.most_bytes = 0  # on the card at any time
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = self._pids = 0
        self._wake_at = inf
        self.news = True  # there is something to decide on
        self.carry(self.ledger.start(self.now))

    def reload_s(self, actor: Actor) -> float:
        """How long this reload takes; to be replaced by who wants it to vary."""
        return actor.reload_s

    # Time

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._events, (when_s, self._n, what))

    def run(self, until_s: float) -> None:
        while True:
            due_s = min(self._events[0][0] if self._events else inf, self._wake_at)
            if due_s > until_s:
                break
            self.now = max(self.now, due_s)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if self.news or self.now >= self._wake_at:
                self.news = False
                self._turn()
                for w in self.watchers:
                    w.saw(self)
        self.now = until_s

    def _turn(self) -> None:
        if self.now >= self.ledger.wake_at():
            self.carry(self.ledger.tick(self.now))
        self._decide()
        self._wake_at = max(self.now + 1e-6, min(self.ledger.wake_at(), self.plan.wake_at_s if self.plan else inf))

    def _decide(self) -> None:
        """As the arbiter's loop does."""
        for _ in range(2):
            plan = self.decide(show.view(self.ledger, self.notes, self.memory, self.set), self.set, self.now)
            self.plan, self.memory = plan, plan.memory
            for w in self.watchers:
                w.planned(self, plan)
            n = self.ledger.n
            for who, reason in plan.revoke:
                self.carry(self.ledger.revoke(who, self.now, reason))
            if plan.grant:
                who, size, hold_s = plan.grant
                self.carry(self.ledger.grant(who, size, self.now, hold_s))
            if self.ledger.n == n:
                return

    # Workers

    def join(self, actor: Actor) -> None:
        """A process begins: its first, or the next one of its name."""
        self._pids += 1
        actor.born(self._pids)
        actor.alive = True
        self.actors[self._pids] = actor
        self.heard(actor)
        self._say(actor, actor.me)

    def _say(self, actor: Actor, me: Incarnation) -> None:
        """A Status on every change, and every so often."""
        if actor.alive and actor.me == me:
            self.heard(actor)
            self.at(self.now + self.status_every_s, lambda: self._say(actor, me))

    def heard(self, actor: Actor) -> None:
        if not actor.alive:
            return
        self.news = True
        s = actor.status(self.now)
        if s.wants.bytes:
            self.notes.wanted_s.setdefault(s.incarnation, self.now)
        else:
            self.notes.wanted_s.pop(s.incarnation, None)
        self.carry(self.ledger.heard(s, self.now))

    def die(self, actor: Actor) -> None:
        if not actor.alive:
            return
        actor.alive = False
        self.news = True
        was, actor.residency = actor.resident, "absent"
        del self.actors[actor.me.pid]
        self.dead[actor.me.pid] = actor.held + (actor.residue_bytes if actor.loads else 0)
        self.at(self.now + self.reclaim_s, partial(self._reclaimed, actor.me.pid))
        if was:
            actor.left(self)
        self.carry(self.ledger.died(actor.me, self.now))

    def _reclaimed(self, pid: int) -> None:
        self.dead.pop(pid, None)

    def pin(self, name: str, yes: bool) -> None:
        self.notes.pins = self.notes.pins | {name} if yes else self.notes.pins - {name}
        self.news = True

    # Effects

    def carry(self, effects: list[e.Effect]) -> None:
        for effect in effects:
            match effect:
                case e.Send(lease):
                    if actor := self.actors.get(lease.incarnation.pid):
                        actor.accept(self, lease)
                case e.Measure(number):
                    self.carry(self.ledger.measured(self._measured(number)))
                case e.Kill(who):
                    if actor := self.actors.get(who.pid):
                        self.at(self.now, lambda actor=actor: self.die(actor))  # type: ignore[misc]
                case e.Changed():
                    self._changed(effect)

    def _measured(self, number: int) -> e.Measured:
        held = {pid: a.held + (a.residue_bytes if a.loads else 0) for pid, a in self.actors.items()}
        used = sum(held.values()) + sum(self.dead.values()) + self.foreign_bytes
        self.most_bytes = max(self.most_bytes, used)
        return e.Measured(number=number, total_bytes=self.total_bytes, used_bytes=used, by_pid=held | self.dead)

    def _changed(self, change: e.Changed) -> None:
        who = change.incarnation
        self.notes.moved_s[who], self.notes.reasons[who] = self.now, change.reason
        if who not in self.ledger.rows:
            kept: tuple[dict[Incarnation, Any], ...] = (self.notes.moved_s, self.notes.wanted_s, self.notes.reasons)
            for one in kept:
                one.pop(who, None)
        for w in self.watchers:
            w.changed(self, change)
