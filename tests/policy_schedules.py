"""Random schedules for the policy: models, sizes, speeds, wants, lags, silences, deaths, pins, orders by hand.

Everything is drawn from one seed. The workers are stand-ins: they take time and want things, and compute nothing.
`tests/policy_checker.py` says what must hold; `arbiter/world.py` is the world they live in.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgspec

from arbiter import effects as e
from arbiter import policy
from arbiter.ledger import Limits
from arbiter.world import Actor, World
from common.settings import GpuSettings

GIB = 2**30
SOON = 1e-3


@dataclasses.dataclass
class Speech:
    """Who speaks when: spurts and pauses of exponential length; what the transcriber hears."""

    rng: random.Random
    spurt_s: float
    pause_s: float
    decode_s: float  # from the end of a spurt to its caption
    silent_since: float | None = 0.0

    def silence_s(self, now: float) -> float:
        return 0.0 if self.silent_since is None else now - self.silent_since


class Live(Actor):
    """Falls behind while it is away, catches up while it is there."""

    speech: Speech | None = None
    late_s: float = 0.0
    at_s: float = 0.0
    catch_up: float = 1.0  # seconds of lag a second there
    checks: int = 0

    def lag_s(self, now: float) -> float:
        since = now - self.at_s
        return max(0.0, self.late_s + (-self.catch_up * since if self.resident else since))

    def silence_s(self, now: float) -> float:
        return self.speech.silence_s(now) if self.speech else super().silence_s(now)

    def owes(self, now: float) -> bool:
        speech = self.speech
        return speech is not None and speech.silent_since is not None and now < speech.silent_since + speech.decode_s

    def shift(self, world: World, more_s: float = 0.0) -> None:
        """From here on it goes the other way; it says so when a threshold is crossed."""
        self.late_s, self.at_s = self.lag_s(world.now) + more_s, world.now
        self.checks += 1
        for limit in (world.set.lag_soft_s, world.set.lag_hard_s):
            away = (limit - self.late_s) if not self.resident else (self.late_s - limit) / self.catch_up
            if away >= 0:
                world.at(world.now + away + SOON, lambda n=self.checks: self._cross(world, n))  # type: ignore[misc]

    def _cross(self, world: World, n: int) -> None:
        if n == self.checks:
            world.heard(self)

    def came(self, world: World) -> None:
        # Until this moment it was away: the sign of the way changes with `resident`.
        self.late_s, self.at_s = max(0.0, self.late_s + world.now - self.at_s), world.now
        self.busy_until = world.now + self.step_s
        self.shift(world)

    def left(self, world: World) -> None:
        self.late_s, self.at_s = max(0.0, self.late_s - self.catch_up * (world.now - self.at_s)), world.now
        self.shift(world)

    def accept(self, world: World, lease: Any) -> None:
        if self.resident and self.late_s:  # somewhere in a step
            self.busy_until = world.now + self.step_s * (world.now * 7919 % 1.0)
        super().accept(world, lease)


class Job(Actor):
    """Wants the GPU for so many seconds of work, then nothing for a while."""

    left_s: float = 0.0
    gap_s: float = 30.0
    work_s: float = 5.0
    piece_s: float = 0.0  # of its work, of which each is worth something by itself; 0: only the whole is
    rng: random.Random
    began_s: float = 0.0
    turn: int = 0

    def begin(self, world: World) -> None:
        if self.alive and not self.want.bytes:
            if self.left_s <= 0:
                self.left_s = self.rng.expovariate(1 / self.work_s)
            for a in list(world.actors.values()):  # what was not worth telling until now
                if isinstance(a, Live):
                    world.heard(a)
            self.wish(world)

    def came(self, world: World) -> None:
        self.began_s, self.turn = world.now, self.turn + 1
        world.at(world.now + self.left_s, lambda n=self.turn: self._done(world, n))  # type: ignore[misc]
        if self.piece_s:
            world.at(world.now + self.piece_s, lambda n=self.turn: self._piece(world, n))  # type: ignore[misc]

    def _piece(self, world: World, n: int) -> None:
        if self.alive and n == self.turn and self.resident:
            self.pieces += 1
            world.at(world.now + self.piece_s, lambda: self._piece(world, n))
            world.heard(self)

    def left(self, world: World) -> None:
        self.left_s, self.turn = max(0.5, self.left_s - (world.now - self.began_s)), self.turn + 1

    def accept(self, world: World, lease: Any) -> None:
        if self.resident:
            self.busy_until = world.now + self.step_s * (world.now * 7919 % 1.0)
        super().accept(world, lease)

    def _done(self, world: World, n: int) -> None:
        if self.alive and n == self.turn and self.resident:
            self.left_s = 0.0
            self.wish(world, False)
            world.at(world.now + self.rng.expovariate(1 / self.gap_s), lambda: self.begin(world))


@dataclasses.dataclass
class Faults:
    """What else happens in a schedule; nothing in most of them, so that the bounds are tight there."""

    deaths: bool = False
    hands: bool = False  # pins, evictions, swaps by hand
    foreign: bool = False
    crowd: bool = False  # live workers that do not all fit


class Schedule(World):
    """One seed's world, ready to run for `lasts_s`."""

    def __init__(self, seed: int, decide: Any = policy.decide) -> None:
        self.rng = rng = random.Random(seed)
        self.seed = seed
        # Drawn apart: a seed's schedule stays what it was.
        self.own = random.Random(f"burst_min_s of {seed}")
        self.other = random.Random(f"pieces and captions of {seed}")
        kind = rng.random()
        self.faults = Faults(
            deaths=0.6 <= kind < 0.75 or kind > 0.95,
            hands=0.75 <= kind < 0.85 or kind > 0.95,
            foreign=kind > 0.95,
            crowd=0.85 <= kind < 0.95,
        )
        hold_s = rng.uniform(2.0, 10.0)
        overdue_s = rng.uniform(5.0, 25.0)
        settings = GpuSettings(
            lag_soft_s=rng.uniform(0.5, 4.0),
            lag_hard_s=rng.uniform(3.0, 8.0),
            silence_s=rng.uniform(0.2, 1.5),
            patience_s=rng.uniform(0.2, 0.8) * overdue_s,
            overdue_s=overdue_s,
            burst_min_s=rng.uniform(0.1, 0.5) * hold_s,
            max_hold_s=hold_s,
            max_cuts=rng.randrange(4),
        )
        self.total_gib = rng.choice((8, 12, 16, 24))
        limits = Limits(margin_bytes=0, repeat_s=20.0, offload_at_least_s=2.0)
        super().__init__(settings, limits, self.total_gib * GIB, status_every_s=97.0)
        self.decide = decide
        self.lasts_s = rng.uniform(40.0, 90.0) if seed % 1000 else 3700.0
        self.reclaim_s = rng.uniform(0.0, 3.0) if self.faults.deaths else 0.0
        self.jitter = rng.choice((0.0, 0.0, 0.3))
        self.factor: dict[str, float] = {}
        self.all: list[Actor] = []
        self.people()
        for actor in self.all:
            self.at(rng.uniform(0.0, 5.0), lambda actor=actor: self.arrive(actor))  # type: ignore[misc]
        if self.faults.deaths:
            self.later(20.0, self.death)
        if self.faults.hands:
            self.later(20.0, self.hand)
        if self.faults.foreign:
            self.later(30.0, self.take)
        self.later(40.0, self.stall)

    def people(self) -> None:
        rng, room = self.rng, self.total_gib
        names = ["transcriber", "translator", "diarizer", "other"][: rng.choice((1, 2, 3, 3, 4))]
        # Together the live ones fit, or they crowd.
        share = rng.uniform(1.05, 1.7) if self.faults.crowd else rng.uniform(0.4, 0.98)
        parts = [rng.uniform(0.2, 1.0) for _ in names]
        gb_s = rng.choice((1.0, 4.0, 12.0, 25.0))
        for name, part in zip(names, parts, strict=True):
            size = min(0.98 * room, share * room * part / sum(parts))
            live = Live(name, int(size * GIB), "live", **self.speeds(size, gb_s))
            live.catch_up = rng.uniform(0.5, 10.0)
            self.all.append(live)
            if name == "transcriber":
                spurt = rng.choice((0.5, 2.0, 8.0, 60.0))
                pause = rng.choice((0.1, 0.5, 1.5, 5.0))
                live.speech = Speech(rng, spurt, pause, self.other.choice((0.0, 0.3, 2.0)) * pause)
                self.speak(live)
        for i in range(rng.choice((1, 1, 1, 2, 2, 3))):
            size = rng.uniform(0.1, 1.05) * room
            self.job(f"summarizer{i or ''}", size, "burst", gb_s)
        if rng.random() < 0.3:
            self.job("quantizer", rng.uniform(0.2, 0.9) * room, "batch", gb_s)

    def job(self, name: str, size: float, lane: str, gb_s: float) -> None:
        job = Job(name, int(size * GIB), lane, **self.speeds(size, gb_s))
        job.rng = self.rng
        job.burst_min_s = self.own.choice((0.0, 0.0, self.own.uniform(0.2, 1.5) * self.set.max_hold_s))
        job.piece_s = self.other.choice((0.0, self.other.uniform(0.1, 0.6) * self.set.max_hold_s))
        job.work_s, job.gap_s = self.rng.choice((1.0, 5.0, 100.0)), self.rng.choice((0.1, 10.0, 30.0))
        self.all.append(job)

    def speeds(self, size: float, gb_s: float) -> dict[str, float]:
        rng = self.rng
        return {
            "reload_s": size / gb_s,
            "offload_s": rng.uniform(0.0, 0.3),
            "step_s": rng.choice((0.05, 0.3, 0.6)),
        }

    def reload_s(self, actor: Actor) -> float:
        return actor.reload_s * (1.0 + self.jitter * self.rng.uniform(-1.0, 1.0))

    # What happens

    def later(self, mean_s: float, what: Any) -> None:
        def then() -> None:
            what()
            self.later(mean_s, what)

        self.at(self.now + self.rng.expovariate(1 / mean_s), then)

    def speak(self, live: Live) -> None:
        speech = live.speech
        assert speech
        if speech.silent_since is None:
            speech.silent_since = self.now
            lasts = self.rng.expovariate(1 / speech.pause_s)
            self.at(self.now + SOON, lambda: self.tell(live))
            self.at(self.now + speech.decode_s + SOON, lambda: self.tell(live))
            if lasts > self.set.silence_s:  # as long as it has to be: said then
                self.at(self.now + self.set.silence_s + SOON, lambda: self.tell(live))
        else:
            speech.silent_since = None
            lasts = self.rng.expovariate(1 / speech.spurt_s)
            self.tell(live)
        self.at(self.now + max(0.05, lasts), lambda: self.speak(live))

    def tell(self, live: Live) -> None:
        """What is heard matters only while somebody waits for a pause."""
        if any(a.want.bytes and not a.resident for a in self.actors.values()):
            self.heard(live)

    def arrive(self, actor: Actor) -> None:
        self.join(actor)
        if isinstance(actor, Job):
            actor.begin(self)
        elif isinstance(actor, Live):
            actor.late_s, actor.at_s = 0.0, self.now
            actor.shift(self)
            actor.wish(self)

    def stall(self) -> None:
        """A live worker falls behind all of a sudden."""
        live = [a for a in self.actors.values() if isinstance(a, Live)]
        if live:
            one = self.rng.choice(live)
            one.shift(self, self.rng.uniform(0.0, 60.0))
            self.heard(one)

    def death(self) -> None:
        if self.actors:
            actor = self.rng.choice(list(self.actors.values()))
            if self.rng.random() < 0.3 and actor.resident:
                actor.deaf = True  # until the deadline
                self.at(self.now + 200.0, lambda: setattr(actor, "deaf", False))
            else:
                self.die(actor)

    def die(self, actor: Actor) -> None:
        super().die(actor)
        if not actor.alive:
            actor.deaf = False
            self.at(self.now + self.rng.uniform(0.5, 10.0), lambda: None if actor.alive else self.arrive(actor))

    def hand(self) -> None:
        self.news = True
        rng, name = self.rng, self.rng.choice([a.name for a in self.all])
        match rng.randrange(3):
            case 0:
                self.pin(name, True)
                self.at(self.now + rng.uniform(1.0, 60.0), lambda: self.pin(name, False))
            case 1 if name not in self.notes.pins:
                self.notes.off_until_s[name] = self.now + 10.0
            case 2 if not self.memory.burst:
                waits = [a for a in self.actors.values() if a.lane != "live" and a.want.bytes and not a.resident]
                if waits:
                    self.memory = msgspec.structs.replace(self.memory, forced=waits[0].name)

    def take(self) -> None:
        """Another program takes or gives back memory, of what is free."""
        held = self.ledger.counted() + sum(self.dead.values())
        self.foreign_bytes = int(self.rng.choice((0.0, 0.1, 0.3)) * max(0, self.total_bytes - held))
        self.carry([e.Measure(self.ledger.asked + 1)])  # nobody is granted what has just gone
        self.news = True
