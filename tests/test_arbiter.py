"""The arbiter as a process, with stand-in workers on a simulated card that holds one of them. Kills are real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.settings import Settings
from tests.conftest import Processes
from tests.gpu import Gpu

pytestmark = pytest.mark.processes


@pytest.fixture
def gpu(processes: Processes, settings: Settings) -> Iterator[Gpu]:
    one = Gpu(processes, settings)
    yield one
    one.close()


def test_a_burst_takes_the_gpu_and_gives_it_back(gpu: Gpu) -> None:
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    gpu.worker("summarizer", want_mib=900, lane="burst", works_s=0.3)
    gpu.has("summarizer")
    gpu.has("transcriber")
    gpu.until(lambda s: s["summarizer"].state == "free")
    assert gpu.state().swaps == 1
