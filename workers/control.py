"""The control thread of a GPU worker: hears Leases, says Status to the arbiter and WorkerStatus to the feed.

It never waits for the work thread, which may sit in one call of a library for seconds: what it tells is what the work
thread has published in single assignments. Level-triggered: everything is said each second, and at once on change.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from common import messages as m
from common import wire
from common.feed_client import Appender
from common.process import holder as name_holder

if TYPE_CHECKING:
    from workers.base import Runner

EVERY_S = 1.0
AGAIN_S = 0.1  # when the arbiter's socket does not take a Status
_lease = msgspec.msgpack.Decoder(m.Lease)


class Control:
    """See the module. `changed` and `clear_heard` are for the work thread, which polls `heard_fd`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._ended = False
        self._changed_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.heard_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._ended = True
        self.changed()
        self._thread.join(5.0)

    def changed(self) -> None:
        """A Status would say something new."""
        os.eventfd_write(self._changed_fd, 1)

    def clear_heard(self) -> None:
        _drain(self.heard_fd)

    def _run(self) -> None:
        feed = Appender(self.runner.settings, self.runner.worker.name)
        arbiter = wire.Requester(wire.ipc(self.runner.settings, "arbiter"))
        poller = wire.poller(arbiter.socket, self._changed_fd)
        next_status = next_tell = 0.0
        while not self._ended:
            now = time.monotonic()
            poller.poll(max(0, int((min(next_status, next_tell) - now) * 1000) + 1))
            changed = _drain(self._changed_fd)
            for _ in range(100):
                frames = wire.receive(arbiter.socket)
                if frames is None:
                    break
                self._hear(frames[-1])
            now = time.monotonic()
            if changed or now >= next_status:
                next_status = now + (EVERY_S if arbiter.tell(self._status(now)) else AGAIN_S)
            if now >= next_tell:
                next_tell = now + EVERY_S
                feed.tell(self._sign_of_life())

    def _hear(self, payload: bytes) -> None:
        try:
            lease = _lease.decode(payload)
        except m.UNDECODABLE:
            return  # an answer of another kind; the arbiter says in its log what it refuses
        if self.runner.holder.accept(lease):
            if self.runner.tenant:
                self.runner.tenant.heard_at_s = time.monotonic()
            os.eventfd_write(self.heard_fd, 1)

    def _status(self, now: float) -> m.Status:
        r, t = self.runner, self.runner.tenant
        figures = {} if t is None else t.status()
        if r.calibrating:  # its longest piece is not known yet: the arbiter must be patient
            figures["step_p99_s"] = 0.0
        least_s = r.worker.least_s()
        return r.holder.status(
            now,
            burst_min_s=least_s + r.reload_s if least_s else 0.0,
            note=r.worker.note()[:200],
            waiting=self._should_move(),
            lag_s=r.worker.late(),
            silence_s=r.worker.silence_s(),
            owes=r.worker.owes(),
            positions=r.worker.positions(),
            pieces=r.worker.pieces_done,
            **figures,
        )

    def _should_move(self) -> bool:
        """No progress now means that it hangs: a reload, of which each copy is progress, or a step."""
        r, t = self.runner, self.runner.tenant
        if r.holder.place.residency == "loading":
            return True
        return t is not None and t.residency.resident and r.phase != "appending" and r.worker.needs_model()

    def _sign_of_life(self) -> m.WorkerStatus:
        r = self.runner
        detail = r.worker.trouble()
        if not detail and r.tenant and not r.tenant.residency.resident and r.worker.needs_model():
            detail = r.tenant.complaint
            if name_holder(r.process.run, "arbiter") is None:
                detail = "it waits for the GPU, and the arbiter is not running"
        return m.WorkerStatus(
            worker=r.worker.name,
            pid=os.getpid(),
            phase=r.phase,
            lag_s=r.worker.lags(),
            detail=detail[:500],
            delays=r.worker.delay_figures(),
            delays_over_s=r.settings.viewer.delays_over_s,
            note=r.worker.note()[:200],
        )


def _drain(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd) > 0
    return False
