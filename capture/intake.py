"""Where a source puts its samples: they get their numbers here, and holes are measured by the clock.

Used by the source thread only. A hole's length comes from CLOCK_BOOTTIME (it counts while the machine sleeps); the wall
clock stands in only across a reboot. Anchors tell later which sample was heard when.
"""

from __future__ import annotations

import threading
import time

from capture.ring import Patience, Ring
from common.backlog import BYTES, Anchor, boot_id
from common.messages import SAMPLE_RATE

ANCHOR_EVERY_NS = 60 * 10**9
DRIFT_NS = 10**9  # a source that falls this far behind or ahead of the last anchor gets a new one


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def samples(ns: int) -> int:
    return ns * SAMPLE_RATE // 10**9


def elapsed_ns(anchor: Anchor, now: Anchor) -> int:
    """Time since an anchor: by the boot clock within one boot, by the wall clock across; never negative."""
    if anchor.boot_id == now.boot_id:
        return max(0, now.boot_ns - anchor.boot_ns)
    return max(0, now.wall_ns - anchor.wall_ns)


class Intake:
    """The source's side of the ring."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.anchor: Anchor | None = None  # due for the disk; the writer takes it once its sample is written
        self.started_ns = 0  # wall clock of the first sample put here
        self.state, self.detail = "ok", ""
        # A file can be read again, so its numbers follow its samples; else they follow the clock. Known once the source
        # is open, before its first sample.
        self.resumable = False
        self._boot_id = boot_id()
        self._last: Anchor | None = None
        self._heard = (0, 0)  # (position, boot clock) when the last sample came
        self._jump = ""
        self._least = 0  # samples that the jump has, whatever the clock says
        self._stop = threading.Event()

    @property
    def position(self) -> int:
        return self.ring.end

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self.ring.closed

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Pause; True when it is time to stop."""
        return self._stop.wait(seconds) or self.ring.closed

    def resume(self, position: int, anchor: Anchor | None) -> None:
        """Go on at `position`. With an anchor the time since then is a hole, measured when the first samples come."""
        self.ring.begin(position)
        if anchor:
            now = self._now(position)
            self._heard = (anchor.sample, now.boot_ns - elapsed_ns(anchor, now))
            self._jump = "capture was down"

    def away(self, reason: str, at_least: int = 0) -> None:
        """The source stopped giving samples; when it gives some again, the time between is a hole.

        `at_least`: what comes is not what would have followed, even when the clock says that nothing is missing.
        """
        if self.started_ns:
            self._jump, self._least = self._jump or reason, at_least

    def lost(self, count: int, reason: str) -> None:
        """The device says that `count` samples before the next ones were lost."""
        self.ring.jump(self.ring.end + count, reason, lost=True)

    def put(self, pcm: bytes, patience: Patience) -> bool:
        """Samples that have just been heard, s16le mono 16 kHz. False: stop."""
        count = len(pcm) // BYTES
        if not count:
            return not self.stopping
        clock = boot_ns()
        if self._jump:
            position, heard_ns = self._heard
            by_clock = position + samples(clock - heard_ns) - count
            by_clock = max(by_clock, self.ring.end + self._least)
            self.ring.jump(by_clock, self._jump, lost=self._jump != "capture was down")
            self._jump, self._least = "", 0
        if not self.started_ns:
            # A microphone's samples were heard before they came; a file's were not.
            self.started_ns = time.time_ns() - (0 if self.resumable else count * 10**9 // SAMPLE_RATE)
        if not self.ring.put(pcm, patience):
            return False
        self._heard = (self.ring.end, clock)
        if self._anchor_due(clock):
            self._last = self.anchor = self._now(self.ring.end)
        return True

    def _anchor_due(self, clock: int) -> bool:
        if self._last is None:
            return True
        since = clock - self._last.boot_ns
        drift = abs(since - (self.ring.end - self._last.sample) * 10**9 // SAMPLE_RATE)
        return since >= ANCHOR_EVERY_NS or (not self.resumable and drift > DRIFT_NS and since >= DRIFT_NS)

    def _now(self, position: int) -> Anchor:
        return Anchor(sample=position, wall_ns=time.time_ns(), boot_ns=boot_ns(), boot_id=self._boot_id)
