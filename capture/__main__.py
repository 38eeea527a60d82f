"""capture@SOURCE: one source of audio into the durable backlog, and a doorbell for whoever waits for it.

Three threads: the source (numbers samples into RAM), the writer (RAM to disk), and this one (signals, doorbells, the
feed's beat, retention). It waits for nobody. After a kill the stream goes on where it was, or its hole is recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import threading
import time

import msgspec

from capture import sources
from capture.intake import Intake
from capture.retention import Retention, say_swept
from capture.ring import Ring
from capture.streams import Stream
from capture.writer import StreamRemoved, WriterThread
from common import given_sources, settings, topology, wire
from common import messages as m
from common.process import Process, arguments, main

DOORBELL_EVERY_S = 1.0
SWEEP_EVERY_S = 5.0
SOURCE_STOPS_S = 1.5  # a source that hangs in a read is left behind after this time
SPACE_WITHIN_S = 5.0  # how long a graceful stop waits for space on a full disk

_beat = msgspec.msgpack.Decoder(m.Beat)


class SourceThread(threading.Thread):
    """Finds the stream, then runs the source until it ends or is asked to stop."""

    def __init__(self, process: Process, source: settings.Source, intake: Intake, writer: WriterThread) -> None:
        super().__init__(name="source", daemon=True)
        self.process, self.source, self.intake, self.writer = process, source, intake, writer
        self.reason = ""
        self.finished = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.reason = self._run()
        except BaseException as e:
            self.error = e
        finally:
            self.finished = True
            self.writer.wake()

    def _run(self) -> str:
        found = sources.make(self.source)
        lane = settings.lane(self.source)
        content = found.content(self.intake) if lane == "batch" else ""
        if self.intake.stopping:
            return ""
        stream = Stream(self.process.settings, self.source, found.origin, lane)
        stream.find(content, found.changed_ns())
        self.intake.resume(stream.position, stream.anchor)
        self.writer.stream, self.writer.end = stream, stream.position
        if stream.complete:
            stream.tell_language()  # some of it may still wait for the transcriber
            self.process.log.info("already complete", stream=stream.name, end=stream.position)
            return ""
        if stream.meta:
            self.process.log.info("stream goes on", stream=stream.name, sample=stream.position)
        return found.run(self.intake)


class Capture:
    """The main thread's part."""

    def __init__(self, process: Process) -> None:
        self.process, self.log = process, process.log
        s = process.settings
        self.source = given_sources.with_added(s).source_named(process.args.source)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)  # a signal ends the pause at once
        self.ring = Ring(s.capture.ram_s)
        self.intake = Intake(self.ring)
        self.writer = WriterThread(self.ring, self.intake, s.capture.sync_interval_ms / 1000, self._wake, self.log)
        self.feeding = SourceThread(process, self.source, self.intake, self.writer)
        self.retention = Retention(s.streams, self.source.name, s.retention, topology.audio_readers(s))
        self.doorbell = wire.publisher(wire.ipc(s, topology.doorbell(self.source.name)))
        self.beats = wire.subscriber([wire.ipc(s, "pub")], ["beat"], hwm=10)
        self.poller = wire.poller(self.beats, self._wake_read)
        self._stop_since = self._closed_since = 0.0
        self._rung = self._swept = 0.0
        self._said: tuple[str, int, str] = ("", -1, "")
        self._bad_beat = False

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of reasons to wake up already
            os.write(self._wake_write, b"!")

    def run(self) -> int:
        self.writer.start()
        self.feeding.start()
        while not self.writer.finished:
            self.poller.poll(250)
            self._turn(time.monotonic())
        self._turn(time.monotonic())
        error = self.feeding.error or self.writer.error
        if isinstance(gone := self.writer.error, StreamRemoved):
            self.log.warning("stream was removed while it was captured", stream=str(gone), all_are_away=gone.away)
            # Started again, a live source begins a new stream, and a file goes on when the disk is back.
            return 0 if self.intake.resumable and not gone.away else 1
        if error:
            raise error
        if not self.writer.done:
            self.log.warning("stopped with a full disk", lost_s=round(self.ring.waiting_s, 2))
        return 0

    def _turn(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self._stop(now)
        self._hear(now)
        self._sweep(now)
        self._ring(now)

    def _stop(self, now: float) -> None:
        if self.process.stopping and not self._stop_since:
            self._stop_since = now
            self.intake.stop()
        late = self._stop_since and now - self._stop_since > SOURCE_STOPS_S
        if not self._closed_since and (late or self.feeding.finished):
            self._closed_since = now
            stream = self.writer.stream
            if stream and stream.lane == "live" and not self.feeding.error:
                self.writer.end_reason = self.feeding.reason or "stopped"
            else:
                self.writer.end_reason = self.feeding.reason
            self.ring.close()
        if self._stop_since and self._closed_since and now - self._closed_since > SPACE_WITHIN_S:
            self.writer.give_up = True

    def _hear(self, now: float) -> None:
        while frames := wire.receive(self.beats):
            try:
                self.retention.hear(_beat.decode(frames[-1]), now)
            except m.UNDECODABLE as e:
                if not self._bad_beat:
                    self._bad_beat = True
                    self.log.warning("dropped a message that is no beat", error=str(e))

    def _sweep(self, now: float) -> None:
        full = self.ring.disk_full
        if now - self._swept < (DOORBELL_EVERY_S if full else SWEEP_EVERY_S):
            return
        self._swept = now
        pressing = full and self.ring.waiting_s >= self.process.settings.capture.ram_s / 2
        gone = self.retention.sweep(now, disk_full=full, pressing=pressing)
        say_swept(self.log, self.retention, gone, disk_full=full)

    def _ring(self, now: float) -> None:
        """After each write, on each change of state, and at least each second."""
        state, detail = self._state()
        if (state, self.writer.end, detail) == self._said and now - self._rung < DOORBELL_EVERY_S:
            return
        if state != self._said[0] and state in ("no_device", "reconnecting"):
            self.log.warning(state, detail=detail)
        elif self._said[0] in ("no_device", "reconnecting") and state == "ok":
            self.log.info("source is back")
        self._said, self._rung = (state, self.writer.end, detail), now
        bell = m.Doorbell(
            source=self.source.name,
            stream=self.writer.stream.name if self.writer.stream else "",
            end=self.writer.end,
            state=state,
            detail=detail,
            ram_s=round(self.ring.waiting_s, 3),
            lost_samples=self.ring.lost,
        )
        wire.send(self.doorbell, [b"doorbell", m.encode(bell)])

    def _state(self) -> tuple[str, str]:
        if self.ring.disk_full:
            return "disk_full", self.writer.detail
        if self.writer.done:
            return "ended", self.writer.end_reason
        return self.intake.state, self.intake.detail


def source_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", text):  # it becomes the name of a lock and of a socket
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a source")
    return text


def run(process: Process) -> int:
    return Capture(process).run()


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--source",
        required=True,
        type=source_name,
        help="name of a [[source]] of the settings, or of one that was added",
    )
    main("capture", run, parser)
