"""The roster on disk and the pidfds: what is of another boot, and numbers that are no process' any more."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from arbiter.effects import GRANTED, Entry, Roster
from arbiter.hands import Processes, read_roster, write_roster
from common.messages import Incarnation
from common.process import start_time

pytestmark = pytest.mark.pure


def who(pid: int, started_ticks: int = 1) -> Incarnation:
    return Incarnation(worker="transcriber", pid=pid, started_ticks=started_ticks, nonce="0" * 16)


def roster(pid: int) -> Roster:
    row = Entry(incarnation=who(pid), state=GRANTED, epoch=7, bytes=1000, residue_bytes=0, offload_within_s=2.0)
    return Roster(n=7, rows=(row,))


@pytest.fixture
def thread() -> Iterator[int]:
    """Number of a thread that is not its process' first."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    assert thread.native_id
    yield thread.native_id
    done.set()
    thread.join()


def test_a_number_that_is_a_threads_by_now_is_dead(folder: Path, thread: int) -> None:
    processes = Processes(folder)
    assert not processes.watch(who(thread)) and not processes.kill(who(thread))
    assert processes.fds == {}


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1, 2**40])
def test_a_number_that_nobody_can_have_is_dead(folder: Path, pid: int) -> None:
    assert not Processes(folder).watch(who(pid))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ENOSYS])
def test_where_it_cannot_be_told_nobody_is_taken_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(code, os.strerror(code))

    me, processes = who(os.getpid(), start_time(os.getpid())), Processes(folder)
    with monkeypatch.context() as now:
        now.setattr("os.pidfd_open", refuse)
        with pytest.raises(OSError):
            processes.watch(me)
    assert processes.watch(me)
    processes.forget(me)


def test_rows_of_another_boot_are_of_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_roster(folder, roster(os.getpid()))
    assert read_roster(folder) == (roster(os.getpid()), "")
    monkeypatch.setattr("common.backlog.boot_id", lambda: "the next one")
    assert read_roster(folder) == (Roster(n=7), "")  # the numbers of decisions go on


def test_a_roster_that_does_not_tell_its_boot_is_taken_as_it_is(folder: Path) -> None:
    (folder / "roster").write_bytes(msgspec.json.encode(roster(5)))
    assert read_roster(folder) == (roster(5), "")
