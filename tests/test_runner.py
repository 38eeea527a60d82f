"""The base of the GPU workers around one step: what it does to a step that it ends, to leases while the feed is dead.

The worker and the device are stand-ins; Runner, Tenant and Holder are the real ones. No process is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import messages as m
from common import wire
from common.process import Log, Process
from common.settings import GpuSettings, Settings
from tests.conftest import ROOT, clean_environment
from tests.test_tenancy import Game
from workers import base, retry
from workers.base import Runner
from workers.hearing import Hearing
from workers.poison import Poison
from workers.steps import Worker
from workers.tenancy import NotCarriedOut

pytestmark = pytest.mark.joined


class StandInWorker(Worker):
    """Has nothing to do by itself."""

    name = "standin"

    def load(self, process: Process) -> Sequence[Any]:
        return []

    def key(self) -> str:
        return ""

    def working_bytes(self) -> int:
        return 30

    def rehearse(self) -> Iterator[None]:
        return iter([None])

    def look(self, runner: Runner, now: float) -> None: ...

    def turn(self, runner: Runner) -> bool:
        return False

    def needs_model(self) -> bool:
        return False


@pytest.fixture
def game() -> Game:
    return Game()


@pytest.fixture
def runner(game: Game, tmp_path: Path) -> Runner:
    settings = Settings(data_dir=str(tmp_path))
    (tmp_path / "run").mkdir()
    process: Any = SimpleNamespace(settings=settings, log=Log("test"), run=tmp_path / "run", stopping=False)
    made = Runner(process, StandInWorker())
    made.holder, made.tenant = game.holder, game.tenant
    return made


class OnTheDevice:
    """What a step has on the device, such as a cache of keys and values."""


def test_what_a_step_has_on_the_device_is_gone_before_the_weights_are(runner: Runner, game: Game) -> None:
    alive: list[bool] = []
    had: list[weakref.ref[OnTheDevice]] = []
    offload = game.residency.offload

    def offloaded(freed: Any) -> Any:
        alive.append(had[0]() is not None)
        return offload(freed)

    game.residency.offload = offloaded  # type: ignore[method-assign]

    def pieces() -> Generator[None, None, str]:
        cache = OnTheDevice()
        had.append(weakref.ref(cache))
        yield
        game.lease(False)
        yield
        return repr(cache)

    def begin() -> None:
        had.clear()
        game.lease(True)
        game.tenant.edge()

    begin()
    assert not runner.carry(pieces(), 30)
    begin()
    assert runner.step(pieces()) is None
    assert alive == [False, False], "memory of the step stays on the card: it cannot be given back"


def test_a_step_that_does_not_fit_is_told_to_the_worker_which_may_take_smaller_ones(
    runner: Runner, game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(runner.worker, "too_large", lambda: told.append(game.device.held_bytes))

    def pieces() -> Generator[None, None, str]:
        yield
        return "done"

    game.lease(True)
    runner.edge()
    assert runner.step(pieces(), 30) == "done" and not told
    assert runner.step(pieces(), 31) is None and told == [0], "offloaded first"
    assert game.holder.want.bytes >= 130


class Batches(StandInWorker):
    """Takes two batches of 15 bytes at once, or one."""

    most = 2

    def working_bytes(self) -> int:
        return 15 * self.most

    def least_working_bytes(self) -> int:
        return 15

    def too_large(self) -> None:
        self.most = 1


@pytest.mark.parametrize(("took", "least"), [(30, 15), (24, 15), (12, 12), (37, 22)])
def test_one_that_has_measured_itself_can_do_with_its_smallest_steps_as_before(
    runner: Runner, game: Game, took: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the largest step took may be more or less than its formula says."""
    monkeypatch.setattr(base, "SLACK_BYTES", 0)
    monkeypatch.setattr(game.residency, "trim", lambda: None, raising=False)
    monkeypatch.setattr(runner, "_key", lambda device: "")
    runner.worker = Batches()
    runner._measured(game.tenant, 100, took)
    from_the_file = game.tenant.need_bytes, game.tenant.least_bytes, game.tenant.measured
    game.tenant.measured, game.device.peak_bytes = False, 100 + took
    runner.calibrating = True
    monkeypatch.setattr(runner, "carry", lambda *args: True)
    game.lease(True, size=200)
    runner.edge()
    game.device.peak_bytes = 100 + took
    runner._calibrate()
    assert (game.tenant.need_bytes, game.tenant.least_bytes, game.tenant.measured) == from_the_file
    assert from_the_file == (100 + took, 100 + least, True) and game.holder.want.least_bytes == 100 + least


