"""The arbiter: one loop around the ledger and the policy. Never touches CUDA.

In: Status of every GPU worker and Commands at the socket `arbiter`, deaths by pidfd, answers of the measuring helper,
the time. Out: Leases, GpuState to the feed, RUN/roster, SIGKILL after a deadline. One turn: take what came, let the
policy decide, carry effects out in their order, say what changed. After a kill the roster restores what was granted;
without an arbiter the workers carry on with what they have.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from math import ceil, inf

from arbiter import hands, show
from arbiter import orders as o
from arbiter.effects import (
    FREE,
    Changed,
    Effect,
    Kill,
    Measure,
    Measured,
    SaveRoster,
    Send,
    Watch,
)
from arbiter.helper import Helper
from arbiter.inbox import Inbox
from arbiter.ledger import Ledger, Limits
from arbiter.measure import Answer
from arbiter.policy import decide
from arbiter.view import Memory, Plan
from common import card, process, wire
from common import messages as m
from common.messages import Incarnation
from common.settings import GpuSettings

MESSAGES = 200  # of one turn
PUBLISH_APART_S = 0.1
SAY_EVERY_S = 1.0
RETRY_S = 0.5  # of a roster that could not be written
UNNAMED = "the driver does not name our processes (WSL, containers): foreign memory is an estimate"


def limits(gpu: GpuSettings) -> Limits:
    return Limits(
        margin_bytes=gpu.margin_mib * 2**20,
        stuck_after_s=gpu.stuck_after_s,
        hello_timeout_s=gpu.hello_timeout_s,
        offload_within_s=gpu.offload_within_s,
        offload_at_least_s=gpu.offload_at_least_s,
        reclaim_within_s=gpu.reclaim_within_s,
    )


class Arbiter:
    """`turn(now)` is one round of the loop."""

    def __init__(self, p: process.Process) -> None:
        self.p, self.log, self.gpu = p, p.log, p.settings.gpu
        now = time.monotonic()
        kind = card.kind(p.settings)
        self.helper = Helper(kind, p.run, self.gpu, now)  # first: it needs a while to start
        roster, wrong = hands.read_roster(p.run)
        if wrong:
            self.log.warning("the roster cannot be read; the workers are asked what they hold", reason=wrong)
        self.ledger = Ledger(limits(self.gpu), roster)
        self.memory = Memory()
        self.plan: Plan | None = None
        self.notes = show.Notes(simulated=kind == "simulated", pins=hands.read_pins(p.run))
        self.notes.moved_s = dict.fromkeys(self.ledger.rows, now)  # a burst's time begins anew
        self.orders = o.Orders()
        self.processes = hands.Processes(p.run)
        self.socket = wire.router(wire.ipc(p.settings, "arbiter"))
        self.feed = wire.Requester(wire.ipc(p.settings, "append"))
        self.inbox = Inbox(p.log)
        self._routes: dict[Incarnation, wire.Frames] = {}  # where its last Status came from
        self._todo: deque[Effect] = deque()
        self._changes: list[Changed] = []
        self._blocked_until = -inf  # an effect failed: it and all after it wait
        self._blocked = ""
        self._refused: set[tuple[Incarnation, int]] = set()
        self._troubles = self._unnamed = ""
        self._published_at, self._news = -inf, True
        self.carry(self.ledger.start(now), now)

    def run(self) -> None:
        rows = len(self.ledger.rows)
        self.log.info("serving", device="simulated" if self.notes.simulated else "cuda", rows=rows, epoch=self.ledger.n)
        order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if order != "PCI_BUS_ID" and not self.notes.simulated:
            self.log.warning("CUDA_DEVICE_ORDER is not followed: gpu.index counts cards by bus, as nvidia-smi does")
        try:
            while not self.p.stopping:
                self.turn(time.monotonic())
        finally:
            self.helper.close()

    def turn(self, now: float) -> None:
        wake = min(self.ledger.wake_at(), self.helper.wake_at(), self._published_at + SAY_EVERY_S)
        wake = min(wake, self.plan.wake_at_s if self.plan else inf)
        wake = min(wake, self._published_at + PUBLISH_APART_S) if self._news else wake
        wake = max(wake, self._blocked_until)
        fds = [*self.processes.fds, *([self.helper.fd] if self.helper.fd >= 0 else [])]
        # A signal is seen within 250 ms. Rounded up: to wake just before the time would be to wake for nothing.
        ready = wire.poller(self.socket, *fds).poll(ceil(1000 * min(0.25, max(0.0, wake - now))))
        now = time.monotonic()
        for fd in {r[0] for r in ready} & set(self.processes.fds):
            self._died(self.processes.fds[fd], now)
        self._listen(now)
        self._measured(self.helper.turn(now), now)
        self.carry([] if self._blocked else self.ledger.tick(now), now)
        self._decide(now)
        if now >= self._published_at + (PUBLISH_APART_S if self._news else SAY_EVERY_S):
            self._publish(now)

    # What comes in

    def _listen(self, now: float) -> None:
        for _ in range(MESSAGES):  # a flood must not keep us from deadlines
            frames = wire.receive(self.socket)
            if frames is None:
                return
            request = self.inbox.read(frames[-1])
            if isinstance(request, m.Status):
                self._heard(request, frames[:-1], now)
                self._decide(now)  # at once: others may wait for what it gave back
            elif len(frames) > 1:
                answer = request if isinstance(request, m.Refused) else self.orders.answer(self, request, now)
                wire.send(self.socket, [*frames[:-1], m.encode(answer)])

    def _heard(self, s: m.Status, route: wire.Frames, now: float) -> None:
        who = s.incarnation
        row = self.ledger.rows.get(who)
        old = row.status if row else None
        self._routes[who] = route
        if s.wants.bytes:
            self.notes.wanted_s.setdefault(who, now)
        else:
            self.notes.wanted_s.pop(who, None)
        if old is None or (old.residency, old.wants.bytes, old.complaint) != (s.residency, s.wants.bytes, s.complaint):
            self._news = True
        if s.complaint and (old is None or old.complaint != s.complaint):
            self.log.warning("complains", worker=who.worker, complaint=s.complaint[:300])
        if old is not None and s.residency == "resident" != old.residency:
            took = {"reload_s": round(s.reload_s, 3), "gb_s": round(s.reload_gb_s, 2)}
            self.log.info("resident", worker=who.worker, epoch=s.acted, **took)
        self.carry(self.ledger.heard(s, now), now)

    def _died(self, who: Incarnation, now: float) -> None:
        self.processes.forget(who)
        self.carry(self.ledger.died(who, now), now)

    def _measured(self, answers: list[Answer], now: float) -> None:
        for a in answers:
            by_pid = self._named(a)
            self._unnamed = "" if by_pid is not None else UNNAMED
            self.notes.device, self.notes.used_bytes = a.device, a.used_bytes
            before = (self.ledger.total_bytes, self.ledger.foreign_bytes)
            fields = {f: getattr(a, f) for f in Measured.__struct_fields__} | {"by_pid": by_pid}
            self.carry(self.ledger.measured(Measured(**fields)), now)
            if before != (self.ledger.total_bytes, self.ledger.foreign_bytes):
                self._news = True
                cap, foreign = show.cap(self.ledger, self.gpu), self.ledger.foreign_bytes
                self.log.info("measured", device=a.device, cap_mib=cap >> 20, foreign_mib=foreign >> 20)
        self.notes.trouble = "; ".join(t for t in (self._blocked, self.helper.trouble, self._unnamed) if t)
        if self.notes.trouble != self._troubles:
            self._troubles, self._news = self.notes.trouble, True
            if self._troubles:
                self.log.warning("trouble", reason=self._troubles)
            else:
                self.log.info("no trouble any more")

    def _named(self, a: Answer) -> dict[int, int] | None:
        """None also once a worker that surely held memory was not among them: its pid is another one over there.

        Until all that surely hold some are: while none does, the list tells nothing of this.
        """
        if a.by_pid is None or self.notes.simulated:
            return a.by_pid
        rows = [r for r in self.ledger.rows.values() if r.settled < a.number and r.status and r.status.held_bytes]
        if rows:
            self.notes.unnamed = any(r.incarnation.pid not in a.by_pid for r in rows)
        return None if self.notes.unnamed else a.by_pid

    # What is decided

    def _decide(self, now: float) -> None:
        if self.ledger.total_bytes is None or self._blocked:
            return
        for _ in range(2):  # the second look finds the reasons of those who still wait
            view = show.view(self.ledger, self.notes, self.memory, self.gpu)
            plan = decide(view, self.gpu, now)
            old = self.plan
            self._news |= old is None or (plan.phase, plan.waits.keys()) != (old.phase, old.waits.keys())
            self.plan, self.memory = plan, plan.memory
            n = self.ledger.n
            for who, reason in plan.revoke:
                self.carry(self.ledger.revoke(who, now, reason), now)
            if plan.grant:
                who, size, hold_s = plan.grant
                if why := self.ledger.why_not(who, size):
                    plan.waits[who] = why
                self.carry(self.ledger.grant(who, size, now, hold_s), now)
            self._say_refused(plan)
            if self.ledger.n == n:
                return

    def _say_refused(self, plan: Plan) -> None:
        rows = {who: self.ledger.rows[who] for who in plan.refused if who in self.ledger.rows}
        wants = {(who, r.status.wants.bytes) for who, r in rows.items() if r.status}
        for who, _ in wants - self._refused:
            self.log.warning("refused", worker=who.worker, reason=plan.waits[who])
        self._refused = {(who, size) for who, size in self._refused | wants if who in self.ledger.rows}

    # What goes out

    def carry(self, effects: list[Effect], now: float) -> None:
        """Carry effects out in their order. The first that fails is tried again later; the others wait behind it.

        Until then no deadline runs and nothing is decided: nobody would hear of it.
        """
        self._todo.extend(effects)
        while self._todo and now >= self._blocked_until:
            try:
                self._carry_out(self._todo[0], now)
            except OSError as e:
                self._blocked = f"the roster cannot be written, nothing is granted: {e}"
                self._blocked_until = now + RETRY_S
            else:
                self._todo.popleft()
                if self._blocked:
                    self._blocked, self._blocked_until = "", -inf
                    self.ledger.delayed(now)
        changes, self._changes = self._changes, []
        for change in changes:  # after the Leases: a worker waits for its own, nobody for a log line
            self._changed(change, now)

    def _carry_out(self, effect: Effect, now: float) -> None:
        match effect:
            case SaveRoster(roster):
                hands.write_roster(self.p.run, roster)
            case Send(lease):
                if route := self._routes.get(lease.incarnation):
                    wire.send(self.socket, [*route, m.encode(lease)])
            case Watch(who):
                if not self.processes.watch(who):
                    self._todo.extend(self.ledger.died(who, now))
            case Kill(who):
                self.log.warning("kill", worker=who.worker, pid=who.pid)
                if not self.processes.kill(who):
                    self._todo.extend(self.ledger.died(who, now))
            case Measure(number):
                self.helper.ask(number, now)
            case Changed():
                self._changes.append(effect)

    def _changed(self, c: Changed, now: float) -> None:
        who, row = c.incarnation, self.ledger.rows.get(c.incarnation)
        self._news = True
        self.notes.moved_s[who], self.notes.reasons[who] = now, c.reason
        took = {"offload_s": round(row.status.offload_s, 4)} if c.state is FREE and row and row.status else {}
        reason = {"reason": c.reason} if c.reason not in ("wanted", "proven") else {}
        self.log.info(str(c.state), worker=who.worker, epoch=c.epoch, mib=c.bytes >> 20, **took, **reason)
        if row is None:  # it is gone for good
            self.processes.forget(who)
            for kept in (self._routes, self.notes.moved_s, self.notes.wanted_s, self.notes.reasons):
                kept.pop(who, None)

    def state(self, now: float) -> m.GpuState:
        view = show.view(self.ledger, self.notes, self.memory, self.gpu)
        return show.state(self.ledger, self.notes, view, self.plan, self.gpu, now)

    def _publish(self, now: float) -> None:
        self.feed.tell(self.state(now))
        self._published_at, self._news = now, False
        self.notes.off_until_s = {k: t for k, t in self.notes.off_until_s.items() if t > now}


def main(p: process.Process) -> None:
    gc.freeze()  # what is imported stays: later collections need not look at it
    Arbiter(p).run()


if __name__ == "__main__":
    process.main("arbiter", main, process.arguments(__doc__ or ""))
