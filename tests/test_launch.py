"""The launcher over stand-in processes: restarts, back-off, adoption, take-over, orders, stop. All real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arbiter.hands import Processes as Pidfds
from common import backlog, topology, wire
from common import messages as m
from common.child import Life, Want, running, want_capture, wants
from common.ends import ended_streams, source_ended
from common.launch import FIRST_SWEEP_S, STEADY_S, STOP_S, SWEEP_EVERY_S, Launcher
from common.process import EXIT_NAME_TAKEN, holder, start_time, wait_gone
from common.settings import Settings, Source, UserError
from tests.conftest import ROOT, Processes, Started, clean_environment, wait_for

NAMES = ["feed", "capture@a", "transcriber", "viewer"]


class Table:
    """A launcher over the stand-in table, and what a test wants to know about it."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        self.processes, self.settings = processes, settings
        self.run = wire.run_dir(settings)
        self.options = ["--set", f"data_dir={settings.data_dir}"]

    def launch(self) -> Started:
        argv = [sys.executable, "-m", "tests.standin_process", "launcher", *self.options]
        return self.processes.spawn(argv, "launcher")

    def take_over(self, name: str) -> Started:
        argv = [sys.executable, "-m", "tests.standin_process", name, *self.options, "--take-over"]
        return self.processes.spawn(argv, f"taken-{name}")

    def up(self, *names: str) -> dict[str, int]:
        """Pids once these (default: all) run."""
        wanted = set(names or NAMES)
        return wait_for(lambda: p if wanted <= set(p := running(self.run)) else {}, what=f"{wanted} up")

    def other(self, name: str, old: int) -> int:
        return wait_for(lambda: p if (p := holder(self.run, name) or 0) != old else 0, what=f"new {name}")

    def fault(self, name: str, what: str) -> None:
        path = self.settings.data / f"fault-{name}"
        path.with_suffix(".new").write_text(what)
        path.with_suffix(".new").rename(path)

    def mend(self, name: str) -> None:
        (self.settings.data / f"fault-{name}").unlink()

    def exit_record(self, name: str, pid: int) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            path = self.run / f"{name}.exit"
            row: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
            return row if row.get("pid") == pid else {}

        return wait_for(read, what=f"{name}.exit of pid {pid}")

    def ask(self, verb: str, id: str = "", **args: str) -> m.Answer:
        asker = wire.Requester(wire.ipc(self.settings, "launcher"))
        try:
            return asker.request(m.Command(id=id or uuid.uuid4().hex, verb=verb, args=args), 20.0)
        finally:
            asker.close()


@pytest.fixture
def table(processes: Processes, settings: Settings) -> Table:
    return Table(processes, settings)


def said(launcher: Started, what: str) -> str:
    return wait_for(lambda: next((x for x in launcher.output().splitlines() if what in x), ""), what=f"{what!r} said")


@pytest.mark.pure
def test_the_table_becomes_processes() -> None:
    settings = Settings(source=(Source(name="a", kind="file", path="x"), Source(name="pipe", kind="stdin")))
    made = {w.name: w for w in wants(settings, ["--set", "k=v"])}
    assert list(made) == list(topology.names(settings))
    assert made["capture@a"].command == ("-m", "capture", "--set", "k=v", "--source", "a")
    assert [w.name for w in made.values() if w.stdin] == ["capture@pipe"]
    secret = want_capture(CAM, ["--set", "k=v"])
    assert secret.finite and "s3cret" not in " ".join(secret.command), "arguments are seen by every user"
    with pytest.raises(UserError, match="two sources of kind stdin"):
        wants(settings, [], (Source(name="more", kind="stdin"),))
    assert {w.name for w in made.values() if w.survives} == {"arbiter", "feed", "capture@a", "capture@pipe"}
    ranks = {w.name: w.stop_rank for w in made.values()}
    assert ranks["capture@a"] < ranks["transcriber"] == ranks["viewer"] < ranks["feed"]


