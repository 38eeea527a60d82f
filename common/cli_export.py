"""`swapscribe export STREAM`: what is known of a stream as a file. `common/cli.py` adds it.

From the running feed; where nothing runs, a feed is started on the journal for as long as the command lives. Nothing is
changed, and a file is replaced when the new one is whole.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.settings import NO_FEED, Settings, UserError, check_language

if TYPE_CHECKING:
    from common.cli import Given
    from common.document import Document
    from common.messages import Event

FORMATS = ("srt", "vtt", "txt", "json", "md", "rttm")
FEED_S = 20.0  # until a feed that starts (again) answers


@click.command()
@click.argument("stream", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), help="default: as --out ends, else txt")
@click.option("--lang", "language", metavar="CODE", default="", help="in this language, such as pt")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="default: standard output")
@click.option("--words", is_flag=True, help="with json: each word with its times and probability")
@click.pass_obj
def export(given: Given, stream: str | None, form: str | None, language: str, out: Path | None, words: bool) -> None:
    """A stream (default: the one that is open, or the last one) as subtitles, text, meeting document, data, turns.

    srt and vtt are subtitles, txt is lines, md the document of a meeting with minutes and names, json all that a
    subscriber knows of the stream, rttm who speaks when.
    """
    from common.put import put

    suffix = out.suffix[1:].lower() if out else ""
    if not form and suffix and suffix not in FORMATS:
        raise UserError(f"--out {out}: .{suffix} is none of {', '.join(FORMATS)}; --format says what it is to be")
    form = form or suffix or "txt"
    if words and form != "json":
        raise UserError(f"--words needs --format json; {form} has no place for them")
    if language:
        check_language(language, "--lang")
        if language == "auto":
            raise UserError("--lang: auto is no language; without --lang it is the one that was spoken")
    document = document_of(given, stream, language)
    for line in warnings(document, form, language):
        click.echo(line, err=True)
    text = written(document, form, language, words)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        put(out, text)
    except OSError as e:
        raise UserError(f"--out {out}: {e.strerror}") from None
    click.echo(f"{document.stream}: {out}", err=True)


def written(document: Document, form: str, language: str = "", words: bool = False) -> str:
    """The text of a file of one of FORMATS."""
    from common import exports

    return (
        exports.json(document, language, words=words) if form == "json" else exports.FORMATS[form](document, language)
    )


def document_of(given: Given, stream: str | None, language: str = "") -> Document:
    """What the journal knows of a stream (None: the one that is open, or the last one). Raises UserError."""
    from common.document import document
    from common.topology import COVERAGE_PRODUCER

    found = events(given, stream)
    return document(found[0].stream, found, COVERAGE_PRODUCER, language)


def events(given: Given, stream: str | None) -> list[Event]:
    """All events of the stream. Raises UserError."""
    from common import wire
    from common.launch import NAME
    from common.process import holder

    settings = given.settings()
    if not (settings.data / "journal").exists():
        raise UserError(f"nothing is kept in {settings.data}: no journal")
    run = wire.run_dir(settings)
    last, deadline = -1, 0.0
    while True:
        who = holder(run, NAME) or holder(run, "feed") or 0  # another export's feed may end while it is asked
        if who != last:
            last, deadline = who, time.monotonic() + FEED_S
        found = _asked(settings, stream, 5.0) if who else _from_a_feed_of_our_own(given, stream)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise UserError(NO_FEED)


def _asked(settings: Settings, stream: str | None, timeout_s: float) -> list[Event] | None:
    """None: no feed answers within the time. Raises UserError."""
    from common.feed_client import replay
    from common.wire import Unreachable

    try:
        if stream is None:
            kinds = ("stream_started", "stream_ended")
            seen = [e for e in replay(settings, kinds=kinds, timeout_s=timeout_s) if not e.purged]
            began = [e.stream for e in seen if e.kind == "stream_started"]
            ended = {e.stream for e in seen if e.kind == "stream_ended"}
            if not began:
                raise UserError("no streams yet")
            stream = next((s for s in reversed(began) if s not in ended), began[-1])
        found = list(replay(settings, stream=stream, timeout_s=timeout_s))
    except Unreachable:
        return None
    if not any(e.kind != "purged" and not e.purged for e in found):
        gone = "was purged" if found else "is not in the journal"
        raise UserError(f"{stream} {gone}; there are: swapscribe streams")
    return found


def _from_a_feed_of_our_own(given: Given, stream: str | None) -> list[Event] | None:
    """From a feed that lives no longer than this takes; nothing else is started or ended. None: another feed was a
    moment faster, or ours was told to end. Raises UserError."""
    import signal

    import msgspec

    from common.child import Life, wants
    from common.launch import STOP_S
    from common.process import EXIT_NAME_TAKEN, wait_gone

    settings = given.settings()
    feed = next(w for w in wants(settings, given.passed()) if w.name == "feed")
    life = Life.start(msgspec.structs.replace(feed, survives=False), settings.data / "logs" / "feed.log")
    deadline = time.monotonic() + FEED_S
    try:
        while life.alive():
            if (found := _asked(settings, stream, 1.0)) is not None:
                return found
            if time.monotonic() > deadline:
                raise UserError(NO_FEED)
        if life.status in (0, EXIT_NAME_TAKEN):
            return None
        raise UserError(life.last_words("feed") or NO_FEED)
    finally:
        if life.status is None:
            life.signal(signal.SIGTERM)
            if not wait_gone(life.pid, STOP_S):
                life.signal(signal.SIGKILL)


def warnings(document: Document, form: str, language: str) -> list[str]:
    """What a reader of the file should know, for people."""
    from common.spans import clock

    out = []
    if left := document.untranslated.get(language, ()) if form not in ("json", "rttm") else ():
        n, at = len({rest.segment for rest in left}), clock(left[0].span[0])
        what = f"{n} utterances have words" if n > 1 else "1 utterance has words"
        first = "the first " * (n > 1)
        out.append(f"{what} without a translation into {language}, {first}at {at}: left as they were said")
    if form == "rttm" and not document.turns:
        out.append("who speaks is not known (yet): the file is empty")
    return [f"swapscribe: {document.stream}: {line}" for line in out]
