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

MAX_FAILURES = 3
MAX_KILLS = 10  # SIGKILL of unknown origin: the kernel's memory killer looks like this, so be patient
CRASHES = ("signal 11", "signal 6", "signal 7", "signal 4")  # SEGV, ABRT, BUS, ILL


class Attempt(msgspec.Struct, kw_only=True):
    """RUN/<worker>.attempt: what was being inferred, and how often that ended badly. Outlives the process."""

    stream: str = ""
    position: int = -1
    failures: int = 0
    kills: int = 0
    open: bool = False
    pid: int = 0  # of the process whose step is open


class Poison:
    """Counts bad ends of one step over restarts. Orders (TERM, recorded kills) and lack of memory never count."""

    def __init__(self, run: Path, name: str) -> None:
        self._path, self._exit = run / f"{name}.attempt", run / f"{name}.exit"
        self.attempt = Attempt()
        try:
            self.attempt = msgspec.json.decode(self._path.read_bytes(), type=Attempt)
        except (OSError, msgspec.MsgspecError):
            return
        if self.attempt.open:
            self._judge()
            self.attempt.open = False

    def _judge(self) -> None:
        try:
            last: dict[str, Any] = msgspec.json.decode(self._exit.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return
        if last.get("ours") or last.get("pid") != self.attempt.pid:  # an order, or the end of another life
            return
        if last.get("cause") in CRASHES:
            self.attempt.failures += 1
        elif last.get("cause") == "signal 9":
            self.attempt.kills += 1

    def begin(self, stream: str, position: int) -> bool:
        """Note that a step begins; False when it has failed too often to be tried again."""
        if (self.attempt.stream, self.attempt.position) != (stream, position):
            self.attempt = Attempt(stream=stream, position=position)
        if self.attempt.failures >= MAX_FAILURES or self.attempt.kills >= MAX_KILLS:
            return False
        self.attempt.open, self.attempt.pid = True, os.getpid()
        self._write()
        return True

    def failed(self, counts: bool) -> None:
        self.attempt.failures += counts
        self.attempt.open = False
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # disk full: the count is lost, the work is not
            backlog.replace_file(self._path, msgspec.json.encode(self.attempt), durable=False)
