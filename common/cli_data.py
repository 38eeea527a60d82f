"""Commands that look after what is kept and where: models, streams, keys, doctor. `common/cli.py` adds them.

Content is changed only by events and requests to the feed, so a killed command is simply given again.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.settings import NO_FEED, Settings, UserError

if TYPE_CHECKING:
    from common.cli import Given


@click.command()
@click.pass_obj
def streams(given: Given) -> None:
    """List the recorded streams."""
    from common import backlog
    from common.spans import clock

    settings = given.settings()
    folders = backlog.streams(settings.streams)
    if not folders:
        raise UserError(f"no streams in {settings.streams}")
    for folder in folders:
        meta = backlog.read_meta(folder)
        if meta is None:
            click.echo(f"{folder.name}  cannot be read, so nobody captions it: {folder / 'meta.json'}")
            continue
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(meta.started_ns / 1e9))
        state = f"ended: {meta.end_reason}" if meta.ended else "open"
        click.echo(f"{meta.stream}  {meta.lane}  {began}  {clock(backlog.head(folder))}  {state}  {meta.origin}")


def samples(text: str) -> int:
    """`83.5`, `1:23.5` or `1:02:03` as a sample number."""
    from common.messages import SAMPLE_RATE

    try:
        parts = [float(p) for p in text.split(":")]
    except ValueError:
        parts = [-1.0]
    if len(parts) > 3 or not all(0 <= p < math.inf for p in parts):
        raise UserError(f"{text!r} is no time; write seconds (83.5) or minutes:seconds (1:23.5)")
    seconds = 0.0
    for p in parts:
        seconds = seconds * 60 + p
    return round(seconds * SAMPLE_RATE)


@click.command()
@click.argument("stream")
@click.option("--from", "start", default="0", metavar="TIME", help="seconds or m:s since the stream began")
@click.option("--to", "end", metavar="TIME", help="default: its end")
@click.pass_obj
def retry(given: Given, stream: str, start: str, end: str | None) -> None:
    """Transcribe the failed parts of a stream again."""
    from common import backlog
    from common import messages as m
    from common.feed_client import replay, say
    from common.wire import Unreachable

    settings = given.settings()
    folder = settings.streams / stream
    if backlog.read_meta(folder) is None:
        raise UserError(f"no stream {stream!r} with audio; there are: swapscribe streams")
    head = backlog.head(folder)
    span = (samples(start), min(samples(end), head) if end else head)
    if span[0] >= span[1]:
        raise UserError(f"nothing lies between {start} and {end or 'the end'}")
    try:
        events = [e.decode() for e in replay(settings, kinds=("gap", "transcript", "suppressed"), stream=stream)]
    except Unreachable:
        raise UserError(NO_FEED) from None
    superseded = {getattr(e, "supersedes", None) for e in events}
    gaps = [e for e in events if isinstance(e, m.Gap) and e.retryable and f"{e.segment}/{e.revision}" not in superseded]
    count = sum(e.span[0] < span[1] and span[0] < e.span[1] for e in gaps)
    if not count:
        raise UserError(f"nothing failed in {stream} that could be tried again")
    say(settings, stream, m.Retry(span=span))
    click.echo(f"{stream}: {count} failed part{'s' * (count > 1)} will be transcribed again")


@click.command()
@click.argument("stream", required=False)
@click.option("--all", "everything", is_flag=True, help="every stream that is not live")
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def purge(given: Given, stream: str | None, everything: bool, yes: bool) -> None:
    """Really delete a stream: its audio, and its words from the journal and every subscriber."""
    from common import backlog, feed_client
    from common.wire import Unreachable

    if bool(stream) == everything:
        raise UserError("name one stream, or say --all; there are: swapscribe streams")
    settings = given.settings()
    try:  # before anything is deleted: without the feed the words would stay
        journaled = [e.stream for e in feed_client.replay(settings, kinds=("stream_started",), timeout_s=3.0)]
    except Unreachable:
        raise UserError(f"a purge needs the feed, and {NO_FEED}") from None
    known = dict.fromkeys([p.name for p in backlog.streams(settings.streams)] + _graves(settings) + journaled)
    if stream and stream not in known:
        raise UserError(f"no stream {stream!r}; there are: swapscribe streams")
    live = [s for s in known if _is_live(settings, s)]
    if stream in live:
        raise UserError(f"{stream} is still live; end its capture first: swapscribe stop")
    chosen = [stream] if stream else [s for s in known if s not in live]
    if not yes:
        click.confirm(f"delete audio and words of {', '.join(chosen) or 'nothing'} for good?", abort=True)
    for name in chosen:
        answer = purge_stream(settings, name)
        click.echo(f"{name}: audio deleted; {answer}")
    for name in live if everything else ():
        click.echo(f"{name}: still live, left as it is")


def _is_live(settings: Settings, stream: str) -> bool:
    """Could a capture still write to it?"""
    from common import backlog
    from common.process import holder
    from common.wire import run_dir

    meta = backlog.read_meta(settings.streams / stream)
    return bool(meta and not meta.ended and holder(run_dir(settings), f"capture@{meta.source}"))


def _graves(settings: Settings) -> list[str]:
    """Streams whose removal was killed half-way: out of sight already, not yet off the disk."""
    return [p.name[1:].rpartition(".removed-")[0] for p in settings.streams.glob(".*.removed-*")]


def purge_stream(settings: Settings, stream: str) -> str:
    """Audio, then words; returns what the feed says. Raises UserError."""
    from common import backlog, wire
    from common import messages as m

    if (settings.streams / stream).exists():
        backlog.remove(settings.streams / stream)
    for grave in settings.streams.glob(f".{stream}.removed-*"):
        shutil.rmtree(grave)
    asker = wire.Requester(wire.ipc(settings, "append"))
    try:
        answer = asker.request(m.Purge(stream=stream), 60.0)
    except wire.Unreachable:
        raise UserError(f"{stream}: audio deleted, its words not yet: {NO_FEED}; then purge it again") from None
    finally:
        asker.close()
    if isinstance(answer, m.Refused) and answer.retry_after_s:
        raise UserError(f"{stream}: audio deleted, its words not yet: {answer.reason}; purge it again")
    return getattr(answer, "detail", "") or getattr(answer, "reason", "")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--client", default="client", show_default=True, help="name of the client whose keys are made")
def keys(folder: Path, client: str) -> None:
    """Make CURVE keys for feeds over TCP: the server's once, and a client's."""
    from common.wire import Curve

    Curve.make(folder, client)
    click.echo(f"keys in {folder}; set feed.curve_dir to it, and give server.pub and clients/{client}.* to the client")


@click.group()
def models() -> None:
    """The model store: what is known, fetched and verified."""


@models.command("list")
@click.pass_obj
def models_list(given: Given) -> None:
    """All models we know and which are here; then the profiles, and what each needs."""
    from common import models as store
    from common import profiles

    settings = given.settings()
    variants = [n for p in profiles.table() for n in store.of_profile(p) if n.endswith(".nf4")]
    for name in dict.fromkeys([*store.catalogue(), *variants]):
        m = store.model(name)
        wrong = store.problem(m, settings.cache / "models" / name, check=False)
        state = "not here" if "is not there" in wrong else wrong or str(settings.cache / "models" / name)
        languages = "many languages" if "*" in m.languages else " ".join(m.languages) or "any language"
        sets = f", set {', '.join(m.sets)}" if m.sets else ""
        gate = ", licence to accept" if m.repository and m.repository.gated else ""
        size = f"{'about ' * m.about}{m.bytes / 1e6:.0f} MB"
        click.echo(f"{name:<20} {m.task}, {languages}, {m.dtype}, {size}, {m.licence}{gate}{sets}: {state}")
    for p, profile in profiles.table().items():
        click.echo(f"\nprofile {p}: {profile.doc}")
        needed = store.of_profile(p)
        click.echo(f"  needs {', '.join(_with_state(settings, n) for n in needed)}")
        later = store.with_targets(store.only_profile(p))
        if later:
            click.echo(f"  and with translate.targets: {', '.join(_with_state(settings, n) for n in later)}")


def _with_state(settings: Settings, name: str) -> str:
    from common import models as store

    return f"{name} ({'not here' if store.missing(settings, [name]) else 'here'})"


@models.command("fetch")
@click.argument("names", nargs=-1)
@click.pass_obj
def models_fetch(given: Given, names: tuple[str, ...]) -> None:
    """Get models by name, set or profile (none named: the embedded set; auto: the profile for this machine).

    What is here and whole is left alone; what an interrupted fetch has got is continued.
    """
    from common import auto
    from common.fetch import fetch

    settings = given.settings()
    if "auto" in names:
        pick = auto.resolve(given.settings, ask_hub=True)
        click.echo(f"profile {pick.name}: {pick.why}")
        names = tuple(pick.name if n == "auto" else n for n in names)
    fetch(settings, names, click.echo)


@models.command("verify")
@click.argument("names", nargs=-1)
@click.pass_obj
def models_verify(given: Given, names: tuple[str, ...]) -> None:
    """Hash models again (none named: the embedded set)."""
    from common import models as store

    settings = given.settings()
    bad = []
    for m in store.chosen(names):
        try:
            found = store.verify(settings, m.name)
            click.echo(f"{m.name}: right, sha256 {found.sha256[:12]}…, from {found.source}")
        except UserError as e:
            bad.append(str(e))
    if bad:
        raise UserError("; ".join(bad))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="rows and findings as JSON")
@click.option("--measure", is_flag=True, help="measure the link to a CUDA card (takes seconds, and its memory)")
@click.pass_obj
def doctor(given: Given, as_json: bool, measure: bool) -> None:
    """What of this machine fits or hinders, and what to do. Status 1 when something will not work."""
    import msgspec

    from common.doctor import judge, text
    from common.facts import gather

    facts = gather(given.settings, measure)
    rows = judge(facts)
    if as_json:
        click.echo(msgspec.json.encode({"rows": rows, "facts": facts}))
    else:
        for line in text(rows):
            click.echo(line)
    sys.exit(1 if any(r.verdict == "bad" for r in rows) else 0)
