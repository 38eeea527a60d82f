"""What the policy promises (DESIGN §4, docs/swap.md), checked from what really happens in a schedule.

The checker looks at the workers themselves: who is resident, how late, how long silent. Of the policy it takes only the
words it gave (the plan). Names of promises are those of docs/swap.md "Bounds".
"""

from __future__ import annotations

from itertools import combinations
from math import inf

from arbiter import effects as e
from arbiter.view import Plan
from arbiter.world import Actor, World
from common.messages import Incarnation, Status
from tests.policy_schedules import Job, Live, Schedule

EPS = 0.02


class Violation(AssertionError):
    """A promise was broken; its first word is the promise's name."""


class Checker:
    """Watches one schedule."""

    def __init__(self, world: Schedule) -> None:
        self.w, self.set = world, world.set
        self.waits: dict[str, float] = {}  # job -> since when it waits for its turn
        self.away: dict[str, float] = {}  # live -> since when it is away though it wants
        self.late: dict[str, float] = {}  # live -> since when it is too late, away, and a cut is due
        self.hand_at = -inf  # when a person, a death or another program last changed what is possible
        self.forced_at = inf
        self.by_hand_s = -inf  # when the last burst by hand began
        self.ran: Incarnation | None = None  # the burst of the last plan
        self.ended_now, self.fit_since = -inf, inf
        self.known: tuple[object, ...] = ()
        self.calm_since: float | None = None
        self.cuts: dict[str, int] = {}
        self.came_back: dict[str, float] = {}
        self.began: tuple[float, str] | None = None  # of the swap under way, and what it began by
        self.ended_s = self.rest_until = -inf
        self.taken: list[tuple[float, float]] = []  # (began, seconds of switching) of swaps that had to be calm
        self.in_s: float | None = None
        self.held: dict[str, float] = {}  # when it was granted
        self.left: dict[str, float] = {}  # when it last had to leave
        self.starts: dict[str, int] = {}
        self.pieces: dict[str, int] = {}  # of its work that each job had done at the last plan
        self.turn: object = None
        self.began_at = 0  # the same of the burst that runs, when it began
        slow = 1.0 + world.jitter
        # The longest that everybody's coming or going takes: proofs, and reloads one after the other.
        self.swap_s = (
            max(a.step_s + a.offload_s for a in world.all) * 2 + slow * sum(a.reload_s for a in world.all) + 0.2
        )
        self.keep_s = self.set.keep_reloads * slow * max(a.reload_s for a in world.all) + self.set.keep_at_least_s
        self.batch_s = self.swap_s if any(a.lane == "batch" for a in world.all) else 0.0  # it has to leave first
        self.slack_s = EPS + max(a.step_s for a in world.all)  # the last step of a turn counts for it, or not
        self.bursts = sum(a.lane == "burst" for a in world.all)
        self.look()
        world.watchers.append(self)

    # What is true

    def look(self) -> None:
        """What the rest of a round asks again and again."""
        lanes: dict[str, list[Actor]] = {"live": [], "burst": [], "batch": []}
        for a in self.w.actors.values():
            if a.want.bytes:
                lanes[a.lane].append(a)
        self.lanes, self.cap = lanes, self.w.ledger.cap()
        self.fit = sum(a.want.bytes for a in lanes["live"]) <= self.cap

    def live(self) -> list[Actor]:
        return self.lanes["live"]

    def jobs(self, lane: str = "burst") -> list[Actor]:
        return self.lanes[lane]

    def room(self) -> int:
        return self.cap

    def off(self, a: Actor) -> bool:
        return self.w.notes.off_until_s.get(a.name, -inf) > self.w.now or a.want.bytes > self.room()

    def granted(self, a: Actor) -> bool:
        row = self.w.ledger.rows.get(a.me)
        return row is not None and row.state is e.GRANTED

    def since(self, a: Actor) -> float:
        """Since when it waits: for its turn anew after each turn."""
        return max(a.want.since_s, self.left.get(a.name, -inf))

    def told(self, a: Actor) -> Status:
        """What the arbiter knows of it: it can be held against the policy."""
        status = self.w.ledger.rows[a.me].status
        assert status
        return status

    def least_s(self, a: Actor) -> float:
        """How long a burst has the GPU before anybody cuts it: its own word counts, but not beyond MAX_HOLD."""
        return min(max(self.set.burst_min_s, self.told(a).burst_min_s), self.set.max_hold_s)

    @property
    def rough(self) -> bool:
        return self.w.faults.deaths or self.w.faults.foreign

    # After each plan

    def planned(self, world: World, plan: Plan) -> None:
        w, now = self.w, self.w.now
        self.look()
        rows = {r.incarnation: r for r in w.ledger.rows.values()}
        burst = w.memory.burst
        if any(reason.startswith(("cut short", "it had its")) for _, reason in plan.revoke):
            self.ended_now = now
        if self.ran and (burst is None or burst.who != self.ran):
            self.ended_now = now
        self.ran = burst.who if burst else None
        self.swap(plan)
        self.piece_by_piece(plan)
        for who, reason in plan.revoke:
            a = w.actors.get(who.pid)
            if a is None or a.me != who:
                continue
            if a.name in w.notes.pins and reason != "evicted by hand":
                raise Violation(f"pin: {a.name} is pinned and has to leave: {reason}")
            self.revoked(a, reason, now)
        if plan.grant:
            who, size, _ = plan.grant
            loads = [r for r in rows.values() if r.state is e.GRANTED and not self.up(r.incarnation)]
            if any(now < w.notes.moved_s.get(r.incarnation, now) + self.set.stuck_after_s for r in loads):
                raise Violation(f"one at a time: {who.worker} is granted while {loads[0].incarnation.worker} loads")
            first = self.first_back()
            a = w.actors[who.pid]
            if w.notes.off_until_s.get(a.name, -inf) > now:
                raise Violation(f"evict: {a.name} is granted though it was evicted by hand")
            self.held[a.name] = now
            if a.lane == "live" and first and first is not a and burst is None:
                raise Violation(f"give-back order: {who.worker} before {first.name}")
            if size + sum(r.counted for r in rows.values()) > self.room():
                raise Violation(f"cap: {who.worker} gets {size} more than there is")
        for who in plan.refused:
            a = w.actors.get(who.pid)
            if a and a.want.bytes <= self.room():
                raise Violation(f"refuse: {a.name} would fit alone")

    def up(self, who: object) -> bool:
        return any(a.me == who and a.resident for a in self.w.actors.values())

    def first_back(self) -> Actor | None:
        """The transcriber, if it can come now."""
        for a in self.live():
            row = self.w.ledger.rows.get(a.me)
            if a.name == "transcriber" and row and row.state is e.FREE and not self.off(a):
                fits = a.want.bytes + self.w.ledger.counted() <= self.room()
                return a if fits and self.all_fit() else None
        return None

    def all_fit(self) -> bool:
        return self.fit

    def revoked(self, a: Actor, reason: str, now: float) -> None:
        wanted = [x for x in [*self.live(), *self.jobs(), *self.jobs("batch")] if not self.off(x)]
        if sum(x.want.bytes for x in wanted) <= self.room() and reason != "evicted by hand" and not self.touched():
            raise Violation(f"free ride: all fit, and {a.name} has to leave: {reason}")
        ran = now - self.held.get(a.name, now)
        if reason.startswith("cut short"):
            self.cuts[a.name] = self.cuts.get(a.name, 0) + 1
            if self.cuts[a.name] > self.set.max_cuts:
                raise Violation(f"max cuts: {a.name} is cut the {self.cuts[a.name]}th time")
            if ran < self.least_s(a) - EPS:
                raise Violation(f"burst min: {a.name} is cut after {ran:.2f} s")
            if max((x.lag_s(now) for x in self.live() if x is not a), default=0.0) <= self.set.lag_hard_s - EPS:
                raise Violation(f"cut: {a.name} is cut and nobody is late")
        if reason.startswith("a piece") and not self.owed(a):
            raise Violation(f"piece by piece: {a.name} has to leave and nobody waits")
        by = self.w.memory.burst
        leaves_for_it = by and by.began_s == now and by.start != "by hand" and reason.startswith("makes room")
        if leaves_for_it and a.lane == "burst" and ran < self.least_s(a) - EPS:
            raise Violation(f"burst min: {a.name} rides and has to leave after {ran:.2f} s")
        makes_room = reason.startswith(("makes room", "it had", "cut", "evicted", "resize"))
        if a.lane == "live" and not makes_room and self.w.memory.burst is None and self.ended_now < now:
            stayed = now - self.w.notes.moved_s.get(a.me, -inf)
            if stayed < max(self.set.keep_at_least_s, self.set.keep_reloads * a.loaded_in_s) - EPS:
                raise Violation(f"keep: {a.name} has to leave after {stayed:.2f} s: {reason}")

    def owed(self, a: Actor) -> bool:
        """Somebody speaks or waits for captions, as far as the arbiter knows."""
        told = [self.told(x) for x in self.live() if x is not a and not self.off(x)]
        late_s = max((s.lag_s for s in told), default=0.0)
        quiet_s = min((s.silence_s for s in told if s.incarnation.worker == "transcriber"), default=inf)
        return late_s > self.set.lag_soft_s or quiet_s < self.set.silence_s

    def piece_by_piece(self, plan: Plan) -> None:
        """After a piece of its work, or several where it cannot keep up, a burst goes on only where nobody waits."""
        burst, now = plan.memory.burst, self.w.now
        a = next((x for x in self.jobs() if burst and x.me == burst.who), None)
        if a is None or burst is None:
            return
        was, self.pieces[a.name] = self.pieces.get(a.name, a.pieces), a.pieces
        wanted = [x for x in [*self.live(), *self.jobs()] if not self.off(x)]
        rides = sum(x.want.bytes for x in wanted) <= self.room()
        if self.turn != (burst.who, burst.began_s):
            self.turn, self.began_at, was = (burst.who, burst.began_s), a.pieces, a.pieces
        if a.pieces == was or not a.resident or rides or self.w.notes.pins or not self.all_fit():
            return
        at_most = 1 + int((now - a.want.since_s) / max(self.set.overdue_s, 1.0))
        if self.owed(a) and a.pieces - self.began_at >= at_most:
            raise Violation(f"piece by piece: {a.name} goes on though captions wait")

    def swap(self, plan: Plan) -> None:
        """Begins and ends of swaps, by the policy's own word of who runs."""
        burst, now = plan.memory.burst, self.w.now
        if self.began and self.in_s is None and (burst is None or burst.began_s != self.began[0] or self.up(burst.who)):
            self.in_s = now - self.began[0]
        if self.began and self.ended_s < self.began[0] and (burst is None or burst.began_s != self.began[0]):
            self.ended_s = now
        if self.began and self.ended_s >= self.began[0] and (burst is not None or self.settled()):
            took = (self.in_s or 0.0) + now - self.ended_s
            if self.began[1] in ("silence", "patience"):
                self.taken.append((self.began[0], took))
            if self.settled():
                self.rest_until = max(self.rest_until, now + self.set.rest_swaps * took)
            self.began = None
        if self.began is None and burst is not None and burst.began_s == now and burst.start != "found":
            who = next((a for a in self.w.actors.values() if a.me == burst.who), None)
            if who:
                self.lawful(who, burst.start)
                self.cheapest(who, plan)
            self.starts[burst.start] = self.starts.get(burst.start, 0) + 1
            if burst.start == "by hand":
                self.by_hand_s = now
            if burst.cost_s or (who and self.keeps_away(who)):
                self.began, self.in_s = (now, burst.start), None

    def keeps_away(self, a: Actor) -> bool:
        """One by hand may begin before everybody is back: who is away still comes back after it."""
        away = [x for x in self.live() if x is not a and not x.resident and not self.off(x)]
        rides = sum(x.want.bytes for x in self.live() if x is not a) + a.want.bytes <= self.room()
        return bool(away) and not rides and self.all_fit() and not self.w.notes.pins

    def settled(self) -> bool:
        """Everybody who left and still can is back; who cannot is not waited for."""
        return not self.w.memory.returning and all(a.resident or not self.granted(a) for a in self.live())

    def lawful(self, a: Actor, start: str) -> None:
        now, s = self.w.now, self.set
        waited = now - self.since(a)
        others = [x for x in self.live() if x is not a and not self.off(x)]
        if start == "by hand":
            return
        quiet = min((self.told(x).silence_s for x in others if x.name == "transcriber"), default=inf) >= s.silence_s
        between = waited >= s.patience_s - self.slack_s and not any(self.told(x).owes for x in others)
        kept = others if self.all_fit() else []
        late = max((self.told(x).lag_s for x in kept), default=0.0) > s.lag_soft_s + EPS
        missing = [x.name for x in kept if not x.resident]
        if start == "overdue":
            if waited < s.overdue_s - self.slack_s:
                raise Violation(f"overdue: {a.name} begins as overdue after {waited:.2f} s")
            if missing and now < self.ended_s + s.stuck_after_s - EPS:
                raise Violation(f"back first: {a.name} begins before {missing} is back")
            return
        if late:
            raise Violation(f"lag soft: {a.name} begins though captions are late")
        if not (quiet or between):
            raise Violation(f"silence: {a.name} begins while somebody speaks or waits, after {waited:.2f} s")
        if now < self.rest_until - EPS and not self.rough:
            raise Violation(f"rest: {a.name} begins {self.rest_until - now:.2f} s too early")
        if missing:
            raise Violation(f"first: {a.name} begins before {missing} is there")
        if a.lane == "batch" and any(not self.off(j) for j in self.jobs()) and not self.w.notes.pins:
            raise Violation(f"batch last: {a.name} begins while a burst waits")

    def cheapest(self, a: Actor, plan: Plan) -> None:
        """Nobody leaves who could stay; and those who leave cost the least to do without."""
        weight = {"transcriber": self.set.transcriber_weight, "translator": self.set.translator_weight}
        pins = self.w.notes.pins
        there = [x for x in self.live() if x is not a and not self.off(x)]
        if pins or not self.all_fit() or self.touched() or not all(x.resident for x in there):
            return
        leaves = [x for x in there if x.me in [who for who, _ in plan.revoke]]
        room = self.room() - a.want.bytes
        lasts_s = self.w.memory.lasted_s.get(a.name, self.set.max_hold_s)

        def cost(some: tuple[Actor, ...] | list[Actor]) -> float:
            return sum((lasts_s + x.loaded_in_s) * weight.get(x.name, 1.0) for x in some)

        best = inf
        for n in range(len(there) + 1):
            for some in combinations(there, n):
                if sum(x.want.bytes for x in there if x not in some) <= room:
                    best = min(best, cost(some))
        if cost(leaves) > best + 1e-9:
            raise Violation(
                f"cheapest: {[x.name for x in leaves]} leave for {a.name}: {cost(leaves):.2f}, not {best:.2f}"
            )

    # After each event

    def touched(self, for_s: float = 0.0) -> bool:
        """Something from outside changed what is possible, in the last `for_s` seconds."""
        return self.w.now <= self.hand_at + for_s

    def saw(self, world: World) -> None:
        w, now = self.w, self.w.now
        self.look()
        known = (
            tuple(sorted(w.notes.pins)),
            tuple(n for n, t in w.notes.off_until_s.items() if t > now),
            w.memory.forced,
            self.by_hand_s,  # most orders are carried out in the turn they come in: nobody sees them stand
            w.ledger.foreign_bytes,
            tuple(w.actors),
            tuple(a.name for a in w.actors.values() if a.deaf),
            bool(w.dead),
        )
        if known != self.known:
            self.known, self.hand_at = known, now
        on_card = sum(a.held for a in w.actors.values()) + sum(w.dead.values()) + w.foreign_bytes
        if on_card > w.total_bytes:
            raise Violation(f"cap: {on_card} of {w.total_bytes} bytes are held")
        asked = [a for a in w.actors.values() if a.name == w.memory.forced]  # one that rides comes when the bus is free
        rides = sum(a.want.bytes for a in [*self.live(), *asked] if not self.off(a)) <= self.cap
        if not w.memory.forced or w.memory.burst or w.notes.pins or rides or self.rough:
            self.forced_at = now
        elif now > self.forced_at + 1.0:
            raise Violation(f"by hand: {w.memory.forced} does not begin")
        self.turns(now)
        self.absences(now)
        self.eager(now)

    def clear(self) -> bool:
        """A bound counts from the last moment at which nothing from outside was in the way."""
        return not (
            self.w.notes.pins
            or self.w.memory.forced
            or self.w.dead
            or any(t > self.w.now for t in self.w.notes.off_until_s.values())
            or any(a.deaf for a in self.w.actors.values())
        )

    def turns(self, now: float) -> None:
        """Burst wait: OVERDUE + one transition, and one turn of each other that waits."""
        clear = self.clear() and not self.touched()
        jobs = self.jobs()
        every = [*self.live(), *jobs, *self.jobs("batch")]
        if sum(x.want.bytes for x in every) > self.room() or not clear:
            self.fit_since = inf
        elif self.fit_since == inf:
            self.fit_since = now
        turns = [a for a in self.live() if not self.all_fit()] + jobs
        for a in self.w.all:
            if (a.lane == "live" and a not in turns) or a.lane == "batch":
                continue
            waits = a.alive and a.want.bytes > 0 and not a.resident and not self.off(a)
            if not waits:
                self.waits.pop(a.name, None)
                continue
            since = self.waits[a.name] = max(self.waits.get(a.name, -inf), self.since(a))
            if not clear:
                self.waits[a.name] = since = max(since, now) if self.touched() else since
                continue
            if self.rough or (self.w.faults.hands and not clear):
                continue
            if now - max(since, self.fit_since) > 2 * self.swap_s + EPS:
                raise Violation(f"free ride: all fit, and {a.name} waits {now - since:.1f} s")
            n = self.bursts + (0 if self.all_fit() else len(self.live()))
            swap = self.swap_s
            bound = self.set.overdue_s + (n - 1) * (self.set.max_hold_s + 2 * swap) + 2 * swap + self.batch_s
            if not self.all_fit():
                bound += self.keep_s
            # It waits anew after each turn.
            if now - since > bound + EPS:
                raise Violation(
                    f"burst wait: {a.name} waits {now - since:.1f} s, the bound is {bound:.1f} s ({n} take turns)"
                )

    def absences(self, now: float) -> None:
        """Live wait: MAX_HOLD + swap; with too much lag the rest of BURST_MIN + longest step + swap."""
        s, burst = self.set, self.w.memory.burst
        if not self.clear() or self.touched() or self.rough or not self.all_fit():
            self.away.clear()
            self.late.clear()
            return
        for a in self.live():
            if a.resident or self.off(a):
                self.away.pop(a.name, None)
                self.late.pop(a.name, None)
                continue
            since = self.away.setdefault(a.name, now)
            if now - since > s.max_hold_s + 2 * self.swap_s + EPS:
                raise Violation(f"live wait: {a.name} is away for {now - since:.1f} s")
            runs = next((x for x in self.w.actors.values() if burst and x.me == burst.who), None)
            if burst and runs and runs.resident and a is not runs:
                late_s = a.lag_s(now) - s.lag_hard_s
                if late_s > 0 and self.cuts.get(runs.name, 0) < s.max_cuts:
                    self.late[a.name] = max(burst.held_s + self.least_s(runs), now - late_s)
                else:
                    self.late.pop(a.name, None)
            if a.name in self.late and now > self.late[a.name] + 2 * self.swap_s + EPS:
                raise Violation(f"live wait with lag: {a.name} {now - self.late[a.name]:.1f} s after it was due back")

    def free_for(self, a: Actor) -> bool:
        """Who fits beside the live ones makes nobody leave: it waits until who has just left has given back."""
        rides = sum(x.want.bytes for x in self.live()) + a.want.bytes <= self.room()
        return not rides or self.w.ledger.counted() + a.want.bytes <= self.room()

    def eager(self, now: float) -> None:
        """Nothing is in its way: then the only burst that waits begins."""
        s, w = self.set, self.w
        jobs, live = self.jobs(), self.live()
        quiet = min((a.silence_s(now) for a in live), default=inf) >= s.silence_s
        calm = (
            len(jobs) == 1
            and not self.jobs("batch")
            and w.memory.burst is None
            and not jobs[0].resident
            and not self.granted(jobs[0])
            and not self.off(jobs[0])
            and self.clear()
            and not self.rough
            and self.all_fit()
            and self.free_for(jobs[0])
            and all(a.resident for a in live)
            and now >= max(self.rest_until, w.memory.rest_until_s)
            and max((a.lag_s(now) for a in live), default=0.0) <= s.lag_soft_s
            and (quiet or (now - self.since(jobs[0]) >= s.patience_s and not any(a.owes(now) for a in live)))
        )
        if not calm:
            self.calm_since = None
        elif self.calm_since is None:
            self.calm_since = now
        elif now > self.calm_since + 0.5:
            raise Violation(f"calm: {jobs[0].name} does not begin though nothing is in its way")

    def changed(self, world: World, change: e.Changed) -> None:
        name = change.incarnation.worker
        if change.state in (e.REVOKED, e.RECLAIMING):
            ran = self.ran is not None and self.ran.worker == name
            live = any(a.name == name and a.lane == "live" for a in self.w.all)
            # A live worker that leaves unasked, at the end of the lease of a turn that it was kept after, waits on.
            if ran or not live or change.reason != "it wants nothing":
                self.left[name] = self.w.now
            if not change.reason.startswith("cut short"):
                self.cuts.pop(name, None)

    # At the end

    def finish(self) -> None:
        """Switching: a tenth of any stretch of time, and one swap that it may cut through."""
        if self.w.faults.deaths or self.w.faults.foreign or self.w.faults.hands:
            return
        share = 1.0 / (1.0 + self.set.rest_swaps)
        for span in (600.0, 3600.0):
            for i, (at, _) in enumerate(self.taken):
                inside = [took for began, took in self.taken[i:] if began < at + span]
                if sum(inside) > share * span + max(inside):
                    raise Violation(f"switching: {sum(inside):.1f} s within {span:.0f} s")


def play(seed: int, decide: object = None) -> tuple[Schedule, Checker]:
    """One schedule to its end. Raises Violation."""
    world = Schedule(seed, decide) if decide else Schedule(seed)
    checker = Checker(world)
    world.run(world.lasts_s)
    checker.finish()
    return world, checker


__all__ = ["Checker", "Job", "Live", "Violation", "play"]
