"""What `transcribe` makes of a running system whose transcriber has other settings than it was given itself."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from common import wire
from common.cli import Given
from common.cli_transcribe import Work
from common.launch import NAME, PRIVATE
from common.process import holder
from common.settings import Settings, TranscriberSettings, UserError
from common.told import Told, differences, tell, told
from common.transcripts import Output, Progress
from tests.conftest import ROOT, Processes, clean_environment, wait_for
from tests.test_launch import Table

HERE = TranscriberSettings(model="base", glossary=("Orsk", "Ufa"), threads=4, interim=False)


@pytest.mark.pure
def test_what_changes_only_the_speed_is_no_difference() -> None:
    assert differences(TranscriberSettings(threads=3, batch_most=1), TranscriberSettings(interim=False)) == ""
    line = differences(TranscriberSettings(language="pt"), HERE)
    assert line == (
        "transcriber.model base and not tiny.en, transcriber.language auto and not pt, "
        'transcriber.glossary ["Orsk","Ufa"] and not []'
    )


@pytest.mark.pure
def test_what_another_life_told_is_past(settings: Settings) -> None:
    run = wire.run_dir(settings)
    assert told(run) is None
    tell(run, settings)
    assert told(run) is None, "nobody has the name"
    (run / "transcriber.json").write_text("{")
    assert told(run) is None


@pytest.mark.processes
def test_the_transcriber_tells_its_settings(processes: Processes, settings: Settings) -> None:
    processes.start("workers.transcriber")
    found = wait_for(lambda: told(wire.run_dir(settings)), 60, "its settings")
    assert found and (found.profile, found.transcriber) == (settings.profile, settings.transcriber)


@pytest.fixture
def table(processes: Processes, settings: Settings) -> Table:
    """A running system of stand-ins; its transcriber says that it has the settings HERE, by a profile."""
    made = Table(processes, settings)
    made.launch()
    pid = made.up()["transcriber"]
    (made.run / "transcriber.json").write_bytes(
        msgspec.json.encode(Told(pid=pid, profile="laptop-hub", transcriber=HERE))
    )
    return made


@pytest.mark.processes
def test_other_settings_than_those_of_the_running_system_are_refused(table: Table) -> None:
    sound = table.settings.data / "talk.wav"
    sound.write_bytes(b"any sound")
    argv = [sys.executable, "-m", "common.cli", *table.options, "--set", "transcriber.model=tiny.en", "transcribe"]
    done = subprocess.run(
        [*argv, "--again", str(sound)], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("swapscribe: the running system has transcriber.model base and not tiny.en, ")
    assert done.stderr.endswith("; restart it with these settings, or say the same\n") and done.stderr.count("\n") == 1
    assert not (table.settings.streams).exists()


@pytest.mark.processes
def test_the_same_settings_are_agreed_upon(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def agrees(language: str, states: dict[str, str], *sets: str) -> bool:
        given = Given(None, sets, table.settings.data_dir)
        output = Output(table.settings, (), "txt", None, False)
        batch: Any = SimpleNamespace(states=states, private=states.get(NAME) == PRIVATE)
        return Work(given, language, output, Progress(True), False, False)._agree(batch, table.run)

    same, system = ('transcriber.glossary=["Orsk", "Ufa"]',), {"feed": "up"}
    assert agrees("", system, *same) and agrees("pt", system, *same, "transcriber.language=pt")
    assert not agrees("", {}, *same), "the launcher has not said what it is"
    with pytest.raises(UserError, match="another transcribe, which runs here, has"):
        agrees("", {NAME: PRIVATE}, *same, "transcriber.language=pt")
    (table.run / "transcriber.json").unlink()
    assert holder(table.run, "transcriber")
    monkeypatch.setattr("common.cli_transcribe.SYSTEM_GONE_S", 1e9)
    assert not agrees("", system, *same), "it may just have begun"
    monkeypatch.setattr("common.cli_transcribe.SYSTEM_GONE_S", 0.0)
    with pytest.raises(UserError, match="does not say how it works"):
        agrees("", system, *same)
