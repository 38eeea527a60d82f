"""The diarizer as a real process beside the others: ids that outlive kills, offloads and restarts.

Two readers in turns: sentences of LibriVox and of President Kennedy. TEST_KILLS says how often it is killed, and how
often it has to leave the card: few times by default, for each start takes seconds.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import messages as m
from common import wire
from common.join import Join
from common.settings import Settings, SpeakerSettings
from tests.conftest import Processes, wait_for
from tests.speech import RATE, jfk, librivox, samples, write_wav
from tests.swaps import gpu, log_rows
from tests.system import System, Undisturbed, file_source, heard_to_the_end, one_by_one, quiet, turns_told

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


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Undisturbed]:
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        talk(Path(folder) / "talk.wav")
        yield Undisturbed(Path(folder), clip=Path(folder) / "talk.wav", speakers=SPEAKERS)


class Listening(System):
    """A system with the diarizer, and orders to the arbiter."""

    def order(self, verb: str, **args: str) -> m.Done | m.Refused:
        asker = wire.Requester(wire.ipc(self.settings, "arbiter"))
        try:
            answer = asker.request(m.Command(id=uuid.uuid4().hex, verb=verb, args=args), 10.0)
        finally:
            asker.close()
        assert isinstance(answer, m.Done | m.Refused)
        return answer

    def stream(self) -> str:
        return wait_for(lambda: {e.stream for e in self.journal()}, 30.0, "a stream").pop()

    def appends(self) -> int:
        """That brought turns."""
        return max((n for _, n in turns_told(self.journal(), self.stream())), default=0)

    def counted(self, event: str) -> int:
        path = self.settings.data / "logs" / "diarizer.log"
        return sum(r["event"] == event for r in log_rows(self.settings.data, "diarizer")) if path.exists() else 0


def listening(processes: Processes, settings: Settings, clip: Path, pace: str) -> Listening:
    changed = {"gpu": gpu(evicted_for_s=0.2), "speakers": SPEAKERS, "data_dir": settings.data_dir}
    return Listening(processes, one_by_one(Settings(**changed)), file_source(clip, pace), speakers=True)  # type: ignore[arg-type]


def test_who_speaks_is_told_and_the_same_reader_has_the_same_id(undisturbed: Undisturbed, tmp_path: Path) -> None:
    said = talk(tmp_path / "again.wav")
    join = Join()
    for e in undisturbed.events:
        join.take(e)
    turns = join.pieces()
    assert turns, "nobody was heard"
    most: dict[str, set[str]] = {}
    for who, a, b in said:
        shares: dict[str, int] = {}
        for t in turns:
            shared = min(t.end, round(b * RATE)) - max(t.start, round(a * RATE))
            if shared > 0:
                shares[t.speaker] = shares.get(t.speaker, 0) + shared
        assert sum(shares.values()) > 0.7 * (b - a) * RATE, f"{who} at {a:.1f} s was hardly heard: {shares}"
        most.setdefault(who, set()).add(max(shares, key=lambda s: shares[s]))
    assert all(len(ids) == 1 for ids in most.values()) and most["reader"] != most["kennedy"], most


def test_ids_are_the_same_after_kills_and_offloads_and_a_restart_of_everything(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")
    rng = random.Random(seed)
    system = listening(processes, settings, undisturbed.clip, "1.0")
    system.start()
    stream, pid = system.stream(), 0
    for number in range(KILLS):
        pid = system.up("diarizer", 60.0, but=pid)
        granted, revoked = system.counted("granted"), system.counted("revoked")
        wait_for(lambda g=granted: system.counted("granted") > g, 60.0, "a lease")
        if number == KILLS // 2:
            system.stop()
            system.start()
            pid = system.up("diarizer", 60.0, but=pid)
            granted = system.counted("granted")
            wait_for(lambda g=granted: system.counted("granted") > g, 60.0, "a lease after the restart")
        wait_for(lambda: isinstance(system.order("evict", worker="diarizer"), m.Done), 20.0, "an eviction")
        wait_for(lambda r=revoked: system.counted("revoked") > r, 20.0, "the offload")
        back = system.counted("granted")
        wait_for(lambda g=back: system.counted("granted") > g, 20.0, "the lease again")
        before, moment = system.appends(), rng.random()
        if moment < 0.7:  # else it is killed at once
            wait_for(lambda b=before: system.appends() > b or _ended(system, stream), 60.0, "another turn")
        system.signal("diarizer", signal.SIGKILL)
    heard_to_the_end(system, stream)
    assert turns_told(system.journal(), stream) == undisturbed.turns
    assert system.counted("started") >= KILLS + 1 and system.counted("revoked") >= KILLS
    assert "gave up" not in system.log("diarizer")
    folder = system.settings.windows(stream)
    wait_for(lambda: not folder.exists(), 10.0, "the windows of a stream that is over to be removed")
    system.stop()


def _ended(system: System, stream: str) -> bool:
    return any(e.kind == "stream_ended" for e in system.journal(stream))


def test_what_is_kept_of_voices_goes_with_a_purge(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    system = listening(processes, settings, undisturbed.clip, "1.0")
    system.start()
    stream = system.stream()
    kept = system.settings.windows(stream)
    wait_for(lambda: (kept / "windows").exists() and (kept / "windows").stat().st_size > 1000, 60.0, "windows on disk")
    assert kept.stat().st_mode & 0o777 == 0o700
    system.signal("diarizer", signal.SIGSTOP)  # it may be anywhere
    assert system("purge", stream, "--yes").returncode == 0
    assert not kept.exists()
    assert all(e.purged for e in system.journal(stream) if e.kind in ("speaker_turn", "relabel"))
    system.signal("diarizer", signal.SIGCONT)
    wait_for(lambda: system.counted("stream opened") > 1, 60.0, "the next stream of the same source")
    wait_for(lambda: stream not in {p.name for p in kept.parent.glob("*")}, 10.0, "nothing to come back")
    system.stop()
