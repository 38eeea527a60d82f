"""The launcher's spare: a child that has imported the large libraries, for the next model worker to be started.

It is handed its role also while it still imports: it is ahead of a new process even then. What goes wrong with it is
no trouble: who finds none is started as anybody else. Why there is one, and what it costs: docs/decisions/spare.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MODULE = "workers.spare"
ROOM = 64  # a worker's command line may be so much longer than the spare's own, whose place it takes in `ps`
LAST, USUAL = 19, 0  # niceness


class Spare:
    """None, or one that waits; `passed` are the options that load the launcher's settings in it. It ends with us."""

    def __init__(self, passed: Sequence[str], log: Path) -> None:
        self._passed, self._log = passed, log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def waits(self) -> bool:
        if self._child and (self._child.poll() is not None or _stopped(self._child.pid)):
            self.close()
        return self._child is not None

    def start(self) -> None:
        """Raises OSError."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "wb") as out:
            parent = "--parent", str(os.getpid())
            self._child = subprocess.Popen(
                [sys.executable, "-m", MODULE, *self._passed, *parent, "--room", "." * ROOM],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _give_way(self._child.pid, LAST)

    def become(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes] | None:
        """The spare as the process `python ARGV…` whose output is added to `log`. None: there is none."""
        if not self.waits:
            return None
        child, self._child = self._child, None
        assert child and child.stdin
        _give_way(child.pid, USUAL)
        try:
            with child.stdin as pipe:
                pipe.write(json.dumps({"argv": [*argv], "log": str(log)}).encode() + b"\n")
        except BrokenPipeError:  # killed meanwhile
            child.kill()
            child.wait()
            return None
        return child

    def close(self) -> None:
        """It has nothing to lose."""
        if self._child:
            assert self._child.stdin
            self._child.kill()
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
            self._child.wait()
            self._child = None


def _stopped(pid: int) -> bool:
    """It would take its role, and not stir."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _give_way(pid: int, nice: int) -> None:
    """The niceness of a session (sched(7), autogroup), which unlike a process' own may be taken back by anybody. Where
    the kernel does not group by session it counts for nothing."""
    for _ in range(3):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
            return
        except BlockingIOError:  # the kernel takes ten a second
            time.sleep(0.11)
        except OSError:
            return
