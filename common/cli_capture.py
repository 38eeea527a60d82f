"""`swapscribe capture`: one more source, taken up by the running system, or captured in this terminal.

What the launcher takes up it keeps: it is started again after a kill, and `capture --end NAME` or the end of the
system ends it. A URL goes to the launcher by its socket and to its capture by a file of the run folder, both private.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from common.settings import Settings, Source, UserError, check_language

if TYPE_CHECKING:
    from common.cli import Given

HEARD_WITHIN_S = 20.0  # a connection has 10 s to fail, and says so then
NO_LAUNCHER = "no launcher runs in {0}; start it with: swapscribe run-all"


@click.command()
@click.option("--source", "whats", multiple=True, metavar="WHAT", help="name of a [[source]], or as for run-all")
@click.option("--end", "ended", multiple=True, metavar="NAME", help="end the capture of a source that was added")
@click.option(
    "--language", metavar="CODE", help="that is spoken there: auto, or such as pt (default: as in the settings)"
)
@click.option("--here", is_flag=True, help="in this terminal, for as long as this command lives")
@click.pass_obj
def capture(given: Given, whats: tuple[str, ...], ended: tuple[str, ...], language: str | None, here: bool) -> None:
    """Add a source to the running system; without one, or with --here, capture it in this terminal.

    WHAT is a file, a URL, mic, mic:NAME, loopback, loopback:NAME, pcm:PATH, or - for PCM on standard input, and may
    be followed by KEY=VALUE as in a [[source]]: --source 'rtsp://cam/1 name=hall'. The name of a [[source]] of the
    settings is captured in this terminal, in place of the running one.
    """
    from common import wire
    from common.launch import NAME
    from common.orders import private
    from common.process import holder

    if bool(whats) == bool(ended):
        raise UserError("say what to capture with --source, or whose capture to end with --end")
    if language:
        check_language(language, "--language")
    settings = given.settings()
    run = wire.run_dir(settings)
    runs = holder(run, NAME)
    for name in ended:
        if not runs:
            raise UserError(NO_LAUNCHER.format(settings.data))
        click.echo(_end(settings, name))
    if not whats:
        return
    configured = given.settings(*given.as_last_run())
    names = {s.name for s in configured.source}
    if language and names & set(whats):
        raise UserError("a source of the settings has its language there: language in its [[source]]")
    if whats[0] in names and len(whats) == 1:
        exec_capture(given, whats[0], configured)
    if language:
        whats = tuple(what if " language=" in what else f"{what} language={language}" for what in whats)
    chosen = sources(configured, whats)
    alone = here or not runs or any(s.kind == "stdin" for s in chosen) or private(settings)
    if not alone:
        for source in chosen:
            click.echo(add(settings, source))
    elif len(chosen) > 1:
        raise UserError("one terminal captures one source; start run-all first, or give the others their own")
    else:
        exec_capture(given, chosen[0].name, configured, chosen[0])


def sources(settings: Settings, whats: tuple[str, ...]) -> list[Source]:
    """What the words mean. One that was added before keeps its name."""
    from common.given_sources import Added, parse

    added = Added(settings.data / "run").all()
    found: list[Source] = []
    for what in whats:
        names = {s.name for s in (*settings.source, *found)}
        source = parse(what, names)
        same = [s for s in added if msgspec.structs.replace(s, name=source.name) == source]
        if same and f"name={source.name}" not in what:
            source = same[0]
        elif any(s.name == source.name and s != source for s in added):
            source = parse(what, names | {s.name for s in added})
        found.append(source)
    return found


def add(settings: Settings, source: Source) -> str:
    """Have the launcher take it up; wait for its sound. Raises UserError with what its capture complains of."""
    from common import backlog
    from common import messages as m
    from common.given_sources import describe
    from common.orders import command, states

    since_ns = time.time_ns()
    answer = command(settings, "capture", source=msgspec.json.encode(source).decode())
    if not isinstance(answer, m.Done):
        raise UserError(answer.reason if answer else NO_LAUNCHER.format(settings.data))
    deadline, state = time.monotonic() + HEARD_WITHIN_S, ""
    while time.monotonic() < deadline:
        state = (states(settings) or {}).get(answer.detail, "")
        if state.startswith("cannot run: "):
            command(settings, "release", name=source.name)
            raise UserError(state.removeprefix("cannot run: "))
        for folder in backlog.streams(settings.streams):
            meta = backlog.read_meta(folder)
            if meta and meta.source == source.name and backlog.last_write_ns(folder) >= since_ns:
                end = f"to end it: swapscribe capture --end {source.name}"
                return f"{describe(source)} is captured as {meta.stream}; {end}"
        if state == "finished":
            return f"{describe(source)} was captured before, to its end; see: swapscribe streams"
        time.sleep(0.1)
    return f"{describe(source)} is taken up and gives no sound yet ({state or 'no news'}); see: swapscribe status"


def _end(settings: Settings, name: str) -> str:
    from common import messages as m
    from common import wire
    from common.orders import command, until
    from common.process import holder

    answer = command(settings, "release", name=name)
    if not isinstance(answer, m.Done):
        raise UserError(answer.reason if answer else NO_LAUNCHER.format(settings.data))
    if not until(lambda: holder(wire.run_dir(settings), answer.detail) is None, 15.0):
        raise UserError(f"{name} does not end; see: swapscribe status")
    return f"{name}: its capture has ended"


def exec_capture(given: Given, name: str, settings: Settings, more: Source | None = None) -> NoReturn:
    """This process becomes the capture. A source that is not of the settings goes along in the environment, which
    other users cannot read."""
    from common.child import module_command

    if more:
        listed = msgspec.json.encode((*settings.source, more)).decode()
        os.environ["SWAPSCRIBE_SOURCE"] = listed
    sys.stdout.flush()
    take_over = () if more else ("--take-over",)
    os.execv(sys.executable, [sys.executable, *module_command(f"capture@{name}", given.passed()), *take_over])
