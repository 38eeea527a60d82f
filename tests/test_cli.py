"""`swapscribe` as a person uses it, over the real processes and real weights: demo, run-all, status, tail, purge."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common import models
from common.child import running
from common.fetch import fetch
from common.process import holder
from common.settings import Settings, UserError
from common.wire import run_dir
from tests.conftest import ROOT, Processes, Started, clean_environment, wait_for

RECORDING = ROOT / "examples" / "recording.flac"


class Swapscribe:
    """The command line on the data folder of this test."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        self.processes, self.settings = processes, settings
        self.run_dir = run_dir(settings)
        self.argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir]

    def __call__(self, *args: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.argv, *args], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=timeout_s
        )

    def start(self, *args: str) -> Started:
        return self.processes.spawn([*self.argv, *args], args[0].strip("-"))

    def run_all(self, source: str) -> Started:
        sets = (f"source={source}", "viewer.port=0", "summary.enabled=false")  # minutes take seconds of a core
        return self.processes.spawn([*self.argv, *(x for s in sets for x in ("--set", s)), "run-all"], "run-all")


@pytest.fixture
def swapscribe(processes: Processes, settings: Settings) -> Swapscribe:
    return Swapscribe(processes, settings)


@pytest.fixture(scope="module")
def weights() -> None:
    for name in ("tiny.en", "silero_vad", "pyannote-campplus", "smollm2-135m", *Settings().translate.models):
        try:
            models.available(Settings(), name)
        except UserError:
            fetch(Settings(), [name])


def recording(pace: str, name: str = "rec") -> str:
    return json.dumps([{"name": name, "kind": "file", "path": str(RECORDING), "pace": pace}])


