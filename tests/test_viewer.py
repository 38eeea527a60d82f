"""The viewer against a real feed: the page, its stream of events across reconnects, health, metrics, tokens."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from common import backlog, wire
from common import messages as m
from common.feed_client import Appender, replay
from common.settings import Settings, Source, ViewerSettings
from tests.conftest import Processes, Started, wait_for
from tests.standin_turns import StandinTurns
from workers.health import STILL_S, UNHEARD_S, Health
from workers.viewer import SHOWN

STREAM = "mic-20250101T000000Z"
SECOND = m.SAMPLE_RATE


class Page:
    """A viewer process, and a browser's ways of talking to it."""

    def __init__(self, processes: Processes, **viewer: Any) -> None:
        settings = msgspec.structs.replace(processes.settings, viewer=ViewerSettings(**({"port": 0} | viewer)))
        self.process = processes.start("workers.viewer", settings=settings)
        address = wait_for(
            lambda: re.search(r"http://([\d.]+):(\d+)/", self.process.output()), what="the viewer's address"
        )
        self.host, self.port = "127.0.0.1", int(address[2])

    def get(self, path: str, timeout_s: float = 5.0, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/speakers", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            data = body if isinstance(body, str) else json.dumps(body)
            said = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request("POST", path, data.encode(), said)
            response = connection.getresponse()
            return response.status, response.read().decode().strip()
        finally:
            connection.close()

    def health(self) -> tuple[int, str, str]:
        code, text = self.get("/healthz")
        body = json.loads(text)
        return code, body["state"], "; ".join(body["reasons"])

    def events(self, last: int | None = None) -> Events:
        return Events(self.host, self.port, last)


class Events:
    """One server-sent-events connection; what an EventSource would hand to the page."""

    def __init__(self, host: str, port: int, last: int | None) -> None:
        self.connection = http.client.HTTPConnection(host, port, timeout=20)
        self.connection.request("GET", "/events", headers={} if last is None else {"Last-Event-ID": str(last)})
        self.response = self.connection.getresponse()
        assert self.response.headers["content-type"].startswith("text/event-stream")

    def __iter__(self) -> Iterator[tuple[str, int | None, Any]]:
        """(event, id, data) one by one; ends when the server closes the connection."""
        fields: dict[str, str] = {}
        deadline = time.monotonic() + 30
        while line := self.response.readline().decode():
            assert time.monotonic() < deadline, "what was waited for did not come"
            if line != "\n":
                key, _, value = line.rstrip("\n").partition(": ")
                fields[key] = value
            elif fields:
                yield (
                    fields.get("event", "message"),
                    int(fields["id"]) if "id" in fields else None,
                    json.loads(fields["data"]),
                )
                fields = {}

    def ids(self, until: int) -> list[int]:
        """Ids of the messages up to the one with id `until`; then the browser goes away."""
        got: list[int] = []
        for event, seq, _ in self:
            if event == "message":
                assert seq is not None
                got.append(seq)
                if seq >= until:
                    break
        self.close()
        return got

    def close(self) -> None:
        self.response.close()
        self.connection.close()

    def first(self, event: str) -> Any:
        return next(data for kind, _, data in self if kind == event)


class Producer:
    """Appends to a stream as the transcriber would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.appender, self.n, self.audio = Appender(settings, "transcriber"), 0, 0

    def append(self, *bodies: m.Body, audio: int | None = None) -> int:
        positions = {} if audio is None else {"audio": audio}
        answer = self.appender.append(STREAM, self.n, positions, bodies)
        assert isinstance(answer, m.At) and answer.n == self.n + 1, answer
        self.n = answer.n
        return answer.head

    def say(self, text: str) -> int:
        """A second of speech and a second of silence; returns the seq of the caption."""
        start, middle, end = self.audio, self.audio + SECOND, self.audio + 2 * SECOND
        caption = m.Transcript(
            segment=m.segment_id(STREAM, start), span=(start, middle), text=text, language="en", model="x"
        )
        self.audio = end
        return self.append(caption, m.Silence(span=(middle, end)), audio=end) - 1


@pytest.fixture
def feed(processes: Processes) -> Started:
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    return feed


@pytest.fixture
def producer(feed: Started, settings: Settings) -> Iterator[Producer]:
    producer = Producer(settings)
    yield producer
    producer.appender.close()


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


def until(events: Events, kind: str, met: Callable[[Any], bool]) -> Any:
    """The first message of a kind that is as wanted."""
    return next(data for event, _, data in events if event == kind and met(data))


def test_captions_come_at_once_and_their_speakers_when_they_are_known(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=time.time_ns()))
    events = page.events()
    seq = producer.say("hello")
    row = next(d for kind, i, d in events if kind == "message" and i == seq)
    assert row["runs"] == []
    segment = row["segment"]
    turns.turn("S1", 0, 1)
    told = until(events, "speakers", lambda d: segment in d["runs"])
    assert told == {"stream": STREAM, "runs": {segment: [["S1", "hello"]]}, "names": {}}
    turns.relabel("S1", "S2", 0, 1)
    assert until(events, "speakers", lambda d: d["runs"])["runs"] == {segment: [["S2", "hello"]]}
    turns.append(m.SpeakerName(speaker="S2", name="Ann"))
    assert until(events, "speakers", lambda d: d["names"]) == {"stream": STREAM, "runs": {}, "names": {"S2": "Ann"}}
    again = page.events(0)  # a page that was away while all that happened
    told = until(again, "speakers", lambda d: d["names"])
    assert told == {"stream": STREAM, "runs": {segment: [["S2", "hello"]]}, "names": {"S2": "Ann"}}
    fresh = page.events()
    row = next(d for kind, i, d in fresh if kind == "message" and i == seq)
    assert row["runs"] == [["S2", "hello"]]
    turns.close()


def test_a_viewer_that_was_killed_knows_the_speakers_again(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 9)
    seq = producer.say("hello")
    until(page.events(0), "speakers", lambda d: d["runs"])
    page.process.kill()
    page = Page(processes, port=page.port)
    events = page.events(0)
    assert next(d for kind, i, d in events if kind == "message" and i == seq)["text"] == "hello"
    until(events, "speakers", lambda d: [["S1", "hello"]] in d["runs"].values())
    turns.close()


def test_a_name_said_in_the_page_is_an_event_that_comes_back(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    turns.turn("S2", 2, 3)
    events = page.events(0)
    producer.say("hello")
    producer.say("you")
    until(events, "speakers", lambda d: d["runs"])
    assert page.post({"stream": STREAM, "speaker": "S1", "name": " Ann  <b> "}) == (204, "")
    assert until(events, "speakers", lambda d: d["names"])["names"] == {"S1": "Ann <b>"}
    assert page.post({"stream": STREAM, "speaker": "S2", "into": "S1"}) == (204, "")
    told = until(events, "speakers", lambda d: d["runs"])
    assert list(told["runs"].values()) == [[["S1", "you"]]]
    said = list(replay(producer.settings, kinds=("speaker_name", "relabel")))
    assert all(re.fullmatch(r"cli\.[0-9a-f]{12}", e.producer) for e in said) and len(said) == 2
    turns.close()


def test_what_no_page_of_ours_says_changes_nothing(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    producer.say("hello")
    until(page.events(0), "speakers", lambda d: d["runs"])
    good = {"stream": STREAM, "speaker": "S1", "name": "Ann"}
    own = f"127.0.0.1:{page.port}"
    assert page.get("/speakers")[0] == 405
    assert page.post(good, Origin="http://elsewhere.example")[0] == 403
    assert page.post(good, Origin="null")[0] == 403
    assert page.post(good, Origin=f"http://127.0.0.1:{page.port + 1}")[0] == 403
    assert page.post(good, Host="rebound.example", Origin="http://rebound.example")[0] == 421
    for plain in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert page.post(good, Content_Type=plain)[0] == 415, "a form of another page can send it"
    assert page.post(good | {"name": "x" * 5000})[0] == 413
    wrong = ("{", "[]", {}, good | {"x": 1}, good | {"into": "S2"}, {"stream": STREAM, "speaker": "S1"})
    for body in (*wrong, good | {"name": "S7"}, good | {"name": "x" * 61}, good | {"name": 7}):
        assert page.post(body)[0] == 400, body
    for body in (good | {"speaker": "S9"}, good | {"speaker": ""}, good | {"stream": "another"}):
        assert page.post(body) == (404, "no such speaker is shown")
    assert page.post({"stream": STREAM, "speaker": "S1", "into": "S9"})[0] == 404
    assert page.post({"stream": STREAM, "speaker": "S1", "into": "S1"})[0] == 400
    assert list(replay(producer.settings, kinds=("speaker_name", "relabel"))) == []
    assert page.post(good, Origin=f"http://{own}", Content_Type="application/json; charset=utf-8")[0] == 204
    turns.close()


def test_a_token_is_needed_to_say_something(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes, token="geheim"), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    good = {"stream": STREAM, "speaker": "S1", "name": "Ann"}
    for path in ("/speakers", "/speakers?token=wrong"):
        assert page.post(good, path)[0] == 401
    assert page.post(good, "/speakers?token=geheim") == (404, "no such speaker is shown"), "no page has asked for it"
    assert page.post(good, "/speakers?token=geheim", Origin="http://elsewhere.example")[0] == 403
    turns.close()


# -- the colours of speakers ----------------------------------------------------------------------------------------


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _luminance(rgb: list[float]) -> float:
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def _contrast(a: str, b: str) -> float:
    """WCAG 2.2."""
    low, high = sorted(_luminance(_linear(c)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


SIGHTS = {  # Machado, Oliveira, Fernandes 2009: what is left of linear RGB where one kind of cone is missing
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def _lab(rgb: list[float]) -> list[float]:
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(r, rgb, strict=True)) / w for r, w in zip(rows, (0.9505, 1, 1.089), strict=True)]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def _palettes() -> list[tuple[str, str, list[str]]]:
    """(background, ink, colours of speakers) in the dark and in the light."""
    style = (Path(__file__).parent.parent / "workers" / "viewer.html").read_text().partition("</style>")[0]
    found = []
    for part in style.split("@media"):
        value = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        found.append((value["back"], value["ink"], [value[f"s{i}"] for i in range(6)]))
    return found


def test_speakers_are_legible_and_can_be_told_apart_whatever_one_sees() -> None:
    dark, light = _palettes()
    assert _luminance(_linear(dark[0])) < 0.1 < 0.8 < _luminance(_linear(light[0]))
    for back, ink, colours in (dark, light):
        assert all(_contrast(c, back) >= 4.5 for c in (ink, *colours)), "WCAG AA"
        for rows in SIGHTS.values():
            seen = []
            for c in colours:
                rgb = [max(0.0, min(1.0, sum(a * b for a, b in zip(r, _linear(c), strict=True)))) for r in rows]
                seen.append(_lab(rgb))
            assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 25, "2.3 is just noticeable"


def start_stream(folder: Path) -> backlog.Writer:
    """A live stream's folder, as capture makes it."""
    folder.mkdir(parents=True)
    meta = backlog.Meta(
        stream=folder.name, source="mic", lane="live", origin="test", started_ns=time.time_ns(), resumable=False
    )
    backlog.write_meta(folder, meta)
    writer = backlog.Writer(folder, 60 * SECOND)
    writer.anchor()
    return writer


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
    page = Page(processes)
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


def test_health_is_idle_without_a_stream_and_red_while_the_feed_is_stopped(processes: Processes, feed: Started) -> None:
    page = Page(processes)
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle")
    events = page.events()
    feed.signal(signal.SIGSTOP)
    _, state, why = wait_for(lambda: (h := page.health())[0] == 503 and h, what="red")
    assert state == "red" and why.startswith("feed silent for")
    began = time.monotonic()
    assert page.get("/")[0] == 200 and time.monotonic() - began < 1.0
    assert next(d for kind, _, d in events if kind == "status" and d["state"] == "red")["reasons"]
    feed.signal(signal.SIGCONT)
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle again")
    feed.kill()
    why = wait_for(lambda: (h := page.health())[0] == 503 and h[2], what="red")
    assert why.startswith("feed not running for")
    processes.start("workers.feed")
    wait_for(lambda: page.health() == (200, "idle", ""), what="idle after a restart")


def test_health_is_green_while_captions_flow_and_says_what_fails(processes: Processes, producer: Producer) -> None:
    settings = processes.settings = msgspec.structs.replace(
        processes.settings, source=(Source(name="mic", kind="microphone"),)
    )
    page = Page(processes, red_lag_s=30.0)
    assert (
        wait_for(lambda: "mic has not begun; transcriber is not running" in page.health()[2] and page.health()[0])
        == 503
    )
    worker = processes.spawn(standin("transcriber", settings), "standin-transcriber")
    writer = start_stream(settings.streams / STREAM)

    def flowing() -> bool:
        writer.append(writer.end, b"\0\0" * 1600)
        return page.health() == (200, "ok", "")

    wait_for(flowing, what="green")
    worker.kill()
    assert wait_for(lambda: (h := page.health())[0] == 503 and h)[2] == "transcriber is not running"
    processes.spawn(standin("transcriber", settings), "standin-transcriber")
    wait_for(flowing, what="green with a new transcriber")
    why = wait_for(lambda: (h := page.health())[0] == 503 and h[2], what="red when the audio stands still")
    assert re.fullmatch(r"capture@mic: no audio for \d+ s", why)
    wait_for(flowing, what="green when audio returns")
    writer.append(writer.end, b"\0\0" * 40 * SECOND)
    why = wait_for(lambda: (h := page.health())[0] == 503 and h[2], what="red when captions are late")
    assert re.fullmatch(rf"{STREAM}: captions are \d+ s late", why)
    producer.append(m.Silence(span=(0, writer.end)), audio=writer.end)
    wait_for(flowing, what="green when caught up")


def standin(name: str, settings: Settings) -> list[str]:
    import sys

    return [sys.executable, "-m", "tests.standin_process", name, "--set", f"data_dir={settings.data_dir}"]


def test_metrics_can_be_parsed_and_count(processes: Processes, producer: Producer) -> None:
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=1))
    producer.say("one")
    page = Page(processes)

    def samples() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(page.get("/metrics")[1])
        return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    got = wait_for(lambda: (s := samples()).get(("swapscribe_seq_head",)) == 3 and s, what="the beat in the metrics")
    assert got["swapscribe_coverage_samples", "text", STREAM] == SECOND
    assert got["swapscribe_coverage_samples", "silence", STREAM] == SECOND
    assert got["swapscribe_lag_seconds", STREAM] == 0
    assert got["swapscribe_appends_total", "transcriber", STREAM] == 2
    up = {k[1]: v for k, v in got.items() if k[0] == "swapscribe_process_up"}
    assert up == {"feed": 1, "arbiter": 0, "transcriber": 0, "summarizer": 0, "diarizer": 0, "viewer": 1}


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
    page = Page(processes)
    wait_for(lambda: page.health()[0] == 200)
    readers = [page.events() for _ in range(3)]
    feed.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert page.process.stop() == 0
    assert time.monotonic() - began < 3.0
    for r in readers:
        r.close()


