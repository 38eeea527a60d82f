"""The work thread's end of the lease: carries grants and revocations out between two steps, and runs steps under one.

In: what `lease.Holder` says is due. Out: weights on the device or off it, and the Holder's word that it is so. Without
an arbiter it carries on with what it has. Running out of memory offloads everything and moves no position.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from common.messages import Lease, Want
from common.process import Log
from workers.lease import NOTHING, Holder

FIRST_WORKING_BYTES = 512 * 2**20  # beside the weights, until it has been measured
KEPT = 200  # durations, for percentiles
_OVER = object()


class NotCarriedOut(RuntimeError):
    """A lease could not be carried out: the step under way is not to blame, and the process must end."""


def close(pieces: Iterator[None] | None) -> None:
    """End a generator where it stands; other iterators have nothing to end."""
    end = getattr(pieces, "close", None)
    if end:
        end()


class Durations:
    """The last KEPT durations of one kind of thing, in seconds."""

    def __init__(self) -> None:
        self._all: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        self._all.append(seconds)

    @property
    def last(self) -> float:
        return self._all[-1] if self._all else 0.0

    def longest(self) -> float:
        return max(self._all, default=0.0)

    def p99(self) -> float:
        """0 while there is none."""
        return sorted(self._all)[int(len(self._all) * 0.99)] if self._all else 0.0


class Tenant:
    """One worker's weights and the lease they live under. `device` and `residency` are those of `workers.residency`."""

    def __init__(
        self, holder: Holder, device: Any, residency: Any, log: Log, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.holder, self.device, self.residency, self.log = holder, device, residency, log
        self.changed = changed  # called on the work thread whenever a Status would say something new
        self.need_bytes = self.least_bytes = 0  # what to want, and what would do
        self.measured = False  # they are no guess
        self.stepped_at_s = 0.0
        self.pieces, self.offloads = Durations(), Durations()
        self.reload_s = self.reload_gb_s = self.revoke_s = 0.0
        self.heard_at_s = 0.0  # when the control thread accepted the newest lease

    @property
    def ready(self) -> bool:
        """The model is on the device, under a lease, and need not leave."""
        return bool(self.residency.resident) and self.holder.due() is None

    def want(self, lane: str) -> None:
        """Want the model on the device from now on; empty `lane`: no longer."""
        before, now = self.holder.want, time.monotonic()
        after = NOTHING
        if lane:
            size, least = self.need_bytes, self.least_bytes
            since_s = before.since_s if before.bytes else now
            after = Want(bytes=size, least_bytes=least, lane=lane, since_s=since_s, measured=self.measured)
        if after != before:
            self.holder.want = after
            self.changed()

    def edge(self, under_way: Iterator[None] | None = None) -> bool:
        """Between two steps: carry out the newest lease; leave when it was held for long enough.

        Who leaves closes the step that is `under_way` first, for what that has on the device must not outlive the
        weights. False: so it was, whether or not another lease has brought the weights back since.
        """
        stayed = True
        while (lease := self.holder.due()) is not None:
            if lease.granted:
                self._load(lease)
                if self.holder.due() is lease:
                    raise RuntimeError("a lease that was carried out is still due")
            else:
                stayed = False
                close(under_way)
                self._leave(lease)
        if self.residency.resident and self.holder.held_long_enough(time.monotonic()):
            stayed = False
            close(under_way)
            self.give_up("max_hold is over")
        return stayed

    def run(self, pieces: Iterator[None], working_bytes: int) -> bool:
        """Step by step until the end of `pieces`, or until the GPU must be given back: False, `pieces` is closed then.

        What a piece raises is passed on, lack of memory excepted.
        """
        try:
            while True:
                try:
                    stayed = self.edge(pieces)
                except Exception as e:
                    raise NotCarriedOut(str(e)) from e
                if not stayed or not self.residency.resident:
                    return False
                began, too_small = time.monotonic(), ""
                try:
                    with self.device.working(working_bytes):
                        self._holds()
                        over = next(pieces, _OVER) is _OVER
                except MemoryError as e:  # both devices' OutOfMemory is one
                    too_small = str(e) or "out of memory"
                finally:
                    self._holds()
                if too_small:  # out here, for an exception under way keeps the tensors of its frames alive
                    close(pieces)
                    self._out_of_memory(too_small)
                    return False
                self.stepped_at_s = time.monotonic()
                self.pieces.add(self.stepped_at_s - began)
                if over:
                    self.holder.stepped()  # not before: its next piece may be the one that does not fit
                    return True
        finally:
            close(pieces)

    def give_up(self, why: str) -> None:
        """Leave unasked; the lease counts as carried out and waits to be revoked."""
        self._offload()
        self.holder.gave_up()
        self.log.info("offloaded unasked", why=why, offload_ms=round(self.offloads.last * 1000, 1))
        self.changed()

    def bounce(self) -> None:
        """Offload and reload under the same lease, for the figures."""
        self._offload(keep_limit=True)
        try:
            self.residency.reload()
        except MemoryError as e:
            self._out_of_memory(str(e))

    # How it happens

    def _holds(self) -> None:
        if self.holder.place.residency == "resident":
            self.holder.holds(self.device.held_bytes)

    def _load(self, lease: Lease) -> None:
        if self.residency.resident:  # confirms what is there
            self.device.limit(lease.bytes)
            self.holder.loaded(lease, self.device.held_bytes, time.monotonic())
            self.changed()
            return
        began = time.monotonic()
        self.device.limit(lease.bytes)
        self.holder.loading(lease, 0)
        self.changed()

        def moved(_: int) -> None:
            self.stepped_at_s = time.monotonic()  # each copy is progress

        try:
            move = self.residency.reload(lambda: self.holder.due() is not lease, moved)
        except MemoryError as e:
            self._out_of_memory(str(e))
            return
        if move is None:  # a newer lease came between two copies: it is carried out next, and nothing is held
            self.device.limit(0)
            self.holder.holds(0)
            return
        now = time.monotonic()
        self.reload_s, self.reload_gb_s = now - began, move.gb_per_s
        self.pieces.add(self.residency.longest_piece_s)
        self.stepped_at_s = now
        self.holder.loaded(lease, self.device.held_bytes, now)
        self.log.info(
            "granted",
            epoch=lease.epoch,
            mib=lease.bytes >> 20,
            reload_ms=round(self.reload_s * 1000, 1),
            gb_s=round(move.gb_per_s, 2),
        )
        self.changed()

    def _leave(self, lease: Lease) -> None:
        had = self.residency.resident

        def freed() -> None:
            """The proof can go out: the next one need not wait until our places have their stand-ins."""
            self.holder.offloaded(lease)
            self.revoke_s = time.monotonic() - self.heard_at_s if self.heard_at_s else 0.0
            self.changed()

        self._offload(freed)
        if had:
            ms = {"offload_ms": round(self.offloads.last * 1000, 1), "revoke_ms": round(self.revoke_s * 1000, 1)}
            self.log.info("revoked", epoch=lease.epoch, **ms)

    def _offload(self, freed: Callable[[], None] = lambda: None, keep_limit: bool = False) -> None:
        began, had = time.monotonic(), self.residency.resident

        def gone() -> None:
            if had:
                self.offloads.add(time.monotonic() - began)
            if not keep_limit:
                self.device.limit(0)
            freed()

        if had:
            self.residency.offload(gone)
        else:
            gone()

    def _out_of_memory(self, error: str) -> None:
        peak = int(self.device.peak_bytes)
        self._offload()
        self.holder.out_of_memory(max(peak, self.residency.weights_bytes), time.monotonic())
        self.need_bytes, self.least_bytes = self.holder.want.bytes, self.holder.want.least_bytes
        if self.holder.ooms in (1, 3) or self.holder.ooms % 10 == 0:
            self.log.warning(
                "out of GPU memory; offloaded, tried again later with more",
                times=self.holder.ooms,
                want_mib=self.need_bytes >> 20,
                error=error[:200],
            )
        self.changed()

    def status(self) -> dict[str, Any]:
        """Its fields of a Status; for the control thread."""
        return {
            "peak_bytes": int(self.device.peak_bytes),
            "residue_bytes": int(self.device.residue_bytes),
            "stepped_at_s": self.stepped_at_s,
            "step_p99_s": self.pieces.p99(),
            "offload_p99_s": self.offloads.p99(),
            "weights_bytes": int(self.residency.weights_bytes),
            "reload_s": self.reload_s,
            "reload_gb_s": self.reload_gb_s,
            "offload_s": self.offloads.last,
            "revoke_s": self.revoke_s,
            "complaint": self.complaint,
        }

    @property
    def complaint(self) -> str:
        if not self.holder.complains:
            return ""
        return f"out of GPU memory {self.holder.ooms} times in a row; wants {self.need_bytes >> 20} MiB next"
