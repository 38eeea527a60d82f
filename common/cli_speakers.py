"""`swapscribe speakers ...`: who speaks, what they are called, whose voices are known. `common/cli.py` adds it.

Names and merges are events of the journal: they survive whatever is killed, and whoever shows speakers applies them.
Voiceprints are files of this machine, and no event has one.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click

from common.settings import NO_FEED, Settings, UserError, full_path

if TYPE_CHECKING:
    from common.cli import Given
    from common.join import Join

STREAM = click.option("--stream", metavar="STREAM", help="default: the one that is open, or the last one")


@click.group()
def speakers() -> None:
    """Who speaks: list, name and merge them; voices to know them by."""


@speakers.command("list")
@click.argument("stream", required=False)
@click.pass_obj
def speakers_list(given: Given, stream: str | None) -> None:
    """Speakers of a stream (default: the one that is open, or the last one), and the voiceprints."""
    from common import voiceprints

    settings = given.settings()
    prints = voiceprints.read(settings)
    try:
        chosen, join = joined(settings, stream)
        spoken, names = join.spoken(), join.names()
        click.echo(f"{chosen}:" if spoken else f"{chosen}: no speakers told apart (yet)")
        for speaker, samples in spoken.items():
            share = samples / max(1, sum(spoken.values()))
            click.echo(f"  {speaker:<4} {names.get(speaker, '-'):<24} {samples / 16_000:8.1f} s  {share:4.0%}")
    except UserError:
        if stream or not prints:
            raise
    for v in prints:
        made = time.strftime("%Y-%m-%d", time.localtime(v.made_ns / 1e9))
        click.echo(f"voiceprint  {v.name:<24} {v.seconds:8.1f} s  {v.model}, {made}")


@speakers.command("rename")
@click.argument("speaker")
@click.argument("name")
@STREAM
@click.pass_obj
def speakers_rename(given: Given, speaker: str, name: str, stream: str | None) -> None:
    """Call a speaker (S1, or the present name) by a name; "" takes the name back."""
    from common import messages as m
    from common.feed_client import say
    from common.voiceprints import proper_name

    try:
        proper = proper_name(name)
    except ValueError as e:
        raise UserError(str(e)) from None
    settings = given.settings()
    chosen, join = joined(settings, stream)
    who = found(join, speaker, chosen)
    say(settings, chosen, m.SpeakerName(speaker=who, name=proper))
    click.echo(f"{chosen}: {who} is called {proper}" if proper else f"{chosen}: {who} has no name any more")


@speakers.command("merge")
@click.argument("speaker")
@click.argument("into")
@STREAM
@click.pass_obj
def speakers_merge(given: Given, speaker: str, into: str, stream: str | None) -> None:
    """Two speakers are one: what SPEAKER said and will say is INTO's."""
    from common import messages as m
    from common.feed_client import say

    settings = given.settings()
    chosen, join = joined(settings, stream)
    source, target = found(join, speaker, chosen), found(join, into, chosen)
    if source == target:
        raise UserError(f"{speaker} and {into} are one speaker already: {target}")
    say(settings, chosen, m.Relabel(source=source, target=target))
    click.echo(f"{chosen}: what {source} said is {join.name(target)}'s now")


@speakers.command("enroll")
@click.argument("file")
@click.option("--name", required=True, help="who speaks in it")
@click.pass_obj
def speakers_enroll(given: Given, file: str, name: str) -> NoReturn:
    """Know a voice by a recording of it alone, in every stream from now on; the voiceprint stays on this machine."""
    from common.voiceprints import proper_name

    try:
        proper = proper_name(name)
    except ValueError as e:
        raise UserError(str(e)) from None
    if not proper:
        raise UserError("--name is empty: say who speaks in it")
    path = full_path(file)
    try:
        path.open("rb").close()
    except OSError as e:
        raise UserError(f"{file}: {e.strerror}") from None
    sys.stdout.flush()
    # A process of its own has the models: nothing of them is loaded here.
    os.execv(sys.executable, [sys.executable, "-m", "workers.enroll", *given.passed(), str(path), proper])


@speakers.command("forget")
@click.argument("name")
@click.pass_obj
def speakers_forget(given: Given, name: str) -> None:
    """Delete a voiceprint for good. Names given to speakers stay where they were given."""
    from common import voiceprints

    voiceprints.forget(given.settings(), " ".join(name.split()))
    click.echo(f"{name}: the voiceprint is deleted")


def joined(settings: Settings, stream: str | None) -> tuple[str, Join]:
    """The stream meant, and what the journal says of its speakers."""
    from common.feed_client import replay
    from common.join import WHO_KINDS, Join
    from common.wire import Unreachable

    join = Join()
    try:
        seen = [e for e in replay(settings, kinds=("stream_started", "stream_ended"), stream=stream) if not e.purged]
        began = [e.stream for e in seen if e.kind == "stream_started"]
        if not began:
            raise UserError(f"no stream {stream!r}; there are: swapscribe streams" if stream else "no streams yet")
        ended = {e.stream for e in seen if e.kind == "stream_ended"}
        chosen = next((s for s in reversed(began) if s not in ended), began[-1])
        for e in replay(settings, kinds=WHO_KINDS, stream=chosen):
            join.take(e)
    except Unreachable:
        raise UserError(NO_FEED) from None
    return chosen, join


def found(join: Join, speaker: str, stream: str) -> str:
    """The id of a speaker, by id or by name. Raises UserError."""
    named = [s for s, name in join.names().items() if name.casefold() == " ".join(speaker.split()).casefold()]
    known = join.spoken()
    if len(named) > 1:  # a voiceprint may have named one who was found to be another since
        named = [s for s in named if s in known] or named
    if len(named) > 1:
        raise UserError(f"{', '.join(named)} are all called {speaker}: say which one, by id")
    who = named[0] if named else join.now(speaker)
    if who not in known and who not in join.names():
        called = [f"{s} ({join.name(s)})" if join.name(s) != s else s for s in known]
        raise UserError(f"no speaker {speaker!r} in {stream}; there are: {', '.join(called) or 'none yet'}")
    return who
