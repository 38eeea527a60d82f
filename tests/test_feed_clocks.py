"""The feed where clocks are set and disks vanish: its rounds stepped by hand, on a real journal."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from common import backlog, wire
from common import messages as m
from common.process import Process
from common.settings import Settings, UserError
from tests.conftest import wait_for
from workers.feed import GROUP, Feed
from workers.journal import Journal

pytestmark = pytest.mark.joined


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[[], Feed]]:
    """Another run of the feed on the same data."""
    journals: list[Journal] = []

    def start() -> Feed:
        journals.append(Journal(settings.data / "journal"))
        return Feed(Process("feed", settings, argparse.Namespace()), journals[-1])

    yield start
    for journal in journals:
        journal.close()


def say(journal: Journal, stream: str, *bodies: m.Body) -> m.At | m.Refused:
    n = journal.at("transcriber.x", stream).n
    append = m.Append(producer="transcriber.x", stream=stream, expect_n=n, events=tuple(map(m.raw, bodies)))
    return journal.append([append])[0][0]


def test_a_new_run_names_what_was_committed_last_whatever_clocks_say(
    settings: Settings, start: Callable[[], Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(settings.data / "journal")
    for i in range(GROUP + 20):
        say(journal, f"old-{i:03}", m.SummaryWanted())
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns - 3_600_000_000_000)  # somebody sets the clock
    say(journal, "old-007", m.SummaryWanted())  # and the feed is killed before it is published
    journal.close()
    feed = start()
    named = feed.beat(time.monotonic()).streams
    assert "old-007" in named and "old-010" not in named and len(named) < GROUP + 10
    assert feed.beat(time.monotonic()).feed not in ("", start().beat(time.monotonic()).feed)


@pytest.mark.parametrize("loss", ["removed", "replaced", "wal"])
def test_nothing_is_acknowledged_that_goes_to_a_journal_nobody_can_open(
    settings: Settings, start: Callable[[], Feed], loss: str
) -> None:
    feed = start()
    kept = m.Append(producer="transcriber.x", stream="s", expect_n=0)
    feed._commit([([b"peer"], kept)])
    feed.beat(time.monotonic())
    if loss == "removed":
        shutil.rmtree(settings.data / "journal")
    elif loss == "replaced":
        os.replace(shutil.copy(feed.journal.path, settings.data / "copy"), feed.journal.path)
    else:
        os.remove(f"{feed.journal.path}-wal")
    answered: list[m.Answer] = []
    feed._answer = lambda envelope, answer: answered.append(answer)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="was removed or replaced"):
        feed._commit([([b"peer"], msgspec.structs.replace(kept, expect_n=1))])
    assert not answered
    with pytest.raises(UserError, match="was removed or replaced"):
        feed.beat(time.monotonic())


def test_no_connection_is_kept_to_the_doorbell_of_a_source_that_is_over(
    settings: Settings, start: Callable[[], Feed]
) -> None:
    for source, ended in (("a", True), ("b", False), ("c", True)):
        meta = backlog.Meta(stream=source, source=source, lane="batch", origin="", started_ns=1, resumable=False)
        (settings.streams / source).mkdir(parents=True)
        backlog.write_meta(settings.streams / source, msgspec.structs.replace(meta, ended=ended))
    feed, bell = start(), wire.publisher(wire.ipc(settings, "doorbell@b"))
    feed.beat(time.monotonic())
    assert feed._doorbells._connected == {wire.ipc(settings, "doorbell@b")}

    def rung() -> bool:
        wire.send(bell, [b"doorbell", b""])
        return wire.receive(feed._doorbells.socket) is not None

    wait_for(rung, what="the doorbell")
    backlog.write_meta(settings.streams / "b", msgspec.structs.replace(meta, source="b", stream="b", ended=True))
    feed.beat(time.monotonic())
    assert not feed._doorbells._connected
    bell.close()


def test_voices_of_what_is_out_of_sight_stay_and_of_what_was_purged_go(
    settings: Settings, start: Callable[[], Feed]
) -> None:
    feed = start()
    for stream in ("purged", "away"):
        say(feed.journal, stream, m.SummaryWanted())
    feed.journal.purge("purged")
    for stream in ("purged", "away"):
        (settings.windows(stream)).mkdir(parents=True)  # a step was under way
    feed._retention()
    assert len(list(settings.windows("").iterdir())) == 2, "the whole disk is away"
    settings.streams.mkdir()
    feed._retention()
    assert [p.name for p in settings.windows("").iterdir()] == ["away"]
