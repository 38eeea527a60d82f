"""A stand-in for a GPU worker: no model, but real leases, and granules of the simulated card that it really holds.

`python -m tests.standin_gpu_worker NAME --config F`. What it wants and does wrong stands in DATA/gpu-NAME (`Script` as
JSON, read all the time). It has the real worker's end of the lease, `workers.lease.Holder`; a "reload" takes granules.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import msgspec

from common import messages as m
from common import wire
from common.card import MIB, CardFull, SimulatedCard
from common.process import Process, arguments, main, start_time
from workers.lease import NOTHING, Holder

TURN_MS = 5


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What the test wants of it."""

    want_mib: int = 0
    lane: str = "live"
    works_s: float = 0.0  # wants nothing any more after so long on the GPU, and says "done"; 0: for ever
    reload_s: float = 0.0
    offload_s: float = 0.0
    deaf: bool = False  # hears Leases and reports, but its work thread carries none out
    mute: bool = False  # sends no Status
    ooms: int = 0  # so many reloads find no memory
    lag_s: float = 0.0
    silence_s: float = 10.0
    waiting: bool = False
    step_p99_s: float = 0.0
    since_s: float = 0.0


class Worker:
    """One turn every few milliseconds: control thread and work thread in one."""

    def __init__(self, p: Process) -> None:
        self.p = p
        nonce = os.urandom(8).hex()
        me = m.Incarnation(worker=p.name, pid=os.getpid(), started_ticks=start_time(os.getpid()), nonce=nonce)
        self.holder = Holder(me)
        self.holder.place = msgspec.structs.replace(self.holder.place, residency="offloaded")
        self.card = SimulatedCard(p.run, p.settings)
        self.runs: list[tuple[int, int]] = []
        self.peak = 0
        self.socket = wire.Requester(wire.ipc(p.settings, "arbiter"))
        self.script, self.script_of, self.read_at = Script(), (0, 0), 0.0
        self.ooms = 0
        self.resident_at = self.reload_s = self.offload_s = 0.0
        self.sent: tuple[object, ...] = ()
        self.sent_at = 0.0

    def turn(self) -> None:
        now = time.monotonic()
        self.read()
        if not self.script.deaf:
            self.work(now)
        self.tell(now)
        self.socket.socket.poll(TURN_MS)
        while (frames := wire.receive(self.socket.socket)) is not None:
            self.holder.accept(msgspec.msgpack.decode(frames[-1], type=m.Lease))

    def read(self) -> None:
        path = self.p.settings.data / f"gpu-{self.p.name}"
        try:
            file = path.stat()
        except FileNotFoundError:
            return
        if self.script_of != (of := (file.st_ino, file.st_mtime_ns)):  # two of one tick of the clock have one time
            self.script_of, self.script = of, msgspec.json.decode(path.read_bytes(), type=Script)
            self.read_at = time.monotonic()
            since = self.script.since_s or self.read_at
            self.holder.want = m.Want(bytes=self.script.want_mib * MIB, lane=self.script.lane, since_s=since)
            self.ooms = self.script.ooms

    def work(self, now: float) -> None:
        h = self.holder
        due = h.due()
        if due is not None and not due.granted:
            time.sleep(self.script.offload_s)
            self.free()
            h.offloaded(due)
            self.offload_s = time.monotonic() - now
            self.p.log.info("offloaded", epoch=due.epoch)
        elif due is not None:
            self.load(due, now)
        elif h.place.residency == "resident":
            done = 0 < self.script.works_s <= now - max(self.resident_at, self.read_at)
            if done and h.want != NOTHING:
                h.want = NOTHING
                self.p.log.info("done")
            if h.held_long_enough(now):
                self.free()
                h.gave_up()
                self.p.log.info("gave up")

    def load(self, lease: m.Lease, now: float) -> None:
        h = self.holder
        h.loading(lease, h.place.held_bytes)
        time.sleep(self.script.reload_s)
        self.free()
        try:
            if self.ooms:
                self.ooms -= 1
                raise CardFull("the stand-in was told to find no memory")
            self.runs = self.card.take(lease.bytes)
        except CardFull as e:
            self.p.log.warning("out of memory", reason=str(e))
            h.out_of_memory(self.peak, now)
            return
        self.peak = max(self.peak, self.card.held_bytes)
        h.loaded(lease, self.card.held_bytes, time.monotonic())
        self.resident_at = time.monotonic()
        self.reload_s = max(1e-6, self.resident_at - now)
        self.p.log.info("resident", epoch=lease.epoch, mib=self.card.held_bytes // MIB)

    def free(self) -> None:
        self.card.give(self.runs)
        self.runs = []

    def tell(self, now: float) -> None:
        if self.script.mute:
            return
        status = self.holder.status(
            now,
            peak_bytes=self.peak,
            lag_s=self.script.lag_s,
            silence_s=self.script.silence_s,
            waiting=self.script.waiting,
            step_p99_s=self.script.step_p99_s,
            reload_s=self.reload_s,
            reload_gb_s=self.peak / self.reload_s / 1e9 if self.reload_s else 0.0,
            offload_s=self.offload_s,
        )
        news = (self.holder.place, self.holder.pending, status.wants, self.script)
        if (news != self.sent or now - self.sent_at >= 0.3) and self.socket.tell(status):
            self.sent, self.sent_at = news, now


def run(p: Process) -> None:
    worker = Worker(p)
    while not p.stopping:
        worker.turn()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = sys.argv.pop(1)
    main(name, run, arguments(__doc__ or ""))
