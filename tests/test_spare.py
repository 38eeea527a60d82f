"""The spare: a model worker that was killed comes back out of a process that has imported torch already."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.child import Life, Want
from common.process import wait_gone
from common.settings import Settings
from common.spare import MODULE, Spare
from tests.conftest import ROOT, Processes, wait_for
from tests.system import RECORDING, System, assert_whole, file_source

pytestmark = pytest.mark.processes
ROLE = ("-m", "tests.standin_role")


def spares(launcher: int) -> list[int]:
    found = []
    for p in psutil.Process(launcher).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if MODULE in p.cmdline():
                found.append(p.pid)
    return found


def waiting_in(spare: Spare) -> psutil.Process:
    assert spare._child
    return psutil.Process(spare._child.pid)


def shown(pid: int) -> list[str]:
    return [x for x in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if x]


def starts_with_torch(want: Want, spare: Spare, settings: Settings) -> bool:
    log = settings.data / "role.log"
    log.unlink(missing_ok=True)
    life = Life.start(want, log, spare)
    wait_for(lambda: not life.alive(), 60.0, "its end")
    return bool(json.loads(log.read_text())["torch"])


@pytest.fixture
def spare(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spare]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spare = Spare(["--set", f"data_dir={settings.data_dir}"], settings.data / "spare.log")
    yield spare
    spare.close()


def test_a_killed_transcriber_comes_back_out_of_the_spare(processes: Processes, settings: Settings) -> None:
    system = System(processes, settings, file_source(RECORDING, "2"))
    launcher = system.start().pid
    first = system.up("transcriber")
    as_started = shown(first)
    (waiting,) = wait_for(lambda: spares(launcher), 60.0, "a spare")
    system.kill("transcriber")
    assert system.up("transcriber", but=first) == waiting
    assert shown(waiting) == as_started, "ps shows what it is"
    end = system.ended()
    assert assert_whole(system.journal(), end.stream) == end.decode().end  # type: ignore[union-attr]
    assert "settings" not in system.launcher.output(), "it is taken for what it was started as"
    (after,) = wait_for(lambda: spares(launcher), 60.0, "the next spare")
    system.kill("launcher")
    assert wait_gone(after, 10.0) and wait_gone(waiting, 20.0), "both end with their launcher"
    launcher = system.start().pid
    (last,) = wait_for(lambda: spares(launcher), 60.0, "a spare of the next launcher")
    system.stop()
    assert wait_gone(last, 0.0)


def test_it_is_as_if_it_had_just_been_started(spare: Spare, settings: Settings) -> None:
    log = settings.data / "role.log"
    spare.start()
    life = Life.start(Want(name="w", command=(*ROLE, "--x", "a b"), spare=True), log, spare)
    assert not spare.waits, "it is nobody's spare any more"
    wait_for(lambda: not life.alive(), 60.0, "its end")
    assert life.status == 7
    row = json.loads(log.read_text())
    assert row.pop("pid") == life.pid
    options = ["--x", "a b", "--parent", str(os.getpid())]
    assert row == {"argv": options, "name": "__main__", "ours": [], "torch": True, "input": ""}


def test_who_finds_none_is_started_as_anybody_else(spare: Spare, settings: Settings) -> None:
    spare.start()
    waiting = waiting_in(spare)
    assert not starts_with_torch(Want(name="w", command=ROLE), spare, settings), "no model worker"
    waiting.kill()
    wait_for(lambda: waiting.status() == psutil.STATUS_ZOMBIE)
    assert not starts_with_torch(Want(name="w", command=ROLE, spare=True), spare, settings), "it was killed"
    assert not spare.waits


def test_one_that_was_stopped_is_none(spare: Spare, settings: Settings) -> None:
    spare.start()
    waiting = waiting_in(spare)
    waiting.suspend()
    wait_for(lambda: waiting.status() == psutil.STATUS_STOPPED)
    assert not starts_with_torch(Want(name="w", command=ROLE, spare=True), spare, settings)
    assert not waiting.is_running()


@pytest.mark.parametrize("trouble", ["no torch", "other packages", "no settings"])
def test_one_that_is_no_use_starts_its_role_from_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    home = settings.data.parent
    packages = home / "packages"
    packages.mkdir()
    settings.data.mkdir()
    # Each Python imports it first. The role is the same process later on, but not started as a spare.
    (home / "sitecustomize.py").write_text(
        f"import sys, sysconfig\nif {MODULE!r} in sys.orig_argv:\n"
        + ("    sys.modules['torch'] = None\n" if trouble == "no torch" else "")
        + f"    sysconfig.get_path = lambda name: {str(packages)!r}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(home), str(ROOT)]))
    options = ["--set", f"data_dir={settings.data_dir}", *(["--set", "nonsense=1"] if trouble == "no settings" else [])]
    spare = Spare(options, home / "spare.log")
    spare.start()
    waiting = waiting_in(spare).pid
    if trouble == "other packages":
        wait_for(lambda: "libtorch" in Path(f"/proc/{waiting}/maps").read_text(), 60.0, "torch to be imported")
        (packages / "torch-9.dist-info").mkdir()
    life = Life.start(Want(name="w", command=ROLE, spare=True), log := home / "role.log", spare)
    wait_for(lambda: not life.alive(), 60.0, "its end")
    row = json.loads(log.read_text())
    assert (life.status, life.pid, row["pid"], row["torch"]) == (7, waiting, waiting, False)


def test_it_ends_when_nobody_needs_it(spare: Spare) -> None:
    spare.start()
    child = spare._child
    assert child and child.stdin
    child.stdin.close()
    assert child.wait(60) == 0
    assert subprocess.run([*child.args[:3], "--parent", "1"], cwd=ROOT, timeout=60).returncode == 1  # type: ignore[index]
