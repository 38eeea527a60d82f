"""A spare: it has imported the large libraries and waits to become a model worker, which is back that much sooner.

`common/spare.py` starts it and gives it its role, one line of JSON on its standard input: `argv` after the interpreter
as a new process would get it, and the `log` to write to. It holds no name, no lease, no weights and no code of ours:
what it had to import of that to get here is forgotten first, so that a developer's restart runs what is on disk now.
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
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != args.parent:
        sys.exit(1)
    settings = load(args.config, tuple(args.set))
    usual = out_of_memory("1000")
    with without_collections():
        set_up(settings.transcriber.threads, settings.cache)
        whisper_without_compiler()
    line = sys.stdin.buffer.readline()
    if not line:  # the launcher has gone, or needs none any more
        sys.exit(0)
    out_of_memory(usual)
    role = json.loads(line)
    become(role["argv"], Path(role["log"]))


def become(argv: list[str], log: Path) -> None:
    """Run `-m MODULE ARGUMENT…` as if this process had just been started with it."""
    with open(log, "ab") as out, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    show(argv)
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.argv[1:] = argv[2:]
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True)


def out_of_memory(score: str) -> str:
    """Where we stand among those that the kernel kills when memory runs out (proc(5), oom_score_adj); returns where we
    stood. A spare goes before everybody: it has nothing to lose."""
    path = Path("/proc/self/oom_score_adj")
    try:
        was = path.read_text().strip()
        path.write_text(score)
    except OSError:
        return score
    return was


def show(argv: list[str]) -> None:
    """Let `ps` and /proc show these arguments, in the place of ours, if they are no longer (proc(5), arg_start)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        start, end = (int(x) for x in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
        text = b"\0".join([os.fsencode(sys.executable), *map(os.fsencode, argv)])
        if start and len(text) < end - start:
            ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
