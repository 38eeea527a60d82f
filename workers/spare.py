"""A spare: it has imported the large libraries and waits to become a model worker, which is back that much sooner.

`common/spare.py` starts it and gives it its role, one line of JSON on its standard input: `argv` after the interpreter
as a new process would get it, and the `log` to write to. It holds no name, no lease, no weights and no code of ours:
what it had to import of that to get here is forgotten first, so that a developer's restart runs what is on disk now.
Where it could not import the libraries, or others are installed by now, it starts its role from nothing, in its place.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import sysconfig
import traceback
from pathlib import Path

from common.process import PR_SET_PDEATHSIG, arguments
from common.settings import load
from workers._torch import set_up, whisper_without_compiler
from workers.base import without_collections

OURS = ("arbiter", "capture", "common", "workers")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--room", help=argparse.SUPPRESS)  # for the command line of what it becomes
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != args.parent:
        sys.exit(1)
    before = installed()
    try:
        settings = load(args.config, tuple(args.set))
        with without_collections():
            set_up(settings.transcriber.threads, settings.cache)
            whisper_without_compiler()
    except Exception:  # the worker itself says it better, in its own log
        traceback.print_exc()
        before = -1
    line = sys.stdin.buffer.readline()
    if not line:  # the launcher has gone, or needs none any more
        sys.exit(0)
    role = json.loads(line)
    take(Path(role["log"]))
    if before != installed():
        os.execv(sys.executable, [sys.executable, *role["argv"]])
    become(role["argv"])


def installed() -> int:
    """Another number when packages have been installed: pip then renames folders in here."""
    return os.stat(sysconfig.get_path("platlib")).st_mtime_ns


def take(log: Path) -> None:
    """Write to this log, and read nothing."""
    with open(log, "ab") as out, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def become(argv: list[str]) -> None:
    """Run `-m MODULE ARGUMENT…` as if this process had just been started with it."""
    show(argv)
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.argv[1:] = argv[2:]
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True)


def show(argv: list[str]) -> None:
    """Let `ps` and /proc show these arguments, in the place of ours, if they are no longer (proc(5), arg_start). Some
    empty ones follow them in /proc/PID/cmdline."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        start, end = (int(x) for x in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
        text = b"\0".join([os.fsencode(sys.executable), *map(os.fsencode, argv)])
        if start and len(text) < end - start:
            ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
