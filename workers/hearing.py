"""What every worker that reads the backlog has in common: streams, places, scan on the CPU, infer under the lease.

In: folders of the backlog, doorbells, the journal's places. Out: appends. A concrete worker brings `open` (a session
for each stream, which scans audio) and `infer` (a pure function of state and work). Without the model `scan` goes on up
to the first utterance that waits for it, so silence and lag stay known; where it is late, further (`catchup`). A step
that fails three times at one position becomes a Gap, loudly; the audio stays and `swapscribe retry` tries again. After
a kill it goes on where the journal is.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import backlog, wire
from common import messages as m
from common.process import Process
from common.topology import doorbell
from workers.catchup import CatchUp
from workers.delays import Delays, Timed
from workers.retry import Retries
from workers.session import Session, Work
from workers.steps import Step, Worker
from workers.tenancy import NotCarriedOut

if TYPE_CHECKING:
    from workers.base import Runner

UNREADABLE_S = 10.0  # after which audio that could not be read is tried again
NOBODY_S = 3600.0  # silence where there is no live stream
UNHEARD_S = 0.5  # of audio that nobody has listened to yet, and silence is not known any more
BATCH_EVERY_S = 30.0  # a batch stream gets one step at least this often, however busy the live ones are


def life(folder: Path) -> tuple[int, int]:
    """Which one of the folders of this name it is; the same after a change costs a question to the feed."""
    try:
        info = folder.stat()
    except FileNotFoundError:
        return (0, 0)
    return info.st_ino, info.st_ctime_ns


class Hearing(Worker):
    """A worker with a session for each stream of the backlog."""

    def __init__(self, process: Process) -> None:
        self.process, self.settings, self.log = process, process.settings, process.log
        self.sessions: dict[str, Session] = {}
        self._retries = Retries(process, self)
        self._catch_up = CatchUp(self)
        self.delays = Delays(self.settings.viewer.delays_over_s, self.settings.transcriber.interim)
        self._finished: dict[str, tuple[int, int]] = {}  # and which life of the folder was
        self._unreadable: dict[str, tuple[float, str]] = {}  # stream -> when it is tried again, what is wrong
        self._bells = wire.subscriber([], ["doorbell"])
        self._connected: set[str] = set()
        self._batch_at = 0.0
        self._held_up = False  # an utterance waits for the model
        self._last_told = (
            False,
            False,
        )  # is it silent for long enough, is a caption owed: as the arbiter was last told

    def refuses(self, meta: backlog.Meta) -> str:
        """Why a stream cannot be read as things are, for people: it waits until they change. Empty: it can."""
        return ""

    @abstractmethod
    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Session: ...

    @abstractmethod
    def infer(self, state: bytes, work: Work) -> Generator[None, None, Step]:
        """In pieces, and pure: the same samples, settings and state give the same step."""

    def infer_all(self, state: bytes, works: Sequence[Work], steps: list[Step]) -> Generator[None, None, None]:
        """Fills `steps` with those of (the first of) pieces of work right behind each other, each when it is final; a
        worker that can does them at once."""
        for work in works:
            steps.append((yield from self.infer(steps[-1].state if steps else state, work)))

    def together(self, session: Session, late_s: float) -> int:
        """How many pieces of work of a stream may be done at once now that it is `late_s` late."""
        return 1

    def bytes_of(self, works: Sequence[Work]) -> int:
        """Device memory of their step beside the weights."""
        return self.working_bytes()

    @abstractmethod
    def skipped(self, state: bytes, work: Work, gap: m.Gap) -> Step:
        """The step that stands in for `work` when it failed too often."""

    @abstractmethod
    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Generator[None, None, m.Body]:
        """The event that supersedes a retryable gap."""

    def interim(self, runner: Runner, live: Sequence[Session]) -> bool:
        """One bounded step of text that may still change, when nothing finished of live streams waits. False: none."""
        return False

    # What the base asks

    def needs_model(self) -> bool:
        return self._held_up or bool(self._retries.waiting)

    def sockets(self) -> Sequence[Any]:
        return (self._bells,)

    def lags(self) -> dict[str, float]:
        lags = {}
        for name, s in list(self.sessions.items()):
            with contextlib.suppress(OSError):
                lags[name] = self.late_s(s)
        return lags

    def delay_figures(self) -> tuple[m.Delay, ...]:
        return self.delays.figures()

    @staticmethod
    def late_s(session: Session) -> float:
        head = session.meta.end if session.meta.ended else backlog.head(session.folder)
        return round(max(0.0, backlog.seconds(head - session.reached)), 3)

    def late(self) -> float:
        lanes = {n: s.meta.lane for n, s in list(self.sessions.items())}
        return max((lag for name, lag in self.lags().items() if lanes.get(name) == "live"), default=0.0)

    def silence_s(self) -> float:
        live = [self._silence_s(s) for s in list(self.sessions.values()) if s.meta.lane == "live" and not s.meta.ended]
        return min(live, default=NOBODY_S)

    def _silence_s(self, session: Session) -> float:
        """Not known, so 0, when audio came while the model worked: somebody may speak in it."""
        most_s = max(UNHEARD_S, 2 * self.settings.capture.sync_interval_ms / 1000)
        try:
            unheard_s = backlog.seconds(backlog.head(session.folder) - session.listened)
        except OSError:
            return 0.0
        return session.silence_s if unheard_s <= most_s else 0.0

    def owes(self) -> bool:
        return any(s.owes for s in list(self.sessions.values()) if s.meta.lane == "live")

    def _tell(self, runner: Runner) -> None:
        """At once when a burst may begin that could not, or the other way round: the next Status may be late by 1 s."""
        now = (self.silence_s() >= self.settings.gpu.silence_s, self.owes())
        if now != self._last_told:
            self._last_told = now
            runner.control.changed()

    def positions(self) -> dict[str, int]:
        return {n: s.position for n, s in list(self.sessions.items())}

    def trouble(self) -> str:
        return "; ".join(text for _, text in list(self._unreadable.values()))[:500]

    # Streams

    def look(self, runner: Runner, now: float) -> None:
        while wire.receive(self._bells):
            pass
        folders = backlog.streams(self.settings.streams)
        for folder in folders:
            # A file that is captured again after a purge has its old name, and may be back before we look twice.
            if folder.name in self.sessions or self._finished.get(folder.name) == life(folder):
                continue
            if now < self._unreadable.get(folder.name, (0.0, ""))[0]:
                continue
            meta = backlog.read_meta(folder)
            if meta:
                self._open(runner, folder, meta)
        self._unreadable = {n: v for n, v in self._unreadable.items() if (self.settings.streams / n).exists()}
        self._finished = {n: v for n, v in self._finished.items() if (self.settings.streams / n).exists()}
        for name, session in list(self.sessions.items()):
            meta = backlog.read_meta(session.folder) or session.meta
            again = meta.language != session.meta.language  # we may not know that one
            if again or not session.folder.exists() or meta.started_ns != session.meta.started_ns:  # purged (and here)
                del self.sessions[name]
            session.meta = meta
        self._catch_up.only(self.sessions.keys() | self._unreadable.keys())
        self._retries.look()

    def _open(self, runner: Runner, folder: Path, meta: backlog.Meta) -> None:
        if meta.source not in self._connected:
            self._connected.add(meta.source)
            self._bells.connect(wire.ipc(self.settings, doorbell(meta.source)))
        which = life(folder)  # before the question: the answer is about this one
        at = runner.commit(folder.name, -1, None)
        if at and at.positions.get("meta", 0) == 0:
            body = m.StreamStarted(source=meta.source, lane=meta.lane, started_ns=meta.started_ns)
            at = runner.commit(folder.name, at.n, Step(positions={"meta": 1, "audio": 0}, events=(body,), state=b""))
        if at is None:
            return
        why = self.refuses(meta) if at.positions.get("meta", 0) < 2 else ""
        if why:
            if folder.name not in self._unreadable:
                self.log.warning("stream waits", stream=folder.name, reason=why)
            self._unreadable[folder.name] = (time.monotonic() + UNREADABLE_S, f"{folder.name} waits: {why}")
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
            self.sessions[folder.name] = self.open(folder, meta, at)

    def _close_if_done(self, runner: Runner, session: Session) -> bool:
        meta = session.meta
        if not meta.ended or session.position < meta.end:
            return False
        which = life(session.folder)
        end = max(meta.end, session.position)  # what was heard existed, also if deleted files no longer prove it
        step = Step(positions={"meta": 2}, events=(m.StreamEnded(end=end, reason=meta.end_reason),), state=b"")
        at = runner.commit(meta.stream, session.at.n, step)
        if at and at.positions.get("meta") == 2:
            self._finished[meta.stream] = which
            self.log.info("stream finished", stream=meta.stream, end=meta.end)
        self.sessions.pop(meta.stream, None)  # not taken: another copy moved it; it is opened again from the journal
        return True

    # Work

    def turn(self, runner: Runner) -> bool:
        """One bounded piece of work; False when there is none. Live streams, in turn, before batch."""
        if self._retries.waiting and runner.ready:
            stream = self._retries.waiting[0].stream
            self._moved_elsewhere(stream, self._retries.carry_out(runner))
            return True
        now = time.monotonic()
        live = sorted((s for s in self.sessions.values() if s.meta.lane == "live"), key=lambda s: s.served_s)
        batch = [s for s in self.sessions.values() if s.meta.lane != "live"]
        order = [*batch, *live] if batch and now >= self._batch_at + BATCH_EVERY_S else [*live, *batch]
        held_up = False
        for session in order:
            if live and session.meta.lane != "live" and order[0] is live[0] and self.interim(runner, live):
                return True
            try:
                found = self._scan(runner, session)
            except OSError as e:
                self._rest(session, e)
                continue
            self._unreadable.pop(session.meta.stream, None)
            self._tell(runner)
            if found is None:
                if self._close_if_done(runner, session):
                    return True
                continue
            most = 1
            if isinstance(found, Work):
                held_up = self._held_up = True
                most = self._catch_up.most(runner, session)
                ahead = most > 1 and self._catch_up.look_ahead(runner, session, most)
                if not runner.ready:
                    if ahead:
                        return True
                    continue
            session.served_s = now
            if session.meta.lane != "live":
                self._batch_at = now
            if isinstance(found, Work):
                self._decode(runner, session, session.waiting(most) if most > 1 else [found])
            else:
                self._append(runner, session, found)
            return True
        self._held_up = held_up
        return self.interim(runner, live)

    def _moved_elsewhere(self, stream: str, at: m.At | None) -> None:
        """A retry appended in our name: its session goes on from there."""
        session = self.sessions.get(stream)
        if at and session:
            self._take_place(session.folder, session.meta, at, (0, 0))

    def _scan(self, runner: Runner, session: Session) -> Step | Work | None:
        stream = session.meta.stream
        runner.phase = "scanning"
        if not runner.poison.begin(f"{stream} scan", session.position, waits=True):
            self.log.warning("gave up hearing", stream=stream, position=session.position)
            return session.deaf()
        try:
            return session.scan()
        except (OSError, MemoryError):
            raise
        except Exception:
            failures = runner.poison.failed()
            self.log.exception("scan failed", stream=stream, position=session.position, failures=failures)
            raise

    def _rest(self, session: Session, error: OSError) -> None:
        """Audio that cannot be read (a bad disk, somebody else's file) waits, and stops no other stream."""
        stream = session.meta.stream
        if stream not in self._unreadable:
            self.log.warning("audio cannot be read; tried again and again", stream=stream, error=str(error))
        self._unreadable[stream] = (time.monotonic() + UNREADABLE_S, f"{stream} cannot be read: {error}")
        del self.sessions[stream]

    def _decode(self, runner: Runner, session: Session, works: Sequence[Work]) -> None:
        began_s = time.monotonic()
        steps = self._infer(runner, session, works)
        timed = Timed(began_s, time.monotonic())
        for work, step in zip(works, steps, strict=False):  # the first of them
            if self.sessions.get(session.meta.stream) is not session:  # its place was taken, or we must stop
                return
            if self._append(runner, session, step):
                self.delays.final(session, work, step, timed)

    def _infer(self, runner: Runner, session: Session, works: Sequence[Work]) -> list[Step]:
        """Nothing: the GPU had to be given back first; what waits still waits, nothing has moved."""
        if len(works) > 1:
            return self._catch_up.infer(runner, session, works)
        (work,), stream = works, session.meta.stream
        if not runner.poison.begin(stream, work.span[0]):
            self.log.warning("gave up", stream=stream, span=work.span)
            segment = m.segment_id(stream, work.speech[0])
            gap = m.Gap(span=work.speech, reason="failed", retryable=True, segment=segment)
            return [self.skipped(session.at.state, work, gap)]
        runner.phase = "inferring"
        try:
            step = runner.step(self.infer(session.at.state, work), self.bytes_of(works))
        except NotCarriedOut:
            runner.poison.failed(counts=False)
            raise
        except Exception:
            failures = runner.poison.failed()  # it counts, and the launcher starts us again
            self.log.exception("step failed", stream=stream, span=work.span, failures=failures)
            raise
        if step is None:
            runner.poison.failed(counts=False)
        return [step] if step else []

    def _append(self, runner: Runner, session: Session, step: Step) -> bool:
        """False: the journal did not take it from us."""
        which = life(session.folder)
        at = runner.commit(session.meta.stream, session.at.n, step)
        if at is None:
            self.sessions.pop(session.meta.stream, None)
        elif at.n == session.at.n + 1 and at.positions.get("audio") == step.positions.get("audio", session.position):
            session.moved(at)
            return True
        else:  # somebody else of our name wrote: the journal is right
            self.log.warning("place taken from the journal", stream=session.meta.stream, n=at.n)
            self._take_place(session.folder, session.meta, at, which)
        return False
