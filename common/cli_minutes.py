"""`swapscribe summarize now` and `swapscribe summaries`: minutes are asked for and read. `common/cli.py` adds them.

Asking is an event of the journal: it survives whatever is killed, and is carried out when the GPU is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from common.settings import NO_FEED, Settings, UserError

if TYPE_CHECKING:
    from common.cli import Given
    from common.messages import Event


@click.group()
def summarize() -> None:
    """Minutes of what was said."""


@summarize.command("now")
@click.argument("stream", required=False)
@click.pass_obj
def summarize_now(given: Given, stream: str | None) -> None:
    """Want minutes of a stream now (default: the one that is open, or the last one)."""
    from common import messages as m
    from common.feed_client import say

    settings = given.settings()
    if not settings.summary.enabled:
        raise UserError("minutes are turned off here; set summary.enabled=true")
    chosen, events = _minutes_of(settings, stream)
    bodies = [e.decode() for e in events if e.stream == chosen]
    if not any(isinstance(b, m.Transcript) for b in bodies):
        raise UserError(f"nothing was said in {chosen} yet")
    say(settings, chosen, m.SummaryWanted())
    click.echo(f"{chosen}: minutes are written as soon as the GPU is free; see: swapscribe summaries {chosen}")


@click.command()
@click.argument("stream", required=False)
@click.pass_obj
def summaries(given: Given, stream: str | None) -> None:
    """Print the minutes of a stream (default: the one that is open, or the last one)."""
    from common import console

    chosen, events = _minutes_of(given.settings(), stream)
    lines = [console.caption(e) for e in events if e.stream == chosen and e.kind == "summary"]
    if not any(lines):
        raise UserError(f"no minutes of {chosen} yet; to have them written: swapscribe summarize now {chosen}")
    for line in lines:
        if line:  # else it was purged
            click.echo(line)


def _minutes_of(settings: Settings, stream: str | None) -> tuple[str, list[Event]]:
    """The stream meant, and the events by which it is told what it has."""
    from common.feed_client import replay
    from common.wire import Unreachable

    try:
        kinds = ("stream_started", "stream_ended", "transcript", "summary")
        events = [e for e in replay(settings, kinds=kinds, stream=stream) if not e.purged]
    except Unreachable:
        raise UserError(NO_FEED) from None
    began = [e.stream for e in events if e.kind == "stream_started"]
    if not began:
        raise UserError(f"no stream {stream!r}; there are: swapscribe streams" if stream else "no streams yet")
    ended = {e.stream for e in events if e.kind == "stream_ended"}
    return next((s for s in reversed(began) if s not in ended), began[-1]), events
