"""What every process does the same way: arguments, log lines, signals, the name lock, death with the parent.

After a kill the kernel has dropped the lock (POSIX record lock) and nothing else needs tidying: sockets are bound
again over their old files.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.settings import Settings, UserError, load
from common.wire import run_dir

EXIT_USER_ERROR = 2  # a person must do something first; the launcher does not hurry to restart
EXIT_NAME_TAKEN = 3
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux
PR_SET_PDEATHSIG = 1


class Log:
    """One line per real change of state: `log.info("granted", epoch=17)`. JSON when stderr is no terminal."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._log = logging.getLogger(f"swapscribe.{process}")

    def info(self, event: str, **fields: Any) -> None:
        self._log.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._log.warning(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        self._log.error(event, exc_info=True, extra={"fields": fields})


class _Lines(logging.Formatter):
    def __init__(self, process: str, as_json: bool) -> None:
        super().__init__()
        self.process, self.as_json = process, as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self.as_json:
            row = {"at": round(record.created, 3), "process": self.process, "level": record.levelname.lower()}
            row |= {"event": record.getMessage()} | fields | ({"traceback": trace} if trace else {})
            return json.dumps(row, default=str, ensure_ascii=False)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        tail = "".join(f" {k}={v}" for k, v in fields.items())
        return f"{clock} {self.process}{level} {record.getMessage()}{tail}" + (f"\n{trace}" if trace else "")


def set_up_log(process: str) -> Log:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process, as_json=not sys.stderr.isatty()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)  # libraries speak up when it matters
    logging.getLogger("swapscribe").setLevel(logging.INFO)
    return Log(process)


class NameTaken(Exception):
    def __init__(self, name: str, pid: int) -> None:
        super().__init__(f"{name} is already running as pid {pid}; to take its place: swapscribe run {name}")
        self.pid = pid


class NameLock:
    """At most one process of a name. Held by the kernel for as long as this process lives."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.lock"
        self._fd = -1

    def take(self, wait_s: float = 0.0) -> None:
        """Take the lock or raise NameTaken after `wait_s`."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            if time.monotonic() >= deadline:
                os.close(fd)
                raise NameTaken(self.name, holder(self.path.parent, self.name) or 0)
            time.sleep(0.005)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder(folder: Path, name: str) -> int | None:
    """Pid that holds the name lock, None when nobody does. Never call it for a lock of your own: closing drops it."""
    pid = _holder(folder, name)
    return pid if pid and pid > 0 else None


def out_of_sight(folder: Path, name: str) -> bool:
    """Is the lock held by a process of another pid namespace? The kernel then tells of the lock and of no pid."""
    pid = _holder(folder, name)
    return pid is not None and pid <= 0


def _holder(folder: Path, name: str) -> int | None:
    try:
        fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, ask))
    finally:
        os.close(fd)
    return int(pid) if kind != fcntl.F_UNLCK else None


def start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot: with the pid it names one life. 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def signal_holder(folder: Path, name: str, number: int) -> int | None:
    """Signal the process that holds `name`, through a pidfd checked after opening. Returns its pid, None if nobody."""
    pid = holder(folder, name)
    if pid is None:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if holder(folder, name) != pid:  # it died and the number may be somebody else's by now
            return None
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return pid


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Wait until a process that need not be our child has exited."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(int(timeout_s * 1000)))
    finally:
        os.close(fd)


def stop_holder(folder: Path, name: str, timeout_s: float = 10.0) -> bool:
    """Ask the holder of `name` to stop (SIGTERM) and wait. True when nobody holds it any more."""
    pid = signal_holder(folder, name, signal.SIGTERM)
    return pid is None or wait_gone(pid, timeout_s)


def give_way(nice: int) -> None:
    """Let other processes go first. Each of ours leads a session, and where the kernel groups processes by session
    (autogroup) the niceness of a process counts within its group alone: the group's has to be lowered too."""
    os.nice(nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


class Process:
    """One running process of the table: settings, name, log, run folder, and the flag that says stop."""

    def __init__(self, name: str, settings: Settings, args: argparse.Namespace) -> None:
        self.name, self.settings, self.args = name, settings, args
        self.log = set_up_log(name)
        self.run = run_dir(settings)
        self.lock = NameLock(self.run, name)
        self.stopping = False
        self._leave_at_once = False

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True  # loops look at it at least twice a second; nothing else is safe in a handler
        if self._leave_at_once:  # no SystemExit: libraries catch it while they are imported, or make another of it
            os._exit(0)

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """In here (a model is loading, for seconds) the signal to stop is obeyed at once."""
        self._leave_at_once = True
        try:
            if self.stopping:
                raise SystemExit(0)
            yield
        finally:
            self._leave_at_once = False


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
    parser.add_argument("--config", help="settings file (default: ./swapscribe.toml if there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting")
    parser.add_argument("--take-over", action="store_true", help="ask a running process of this name to stop first")
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(name: str, run: Callable[[Process], int | None], parser: argparse.ArgumentParser) -> None:
    """Parse, lock the name, run, exit. A person's mistake is one line and status 2; a bug is a traceback and 1."""
    args = parser.parse_args()
    if getattr(args, "source", None):
        name = f"{name}@{args.source}"
    if args.parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != args.parent:  # it died before we asked to be told
            sys.exit(1)
    try:
        process = Process(name, load(args.config, tuple(args.set)), args)
        process.settings.data.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, process._stop)
        wait_s = 0.0
        if args.take_over and not stop_holder(process.run, name):
            raise UserError(f"{name} does not stop; look at its log, then: kill -9 {holder(process.run, name)}")
        if args.take_over:
            wait_s = 5.0
        process.lock.take(wait_s)
    except NameTaken as e:
        print(f"swapscribe: {e}", file=sys.stderr)
        sys.exit(EXIT_NAME_TAKEN)
    except UserError as e:
        print(f"swapscribe: {e}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    process.log.info("started", pid=os.getpid())
    try:
        status = run(process) or 0
    except UserError as e:
        print(f"swapscribe: {name}: {e}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except BrokenPipeError:
        status = 0
    process.log.info("stopped", status=status)
    sys.stderr.flush()
    sys.exit(status)
