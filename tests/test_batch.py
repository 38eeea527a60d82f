"""Files of several commands in one system: who ends which capture, who asks for it again. Captures are stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import msgspec
import pytest

from common import messages as m
from common.batch import Batch, Job
from common.cli import Given
from common.cli_transcribe import INTERRUPTED, Work
from common.launch import Launcher, Slot
from common.process import holder
from common.settings import Settings
from common.transcripts import Output, Progress
from tests.conftest import Processes, wait_for
from tests.standin_process import guests
from tests.test_launch import Table

pytestmark = pytest.mark.processes


class Commands:
    """Two commands for the same file, without what they do beside it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        file = table.settings.data / "talk.wav"
        file.write_bytes(b"any sound")
        self.batches = [Batch(table.settings, [Job(file, table.settings.streams)]) for _ in range(2)]
        self.job = self.batches[0].jobs[0]
        self.name = f"capture@{self.job.name}"
        for batch in self.batches:
            batch.heard = True

    def pid(self) -> int:
        return holder(self.table.run, self.name) or 0

    def until(self, reached: Callable[[], object], *batches: Batch) -> None:
        def turned() -> object:
            for batch in batches or self.batches:
                batch.turn()
            return reached()

        wait_for(turned)


@pytest.fixture
def commands(processes: Processes, settings: Settings) -> Iterator[Commands]:
    table = Table(processes, settings)
    table.launch()
    table.up()
    made = Commands(table)
    yield made
    for batch in made.batches:
        batch.close()


def test_a_command_that_is_interrupted_ends_no_capture_of_another_one(commands: Commands) -> None:
    first, second = commands.batches
    commands.until(lambda: first.states.get(commands.name) == "up", first)
    pid = commands.pid()
    commands.until(lambda: second.states.get(commands.name) == "up" and not second._orders)
    second.release_all()
    assert status(commands.table)[commands.name] == "up" and commands.pid() == pid
    first.release_all()
    wait_for(lambda: commands.name not in status(commands.table), what="its end")


def test_a_capture_that_another_command_ended_is_asked_for_again(commands: Commands) -> None:
    first, second = commands.batches
    commands.until(lambda: second.states.get(commands.name) == "up", second)
    commands.until(lambda: first.states.get(commands.name) == "up" and not first._orders)
    pid = commands.pid()
    second.release_all()
    wait_for(lambda: commands.name not in status(commands.table), what="its end")
    commands.until(lambda: commands.pid() not in (0, pid), first)
    first.release_all()
    wait_for(lambda: commands.name not in status(commands.table), what="its end")


def status(table: Table) -> dict[str, str]:
    told: dict[str, str] = json.loads(getattr(table.ask("status"), "detail", ""))
    return told


def test_a_system_that_is_ending_is_no_fault_of_the_file(settings: Settings, commands: Commands) -> None:
    launcher = Launcher(settings, (), lambda line: None, guests=guests(settings))
    launcher.stop()
    order = m.Command(id="1", verb="capture", args={"source": msgspec.json.encode(commands.job.source).decode()})
    refused = launcher._carry_out(order)
    assert isinstance(refused, m.Refused) and refused.retry_after_s > 0
    commands.job.state = "capturing"
    commands.batches[0]._taken(commands.job.name, refused)
    assert (commands.job.state, commands.job.problem) == ("waiting", "")
    commands.batches[0]._taken(commands.job.name, m.Refused(reason="never"))
    assert (commands.job.state, commands.job.problem) == ("refused", "not taken up: never")


def test_a_source_that_is_just_being_ended_is_taken_up_again(settings: Settings, commands: Commands) -> None:
    made = guests(settings)
    slot = Slot(made.want(commands.job.source), leaving=True, done=True)
    answer = made.capture([slot], Slot, msgspec.json.encode(commands.job.source).decode())
    assert answer == m.Done(detail=commands.name) and not (slot.leaving or slot.done)


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupted_command_says_how_it_goes_on(
    settings: Settings, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.data.mkdir()
    (settings.data / "talk.wav").write_bytes(b"any sound")
    output = Output(settings, [str(settings.data / "talk.wav")], "txt", None, False)
    work = Work(Given(None, (), settings.data_dir), "", output, Progress(True), again, False)
    monkeypatch.setattr(work, "_private", lambda: setattr(work, "interrupted", True))
    assert work.run() == INTERRUPTED
    how = "without --again the same command" if again else "the same command"
    assert capsys.readouterr().err == f"swapscribe: interrupted; {how} goes on from here\n"
