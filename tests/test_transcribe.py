"""`swapscribe transcribe` with real weights: alone and joined, broken files among whole ones, Ctrl-C, kill -9."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common import backlog, exports, wire
from common import messages as m
from common.batch import Batch, Job
from common.child import running
from common.document import Document, document
from common.settings import Settings
from common.transcripts import line
from common.wire import run_dir
from tests.conftest import ROOT, Processes, Started, clean_environment, wait_for
from tests.export_readers import read_srt
from tests.speech import RATE, jfk, samples, write_wav
from tests.system import RECORDING, System, assert_whole, file_source, text, weights
from tests.test_capture_parts import beat as beat_of


class Alone:
    """The command on a data folder in which nothing runs."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        weights()
        self.processes, self.settings = processes, settings
        self.run = run_dir(settings)
        self.argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir]

    def __call__(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [*self.argv, "transcribe", *map(str, args)]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=240)

    def start(self, *args: str | Path) -> Started:
        return self.processes.spawn([*self.argv, "transcribe", *map(str, args)], "transcribe")

    def gone(self) -> None:
        wait_for(lambda: running(self.run) == {}, 30, "everything to have ended with the command")


@pytest.fixture
def alone(processes: Processes, settings: Settings) -> Alone:
    return Alone(processes, settings)


@pytest.mark.speech
def test_whole_broken_missing_and_twice_the_same(alone: Alone, folder: Path) -> None:
    out, bad = folder / "out", folder / "bad.wav"
    bad.write_text("this is no sound")
    shutil.copy(jfk().path, folder / "copy.wav")
    done = alone(jfk().path, bad, folder / "none.wav", folder / "copy.wav", "--format", "json", "--words", "--out", out)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith("swapscribe: ")]
    assert len(lines) == 2 and not [x for x in done.stderr.splitlines() if "Traceback" in x]
    assert any(x.startswith(f"swapscribe: {bad}: not an audio or video file") for x in lines), lines
    assert f"swapscribe: {folder / 'none.wav'}: No such file or directory" in lines
    assert sorted(p.name for p in out.iterdir()) == ["copy.json", "jfk.json"]
    row = json.loads((out / "jfk.json").read_text())
    said = " ".join(s["text"] for s in row["segments"])
    assert "what you can do for your country" in said and row["duration_s"] == 11.0 and row["gaps"] == []
    words = [w["text"] for s in row["segments"] for w in s["words"]]
    assert " ".join(words).split() == said.split()
    segments = [
        [{k: v for k, v in s.items() if k != "segment"} for s in json.loads((out / name).read_text())["segments"]]
        for name in ("copy.json", "jfk.json")
    ]
    assert segments[0] == segments[1], "one sound, the same text; ids have the name of the file"
    alone.gone()
    again = alone(folder / "copy.wav", "--format", "srt")
    assert again.returncode == 0 and "was transcribed before (tiny.en); --again does it anew" in again.stderr
    cues = read_srt(again.stdout)
    assert "".join(" ".join(lines) for _, _, lines in cues).replace(" ", "") == said.replace(" ", "")
    alone.gone()


@pytest.mark.speech
def test_interrupted_and_killed_it_goes_on(alone: Alone, folder: Path) -> None:
    clip = folder / "clip.wav"
    write_wav(clip, samples(RECORDING)[: 25 * RATE])
    first = alone.start(clip)
    (captured,) = wait_for(lambda: backlog.streams(alone.settings.streams), 60, "a stream")
    first.signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert "interrupted; the same command goes on from here" in first.output() and "Traceback" not in first.output()
    alone.gone()
    second = alone.start(clip, "--quiet")
    system = System(alone.processes, alone.settings)
    wait_for(lambda: "transcript" in [e.kind for e in journal(system)], 120, "the first words")
    second.kill()
    done = alone(clip)
    assert done.returncode == 0, done.stderr
    alone.gone()
    alone.processes.start("workers.feed")
    system.up("feed")
    events = system.journal()
    assert_whole(events, captured.name)
    assert done.stdout == exports.txt(document(captured.name, events, "transcriber"))
    assert len(text(events, captured.name).split()) > 30


def journal(system: System) -> list[m.Event]:
    """As far as there is a feed to tell it."""
    try:
        return system.journal() if system.pid("feed") else []
    except wire.Unreachable:
        return []


