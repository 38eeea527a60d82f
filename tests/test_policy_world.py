"""Ledger, policy and the worker's end together, in memory and in simulated time: does everybody get a turn?

Stand-ins: workers that load at a rate, offload at once, and want what a seeded driver draws. No loss here (that is
`ledger_world.py`); what is looked for is a policy that starves somebody, swaps for ever, or stops.
"""

from __future__ import annotations

import dataclasses
import random
from math import inf

import pytest

from arbiter import effects as e
from arbiter import show
from arbiter import world as sim
from arbiter.ledger import Ledger, Limits
from arbiter.policy import decide
from arbiter.view import Memory
from common.messages import Incarnation, Want
from common.settings import GpuSettings
from workers.lease import NOTHING, Holder

GIB = 2**30
SET = GpuSettings(max_hold_s=20.0, overdue_s=60.0, patience_s=20.0)
TURN_S = 0.1


@dataclasses.dataclass
class Actor:
    """One worker: how big, how fast it loads, and what it wants at the moment."""

    holder: Holder
    size: int
    lane: str
    load_s: float
    work_s: float = 0.0  # of a burst: seconds of work left
    ready_at: float = inf
    waits_since: float = inf
    longest_wait_s: float = 0.0
    lag_s: float = 0.0
    grants: int = 0

    @property
    def name(self) -> str:
        return self.holder.me.worker

    @property
    def resident(self) -> bool:
        return self.holder.place.residency == "resident"