@pytest.mark.processes
def test_all_come_up_and_stop_leaves_nothing(table: Table) -> None:
    launcher = table.launch()
    pids = table.up()
    assert "all 4 processes are up after" in said(launcher, "are up after")
    for name, pid in pids.items():
        assert os.getsid(pid) == pid, f"{name} shares the terminal's session"
    launcher.signal(signal.SIGINT)
    assert launcher.wait() == 0
    assert running(table.run) == {} and all(wait_gone(pid, 0) for pid in pids.values())
    ends = [line.split()[0] for line in launcher.output().splitlines() if line.split()[1:] == ["stopped"]]
    assert ends[0] == "capture@a" and set(ends[1:3]) == {"transcriber", "viewer"} and ends[3] == "feed"
    assert all(table.exit_record(name, pid)["ours"] for name, pid in pids.items())


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_process_comes_back(table: Table, name: str) -> None:
    table.launch()
    old = table.up()
    os.kill(old[name], signal.SIGKILL)
    table.other(name, old[name])
    record = table.exit_record(name, old[name])
    assert record["cause"] == "signal 9" and record["ours"] is False
    assert time.time() - record["at"] < 60
    now = table.up()
    assert [n for n in NAMES if now[n] != old[n]] == [name]


@pytest.mark.processes
def test_back_off_grows(table: Table) -> None:
    launcher = table.launch()
    table.up()
    table.fault("viewer", "exit 1")
    for delay in ("at once", "in 0.2 s", "in 0.4 s", "in 0.8 s"):
        assert said(launcher, f"viewer died (exit 1), again {delay}")
    table.mend("viewer")
    table.up("viewer")


@pytest.mark.processes
def test_a_long_life_makes_restarts_quick_again(settings: Settings, folder: Path) -> None:
    viewer = Want(name="viewer", command=("-c", "import signal; signal.pause()"))
    launcher = Launcher(settings, (viewer,), lambda line: None)
    slot = launcher.slots[0]
    slot.life = Life.start(slot.want, folder / "x.log")
    slot.fails = 6
    launcher._watch(slot, slot.life)
    assert slot.fails == 6
    slot.life.began -= STEADY_S
    launcher._watch(slot, slot.life)
    assert slot.fails == 0
    slot.life.signal(signal.SIGKILL)
    assert slot.life.child and slot.life.child.wait() == -signal.SIGKILL


@pytest.mark.processes
def test_a_kill_by_the_arbiter_is_an_order_not_a_crash(table: Table) -> None:
    launcher = table.launch()
    old = table.up()["transcriber"]
    for _ in range(3):  # three crashes would have made it wait for 0.2, 0.4, 0.8 s
        who = m.Incarnation(worker="transcriber", pid=old, started_ticks=start_time(old), nonce="0" * 16)
        assert Pidfds(table.run).kill(who)
        new = table.other("transcriber", old)
        record = table.exit_record("transcriber", old)
        assert record["ours"] is True and record["cause"] == "signal 9", "the launcher's own record says so too"
        old = new
    assert launcher.output().count("transcriber stopped (signal 9 by the arbiter, see its log)") == 3
    assert "transcriber died" not in launcher.output()
    os.kill(old, signal.SIGKILL)  # by somebody else: what stands there of an earlier life does not excuse it
    assert "again at once" in said(launcher, "transcriber died")


@pytest.mark.processes
def test_where_nothing_is_captured_audio_is_swept_once_an_hour(settings: Settings) -> None:
    sweeper = Want(name="sweeper", command=("-c", "pass"))
    capture = Want(name="capture@a", source="a", command=("-c", "import signal; signal.pause()"))
    launcher = Launcher(settings, (capture,), lambda line: None, sweeper=sweeper)
    began, lives = launcher._began, list[int]()

    def turn(after_s: float) -> int:
        """Sweeps so far, each waited for."""
        launcher._sweep_audio(began + after_s)
        if launcher._sweep and launcher._sweep.child and launcher._sweep.pid not in lives:
            lives.append(launcher._sweep.pid)
            assert launcher._sweep.child.wait(10) == 0
        return len(lives)

    assert turn(FIRST_SWEEP_S - 1) == 0
    slot = launcher.slots[0]
    slot.life = Life.start(capture, settings.data / "x.log")
    assert turn(FIRST_SWEEP_S + 1) == 0, "the capture does it"
    slot.life.signal(signal.SIGKILL)
    assert slot.life.child and slot.life.child.wait() == -signal.SIGKILL
    slot.life = None
    assert [turn(FIRST_SWEEP_S + s) for s in (2, 3, SWEEP_EVERY_S, SWEEP_EVERY_S + 3, SWEEP_EVERY_S + 4)] == [
        1,
        1,
        1,
        2,
        2,
    ]
    launcher._stopping = True
    assert turn(10 * SWEEP_EVERY_S) == 2


