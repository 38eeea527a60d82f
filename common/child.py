"""One process as the launcher sees it: what is wanted (`Want`), and one life of it (`Life`), started or adopted.

A life is held by pidfd, so that a signal never reaches a stranger who got the number. RUN/NAME.exit says how the last
life of a name ended and whether the launcher ordered it: that is how a restarted worker tells poison from orders.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

import msgspec

from common import backlog, topology
from common.process import holder
from common.settings import Settings, Source, UserError
from common.spare import Spare

LOG_BYTES = 10 * 1024 * 1024


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """One process that should run, and how to start it."""

    name: str
    command: tuple[str, ...] = ()  # after the interpreter; empty: only to be stopped, never started
    survives: bool = False  # outlives the launcher
    source: str = ""  # a capture: exit 0 means that its source is finished
    finite: bool = False  # a capture whose source has an end
    stdin: bool = False  # reads the launcher's standard input
    spare: bool = False  # a model worker: what a spare can become

    @property
    def stop_rank(self) -> int:
        """Captures flush and end their streams first; the feed serves the others, so it goes last."""
        return 0 if self.source else 2 if self.survives else 1


def module_command(name: str, passed: Sequence[str]) -> tuple[str, ...]:
    """Interpreter arguments that start process `name` of the table. KeyError when there is none."""
    source = name.partition("@")[2]
    return ("-m", topology.row(name).module, *passed, *(("--source", source) if source else ()))


def wants(settings: Settings, passed: Sequence[str], more: Sequence[Source] = ()) -> tuple[Want, ...]:
    """The table as processes, for these settings; `passed` are the options that load the same settings in a child.

    `more`: sources that will be added, for what all sources share.
    """
    if [s.kind for s in (*settings.source, *more)].count("stdin") > 1:
        raise UserError("settings: two sources of kind stdin: there is one standard input; make one of them a file")
    captures = {f"capture@{s.name}": want_capture(s, passed) for s in settings.source}
    return tuple(
        captures.get(name)
        or Want(
            name=name,
            command=module_command(name, passed),
            survives=(row := topology.row(name)).survives_launcher,
            spare=row.gpu != "no",
        )
        for name in topology.names(settings)
    )


def want_capture(source: Source, passed: Sequence[str]) -> Want:
    """The capture of one source."""
    return Want(
        name=(name := f"capture@{source.name}"),
        command=module_command(name, passed),
        survives=topology.row(name).survives_launcher,
        source=source.name,
        finite=source.kind in ("file", "stdin", "pcm"),
        stdin=source.kind == "stdin",
    )


def sweeper(passed: Sequence[str]) -> Want:
    """Where no capture runs that would delete old audio."""
    return Want(name=topology.SWEEPER.name, command=("-m", topology.SWEEPER.module, *passed))


def running(run: Path, but: Sequence[str] = ()) -> dict[str, int]:
    """Pid of every process of the table that holds its name in this run folder, in table order."""
    found = {}
    for lock in run.glob("*.lock"):
        with contextlib.suppress(KeyError):
            topology.row(lock.stem)
            if lock.stem not in but and (pid := holder(run, lock.stem)):
                found[lock.stem] = pid
    rows = [r.name for r in topology.TABLE]
    return dict(sorted(found.items(), key=lambda item: (rows.index(item[0].partition("@")[0]), item[0])))


class Life:
    """One life of one process: a child of ours, or somebody else's that holds the name (`child` None)."""

    def __init__(self, pid: int, fd: int, child: subprocess.Popen[bytes] | None, log: Path, log_at: int) -> None:
        self.pid, self.fd, self.child = pid, fd, child
        self.log, self.log_at = log, log_at  # its lines begin at byte `log_at`
        self.began = time.monotonic()
        self.up = child is None  # holds its name
        self.ours = False  # we told it to end
        self.kill_at = inf
        self.status: int | None = None  # as subprocess has it; None while alive, and for ever if not our child

    @classmethod
    def start(cls, want: Want, log: Path, spare: Spare | None = None) -> Life:
        """Start a child in its own session: Ctrl-C in the terminal is for the launcher alone. Raises OSError.

        If the spare waits and can become it, it does.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        parent = () if want.survives else ("--parent", str(os.getpid()))
        with open(log, "ab") as out:
            command = [*want.command, *parent]
            child = spare.become(command, log) if spare and want.spare else None
            child = child or subprocess.Popen(
                [sys.executable, *command],
                stdin=None if want.stdin else subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            return cls(child.pid, os.pidfd_open(child.pid), child, log, out.tell())

    @classmethod
    def adopt(cls, run: Path, name: str, log: Path) -> Life | None:
        """Take note of the process that holds `name`, if there is one."""
        pid = holder(run, name)
        if not pid:
            return None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if holder(run, name) != pid:  # it died, and the number may be somebody else's by now
            os.close(fd)
            return None
        return cls(pid, fd, None, log, 0)

    def alive(self) -> bool:
        """False once it is dead; then `status` and `cause` tell how, and the pidfd is closed."""
        if self.child:
            self.status = self.child.poll()
            dead = self.status is not None
        else:
            dead = bool(select.select([self.fd], [], [], 0)[0])
        if dead:
            os.close(self.fd)
        return not dead

    @property
    def cause(self) -> str:
        if self.status is None:
            return "unknown"
        return f"signal {-self.status}" if self.status < 0 else f"exit {self.status}"

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # dead already; the next look sees it
            signal.pidfd_send_signal(self.fd, number)

    def record(self, run: Path, name: str, cause: str) -> None:
        """Replace RUN/NAME.exit. Raises OSError."""
        row = {"pid": self.pid, "cause": cause, "ours": self.ours, "at": time.time()}
        backlog.replace_file(run / f"{name}.exit", json.dumps(row).encode(), durable=False)

    def killed_by(self, run: Path, name: str) -> str:
        """Who else ordered its end, by what stands in RUN/NAME.exit: the arbiter kills a worker that keeps the GPU."""
        try:
            row = json.loads((run / f"{name}.exit").read_bytes())
            return str(row.get("by", "")) if row["pid"] == self.pid and row["ours"] else ""
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return ""

    def same_command(self, want: Want) -> bool:
        """Was it started with the options that we would give it?"""
        try:
            shown = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return True
        args = shown.rstrip("\0").split("\0")[1:]
        if "--parent" in args:
            del args[args.index("--parent") : args.index("--parent") + 2]
        return [a for a in args if a != "--take-over"] == list(want.command)

    def last_words(self, name: str) -> str:
        """What a person should read of its log: its `swapscribe: ...` line, else the end of a traceback."""
        with contextlib.suppress(OSError), open(self.log, "rb") as f:
            f.seek(max(self.log_at, os.fstat(f.fileno()).st_size - 65_536))
            plain = [x for x in f.read().decode(errors="replace").splitlines() if x[:1] not in ("{", " ", "")]
            to_user = [x for x in plain if x.startswith("swapscribe: ")]
            line = [*plain, *to_user, ""][-2] if plain else ""
            return line.removeprefix("swapscribe: ").removeprefix(f"{name}: ")[:300]
        return ""
