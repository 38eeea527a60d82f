"""The arbiter's side of `arbiter.measure`: one question under way at a time, a new helper when one hangs or dies.

Nothing here waits. A question that comes while another is under way replaces the one that waits: the newest answer
tells all that the older ones would have told.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from math import inf
from pathlib import Path

import msgspec

from arbiter.measure import Answer
from common.settings import GpuSettings

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0


class Helper:
    """`fd` is to be polled; `turn` says what came and does what is due. `trouble` is for people."""

    def __init__(self, kind: str, run: Path, gpu: GpuSettings, now: float) -> None:
        self._argv = [kind, str(run), str(os.getpid()), msgspec.json.encode(gpu).decode()]
        self._timeout_s = gpu.measure_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._gone: list[subprocess.Popen[bytes]] = []  # killed, not dead yet: a driver may hold them for long
        self._text = b""
        self._waits: int | None = None  # the question to ask next
        self._asked: int | None = None  # the one under way
        self._late_at = inf
        self._start_at = now
        self._pause_s = FIRST_PAUSE_S
        self.trouble = ""
        self._start(now)

    @property
    def fd(self) -> int:
        return self._child.stdout.fileno() if self._child and self._child.stdout else -1

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    def wake_at(self) -> float:
        return self._late_at if self._child else self._start_at

    def ask(self, number: int, now: float) -> None:
        self._waits = number
        self._send(now)

    def turn(self, now: float) -> list[Answer]:
        """Answers that came."""
        self._gone = [p for p in self._gone if p.poll() is None]
        if self._child is None and now >= self._start_at:
            self._start(now)
        out = self._read(now)
        if now >= self._late_at:
            self._end(f"the driver did not answer in {self._timeout_s:g} s", now)
        self._send(now)
        return out

    def _start(self, now: float) -> None:
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "arbiter.measure", *self._argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as e:  # no memory for a fork
            self.trouble = f"the helper that measures cannot be started: {e}"
            self._pause(now)
            return
        os.set_blocking(self.fd, False)
        self._text = b""

    def _send(self, now: float) -> None:
        if self._child is None or self._asked is not None or self._waits is None:
            return
        assert self._child.stdin
        self._asked, self._waits, self._late_at = self._waits, None, now + self._timeout_s
        with contextlib.suppress(BrokenPipeError):  # dead: `_read` sees it
            os.write(self._child.stdin.fileno(), b"%d\n" % self._asked)

    def _read(self, now: float) -> list[Answer]:
        if self._child is None:
            return []
        try:
            data = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return []
        *lines, self._text = (self._text + data).split(b"\n")
        out = []
        for line in lines:
            try:
                answer = msgspec.json.decode(line, type=Answer)
            except msgspec.MsgspecError:  # a driver's library has printed something
                continue
            self._asked, self._late_at = None, inf
            if answer.error:
                self.trouble = f"the device cannot be measured: {answer.error}"
            else:
                self.trouble, self._pause_s = "", FIRST_PAUSE_S
                out.append(answer)
        if not data:
            self._end(self.trouble or "the helper that measures has died", now)
        return out

    def _end(self, why: str, now: float) -> None:
        """Kill it and ask the open question of the next one."""
        assert self._child and self._child.stdin and self._child.stdout
        self._child.kill()
        self._child.stdin.close()
        self._child.stdout.close()
        self._gone.append(self._child)
        self._child, self.trouble = None, why
        self._waits = self._waits if self._waits is not None else self._asked
        self._asked, self._late_at = None, inf
        self._pause(now)

    def _pause(self, now: float) -> None:
        self._start_at = now + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)

    def close(self) -> None:
        if self._child:
            self._child.kill()
            self._child.wait()
