"""A purge over the whole system: the same file captured again is a new stream, and is heard again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from common import backlog
from common import messages as m
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.speech import write_wav
from tests.system import System, file_source, quiet

pytestmark = [pytest.mark.processes, pytest.mark.speech]


def metas(settings: Settings) -> list[backlog.Meta]:
    return [meta for p in backlog.streams(settings.streams) if (meta := backlog.read_meta(p))]


def ends(system: System) -> list[m.Event]:
    return [e for e in system.journal() if e.kind == "stream_ended" and not e.purged]


@pytest.mark.parametrize("looks_away", [False, True])
def test_a_purged_file_that_is_captured_again_is_heard_again(
    processes: Processes, settings: Settings, folder: Path, looks_away: bool
) -> None:
    """Also when the transcriber does not look while the old folder is gone and the new one is not there yet."""
    write_wav(folder / "talk.wav", quiet(8.0))
    system = System(processes, settings, file_source(folder / "talk.wav", "max"))
    system.start()
    stream = system.ended().stream
    if looks_away:
        system.signal("transcriber", signal.SIGSTOP)
    assert system("purge", stream, "--yes").returncode == 0
    assert ends(system) == []
    assert system("restart", "capture@talk").returncode in (0, 2)  # 2: it was finished before anybody saw it run
    if looks_away:
        wait_for(lambda: any(meta.ended for meta in metas(settings)), 30, "the end of the file, captured again")
        system.signal("transcriber", signal.SIGCONT)
    (again,) = wait_for(lambda: ends(system), 30, "the end of the stream, heard again")
    assert again.stream == stream
    silences = [e.decode() for e in system.journal(stream) if e.kind == "silence" and not e.purged]
    assert sum(s.span[1] - s.span[0] for s in silences if isinstance(s, m.Silence)) == 8 * 16_000
    system.stop()
