"""The arbiter as a process, with stand-in workers on a simulated card that holds one of them. Kills are real."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from arbiter.effects import GRANTED, Entry, Roster
from arbiter.hands import Processes as Pidfds
from arbiter.hands import write_roster
from common import messages as m
from common import wire
from common.card import MIB, SimulatedCard
from common.process import EXIT_NAME_TAKEN, start_time
from common.settings import Settings
from tests.conftest import Processes, Started, wait_for
from tests.gpu import CARD_MIB, MARGIN_MIB, Gpu, Watcher

pytestmark = pytest.mark.processes
GRACE_S = 10.0  # the next grant comes within the deadline and this; in 1.5 s where nothing else runs (it is printed)


@pytest.fixture
def gpu(processes: Processes, settings: Settings) -> Iterator[Gpu]:
    one = Gpu(processes, settings)
    yield one
    one.close()


@pytest.fixture
def patient(processes: Processes, settings: Settings) -> Iterator[Gpu]:
    """Only a death that is noticed, or the deadline of who is revoked, brings the next one within a minute."""
    within = {"offload_within_s": 1.0, "offload_at_least_s": 1.0}
    one = Gpu(processes, settings, reclaim_within_s=60.0, hello_timeout_s=60.0, stuck_after_s=60.0, **within)
    yield one
    one.close()


def said(p: Started, event: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """The first log line of this event."""

    def find() -> dict[str, Any]:
        rows = [json.loads(x) for x in p.output().splitlines() if x.startswith("{") and x.endswith("}")]
        return next((r for r in rows if r["event"] == event), {})

    return wait_for(find, timeout_s, f"{event!r} in the log")


def roster(gpu: Gpu) -> Roster:
    return msgspec.json.decode((gpu.run / "roster").read_bytes(), type=Roster)


def record(gpu: Gpu, name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((gpu.run / f"{name}.exit").read_bytes())
    return row


def test_a_burst_takes_the_gpu_and_gives_it_back(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    watcher = Watcher(gpu)
    gpu.worker("summarizer", want_mib=900, lane="burst")
    gpu.has("summarizer")
    assert roster(gpu).rows[-1].bytes == 900 * MIB, "the roster knows who has it"
    gpu.script("summarizer", lane="burst")  # it wants nothing any more
    gpu.has("transcriber")
    gpu.until(lambda s: s["summarizer"].state == "free")
    watcher.stop()
    assert gpu.state().swaps == 1
    assert 600 <= watcher.most_mib <= CARD_MIB - MARGIN_MIB and watcher.looks
    row = said(arbiter, "granted")
    assert row["worker"] == "transcriber" and row["mib"] == 600 and row["epoch"] == 1


def test_a_holder_that_is_killed_is_followed_by_the_next(patient: Gpu) -> None:
    gpu = patient
    gpu.arbiter()
    summarizer = gpu.worker("summarizer", want_mib=900, lane="burst")
    gpu.has("summarizer")
    gpu.worker("transcriber", want_mib=600)
    gpu.until(lambda s: "summarizer has the GPU" in s["transcriber"].reason if "transcriber" in s else False)
    summarizer.kill()
    took_s = gpu.has("transcriber", 30.0)
    print(f"the next one after {took_s:.2f} s")
    assert took_s < GRACE_S


def held_by_a_burst(gpu: Gpu, **script: Any) -> tuple[Started, Started]:
    """A burst has the GPU and the transcriber waits."""
    arbiter = gpu.arbiter()
    summarizer = gpu.worker("summarizer", want_mib=900, lane="burst", **script)
    gpu.has("summarizer")
    gpu.worker("transcriber", want_mib=600)
    gpu.until(lambda s: "transcriber" in s)
    return arbiter, summarizer


@pytest.mark.parametrize("how", ["stopped", "deaf"])
def test_one_that_does_not_give_back_is_killed_at_its_deadline(patient: Gpu, how: str) -> None:
    gpu = patient
    arbiter, summarizer = held_by_a_burst(gpu)
    if how == "stopped":
        summarizer.signal(signal.SIGSTOP)
    else:
        gpu.script("summarizer", want_mib=900, lane="burst", deaf=True)
        gpu.until(lambda s: s["summarizer"].waits_s == 0)
    asked = time.time()
    assert isinstance(gpu.command("evict", worker="summarizer"), m.Done)
    gpu.has("transcriber", 30.0)
    took_s, within_s = time.time() - asked, gpu.settings.gpu.offload_within_s
    print(f"the next one after {took_s:.2f} s, of which {within_s:.2f} s are its deadline")
    assert took_s < within_s + GRACE_S
    assert summarizer.wait() == -signal.SIGKILL
    end = record(gpu, "summarizer")
    assert end["ours"] is True and end["pid"] == summarizer.pid and end["cause"] == "signal 9"
    killed = said(arbiter, "kill")["at"]  # in milliseconds
    assert killed >= asked + within_s - 0.01, "not before its deadline, which begins after it was asked for"


def test_out_of_memory_kills_nobody_and_is_wanted_again(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    worker = gpu.worker("transcriber", want_mib=600, ooms=1)
    said(worker, "out of memory")
    gpu.has("transcriber")
    assert worker.alive and '"kill"' not in arbiter.output()
    epochs = [json.loads(x)["epoch"] for x in arbiter.output().splitlines() if '"granted"' in x]
    assert len(epochs) == 2 and epochs[1] > epochs[0], "a second grant"


def test_out_of_memory_on_a_nearly_full_card_is_no_refusal_for_ever(gpu: Gpu) -> None:
    """It wants a quarter more than its peak then, and that is more than there is: it gets all there is."""
    arbiter = gpu.arbiter()
    worker = gpu.worker("summarizer", want_mib=900, lane="burst")
    gpu.has("summarizer")
    gpu.script("summarizer", want_mib=901, lane="burst", ooms=1)  # another size: revoked, and granted anew
    said(worker, "out of memory")
    gpu.has("summarizer")
    assert gpu.state().counted_bytes == (CARD_MIB - MARGIN_MIB) * MIB and '"refused"' not in arbiter.output()


def test_a_killed_arbiter_comes_back_in_the_middle_of_a_swap(gpu: Gpu) -> None:
    """Ten kills at different moments: epochs rise, nobody is ever over the cap, the swap ends as if nothing was."""
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600, reload_s=0.05, offload_s=0.05)
    gpu.has("transcriber")
    gpu.worker("summarizer", reload_s=0.05, offload_s=0.05)
    watcher, newest = Watcher(gpu), 0
    for k in range(10):
        gpu.script("summarizer", want_mib=900, lane="burst", works_s=0.2, reload_s=0.05, offload_s=0.05)
        time.sleep(0.03 * k)  # not a wait: the moment of the kill is what varies
        arbiter.kill()
        before = roster(gpu)
        assert before.n >= newest
        newest = before.n
        arbiter = gpu.arbiter()
        gpu.until(lambda s: len(s) == 2 and s["summarizer"].wants_bytes == 0 and s["summarizer"].state == "free")
        gpu.has("transcriber")
        assert roster(gpu).n >= newest
    watcher.stop()
    assert watcher.most_mib <= CARD_MIB - MARGIN_MIB
    assert watcher.looks > 20


def test_workers_carry_on_without_an_arbiter(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    worker = gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    arbiter.kill()
    card = SimulatedCard(gpu.run, gpu.settings)
    assert card.by_pid() == {worker.pid: 600 * MIB}
    again = gpu.arbiter()
    gpu.has("transcriber")
    assert '"granted"' not in again.output() and card.by_pid() == {worker.pid: 600 * MIB}, "nobody had to move"


def test_a_burst_goes_on_through_a_restart_of_the_arbiter(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    gpu.worker("summarizer", want_mib=900, lane="burst", works_s=2.0)
    gpu.has("summarizer")
    arbiter.kill()
    again = gpu.arbiter()
    gpu.has("transcriber")
    assert said(again, "revoked")["reason"] == "it wants nothing", "it had its whole time"


def test_one_who_died_while_no_arbiter_looked_is_noticed(patient: Gpu) -> None:
    gpu = patient
    arbiter = gpu.arbiter()
    worker = gpu.worker("summarizer", want_mib=900, lane="burst")
    gpu.has("summarizer")
    arbiter.kill()
    worker.kill()
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    print(f"the next one after {gpu.has('transcriber', 30.0):.2f} s, in which two processes start")


def test_a_number_of_the_roster_that_is_a_threads_by_now_blocks_nobody(gpu: Gpu) -> None:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    gone = m.Incarnation(worker="transcriber", pid=thread.native_id or 0, started_ticks=5, nonce="0" * 16)
    row = Entry(incarnation=gone, state=GRANTED, epoch=7, bytes=900 * MIB, residue_bytes=0, offload_within_s=2.0)
    gpu.run.mkdir(parents=True, exist_ok=True)
    write_roster(gpu.run, Roster(n=7, rows=(row,)))
    gpu.arbiter()
    gpu.worker("summarizer", want_mib=600)
    gpu.has("summarizer")
    gpu.when(lambda s: not s.trouble, why="no trouble")


def test_a_lost_roster_is_made_up_from_what_the_workers_say(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    worker = gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    arbiter.kill()
    (gpu.run / "roster").write_bytes(b"\x00 no roster")
    again = gpu.arbiter()
    gpu.has("transcriber")
    assert said(again, "the roster cannot be read; the workers are asked what they hold")
    assert gpu.state().counted_bytes == 600 * MIB and worker.alive


def test_nonsense_changes_nothing(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    asker = wire.Requester(wire.ipc(gpu.settings, "arbiter"))
    me = m.Incarnation(worker="x", pid=os.getpid(), started_ticks=start_time(os.getpid()), nonce="0" * 16)
    good = m.Status(
        incarnation=me, acted=0, pending=0, residency="offloaded", held_bytes=0, lease_bytes=0, wants=m.Want(bytes=1)
    )
    change = msgspec.structs.replace
    bad = [
        change(good, incarnation=change(me, worker="../../evil")),
        change(good, acted=2**63),
        change(good, held_bytes=-600 * MIB),
        change(good, lag_s=float("nan")),
        change(good, residency="everywhere"),
        change(good, wants=m.Want(bytes=1, lane="fast")),
        change(good, incarnation=change(me, pid=2**40)),
        change(good, protocol=99),
        m.Purge(stream="x"),
    ]
    for one in bad:
        answer = asker.request(one, 20.0)
        assert isinstance(answer, m.Refused), one
    for raw in (b"", b"\xc1", os.urandom(1000), b"\x81\xa4type\xa6status", b"\x91" * 100_000):
        wire.send(asker.socket, [b"x", raw])
    with_big = wire.Requester(wire.ipc(gpu.settings, "arbiter"))
    wait_for(lambda: wire.send(with_big.socket, [b"x", b"\x00" * (wire.MAX_MESSAGE + 1)]), what="a connection")
    gpu.until(lambda s: list(s) == ["transcriber"] and s["transcriber"].residency == "resident")
    lines = [x for x in arbiter.output().splitlines() if '"refused"' in x]
    assert arbiter.alive and 1 <= len(lines) <= 5, "said, and not for each"
    asker.close()
    with_big.close()


def test_there_is_one_arbiter(gpu: Gpu) -> None:
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    assert gpu.arbiter().wait() == EXIT_NAME_TAKEN


def test_a_stopped_helper_is_replaced(gpu: Gpu) -> None:
    gpu = Gpu(gpu.processes, gpu.settings, measure_timeout_s=3.0)  # a helper starts in it too
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")

    def unanswered() -> int:
        return arbiter.output().count("did not answer in 3 s")

    def follows(old: psutil.Process) -> psutil.Process | None:
        """Who measures instead of it, and has answered."""
        now = [p for p in psutil.Process(arbiter.pid).children() if p != old]
        return now[0] if now and not gpu.state().trouble else None

    before = unanswered()
    helper = psutil.Process(arbiter.pid).children()[0]
    helper.suspend()
    wait_for(lambda: unanswered() > before, what="a helper that does not answer")
    other = wait_for(lambda: follows(helper), what="another one")
    wait_for(lambda: not helper.is_running(), what="the end of the one that was stopped")
    other.kill()
    third = wait_for(lambda: follows(other), what="a third one")
    gpu.worker("translator", want_mib=100)
    gpu.has("translator")
    arbiter.kill()
    third.wait(20.0)
    gpu.close()


FOREIGN = """
import sys, time
from pathlib import Path
from common.card import SimulatedCard
from common.settings import GpuSettings, Settings
card = SimulatedCard(Path(sys.argv[1]), Settings(gpu=GpuSettings(simulated_mib=int(sys.argv[2]))))
card.take(int(sys.argv[3]) << 20)
print("holds", flush=True)
time.sleep(600)
"""


def test_a_foreign_program_shrinks_the_cap(gpu: Gpu) -> None:
    import sys

    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=300)
    gpu.has("transcriber")
    foreign = gpu.processes.spawn([sys.executable, "-c", FOREIGN, str(gpu.run), str(CARD_MIB), "400"], "foreign")
    gpu.when(lambda s: s.foreign_bytes == 400 * MIB, why="foreign bytes")
    assert gpu.state().cap_bytes == (CARD_MIB - MARGIN_MIB - 400) * MIB
    gpu.worker("summarizer", want_mib=700, lane="burst")
    reason = said(arbiter, "refused")["reason"]
    assert "wants 0.7 GiB, the card has 0.6 GiB for leases" in reason and "foreign" in reason
    assert gpu.state().workers[0].residency == "resident", "nobody had to leave for it"
    foreign.kill()
    gpu.has("summarizer")


def test_a_pid_that_is_used_again_is_neither_watched_nor_killed(tmp_path: Path) -> None:
    me = m.Incarnation(worker="x", pid=os.getpid(), started_ticks=start_time(os.getpid()) - 1, nonce="0" * 16)
    fds = Pidfds(tmp_path)
    assert not fds.watch(me) and not fds.kill(me)
    assert not (tmp_path / "x.exit").exists()


def test_a_full_disk_stops_grants_not_the_arbiter(gpu: Gpu) -> None:
    """A Lease never leaves before its roster: with no place for it, it waits."""
    gpu.arbiter()
    (gpu.run / "roster.new").mkdir(parents=True)  # nothing can be written there
    gpu.worker("transcriber", want_mib=600)
    gpu.when(lambda s: "roster cannot be written" in s.trouble, why="trouble")
    assert SimulatedCard(gpu.run, gpu.settings).by_pid() == {}
    (gpu.run / "roster.new").rmdir()
    gpu.has("transcriber")
    gpu.when(lambda s: not s.trouble, why="no trouble")


def test_a_full_disk_keeps_revocations_back_and_kills_nobody_for_it(gpu: Gpu) -> None:
    gpu.arbiter()
    worker = gpu.worker("transcriber", want_mib=700)
    gpu.has("transcriber")
    (gpu.run / "roster.new").mkdir()  # nothing can be written there
    gpu.script("transcriber")  # wants nothing any more: it is to be revoked, and cannot be told
    gpu.when(lambda s: "roster cannot be written" in s.trouble, why="trouble")
    over_s = time.monotonic() + gpu.settings.gpu.offload_within_s + 1.0
    wait_for(lambda: time.monotonic() > over_s, what="the deadline that it would have had")
    (gpu.run / "roster.new").rmdir()
    gpu.until(lambda w: not worker.alive or w["transcriber"].state == "free")
    assert worker.alive, "it was killed at a deadline of which it had not heard"
    assert gpu.state().workers[0].pid == worker.pid
