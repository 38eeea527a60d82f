"""The diarizer as a real process beside the others: ids that outlive kills, offloads and restarts.

Two readers in turns: sentences of LibriVox and of President Kennedy. TEST_KILLS says how often it is killed, and how
often it has to leave the card: few times by default, for each start takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common import backlog, wire
from common import messages as m
from common.feed_client import FeedClient
from common.join import Join
from common.process import signal_holder
from common.settings import Settings, SpeakerSettings
from tests.conftest import Processes, wait_for
from tests.speech import RATE, jfk, librivox, samples, write_wav
from tests.swaps import SwapSystem, gpu, log_rows
from tests.system import System, done_to_the_end, file_source, one_by_one, quiet, turns_told

pytestmark = [pytest.mark.processes, pytest.mark.speech, pytest.mark.timeout(600)]
KILLS = int(os.environ.get("TEST_KILLS") or 4)
SPEAKERS = SpeakerSettings(settle_every_s=15.0)


def talk(path: Path) -> list[tuple[str, float, float]]:
    """Write it; who speaks from when to when, in seconds."""
    kennedy, reader = samples(jfk().path), [samples(c.path) for c in librivox()]
    parts = [
        ("reader", reader[0]), ("kennedy", kennedy[: 5 * RATE]), ("reader", reader[1]), ("reader", reader[2]),
        ("kennedy", kennedy[5 * RATE :]), ("reader", reader[3]), ("kennedy", kennedy), ("reader", reader[4]),
    ]  # fmt: skip
    sound, turns, at = [quiet(0.7)], [], 0.7
    for who, part in parts:
        sound += [part, quiet(0.6)]
        turns.append((who, at, at + len(part) / RATE))
        at += len(part) / RATE + 0.6
    write_wav(path, *sound)
    return turns


class Listening(SwapSystem):
    """A system with the diarizer, orders to the arbiter, and a stand-in for the transcriber; words do not matter."""

    def order(self, verb: str, **args: str) -> m.Done | m.Refused:
        asker = wire.Requester(wire.ipc(self.settings, "arbiter"))
        try:
            answer = asker.request(m.Command(id=uuid.uuid4().hex, verb=verb, args=args), 10.0)
        finally:
            asker.close()
        assert isinstance(answer, m.Done | m.Refused)
        return answer

    def stream(self) -> str:
        return wait_for(lambda: backlog.streams(self.settings.streams), 90.0, "a stream")[0].name

    @contextlib.contextmanager
    def nobody_speaks(self) -> Iterator[None]:
        """The recording stands still, if it is being played: what takes long meanwhile uses up none of it."""
        signal_holder(self.run, "capture@talk", signal.SIGSTOP)
        yield
        signal_holder(self.run, "capture@talk", signal.SIGCONT)

    def appends(self) -> int:
        """That brought turns."""
        return max((n for _, n in turns_told(self.journal(), self.stream())), default=0)

    def rows(self) -> list[dict[str, Any]]:
        """What the present life of the diarizer has logged."""
        path = self.settings.data / "logs" / "diarizer.log"
        rows = log_rows(self.settings.data, "diarizer") if path.exists() else []
        me = self.pid("diarizer")  # it has its name a little before it says so
        begun = [i for i, r in enumerate(rows) if r["event"] == "started" and r["pid"] == me]
        return rows[begun[-1] :] if begun else []

    def counted(self, event: str) -> int:
        return sum(r["event"] == event for r in self.rows())

    def leased(self, revoked: int = 0) -> bool:
        """It has a lease, after so many revocations."""
        told = [r["event"] for r in self.rows() if r["event"] in ("granted", "revoked", "offloaded unasked")]
        return told.count("revoked") >= revoked and told[-1:] == ["granted"]


def listening(processes: Processes, settings: Settings, clip: Path, pace: str) -> Listening:
    changed: dict[str, Any] = {"gpu": gpu(evicted_for_s=0.2), "speakers": SPEAKERS, "data_dir": settings.data_dir}
    plans = {"transcriber": {"says_mib": 20}}
    return Listening(processes, one_by_one(Settings(**changed)), plans, file_source(clip, pace), speakers=True)


class Told(NamedTuple):
    """A recording, who speaks in it, and what the journal has of that after a run in which nothing happens."""

    clip: Path
    said: list[tuple[str, float, float]]
    events: list[m.Event]
    turns: list[tuple[str, int]]


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Told]:
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        folder = Path(name)
        said, settings = talk(folder / "talk.wav"), Settings(data_dir=f"{name}/data")
        processes = Processes(folder, settings)
        try:
            system = listening(processes, settings, folder / "talk.wav", "1000")
            system.start()
            stream = system.ended(300.0).stream
            done_to_the_end(system, stream, 300.0)
            events = system.journal()
            system.stop()
        finally:
            processes.close()
        yield Told(folder / "talk.wav", said, events, turns_told(events, stream))


def test_who_speaks_is_told_and_the_same_reader_has_the_same_id(undisturbed: Told) -> None:
    join = Join()
    for e in undisturbed.events:
        join.take(e)
    turns = join.pieces()
    assert turns, "nobody was heard"
    most: dict[str, set[str]] = {}
    for who, a, b in undisturbed.said:
        shares: dict[str, int] = {}
        for t in turns:
            shared = min(t.end, round(b * RATE)) - max(t.start, round(a * RATE))
            if shared > 0:
                shares[t.speaker] = shares.get(t.speaker, 0) + shared
        assert sum(shares.values()) > 0.5 * (b - a) * RATE, f"{who} at {a:.1f} s was hardly heard: {shares}"
        most.setdefault(who, set()).add(max(shares, key=lambda s: shares[s]))
    assert all(len(ids) == 1 for ids in most.values()) and most["reader"] != most["kennedy"], most


def test_ids_are_the_same_after_kills_and_offloads_and_a_restart_of_everything(
    processes: Processes, settings: Settings, undisturbed: Told
) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")
    rng = random.Random(seed)
    system = listening(processes, settings, undisturbed.clip, "1.0")
    system.start()
    stream, pid, offloads = system.stream(), 0, 0
    for number in range(KILLS):
        with system.nobody_speaks():
            pid = system.up("diarizer", 60.0, but=pid)
            wait_for(system.leased, 60.0, "a lease")
        if number == KILLS // 2:  # a graceful end would be the stream's, too
            for name in ("launcher", "capture@talk", "arbiter", "feed"):
                system.kill(name)
            system.start()
            pid = system.up("diarizer", 60.0, but=pid)
            wait_for(system.leased, 60.0, "a lease after the restart of everything")
        revoked = system.counted("revoked")
        wait_for(lambda: isinstance(system.order("evict", worker="diarizer"), m.Done), 20.0, "an eviction")
        with system.nobody_speaks():
            wait_for(lambda r=revoked: system.leased(r + 1), 30.0, "the lease again")
        offloads += system.counted("revoked")
        before, moment = system.appends(), rng.random()
        if moment < 0.7:  # else it is killed at once
            wait_for(lambda b=before: system.appends() > b or _ended(system, stream), 60.0, "another turn")
        system.signal("diarizer", signal.SIGKILL)
    done_to_the_end(system, stream, 300.0)
    assert turns_told(system.journal(), stream) == undisturbed.turns
    assert offloads >= KILLS
    wait_for(lambda: system.log("diarizer").count('"started"') >= KILLS + 2, 30.0, "the last life")
    assert "gave up" not in system.log("diarizer")
    folder = system.settings.windows(stream)
    wait_for(lambda: not folder.exists(), 10.0, "the windows of a stream that is over to be removed")
    system.stop()


def _ended(system: System, stream: str) -> bool:
    return any(e.kind == "stream_ended" for e in system.journal(stream))


def test_what_is_kept_of_voices_goes_with_a_purge(processes: Processes, settings: Settings, undisturbed: Told) -> None:
    system = listening(processes, settings, undisturbed.clip, "1000")
    system.start()
    stream = system.stream()
    kept = system.settings.windows(stream)
    wait_for(lambda: (kept / "windows").exists() and (kept / "windows").stat().st_size > 1000, 120.0, "windows on disk")
    system.signal("diarizer", signal.SIGSTOP)  # it may be anywhere
    assert kept.stat().st_mode & 0o777 == 0o700 and kept.parent.stat().st_mode & 0o777 == 0o700
    system.ended()
    assert system("purge", stream, "--yes").returncode == 0
    assert not kept.exists()
    assert all(e.purged for e in system.journal(stream) if e.kind in ("speaker_turn", "relabel"))
    system.signal("diarizer", signal.SIGCONT)
    client = FeedClient(system.settings, kinds=())

    def idle() -> bool:
        client.poll(0.1)
        said = client.last_beat.workers.get("diarizer") if client.last_beat else None
        return said is not None and said.phase == "idle" and not said.lag_s

    wait_for(idle, 60.0, "the diarizer to have heard of the purge")
    client.close()
    assert not kept.exists(), "it came back"
    system.stop()