# -- the judgement, pure --------------------------------------------------------------------------------------------


def stream(**change: Any) -> m.StreamBeat:
    base: dict[str, Any] = {
        "source": "mic",
        "lane": "live",
        "ended": False,
        "audio_head": 0,
        "heads": {},
        "producers": {},
    }
    return m.StreamBeat(**base | {"lag_s": 0.0, "coverage": m.Coverage()} | change)


def beat(streams: dict[str, m.StreamBeat], trouble: str = "", **captures: m.Doorbell) -> m.Beat:
    return m.Beat(
        protocol=1, journal="j", head=1, at_ns=1, streams=streams, workers={}, captures=captures, trouble=trouble
    )


ALIVE = {"feed": True, "capture@mic": True, "transcriber": True, "viewer": True}
LIVE = Settings(source=(Source(name="mic", kind="microphone"),))


@pytest.mark.parametrize(
    ("said", "alive", "after_s", "reasons"),
    [
        (beat({"s": stream()}), ALIVE, 0.0, []),
        (beat({"s": stream()}), ALIVE, UNHEARD_S + 1, ["feed silent for 4 s"]),
        (beat({"s": stream()}), ALIVE | {"feed": False}, UNHEARD_S + 1, ["feed not running for 4 s"]),
        (beat({"s": stream()}, trouble="disk full"), ALIVE, 0.0, ["feed: disk full"]),
        (beat({"s": stream(lag_s=21.0)}), ALIVE, 0.0, ["s: captions are 21 s late"]),
        (beat({"s": stream(lag_s=21.0, ended=True)}), ALIVE, 0.0, ["s: captions are 21 s late"]),
        (beat({"s": stream(lag_s=21.0, lane="batch", source="f")}), ALIVE, 0.0, []),
        (beat({"s": stream()}), ALIVE | {"transcriber": False}, 0.0, ["transcriber is not running"]),
        (beat({}), ALIVE | {"capture@mic": False}, 0.0, ["capture@mic has not begun"]),
        (beat({"s": stream(ended=True)}), ALIVE | {"capture@mic": False}, 0.0, []),
        (
            beat({"s": stream()}, mic=m.Doorbell(source="mic", stream="s", end=1, state="disk_full", detail="/data")),
            ALIVE,
            0.0,
            ["capture@mic: disk full /data"],
        ),
    ],
)
def test_each_trouble_has_its_reason(said: m.Beat, alive: dict[str, bool], after_s: float, reasons: list[str]) -> None:
    health = Health(LIVE, 0.0)
    health.take(said, 1.0)
    assert list(health.reasons(alive, 1.0 + after_s)) == reasons
    assert health.status(alive, 1.0 + after_s)["state"] == "red" if reasons else "ok"


