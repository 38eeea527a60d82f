"""The web page, health and metrics: a subscriber like any other; it holds nothing that is not in the journal.

In: beat and events. Out: `/` the page, `/events` (server-sent, id = seq), `/healthz`, `/metrics`. Publications only say
that something is new; what is sent is replayed from the reader's last seq, so a reconnect loses and doubles nothing.
Following, serving and waiting for the signal are three threads: a dead or stopped feed never hangs the page.
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
from common.given_sources import with_added
from common.hypotheses import Hypotheses
from common.settings import UserError
from workers.health import Health

SHOWN = ("transcript", "suppressed", "gap", "summary", "stream_started", "stream_ended", "purged")
LIVE = ("beat", "live.gpu", "live.hypothesis")
BACK = 1000  # a new page begins so many seqs before the head


class Viewer:
    """Follows the feed in one thread; answers from the server's."""

    def __init__(self, p: process.Process) -> None:
        self.p, self.health, self.news = p, Health(p.settings, time.monotonic()), 0
        self.interim = Hypotheses()

    def follow(self) -> None:
        sub = wire.subscriber([wire.ipc(self.p.settings, "pub")], [*LIVE, *(f"event.{k}" for k in SHOWN)])
        while not self.p.stopping:
            if sub.poll(200) and (frames := wire.receive(sub)):
                try:
                    if frames[0] == b"beat":
                        self.health.take(msgspec.msgpack.decode(frames[-1], type=m.Beat), time.monotonic())
                    elif frames[0] == b"live.gpu":
                        self.health.take_gpu(msgspec.msgpack.decode(frames[-1], type=m.GpuState), time.monotonic())
                    elif frames[0] == b"live.hypothesis":
                        self.interim.take(msgspec.msgpack.decode(frames[-1], type=m.Hypothesis))
                    else:
                        self.interim.event(msgspec.msgpack.decode(frames[-1], type=m.Event))
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
        """The status each second, every shown event after seq `after` once, in order, and the newest interim text."""
        feed, journal, status_s = wire.Requester(wire.ipc(self.p.settings, "replay")), "", 0.0
        told: dict[str, m.Hypothesis] = {}
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
                        yield "event: reset\ndata: {}\n\n"  # another journal stands there now
                    else:
                        yield "".join(self.rows(page.events))
                        after, journal = page.upto, page.journal
                        if page.upto < page.head:
                            continue
                for h in [h for h in self.interim.newest.values() if told.get(h.stream) is not h]:  # behind its finals
                    told[h.stream] = h
                    yield f"event: interim\ndata: {msgspec.json.encode(h).decode()}\n\n"
                while self.news == news and time.monotonic() < now + 1.0 and not self.p.stopping:
                    await asyncio.sleep(0.05)
        finally:
            feed.close()

    def rows(self, events: tuple[m.Event, ...]) -> Iterator[str]:
        """Events as the page wants them, with the wall clock (ms) of their first sample where the backlog knows it."""
        anchors = {stream: backlog.anchors(self.p.settings.streams / stream) for stream in {e.stream for e in events}}
        for e in events:
            row: dict[str, Any] = msgspec.to_builtins(e.decode()) or {}  # a tombstone has nothing to show
            row |= {"seq": e.seq, "stream": e.stream, "kind": e.kind, "producer": e.producer, "words": None}
            first = (row.get("span") or (0, 0))[0]
            near = next((a for a in reversed(anchors[e.stream]) if a.sample <= first), None)
            row["clock_ms"] = near and near.wall_ns // 1_000_000 + (first - near.sample) // 16
            yield f"id: {e.seq}\ndata: {msgspec.json.encode(row).decode()}\n\n"


def app(viewer: Viewer, host: str, token: str) -> Starlette:
    registry = CollectorRegistry()
    registry.register(viewer)

    async def answer(request: Request) -> Response:
        said = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(said.encode(), token.encode()):
            return Response("a token is needed: open /?token=...\n", 401)
        if not token and request.url.hostname not in ("localhost", "127.0.0.1", "::1", host):
            return Response("not the name of this page\n", 421)  # DNS rebinding: a stranger's page asks
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

    return Starlette(routes=[Route(path, answer) for path in ("/", "/events", "/healthz", "/metrics")])


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
    p.log.info("serving", address=f"http://{host}:{sock.getsockname()[1]}/")
    while not p.stopping and all(t.is_alive() for t in threads):
        time.sleep(0.1)
    server.should_exit = True
    threads[1].join(3.0)
    if not p.stopping:
        raise RuntimeError("a thread of the viewer ended by itself")


if __name__ == "__main__":
    process.main("viewer", run, process.arguments(__doc__ or ""))
