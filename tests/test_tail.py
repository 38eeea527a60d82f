"""`swapscribe tail` in a pipe ends when nobody reads it any more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from common.settings import Settings
from tests.conftest import ROOT, Started, clean_environment
from tests.pages import Producer

SILENT = "swapscribe: the feed is silent; captions go on when it is back"  # it may be, on a busy machine
Tail = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tail(settings: Settings, feed: Started) -> Iterator[Tail]:
    begun: list[subprocess.Popen[str]] = []

    def begin(*args: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "tail", *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(subprocess.Popen(argv, text=True, cwd=ROOT, env=clean_environment(), **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_a_tail_whose_reader_has_gone_ends(tail: Tail, producer: Producer, args: tuple[str, ...]) -> None:
    silent, spoken = tail(*args), tail("--from", "1", *args)
    assert silent.stdout and spoken.stdout
    producer.say("hello")
    assert "hello" in spoken.stdout.readline()
    for _ in range(3):
        producer.say("you")
    for process in (spoken, silent):
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr and set(process.stderr.read().splitlines()) <= {SILENT}
