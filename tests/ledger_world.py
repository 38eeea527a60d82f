"""A world in memory around both ends of the lease, for the checker to watch.

Stand-ins: a device that knows who holds bytes, also of the dead; a link that loses, doubles, delays and reorders;
processes with pids that are used again, that die, hang, or cannot be killed; an arbiter that is killed between any two
effects and restored from its roster. One action is one call with a number that makes its choices, so that a seeded
driver and hypothesis play the same game.
"""

from __future__ import annotations

from collections.abc import Callable

from arbiter import effects as e
from arbiter.ledger import Ledger
from common.messages import Incarnation, Status, Want
from tests.ledger_checker import LIMITS, PIDS, SIZES, TOTAL, Answer, Checker, Process, Violation
from workers.lease import NOTHING, Holder


class World(Checker):
    """Actions are the methods named `do_*`."""

    ledger_class: type[Ledger] = Ledger
    holder_class: type[Holder] = Holder
    breaks = ""  # a planted bug: how what the checker says of it begins

    def __init__(self, figures: bool = True) -> None:
        super().__init__(figures)
        self.ticks = 0
        self.up: list[tuple[Status, int]] = []  # and in which life of the arbiter it was written
        self.deaths: list[Incarnation] = []
        self.watched: set[Incarnation] = set()
        self.questions: list[int] = []
        self.answers: list[Answer] = []
        self.crash_after: int | None = None
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
                holder.loading(due, p.held)
        elif p.load:
            if self.fits(p, p.load.bytes * 2 // 3):
                holder.loaded(p.load, p.held, self.now)
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
            p.holder.loading(p.load, 0)
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
            more["peak_bytes"] = int(p.context)
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
            p = self.pick(0, lambda p: p.alive and p.who == lease.incarnation)
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
            if p.alive and (p.killed or (p.stopped and self.roster_lost)):  # stopped, and known to nobody: foreign
                self.end(p)
        self.calm(16)
        assert self.ledger
        for r in self.ledger.rows.values():
            if r.state not in (e.FREE, e.GRANTED):
                raise Violation(f"I7: all is well and {r} does not end")
            q = self.at(r.incarnation)
            if r.state is e.GRANTED and q and q.holder and not q.stopped and q.holder.place.residency == "offloaded":
                raise Violation(f"stuck: {q.holder} has a lease, wants one, and holds nothing")
        if able := self.pick(0, lambda p: p.alive and not p.stopped):
            self.serve(able)

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
