"""The viewer against a real feed: the page, its stream of events across reconnects and kills, tokens, mistakes."""

from __future__ import annotations

import json
import re
import signal
import socket
import time

import msgspec

from common import backlog, wire
from common import messages as m
from common.feed_client import replay
from common.settings import Settings, ViewerSettings
from tests.conftest import Processes, Started, wait_for
from tests.pages import SECOND, STREAM, Events, Page, Producer, lasting_port, start_stream
from workers.viewer import SHOWN


def shown(settings: Settings) -> list[int]:
    return [e.seq for e in replay(settings, kinds=SHOWN)]


def test_the_page_is_served_and_captions_reach_it(processes: Processes, producer: Producer) -> None:
    page = Page(processes)
    code, text = page.get("/")
    assert code == 200 and "EventSource" in text
    folder = processes.settings.streams / STREAM
    start_stream(folder)
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=time.time_ns()))
    events = page.events()
    assert events.first("status")["processes"]["viewer"] == "up"
    seq = producer.say("hello <b>world</b>")
    data = next(d for kind, i, d in events if kind == "message" and i == seq)
    assert (data["kind"], data["text"], data["span"]) == ("transcript", "hello <b>world</b>", [0, SECOND])
    assert data["clock_ms"] == backlog.anchors(folder)[0].wall_ns // 1_000_000
    assert page.get("/nothing")[0] == 404
    found = backlog.read_meta(folder)
    assert found
    backlog.write_meta(folder, msgspec.structs.replace(found, lane="batch"))
    seq = producer.say("of a file")
    data = next(d for kind, i, d in events if kind == "message" and i == seq)
    assert data["clock_ms"] is None, "it was heard at no time"


def test_interim_text_reaches_the_page_behind_the_finals(processes: Processes, producer: Producer) -> None:
    events = Page(processes).events()
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=time.time_ns()))
    seq = producer.say("before")
    next(i for kind, i, _ in events if kind == "message" and i == seq)  # it is connected
    segment, span = m.segment_id(STREAM, producer.audio), (producer.audio, producer.audio + 800)
    text = m.Hypothesis(stream=STREAM, segment=segment, revision=800, span=span, stable="ask", unstable=" not")
    producer.appender.tell(text)
    data = events.first("interim")
    assert (data["stable"], data["unstable"], data["span"]) == ("ask", " not", list(span))


def test_a_reconnect_loses_and_doubles_nothing(processes: Processes, producer: Producer, settings: Settings) -> None:
    page = Page(processes)
    got: list[int] = []
    for turn in range(5):
        last = [producer.say(f"{turn} {i}") for i in range(40)]
        events = page.events(got[-1] if got else 0)
        last.append(producer.say("while connected"))
        got += events.ids(until=last[turn * 9])  # the browser goes away somewhere in the middle
    got += page.events(got[-1]).ids(until=last[-1])
    assert got == shown(settings)


def test_a_killed_viewer_and_a_killed_feed_lose_and_double_nothing(
    processes: Processes, feed: Started, producer: Producer, settings: Settings
) -> None:
    page = Page(processes, port=lasting_port())
    got = page.events(0).ids(until=[producer.say(str(i)) for i in range(20)][9])
    page.process.kill()
    middle = [producer.say(str(i)) for i in range(20)][9]
    page = Page(processes, port=page.port)  # the same address, as the browser expects
    got += page.events(got[-1]).ids(until=middle)
    events = page.events(got[-1])
    feed.kill()
    processes.start("workers.feed")
    producer.say("after the restart")
    last = producer.say("and more")
    got += events.ids(until=last)  # the same connection sees the feed die and return
    assert got == shown(settings)


def test_an_unfamiliar_last_event_id_begins_anew(processes: Processes, producer: Producer) -> None:
    page = Page(processes)
    seq = producer.say("hello")
    for last in (10**6, 2**62):
        assert page.events(last).ids(until=seq) == [seq]
    events = Events(page.host, page.port, 10**30)
    assert events.ids(until=seq) == [seq]


def test_a_purge_reaches_the_page(processes: Processes, producer: Producer, settings: Settings) -> None:
    page = Page(processes)
    secret = producer.say("a secret")
    events = page.events(0)
    assert next(d["text"] for kind, i, d in events if i == secret) == "a secret"
    asker = wire.Requester(wire.ipc(settings, "append"))
    assert isinstance(asker.request(m.Purge(stream=STREAM), 5.0), m.Done)
    asker.close()
    purged = next(d for kind, _, d in events if kind == "message" and d["kind"] == "purged")
    assert any(a <= secret <= b for a, b in purged["seqs"])
    again = page.events(0)
    rows = [d for kind, _, d in (next(iter(again)) for _ in range(6)) if kind == "message"]
    assert rows and "secret" not in json.dumps(rows)


def test_a_token_is_needed_everywhere_when_set(processes: Processes) -> None:
    page = Page(processes, host="0.0.0.0", token="gé-heim")
    for path in ("/", "/events", "/healthz", "/metrics"):
        assert page.get(path)[0] == 401
        assert page.get(f"{path}?token=wrong")[0] == 401
    assert page.get("/?token=g%C3%A9-heim")[0] == 200
    page = Page(processes, token="geheim", port=0) if page.process.stop() == 0 else page
    assert page.get("/healthz", Authorization="Bearer geheim")[0] in (200, 503)
    assert page.get("/healthz", Authorization="Bearer x")[0] == 401


def test_without_a_token_only_our_own_host_names_are_answered(processes: Processes) -> None:
    page = Page(processes)
    assert page.get("/", Host=f"localhost:{page.port}")[0] == 200
    assert page.get("/", Host="rebound.example")[0] == 421


def test_mistakes_are_one_line(processes: Processes) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    for viewer, line in (
        (ViewerSettings(host="0.0.0.0"), r"viewer.host 0.0.0.0 can be reached .* set viewer.token too"),
        (ViewerSettings(port=port), rf"cannot listen on 127.0.0.1:{port}: .*in use.*; set viewer.host, viewer.port"),
        (ViewerSettings(host="no such host"), r"cannot listen on no such host:.*"),
    ):
        process = processes.start("workers.viewer", settings=msgspec.structs.replace(processes.settings, viewer=viewer))
        assert process.wait() == 2
        said = [x for x in process.output().splitlines() if not x.startswith("{")]
        assert len(said) == 1 and re.fullmatch(rf"swapscribe: viewer: {line}", said[0]), said
    taken.close()


def test_sigterm_ends_it_at_once_also_with_readers_and_a_stopped_feed(processes: Processes, feed: Started) -> None:
    def took_s() -> float:
        page = Page(processes)
        wait_for(lambda: page.health()[0] == 200)
        readers = [page.events() for _ in range(3)]
        feed.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert page.process.stop() == 0
        took_s = time.monotonic() - began
        feed.signal(signal.SIGCONT)
        for r in readers:
            r.close()
        return took_s

    assert any(took_s() < 3.0 for _ in range(3)), "its end waits for something"
