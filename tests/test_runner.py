"""The base of the GPU workers around one step: what it does to a step that it ends, to leases while the feed is dead.

The worker and the device are stand-ins; Runner, Tenant and Holder are the real ones. No process is started.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.process import Log
from common.settings import Settings
from tests.test_tenancy import Game
from workers.base import Runner

pytestmark = pytest.mark.joined


class StandInWorker:
    """Has nothing to do by itself."""

    name, lane = "standin", "live"

    def working_bytes(self) -> int:
        return 30


@pytest.fixture
def game() -> Game:
    return Game()


@pytest.fixture
def runner(game: Game, tmp_path: Path) -> Runner:
    settings = Settings(data_dir=str(tmp_path))
    (tmp_path / "run").mkdir()
    process: Any = SimpleNamespace(settings=settings, log=Log("test"), run=tmp_path / "run", stopping=False)
    made = Runner(process, StandInWorker())  # type: ignore[arg-type]
    made.holder, made.tenant = game.holder, game.tenant
    return made


class OnTheDevice:
    """What a step has on the device, such as a cache of keys and values."""


def test_what_a_step_has_on_the_device_is_gone_before_the_weights_are(runner: Runner, game: Game) -> None:
    alive: list[bool] = []
    had: list[weakref.ref[OnTheDevice]] = []
    offload = game.residency.offload

    def offloaded() -> Any:
        alive.append(had[0]() is not None)
        return offload()

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


def test_any_iterator_may_be_a_step(runner: Runner, game: Game) -> None:
    game.lease(True)
    steps: Iterator[None] = iter([None] * 3)
    assert runner.carry(steps, 30)
