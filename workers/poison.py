"""Steps that end a worker badly: counted over restarts in RUN/<worker>.attempt, so that one bad place stops nothing.

In: steps that begin or fail, and the launcher's record of how the process before us ended (RUN/<worker>.exit).
Out: whether a step may be tried again. Outlives the process, need not outlive the machine.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from common import backlog
from common.messages import UNDECODABLE

MAX_FAILURES = 3
MAX_KILLS = 10  # SIGKILL of unknown origin: the kernel's memory killer looks like this, so be patient
CRASHES = ("signal 11", "signal 6", "signal 7", "signal 4")  # SEGV, ABRT, BUS, ILL


class Attempt(msgspec.Struct, kw_only=True):
    """How often a step at one place ended badly."""

    position: int
    failures: int = 0
    kills: int = 0


class Attempts(msgspec.Struct, kw_only=True):
    """RUN/<worker>.attempt: what is under way (`open`, by process `pid`), and every place that has ended badly."""

    open: str = ""
    pid: int = 0
    tries: dict[str, Attempt] = {}  # one place for each kind of step of each stream


class Poison:
    """Counts bad ends of one step over restarts. Orders (TERM, recorded kills) and lack of memory never count.

    `what` names a kind of step of one stream: streams take turns, and one's success must not forget another's failure.
    """

    def __init__(self, run: Path, name: str) -> None:
        self._path, self._exit = run / f"{name}.attempt", run / f"{name}.exit"
        self._all = Attempts()
        try:
            self._all = msgspec.json.decode(self._path.read_bytes(), type=Attempts)
        except (OSError, *UNDECODABLE):
            return
        if self._all.open:
            self._judge()
            self._all.open = ""

    def _judge(self) -> None:
        attempt = self._all.tries.get(self._all.open)
        try:
            last: dict[str, Any] = msgspec.json.decode(self._exit.read_bytes())
        except (OSError, *UNDECODABLE):
            return
        if attempt is None or last.get("ours") or last.get("pid") != self._all.pid:
            return  # an order, or the end of another life
        if last.get("cause") in CRASHES:
            attempt.failures += 1
        elif last.get("cause") == "signal 9":
            attempt.kills += 1

    def allows(self, what: str, position: int, waits: bool = False) -> bool:
        """What `begin` would say: for a step that cannot begin yet."""
        attempt = self._attempt(what, position)
        return attempt.failures < MAX_FAILURES and (attempt.kills < MAX_KILLS or waits)

    def _attempt(self, what: str, position: int) -> Attempt:
        before = self._all.tries.get(what)
        return before if before and before.position == position else Attempt(position=position)

    def begin(self, what: str, position: int, waits: bool = False) -> bool:
        """Note that a step begins; False when it has failed too often to be tried again.

        `waits`: it also waits for its input. A SIGKILL then finds it under way whatever it was sent for: not counted.
        """
        if not self.allows(what, position, waits):
            return False
        before, attempt = self._all.tries.get(what), self._attempt(what, position)
        if before is not attempt or self._all.open != what or self._all.pid != os.getpid():
            bad = {k: a for k, a in self._all.tries.items() if a.failures or a.kills}
            self._all = Attempts(open=what, pid=os.getpid(), tries=bad | {what: attempt})
            self._write()
        return True

    def ended_badly(self, what: str) -> int:
        """The place of the last step `what` if it ended badly; -1: it did not, or there was none."""
        attempt = self._all.tries.get(what)
        return attempt.position if attempt and (attempt.failures or attempt.kills) else -1

    def failed(self, counts: bool = True) -> int:
        """The step under way raised; returns how often it has failed."""
        attempt = self._all.tries.get(self._all.open, Attempt(position=-1))
        attempt.failures += counts
        self._all.open = ""
        self._write()
        return attempt.failures

    def rest(self) -> None:
        """Nothing is under way that an end of the process could be counted against."""
        if self._all.open:
            self._all.open = ""
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # disk full: the count is lost, the work is not
            backlog.replace_file(self._path, msgspec.json.encode(self._all), durable=False)