@pytest.mark.processes
def test_a_user_error_is_said_once_and_a_restart_order_tries_at_once(table: Table) -> None:
    table.settings.data.mkdir(exist_ok=True)
    table.fault("viewer", "user")
    launcher = table.launch()
    line = said(launcher, "viewer cannot run")
    assert "the stand-in needs a person; do something" in line
    table.ask("restart", process="viewer")  # still wrong: the same words are not said again
    wait_for(lambda: launcher.output().count("viewer started") == 2)
    table.exit_record("viewer", int(launcher.output().rpartition("viewer started as pid ")[2].split()[0]))
    table.mend("viewer")
    table.ask("restart", process="viewer")
    table.up("viewer")
    assert launcher.output().count("viewer cannot run") == 2  # a person asked in between: that is a new answer


@pytest.mark.processes
def test_a_finished_capture_stays_finished(table: Table) -> None:
    launcher = table.launch()
    pids = table.up()
    table.fault("capture@a", "done")
    said(launcher, "capture@a is finished")
    os.kill(pids["viewer"], signal.SIGKILL)  # something to wait for: the loop has gone round since
    table.other("viewer", pids["viewer"])
    assert launcher.output().count("capture@a started") == 1
    assert holder(table.run, "capture@a") is None
    assert msgspec.json.decode(getattr(table.ask("status"), "detail", ""))["capture@a"] == "finished"


@pytest.mark.processes
def test_killed_launcher_model_workers_die_survivors_are_adopted(table: Table) -> None:
    first = table.launch()
    old = table.up()
    first.kill()
    assert wait_gone(old["transcriber"], 5) and wait_gone(old["viewer"], 5)
    assert running(table.run) == {"feed": old["feed"], "capture@a": old["capture@a"]}
    second = table.launch()
    new = table.up()
    assert (new["feed"], new["capture@a"]) == (old["feed"], old["capture@a"])
    assert "left alone" in said(second, "feed is running") and "other settings" not in said(second, "feed is running")
    os.kill(new["feed"], signal.SIGKILL)  # an adopted process is watched like a child
    table.other("feed", new["feed"])
    assert table.exit_record("feed", new["feed"])["cause"] == "unknown"
    assert second.stop() == 0
    assert running(table.run) == {} and wait_gone(old["capture@a"], 0)


@pytest.mark.processes
@pytest.mark.parametrize("killed", [True, False])
def test_what_ended_under_a_killed_launcher_is_not_played_again(table: Table, killed: bool) -> None:
    first = table.launch()
    table.up()
    stream_of_a(table.settings, "a-1")
    if killed:
        first.kill()
        table.fault("capture@a", "done")
        wait_for(lambda: holder(table.run, "capture@a") is None)
    else:
        first.stop()
        table.fault("capture@a", "done")
    second = table.launch()
    table.up("feed", "transcriber", "viewer")
    said(second, "processes are up")
    assert ("capture@a started" in second.output()) is not killed


def kept_as_done(table: Table, launcher: Started) -> None:
    """It is said first, and written a moment later."""
    said(launcher, "capture@a is finished")
    since = table.run / "launcher.since"
    wait_for(lambda: "done a" in since.read_text().splitlines(), what="its end to be kept")


def stream_of_a(settings: Settings, name: str, reason: str = "end of file", began_ns: int = 0) -> None:
    """An ended one, of a time when clocks said 0: they are put back and forth, and nothing may follow from that."""
    folder = settings.streams / name
    folder.mkdir(parents=True, exist_ok=True)
    meta = backlog.Meta(stream=name, source="a", lane="live", origin="x", started_ns=began_ns, resumable=True)
    ended = msgspec.structs.replace(meta, ended=True, end=16_000, end_reason=reason)
    backlog.write_meta(folder, ended if reason else meta)
    os.utime(folder / "meta.json", (0, 0))


