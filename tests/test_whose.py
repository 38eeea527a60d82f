"""Which streams a page follows, and that what somebody looks at is not forgotten."""

from __future__ import annotations

from collections import Counter

import pytest

from common import messages as m
from common.settings import Settings
from workers import whose
from workers.whose import MOST_LEFT, MOST_STREAMS, SCROLLED, Watch, Whose


class StandinPast:
    """Counts how often the history of a stream is read from its beginning."""

    def __init__(self, *args: object) -> None:
        self.begun: Counter[str] = Counter()
        self.had: set[str] = set()
        self.journal, self.busy = "", False

    def want(self, stream: str) -> None:
        self.begun[stream] += stream not in self.had
        self.had.add(stream)

    def forget(self, stream: str) -> None:
        self.had.discard(stream)

    def events(self) -> list[m.Event]:
        return []


@pytest.fixture
def past(monkeypatch: pytest.MonkeyPatch) -> StandinPast:
    past = StandinPast()
    monkeypatch.setattr(whose, "Past", lambda *args: past)
    return past


def event(stream: str, seq: int, kind: str, body: m.Body) -> m.Event:
    return m.Event(
        seq=seq, prev=0, stream=stream, kind=kind, producer="transcriber", n=seq, at_ns=0, body=m.encode(body)
    )


def caption(stream: str, seq: int) -> m.Event:
    body = m.Transcript(segment=f"{stream}:0", span=(0, 9), text="hello", language="en", model="x")
    return event(stream, seq, "transcript", body)


def ended(stream: str, seq: int) -> m.Event:
    return event(stream, seq, "stream_ended", m.StreamEnded(end=9, reason="x"))


def followed(watch: Watch) -> list[str]:
    return sorted(stream for stream, _, _ in watch.news())


def test_the_history_of_each_of_many_streams_is_read_once(settings: Settings, past: StandinPast) -> None:
    all_of_them = Whose(settings)
    watches = [Watch(all_of_them, back=back) for back in (False, True)]
    names = [f"s{i:02}" for i in range(MOST_STREAMS)]
    for turn in range(3):
        for i, stream in enumerate(names):
            for watch in watches:
                watch.show(caption(stream, turn * 100 + i))
        all_of_them.read()
        assert [followed(watch) for watch in watches] == [names, names]
    assert past.begun == Counter(names)


def test_a_page_lets_go_of_what_has_ended_and_of_what_is_out_of_sight(settings: Settings, past: StandinPast) -> None:
    all_of_them = Whose(settings)
    watch, other = Watch(all_of_them, back=False), Watch(all_of_them, back=False)
    other.show(caption("s00", 1))
    names = [f"s{i:02}" for i in range(MOST_STREAMS)]
    for i, stream in enumerate(names):
        watch.show(caption(stream, i))
    watch.show(caption("one more", 100))
    assert followed(watch) == names, "they still speak"
    watch.show(ended("s03", 101))
    watch.show(caption("one more", 102))
    assert set(names) - set(followed(watch)) == {"s03"}
    for i in range(2 * MOST_LEFT):
        watch.show(caption(f"later {i:02}", SCROLLED + 200 + i))
    assert len(followed(watch)) == MOST_STREAMS
    all_of_them.read()
    assert len(all_of_them.streams()) == MOST_STREAMS + MOST_LEFT + 1, "what nobody follows is forgotten in the end"
    assert followed(other) == ["s00"] and "s00" in all_of_them.streams()
    watch.close()
    assert len(all_of_them.streams()) == MOST_LEFT + 1
    other.close()
    assert len(all_of_them.streams()) == MOST_LEFT
