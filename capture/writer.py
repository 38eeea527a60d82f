"""The writer thread: from the ring to the disk every `sync_interval_ms`, each time down to the platter.

A full disk stops nothing: whatever did not fit (samples, holes, anchors, meta.json) is tried again until it does, and
the samples wait in the ring meanwhile. Nothing else writes the stream.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable

from capture.intake import Intake
from capture.ring import Ring
from capture.streams import NO_SPACE, Stream
from common import backlog
from common.process import Log


class StreamRemoved(Exception):
    """The stream's folder was deleted (purged) while it was written; or all are `away`, as their disk is."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.name)
        self.away = stream.away


class WriterThread(threading.Thread):
    """Runs until the ring is closed and empty. `wake` is called after each turn that changed something."""

    def __init__(self, ring: Ring, intake: Intake, interval_s: float, wake: Callable[[], None], log: Log) -> None:
        super().__init__(name="writer", daemon=True)
        self.ring, self.intake, self.interval_s, self.wake, self.log = ring, intake, interval_s, wake, log
        self.stream: Stream | None = None  # given by the source thread before its first sample
        self.end_reason = ""  # set before the ring is closed when the stream ends there
        self.give_up = False  # stopping with a full disk: do not wait for space any longer
        self.end = 0
        self.detail = ""
        self.done = False  # all is written
        self.finished = False  # with or without an error
        self.error: BaseException | None = None
        self._backlog: backlog.Writer | None = None
        self._full_since = 0.0

    def run(self) -> None:
        try:
            while not self._turn():
                self.ring.wait(self.interval_s)
        except BaseException as e:
            self.error = e
            self.ring.close()  # nobody takes samples any more: the source must not wait
        finally:
            self.finished = True
            self.wake()

    def _turn(self) -> bool:
        """One look at the ring; True when everything is written and the ring is closed."""
        closed, reason = self.ring.closed, self.end_reason
        try:
            changed = self._write()
            if closed and reason and self.stream and self.stream.meta:
                self.stream.finish(self.end, reason)
                self.log.info("stream ended", stream=self.stream.name, end=self.end, reason=reason)
        except OSError as e:
            if e.errno == errno.ENOENT and self.stream and self.stream.folder and not self.stream.folder.exists():
                raise StreamRemoved(self.stream) from None
            if e.errno not in NO_SPACE:
                raise
            self._full(e)
            return closed and self.give_up
        self._space()
        if changed:
            self.wake()
        self.done = closed
        return closed

    def _write(self) -> bool:
        """Everything the ring held when we came, then one fdatasync. True when the end moved."""
        if self.stream is None:
            return False
        for name, error in self.stream.end_stale().items():
            if error:
                self.log.warning("stream cannot be ended", stream=name, error=error)
            else:
                self.log.info("stream ended", stream=name, reason="not resumed")
        upto = self.ring.end
        run = self.ring.first()
        if self._backlog is None and (run or self.stream.meta):
            self._backlog = self.stream.open(self.intake.started_ns, self.intake.resumable)
            self.end = self._backlog.end
        if self._backlog is None:
            return False
        if self._backlog.removed():
            raise StreamRemoved(self.stream)
        before = self.end
        try:
            while run and run.start < upto:
                try:
                    if run.pcm:
                        self._backlog.append(run.start, run.pcm)
                    else:
                        self._backlog.hole(run.end, run.reason)
                        seconds = round(backlog.seconds(run.end - run.start), 3)
                        self.log.warning(
                            "hole", stream=self.stream.name, sample=run.start, s=seconds, reason=run.reason
                        )
                finally:
                    self.ring.release(self._backlog.end)
                run = self.ring.first()
        finally:
            self._backlog.sync()
            self.end = self._backlog.end
        anchor = self.intake.anchor
        if anchor and anchor.sample <= self.end:
            self._backlog.anchor(anchor)
            if self.intake.anchor is anchor:
                self.intake.anchor = None
        return self.end != before

    def _full(self, error: OSError) -> None:
        self.detail = error.strerror or "no space"
        if not self.ring.disk_full:
            self.ring.disk_full = True
            self._full_since = time.monotonic()
            self.log.warning("disk full", holding_s=round(self.ring.waiting_s, 1))
            self.wake()

    def _space(self) -> None:
        if self.ring.disk_full:
            self.ring.disk_full = False
            full_s = round(time.monotonic() - self._full_since, 1)
            self.log.info("disk has space again", full_s=full_s, lost_samples=self.ring.lost)
            self.wake()

    def close(self) -> None:
        if self._backlog:
            with contextlib.suppress(OSError):  # it was synced after its last write
                self._backlog.close()
