"""A world in memory around both ends of the lease, and the checker of I1-I8 (DESIGN §4) that knows what is really true.

Stand-ins: a device that knows who holds bytes, also of the dead; a link that loses, doubles, delays and reorders;
processes with pids that are used again, that die, hang, or cannot be killed; an arbiter that is killed between any two
effects and restored from its roster. One action is one call with a number that makes its choices, so that a seeded
driver and hypothesis play the same game. The checker never asks the ledger what is true, only the world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from arbiter import effects as e
from arbiter.ledger import Ledger, Limits
from common.messages import Incarnation, Lease, Status, Want
from workers.lease import NOTHING, Holder

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


class World:
    """Actions are the methods named `do_*`."""

    ledger_class: type[Ledger] = Ledger
    holder_class: type[Holder] = Holder
    breaks = ""  # a planted bug: how what the checker says of it begins

    def __init__(self, figures: bool = True) -> None:
        self.figures = figures  # the driver tells figures of processes
        self.now = 1000.0
        self.ticks = 0
        self.slots: dict[int, Process] = {}
        self.processes: list[Process] = []  # workers: alive, or dead with bytes on the device
        self.external = 0
        self.down: list[Lease] = []
        self.up: list[tuple[Status, int]] = []  # and in which life of the arbiter it was written
        self.deaths: list[Incarnation] = []
        self.watched: set[Incarnation] = set()
        self.questions: list[int] = []
        self.answers: list[Answer] = []
        self.disk = e.Roster()
        self.ledger: Ledger | None = None
        self.crash_after: int | None = None
        # What the checker remembers
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
        self.start()

    # The arbiter's loop

    def start(self) -> None:
        self.life += 1
        self.ledger = self.ledger_class(LIMITS, self.disk)
        self.seen_external, self.known, self.since = None, set(), {}
        self.awaited = {r.incarnation for r in self.disk.rows if r.state in (e.GRANTED, e.REVOKED, e.KILLED)}
        self.call(lambda ledger: ledger.start(self.now))

    def crash(self) -> None:
        self.ledger, self.crash_after = None, None
        self.deaths, self.watched, self.questions, self.answers = [], set(), [], []

    def call(self, method: Callable[[Ledger], list[e.Effect]]) -> None:
        if self.ledger is None:
            return
        before = {r.incarnation: (r.state, r.epoch) for r in self.ledger.rows.values()}
        effects = method(self.ledger)
        self.check_rows(before)
        for effect in effects:
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after < 0:
                    return self.crash()
            self.carry_out(effect)

    def carry_out(self, effect: e.Effect) -> None:
        if isinstance(effect, e.SaveRoster):
            self.disk = effect.roster
            for r in sorted(effect.roster.rows, key=lambda r: r.epoch):
                if r.state in (e.GRANTED, e.REVOKED):
                    self.check_decision(r.incarnation, r.epoch, r.state is e.GRANTED, r.bytes)
        elif isinstance(effect, e.Send):
            self.check_lease(effect.lease)
            self.down.append(effect.lease)
        elif isinstance(effect, e.Watch):
            if self.at(effect.incarnation):
                self.watched.add(effect.incarnation)
            else:
                self.deaths.append(effect.incarnation)
        elif isinstance(effect, e.Kill):
            self.signal(effect.incarnation)
        elif isinstance(effect, e.Measure):
            self.questions.append(effect.number)

    def at(self, who: Incarnation) -> Process | None:
        """The process that a pidfd verified by start time refers to."""
        found = self.slots.get(who.pid)
        return found if found and found.started == who.started_ticks else None

    def signal(self, who: Incarnation) -> None:
        target = self.at(who)
        if target is None:
            self.deaths.append(who)
        else:
            self.sigkill(target, who)

    def sigkill(self, target: Process, who: Incarnation) -> None:
        if target.holder is None or target.who != who:
            raise Violation(f"I6: SIGKILL for {who} hits {target}")
        if self.now < self.revoked.get(who, float("inf")):
            raise Violation(f"I6: {who} is killed before a deadline passed")
        target.killed = True
        if not target.undying:
            self.end(target)

    def end(self, p: Process) -> None:
        p.alive = False
        del self.slots[p.pid]
        if p.holder and p.who in self.watched:
            self.deaths.append(p.who)

    # The checker

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
        if granted and self.forgotten.get(epoch, (None,))[0] == who and epoch not in self.decided:
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
        if not self.figures or self.roster_lost:  # nobody could know better: only what is measured is told
            return
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
        if buried and buried + unseen > accounted:  # of several dead, the device does not tell whose bytes are left
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

    # Actions of the world

    def pick(self, n: int, what: Callable[[Process], object] = lambda p: p.alive) -> Process | None:
        found = [p for p in self.processes if what(p)]
        return found[n % len(found)] if found else None

    def do_spawn(self, n: int) -> None:
        pid = PIDS[n % len(PIDS)]
        if pid in self.slots:
            return
        self.ticks += 1
        if n // 4 % 5 == 0:
            self.slots[pid] = Process(pid, self.ticks, None)
            return
        who = Incarnation(worker="abc"[n // 4 % 3], pid=pid, started_ticks=self.ticks, nonce=f"{self.ticks:016x}")
        p = Process(pid, self.ticks, self.holder_class(who), residue=n // 16 % 4, undying=n // 64 % 8 == 0)
        p.step_p99_s = (0.0, 0.5, 3.0)[n // 16 % 3]
        assert p.holder
        p.holder.want = Want(bytes=SIZES[n // 64 % len(SIZES)])
        self.slots[pid] = p
        self.processes.append(p)

    def do_want(self, n: int) -> None:
        if (p := self.pick(n)) and p.holder:
            size = SIZES[n // 8 % len(SIZES)]
            p.holder.want = Want(bytes=size) if size else NOTHING
            p.waiting = n // 64 % 2 == 0

    def do_work(self, n: int) -> None:
        if p := self.pick(n, lambda p: p.alive and not p.stopped):
            self.turn(p, n // 8)

    def turn(self, p: Process, n: int) -> None:
        """One turn of a work thread: a piece of a reload, an offload, or a step."""
        holder = p.holder
        assert holder
        due = holder.due()
        if due and not due.granted:
            p.held, p.load = 0, None
            holder.offloaded(due)
        elif due and due is not p.load:
            p.load = due
            if self.fits(p, due.bytes // 2):
                holder.loading(due, p.held, self.now)
        elif p.load:
            if self.fits(p, p.load.bytes * 2 // 3):
                holder.loaded(p.load, p.held)
                p.load = None
        elif holder.place.residency == "resident":
            if holder.held_long_enough(self.now):
                p.held = 0
                holder.gave_up()
            elif n % 16 == 0:
                self.out_of_memory(p)
            elif self.fits(p, (holder.place.lease_bytes * 2 // 3, holder.place.lease_bytes)[n % 2]):
                holder.holds(p.held)
                holder.stepped()
                p.stepped_at_s = self.now

    def fits(self, p: Process, held: int) -> bool:
        if self.allocate(p, held):
            return True
        self.out_of_memory(p)
        return False

    def out_of_memory(self, p: Process) -> None:
        assert p.holder
        if p.load and p.holder.place.lease is not p.load:  # nothing had been moved in yet
            p.holder.loading(p.load, 0, self.now)
        p.held, p.load = 0, None
        p.holder.out_of_memory(20, self.now)

    def do_die(self, n: int) -> None:
        found = [p for p in self.slots.values() if not p.undying]
        if found:
            self.end(found[n % len(found)])

    def do_stop(self, n: int) -> None:
        if p := self.pick(n):
            p.stopped = not p.stopped

    def do_reclaim(self, n: int) -> None:
        if p := self.pick(n, lambda p: not p.alive):
            p.held, p.context = p.held // 2 if n // 8 % 2 else 0, p.context and n // 8 % 2 == 1
            if not p.on_device:
                self.processes.remove(p)

    def do_foreign(self, n: int) -> None:
        """Another program takes or frees memory; it gets only what there is."""
        room = TOTAL - sum(p.on_device for p in self.processes)
        self.external = min((0, 0, 5, 15, 30)[n % 5], room)

    # The link

    def do_status(self, n: int) -> None:
        p = self.pick(n, lambda p: p.alive and not p.stopped)
        if p and p.holder:
            more = {"residue_bytes": p.residue, "waiting": p.waiting, "stepped_at_s": p.stepped_at_s}
            self.up.append((p.holder.status(self.now, **more, step_p99_s=p.step_p99_s), self.life))

    def do_deliver_status(self, n: int) -> None:
        if self.up and self.ledger:
            i = 0 if n % 4 else n // 4 % len(self.up)
            status, life = self.up[i]
            if n // 64 % 8:
                del self.up[i]
            self.awaited.discard(status.incarnation)
            if life == self.life:
                self.known.add(status.incarnation)
            self.call(lambda ledger: ledger.heard(status, self.now))

    def do_deliver_lease(self, n: int) -> None:
        if self.down:
            i = 0 if n % 4 else n // 4 % len(self.down)
            lease = self.down[i]
            if n // 64 % 8:
                del self.down[i]
            p = next((p for p in self.processes if p.alive and p.who == lease.incarnation), None)
            if p is None or n % 16 == 5:  # to the successor, or to anybody
                p = self.pick(n // 16)
            if p is None or p.holder is None or p.stopped:
                return
            was, due = p.holder.pending, p.holder.place.acted
            news = lease.incarnation == p.who and lease.epoch > max(due, was.epoch if was else 0)
            if p.holder.accept(lease) != news or (p.holder.pending is was) == news:
                raise Violation(f"I5: {lease} at {p.who} with {was}")

    def do_lose(self, n: int) -> None:
        queue: list[object] = (self.down, self.up)[n % 2]  # type: ignore[assignment]
        if queue:
            del queue[n // 2 % len(queue)]

    def do_death(self, n: int) -> None:
        if self.deaths and self.ledger:
            who = self.deaths.pop(n % len(self.deaths))
            self.awaited.discard(who)
            self.call(lambda ledger: ledger.died(who, self.now))

    def do_look(self, n: int) -> None:
        """The helper reads the device: the answer is true now and may arrive later."""
        if self.questions:
            number = self.questions.pop(0)
            used = self.external + sum(p.on_device for p in self.processes)
            by_pid = {p.pid: p.on_device for p in self.processes if p.alive or n % 2}
            for p in self.processes:  # two processes of one pid: the living one
                if p.alive:
                    by_pid[p.pid] = p.on_device
            m = e.Measured(number=number, total_bytes=TOTAL, used_bytes=used, by_pid=by_pid if self.figures else None)
            self.answers.append(Answer(m, self.external))

    def do_answer(self, n: int) -> None:
        if self.answers and self.ledger:
            answer = self.answers.pop(0)
            if self.seen_external is None or answer.measured.number > self.ledger._moved:
                self.seen_external = answer.external
            self.call(lambda ledger: ledger.measured(answer.measured))

    # The arbiter

    def do_tick(self, n: int) -> None:
        self.now += (0.0, 0.3, 1.0, 1.0, 0.3, 1.0, 3.0, 0.3, 1.0, 0.0, 1.0, 3.0, 1.0, 12.0, 40.0, 1000.0)[n % 16]
        self.call(lambda ledger: ledger.tick(self.now))
        if self.ledger:
            for r in self.ledger.rows.values():
                first = self.since.setdefault((r.incarnation, r.epoch), self.now)
                if r.state is e.REVOKED and self.now > first + LIMITS.offload_within_s:
                    raise Violation(f"I7: {r} is still revoked")

    def do_policy(self, n: int) -> None:
        """Grants and revokes at random: whatever a policy may ask, the ledger must not do what is unsafe."""
        if self.ledger is None or not self.ledger.rows:
            return
        row = list(self.ledger.rows.values())[n % len(self.ledger.rows)]
        want = row.status.wants.bytes if row.status else 10
        who, hold = row.incarnation, (0.0, 0.0, 5.0)[n // 8 % 3]
        if row.state is e.GRANTED and want == row.bytes and n // 8 % 4:
            return
        self.call(lambda ledger: ledger.grant(who, want, self.now, hold))
        if row.state is e.GRANTED and want != row.bytes:
            self.call(lambda ledger: ledger.revoke(who, self.now, "resize"))
        elif row.state is e.GRANTED and n // 8 % 4 == 0:
            self.call(lambda ledger: ledger.revoke(who, self.now, "policy"))

    def do_crash(self, n: int) -> None:
        """Killed now, or after some effects of what it does next."""
        if self.ledger and n % 2:
            self.crash_after = n // 2 % 4
        else:
            self.crash()

    def do_start(self, n: int) -> None:
        if self.ledger is None:
            if n % 16 == 7:  # somebody removed the roster, with the arbiter stopped and its messages gone
                self.disk, self.roster_lost, self.down, self.up = e.Roster(), True, [], []
                self.forgotten |= self.decided
                self.decided = {}
            self.start()

    # The end of a history: everything works again, and so must the ledger

    def finish(self) -> None:
        self.crash_after, self.external = None, 0
        self.do_start(0)
        for p in list(self.processes):
            p.undying = False
            if p.alive and p.killed:
                self.end(p)
        self.calm(16)
        assert self.ledger
        for r in self.ledger.rows.values():
            if r.state not in (e.FREE, e.GRANTED):
                raise Violation(f"I7: all is well and {r} does not end")
            p = self.at(r.incarnation)
            if r.state is e.GRANTED and p and p.holder and not p.stopped and p.holder.place.residency == "offloaded":
                raise Violation(f"stuck: {p.holder} has a lease, wants one, and holds nothing")
        if p := self.pick(0, lambda p: p.alive and not p.stopped):
            self.serve(p)

    def serve(self, p: Process) -> None:
        """Whatever happened before: everything can be revoked, and this worker gets what it wants."""
        assert self.ledger and p.holder
        for q in self.processes:
            if q.alive and q.holder:
                q.holder.want = NOTHING
                self.call(lambda ledger, q=q: ledger.revoke(q.who, self.now, "served"))  # type: ignore[misc]
        self.calm(14)
        p.holder.want = Want(bytes=20)
        self.calm(2, dt=70.0)  # the longest pause after an OOM
        if why := self.ledger.why_not(p.who, 20):
            raise Violation(f"stuck: {why}")
        if p.holder.wants(self.now).bytes != 20:
            raise Violation(f"stuck: it does not want: {p.holder}")
        self.call(lambda ledger: ledger.grant(p.who, 20, self.now))
        self.calm(4, dt=1.0)
        if p.holder.place.residency != "resident":
            raise Violation(f"stuck: {p.holder}")

    def calm(self, turns: int, dt: float = 8.0) -> None:
        for _ in range(turns):
            self.processes = [p for p in self.processes if p.alive]  # the dead are reclaimed
            self.do_second(1)
            self.check_bytes()
            while self.deaths:
                self.do_death(0)
            self.now += dt
            self.call(lambda ledger: ledger.tick(self.now))

    def do_second(self, n: int) -> None:
        """Nothing gets lost, all that can work works, every Status and answer arrives."""
        while self.down:
            self.do_deliver_lease(1 + 64)
        for i, p in enumerate([p for p in self.processes if p.alive and not p.stopped]):
            self.turn(p, n)
            self.turn(p, 1)
            self.do_status(i)
        while self.up and self.ledger:
            self.do_deliver_status(1 + 64)
        while self.questions:
            self.do_look(0)
        while self.answers and self.ledger:
            self.do_answer(0)


ACTIONS: dict[str, int] = {  # how often
    "spawn": 6,
    "want": 6,
    "work": 24,
    "die": 2,
    "stop": 2,
    "reclaim": 4,
    "foreign": 1,
    "status": 16,
    "deliver_status": 20,
    "deliver_lease": 16,
    "lose": 4,
    "death": 4,
    "look": 8,
    "answer": 9,
    "tick": 10,
    "policy": 24,
    "crash": 1,
    "start": 3,
    "second": 3,
}
