"""The RAM between the source thread and the writer thread: samples in order, and the holes between them.

The source offers, the writer looks, writes and only then releases: what is on its way to the disk is still here. When
there is no room a source that can wait waits; from one that cannot the newest audio is lost, as a hole with a reason.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from typing import NamedTuple

from common.backlog import BYTES
from common.messages import SAMPLE_RATE

RUN_BYTES = 1 << 20  # the writer is given at most about this much at once


class Patience(enum.Enum):
    """What a source does when there is no room."""

    ALWAYS = "a file waits for as long as it takes"
    WHILE_DISK_TAKES = "a pipe waits for a busy disk, never for a full one"
    NEVER = "a sound card does not wait"


class Run(NamedTuple):
    """Samples [start, end), or a hole there when `pcm` is empty."""

    start: int
    end: int
    pcm: bytes
    reason: str = ""


class Ring:
    """At most `capacity_s` of samples; two threads use it, and the main thread looks at `waiting_s`."""

    def __init__(self, capacity_s: int) -> None:
        self.capacity = capacity_s * SAMPLE_RATE * BYTES
        self.end = 0  # position after the newest sample or hole
        self.disk_full = False  # the writer says so
        self.lost = 0  # samples this process saw and could not keep
        self.closed = False
        self._runs: deque[Run] = deque()
        self._held = 0
        self._dropping = False
        self._changed = threading.Condition()

    @property
    def waiting_s(self) -> float:
        return self._held / BYTES / SAMPLE_RATE

    def begin(self, position: int) -> None:
        """The first sample offered will be `position`."""
        self.end = position

    def put(self, pcm: bytes, patience: Patience) -> bool:
        """Offer samples that follow `end`. False when closed. Dropped samples count as taken: they become a hole."""
        with self._changed:
            while self._held + len(pcm) > self.capacity and self._held and not self.closed:
                if patience is Patience.NEVER or (patience is Patience.WHILE_DISK_TAKES and self.disk_full):
                    self._dropping = True
                    break
                self._changed.wait(0.5)
            if self.closed:
                return False
            # Once audio is lost, wait for half the room: one long hole, not a thousand slivers of sound between holes.
            self._dropping = self._dropping and self._held > self.capacity // 2
            if self._dropping:
                self._hole(self.end + len(pcm) // BYTES, "disk full" if self.disk_full else "disk too slow")
                return True
            end = self.end + len(pcm) // BYTES
            self._runs.append(Run(self.end, end, pcm))
            self._held += len(pcm)
            self.end = end
            if self._held > self.capacity // 2:
                self._changed.notify_all()
            return True

    def jump(self, to: int, reason: str, lost: bool) -> None:
        """The samples up to `to` will never come."""
        with self._changed:
            if to > self.end and not self.closed:
                self._hole(to, reason, lost)

    def _hole(self, end: int, reason: str, lost: bool = True) -> None:
        self.lost += end - self.end if lost else 0
        start = self.end
        if self._runs and not self._runs[-1].pcm and self._runs[-1].reason == reason:
            start = self._runs.pop().start
        self._runs.append(Run(start, end, b"", reason))
        self.end = end

    def first(self) -> Run | None:
        """The oldest hole, or the oldest samples up to the next hole (bounded); they stay until released."""
        with self._changed:
            if not self._runs:
                return None
            head = self._runs[0]
            if not head.pcm:
                return head
            parts, size, end = [], 0, head.start
            for run in self._runs:
                if not run.pcm or size >= RUN_BYTES:
                    break
                parts.append(run.pcm)
                size += len(run.pcm)
                end = run.end
            return Run(head.start, end, b"".join(parts))

    def release(self, upto: int) -> None:
        """Everything before `upto` is written."""
        with self._changed:
            while self._runs and self._runs[0].end <= upto:
                self._held -= len(self._runs.popleft().pcm)
            if self._runs and self._runs[0].start < upto:  # a full disk took a part
                start, end, pcm, reason = self._runs.popleft()
                rest = pcm[(upto - start) * BYTES :]
                self._held -= len(pcm) - len(rest)
                self._runs.appendleft(Run(upto, end, rest, reason))
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will be offered."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """The writer's pause: until the time is over, the ring is half full, or closed. All of it on a full disk."""
        with self._changed:
            full = self.disk_full
            self._changed.wait_for(lambda: not full and (self.closed or self._held > self.capacity // 2), timeout_s)
