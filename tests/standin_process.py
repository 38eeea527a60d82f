"""Stand-ins for the processes of the table, with fault switches, and a launcher over a table of them.

`python -m tests.standin_process launcher --set data_dir=D` runs the real Launcher; its children do nothing but hold
their names. `private` instead runs one as `transcribe` does, over a feed. What a child does wrong stands in
DATA/fault-NAME, read all the time: `exit N`, `signal N`, `deaf` (ignores SIGTERM), `user` (a user error), `done` (exit
0).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time

import msgspec

from common.child import Want
from common.guests import Guests
from common.launch import Launcher
from common.process import EXIT_NAME_TAKEN, NameTaken, Process, arguments, main
from common.settings import Settings, Source, UserError, load
from common.wire import run_dir


def table(*settings: str) -> tuple[Want, ...]:
    def want(name: str, survives: bool = False, source: str = "") -> Want:
        command = ("-m", "tests.standin_process", name, *settings)
        return Want(name=name, command=command, survives=survives, source=source, finite=bool(source))

    return (
        want("feed", survives=True),
        want("capture@a", survives=True, source="a"),
        want("transcriber"),
        want("viewer"),
    )


def guests(settings: Settings, *options: str, private: bool = False) -> Guests:
    def want(source: Source) -> Want:
        name = f"capture@{source.name}"
        command = ("-m", "tests.standin_process", name, *options)
        return Want(name=name, command=command, survives=not private, source=source.name, finite=True)

    return Guests(run_dir(settings), want, private=private)


def behave(process: Process) -> int:
    """Idle, with the fault that the file asks for."""
    path = process.settings.data / f"fault-{process.name}"
    deaf = False
    while deaf or not process.stopping:
        try:
            fault = path.read_text()
        except FileNotFoundError:  # none, or mended this moment
            fault = ""
        kind, _, number = fault.partition(" ")
        if kind == "exit":
            os._exit(int(number))
        if kind == "signal":
            os.kill(os.getpid(), int(number))
        if kind == "user":
            raise UserError("the stand-in needs a person; do something")
        if kind == "done":
            return 0
        if kind == "deaf" and not deaf:
            deaf = True
            process.log.info("deaf")
        time.sleep(0.02)
    return 0


def launcher(args: list[str], private: bool = False) -> None:
    overrides = tuple(a for a in args if a != "--set")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        settings = load(None, overrides, {})
        say = functools.partial(print, flush=True)
        rows = [msgspec.structs.replace(table(*args)[0], survives=False)] if private else table(*args)
        Launcher(settings, rows, say, guests=guests(settings, *args, private=private), private=private).run()
    except NameTaken as e:
        print(e)
        sys.exit(EXIT_NAME_TAKEN)


if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name in ("launcher", "private"):
        launcher(sys.argv[1:], name == "private")
    else:
        main(name, behave, arguments(__doc__ or ""))
