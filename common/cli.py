"""The command line: `swapscribe COMMAND`. Starts what the table names, asks the running ones, prints for people.

Every mistake is one line and status 2. Imports are inside the commands, so that `swapscribe --help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from common import cli_gpu
from common.cli_capture import capture, sources
from common.cli_data import doctor, keys, models, purge, retry, streams
from common.cli_demo import demo
from common.cli_export import export
from common.cli_minutes import summaries, summarize
from common.cli_simulate import simulate
from common.cli_speakers import speakers
from common.cli_transcribe import transcribe
from common.cli_units import units
from common.settings import Settings, UserError, full_path, load

if TYPE_CHECKING:
    from common.launch import Launcher

PRIVATE_ENDS_S = 5.0  # a `transcribe` that is done


class Given:
    """The global options, the settings they load, and the options that load the same settings in a child."""

    def __init__(self, config: str | None, overrides: tuple[str, ...], data: str | None) -> None:
        where = (f"data_dir={full_path(data)}",) if data else ()
        self.config, self.overrides = config, overrides + where

    def settings(self, *more: str) -> Settings:
        return load(self.config, self.overrides + more)

    def passed(self, *more: str) -> list[str]:
        sets = [part for o in self.overrides + more for part in ("--set", o)]
        return (["--config", self.config] if self.config else []) + sets

    def as_last_run(self) -> tuple[str, ...]:
        """What the last run-all chose where the settings leave it open: the source (the same name means the same
        source), and the profile."""
        from common import profiles, wire

        settings = self.settings()
        run = wire.run_dir(settings)
        if not settings.source and (run / "source").exists():
            # Not as an argument: other users can read those, and a URL may hold a password.
            os.environ["SWAPSCRIBE_SOURCE"] = (run / "source").read_text().removeprefix("source=")
        open_profile = settings.profile == profiles.AUTO and (run / "profile").exists()
        return ((run / "profile").read_text(),) if open_profile else ()


class ReaderGone(Exception):
    """Who reads our output has enough. Click would make a failure of a BrokenPipeError."""


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None


@click.group(cls=Commands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="settings file (default: ./swapscribe.toml if there is one)")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="one setting; repeatable")
@click.option("--data", metavar="DIR", help="data folder (default: ./data)")
@click.pass_context
def cli(ctx: click.Context, config: str | None, overrides: tuple[str, ...], data: str | None) -> None:
    """Durable live captions from separate processes that share one small GPU."""
    ctx.obj = Given(config, overrides, data)


def main() -> NoReturn:
    """Entry point: a person's mistake is one line on stderr and status 2; a bug is a traceback and status 1."""
    from common.process import EXIT_NAME_TAKEN, EXIT_USER_ERROR, NameTaken

    try:
        sys.exit(cli.main(prog_name="swapscribe", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.ctx.get_help() if e.ctx else "")
        sys.exit(0)
    except click.ClickException as e:
        where = e.ctx.command_path if isinstance(e, click.UsageError) and e.ctx else "swapscribe"
        line, status = f"{e.format_message()} See: {where} --help", EXIT_USER_ERROR
    except UserError as e:
        line, status = str(e), EXIT_USER_ERROR
    except NameTaken as e:
        line, status = f"already running here as pid {e.pid}; to end it: swapscribe stop", EXIT_NAME_TAKEN
    except (click.Abort, KeyboardInterrupt):
        line, status = "interrupted", 130
    except ReaderGone:  # nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except UnicodeEncodeError as e:  # a word that we were given
        if e.encoding != "utf-8":
            raise
        line, status = f"{e.object!r} is not UTF-8", EXIT_USER_ERROR
    except OSError as e:
        line, status = f"{e.filename or 'system'}: {e.strerror or e}", EXIT_USER_ERROR
    print("swapscribe: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(status)


def say(line: str) -> None:
    """A line on the terminal; when that has gone the processes still matter, the line does not."""
    try:
        print(line, flush=True)
    except (BrokenPipeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def news(line: str) -> None:
    say(f"-- {line}")


@cli.command()
@click.option(
    "--source",
    "whats",
    multiple=True,
    metavar="WHAT",
    help="a source beside those of the settings, repeatable: a file, a URL, mic, mic:NAME, loopback, loopback:NAME, "
    "pcm:PATH, or - for PCM on standard input; then KEY=VALUE as in a [[source]]",
)
@click.pass_obj
def run_all(given: Given, whats: tuple[str, ...]) -> None:
    """Run all processes here, and print captions; Ctrl-C stops everything."""
    import json

    import msgspec

    from common import auto, backlog, console, models, wire
    from common.child import sweeper, want_capture, wants
    from common.given_sources import describe
    from common.guests import Guests
    from common.launch import NAME, Launcher
    from common.orders import private, until
    from common.process import NameTaken, holder
    from common.spare import Spare

    settings = given.settings()
    pick = auto.resolve(given.settings)
    more: tuple[str, ...] = (f"profile={pick.name}",)
    settings.data.mkdir(parents=True, exist_ok=True)
    run = wire.run_dir(settings)
    if (pid := holder(run, NAME)) and not (private(settings) and until(lambda: not holder(run, NAME), PRIVATE_ENDS_S)):
        raise NameTaken(NAME, pid)
    news(f"profile {pick.name}: {pick.why}")
    first = sources(settings, whats)
    if settings.source or first:
        news(f"sources: {', '.join(map(describe, (*settings.source, *first)))}")
    else:
        source, line = console.default_source()
        more += ("source=" + json.dumps([source]),)
        news(line)
    settings = given.settings(*more)
    models.check_sources(settings, first)
    chosen = b"source=" + msgspec.json.encode(settings.source)
    backlog.replace_file(run / "source", chosen, durable=False)
    backlog.replace_file(run / "profile", more[0].encode(), durable=False)
    for line in console.addresses(settings):
        news(line)
    captions = console.Captions(settings)

    def each_turn(launcher: Launcher) -> None:
        for line in captions.lines():
            say(line)

    passed = given.passed(*more)
    table = wants(settings, passed, first)
    guests = Guests(run, lambda source: want_capture(source, passed), first, settings.transcriber.model)
    spare = Spare(passed, settings.data / "logs" / "spare.log") if settings.launcher.spare else None
    Launcher(settings, table, news, each_turn, sweeper(passed), guests, spare=spare).run()


@cli.command()
@click.argument("process")
@click.pass_obj
def run(given: Given, process: str) -> NoReturn:
    """Run one process in this terminal, taking its place if it runs; the launcher waits until it ends."""
    exec_process(given, process)


def exec_process(given: Given, name: str) -> NoReturn:
    from common import topology
    from common.child import module_command
    from common.given_sources import with_added

    more = given.as_last_run()
    known = topology.names(with_added(given.settings(*more)))
    if name not in known:
        raise UserError(f"no process {name!r}; there are: {', '.join(known)}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *module_command(name, given.passed(*more)), "--take-over"])


@cli.command()
@click.pass_obj
def devices(given: Given) -> NoReturn:
    """List the microphones and loopbacks."""
    os.execv(sys.executable, [sys.executable, "-m", "capture.devices"])


@cli.command()
@click.argument("process")
@click.pass_obj
def restart(given: Given, process: str) -> None:
    """Stop one process and let the launcher start it again."""
    from common import messages as m
    from common import wire
    from common.child import running
    from common.orders import command, until

    settings = given.settings()
    run = wire.run_dir(settings)
    before = running(run)
    answer = command(settings, "restart", process=process)
    if answer is None:
        raise UserError(f"no launcher runs in {settings.data}; start it with: swapscribe run-all")
    if isinstance(answer, m.Refused):
        raise UserError(answer.reason)
    chosen = answer.detail.split(", ")

    def again() -> bool:
        now = running(run)
        return all(n in now and now[n] != before.get(n) for n in chosen)

    if not until(again, 15.0):
        raise UserError(f"{answer.detail} is not up again after 15 s; see: swapscribe status")
    say(f"{answer.detail} restarted")


@cli.command()
@click.pass_obj
def stop(given: Given) -> None:
    """Stop everything gracefully: captures, workers, feed, launcher."""
    from common import wire
    from common.child import running
    from common.given_sources import Added
    from common.launch import NAME, Launcher
    from common.orders import command, until
    from common.process import holder

    settings = given.settings()
    run = wire.run_dir(settings)
    if pid := holder(run, NAME):
        command(settings, "stop")
        if not until(lambda: holder(run, NAME) != pid, 60.0):
            raise UserError(f"the launcher (pid {pid}) does not stop; kill -9 {pid} and say: swapscribe stop")
    elif not running(run):
        raise UserError(f"nothing runs in {settings.data}")
    if running(run):
        Launcher(settings, (), news).stop_leftovers()
    Added(run).clear()
    say("everything is stopped")


@cli.command(hidden=True)
@click.pass_obj
def names(given: Given) -> None:
    """Names of all processes, for scripts."""
    from common import topology
    from common.given_sources import with_added

    say(" ".join(topology.names(with_added(given.settings(*given.as_last_run())))))


@cli.command()
@click.pass_obj
def status(given: Given) -> None:
    """What runs, how late it is, and what became of every second."""
    from common import console, orders, wire
    from common.child import running
    from common.launch import NAME
    from common.process import holder

    settings = given.settings()
    run = wire.run_dir(settings)
    pids = running(run)
    states: dict[str, str] = {}
    if pid := holder(run, NAME):
        pids = {NAME: pid, **pids}
        states = orders.states(settings) or {NAME: "does not answer"}
    if not pids:
        raise UserError(f"nothing runs in {settings.data}; start it with: swapscribe run-all")
    beat = console.one_beat(settings) if "feed" in pids else None
    seen = cli_gpu.state(settings, timeout_s=1.0) if "arbiter" in pids else None
    for line in [f"data: {settings.data}", *console.status(settings, pids, states, beat, seen)]:
        say(line)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="every event as one JSON line")
@click.option("--from", "after", type=int, metavar="SEQ", help="begin with this event; 1 is the first (default: now)")
@click.option("--lang", "languages", multiple=True, metavar="CODE", help="of translations only this; repeatable")
@click.pass_obj
def tail(given: Given, as_json: bool, after: int | None, languages: tuple[str, ...]) -> None:
    """Follow the captions, and their translations."""
    from common import console

    console.tail(given.settings(), as_json, after, languages)


for one in (
    *(demo, capture, transcribe, export, models, doctor, retry, summarize, summaries, speakers, purge, streams, keys),
    *(simulate, units, cli_gpu.gpu),
):
    cli.add_command(one)

if __name__ == "__main__":
    main()
