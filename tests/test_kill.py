"""The promise: any process may be killed at any moment, and no sample or word goes missing unnoticed.

Real processes, real weights, real speech, through the launcher. Every random choice comes from a seed that is printed;
TEST_SEED chooses it. `python -m tests.test_kill --kills 60 --seed 7` kills for as long as wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from common import backlog
from common.settings import GpuSettings, Settings, Source
from tests.conftest import Processes, Started, clean_environment, wait_for
from tests.speech import RATE, samples, write_wav
from tests.system import (
    RECORDING,
    Following,
    System,
    Undisturbed,
    assert_whole,
    body,
    file_source,
    one_by_one,
    quiet,
    with_interim,
)

VICTIMS = {"transcriber": 8, "capture@talk": 7, "feed": 8, "launcher": 6, "arbiter": 5}  # kills of each, of 34
PACE = "1.2"  # of the clip (107 s) while everything is killed
pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]


def seed() -> int:
    return int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Undisturbed]:
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    yield Undisturbed(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_undisturbed_run_has_everything_to_lose(undisturbed: Undisturbed) -> None:
    """Else the comparisons below prove little."""
    kinds = Counter(line.split('"')[3] for line in undisturbed.lines)
    assert kinds["transcript"] >= 10 and kinds["silence"] >= 5 and kinds["gap"] == 0, kinds
    assert sum(line.count('"p":') for line in undisturbed.lines) > 150  # words with times


def assert_reached(system: System, follower: Following) -> None:
    """The subscriber was handed each event once, in order, and holds what the feed holds."""
    truth = system.state_hash()
    follower.wait_seq(truth.upto)
    assert [e.seq for e in follower.events] == list(range(1, truth.upto + 1))
    assert follower.state_hash(truth.upto) == truth.sha256


class Moments:
    """When to kill: at any time, or where a kill is most likely to find a fault."""

    def __init__(self, system: System, rng: random.Random) -> None:
        data, self._rng = system.settings.data, rng
        self._streams = system.settings.streams
        self._watched: dict[str, Callable[[], object]] = {
            "any time": lambda: None,
            "commit": lambda: self._stat(data / "journal" / "journal.sqlite-wal"),  # before publication and answer
            "step": lambda: self._stat(system.run / "transcriber.attempt"),  # the model begins with an utterance
            "write": lambda: [backlog.head(p) for p in backlog.streams(self._streams)],
        }

    @staticmethod
    def _stat(path: Path) -> object:
        with contextlib.suppress(FileNotFoundError):
            return (s := path.stat()).st_mtime_ns, s.st_size
        return None

    def wait(self) -> str:
        """Wait for a moment chosen at random, 3 s at most; its name."""
        name = self._rng.choice([*self._watched, "any time"])
        look, later_s = self._watched[name], self._rng.choice((0.0, 0.02, 1.0)) * self._rng.random()
        before, deadline = look(), time.monotonic() + 3.0
        while name != "any time" and look() == before and time.monotonic() < deadline:
            time.sleep(0.0002)  # some of these windows last a millisecond
        pass_time(later_s)
        return name


def kill_at_random(system: System, rng: random.Random, kills: int, for_s: float) -> list[str]:
    """Spread `kills` over `for_s` seconds; a killed launcher is started again by us, the others by it."""
    share, moments = sum(VICTIMS.values()), Moments(system, rng)
    order = [name for name, weight in VICTIMS.items() for _ in range(round(weight * kills / share))]
    rng.shuffle(order)
    times = sorted(rng.uniform(1.0, for_s) for _ in order)
    began = time.monotonic()
    for name, at in zip(order, times, strict=True):
        pass_time(began + at - time.monotonic())
        system.up(name)
        moment = moments.wait() if time.monotonic() - began < at + 3.0 else "late"  # the stream does not wait for us
        pid = system.kill(name)
        print(f"{time.monotonic() - began:7.2f} s  kill -9 {name} ({pid}), {moment}", flush=True)
        if name == "launcher":
            for other in ("feed", "capture@talk", "arbiter"):  # sometimes it finds nobody to adopt
                if rng.random() < 0.2 and system.pid(other):
                    print(f"{time.monotonic() - began:7.2f} s  and {other} ({system.kill(other)})", flush=True)
            system.start()
    return order


def survive(system: System, undisturbed: Undisturbed, rng: random.Random, kills: int) -> None:
    system.start()
    follower = Following(system.settings)
    stream = follower.wait("stream_started").stream
    follower.wait_interim()
    left_s = (undisturbed.end - backlog.head(system.settings.streams / stream)) / RATE / float(PACE)
    done = Counter(kill_at_random(system, rng, kills, 0.7 * left_s))
    assert follower.find("stream_ended") is None, "the stream ended before the last kill"
    assert sum(done.values()) >= kills - 2 and min(done.values()) >= 4, done
    follower.wait("stream_ended", 180.0)
    undisturbed.assert_same(system, stream)  # which had no text before its finals
    assert_reached(system, follower)
    system.stop()


def test_kill_9_of_everything_loses_and_doubles_nothing(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    chosen = seed()
    print(f"seed {chosen}")
    system = System(processes, with_interim(one_by_one(settings)), file_source(undisturbed.clip, PACE))
    survive(system, undisturbed, random.Random(chosen), 34)


def test_a_stopped_feed_loses_and_doubles_nothing(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    """SIGSTOP: it keeps its name, its sockets take messages, and nobody gets an answer."""
    rng = random.Random(chosen := seed())
    print(f"seed {chosen}")
    system = System(processes, one_by_one(settings), file_source(undisturbed.clip, "4"))
    system.start()
    follower = Following(system.settings)
    stream = follower.wait("stream_started").stream
    for stop_s in rng.sample((2.0, 3.0, 5.0, 8.0), 4):
        await_more(follower, rng.randrange(1, 4))
        pass_time(rng.uniform(0.0, 1.0))
        system.signal("feed", signal.SIGSTOP)
        print(f"feed stopped for {stop_s} s at event {len(follower.events)}")
        pass_time(stop_s)
        system.signal("feed", signal.SIGCONT)
    follower.wait("stream_ended", 120.0)
    assert "feed does not answer" in system.log("transcriber"), "no stop met an append"
    assert "died" not in system.launcher.output(), "somebody fell over"
    undisturbed.assert_same(system, stream)
    assert_reached(system, follower)
    system.stop()


def test_two_transcribers_of_one_name_write_each_word_once(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    """The second one ignores the name lock; the journal's compare-and-set alone keeps them apart. Each is stopped for
    a while in turn, so that it comes back with a place that is long gone."""
    settings = msgspec.structs.replace(settings, gpu=GpuSettings(stuck_after_s=120.0))  # who is stopped may stay
    system = System(processes, one_by_one(settings), file_source(undisturbed.clip, "8"))
    system.start()
    follower = Following(system.settings)
    stream = follower.wait("transcript").stream
    system.signal("transcriber", signal.SIGSTOP)  # else it might be through before the second one has loaded
    config = str(processes.config(system.settings))
    argv = [sys.executable, "-m", "tests.standin_transcriber", "--config", config, "second"]
    other = processes.spawn(argv, "second")
    wait_for(lambda: "stream opened" in other.output(), 60.0, "the second transcriber")
    for turn in range(2):
        if turn:
            system.signal("transcriber", signal.SIGSTOP)
        await_more(follower, 3)
        system.signal("transcriber", signal.SIGCONT)
        other.signal(signal.SIGSTOP)
        await_more(follower, 3)
        other.signal(signal.SIGCONT)
    await_more(follower, 1)
    other.signal(signal.SIGSTOP)  # it misses the end, and must not write it again
    met = other.output().count("place taken from the journal")
    follower.wait("stream_ended", 120.0)
    other.signal(signal.SIGCONT)
    wait_for(lambda: other.output().count("place taken from the journal") > met, 30.0, "the second one to come back")
    pass_time(1.0)  # twice the time after which it looks for work
    assert other.alive and "died" not in system.launcher.output()
    for log in (system.log("transcriber"), other.output()):
        assert "place taken from the journal" in log, "they never met"
    undisturbed.assert_same(system, stream)
    assert_reached(system, follower)
    assert other.stop() == 0
    system.stop()


def test_a_capture_killed_after_its_last_write_is_not_played_again(processes: Processes, settings: Settings) -> None:
    """Its exit status says killed, its stream says finished."""
    home = settings.data.parent
    write_wav(home / "short.wav", quiet(2.0))
    (home / "sitecustomize.py").write_text(  # each Python imports it first: capture lives on for a while at its end
        "import atexit, sys, time\natexit.register(lambda: '--source' in sys.argv and time.sleep(60))\n"
    )
    system = System(processes, settings, file_source(home / "short.wav", "10"))
    path = os.pathsep.join([str(home), clean_environment()["PYTHONPATH"]])
    launcher = system.start(env={"PYTHONPATH": path})
    (folder,) = wait_for(lambda: backlog.streams(settings.streams), 30.0, "a stream")
    wait_for(lambda: '"stopped"' in system.log("capture@talk"), what="capture to be at its end")
    meta = backlog.read_meta(folder)
    assert meta and meta.ended
    system.kill("capture@talk")
    wait_for(lambda: "capture@talk is finished" in launcher.output() or "capture@talk died" in launcher.output())
    assert "capture@talk died" not in launcher.output()
    assert system.ended(60.0).stream == folder.name and backlog.streams(settings.streams) == [folder]
    system.stop()


def test_a_live_pipe_goes_on_after_its_capture_was_killed(processes: Processes, settings: Settings) -> None:
    """What was said while capture was dead is gone: a gap with that reason, and everything else has its class."""
    system = System(processes, settings, Source(name="talk", kind="stdin"))
    launcher = system.start(stdin=subprocess.PIPE)
    pid = system.up("capture@talk")
    pipe = LivePipe(launcher, samples(RECORDING).astype("<i2").tobytes() * 3)  # it is closed long before its end
    follower = Following(system.settings)
    try:
        stream = follower.wait("stream_started").stream
        folder = system.settings.streams / stream
        await_more(follower, 2)
        early_s, kills = pipe.untaken_s, 0  # what a slow start did not take
        while pipe.untaken_s < early_s + 1.0:  # each restart waits longer, and a pipe holds two seconds
            system.kill("capture@talk")
            kills += 1
            pid = system.up("capture@talk", but=pid)
        head = backlog.head(folder)
        wait_for(lambda: backlog.head(folder) > head, 30.0, "the last capture to write")
        last = backlog.holes(folder)[-1].end
        wait_for(
            lambda: any(e.kind == "transcript" and body(e).span[0] > last for e in follower.events[:]),
            60.0,
            "captions after the last gap",
        )
        pipe.close()
        end = body(follower.wait("stream_ended", 90.0)).end
    finally:
        pipe.close()
    events = system.journal()
    assert assert_whole(events, stream) == end
    holes = [((h.start, h.end), h.reason, False) for h in backlog.holes(folder)]
    gaps = [(body(e).span, body(e).reason, body(e).retryable) for e in events if e.kind == "gap"]
    assert gaps == holes and {reason for _, reason, _ in gaps} == {"capture was down"}
    lost = sum(b - a for (a, b), *_ in gaps)
    untaken_s = pipe.untaken_s - early_s
    print(f"{kills} kills, {len(gaps)} gaps, {lost / RATE:.2f} s lost of {end / RATE:.2f} s, {untaken_s:.2f} s untaken")
    # (Each kill loses besides what was taken from the pipe, which holds two seconds, and not yet written.)
    assert untaken_s - 0.5 < lost / RATE < untaken_s + 3.0 * kills
    assert sum(backlog.size_samples(path) for _, path in backlog.audio_files(folder)) + lost == end
    assert any(body(e).span[0] > gaps[-1][0][1] for e in events if e.kind == "transcript"), "no captions after it"
    assert abs(end / RATE - pipe.lasted_s) < 2.0 + early_s, "samples have their place by the clock"
    assert_reached(system, follower)
    system.stop()


class LivePipe:
    """PCM into a process' stdin in real time, as from a sound card: what nobody takes in time is lost."""

    def __init__(self, process: Started, pcm: bytes) -> None:
        assert process.popen.stdin
        self._pipe, self._pcm, self.lasted_s, self.untaken_s = process.popen.stdin, pcm, 0.0, 0.0
        os.set_blocking(self._pipe.fileno(), False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        began, at, piece = time.monotonic(), 0, 4096  # at most PIPE_BUF: all of it is taken, or nothing
        while at < len(self._pcm) and not self._stop.wait(0.02):
            due = int((time.monotonic() - began) * RATE) * 2
            while at + piece <= due:
                try:
                    os.write(self._pipe.fileno(), self._pcm[at : at + piece])
                except BlockingIOError:
                    self.untaken_s += piece / 2 / RATE
                at += piece
        self.lasted_s = time.monotonic() - began
        self._pipe.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def await_more(follower: Following, count: int) -> None:
    seen = len(follower.events)
    wait_for(lambda: len(follower.events) >= seen + count, 60.0, f"{count} more events")


def pass_time(seconds: float) -> None:
    """Stretches of time are what is tested here: how long a process stands still, when it is killed."""
    if seconds > 0:
        threading.Event().wait(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill everything at random over one stream, then compare its journal.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=seed())
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    repeats = max(1, round(args.kills / 18))  # some 3.3 s for each kill
    print(f"seed {args.seed}; first the undisturbed run")
    undisturbed = Undisturbed(folder, repeats)
    settings = Settings(data_dir=str(folder / "killed"))
    processes = Processes(folder, settings)
    try:
        system = System(processes, with_interim(one_by_one(settings)), file_source(undisturbed.clip, PACE))
        survive(system, undisturbed, random.Random(args.seed), args.kills)
    finally:
        processes.close()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{args.kills} kills: the same {len(undisturbed.lines)} captions, silences and gaps, word for word")


if __name__ == "__main__":
    sys.exit(main())