def test_audio_that_stands_still_is_red_and_an_ended_stream_is_idle() -> None:
    health = Health(LIVE, 0.0)
    for second in range(20):
        health.take(beat({"s": stream(audio_head=min(second, 5))}), float(second))
        expected = [f"capture@mic: no audio for {second - 5} s"] if second > 5 + STILL_S else []
        assert list(health.reasons(ALIVE, float(second))) == expected
    health.take(beat({"s": stream(audio_head=5, ended=True)}), 20.0)
    assert health.status(ALIVE, 20.0)["state"] == "idle"


def test_a_stream_that_a_kill_left_open_and_nobody_wants_any_more_is_no_trouble() -> None:
    health = Health(LIVE, 0.0)
    for second in range(20):
        health.take(beat({"s": stream(audio_head=second), "old": stream(source="recording")}), float(second))
    assert list(health.reasons(ALIVE, 19.0)) == []
    assert list(health.reasons(ALIVE | {"capture@recording": True}, 19.0)) == ["capture@recording: no audio for 19 s"]


def test_streams_that_are_over_leave_the_metrics_and_the_memory() -> None:
    """The beat names what is live or has just changed, and a few others in turn: a year's streams are not kept."""
    health, quiet = Health(LIVE, 0.0), ALIVE | {"capture@mic": False}
    late = stream(source="f", lane="batch", ended=True, lag_s=9.0, coverage=m.Coverage(pending=9))
    health.take(beat({"open": stream(audio_head=7, source="f"), "late": late}), 0.0)
    for day in range(1, 1000):
        health.take(beat({f"s{day}": stream(ended=True)}), float(day))
    shown = {s.labels["stream"] for f in health.metrics(ALIVE) for s in f.samples if "stream" in s.labels}
    assert shown == {"open", "late", "s999"} == set(health.streams) == set(health.moved)
    assert health.moved["open"] == (7, 0.0), "since when it stands is remembered"
    assert list(health.reasons(quiet, 999.0)) == []
    health.take(beat({"other": stream(source="f", ended=True)}), 1000.0)
    assert list(health.reasons(quiet, 1000.0)) == [], "mic had a stream, although none is shown any more"
    health.take(msgspec.structs.replace(beat({}), journal="another"), 1001.0)
    assert not health.streams and not health.moved
    assert list(health.reasons(quiet, 1001.0)) == ["capture@mic has not begun"]


def test_a_worker_that_complains_is_red() -> None:
    health = Health(LIVE, 0.0)
    said = m.WorkerStatus(worker="transcriber", pid=1, phase="idle", detail="s cannot be read: I/O error")
    health.take(msgspec.structs.replace(beat({"s": stream()}), workers={"transcriber": said}), 0.0)
    assert list(health.reasons(ALIVE, 0.0)) == ["transcriber: s cannot be read: I/O error"]


def test_nothing_heard_at_all_is_red() -> None:
    assert list(Health(Settings(), 0.0).reasons(ALIVE, 2.0)) == ["feed silent for 2 s"]
