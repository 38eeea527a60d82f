"""The loop of every GPU worker: load, calibrate, then look, step and append for ever, under the lease it is given.

Two threads. The work thread (this file) carries leases out between two steps (`tenancy`), asks the worker for its next
bounded piece, and appends what comes out with compare-and-set, so that after a kill it goes on exactly where the
journal stands. The control thread (`control`) says how it goes, to feed and arbiter, also while a step runs for long.
Without a lease the worker keeps its place and says how far behind it is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Generator, Iterator
from importlib.metadata import version
from math import inf
from typing import Any, TypeVar

from common import messages as m
from common import wire
from common.feed_client import Appender
from common.process import Process, start_time
from workers.calibration import Calibration, Calibrations, key
from workers.control import Control
from workers.lease import Holder, Place
from workers.poison import Poison
from workers.steps import Step, Worker
from workers.tenancy import FIRST_WORKING_BYTES, Tenant, close

ANSWER_S = 1.0  # for the feed, before leases are looked at: one that is revoked has two seconds at least
JOT_ANSWER_S = 0.25  # for the feed in the middle of a step
LOOK_EVERY_S = 0.5  # for new work, should a doorbell be lost
SLACK_BYTES = 32 * 2**20  # beside what was measured: rounding of allocators
T = TypeVar("T")


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Of garbage: there is none while libraries are imported, and looking for it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class AppendRefused(Exception):
    """The feed will never take this append as it is."""


class Runner:
    """One worker process."""

    def __init__(self, process: Process, worker: Worker) -> None:
        self.process, self.worker, self.log = process, worker, process.log
        self.settings = process.settings
        self.phase = "loading"
        self.poison = Poison(process.run, worker.name)
        self.tenant: Tenant | None = None
        self._appender = Appender(self.settings, worker.name)
        self._parts: dict[str, Appender] = {}  # further producers of the same worker
        me = m.Incarnation(
            worker=worker.name, pid=os.getpid(), started_ticks=start_time(os.getpid()), nonce=os.urandom(8).hex()
        )
        self.holder = Holder(me)
        self.control = Control(self)
        self._next_look = 0.0
        self.calibrating = False
        self._calibrations = Calibrations(self.settings.data / "calibration.json")

    def run(self) -> None:
        self.control.start()
        try:
            self._work()
        finally:
            # Left alone it would be torn down with the interpreter, inside a library: that aborts the process.
            self.process.stopping = True
            self.control.end()

    def _work(self) -> None:
        self.tenant = self._load()
        self._want()
        self.worker.prepare()
        while not self.process.stopping:
            if not self.control.alive:
                raise RuntimeError("the control thread has ended")
            self.edge()
            now = time.monotonic()
            if now >= self._next_look:
                self._next_look = now + LOOK_EVERY_S
                self.worker.look(self, now)
            self._want()
            if self.calibrating and self.tenant.ready:
                self._calibrate()
            elif self.worker.turn(self):
                self.control.changed()  # how late we are, and where
            else:
                self.phase = "idle" if self.ready or not self.worker.needs_model() else "waiting for the GPU"
                self._want()
                self._wait()

    def _wait(self) -> None:
        """For work, a lease, or until it is time to look."""
        sockets = self.worker.sockets()
        left_s = max(0.0, self._next_look - time.monotonic())
        ready = wire.poller(*sockets, self.control.heard_fd).poll(int(left_s * 1000) + 1)
        self.control.clear_heard()
        if any(s in sockets for s, _ in ready):
            self._next_look = 0.0

    def _load(self) -> Tenant:
        """The model in RAM, offloaded, and what it needs of the device as far as that is known."""
        started = time.monotonic()
        with self.process.nothing_to_lose(), without_collections():
            modules = self.worker.load(self.process)
            # Not before: torch is set up by `load`, and must not be imported by anything else first.
            from workers.residency import Residency, open_device

            device = open_device(self.settings, self.process.run, self.worker.name)
            residency = Residency(device, modules)
        tenant = Tenant(self.holder, device, residency, self.log, self.control.changed)
        self.holder.place = Place(residency="offloaded")
        known = self._calibrations.get(self._key(device))
        tenant.need_bytes = residency.weights_bytes * 5 // 4 + FIRST_WORKING_BYTES
        tenant.least_bytes = residency.weights_bytes + self.worker.least_working_bytes() + SLACK_BYTES
        self.calibrating = known is None
        if known:
            self._measured(tenant, known.weights_bytes, known.working_bytes)
            tenant.pieces.add(known.step_s)
            tenant.offloads.add(known.offload_s)
        self.log.info(
            "model loaded",
            seconds=round(time.monotonic() - started, 2),
            weights_mib=residency.weights_bytes >> 20,
            need_mib=tenant.need_bytes >> 20,
            device=device.name,
        )
        return tenant

    def _measured(self, tenant: Tenant, weights: int, working: int) -> None:
        """What to want from now on, and the least: with the smallest steps, should the rest never be free.

        What the largest step took beyond its formula, the smallest takes beyond its own.
        """
        beyond = max(0, working - self.worker.working_bytes())
        least = min(working, self.worker.least_working_bytes() + beyond)
        tenant.need_bytes, tenant.least_bytes = weights + working + SLACK_BYTES, weights + least + SLACK_BYTES
        tenant.measured = True

    # What the worker may use

    @property
    def ready(self) -> bool:
        """The model is on the device and may be used until the step's end."""
        return self.tenant is not None and self.tenant.ready and not self.calibrating

    def carry(self, pieces: Iterator[None], working_bytes: int) -> bool:
        """Run a step piece by piece. False: the GPU had to be given back first, or was too small; nothing has moved."""
        assert self.tenant
        before = self.holder.ooms
        done = self.tenant.run(self._until_stopped(pieces), working_bytes)
        if self.holder.ooms > before:
            self.worker.too_large()
        return done and not self.process.stopping

    def step(self, work: Generator[None, None, T], working_bytes: int | None = None) -> T | None:
        """Run a step that comes to a result; None as for `carry`. `working_bytes` None: as its largest one needs."""
        out: list[T] = []

        def pieces() -> Iterator[None]:
            out.append((yield from work))

        self.carry(pieces(), self.worker.working_bytes() if working_bytes is None else working_bytes)
        return out[0] if out else None

    def _until_stopped(self, pieces: Iterator[None]) -> Iterator[None]:
        """Closing this one closes `pieces`, which others refer to: what they have on the device must go now."""
        try:
            for _ in pieces:
                yield
                if self.process.stopping:
                    return
        finally:
            close(pieces)

    def commit(self, stream: str, expect_n: int, step: Step | None, part: str = "") -> m.At | None:
        """Append until answered: a resend after a time-out is harmless. None: we are told to stop.

        `step` None asks for the place. `part`: as the producer `worker.part`, with a place of its own. Meanwhile leases
        are obeyed: no step is under way.
        """
        self.phase = "appending"
        said = False
        appender = self._appender_of(part)
        while not self.process.stopping:
            try:
                answer = appender.append(
                    stream,
                    expect_n,
                    step.positions if step else {},
                    step.events if step else (),
                    step.state if step else None,
                    timeout_s=ANSWER_S,
                )
            except wire.Unreachable:
                if not said:
                    self.log.warning("feed does not answer; the audio waits in the backlog", stream=stream)
                    said = True
                self.edge()
                continue
            if isinstance(answer, m.At):
                if said:
                    self.log.info("feed answers again", stream=stream)
                return answer
            if not answer.retry_after_s:
                self.poison.failed()  # the same step would be refused again
                raise AppendRefused(f"{stream}: {answer.reason}")
            if not said:
                self.log.warning("feed refuses for now", reason=answer.reason)
                said = True
            self.edge()
            time.sleep(min(answer.retry_after_s, 1.0))
        return None

    def _appender_of(self, part: str) -> Appender:
        if part and part not in self._parts:
            self._parts[part] = Appender(self.settings, f"{self.worker.name}.{part}")
        return self._parts[part] if part else self._appender

    def jot(self, stream: str, expect_n: int, step: Step) -> m.At | None:
        """One append between two pieces of a step, which hardly waits, for the GPU waits with it. None: no answer."""
        try:
            answer = self._appender.append(
                stream, expect_n, step.positions, step.events, step.state, timeout_s=JOT_ANSWER_S
            )
        except wire.Unreachable:
            return None
        return answer if isinstance(answer, m.At) else None

    def tell(self, message: m.Hypothesis) -> None:
        """To the feed, without waiting or an answer. (No append is outstanding: this thread waits for each.)"""
        self._appender.tell(message)

    # The lease

    @property
    def hold_s(self) -> float:
        """How long the lease in force lets it work; inf: until it is revoked."""
        lease = self.holder.place.lease
        return lease.max_hold_s if lease and lease.max_hold_s else inf

    @property
    def reload_s(self) -> float:
        return self.tenant.reload_s if self.tenant else 0.0

    @property
    def piece_s(self) -> float:
        """The longest piece so far, or of the calibration."""
        return self.tenant.pieces.longest() if self.tenant else 0.0

    def edge(self) -> None:
        """Leases are obeyed here: no step is under way, and no place in the audio is to blame should a load crash."""
        if self.tenant:
            due = self.holder.due()
            if due and due.granted:
                self.poison.rest()
            self.tenant.edge()

    def _want(self) -> None:
        """Live workers want the model always, burst workers when there is something to do."""
        assert self.tenant
        self.tenant.want(self.worker.lane if self.worker.lane == "live" or self.worker.needs_model() else "")

    def _key(self, device: Any) -> str:
        return key(worker=self.worker.key(), device=device.name, driver=device.driver, torch=version("torch"))

    def _calibrate(self) -> None:
        """One full round of reload, the largest step, offload; what it measured is kept for the next start."""
        tenant = self.tenant
        assert tenant
        self.phase = "calibrating"
        self.poison.rest()
        if not self.carry(self.worker.rehearse(), self.worker.working_bytes()):
            return  # revoked, or too small: again under the next lease
        step_s = tenant.pieces.longest()
        weights = tenant.residency.weights_bytes
        working = max(0, tenant.device.peak_bytes - weights)
        need = weights + working + SLACK_BYTES
        if self.worker.lane == "burst" and self.holder.place.lease_bytes >= need:
            tenant.bounce()  # it is there because something is to be done: it stays for that
        else:
            tenant.give_up("calibrated")  # resizing is revoke and grant
        found = Calibration(
            weights_bytes=weights,
            working_bytes=working,
            reload_s=tenant.reload_s,
            reload_gb_s=tenant.reload_gb_s,
            offload_s=tenant.offloads.last,
            step_s=step_s,
            residue_bytes=tenant.device.residue_bytes,
        )
        with contextlib.suppress(OSError):  # disk full: the next start measures again
            self._calibrations.put(self._key(tenant.device), found)
        self._measured(tenant, weights, working)
        tenant.residency.trim()
        self.calibrating = False
        ms = {"reload_ms": round(tenant.reload_s * 1000, 1), "step_ms": round(step_s * 1000)}
        self.log.info("calibrated", working_mib=working >> 20, **ms)
        self._want()
