"""The feed: owner of the journal. In: appends and signs of life. Out: answers, live events, a beat each second, replay.

Two threads: this one commits groups of appends and publishes them after the commit, then answers; the replay thread
reads pages beside it, so that a subscriber catching up slows no append. After a kill the journal holds whole appends;
producers that got no answer ask again, subscribers heal by replay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from typing import Any

import msgspec

from common import backlog, coverage, wire
from common import messages as m
from common.process import Log, Process, arguments, main
from common.settings import UserError, full_path
from common.topology import COVERAGE_PRODUCER
from workers.doorbells import Doorbells
from workers.journal import DiskFull, Journal, Reader
from workers.retention import Retention, forget_voices

BEAT_S = 1.0
GROUP = 256  # appends per transaction at most
CHANGED_WITHIN_S = 60.0
OTHERS_PER_BEAT = 4
HEARD_WITHIN_S = 3.0
LOW_DISK_BYTES = 64 * 1024 * 1024
OPENS_EVERY_S = 0.25  # whether there is room for the journal by now
RETENTION_EVERY_S = 60.0

_request = msgspec.msgpack.Decoder(m.FeedRequest)
_replay = msgspec.msgpack.Decoder(m.ReplayRequest)
_doorbell = msgspec.msgpack.Decoder(m.Doorbell)


def refusal(payload: bytes, error: Exception) -> m.Refused:
    """Tell a peer whose message was not understood whether it is too new or plainly wrong."""
    try:
        protocol = msgspec.msgpack.decode(payload).get("protocol", m.PROTOCOL)
    except (AttributeError, *m.UNDECODABLE):
        return m.Refused(reason="malformed message: not a msgpack map")
    if protocol != m.PROTOCOL:
        return m.Refused(reason=f"wrong protocol {protocol!r}, this feed speaks {m.PROTOCOL}")
    return m.Refused(reason=f"malformed message: {error}")


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class BadMessages:
    """Says once per kind of complaint that somebody sends nonsense, and counts the rest."""

    def __init__(self, log: Log, endpoint: str) -> None:
        self.log, self.endpoint, self.count = log, endpoint, 0

    def refuse(self, payload: bytes, error: Exception) -> m.Refused:
        answer = refusal(payload, error)
        self.count += 1
        if self.count & (self.count - 1) == 0:  # 1, 2, 4, 8 ...
            self.log.warning("refused", endpoint=self.endpoint, reason=answer.reason[:200], so_far=self.count)
        return answer


class ReplayThread(threading.Thread):
    """Answers Replay and StateHash from a read-only connection."""

    def __init__(self, sockets: list[Any], path: Any, journal: str, log: Log) -> None:
        super().__init__(name="replay", daemon=True)
        self._sockets, self._path, self._journal = sockets, path, journal
        self._bad = BadMessages(log, "replay")
        self.stopping = False

    def run(self) -> None:
        reader = Reader(self._path, self._journal)
        poller = wire.poller(*self._sockets)
        while not self.stopping:
            for socket, _ in poller.poll(200):
                frames = wire.receive(socket)
                if frames:
                    wire.send(socket, [*frames[:-1], m.encode(self._answer(reader, frames[-1]))])
        reader.close()

    def _answer(self, reader: Reader, payload: bytes) -> m.Page | m.Hash | m.Refused:
        try:
            ask = _replay.decode(payload)
        except m.UNDECODABLE as e:
            return self._bad.refuse(payload, e)
        if ask.protocol != m.PROTOCOL:
            return refusal(payload, ValueError())
        if isinstance(ask, m.StateHash):
            upto, digest = reader.state_hash(ask.kinds, ask.upto)
            return m.Hash(upto=upto, sha256=digest)
        return reader.page(ask)


class Feed:
    """Journal, sockets and what the beat tells; `turn(now)` is one round of the loop."""

    def __init__(self, process: Process, journal: Journal) -> None:
        settings = process.settings
        self.settings, self.log, self.journal = settings, process.log, journal
        self.append = wire.router(wire.ipc(settings, "append"))
        self.pubs = [wire.publisher(wire.ipc(settings, "pub"))]
        replays = [wire.router(wire.ipc(settings, "replay"), hwm=wire.PAGES_UNREAD)]
        self._auth = None
        if settings.feed.pub_tcp or settings.feed.replay_tcp:
            keys = settings.feed.curve_dir
            curve = wire.Curve(full_path(keys) if keys else settings.data / "curve")
            self._auth, pubs, more = curve.serve(settings.feed.pub_tcp, settings.feed.replay_tcp)
            self.pubs += pubs
            replays += more
        self._doorbells = Doorbells(settings)
        self._unreadable: set[str] = set()
        limit_s = settings.retention.events_d * 86_400
        self.retention = Retention(journal, limit_s, process.log, _since_boot_s())
        self.replay = ReplayThread(replays, self.journal.path, self.journal.id, process.log)
        self.poller = wire.poller(self.append, self._doorbells.socket)
        self._bad = BadMessages(process.log, "append")
        self._run, self._began = os.urandom(8).hex(), time.monotonic()
        # What the feed before us committed last it may not have published. A subscriber that leaves the beat's `feed`
        # out would take a beat without it for "nothing new". By seq: no clock tells what was last. One group is of as
        # many streams at most.
        by_seq = sorted(self.journal.heads, key=lambda s: max(self.journal.heads[s].values(), default=0))
        self._changed = dict.fromkeys(by_seq[-GROUP:], self._began)
        self._workers: dict[str, tuple[float, m.WorkerStatus]] = {}
        self._captures: dict[str, tuple[float, m.Doorbell]] = {}
        self._metas: dict[str, backlog.Meta] = {}
        self._hypotheses: dict[str, tuple[int, float]] = {}
        self._trouble = ""
        self._next_beat = self._next_retention = 0.0
        self._turn_of_others = 0

    def run(self, process: Process) -> None:
        self.replay.start()
        self.log.info("serving", journal=self.journal.id, head=self.journal.head)
        while not process.stopping:
            self.turn(time.monotonic())
            if not self.replay.is_alive():  # a bug there must not leave half a feed: the launcher starts a whole one
                raise RuntimeError("the replay thread has ended")
        self.replay.stopping = True
        self.replay.join(2.0)
        self.journal.close()

    def turn(self, now: float) -> None:
        self.poller.poll(max(0, min(250, int((self._next_beat - now) * 1000))))  # a signal is seen within 250 ms
        self._take_requests()
        for _ in range(100):
            frames = wire.receive(self._doorbells.socket)
            if frames is None:
                break
            try:
                bell = _doorbell.decode(frames[-1])
                self._captures[bell.source] = (time.monotonic(), bell)
            except m.UNDECODABLE as e:
                self._bad.refuse(frames[-1], e)
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._publish("beat", m.encode(self.beat(now)))
            if now >= self._next_retention:
                self._next_retention = now + RETENTION_EVERY_S
                self._retention()

    def _take_requests(self) -> None:
        """All requests that wait: appends as one transaction, published, then answered."""
        group: list[tuple[wire.Frames, m.Append]] = []
        for _ in range(GROUP):
            frames = wire.receive(self.append)
            if frames is None:
                break
            envelope, payload = frames[:-1], frames[-1]
            try:
                request = _request.decode(payload)
            except m.UNDECODABLE as e:
                self._answer(envelope, self._bad.refuse(payload, e))
                continue
            if request.protocol != m.PROTOCOL:
                self._answer(envelope, refusal(payload, ValueError()))
                continue
            match request:
                case m.Append():
                    group.append((envelope, request))
                case m.WorkerStatus():
                    self._workers[request.worker] = (time.monotonic(), request)
                case m.Hypothesis():
                    self._pass_on(request, payload)
                case m.GpuState():
                    self._publish("live.gpu", payload)
                case m.Purge():
                    self._answer(envelope, self._purge(request.stream))
        if group:
            self._commit(group)

    def _commit(self, group: list[tuple[wire.Frames, m.Append]]) -> None:
        answers, events = self.journal.append([a for _, a in group])
        self._check_journal()  # before anybody takes it for kept
        now = time.monotonic()
        for e in events:
            self._publish(f"event.{e.kind}", m.encode(e))
            self._changed[e.stream] = now
            if e.kind == "stream_ended":
                self.retention.ended(e.stream, _since_boot_s())
        for (envelope, _), answer in zip(group, answers, strict=True):
            self._answer(envelope, answer)
        refused = next((a for a in answers if isinstance(a, m.Refused)), None)
        trouble = refused.reason if refused and refused.retry_after_s else ""
        if (trouble or events) and trouble != self._trouble:
            self.log.warning("appends refused", reason=trouble) if trouble else self.log.info("appends taken again")
            self._trouble = trouble
        elif refused and not refused.retry_after_s:
            self.log.warning("append refused", reason=refused.reason[:300])

    def _answer(self, envelope: wire.Frames, answer: m.Answer) -> None:
        wire.send(self.append, [*envelope, m.encode(answer)])

    def _publish(self, topic: str, payload: bytes) -> None:
        for pub in self.pubs:
            wire.send(pub, [topic.encode(), payload])

    def _pass_on(self, h: m.Hypothesis, payload: bytes) -> None:
        now = time.monotonic()
        if self._hypotheses.get(h.segment, (-1, 0.0))[0] >= h.revision:
            return
        self._hypotheses = {k: v for k, v in self._hypotheses.items() if now - v[1] < CHANGED_WITHIN_S}
        self._hypotheses[h.segment] = (h.revision, now)
        self._publish("live.hypothesis", payload)

    def _purge(self, stream: str) -> m.Done | m.Refused:
        if stream not in self.journal.heads:
            return m.Refused(reason=f"no stream {stream!r} in the journal")
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.settings.windows(stream))
            events = self.journal.purge(stream, forget=not (self.settings.streams / stream).exists())
        except OSError as e:
            return m.Refused(reason=str(e), retry_after_s=1.0)
        for event in events:
            self._publish(f"event.{event.kind}", m.encode(event))
        self._changed[stream] = time.monotonic()
        runs = [run for event in events for run in msgspec.msgpack.decode(event.body, type=m.Purged).seqs]
        count = sum(b - a + 1 for a, b in runs)
        self.log.info("purged", stream=stream, events=count)
        return m.Done(detail=f"{count} events purged")

    def _retention(self) -> None:
        forget_voices(self.settings, self.journal, self.log)
        for stream in self.retention.round(_since_boot_s(), time.time_ns()):
            self._purge(stream)

    # -- the beat ---------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> m.Beat:
        self._check_journal()
        self._look_at_streams()
        self._workers = {k: v for k, v in self._workers.items() if now - v[0] < HEARD_WITHIN_S}
        self._captures = {k: v for k, v in self._captures.items() if now - v[0] < HEARD_WITHIN_S}
        known = sorted({*self._metas, *self.journal.heads})
        recent = [s for s in known if self._is_recent(s, now)]
        others = [s for s in known if s not in set(recent)]
        if others:
            self._turn_of_others %= len(others)
            recent += (others + others)[self._turn_of_others : self._turn_of_others + min(OTHERS_PER_BEAT, len(others))]
            self._turn_of_others += OTHERS_PER_BEAT
        places: dict[str, dict[str, m.ProducerBeat]] = {s: {} for s in recent}
        for (producer, stream), (n, positions, _) in self.journal.places.items():
            if stream in places:
                places[stream][producer] = m.ProducerBeat(n=n, positions=positions)
        return m.Beat(
            protocol=m.PROTOCOL,
            journal=self.journal.id,
            head=self.journal.head,
            at_ns=time.time_ns(),
            streams={s: self._stream(s, places[s]) for s in recent},
            workers={k: v for k, (_, v) in self._workers.items()},
            captures={k: v for k, (_, v) in self._captures.items()},
            trouble=self._trouble or self._low_disk(),
            feed=self._run,
            up_s=round(now - self._began, 3),
        )

    def _is_recent(self, stream: str, now: float) -> bool:
        meta = self._metas.get(stream)
        return bool(meta and not meta.ended) or now - self._changed.get(stream, -1e9) < CHANGED_WITHIN_S

    def _stream(self, stream: str, producers: dict[str, m.ProducerBeat]) -> m.StreamBeat:
        meta = self._metas.get(stream)
        at = producers[COVERAGE_PRODUCER].positions.get("audio", 0) if COVERAGE_PRODUCER in producers else 0
        head = at  # purged, known from the journal only, or a folder that cannot be read
        if meta is not None:
            with contextlib.suppress(OSError):
                end = meta.end if meta.ended else backlog.head(self.settings.streams / stream)
                head = max(at, end)  # what was heard existed, also if files deleted by hand no longer prove it
        lag_s = max(0.0, backlog.seconds(head - at))
        status = self._workers.get(COVERAGE_PRODUCER)
        if status and stream in status[1].lag_s:
            lag_s = status[1].lag_s[stream]
        return m.StreamBeat(
            source=meta.source if meta else stream,
            lane=meta.lane if meta else "live",
            ended=meta.ended if meta else True,
            audio_head=head,
            heads=self.journal.heads.get(stream, {}),
            producers=producers,
            lag_s=round(lag_s, 3),
            coverage=coverage.coverage(self.journal.sums.get(stream, {}), head),
        )

    def _look_at_streams(self) -> None:
        """Know the backlog's streams; the meta of one that has ended is read once."""
        folders = {p.name: p for p in backlog.streams(self.settings.streams)}
        self._metas = {s: meta for s, meta in self._metas.items() if s in folders}
        for stream, folder in folders.items():
            if stream not in self._metas or not self._metas[stream].ended:
                meta = backlog.read_meta(folder)
                if meta:
                    self._metas[stream] = meta
                elif stream not in self._unreadable:  # damaged, or somebody else's: nobody will caption it
                    self._unreadable.add(stream)
                    self.log.warning("stream left out: its meta.json cannot be read", folder=str(folder))
        configured = {source.name for source in self.settings.source}  # also before a stream: its disk may be full
        open_ones = {meta.source for meta in self._metas.values() if not meta.ended}
        self._doorbells.listen(configured | open_ones | set(self._captures))

    def _check_journal(self) -> None:
        if self.journal.in_place:
            return
        if not self.settings.data.exists():
            raise UserError(f"{self.settings.data} is gone: put it back, or start with another data_dir")
        raise UserError(f"{self.journal.path} was removed or replaced: put it back; without it a new journal begins")

    def _low_disk(self) -> str:
        info = os.statvfs(self.settings.data)
        free = info.f_bavail * info.f_frsize
        return f"disk nearly full: {free >> 20} MiB free" if free < LOW_DISK_BYTES else ""


def opened(process: Process) -> Journal | None:
    """The journal, as soon as its disk has room for that; None: we are told to stop."""
    said = ""
    while not process.stopping:
        try:
            return Journal(process.settings.data / "journal")
        except DiskFull as e:
            if not said:
                said = str(e)
                process.log.warning("waits for room to open the journal", error=said)
            time.sleep(OPENS_EVERY_S)
    return None


def run(process: Process) -> None:
    journal = opened(process)
    if journal:
        Feed(process, journal).run(process)


if __name__ == "__main__":
    main("feed", run, arguments(__doc__ or ""))
