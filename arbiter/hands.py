"""What the ledger's effects do to the machine: the roster on disk, pidfds, SIGKILL. No decision is made here.

After a kill of the arbiter the roster is whole (write + rename) and the kernel has closed the pidfds. RUN/roster need
not outlive the machine: no process of before a boot holds anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import msgspec

from arbiter.effects import Roster
from common import backlog
from common.messages import UNDECODABLE, Incarnation
from common.process import start_time

ROSTER, PINS = "roster", "pins"


def read_roster(run: Path) -> tuple[Roster, str]:
    """(the roster, what was wrong with it). One that cannot be read is as none: the workers tell what they hold."""
    try:
        return msgspec.json.decode((run / ROSTER).read_bytes(), type=Roster), ""
    except FileNotFoundError:
        return Roster(), ""
    except (OSError, *UNDECODABLE) as e:
        return Roster(), str(e)


def write_roster(run: Path, roster: Roster) -> None:
    """Raises OSError."""
    backlog.replace_file(run / ROSTER, msgspec.json.encode(roster), durable=False)


def read_pins(run: Path) -> set[str]:
    try:
        return set(msgspec.json.decode((run / PINS).read_bytes(), type=list[str]))
    except (OSError, *UNDECODABLE):
        return set()


def write_pins(run: Path, pins: set[str]) -> None:
    """Raises OSError."""
    backlog.replace_file(run / PINS, msgspec.json.encode(sorted(pins)), durable=False)


class Processes:
    """A pidfd for each incarnation that is watched, each opened on the process that the incarnation names."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.fds: dict[int, Incarnation] = {}
        self._of: dict[Incarnation, int] = {}

    def watch(self, who: Incarnation) -> bool:
        """False: it is dead, or its pid is another process' by now."""
        if who in self._of:
            return True
        try:
            fd = os.pidfd_open(who.pid)
        except (ProcessLookupError, ValueError, OverflowError):
            return False
        if start_time(who.pid) != who.started_ticks:  # after opening: the number cannot move to another any more
            os.close(fd)
            return False
        self.fds[fd], self._of[who] = who, fd
        return True

    def kill(self, who: Incarnation) -> bool:
        """SIGKILL, recorded as ours so that it counts neither as poison nor as a crash. False: it is dead already."""
        if not self.watch(who):
            return False
        row = {"pid": who.pid, "cause": "signal 9", "ours": True, "by": "arbiter", "at": time.time()}
        with contextlib.suppress(OSError):  # disk full: the worker's own count is patient with SIGKILL
            backlog.replace_file(self._run / f"{who.worker}.exit", json.dumps(row).encode(), durable=False)
        try:
            signal.pidfd_send_signal(self._of[who], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def forget(self, who: Incarnation) -> None:
        fd = self._of.pop(who, None)
        if fd is not None:
            del self.fds[fd]
            os.close(fd)