@pytest.mark.processes
def test_a_capture_that_is_killed_behind_the_end_of_its_source_is_finished_whatever_clocks_say(table: Table) -> None:
    launcher = table.launch()
    pids = table.up()
    stream_of_a(table.settings, "a-1")
    os.kill(pids["capture@a"], signal.SIGKILL)
    said(launcher, "capture@a is finished")
    assert launcher.output().count("capture@a started") == 1


@pytest.mark.pure
def test_whether_a_source_has_ended_is_told_by_its_streams_since_then(settings: Settings) -> None:
    assert not source_ended(settings, "a", frozenset())
    stream_of_a(settings, "a-1", began_ns=9)
    known = ended_streams(settings)
    assert known == {"a-1"} and source_ended(settings, "a", frozenset()) and not source_ended(settings, "a", known)
    stream_of_a(settings, "a-2", "stopped")
    assert not source_ended(settings, "a", known), "by order is not by itself"
    stream_of_a(settings, "a-3")
    assert source_ended(settings, "a", known) and not source_ended(settings, "b", known)
    stream_of_a(settings, "a-4", "")
    assert not source_ended(settings, "a", known), "it is played again"
    assert not source_ended(settings, "a", known, done=True)
    assert source_ended(settings, "b", known, done=True), "purged since"


@pytest.mark.processes
def test_what_could_not_be_written_at_the_start_is_written_later(table: Table) -> None:
    """Else, after a kill, a launcher takes itself for the first of this boot."""
    blocked = table.run / "launcher.since.new"
    blocked.mkdir()
    first = table.launch()
    table.up()
    assert not (table.run / "launcher.since").exists()
    blocked.rmdir()
    wait_for((table.run / "launcher.since").exists, what="its memory")
    assert capture_of(table, CAM) == m.Done(detail="capture@cam")
    table.fault("capture@a", "done")
    stream_of_a(table.settings, "a-1")
    kept_as_done(table, first)
    first.kill()
    second = table.launch()
    table.up("feed", "transcriber", "viewer", "capture@cam")
    said(second, "processes are up")
    assert "capture@a started" not in second.output() and "forgotten" not in second.output()


@pytest.mark.processes
def test_a_finished_source_stays_finished_when_its_stream_is_purged_until_an_order(table: Table) -> None:
    first = table.launch()
    table.up()
    table.fault("capture@a", "done")
    stream_of_a(table.settings, "a-1")
    kept_as_done(table, first)
    first.kill()
    backlog.remove(table.settings.streams / "a-1")
    second = table.launch()
    table.up("feed", "transcriber", "viewer")
    said(second, "processes are up")
    second.kill()  # and what the first one saw the third still knows
    third = table.launch()
    table.up("feed", "transcriber", "viewer")
    said(third, "processes are up")
    assert "capture@a started" not in second.output() + third.output()
    table.mend("capture@a")
    table.ask("restart", process="capture@a")
    playing = table.up()["capture@a"]
    wait_for(lambda: "done a" not in (table.run / "launcher.since").read_text(), what="the order to be kept")
    third.kill()
    table.launch()
    assert table.up()["capture@a"] == playing
    os.kill(playing, signal.SIGKILL)
    assert table.other("capture@a", playing), "it is played to its end"


@pytest.mark.processes
def test_take_over_and_return(table: Table) -> None:
    launcher = table.launch()
    old = table.up()["transcriber"]
    taken = table.take_over("transcriber")
    wait_for(lambda: holder(table.run, "transcriber") == taken.pid)
    assert table.exit_record("transcriber", old)["ours"] is False
    said(launcher, f"transcriber is running as pid {taken.pid}")
    taken.signal(signal.SIGINT)
    assert taken.wait() == 0
    back = table.other("transcriber", taken.pid)
    assert f"transcriber started as pid {back}" in said(launcher, f"transcriber started as pid {back}")


