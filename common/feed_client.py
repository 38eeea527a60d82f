"""The client side of the feed: follow it without holes, page through history, append to it.

`Follower` is the whole algorithm without sockets (subscribe, then replay, then live; holes found by seq, prev and
beat). `FeedClient` gives it sockets and never waits longer than it is told, also when the feed is dead or stopped.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator

import msgspec

from common import messages as m
from common import wire
from common.settings import NO_FEED, Settings, UserError

AHEAD = 10_000  # live events kept while a hole before them is being healed
BEATS_APART_S = 50.0  # a beat names what changed in 60 s: two closer than this leave no stream out
_event = msgspec.msgpack.Decoder(m.Event)
_beat = msgspec.msgpack.Decoder(m.Beat)
_hypothesis = msgspec.msgpack.Decoder(m.Hypothesis)
_gpu = msgspec.msgpack.Decoder(m.GpuState)
_purged = msgspec.msgpack.Decoder(m.Purged)
Received = m.Event | m.Beat | m.Hypothesis | m.GpuState


class Follower:
    """State of one subscriber. Events come out exactly once, in seq order per (stream, kind).

    With all kinds, order is seq order throughout. `upto`: every wanted event with seq <= upto has been delivered.
    """

    def __init__(self, kinds: Iterable[str] | None = None, after: int = 0) -> None:
        self.kinds = None if kinds is None else frozenset(kinds)
        self.upto = after
        self.wants_replay = True
        self.truncated = False  # the journal no longer had everything we asked for
        self.journal = ""
        self._last: dict[tuple[str, str], int] = {}
        self._ahead: dict[int, m.Event] = {}
        self._beat = ("", 0.0)  # run of the feed and its clock; when it came here, a stalled subscriber cannot tell

    def live(self, e: m.Event) -> list[m.Event]:
        """An event from the PUB socket; returns what can be delivered now."""
        if e.seq <= self.upto or (self.kinds is not None and e.kind not in self.kinds):
            return []
        key = (e.stream, e.kind)
        if self._last.get(key, 0) >= e.seq:
            return []
        in_order = (
            e.seq == self.upto + 1 if self.kinds is None else self._last.get(key, 0) == e.prev or e.prev <= self.upto
        )
        if in_order:
            return self._deliver(e) + self._flush()
        if len(self._ahead) < AHEAD:
            self._ahead[e.seq] = e
        self.wants_replay = True
        return []

    def _deliver(self, e: m.Event) -> list[m.Event]:
        self._last[e.stream, e.kind] = e.seq
        if self.kinds is None:
            self.upto = e.seq
        return [e]

    def _flush(self) -> list[m.Event]:
        """Deliver what waited and fits now."""
        out: list[m.Event] = []
        for seq in sorted(self._ahead):
            e = self._ahead[seq]
            last = self._last.get((e.stream, e.kind), 0)
            if seq <= self.upto or last >= seq:
                del self._ahead[seq]
            elif seq == self.upto + 1 if self.kinds is None else last == e.prev or e.prev <= self.upto:
                del self._ahead[seq]
                out += self._deliver(e)
            elif self.kinds is None:
                break
        return out

    def page(self, page: m.Page) -> list[m.Event]:
        """A replay page asked for with after=`upto`."""
        if self._other_journal(page.journal):
            return []
        if page.first > self.upto + 1:
            self.truncated = True
        out: list[m.Event] = []
        for e in page.events:
            if e.seq > self.upto and self._last.get((e.stream, e.kind), 0) < e.seq:
                out += self._deliver(e)
        self.upto = max(self.upto, page.upto)
        self.wants_replay = page.upto < page.head
        out += self._flush()
        if self._ahead:
            self.wants_replay = True
        return out

    def beat(self, beat: m.Beat) -> None:
        """Compare with the heads in a beat: the end of a topic has no successor whose prev could show a loss."""
        if self._other_journal(beat.journal):
            return
        if self.wants_replay:  # the page may be older than this beat, so that the next one is not near to it
            return
        feed, up_s = self._beat
        near = beat.feed == feed != "" and beat.up_s - up_s < BEATS_APART_S
        self._beat = (beat.feed, beat.up_s)
        if beat.head <= self.upto:
            return
        if self.kinds is None or not near:
            self.wants_replay = True
            return
        for stream, sb in beat.streams.items():
            for kind, seq in sb.heads.items():
                if kind in self.kinds and seq > self.upto and self._last.get((stream, kind), 0) < seq:
                    self.wants_replay = True
                    return
        self.upto = beat.head

    def _other_journal(self, journal: str) -> bool:
        """A different journal behind the same address: everything known is void, begin again."""
        if self.journal and journal != self.journal:
            self.__init__(self.kinds)  # type: ignore[misc]
            self.journal = journal
            return True
        self.journal = journal
        return False


class Store:
    """What a subscriber that keeps everything holds; purges make tombstones here too."""

    def __init__(self) -> None:
        self.events: dict[int, m.Event] = {}
        # Purged before we had them: with some kinds only, a page read before the purge may arrive after its event.
        self._purged: set[int] = set()

    def apply(self, e: m.Event) -> None:
        self.events[e.seq] = e.tombstone() if e.seq in self._purged else e
        if e.kind == "purged" and not e.purged:
            for first, last in _purged.decode(e.body).seqs:
                for seq in range(first, last + 1):
                    if seq in self.events:
                        self.events[seq] = self.events[seq].tombstone()
                    else:
                        self._purged.add(seq)

    def state_hash(self, upto: int | None = None) -> str:
        """sha256 over the canonical lines of all events held (with seq <= upto), in seq order."""
        digest = hashlib.sha256()
        for seq in sorted(self.events):
            if upto is None or seq <= upto:
                digest.update(self.events[seq].canonical())
        return digest.hexdigest()


class FeedClient:
    """Follows the feed over sockets. Not for use from two threads."""

    REPLAY_TIMEOUT_S = 2.0

    def __init__(
        self,
        settings: Settings,
        kinds: Iterable[str] | None = None,
        after: int = 0,
        keep: bool = False,
        hypotheses: bool = False,
        gpu: bool = False,
    ) -> None:
        wanted = None if kinds is None else sorted({*kinds, "purged"})
        topics = ["event."] if wanted is None else [f"event.{k}" for k in wanted]
        self._kinds = None if wanted is None else tuple(wanted)
        self.follower = Follower(wanted, after)
        self.store = Store() if keep else None
        self.last_beat: m.Beat | None = None
        self.beat_heard_s = 0.0  # monotonic clock
        topics += ["beat"] + ["live.hypothesis"] * hypotheses + ["live.gpu"] * gpu
        self._sub = wire.subscriber([wire.ipc(settings, "pub")], topics)
        self._replay = wire.Asker(wire.ipc(settings, "replay"))
        self._poller = wire.poller(self._sub, self._replay.socket)
        self._next_ask_s = 0.0

    @property
    def head(self) -> int:
        """Every wanted event up to this seq has been handed out."""
        return self.follower.upto

    @property
    def sockets(self) -> tuple[object, ...]:
        """They become readable when `poll` would return something."""
        return (self._sub, self._replay.socket)

    def poll(self, timeout_s: float) -> list[Received]:
        """What arrived within `timeout_s` (at least one look); returns as soon as there is something."""
        deadline = time.monotonic() + timeout_s
        out: list[Received] = []
        while True:
            self._ask()
            left = max(0.0, deadline - time.monotonic())
            self._poller.poll(int(min(left, 0.1) * 1000))
            for _ in range(1000):  # bounded: a flood must not keep us from returning
                frames = wire.receive(self._sub)
                if frames is None:
                    break
                out += self._take(frames)
            answer = self._replay.answer()
            if isinstance(answer, m.Page):
                self._next_ask_s = 0.0
                out += self._keep(self.follower.page(answer))
            if out or time.monotonic() >= deadline:
                return out

    def _ask(self) -> None:
        now = time.monotonic()
        if self.follower.wants_replay and now >= self._next_ask_s:
            ask = m.Replay(after=self.follower.upto, limit=1000, kinds=self._kinds)
            self._next_ask_s = now + (self.REPLAY_TIMEOUT_S if self._replay.ask(ask) else 0.05)

    def _take(self, frames: wire.Frames) -> list[Received]:
        try:
            topic, payload = frames
            if topic == b"beat":
                self.last_beat = _beat.decode(payload)
                self.beat_heard_s = time.monotonic()
                self.follower.beat(self.last_beat)
                return [self.last_beat]
            if topic == b"live.hypothesis":
                return [_hypothesis.decode(payload)]
            if topic == b"live.gpu":
                return [_gpu.decode(payload)]
            return self._keep(self.follower.live(_event.decode(payload)))
        except (ValueError, *m.UNDECODABLE) as e:
            wire.log.warning("bad message on the feed dropped: %s", e)
            return []

    def _keep(self, events: list[m.Event]) -> list[Received]:
        if self.store:
            for e in events:
                self.store.apply(e)
        return list(events)

    def close(self) -> None:
        self._sub.close()
        self._replay.close()


def replay(
    settings: Settings,
    after: int = 0,
    kinds: Iterable[str] | None = None,
    stream: str | None = None,
    timeout_s: float = 5.0,
) -> Iterator[m.Event]:
    """Page through history up to the head at the last page. Raises wire.Unreachable when the feed does not answer."""
    asker = wire.Requester(wire.ipc(settings, "replay"))
    wanted = None if kinds is None else tuple(kinds)
    try:
        while True:
            page = asker.request(m.Replay(after=after, kinds=wanted, stream=stream), timeout_s)
            if not isinstance(page, m.Page):
                raise ValueError(f"feed answered {page}")
            yield from page.events
            if page.upto >= page.head:
                return
            after = page.upto
    finally:
        asker.close()


class Appender:
    """Appends of one producer. The caller takes its place from every At, whoever caused it."""

    def __init__(self, settings: Settings, producer: str) -> None:
        self.producer = producer
        self._requester = wire.Requester(wire.ipc(settings, "append"))

    def append(
        self,
        stream: str,
        expect_n: int,
        positions: dict[str, int] | None = None,
        events: Iterable[m.Body] = (),
        state: bytes | None = None,
        timeout_s: float = 5.0,
    ) -> m.At | m.Refused:
        """One attempt; resending the same after Unreachable is always safe."""
        answer = self._requester.request(
            m.Append(
                producer=self.producer,
                stream=stream,
                expect_n=expect_n,
                positions=positions or {},
                events=tuple(m.raw(e) for e in events),
                state=state,
            ),
            timeout_s,
        )
        if isinstance(answer, m.At | m.Refused):
            return answer
        raise ValueError(f"feed answered {answer}")

    def at(self, stream: str, timeout_s: float = 5.0) -> m.At | m.Refused:
        """Ask for the place on `stream` without changing anything."""
        return self.append(stream, -1, timeout_s=timeout_s)

    def tell(self, message: m.Hypothesis | m.WorkerStatus) -> None:
        self._requester.tell(message)

    def close(self) -> None:
        self._requester.close()


def say(settings: Settings, stream: str, body: m.Body) -> None:
    """Journal what a person wants. Raises UserError."""
    appender = Appender(settings, f"cli.{uuid.uuid4().hex[:12]}")
    try:
        for attempt in range(3):  # the producer's name is new, so that the same append twice is one event
            try:
                answer = appender.append(stream, 0, events=(body,))
                break
            except wire.Unreachable:
                if attempt == 2:
                    raise UserError(NO_FEED) from None
    finally:
        appender.close()
    if isinstance(answer, m.Refused):
        raise UserError(f"refused: {answer.reason}")