@pytest.mark.speech
def test_it_joins_a_running_system_and_leaves_it_as_it_was(
    processes: Processes, settings: Settings, folder: Path
) -> None:
    write_wav(folder / "live.wav", samples(jfk().path)[: 4 * RATE])
    system = System(processes, settings, file_source(folder / "live.wav", "1"))
    system.start()
    wait_for(lambda: "are up after" in system.launcher.output(), 60, "the system")
    refused = system("transcribe", str(jfk().path), "--language", "pt")
    assert refused.returncode == 1 and "does not know language 'pt'; one that does: swapscribe models" in refused.stderr
    argv = [*system._argv, "transcribe", str(jfk().path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=200)
    assert done.returncode == 0, done.stderr
    assert "your country" in done.stdout
    seen = system("status").stdout
    assert "capture@jfk" not in seen and re.search(r"capture@talk .*finished", seen), seen
    streams = system("streams").stdout
    assert re.search(r"^jfk\.[0-9a-f]{8}-[0-9a-f]{16}  batch .* ended: end of file", streams, re.M), streams
    assert running(system.run).keys() >= {"feed", "arbiter", "transcriber", "viewer"}
    system.stop()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Missing argument"),
        (["a.wav", "--words"], "--words needs --format json"),
        (["a.wav", "b.wav", "--format", "srt"], "need --out DIR"),
        (["a.wav", "--format", "doc"], "is not one of"),
        (["a.wav", "--out", "/proc/none"], "--out /proc/none"),
        (["a.wav", "--language", "Portuguese"], "--language: 'Portuguese' is neither auto nor a code such as en or pt"),
        (
            [str(ROOT / "README.md"), "--language", "pt"],
            "swapscribe models fetch base, then set transcriber.model=base",
        ),
    ],
)
def test_wrong_usage_is_one_line(folder: Path, settings: Settings, args: list[str], says: str) -> None:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "transcribe", *args]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    assert done.returncode == 2 and says in done.stderr
    assert done.stderr.startswith("swapscribe: ") and done.stderr.count("\n") == 1


@pytest.mark.processes
def test_only_missing_files_start_nothing(settings: Settings) -> None:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "transcribe", "none.wav"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    assert (done.returncode, done.stderr) == (1, "swapscribe: none.wav: No such file or directory\n")
    assert running(run_dir(settings)) == {}


class Waits:
    """A file of which all words are there and the speakers are not yet; answers are made up, and so is the clock."""

    def __init__(self, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "a.wav").write_bytes(b"any sound")
        self.now, self.place, self.told = 1000.0, dict[str, int](), 1
        self.job = Job(folder / "a.wav", settings.streams)
        self.batch = Batch(settings, [self.job], speakers=True)
        self.batch.heard, self.batch.states = True, {"transcriber": "up", "diarizer": "up", "viewer": "up"}
        monkeypatch.setattr("common.batch.time.monotonic", lambda: self.now)
        monkeypatch.setattr(self.batch.client, "poll", lambda wait_s: [self._end()])
        monkeypatch.setattr(self.batch._turns, "ask", lambda ask: True)
        monkeypatch.setattr(self.batch._turns, "answer", lambda: m.At(n=1, positions=self.place, state=b"", head=1))

    def _end(self) -> m.Event:
        body = m.encode(m.StreamEnded(end=RATE, reason="end of file"))
        where = {"stream": self.job.stream, "kind": "stream_ended", "producer": "transcriber"}
        places = {"diarizer": m.ProducerBeat(n=self.told, positions=self.place)}
        self.batch.client.last_beat = msgspec.structs.replace(
            beat_of(s=1),
            streams={self.job.stream: msgspec.structs.replace(beat_of(s=1).streams["s"], producers=places)},
        )
        return m.Event(seq=1, prev=0, n=1, at_ns=0, body=body, **where)

    def turns(self, seconds: int = 3) -> str:
        for _ in range(seconds):
            self.now += 1.0
            self.batch.turn()
        return self.job.state


@pytest.fixture
def waits(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    made = Waits(settings, folder, monkeypatch)
    yield made
    made.batch.close()


@pytest.mark.pure
def test_a_text_waits_for_its_speakers_until_the_diarizer_is_through(waits: Waits) -> None:
    waits.place = {"meta": 1, "audio": RATE}
    assert waits.turns() == "speakers", "the last clustering is still to come"
    waits.place = {"meta": 2, "audio": RATE - 5}  # captions heard what deleted files no longer prove
    assert waits.turns() == "done" and not waits.job.problem


@pytest.mark.pure
def test_a_text_does_not_wait_for_a_diarizer_that_stands_still(waits: Waits) -> None:
    waits.place = {"meta": 1, "audio": 100}
    assert waits.turns(500) == "speakers"
    waits.told += 1
    assert waits.turns(500) == "speakers", "it goes on"
    assert waits.turns(200) == "done" and "not known" in waits.job.problem


@pytest.mark.pure
def test_a_system_without_a_diarizer_is_not_waited_for(waits: Waits) -> None:
    del waits.batch.states["diarizer"]
    waits.turns()
    assert "speakers.enabled" in waits.batch.fatal


@pytest.mark.pure
def test_progress_tells_audio_share_speed_and_time_left() -> None:
    half = line(30 * RATE, 60 * RATE, whole=True, since=20 * RATE, took_s=4.0)
    assert half == "██████████░░░░░░░░░░  50%  0:00:30 of 0:01:00  5.0× real time  0:00:06 left"
    growing = line(30 * RATE, 3600 * RATE, whole=False, since=0, took_s=4.0)
    assert growing == "░░░░░░░░░░░░░░░░░░░░       0:00:30 of at least 1:00:00"


@pytest.mark.pure
def test_formats_are_those_of_exports() -> None:
    from common.cli_transcribe import FORMATS

    assert set(FORMATS) == set(exports.FORMATS) and msgspec.json.decode(exports.json(Document(stream="s")))