@pytest.mark.processes
def test_restart_is_carried_out_once_per_id(table: Table) -> None:
    table.launch()
    old = table.up()["viewer"]
    assert table.ask("restart", id="one", process="viewer") == m.Done(detail="viewer")
    new = table.other("viewer", old)
    assert table.exit_record("viewer", old)["ours"] is True
    assert table.ask("restart", id="one", process="viewer") == m.Done(detail="viewer")
    feed = table.up()["feed"]
    assert table.ask("restart", id="two", process="feed") == m.Done(detail="feed")  # it has passed "one" long since
    table.other("feed", feed)
    assert holder(table.run, "viewer") == new
    refused = table.ask("restart", process="nobody")
    assert isinstance(refused, m.Refused) and "feed, capture@a, transcriber, viewer" in refused.reason
    assert table.ask("restart", process="capture") == m.Done(detail="capture@a")


@pytest.mark.processes
def test_garbage_is_refused_and_said_once(table: Table) -> None:
    launcher = table.launch()
    table.up()
    asker = wire.Asker(wire.ipc(table.settings, "launcher"))

    def ask(data: bytes) -> m.Answer:
        asker._id += 1
        wait_for(lambda: wire.send(asker.socket, [asker._tag, data]))
        answers: list[m.Answer] = wait_for(lambda: [a for a in (asker.answer(),) if a])
        return answers[0]

    ping = m.encode(m.Command(id="x", verb="ping"))
    for data in (b"", b"\xff" * 10, ping[:-3], b"\x91" * 100_000, os.urandom(1 << 20), m.encode(m.Replay(after=0))):
        assert isinstance(ask(data), m.Refused)
    wire.send(asker.socket, [b"no tag"])
    assert "protocol" in getattr(ask(m.encode(m.Command(id="p", verb="ping", protocol=99))), "reason", "")
    asker.close()
    huge = wire.Asker(wire.ipc(table.settings, "launcher"))  # closes its own connection, nobody else's
    wait_for(lambda: wire.send(huge.socket, [b"tag", bytes(wire.MAX_MESSAGE + 1)]))
    assert isinstance(table.ask("ping"), m.Done)
    huge.close()
    assert launcher.output().count("refused something") == 1
    refused = table.ask("explode")
    assert isinstance(refused, m.Refused) and "restart, stop, status, ping, capture, release" in refused.reason


@pytest.mark.processes
def test_second_launcher_is_refused_in_one_line(table: Table) -> None:
    table.launch()
    pids = table.up()
    second = table.launch()
    assert second.wait() == EXIT_NAME_TAKEN
    assert len(second.output().splitlines()) == 1
    assert table.up() == pids


@pytest.mark.processes
def test_deaf_process_is_killed_and_that_is_recorded_as_ours(table: Table) -> None:
    launcher = table.launch()
    old = table.up()["transcriber"]
    table.fault("transcriber", "deaf")
    log = table.settings.data / "logs" / "transcriber.log"
    wait_for(lambda: "deaf" in log.read_text())
    table.mend("transcriber")
    table.ask("restart", process="transcriber")
    assert said(launcher, "transcriber does not stop; killed")
    record = table.exit_record("transcriber", old)
    assert record["ours"] is True
    assert wait_for(lambda: table.exit_record("transcriber", old)["cause"] == "signal 9")
    table.other("transcriber", old)


@pytest.mark.processes
def test_second_ctrl_c_stops_at_once(table: Table) -> None:
    table.settings.data.mkdir(exist_ok=True)
    for name in NAMES:
        table.fault(name, "deaf")
    launcher = table.launch()
    table.up()
    wait_for(lambda: all("deaf" in (table.settings.data / "logs" / f"{n}.log").read_text() for n in NAMES))
    launcher.signal(signal.SIGINT)
    said(launcher, "stopping")
    began = time.monotonic()
    launcher.signal(signal.SIGINT)
    assert launcher.wait() == 0
    assert time.monotonic() - began < STOP_S, "waited although told twice"
    assert running(table.run) == {}


@pytest.mark.processes
def test_a_stopped_process_does_not_hold_up_the_others(table: Table) -> None:
    launcher = table.launch()
    old = table.up()
    os.kill(old["feed"], signal.SIGSTOP)
    os.kill(old["transcriber"], signal.SIGKILL)
    table.other("transcriber", old["transcriber"])
    assert isinstance(table.ask("ping"), m.Done)
    launcher.signal(signal.SIGINT)
    said(launcher, "viewer stopped")
    os.kill(old["feed"], signal.SIGCONT)
    assert launcher.wait() == 0


