"""A launcher that ends with its command, as that of `transcribe`: what it leaves alone, and what others make of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from common import messages as m
from common.child import running
from common.cli import Given
from common.cli_transcribe import Work
from common.given_sources import Added
from common.launch import NAME, PRIVATE
from common.process import holder
from common.settings import Settings, Source, UserError
from common.transcripts import Output, Progress
from tests.conftest import Processes, Started, wait_for
from tests.test_launch import CAM, Table, capture_of, said

pytestmark = pytest.mark.processes
FILE = Source(name="talk", kind="file", path="/talk.wav", pace="max")


class Private(Table):
    """A private launcher over a feed, all stand-ins."""

    def launch(self) -> Started:
        argv = [sys.executable, "-m", "tests.standin_process", "private", *self.options]
        return self.processes.spawn(argv, "private")

    def swapscribe(self, *args: str) -> Started:
        return self.processes.spawn([sys.executable, "-m", "common.cli", *self.options, *args], args[0])


@pytest.fixture
def private(processes: Processes, settings: Settings) -> Private:
    return Private(processes, settings)


@pytest.mark.parametrize("whose", ["its own feed", "the feed of somebody else"])
def test_it_ends_and_forgets_nothing_of_others(private: Private, whose: str) -> None:
    since, others = private.run / "launcher.since", Added(private.run)
    since.write_text("of a launcher that was killed")
    others.put(CAM)
    recording = private.take_over("capture@mic")
    feed = private.take_over("feed").pid if whose != "its own feed" else 0
    private.up("capture@mic", *["feed"] * bool(feed))
    launcher = private.launch()
    private.up("feed")
    assert capture_of(private, FILE) == m.Done(detail="capture@talk")
    private.up("capture@talk")
    said(launcher, "are up after")
    assert launcher.stop() == 0
    assert running(private.run) == {"capture@mic": recording.pid} | ({"feed": feed} if feed else {})
    assert recording.alive and since.read_text() == "of a launcher that was killed"
    assert others.all() == (CAM,)
    assert "cam" not in launcher.output() and "will be stopped" not in launcher.output()


def test_it_takes_up_no_live_source_and_says_what_it_is(private: Private) -> None:
    private.launch()
    private.up("feed")
    for live in (CAM, Source(name="mic", kind="microphone"), msgspec.structs.replace(FILE, pace="8")):
        refused = capture_of(private, live)
        assert isinstance(refused, m.Refused) and "ends with its command" in refused.reason
    told = {NAME: PRIVATE, "feed": "up"}  # which the launcher knows a moment after its name is held
    wait_for(lambda: json.loads(getattr(private.ask("status"), "detail", "")) == told, what="the feed to be up")


def test_a_recording_that_begins_meanwhile_outlives_it(private: Private, folder: Path) -> None:
    os.mkfifo(folder / "mic")
    launcher = private.launch()
    private.up("feed")
    recording = private.swapscribe("capture", "--source", f"pcm:{folder / 'mic'} name=mic")
    wait_for(lambda: holder(private.run, "capture@mic") or not recording.alive, what="the recording")
    assert holder(private.run, "capture@mic") == recording.pid, recording.output()
    assert launcher.stop() == 0
    assert recording.alive and running(private.run) == {"capture@mic": recording.pid}
    recording.signal(signal.SIGTERM)
    assert recording.wait() == 0


def test_a_system_that_is_started_waits_for_its_end(private: Private, folder: Path) -> None:
    os.mkfifo(folder / "mic")
    launcher = private.launch()
    private.up("feed")
    system = private.swapscribe("run-all", "--source", f"pcm:{folder / 'mic'} name=mic")
    wait_for(lambda: wait_for_import(system), 60, "the command")
    assert launcher.stop() == 0
    said(system, "-- feed started as pid")  # by then it hears signals
    assert system.stop(60) == 0


def wait_for_import(process: Started) -> bool:
    """Its modules are loaded: the settings are next."""
    return "libzmq" in Path(f"/proc/{process.pid}/maps").read_text()


def file_work(private: Private) -> Work:
    given = Given(None, (), private.settings.data_dir)
    return Work(given, "", Output(private.settings, (), "txt", None, False), Progress(True), False, False)


def test_recordings_of_other_terminals_do_not_keep_files_from_being_transcribed(
    private: Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.cli_transcribe.SYSTEM_GONE_S", 0.2)
    work = file_work(private)
    private.take_over("capture@mic")
    private.up("capture@mic")
    work._nobody_else(private.run)
    private.take_over("feed")
    private.up("feed")
    with pytest.raises(UserError, match="feed run here without their launcher"):
        work._nobody_else(private.run)


def test_what_systemd_keeps_running_is_not_to_be_stopped(private: Private, monkeypatch: pytest.MonkeyPatch) -> None:
    work = file_work(private)
    pids = [private.take_over("feed").pid]
    private.up("feed")
    monkeypatch.setattr("common.units.keeps", lambda name, pid: name == "feed" and [pid] == pids)
    with pytest.raises(UserError) as refused:
        work._nobody_else(private.run)
    assert "systemd" in str(refused.value) and "stop" not in str(refused.value)
