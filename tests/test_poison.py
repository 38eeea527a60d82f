"""Bad ends of steps are counted over restarts, for each stream by itself, and only those that are nobody's order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common import backlog
from common import messages as m
from common.settings import TranscriberSettings
from workers.poison import MAX_KILLS, Poison
from workers.utterances import Utterances
from workers.vad import Rules, Vad

pytestmark = pytest.mark.pure


class Lives:
    """Restarts of a worker: each `begin` is in a new life, after the last one ended as `cause` says."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def begin(
        self, what: str, position: int, cause: str = "", ours: bool = False, pid: int | None = None, waits: bool = False
    ) -> bool:
        poison = Poison(self.run, "w")
        allowed = poison.begin(what, position, waits)
        if cause:
            record = {"pid": os.getpid() if pid is None else pid, "cause": cause, "ours": ours}
            (self.run / "w.exit").write_text(json.dumps(record))
        return allowed


def test_three_crashes_at_one_place_are_enough(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    assert [lives.begin("s", 7, "signal 11") for _ in range(4)] == [True, True, True, False]
    assert lives.begin("s", 8), "another place is another matter"


def test_orders_old_records_and_kills_of_the_launcher_do_not_count(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    for _ in range(20):
        assert lives.begin("s", 7, "signal 15")
        assert lives.begin("s", 7, "signal 9", ours=True)
        assert lives.begin("s", 7, "signal 11", pid=1)
    assert [lives.begin("s", 7, "signal 9") for _ in range(MAX_KILLS + 1)] == [True] * MAX_KILLS + [False]


def test_a_worker_that_waits_for_audio_may_be_killed_as_often_as_one_likes(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    assert all(lives.begin("s scan", 7, "signal 9", waits=True) for _ in range(3 * MAX_KILLS))
    assert [lives.begin("s scan", 7, "signal 11", waits=True) for _ in range(4)] == [True, True, True, False]


def test_one_streams_success_does_not_forget_another_ones_failures(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    for _ in range(3):
        Poison(tmp_path, "w").begin("good", 100)
        assert lives.begin("bad", 7, "signal 6")
    assert lives.begin("good", 200) and not lives.begin("bad", 7)


def test_exceptions_count_and_lack_of_memory_does_not(tmp_path: Path) -> None:
    for _ in range(10):
        poison = Poison(tmp_path, "w")
        assert poison.begin("s", 7)
        assert poison.failed(counts=False) == 0
    assert [Poison(tmp_path, "w").begin("s", 7) and Poison(tmp_path, "w").begin("s", 7) for _ in range(2)] == [True] * 2
    for n in (1, 2, 3):
        poison = Poison(tmp_path, "w")
        assert poison.begin("s", 7)
        assert poison.failed() == n
    assert not Poison(tmp_path, "w").begin("s", 7)


class StandInVad(Vad):
    """Cannot hear anything."""

    def __init__(self) -> None:
        pass


def test_audio_that_cannot_be_scanned_is_given_up_in_bounded_retryable_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    writer = backlog.Writer(folder, 10 * m.SAMPLE_RATE)
    writer.append(0, bytes(2 * 70 * m.SAMPLE_RATE))
    writer.close()
    meta = backlog.Meta(stream="s", source="s", lane="live", origin="", started_ns=0, resumable=True)
    at = m.At(n=1, positions={"audio": 5}, state=b"", head=0)
    ear = Utterances(folder, meta, at, StandInVad(), Rules.of(TranscriberSettings()))
    step = ear.deaf()
    assert step
    (gap,) = step.events
    assert isinstance(gap, m.Gap) and gap.retryable and gap.reason == "failed" and gap.segment == "s:5"
    assert gap.span == (5, 5 + 30 * m.SAMPLE_RATE) and step.positions == {"audio": gap.span[1]}
    ear.moved(m.At(n=2, positions=step.positions, state=step.state, head=1))
    assert ear.position == gap.span[1]