@pytest.mark.processes
@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["restart"], ["run", "nobody"], ["--set", "feed.nope=1", "status"], ["purge"], ["retry", "none"],
     ["tail", "--from", "x"], ["--config", "missing.toml", "streams"], ["capture", "--source", "none"], ["stop"],
     ["--set", 'source=[{"name": "x"}]', "run-all"], ["demo", "--pace", "backwards"], ["models", "verify", "none"],
     ["--set", 'source=[{"name": "x", "kind": "stdin"}, {"name": "y", "kind": "stdin"}]', "run-all"], ["restart", "x"],
     ["status"], ["streams"], ["purge", "none"], ["tail", "--json"], ["--data", "/proc/none", "run-all"]],
)  # fmt: skip
def test_every_mistake_is_one_line(swapscribe: Swapscribe, args: list[str]) -> None:
    done = swapscribe(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("swapscribe: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.processes
def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, common.cli; sys.exit(any(x in sys.modules for x in ('zmq', 'torch', 'numpy', 'whisper')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.speech
@pytest.mark.timeout(900)
def test_demo_ends_by_itself_and_sums_up(swapscribe: Swapscribe, weights: None) -> None:
    done = swapscribe("demo", "--pace", "max", timeout_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^\d\d:\d\d\.\d  (?:S\d+: )?(.+)$", done.stdout, re.M)
    spoken = [x for x in lines if not x.startswith("(pt")]
    words = re.search(r"^-- (\d+) words$", done.stdout, re.M)
    assert words and int(words[1]) == len(" ".join(spoken).split()) > 70
    assert len(lines) - len(spoken) >= 5, "translations"
    assert "they take turns" in done.stdout
    minutes = re.findall(r"^\[minutes \d\d:\d\d\.\d-(\d\d:\d\d)\.\d by smollm2-135m", done.stdout, re.M)
    assert minutes and minutes[-1] >= "00:45", "minutes of all that was said"
    assert "[captions pause: " in done.stdout and "[captions resume after" in done.stdout
    seconds = re.search(r"text ([\d.]+) s  silence ([\d.]+) s .* gap 0.0 s  pending 0.0 s", done.stdout)
    assert seconds and float(seconds[1]) > 25
    left = re.search(r"^-- exports: (.+?): (.+)$", done.stdout, re.M)
    assert left and Path(left[1]).parent.parent == swapscribe.settings.data
    card = (Path(left[1]) / "scorecard.txt").read_text()
    assert card in done.stdout
    for figure, most in (("WER", 40), ("DER", 40)):
        found = re.search(rf"{figure} ([\d.]+) %", card)
        assert found and 0 < float(found[1]) < most, card
    beside = re.search(r"chrF ([\d.]+) \(", card)
    assert beside and float(beside[1]) >= 80, card
    swaps = re.search(r"swaps +(\d+);", card)
    assert swaps and int(swaps[1]) >= 1
    names = {f"meeting.{form}" for form in ("srt", "vtt", "txt", "json", "md", "rttm", "pt.srt")} | {"scorecard.txt"}
    assert {p.name for p in Path(left[1]).iterdir()} == names == set(left[2].split())
    assert [p.name for p in Path(left[1]).parent.iterdir()] == ["exports"], "the rest is not kept"
    assert (Path(left[1]) / "meeting.srt").read_text().count(" --> ") >= 5
    assert running(run_dir(Settings(data_dir=str(Path(left[1]).parent)))) == {}


@pytest.mark.speech
def test_demo_fails_when_words_are_missing(swapscribe: Swapscribe, weights: None) -> None:
    there = swapscribe.settings.data / "models"  # all but the words: it stops at the first complaint, whoever has it
    there.mkdir(parents=True)
    for name in ("silero_vad", "pyannote-campplus", *Settings().translate.models):
        (there / name).symlink_to(models.available(Settings(), name))
    sets = ("--set", f"model_cache={swapscribe.settings.data}", "--set", "summary.enabled=false")
    done = swapscribe(*sets, "demo", "--pace", "max")
    assert done.returncode == 1
    assert "transcriber cannot run: model tiny.en is not there" in done.stdout


@pytest.mark.speech
def test_run_all_status_tail_purge(swapscribe: Swapscribe, weights: None) -> None:
    launcher = swapscribe.run_all(recording("max"))
    wait_for(lambda: "all 6 processes are up after" in launcher.output(), 60, "everything to be up")
    wait_for(lambda: re.search(r"^\[rec-\w+ ended at 00:4\d\.\d: ", launcher.output(), re.M), 120, "end of the stream")
    captions = re.findall(r"^\d\d:\d\d\.\d  .+$", launcher.output(), re.M)
    assert len(captions) >= 5

    def all_done() -> str:
        seen = swapscribe("status").stdout
        return seen if "everything is read" in seen and "\ngpu: " in seen and " finished" in seen else ""

    seen = wait_for(all_done, 120, "the diarizer to be there too")
    assert "pending 0.0 s" in seen
    assert re.search(r"^capture@rec .* finished$", seen, re.M)
    names = [line.split()[0] for line in seen.splitlines()[1:9]]
    assert names == ["launcher", "feed", "capture@rec", "arbiter", "transcriber", "diarizer", "summarizer", "viewer"]
    assert re.search(r"^gpu: .*simulated", seen, re.M)
    tail = swapscribe.start("tail", "--json", "--from", "1")
    wait_for(lambda: '"kind": "stream_ended"' in tail.output())
    seqs = [json.loads(x)["seq"] for x in tail.output().splitlines()]
    assert seqs == list(range(1, len(seqs) + 1))
    tail.kill()
    stream = swapscribe("streams").stdout.split()[0]
    assert "nothing failed" in swapscribe("retry", stream).stderr
    purged = swapscribe("purge", stream, "--yes")
    assert purged.returncode == 0 and "events purged" in purged.stdout, purged.stderr
    assert not (swapscribe.settings.streams / stream).exists()
    again = swapscribe("purge", stream, "--yes")  # as after a kill in the middle
    assert again.returncode == 0, again.stderr
    assert swapscribe("stop").returncode == 0
    assert launcher.wait(60) == 0 and running(swapscribe.run_dir) == {}


@pytest.mark.speech
def test_a_live_stream_is_not_purged(swapscribe: Swapscribe) -> None:
    launcher = swapscribe.run_all(recording("realtime"))
    wait_for(lambda: swapscribe("streams").returncode == 0)
    stream = swapscribe("streams").stdout.split()[0]
    wait_for(lambda: holder(swapscribe.run_dir, "feed"))
    done = swapscribe("purge", stream, "--yes")
    assert done.returncode == 2 and "still live" in done.stderr and done.stderr.count("\n") == 1
    assert (swapscribe.settings.streams / stream).exists()
    launcher.signal(signal.SIGINT)
    assert launcher.wait(60) == 0


@pytest.mark.speech
def test_captions_go_on_after_every_process_was_killed(swapscribe: Swapscribe, weights: None) -> None:
    first = swapscribe.run_all(recording("4"))
    pids = wait_for(lambda: p if "feed" in (p := running(swapscribe.run_dir)) and len(p) >= 5 else {}, 60)
    wait_for(lambda: re.search(r"^00:\d\d\.\d  ", first.output(), re.M), 60, "the first caption")
    os.kill(pids["feed"], signal.SIGKILL)
    wait_for(lambda: holder(swapscribe.run_dir, "feed") not in (None, pids["feed"]))
    first.kill()
    second = swapscribe.run_all(recording("4"))
    wait_for(lambda: re.search(r"^\[rec-\w+ ended at 00:4", second.output(), re.M), 120, "end of the stream")
    texts = [x[9:] for x in (first.output() + second.output()).splitlines() if re.match(r"\d\d:\d\d\.\d  ", x)]
    assert len(texts) == len(set(texts))
    seen = wait_for(lambda: s if "pending 0.0 s" in (s := swapscribe("status").stdout) else "", 120, "its last second")
    assert re.search(r"gap 0.0 s  pending 0.0 s", seen), seen
    assert second.stop(60) == 0
