"""Faults inflicted on a running system, each in a thread of its own; and what it took until the system had recovered.

`Injector.inflict(fault)` returns at once; `finish` waits for all. Each fault becomes one JSON line (`Done`) of
FOLDER/faults.jsonl, so that a run that failed can be read. Faults of one seat follow each other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from common import backlog
from common.backlog import replace_file
from common.process import holder, start_time, wait_gone
from tests.faults.schedule import WORKERS, Fault
from tests.faults.system import FaultSystem
from tests.faults.troubled import TROUBLE, Trouble

RECOVERS_WITHIN_S = 120.0  # start, back-off of the launcher, loading of models, on a machine with other work
CLOCK_STEPS_S = (1.0, -1.0, 61.0, -61.0, 3600.0, -3600.0, 86_400.0, -86_400.0)
SOURCE = "talk"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one fault. Times in seconds after the stream's start."""

    number: int
    kind: str
    target: str
    began_s: float
    for_s: float
    detail: str = ""
    live: bool = True  # it began before the stream's end was journaled
    met: bool = True  # it did what its kind says; a hang, say, needs a step to happen in
    recovered_s: float = -1.0  # after its end; -1: it never did


class NotMet(Exception):
    """The fault could not be inflicted: its target was not there."""


class Injector:
    """See the module. `began` is the monotonic time of the stream's start."""

    def __init__(self, system: FaultSystem, folder: Path, began: float) -> None:
        self.system, self.folder, self.began = system, folder, began
        self.done: list[Done] = []
        self._threads: list[threading.Thread] = []
        self._seats: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._files = threading.Lock()  # the two files of switches, and what they hold
        self._trouble = Trouble()
        self._switches: set[str] = set()
        self._out = (folder / "faults.jsonl").open("ab", buffering=0)

    def inflict(self, fault: Fault) -> None:
        thread = threading.Thread(target=self._inflict, args=(fault,), name=f"fault {fault.number}")
        self._threads.append(thread)
        thread.start()

    @property
    def under_way(self) -> int:
        return len(self._threads) - len(self.done)

    def enough(self, count: int) -> bool:
        """`count` faults met something, if those do that are under way."""
        return self.under_way + sum(d.met for d in self.done[:]) >= count

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()
        self._out.close()

    def _inflict(self, fault: Fault) -> None:
        with self._seats[fault.seat]:
            live = self.system.follower.find("stream_ended") is None
            began, detail, met, recovered_s = time.monotonic(), "", False, -1.0
            try:
                detail, met = getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)
                over = time.monotonic()
                if self._recovers(fault):
                    recovered_s = round(time.monotonic() - over, 2)
            except NotMet as e:
                detail, recovered_s = str(e), 0.0
            done = Done(
                number=fault.number,
                kind=fault.kind,
                target=fault.target,
                began_s=round(began - self.began, 2),
                for_s=round(time.monotonic() - began - max(0.0, recovered_s), 2),
                detail=detail,
                live=live,
                met=met,
                recovered_s=recovered_s,
            )
            self.done.append(done)
            self._out.write(msgspec.json.encode(done) + b"\n")

    # Whom

    def _name(self, target: str) -> str:
        return f"capture@{SOURCE}" if target == "capture" else target

    def _pid(self, target: str) -> int:
        """Wait until it is there."""
        deadline = time.monotonic() + RECOVERS_WITHIN_S
        while time.monotonic() < deadline:
            if target == "arbiter's helper":
                if found := self._helpers():
                    return found[0]
            elif pid := holder(self.system.run, self._name(target)):
                return pid
            if target == "capture" and self._ended():
                raise NotMet("the source has come to its end")
            time.sleep(0.02)
        raise NotMet(f"{target} is not there")

    def _helpers(self) -> list[int]:
        pid = holder(self.system.run, "arbiter")
        with contextlib.suppress(psutil.Error):
            return [p.pid for p in psutil.Process(pid).children()] if pid else []
        return []

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _recovers(self, fault: Fault) -> bool:
        """Whoever was hit lives, and says so."""
        if fault.seat == "everybody":
            return self._until(lambda: self.system.follower.well(), RECOVERS_WITHIN_S)
        if fault.target == "arbiter's helper":
            return self._until(lambda: bool(self._helpers()), RECOVERS_WITHIN_S)
        return self._until(lambda: self._lives(fault.target), RECOVERS_WITHIN_S)

    def _lives(self, target: str) -> bool:
        pid = holder(self.system.run, self._name(target))
        if not pid:
            return target == "capture" and self._ended()  # it had nothing left to do
        beat = self.system.follower.last_beat
        if target in WORKERS:
            return bool(beat and (w := beat.workers.get(target)) and w.pid == pid and w.phase != "loading")
        if target == "feed":
            return self.system.follower.fresh()
        return True

    def _until(self, what: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # What: each returns a detail for the log, and whether the fault was met

    def _kill(self, f: Fault) -> tuple[str, bool]:
        if f.target == "launcher":
            return self._kill_launcher(f)
        pid = self._pid(f.target)
        self._signal(pid, signal.SIGKILL)
        return f"pid {pid}", self._gone(pid)

    def _kill_launcher(self, f: Fault) -> tuple[str, bool]:
        """Sometimes with one that it would adopt."""
        pid = self._pid("launcher")
        self.system.launcher.kill()
        detail = f"pid {pid}"
        if f.share < 0.4:
            other = ("feed", "arbiter", "capture")[int(f.share * 7.5)]
            if victim := holder(self.system.run, self._name(other)):
                self._signal(victim, signal.SIGKILL)
                detail += f", and {other}"
        self.system.start()
        return detail, True

    @staticmethod
    def _gone(pid: int) -> bool:
        """With all its threads: the first one may be dead while another still writes."""
        return wait_gone(pid, 30.0)

    @staticmethod
    def _running(pid: int) -> bool:
        return not wait_gone(pid, 0.0)

    def _stop(self, f: Fault) -> tuple[str, bool]:
        pid = self._pid(f.target)
        born = start_time(pid)
        self._signal(pid, signal.SIGSTOP)
        self._until(lambda: not self._running(pid), f.for_s)
        lives = self._running(pid) and start_time(pid) == born
        if lives:
            self._signal(pid, signal.SIGCONT)
        return f"pid {pid}" + ("" if lives else ", killed meanwhile"), True

    def _while(self, f: Fault, over: Callable[[], bool]) -> bool:
        return self._until(over, f.for_s)

    def _deaf(self, f: Fault) -> tuple[str, bool]:
        """Until its deadline has killed it, or nobody wanted the card for so long."""
        pid = self._pid(f.target)
        with self._with_trouble(deaf=(f.target,)):
            killed = self._while(f, lambda: not self._running(pid))
        return f"pid {pid}" + (", killed meanwhile" if killed else ""), True

    def _hang(self, f: Fault, switch: str = "hang-step") -> tuple[str, bool]:
        pid = self._pid(f.target)
        with self._switch(f"{f.target} {switch}"):
            killed = self._while(f, lambda: not self._running(pid))
        return f"pid {pid}" + (", killed meanwhile" if killed else ""), killed

    def _hang_in_reload(self, f: Fault) -> tuple[str, bool]:
        return self._hang(f, "hang-reload")

    def _oom_in_step(self, f: Fault, switch: str = "oom-step") -> tuple[str, bool]:
        before = self._ooms(f.target)
        times = 1 + (f.share > 0.5)
        with self._switch(f"{f.target} {switch} {times}"):
            met = self._while(f, lambda: self._ooms(f.target) > before)
        return f"{times} times", met

    def _oom_in_reload(self, f: Fault) -> tuple[str, bool]:
        return self._oom_in_step(f, "oom-reload")

    def _ooms(self, worker: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.system.log(worker).count("out of GPU memory; offloaded")
        return 0

    def _slow(self, f: Fault) -> tuple[str, bool]:
        with self._switch(f"{f.target} lag-step 0.5", f"{f.target} lag-reload 0.5"):
            time.sleep(f.for_s)
        return "", True

    def _loss(self, f: Fault) -> tuple[str, bool]:
        share = round(0.1 + 0.4 * f.share, 2)
        with self._with_trouble(loss={f.target: share}):
            time.sleep(f.for_s)
        return f"{share:.0%}", True

    def _doubled(self, f: Fault) -> tuple[str, bool]:
        share = round(0.3 + 0.7 * f.share, 2)
        with self._with_trouble(doubled={f.target: share}):
            time.sleep(f.for_s)
        return f"{share:.0%}", True

    def _disk_full(self, f: Fault) -> tuple[str, bool]:
        self.system.fill_disk()
        time.sleep(f.for_s)
        self.system.free_disk()
        return "", True

    def _clock_step(self, f: Fault) -> tuple[str, bool]:
        """It stays where it went: the next one goes on from there."""
        step = CLOCK_STEPS_S[int(f.share * len(CLOCK_STEPS_S)) % len(CLOCK_STEPS_S)]
        with self._files:
            self._write_trouble(clock_s=self._trouble.clock_s + step)
        return f"{step:+.0f} s", True

    def _torn(self, f: Fault, path: Callable[[], Path | None], tail: bytes) -> tuple[str, bool]:
        """Torn while it stands still, then killed: the launcher starts it again at once, and no writer may come between
        its last byte and the tail."""
        pid = self._pid(f.target)
        self._signal(pid, signal.SIGSTOP)
        torn = ""
        with contextlib.suppress(OSError):  # a full disk: then it is a kill
            self._until(lambda: self._stands_still(pid) or not self._running(pid), 30.0)
            if self._stands_still(pid) and (found := path()) is not None:
                with found.open("ab") as file:
                    file.write(tail)
                torn = found.name
        self._signal(pid, signal.SIGKILL)
        if not self._gone(pid):
            return f"pid {pid} does not die", False
        return f"pid {pid}, {torn or 'no file to tear'}", bool(torn)

    @staticmethod
    def _stands_still(pid: int) -> bool:
        """All its threads do: a signal stops each where it next leaves the kernel."""
        with contextlib.suppress(OSError):  # one of them has just ended
            stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
            return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}
        return False

    def _ended(self) -> bool:
        stream = self._stream()
        meta = backlog.read_meta(stream) if stream else None
        return bool(meta and meta.ended)

    def _stream(self) -> Path | None:
        return next(iter(backlog.streams(self.system.settings.streams)), None)

    def _torn_audio(self, f: Fault) -> tuple[str, bool]:
        def newest() -> Path | None:
            stream = self._stream()
            files = backlog.audio_files(stream) if stream else []
            return files[-1][1] if files and files[-1][1].stat().st_size % 2 == 0 else None

        return self._torn(f, newest, b"\x01")

    def _torn_anchor(self, f: Fault) -> tuple[str, bool]:
        return self._torn(f, lambda: (s / "anchors.jsonl") if (s := self._stream()) else None, b'{"sample": 123')

    def _torn_journal(self, f: Fault) -> tuple[str, bool]:
        log = self.system.settings.data / "journal" / "journal.sqlite-wal"
        return self._torn(f, lambda: log if log.exists() else None, os.urandom(2000))

    # Switches

    @contextlib.contextmanager
    def _with_trouble(self, **more):  # type: ignore[no-untyped-def]
        """Of one kind at a time for one seat: the seat's lock sees to that."""
        ((kind, value),) = more.items()
        with self._files:
            old = getattr(self._trouble, kind)
            self._write_trouble(**{kind: (old | value) if isinstance(old, dict) else (*old, *value)})
        try:
            yield
        finally:
            with self._files:
                now = getattr(self._trouble, kind)
                left = {k: v for k, v in now.items() if k not in value} if isinstance(now, dict) else ()
                if isinstance(now, tuple):
                    left = tuple(x for x in now if x not in value)
                self._write_trouble(**{kind: left})

    def _write_trouble(self, **changes: object) -> None:
        self._trouble = msgspec.structs.replace(self._trouble, **changes)
        replace_file(self.folder / TROUBLE, msgspec.json.encode(self._trouble), durable=False)

    @contextlib.contextmanager
    def _switch(self, *lines: str):  # type: ignore[no-untyped-def]
        """Lines of the simulated card's file of faults."""
        with self._files:
            self._switches |= set(lines)
            self._write_switches()
        try:
            yield
        finally:
            with self._files:
                self._switches -= set(lines)
                self._write_switches()

    def _write_switches(self) -> None:
        replace_file(self.folder / "gpu.faults", "".join(f"{s}\n" for s in sorted(self._switches)).encode(), False)
