"""The loop of every worker that reads the backlog: streams, places, scan, infer, append, sign of life, poison.

A worker brings `open` (a session per stream, which scans audio on the CPU) and `infer` (a pure function of model,
state and work). The base asks the feed for each stream's place, appends each step with compare-and-set, and takes
its place from the answer: after a kill it goes on exactly where the journal stands. A step that fails three times at
one position becomes a Gap, loudly; the audio stays and `swapscribe retry` tries again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from common import backlog, wire
from common import messages as m
from common.feed_client import Appender
from common.process import Process
from common.topology import doorbell
from workers.poison import Poison
from workers.retry import Retries
from workers.steps import Session, Step, Work, Worker

LOOK_EVERY_S = 0.5  # for new streams and audio, should a doorbell be lost
STATUS_EVERY_S = 1.0
UNREADABLE_S = 10.0  # after which audio that could not be read is tried again
BATCH_EVERY_S = 30.0  # a batch stream gets one step at least this often, however busy the live ones are


class AppendRefused(Exception):
    """The feed will never take this append as it is."""


def life(folder: Path) -> tuple[int, int]:
    """Which one of the folders of this name it is; the same after a change costs a question to the feed."""
    try:
        info = folder.stat()
    except FileNotFoundError:
        return (0, 0)
    return info.st_ino, info.st_ctime_ns


class Runner:
    """One worker process: a work thread (this one) and a control thread that says how it goes."""

    def __init__(self, process: Process, worker: Worker) -> None:
        self.process, self.worker, self.log = process, worker, process.log
        self.settings = process.settings
        self.appender = Appender(self.settings, worker.name)
        self.sessions: dict[str, Session] = {}
        self.phase = "loading"
        self._finished: dict[str, tuple[int, int]] = {}  # and which life of the folder was
        self._unreadable: dict[str, tuple[float, str]] = {}  # stream -> when it is tried again, what is wrong
        self._bells = wire.subscriber([], ["doorbell"])
        self._connected: set[str] = set()
        self._poison = Poison(process.run, worker.name)
        self._retries = Retries(process, worker, self._poison, self._commit)
        self._next_look = 0.0
        self._batch_at = 0.0
        self._ended = threading.Event()
        self._control = threading.Thread(target=self._tell, name="control", daemon=True)

    def run(self) -> None:
        self._control.start()
        try:
            self._work()
        finally:
            # Left alone it would be torn down with the interpreter, inside a library: that aborts the process.
            self.process.stopping = True
            self._ended.set()
            self._control.join(5.0)

    def _work(self) -> None:
        started = time.monotonic()
        with self.process.nothing_to_lose():
            model = self.worker.load(self.process)
        self.log.info("model loaded", seconds=round(time.monotonic() - started, 2))
        while not self.process.stopping:
            if not self._control.is_alive():
                raise RuntimeError("the control thread has ended")
            self._look(time.monotonic())
            if not self._turn(model):
                self.phase = "idle"
                self._bells.poll(int(LOOK_EVERY_S * 1000))
                while wire.receive(self._bells):
                    pass

    # -- streams ----------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        folders = backlog.streams(self.settings.streams)
        for folder in folders:
            # A file that is captured again after a purge has its old name, and may be back before we look twice.
            if folder.name in self.sessions or self._finished.get(folder.name) == life(folder):
                continue
            if now < self._unreadable.get(folder.name, (0.0, ""))[0]:
                continue
            meta = backlog.read_meta(folder)
            if meta:
                self._open(folder, meta)
        self._unreadable = {n: v for n, v in self._unreadable.items() if (self.settings.streams / n).exists()}
        self._finished = {n: v for n, v in self._finished.items() if (self.settings.streams / n).exists()}
        for name, session in list(self.sessions.items()):
            meta = backlog.read_meta(session.folder) or session.meta
            if not session.folder.exists() or meta.started_ns != session.meta.started_ns:  # purged (and here again)
                del self.sessions[name]
            session.meta = meta
        self._retries.look()

    def _open(self, folder: Path, meta: backlog.Meta) -> None:
        if meta.source not in self._connected:
            self._connected.add(meta.source)
            self._bells.connect(wire.ipc(self.settings, doorbell(meta.source)))
        which = life(folder)  # before the question: the answer is about this one
        at = self._commit(folder.name, -1, None)
        if at and at.positions.get("meta", 0) == 0:
            body = m.StreamStarted(source=meta.source, lane=meta.lane, started_ns=meta.started_ns)
            at = self._commit(folder.name, at.n, Step(positions={"meta": 1, "audio": 0}, events=(body,), state=b""))
        if at is None:
            return
        self._take_place(folder, meta, at, which)
        if folder.name in self.sessions:
            self.log.info("stream opened", stream=folder.name, position=at.positions.get("audio", 0), n=at.n)

    def _take_place(self, folder: Path, meta: backlog.Meta, at: m.At, which: tuple[int, int]) -> None:
        """Go on from where the journal says that our name stands on this stream; nowhere when it has ended there."""
        if at.positions.get("meta", 0) == 2:
            self._finished[folder.name] = which
            self.sessions.pop(folder.name, None)
        else:
            self.sessions[folder.name] = self.worker.open(folder, meta, at)

    def _close_if_done(self, session: Session) -> bool:
        meta = session.meta
        if not meta.ended or session.position < meta.end:
            return False
        which = life(session.folder)
        step = Step(positions={"meta": 2}, events=(m.StreamEnded(end=meta.end, reason=meta.end_reason),), state=b"")
        at = self._commit(meta.stream, session.at.n, step)
        if at and at.positions.get("meta") == 2:
            self._finished[meta.stream] = which
            self.log.info("stream finished", stream=meta.stream, end=meta.end)
        self.sessions.pop(meta.stream, None)  # not taken: another copy moved it; it is opened again from the journal
        return True

    # -- work -------------------------------------------------------------------------------------------------------

    def _turn(self, model: Any) -> bool:
        """One bounded piece of work; False when there is none. Live streams, in turn, before batch."""
        if self._retries.waiting:
            self.phase = "inferring"
            self._moved_elsewhere(self._retries.waiting[0].stream, self._retries.carry_out(model))
            return True
        now = time.monotonic()
        live = sorted((s for s in self.sessions.values() if s.meta.lane == "live"), key=lambda s: s.served_s)
        batch = [s for s in self.sessions.values() if s.meta.lane != "live"]
        order = [*batch, *live] if batch and now >= self._batch_at + BATCH_EVERY_S else [*live, *batch]
        for session in order:
            self.phase = "scanning"
            try:
                found = self._scan(session)
            except OSError as e:
                self._rest(session, e)
                continue
            self._unreadable.pop(session.meta.stream, None)
            if found is None:
                if self._close_if_done(session):
                    return True
                continue
            session.served_s = now
            if session.meta.lane != "live":
                self._batch_at = now
            step = self._infer(model, session, found) if isinstance(found, Work) else found
            self._append(session, step)
            return True
        return False

    def _moved_elsewhere(self, stream: str, at: m.At | None) -> None:
        """A retry appended in our name: its session goes on from there."""
        session = self.sessions.get(stream)
        if at and session:
            self._take_place(session.folder, session.meta, at, (0, 0))

    def _scan(self, session: Session) -> Step | Work | None:
        stream = session.meta.stream
        if not self._poison.begin(f"{stream} scan", session.position, waits=True):
            self.log.warning("gave up hearing", stream=stream, position=session.position)
            return session.deaf()
        try:
            return session.scan()
        except (OSError, MemoryError):
            raise
        except Exception:
            failures = self._poison.failed()
            self.log.exception("scan failed", stream=stream, position=session.position, failures=failures)
            raise

    def _rest(self, session: Session, error: OSError) -> None:
        """Audio that cannot be read (a bad disk, somebody else's file) waits, and stops no other stream."""
        stream = session.meta.stream
        if stream not in self._unreadable:
            self.log.warning("audio cannot be read; tried again and again", stream=stream, error=str(error))
        self._unreadable[stream] = (time.monotonic() + UNREADABLE_S, f"{stream} cannot be read: {error}")
        del self.sessions[stream]

    def _infer(self, model: Any, session: Session, work: Work) -> Step:
        stream = session.meta.stream
        if not self._poison.begin(stream, work.span[0]):
            self.log.warning("gave up", stream=stream, span=work.span)
            segment = m.segment_id(stream, work.speech[0])
            gap = m.Gap(span=work.speech, reason="failed", retryable=True, segment=segment)
            return self.worker.skipped(session.at.state, work, gap)
        self.phase = "inferring"
        try:
            return self.worker.infer(model, session.at.state, work)
        except Exception as e:
            # Lack of memory is nobody's poison; everything else counts, and the launcher starts us again.
            out_of_memory = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"
            failures = self._poison.failed(counts=not out_of_memory)
            self.log.exception("step failed", stream=stream, span=work.span, failures=failures)
            raise

    def _append(self, session: Session, step: Step) -> None:
        which = life(session.folder)
        try:
            at = self._commit(session.meta.stream, session.at.n, step)
        except AppendRefused:
            self._poison.failed()  # the same step would be refused again
            raise
        if at is None:
            self.sessions.pop(session.meta.stream, None)
        elif at.n == session.at.n + 1 and at.positions.get("audio") == step.positions.get("audio", session.position):
            session.moved(at)
        else:  # somebody else of our name wrote: the journal is right
            self.log.warning("place taken from the journal", stream=session.meta.stream, n=at.n)
            self._take_place(session.folder, session.meta, at, which)

    def _commit(self, stream: str, expect_n: int, step: Step | None) -> m.At | None:
        """Append until answered: a resend after a time-out is harmless. None: we are told to stop."""
        self.phase = "appending"
        wait_s, said = 1.0, False
        while not self.process.stopping:
            try:
                answer = self.appender.append(
                    stream,
                    expect_n,
                    step.positions if step else {},
                    step.events if step else (),
                    step.state if step else None,
                    timeout_s=wait_s,
                )
            except wire.Unreachable:
                wait_s = min(5.0, wait_s * 1.5)
                if not said:
                    self.log.warning("feed does not answer; the audio waits in the backlog", stream=stream)
                    said = True
                continue
            if isinstance(answer, m.At):
                if said:
                    self.log.info("feed answers again", stream=stream)
                return answer
            if not answer.retry_after_s:
                raise AppendRefused(f"{stream}: {answer.reason}")
            if not said:
                self.log.warning("feed refuses for now", reason=answer.reason)
                said = True
            time.sleep(min(answer.retry_after_s, 1.0))
        return None

    # -- sign of life -----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Control thread: a status each second, also while the model works."""
        appender = Appender(self.settings, self.worker.name)
        while not self.process.stopping:
            lags = {}
            for name, s in list(self.sessions.items()):
                with contextlib.suppress(OSError):
                    head = s.meta.end if s.meta.ended else backlog.head(s.folder)
                    lags[name] = round(max(0.0, backlog.seconds(head - s.reached)), 3)
            trouble = "; ".join(text for _, text in list(self._unreadable.values()))
            status = m.WorkerStatus(
                worker=self.worker.name, pid=os.getpid(), phase=self.phase, lag_s=lags, detail=trouble[:500]
            )
            appender.tell(status)
            self._ended.wait(STATUS_EVERY_S)
