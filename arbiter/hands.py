"""What the ledger's effects do to the machine: the roster on disk, pidfds, SIGKILL. No decision is made here.

After a kill of the arbiter the roster is whole (write + rename) and the kernel has closed the pidfds. RUN/roster says
of which boot its rows are: no process of another one holds anything.
"""

from __future__ import annotations

import contextlib
import errno
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
# What keeps pidfd_open from telling whether a process lives. Whatever else it says, no process has that number: it may
# be the number of a thread by now (ENOENT or EINVAL, as the kernel is new or old).
UNTOLD = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ENOSYS)


class Kept(Roster, frozen=True, kw_only=True):
    """The roster as it is in the file."""

    boot: str = ""


def read_roster(run: Path) -> tuple[Roster, str]:
    """(the roster, what was wrong with it). One that cannot be read is as none: the workers tell what they hold."""
    try:
        kept = msgspec.json.decode((run / ROSTER).read_bytes(), type=Kept)
    except FileNotFoundError:
        return Roster(), ""
    except (OSError, *UNDECODABLE) as e:
        return Roster(), str(e)
    here = kept.boot in ("", backlog.boot_id())  # "": written before rosters told
    return Roster(n=kept.n, rows=kept.rows if here else ()), ""


def write_roster(run: Path, roster: Roster) -> None:
    """Raises OSError."""
    kept = Kept(n=roster.n, rows=roster.rows, boot=backlog.boot_id())
    backlog.replace_file(run / ROSTER, msgspec.json.encode(kept), durable=False)


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
        """False: it is dead, or its pid is another process' or a thread's by now. OSError: that cannot be told."""
        if who in self._of:
            return True
        try:
            fd = os.pidfd_open(who.pid)
        except OverflowError:
            return False
        except OSError as e:
            if e.errno in UNTOLD:
                raise
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