class World:
    def __init__(self, seed: int, cap_gib: int) -> None:
        self.rng = random.Random(seed)
        self.cap = cap_gib * GIB
        self.now = 1000.0
        self.ledger = Ledger(Limits(margin_bytes=0), e.Roster())
        self.memory, self.notes = Memory(), show.Notes()
        sizes = {
            "transcriber": (6, "live"),
            "translator": (5, "live"),
            "diarizer": (3, "live"),
            "summarizer": (14, "burst"),
        }
        self.actors = [self.actor(n, k, size * GIB, lane) for k, (n, (size, lane)) in enumerate(sizes.items())]
        self.over = 0
        self.carry(self.ledger.start(self.now))

    def actor(self, name: str, pid: int, size: int, lane: str) -> Actor:
        who = Incarnation(worker=name, pid=pid + 1, started_ticks=1, nonce=f"{pid:016x}")
        return Actor(holder=Holder(who), size=size, lane=lane, load_s=size / GIB * 0.1)

    def carry(self, effects: list[e.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, e.Send):
                actor = next(a for a in self.actors if a.holder.me == effect.lease.incarnation)
                actor.holder.accept(effect.lease)
            elif isinstance(effect, e.Measure):
                held = {a.holder.me.pid: a.holder.place.held_bytes for a in self.actors}
                used = sum(held.values())
                assert used <= self.cap, "more is held than there is"
                answer = e.Measured(number=effect.number, total_bytes=self.cap, used_bytes=used, by_pid=held)
                self.carry(self.ledger.measured(answer))
            elif isinstance(effect, e.Changed):
                self.notes.moved_s[effect.incarnation] = self.now

    def turn(self) -> None:
        self.now += TURN_S
        for a in self.actors:
            self.work(a)
            figures = {"lag_s": a.lag_s, "silence_s": self.rng.choice((0.1, 0.1, 0.1, 1.0)), "reload_s": a.load_s}
            self.carry(self.ledger.heard(a.holder.status(self.now, **figures), self.now))
        self.carry(self.ledger.tick(self.now))
        self.decide()

    def decide(self) -> None:
        for _ in range(2):
            plan = decide(show.view(self.ledger, self.notes, self.memory, SET), SET, self.now)
            self.memory = plan.memory
            for who, reason in plan.revoke:
                self.carry(self.ledger.revoke(who, self.now, reason))
            if plan.grant:
                who, size, hold_s = plan.grant
                self.carry(self.ledger.grant(who, size, self.now, hold_s))
            loads = [r for r in self.ledger.rows.values() if r.state is e.GRANTED and not show.ready(r)]
            assert len(loads) <= 1, "two loads on the bus"

    def work(self, a: Actor) -> None:
        h = a.holder
        due = h.due()
        if due and not due.granted:
            h.offloaded(due)
            a.ready_at = inf
        elif due and a.ready_at == inf:
            a.ready_at = self.now + a.load_s
            h.loading(due, due.bytes)
        elif due and self.now >= a.ready_at:
            h.loaded(due, due.bytes, self.now)
            a.ready_at, a.grants = inf, a.grants + 1
        elif a.resident:
            a.work_s -= TURN_S
            if h.held_long_enough(self.now):
                h.gave_up()
                self.over += 1
        if a.lane == "live":
            h.want = Want(bytes=a.size, since_s=h.want.since_s or self.now)
            a.lag_s = max(0.0, a.lag_s - 2 * TURN_S) if a.resident else a.lag_s + TURN_S
        elif a.work_s <= 0:
            h.want = NOTHING
            if self.rng.random() < TURN_S / 60:  # a burst of work about once a minute
                a.work_s = self.rng.uniform(1.0, 30.0)
                h.want = Want(bytes=a.size, lane=a.lane, since_s=self.now)
        waits = h.want.bytes > 0 and not a.resident
        a.waits_since = min(a.waits_since, self.now) if waits else inf
        if waits:
            a.longest_wait_s = max(a.longest_wait_s, self.now - a.waits_since)


@pytest.mark.joined
@pytest.mark.parametrize("seed", range(4))
def test_everybody_gets_a_turn_and_swapping_stays_rare(seed: int) -> None:
    world = World(seed, cap_gib=16)
    began = world.now
    for _ in range(12_000):  # twenty minutes
        world.turn()
    actors = {a.name: a for a in world.actors}
    assert actors["summarizer"].grants >= 5
    swap_s = 2 * sum(a.load_s for a in world.actors) + 2.0
    assert actors["summarizer"].longest_wait_s <= SET.overdue_s + swap_s
    for name in ("transcriber", "translator", "diarizer"):
        assert actors[name].longest_wait_s <= SET.max_hold_s + swap_s, name
    loading_s = sum(a.grants * a.load_s for a in world.actors)
    assert loading_s <= 0.25 * (world.now - began), "the time goes into swapping"
    assert actors["transcriber"].lag_s < SET.max_hold_s + swap_s


@pytest.mark.joined
def test_without_room_for_all_live_ones_each_still_has_its_turn() -> None:
    world = World(7, cap_gib=14)
    world.actors = [a for a in world.actors if a.name != "summarizer"]
    world.actors.append(world.actor("other", 8, 9 * GIB, "live"))
    for _ in range(12_000):
        world.turn()
    for a in world.actors:
        assert a.grants and a.longest_wait_s <= 2 * (SET.overdue_s + SET.max_hold_s), a.name


@pytest.mark.joined
def test_with_room_for_all_nobody_ever_moves() -> None:
    world = World(3, cap_gib=64)
    for _ in range(6000):
        world.turn()
    assert [a.grants for a in world.actors if a.lane == "live"] == [1, 1, 1]
    assert world.memory.swaps == 0 and world.over == 0
    assert world.actors[-1].grants >= 2 and world.actors[-1].longest_wait_s < 3.0


class Guest(sim.Actor):
    """Rides free for a moment, again and again: it comes back before the next one has got on."""

    def __init__(self, name: str, stays_s: float, gone_s: float) -> None:
        super().__init__(name, GIB, "burst", reload_s=0.1, offload_s=0.0, step_s=0.05)
        self.stays_s, self.gone_s = stays_s, gone_s

    def came(self, world: sim.World) -> None:
        world.at(world.now + self.stays_s, lambda: self.wish(world, False))

    def left(self, world: sim.World) -> None:
        world.at(world.now + self.gone_s, lambda: self.wish(world))


@pytest.mark.joined
def test_free_riders_that_come_one_after_the_other_do_not_keep_an_overdue_burst_waiting() -> None:
    """Each new one has its first seconds; where there is always a new one, the burst would never begin."""
    world = sim.World(SET, Limits(margin_bytes=0), 16 * GIB)
    live = sim.Actor("transcriber", 12 * GIB, "live", reload_s=1.0, offload_s=0.1, step_s=0.1)
    burst = sim.Actor("summarizer", 14 * GIB, "burst", reload_s=1.0, offload_s=0.1, step_s=0.1)
    guests = [Guest(f"guest{k}", stays_s=3.0, gone_s=0.2) for k in range(3)]
    for actor in (live, burst, *guests):
        world.join(actor)
    live.wish(world)
    world.run(5.0)
    for k, guest in enumerate(guests):
        world.at(5.0 + k, lambda guest=guest: guest.wish(world))
    live.silence_s = lambda now: 0.0  # type: ignore[method-assign]
    world.at(10.0, lambda: burst.wish(world))
    world.run(10.0 + SET.overdue_s + SET.burst_min_s + 3.0)
    assert burst.resident and world.memory.burst and world.memory.burst.start in ("patience", "overdue")
