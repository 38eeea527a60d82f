"""Which ended streams are purged by age, whatever is done to the wall clock."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from common import messages as m
from common.process import Log
from workers.journal import Journal
from workers.retention import FIRST_S, Retention

pytestmark = pytest.mark.joined
DAY = 86_400.0
TODAY_S = 1_800_000_000.0  # wall clock when the machine starts


class Machine:
    """A clock since boot and a wall clock that somebody sets; runs of the feed on one journal."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, wall_s: float = TODAY_S) -> None:
        self.now_s, self.ahead_s = 100.0, wall_s - 100.0
        self.journal = Journal(folder / "journal")
        monkeypatch.setattr("workers.journal.time.time_ns", self.wall_ns)
        self.run()

    def wall_ns(self) -> int:
        return round((self.now_s + self.ahead_s) * 1e9)

    def set(self, by_s: float) -> None:
        self.ahead_s += by_s

    def run(self) -> None:
        self.retention = Retention(self.journal, 30 * DAY, Log("feed"), self.now_s)

    def end(self, stream: str) -> None:
        append = m.Append(producer="x", stream=stream, expect_n=0, events=(m.raw(m.StreamEnded(end=1, reason="stop")),))
        self.journal.append([append])
        self.retention.ended(stream, self.now_s)

    def passes(self, seconds: float, step_s: float = 600.0) -> dict[str, float]:
        """Which streams are purged, and after how many seconds."""
        began_s, gone = self.now_s, dict[str, float]()
        while self.now_s < began_s + seconds:
            self.now_s += min(step_s, began_s + seconds - self.now_s)
            for stream in self.retention.round(self.now_s, self.wall_ns()):
                self.journal.purge(stream)
                gone[stream] = self.now_s - began_s
        return gone


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_stream_is_purged_when_it_is_old_also_after_a_new_start(machine: Machine) -> None:
    machine.end("a")
    assert not machine.passes(29.9 * DAY)
    machine.run()
    gone = machine.passes(2 * DAY)
    assert list(gone) == ["a"] and 0.1 * DAY <= gone["a"] < 0.15 * DAY


@pytest.mark.parametrize("again", [False, True])
def test_a_clock_put_forward_purges_nothing_before_its_time(machine: Machine, again: bool) -> None:
    machine.end("old")
    machine.passes(DAY)
    machine.end("new")
    machine.passes(600)
    machine.set(365 * DAY)
    assert not machine.passes(0.9 * DAY), "a day to notice it"
    machine.set(-365 * DAY)
    if again:
        machine.passes(600)
        machine.run()
    assert not machine.passes(27.9 * DAY)
    gone = machine.passes(3 * DAY)
    assert list(gone) == ["old", "new"]


def test_a_clock_that_was_not_set_yet_makes_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch, wall_s=366 * DAY)  # 1971
    machine.end("before")  # of a run that ended before its clock was right
    machine.run()
    machine.end("a")
    machine.passes(600)
    machine.set(TODAY_S - 366 * DAY)  # the network has told it
    assert not machine.passes(2 * DAY)
    machine.run()
    assert not machine.passes(27 * DAY)
    assert sorted(machine.passes(2 * DAY)) == ["a", "before"]


def test_a_run_begins_with_an_hour_in_which_its_clock_may_be_wrong(machine: Machine) -> None:
    machine.end("a")
    machine.passes(DAY)
    machine.set(365 * DAY)
    machine.run()  # after a start of the machine, say
    assert not machine.passes(FIRST_S - 600)
    machine.set(-365 * DAY)
    assert not machine.passes(2 * DAY)


def test_a_clock_that_was_set_is_said_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.end("a")
    machine.passes(DAY)
    machine.set(120)
    with caplog.at_level(logging.WARNING):
        machine.passes(DAY)
    assert caplog.text.count("the clock was set: nothing is purged by age for a day") == 1