def test_one_that_got_less_than_it_wants_takes_smaller_steps_and_wants_no_more_than_that_at_least(
    runner: Runner, game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SLACK_BYTES", 0)
    runner.worker = worker = Batches()
    runner._measured(game.tenant, 100, 30)
    game.tenant.want("live")

    def step() -> str | None:
        def pieces() -> Generator[None, None, str]:
            yield
            return "done"

        game.lease(True, size=120)
        runner.edge()
        return runner.step(pieces())

    assert step() is None and worker.most == 1
    assert game.holder.want.least_bytes == 115, "what there is would be refused it from now on"
    game.lease(False)
    runner.edge()
    assert step() == "done" and game.holder.ooms == 0


def test_any_iterator_may_be_a_step(runner: Runner, game: Game) -> None:
    game.lease(True)
    steps: Iterator[None] = iter([None] * 3)
    assert runner.carry(steps, 30)


def test_a_feed_that_does_not_answer_keeps_no_lease_from_being_obeyed(runner: Runner, game: Game) -> None:
    allowed: list[float] = []

    def append(*args: Any, timeout_s: float, **fields: Any) -> None:
        allowed.append(timeout_s)
        if len(allowed) == 20:
            game.lease(False)
            runner.process.stopping = True
        raise wire.Unreachable

    runner._appender.append = append  # type: ignore[assignment]
    game.lease(True)
    assert runner.commit("s", -1, None) is None
    assert game.holder.place.acted == 2 and game.device.held_bytes == 0
    assert max(allowed) < GpuSettings().offload_at_least_s, "it would be killed for the feed's silence"


def test_a_retry_that_waits_for_the_feed_gives_the_gpu_back(
    runner: Runner, game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    game.lease(True)
    runner.edge()
    retries = retry.Retries(runner.process, runner.worker)  # type: ignore[arg-type]
    asked: list[float] = []

    def open_gaps(*args: Any) -> list[Any]:
        asked.append(game.device.held_bytes)
        if len(asked) == 1:
            game.lease(False)
            raise wire.Unreachable
        return []

    monkeypatch.setattr(retry, "open_gaps", open_gaps)
    assert retries._failed_before(runner, 1, "s", (0, 1)) is None
    assert asked == [100, 0]


def test_a_load_that_hangs_is_seen_by_the_arbiter(runner: Runner, game: Game) -> None:
    waiting: list[bool] = []

    def between(copy: int) -> None:
        waiting.append(runner.control._status(time.monotonic()).waiting)

    game.residency.between = between
    game.lease(True)
    runner.edge()
    assert all(waiting), "nobody would ever take the GPU from it, nor start it again"
    assert not runner.control._status(time.monotonic()).waiting, "nothing waits for its steps"


def test_a_load_that_crashes_is_not_counted_against_the_audio_that_waits_for_it(
    runner: Runner, game: Game, tmp_path: Path
) -> None:
    for _ in range(4):
        runner.poison = Poison(tmp_path / "run", "standin")
        assert runner.poison.begin("s scan", 7, waits=True), "audio was given up"
        game.lease(True)

        def crash(copy: int) -> None:
            record = {"pid": os.getpid(), "cause": "signal 11", "ours": False}
            (tmp_path / "run" / "standin.exit").write_text(json.dumps(record))
            raise ArithmeticError

        game.residency.between = crash
        with pytest.raises(ArithmeticError):
            runner.edge()
        game.device.held_bytes = 0
        game.lease(False)
        runner.edge()


def test_a_stop_ends_a_calibration_at_its_next_piece_and_measures_nothing(
    runner: Runner, game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def rehearse() -> Iterator[None]:
        for i in range(5):
            done.append(i)
            runner.process.stopping = i == 1
            yield

    monkeypatch.setattr(runner.worker, "rehearse", rehearse)
    runner.calibrating = True
    game.lease(True)
    runner.edge()
    runner._calibrate()
    assert done == [0, 1] and runner.calibrating and not runner._calibrations._read()


def test_memory_that_cannot_be_given_back_ends_the_worker_and_is_no_fault_of_the_audio(
    runner: Runner, game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on, the next look at the lease would find no weights there, and report the memory as given back."""

    def held() -> Any:
        raise RuntimeError("something still refers to them")

    def pieces(*args: Any) -> Iterator[None]:
        yield
        game.lease(False)
        yield

    game.residency.offload = held  # type: ignore[method-assign]
    game.lease(True)
    runner.edge()
    work: Any = SimpleNamespace(span=(0, 1), speech=(0, 1))
    session: Any = SimpleNamespace(meta=SimpleNamespace(stream="s"), at=SimpleNamespace(state=b""))
    hearing: Any = SimpleNamespace(infer=pieces, again=pieces, log=runner.log, bytes_of=lambda works: 30)
    with pytest.raises(NotCarriedOut):
        Hearing._infer(hearing, runner, session, [work])
    retries = retry.Retries(runner.process, hearing)
    monkeypatch.setattr(retry.backlog, "Reader", lambda folder: SimpleNamespace(samples=lambda span: b"xx"))
    gap = m.Gap(span=(0, 1), reason="failed", retryable=True, segment="s:0")
    with pytest.raises(NotCarriedOut):
        retries._again(runner, "s", gap, 1)
    assert runner.poison.begin("s", 0) and runner.poison.failed() == 1, "it had been counted"


@pytest.mark.processes
def test_told_to_stop_while_it_loads_it_ends_without_a_word(folder: Path) -> None:
    """Wherever it is: what a library does with an exception in the middle of its import is its own affair."""
    code = """
import os, signal
from common.process import arguments, main
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on")
def run(process):
    with process.nothing_to_lose():
        type("Library", (), {"field": Field()})
main("loads", run, arguments("loads"))
"""
    argv = [sys.executable, "-c", code, "--set", f"data_dir={folder / 'data'}"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.count("\n") == 1 and '"started"' in done.stderr
