"""The web page, health and metrics: a subscriber like any other; it holds nothing that is not in the journal.

In: beat and events. Out: `/` the page, `/events` (server-sent, id = seq), `/healthz`, `/metrics`; and by POST
`/speakers` an event: what a person says of a speaker. Publications only say that something is new; what is sent is
replayed from the reader's last seq, so a reconnect loses and doubles nothing. Following, serving and waiting for the
signal are three threads: a dead or stopped feed never hangs the page.
"""

import asyncio
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, Metric, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from common import backlog, process, topology, wire
from common import messages as m
from common.feed_client import say
from common.given_sources import with_added
from common.hypotheses import Hypotheses
from common.settings import UserError
from common.voiceprints import proper_name
from workers.health import Health
from workers.whose import KINDS, Watch, Whose

SHOWN = ("transcript", "suppressed", "gap", "summary", "stream_started", "stream_ended", "purged")
LIVE = ("beat", "live.gpu", "live.hypothesis")
BACK = 1000  # a new page begins so many seqs before the head
MOST_SAID = 4096  # bytes of what a page may say


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a page says of a speaker: a name ("" takes it back), or that it is another one."""

    stream: str
    speaker: str
    name: str | None = None
    into: str | None = None


class Viewer:
    """Follows the feed in one thread; answers from the server's."""

    def __init__(self, p: process.Process) -> None:
        self.p, self.health, self.news = p, Health(p.settings, time.monotonic()), 0
        self.interim, self.whose = Hypotheses(), Whose(p.settings)

    def follow(self) -> None:
        topics = [*LIVE, *(f"event.{k}" for k in {*SHOWN, *KINDS})]
        sub = wire.subscriber([wire.ipc(self.p.settings, "pub")], topics)
        while not self.p.stopping:
            self.news += self.whose.read()
            if sub.poll(20 if self.whose.busy else 200) and (frames := wire.receive(sub)):
                try:
                    if frames[0] == b"beat":
                        self.health.take(msgspec.msgpack.decode(frames[-1], type=m.Beat), time.monotonic())
                    elif frames[0] == b"live.gpu":
                        self.health.take_gpu(msgspec.msgpack.decode(frames[-1], type=m.GpuState), time.monotonic())
                    elif frames[0] == b"live.hypothesis":
                        self.interim.take(msgspec.msgpack.decode(frames[-1], type=m.Hypothesis))
                    else:
                        event = msgspec.msgpack.decode(frames[-1], type=m.Event)
                        self.interim.event(event)
                        self.whose.news(event)
                except m.UNDECODABLE as e:
                    self.p.log.warning("bad message dropped", topic=frames[0].decode(), reason=str(e))
                self.news += 1

    def alive(self) -> dict[str, bool]:  # asking for our own lock would drop it
        names = topology.names(with_added(self.p.settings))
        return {n: n == self.p.name or process.holder(self.p.run, n) is not None for n in names}

    def status(self) -> dict[str, Any]:
        return self.health.status(self.alive(), time.monotonic())

    def collect(self) -> Iterator[Metric]:  # asked by prometheus_client
        return self.health.metrics(self.alive())

    async def events(self, after: int | None) -> AsyncIterator[str]:
        """The status each second, every shown event after seq `after` once, in order, the newest interim text, and
        what has been found out of speakers and translated: at first of all that a page which comes back may show."""
        feed, journal, status_s = wire.Requester(wire.ipc(self.p.settings, "replay")), "", 0.0
        told: dict[str, m.Hypothesis] = {}
        watch = Watch(self.whose, back=after is not None)
        try:
            while not self.p.stopping:
                news, now = self.news, time.monotonic()
                if now - status_s > 0.95:
                    status_s = now
                    yield f"event: status\ndata: {msgspec.json.encode(self.status()).decode()}\n\n"
                if self.health.beat and self.health.heard(now):
                    after = max(0, self.health.beat.head - BACK) if after is None else after
                    try:
                        page = await run_in_threadpool(feed.request, m.Replay(after=after, kinds=SHOWN), 1.0)
                    except wire.Unreachable:
                        continue
                    if not isinstance(page, m.Page) or page.upto < after or journal not in ("", page.journal):
                        after, journal = None, ""
                        watch.close()
                        yield "event: reset\ndata: {}\n\n"  # another journal stands there now
                    else:
                        for e in page.events:
                            watch.show(e)
                        yield "".join(self.rows(page.events))
                        after, journal = page.upto, page.journal
                        if page.upto < page.head:
                            continue
                for stream, found, others in watch.news():
                    if others:
                        yield _message("speakers", stream=stream, runs=found.runs, names=found.names)
                    if found.sentences:
                        yield _message("translations", stream=stream, sentences=found.sentences)
                for h in [h for h in self.interim.newest.values() if told.get(h.stream) is not h]:  # behind its finals
                    told[h.stream] = h
                    yield f"event: interim\ndata: {msgspec.json.encode(h).decode()}\n\n"
                while self.news == news and time.monotonic() < now + 1.0 and not self.p.stopping:
                    await asyncio.sleep(0.05)
        finally:
            watch.close()
            feed.close()

    def rows(self, events: tuple[m.Event, ...]) -> Iterator[str]:
        """Events as the page wants them, with the wall clock (ms) of their first sample where the backlog knows it."""
        anchors = {stream: self._heard(stream) for stream in {e.stream for e in events}}
        for e in events:
            row: dict[str, Any] = msgspec.to_builtins(e.decode()) or {}  # a tombstone has nothing to show
            row |= {"seq": e.seq, "stream": e.stream, "kind": e.kind, "producer": e.producer, "words": None}
            first = (row.get("span") or (0, 0))[0]
            near = next((a for a in reversed(anchors[e.stream]) if a.sample <= first), None)
            row["runs"] = self.whose.runs(e.stream, row["segment"]) if row.get("text") and "segment" in row else []
            row["clock_ms"] = near and near.wall_ns // 1_000_000 + (first - near.sample) // 16
            yield f"id: {e.seq}\ndata: {msgspec.json.encode(row).decode()}\n\n"

    def _heard(self, stream: str) -> list[backlog.Anchor]:
        """When its samples were heard. Those of a batch were at no time: its anchors say when a file was read."""
        folder = self.p.settings.streams / stream
        meta = backlog.read_meta(folder)
        return backlog.anchors(folder) if meta and meta.lane == "live" else []

    async def say(self, request: Request) -> Response:
        """What a person says in the page becomes an event, as from the command line; the page learns it by the feed."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return Response("said by another page\n", 403)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return Response("application/json is wanted\n", 415)  # what other pages' forms cannot send
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_SAID:
                return Response("too long\n", 413)
        try:
            said = msgspec.json.decode(body, type=Said)
            if (said.name is None) == (said.into is None):
                raise ValueError("one of name and into is wanted")
            event: m.Body
            if said.into is None:
                event = m.SpeakerName(speaker=said.speaker, name=proper_name(said.name or ""))
            else:
                event = m.Relabel(source=said.speaker, target=said.into)
        except (ValueError, *m.UNDECODABLE) as e:
            return Response(f"{e}\n", 400)
        if not all(self.whose.known(said.stream, s) for s in (said.speaker, said.into) if s is not None):
            return Response("no such speaker is shown\n", 404)
        if said.speaker == said.into:
            return Response("they are one speaker\n", 400)
        try:
            await run_in_threadpool(say, self.p.settings, said.stream, event)
        except UserError as e:
            return Response(f"{e}\n", 503)
        return Response(status_code=204)


def _message(event: str, **data: Any) -> str:
    return f"event: {event}\ndata: {msgspec.json.encode(data).decode()}\n\n"


def app(viewer: Viewer, host: str, token: str) -> Starlette:
    registry = CollectorRegistry()
    registry.register(viewer)

    async def answer(request: Request) -> Response:
        said = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(said.encode(), token.encode()):
            return Response("a token is needed: open /?token=...\n", 401)
        if not token and request.url.hostname not in ("localhost", "127.0.0.1", "::1", host):
            return Response("not the name of this page\n", 421)  # DNS rebinding: a stranger's page asks
        if request.url.path == "/speakers":
            return await viewer.say(request)
        if request.url.path == "/events":
            last = request.headers.get("last-event-id", "")
            stream = viewer.events(int(last) if last.isdecimal() and len(last) < 19 else None)
            return StreamingResponse(stream, media_type="text/event-stream")
        if request.url.path == "/healthz":
            status = viewer.status()
            return JSONResponse({k: status[k] for k in ("state", "reasons")}, 503 if status["reasons"] else 200)
        if request.url.path == "/metrics":
            return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")
        return FileResponse(Path(__file__).with_name("viewer.html"))

    pages = [Route(path, answer) for path in ("/", "/events", "/healthz", "/metrics")]
    return Starlette(routes=[*pages, Route("/speakers", answer, methods=["POST"])])


def run(p: process.Process) -> None:
    v = p.settings.viewer
    host = "127.0.0.1" if v.host == "localhost" else v.host
    try:
        if not v.token and not ipaddress.ip_address(host).is_loopback:
            raise UserError(f"viewer.host {host} can be reached from other machines: set viewer.token too")
        sock = socket.create_server((host, v.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, ValueError) as e:
        raise UserError(f"cannot listen on {host}:{v.port}: {e}; set viewer.host, viewer.port") from None
    viewer = Viewer(p)
    config = uvicorn.Config(app(viewer, host, v.token), log_config=None, log_level="warning", lifespan="off")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    threads = [threading.Thread(target=f, daemon=True) for f in (viewer.follow, lambda: server.run([sock]))]
    for t in threads:
        t.start()
    p.log.info("serving", address=wire.page(host, sock.getsockname()[1]))
    while not p.stopping and all(t.is_alive() for t in threads):
        time.sleep(0.1)
    server.should_exit = True
    threads[1].join(3.0)
    if not p.stopping:
        raise RuntimeError("a thread of the viewer ended by itself")


if __name__ == "__main__":
    process.main("viewer", run, process.arguments(__doc__ or ""))
