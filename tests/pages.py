"""A viewer process and a browser's ways of talking to it, and who appends what it shows."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from common import backlog
from common import messages as m
from common.feed_client import Appender
from common.settings import Settings, ViewerSettings
from tests.conftest import Processes, wait_for

STREAM = "mic-20250101T000000Z"
SECOND = m.SAMPLE_RATE


def lasting_port() -> int:
    """A free port for a viewer that is killed and comes back to it: none that the kernel gives to others meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("a hundred ports are in use")


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


def until(events: Events, kind: str, met: Callable[[Any], bool]) -> Any:
    """The first message of a kind that is as wanted."""
    return next(data for event, _, data in events if event == kind and met(data))


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
