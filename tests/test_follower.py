"""A subscriber joined to a journal in memory, over a link that loses, doubles, delays and reorders."""

from __future__ import annotations

import random

import msgspec
import pytest

from common import messages as m
from common.feed_client import Follower, Store

pytestmark = pytest.mark.joined
KINDS = ("silence", "retry", "summary_wanted")
BODIES = {"silence": m.Silence(span=(0, 1)), "retry": m.Retry(span=(0, 1)), "summary_wanted": m.SummaryWanted()}


class MemoryFeed:
    """The journal's numbering and paging without disk or sockets."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.events, self.heads, self.clock = rng, list[m.Event](), dict[str, dict[str, int]](), 0
        self.run = "first"
        self.changed: dict[str, int] = {}

    def append(self) -> m.Event:
        stream, kind = self.rng.choice("abc"), self.rng.choice(KINDS)
        heads = self.heads.setdefault(stream, {})
        e = m.Event(
            seq=len(self.events) + 1, prev=heads.get(kind, 0), stream=stream, kind=kind, producer="p", n=1,
            at_ns=self.clock, body=m.encode(BODIES[kind]),
        )  # fmt: skip
        heads[kind] = e.seq
        self.events.append(e)
        self.changed[stream] = self.clock
        return e

    def beat(self) -> m.Beat:
        recent = [s for s in self.heads if self.clock - self.changed[s] < 60_000_000_000]
        streams = {
            s: m.StreamBeat(
                source=s, lane="live", ended=False, audio_head=0, heads=dict(self.heads[s]), producers={}, lag_s=0,
                coverage=m.Coverage(),
            )
            for s in recent
        }  # fmt: skip
        return m.Beat(
            protocol=1, journal="j", head=len(self.events), at_ns=self.rng.randrange(10**18), streams=streams,
            workers={}, captures={}, feed=self.run, up_s=self.clock / 1e9,
        )  # fmt: skip

    def page(self, after: int, kinds: frozenset[str] | None, limit: int) -> m.Page:
        found = [e for e in self.events[after:] if kinds is None or e.kind in kinds]
        upto = found[limit - 1].seq if len(found) > limit else len(self.events)
        return m.Page(journal="j", first=1, head=len(self.events), upto=upto, events=tuple(found[:limit]))


@pytest.mark.parametrize("seed", range(300))
def test_every_event_once_in_order_whatever_the_link_does(seed: int) -> None:
    rng = random.Random(seed)
    feed = MemoryFeed(rng)
    for _ in range(rng.randrange(30)):
        feed.append()
    kinds = rng.choice([None, ("retry",), ("silence", "retry"), KINDS])
    follower, store = Follower(kinds), Store()
    delivered: list[m.Event] = []
    asked: list[m.Page] = []
    held: list[m.Event] = []
    lossless_from = 400
    for step in range(600):
        feed.clock += rng.choice([10_000_000, 100_000_000, 70_000_000_000 if rng.random() < 0.02 else 1_000_000])
        if rng.random() < 0.4:
            held.append(feed.append())
        rough = step < lossless_from
        for e in list(held):
            if rng.random() < 0.7 or not rough:
                held.remove(e)
                if not rough or rng.random() < 0.8:
                    delivered += follower.live(e)
                if rough and rng.random() < 0.1:
                    delivered += follower.live(e)
        if rng.random() < 0.2 and not (rough and rng.random() < 0.3) and not held:
            follower.beat(feed.beat())
        if follower.wants_replay and rng.random() < 0.5 and not asked:
            asked.append(
                feed.page(follower.upto, follower.kinds, rng.randrange(1, 8))
            )  # answered later, as it was then
        if asked and rng.random() < 0.5:
            page = asked.pop()
            if not rough or rng.random() < 0.9:
                delivered += follower.page(page)
    follower.beat(feed.beat())
    for _ in range(1000):
        if not follower.wants_replay:
            break
        delivered += follower.page(feed.page(follower.upto, follower.kinds, 5))
        follower.beat(feed.beat())
    wanted = [e for e in feed.events if kinds is None or e.kind in kinds]
    assert sorted(e.seq for e in delivered) == [e.seq for e in wanted]  # each once
    order: dict[tuple[str, str], int] = {}
    for e in delivered:
        assert order.get((e.stream, e.kind), 0) < e.seq
        order[e.stream, e.kind] = e.seq
    if kinds is None:
        assert delivered == wanted
    for e in delivered:
        store.apply(e)
    expected = Store()
    expected.events = {e.seq: e for e in wanted}
    assert store.state_hash() == expected.state_hash()


def test_only_a_beat_near_the_one_before_says_that_nothing_is_missing() -> None:
    """Whatever was lost belongs to a stream that no beat names any more; wall clocks say nothing."""
    minute_ns = 60_000_000_000
    for what in ("near", "stalled", "killed", "a page on its way"):
        feed = MemoryFeed(random.Random(1))
        feed.append()
        follower = Follower(KINDS)
        follower.page(feed.page(0, follower.kinds, 10))
        follower.beat(feed.beat())
        assert not follower.wants_replay
        if what == "a page on its way":
            follower.wants_replay = True  # a hole
            page = feed.page(follower.upto, follower.kinds, 10)
        feed.append()  # and its message is lost
        feed.clock += minute_ns
        if what == "killed":
            feed.run, feed.clock, feed.changed = "second", 1, dict.fromkeys(feed.changed, -minute_ns)
        if what == "near":
            follower.beat(msgspec.structs.replace(feed.beat(), up_s=1.0))
            assert not follower.wants_replay and follower.upto == 2
            continue
        follower.beat(feed.beat())
        if what == "a page on its way":
            follower.page(page)
            feed.clock += 1_000_000_000
            follower.beat(feed.beat())
        assert follower.wants_replay and follower.upto == 1, what


def test_another_journal_behind_the_address_begins_from_nothing() -> None:
    feed = MemoryFeed(random.Random(1))
    feed.append()
    follower = Follower()
    follower.page(feed.page(0, None, 10))
    assert follower.upto == 1
    other = m.Page(journal="other", first=1, head=1, upto=1, events=tuple(feed.events))
    assert follower.page(other) == [] and follower.upto == 0 and follower.wants_replay
    assert [e.seq for e in follower.page(other)] == [1]


def test_truncated_history_is_noticed() -> None:
    follower = Follower()
    follower.page(m.Page(journal="j", first=100, head=120, upto=120, events=()))
    assert follower.truncated