@pytest.mark.processes
def test_stop_command_and_leftovers(table: Table) -> None:
    first = table.launch()
    table.up()
    first.kill()  # feed and capture live on, without a launcher
    wait_for(lambda: set(running(table.run)) == {"feed", "capture@a"})
    argv = [sys.executable, "-m", "common.cli", *table.options]

    def swapscribe(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*argv, *args], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60
        )

    seen = swapscribe("status")
    assert seen.returncode == 0 and "gives no sign of life" in seen.stdout
    assert all(f"\n{name:<18} pid " in seen.stdout for name in ("feed", "capture@a"))
    none = swapscribe("restart", "feed")
    assert none.returncode == 2 and len(none.stderr.splitlines()) == 1 and "run-all" in none.stderr
    assert swapscribe("stop").returncode == 0
    assert running(table.run) == {}
    nothing = swapscribe("stop")
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1
    second = table.launch()
    table.up()
    old = holder(table.run, "viewer")
    assert swapscribe("restart", "viewer").returncode == 0 and holder(table.run, "viewer") != old
    assert swapscribe("stop").returncode == 0
    assert second.wait() == 0 and running(table.run) == {}


CAM = Source(name="cam", kind="file", path="rtsp://me:s3cret@cam/1")


def capture_of(table: Table, source: Source) -> m.Answer:
    return table.ask("capture", source=msgspec.json.encode(source).decode())


@pytest.mark.processes
def test_an_added_source_survives_kills_and_is_released(table: Table) -> None:
    first = table.launch()
    table.up()
    assert capture_of(table, CAM) == m.Done(detail="capture@cam")
    old = table.up("capture@cam")["capture@cam"]
    assert capture_of(table, CAM) == m.Done(detail="capture@cam"), "the same again is no other one"
    os.kill(old, signal.SIGKILL)
    again = table.other("capture@cam", old)
    first.kill()
    second = table.launch()
    assert table.up(*NAMES, "capture@cam")["capture@cam"] == again, "adopted"
    os.kill(again, signal.SIGKILL)
    assert table.other("capture@cam", again), "and started again by the second launcher"
    told = msgspec.json.decode(getattr(table.ask("status"), "detail", ""))
    assert told["capture@cam"] in ("up", "starting")
    assert table.ask("release", name="cam") == m.Done(detail="capture@cam")
    wait_for(lambda: "capture@cam" not in getattr(table.ask("status"), "detail", ""), what="its slot to be gone")
    assert holder(table.run, "capture@cam") is None
    assert not list((table.run / "added").iterdir())
    assert second.stop() == 0 and running(table.run) == {}
    assert "s3cret" not in first.output() + second.output()


@pytest.mark.processes
def test_what_cannot_be_added_or_released_is_refused(table: Table) -> None:
    table.launch()
    table.up()
    other = msgspec.structs.replace(CAM, path="rtsp://cam/2")
    assert isinstance(capture_of(table, CAM), m.Done)
    refused = [
        capture_of(table, other),
        capture_of(table, msgspec.structs.replace(CAM, name="a")),
        capture_of(table, msgspec.structs.replace(CAM, name="../x")),
        capture_of(table, Source(name="in", kind="stdin")),
        table.ask("capture", source="no json"),
        table.ask("capture"),
        table.ask("release", name="a"),
        table.ask("release", name="nobody"),
    ]
    reasons = [getattr(r, "reason", "") for r in refused]
    assert all(isinstance(r, m.Refused) for r in refused)
    assert "cam is another source already" in reasons[0] and "a is a source of the settings" in reasons[1]
    assert "must be 1 to 32 of" in reasons[2] and "another standard input" in reasons[3]
    assert "no source 'nobody'" in reasons[7]
    assert not any("s3cret" in r for r in reasons)


@pytest.mark.processes
def test_a_graceful_stop_forgets_what_was_added(table: Table) -> None:
    first = table.launch()
    table.up()
    capture_of(table, CAM)
    table.up("capture@cam")
    assert first.stop() == 0
    assert running(table.run) == {} and not list((table.run / "added").iterdir())
    second = table.launch()
    table.up()
    assert "capture@cam" not in second.output()
