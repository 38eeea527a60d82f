"""What every worker that reads the backlog has in common: streams, places, scan on the CPU, infer under the lease.

In: folders of the backlog, doorbells, the journal's places. Out: appends. A concrete worker brings `open` (a session
for each stream, which scans audio) and `infer` (a pure function of state and work). Without the model `scan` goes on up
to the first piece of work that waits for it, so the lag stays known. A step that fails three times at one position
becomes a Gap, loudly. After a kill it goes on where the journal is. What captions need beside is in `captioner`.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from common import backlog, wire
from common import messages as m
from common.process import Process
from workers.delays import Timed
from workers.doorbells import Doorbells
from workers.session import Session, W, Work
from workers.steps import Step, Worker
from workers.tenancy import NotCarriedOut

if TYPE_CHECKING:
    from workers.base import Runner

UNREADABLE_S = 10.0  # after which audio that could not be read is tried again
BATCH_EVERY_S = 30.0  # a batch stream gets one step at least this often, however busy the live ones are
S = TypeVar("S", bound=Session[Any])


def life(folder: Path) -> tuple[int, int]:
    """Which one of the folders of this name it is; the same after a change costs a question to the feed."""
    try:
        info = folder.stat()
    except FileNotFoundError:
        return (0, 0)
    return info.st_ino, info.st_ctime_ns


class Hearing(Worker, Generic[S, W]):
    """A worker with a session for each stream of the backlog."""

    def __init__(self, process: Process) -> None:
        self.process, self.settings, self.log = process, process.settings, process.log
        self.sessions: dict[str, S] = {}
        self._finished: dict[str, tuple[int, int]] = {}  # and which life of the folder was
        self._unreadable: dict[str, tuple[float, str]] = {}  # stream -> when it is tried again, what is wrong
        self._bells = Doorbells(self.settings)
        self._batch_at = 0.0
        self._held_up = False  # a piece of work waits for the model

    # What a concrete worker brings

    @abstractmethod
    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> S: ...

    @abstractmethod
    def infer(self, state: bytes, work: W) -> Generator[None, None, Step]:
        """In pieces, and pure: the same samples, settings and state give the same step."""

    def bytes_of(self, works: Sequence[W]) -> int:
        """Device memory of their step beside the weights."""
        return self.working_bytes()

    def gap(self, work: W) -> m.Gap:
        """What stands in the journal for work that failed too often."""
        return m.Gap(span=work.span, reason="failed", retryable=False)

    @abstractmethod
    def skipped(self, state: bytes, work: W, gap: m.Gap) -> Step:
        """The step that stands in for `work` when it failed too often."""

    def refuses(self, meta: backlog.Meta) -> str:
        """Why a stream cannot be read as things are, for people: it waits until they change. Empty: it can."""
        return ""

    def outdated(self, session: S, meta: backlog.Meta) -> bool:
        """What the source says of itself has changed so that its stream has to be opened anew."""
        return False

    def begins(self, meta: backlog.Meta) -> tuple[m.Body, ...]:
        """Events with which a stream begins in the journal."""
        return ()

    def ends(self, session: S) -> tuple[m.Body, ...]:
        """Events with which it ends there."""
        return ()

    def ended(self, stream: str) -> None:
        """It was purged, or the journal has it to its end, now or since before we came."""

    def urgent(self, session: S) -> bool:
        """Its work goes first."""
        return session.meta.lane == "live"

    def scanned(self, runner: Runner) -> None:
        """A session has looked at its audio."""

    def ahead(self, runner: Runner, session: S) -> bool:
        """Work of this stream is next at the model: what pays to be found out before. False: nothing was done."""
        return False

    def at_once(self, session: S, found: W) -> list[W]:
        """What goes to the model in one step; the first is what was found."""
        return [found]

    def meanwhile(self, runner: Runner, urgent: Sequence[S]) -> bool:
        """One bounded step of something that comes behind all work of the urgent streams. False: none."""
        return False

    def keep(self, session: S, step: Step) -> None:
        """On disk, right before the journal takes this step. OSError: the stream rests, and nothing has moved."""

    def written(self, session: S, work: W, step: Step, timed: Timed) -> None:
        """The journal has just taken this step."""

    # What the base asks

    def needs_model(self) -> bool:
        return self._held_up

    def sockets(self) -> Sequence[Any]:
        return (self._bells.socket,)

    def lags(self) -> dict[str, float]:
        lags = {}
        for name, s in list(self.sessions.items()):
            with contextlib.suppress(OSError):
                lags[name] = self.late_s(s)
        return lags

    @staticmethod
    def late_s(session: S) -> float:
        head = session.meta.end if session.meta.ended else backlog.head(session.folder)
        return round(max(0.0, backlog.seconds(head - session.reached)), 3)

    def late(self) -> float:
        urgent = {n for n, s in list(self.sessions.items()) if self.urgent(s)}
        return max((lag for name, lag in self.lags().items() if name in urgent), default=0.0)

    def positions(self) -> dict[str, int]:
        return {n: s.position for n, s in list(self.sessions.items())}

    def trouble(self) -> str:
        return "; ".join(text for _, text in list(self._unreadable.values()))[:500]

    # Streams

    def look(self, runner: Runner, now: float) -> None:
        while wire.receive(self._bells.socket):
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
            away, another = not session.folder.exists(), meta.started_ns != session.meta.started_ns
            if away or another or self.outdated(session, meta):
                del self.sessions[name]
            if another or (away and self._purged(runner, name)):
                self.ended(name)
            session.meta = meta
        self._bells.listen({s.meta.source for s in self.sessions.values()})

    @staticmethod
    def _purged(runner: Runner, stream: str) -> bool:
        """For the journal to say: a folder may only be out of sight, with the disk that it is on. A purge empties the
        state of every place, and who has none has nothing to lose."""
        at = runner.commit(stream, -1, None)
        return at is not None and not at.state

    def _open(self, runner: Runner, folder: Path, meta: backlog.Meta) -> None:
        which = life(folder)  # before the question: the answer is about this one
        at = runner.commit(folder.name, -1, None)
        if at and at.positions.get("meta", 0) == 0:
            step = Step(positions={"meta": 1, "audio": 0}, events=self.begins(meta), state=b"")
            at = runner.commit(folder.name, at.n, step)
        if at is None:
            return
        why = self.refuses(meta) if at.positions.get("meta", 0) < 2 else ""
        if why:
            if folder.name not in self._unreadable:
                self.log.warning("stream waits", stream=folder.name, reason=why)
            self._unreadable[folder.name] = (time.monotonic() + UNREADABLE_S, f"{folder.name} waits: {why}")
            return
        try:
            self._take_place(folder, meta, at, which)
        except OSError as e:  # what is kept of it beside the journal
            self._rest(folder.name, e)
        if folder.name in self.sessions:
            self.log.info("stream opened", stream=folder.name, position=at.positions.get("audio", 0), n=at.n)

    def _take_place(self, folder: Path, meta: backlog.Meta, at: m.At, which: tuple[int, int]) -> None:
        """Go on from where the journal says that our name stands on this stream; nowhere when it has ended there."""
        if at.positions.get("meta", 0) == 2:
            self._finished[folder.name] = which
            self.sessions.pop(folder.name, None)
            self.ended(folder.name)
        else:
            self.sessions[folder.name] = self.open(folder, meta, at)

    def _close_if_done(self, runner: Runner, session: S) -> bool:
        meta = session.meta
        if not session.done:
            return False
        which = life(session.folder)
        step = Step(positions={"meta": 2}, events=self.ends(session), state=b"")
        at = runner.commit(meta.stream, session.at.n, step)
        if at and at.positions.get("meta") == 2:
            self._finished[meta.stream] = which
            self.log.info("stream finished", stream=meta.stream, end=meta.end)
            self.ended(meta.stream)
        self.sessions.pop(meta.stream, None)  # not taken: another copy moved it; it is opened again from the journal
        return True

    # Work

    def turn(self, runner: Runner) -> bool:
        """One bounded piece of work; False when there is none. Urgent streams, in turn, before others."""
        now = time.monotonic()
        urgent = sorted((s for s in self.sessions.values() if self.urgent(s)), key=lambda s: s.served_s)
        others = [s for s in self.sessions.values() if not self.urgent(s)]
        order = [*others, *urgent] if others and now >= self._batch_at + BATCH_EVERY_S else [*urgent, *others]
        held_up = False
        for session in order:
            if urgent and not self.urgent(session) and order[0] is urgent[0] and self.meanwhile(runner, urgent):
                return True
            try:
                found = self._scan(runner, session)
            except OSError as e:
                self._rest(session.meta.stream, e)
                continue
            self._unreadable.pop(session.meta.stream, None)
            self.scanned(runner)
            if found is None:
                if self._close_if_done(runner, session):
                    return True
                continue
            if isinstance(found, Work):
                held_up = self._held_up = True
                ahead = self.ahead(runner, session)
                if not runner.ready:
                    if ahead:
                        return True
                    continue
            session.served_s = now
            if not self.urgent(session):
                self._batch_at = now
            if isinstance(found, Work):
                self._work(runner, session, self.at_once(session, found))
            else:
                self._append(runner, session, found)
            return True
        self._held_up = held_up
        return self.meanwhile(runner, urgent)

    def _scan(self, runner: Runner, session: S) -> Step | W | None:
        stream = session.meta.stream
        runner.phase = "scanning"
        what = session.scanning
        if not runner.poison.begin(f"{stream} {what}", session.position, waits=True):
            self.log.warning("gave up", what=what, stream=stream, position=session.position)
            return session.deaf()
        try:
            return session.scan()
        except (OSError, MemoryError):
            raise
        except Exception:
            failures = runner.poison.failed()
            self.log.exception(f"{what} failed", stream=stream, position=session.position, failures=failures)
            raise

    def _rest(self, stream: str, error: OSError) -> None:
        """Audio that cannot be read (a bad disk, somebody else's file) waits, and stops no other stream."""
        if stream not in self._unreadable:
            self.log.warning("audio cannot be read; tried again and again", stream=stream, error=str(error))
        self._unreadable[stream] = (time.monotonic() + UNREADABLE_S, f"{stream} cannot be read: {error}")
        self.sessions.pop(stream, None)

    def _work(self, runner: Runner, session: S, works: Sequence[W]) -> None:
        began_s = time.monotonic()
        steps = self._infer(runner, session, works)
        timed = Timed(began_s, time.monotonic())
        for work, step in zip(works, steps, strict=False):  # the first of them
            if self.sessions.get(session.meta.stream) is not session:  # its place was taken, or we must stop
                return
            try:
                self.keep(session, step)
            except OSError as e:
                self._rest(session.meta.stream, e)
                return
            if self._append(runner, session, step):
                self.written(session, work, step, timed)

    def _infer(self, runner: Runner, session: S, works: Sequence[W]) -> list[Step]:
        """Nothing: the GPU had to be given back first; what waits still waits, nothing has moved."""
        (work,), stream = works, session.meta.stream
        if not runner.poison.begin(stream, work.span[0]):
            self.log.warning("gave up", stream=stream, span=work.span)
            return [self.skipped(session.at.state, work, self.gap(work))]
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

    def _append(self, runner: Runner, session: S, step: Step) -> bool:
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
