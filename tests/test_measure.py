"""The helper that measures: NVML's answers (by a stand-in driver), a hanging driver, one that comes back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arbiter.helper import Helper
from arbiter.measure import Answer
from common.card import MIB
from common.settings import GpuSettings
from tests.conftest import ROOT, Processes, wait_for

pytestmark = pytest.mark.processes
GIB = 2**30
Make = Callable[..., Helper]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A helper whose driver is the stand-in; its faults are files in tmp_path."""
    monkeypatch.setenv("STANDIN_NVML", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'standin_nvml'}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made: list[Helper] = []

    def build(kind: str = "cuda", index: int = 0, timeout_s: float = 20.0) -> Helper:
        gpu = GpuSettings(index=index, measure_timeout_s=timeout_s, simulated_mib=100)
        made.append(Helper(kind, tmp_path, gpu, time.monotonic()))
        return made[-1]

    yield build
    for helper in made:
        helper.close()


def ask(helper: Helper, number: int) -> Answer:
    """The answer to this question or a later one, however many helpers it takes."""
    helper.ask(number, time.monotonic())
    got: list[Answer] = []
    wait_for(lambda: got.extend(helper.turn(time.monotonic())) or [a for a in got if a.number >= number], 60.0)
    return got[-1]


def trouble(helper: Helper, what: str) -> None:
    """Wait until the helper says this of the question under way."""
    wait_for(lambda: helper.turn(time.monotonic()) or what in helper.trouble, 60.0, f"{what!r} to be told")


def test_nvml_tells_totals_and_who_has_what(make: Make) -> None:
    a = ask(make(), 7)
    assert a == Answer(number=7, device="Stand-in 0", total_bytes=16 * GIB, used_bytes=3 * GIB, by_pid={4711: 2 * GIB})


def test_the_simulated_card_answers_in_the_same_way(make: Make) -> None:
    a = ask(make("simulated"), 1)
    assert (a.device, a.total_bytes, a.used_bytes, a.by_pid) == ("simulated GPU", 100 * MIB, 0, {})


@pytest.mark.parametrize("fault", ["nofigures", "noprocesses"])
def test_figures_of_processes_may_be_missing(make: Make, tmp_path: Path, fault: str) -> None:
    (tmp_path / fault).touch()
    a = ask(make(), 1)
    assert a.by_pid is None and a.used_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("visible", "index", "card"),
    [("1", 0, 1), ("1,0", 1, 0), ("GPU-abbb", 0, 1), ("GPU-abbb,GPU-aaaa", 1, 0), ("", 1, 1), ("GPU-ab, GPU-aa", 0, 1)],
)
def test_the_card_is_the_one_that_cuda_counts(
    make: Make, monkeypatch: pytest.MonkeyPatch, visible: str, index: int, card: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ask(make(index=index), 1).device == f"Stand-in {card}"


def test_a_name_that_two_cards_begin_with_is_none(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    helper = make()
    helper.ask(1, time.monotonic())
    trouble(helper, "NVMLError: Not Found")


def test_a_hanging_driver_costs_its_helper_and_no_question(make: Make, tmp_path: Path) -> None:
    helper = make(timeout_s=3.0)
    ask(helper, 1)
    first = helper.pid
    (tmp_path / "hang").touch()
    helper.ask(2, time.monotonic())
    trouble(helper, "the driver did not answer in 3 s")
    (tmp_path / "hang").unlink()
    assert ask(helper, 3).number == 3 and helper.pid != first and not helper.trouble


def test_an_error_is_told_and_asked_again(make: Make, tmp_path: Path) -> None:
    helper = make()
    (tmp_path / "error").touch()
    helper.ask(1, time.monotonic())
    trouble(helper, "GPU is lost")
    (tmp_path / "error").unlink()
    assert ask(helper, 2).total_bytes == 16 * GIB and not helper.trouble


def test_a_driver_that_is_not_there_yet_may_come(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nodriver").touch()
    helper = make()
    helper.ask(1, time.monotonic())
    trouble(helper, "the device cannot be measured: NVMLError: Driver Not Loaded")
    (tmp_path / "nodriver").unlink()
    assert ask(helper, 2).number == 2


CUDA_ARBITER = """
from common import card, process
card.kind = lambda settings: "cuda"
from arbiter.__main__ import main
process.main("arbiter", main, process.arguments("stand-in driver"))
"""


def test_an_arbiter_beside_a_driver_that_hides_processes_measures_and_says_what_it_does_not_follow(
    tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "noprocesses").touch()
    env = {
        "STANDIN_NVML": str(tmp_path),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'standin_nvml'}",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    }
    argv = [sys.executable, "-c", CUDA_ARBITER, "--config", str(processes.config())]
    arbiter = processes.spawn(argv, "arbiter", env)
    wait_for(lambda: '"device": "Stand-in 0"' in arbiter.output(), what="a measurement")
    assert arbiter.output().count("CUDA_DEVICE_ORDER is not followed") == 1
