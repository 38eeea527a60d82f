"""Recordings played one after another into one running system, and a subscriber that notes what comes, and when.

with Stage(folder, settings) as stage:
    heard = stage.play(recording)            at the pace of its time
    more = stage.play_all(recordings)        at once, as fast as they go: no times
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import psutil
from silence import clock

from benchmarks.scores import Turn, Turns
from common import messages as m
from common.feed_client import FeedClient
from common.join import KINDS
from common.settings import Settings
from tests.conftest import Processes
from tests.diarization import Shown, Told
from tests.speech import RATE, Samples, write_wav
from tests.swaps import log_rows
from tests.system import System, body, file_source, quiet

WORKERS = ("transcriber", "diarizer")
AFTER_S = 600.0  # what comes at the end of a stream may take so long, on a machine that others use too


class Recording(NamedTuple):
    name: str
    audio: Samples
    turns: Turns  # the reference
    said: Mapping[str, str]  # speaker -> all that this speaker says; empty: not known

    @property
    def length_s(self) -> float:
        return len(self.audio) / RATE


class Cost(NamedTuple):
    cpu: float  # CPU seconds for each second of the recording
    rss_mib: float  # most
    lives: int  # processes that did it: more than one, and it was started again


class Heard(NamedTuple):
    """What a subscriber had of one recording, and what is in the journal at its end."""

    told: list[Told]
    shown: Shown
    transcripts: list[m.Transcript]
    captions_late_s: list[float]  # from the end of the last word of a segment to its transcript
    costs: dict[str, Cost]

    @property
    def settled(self) -> Turns:
        return [(p.start / RATE, p.end / RATE, p.speaker) for p in self.shown.join.pieces()]


class Subscriber(threading.Thread):
    """Keeps what comes, with the wall clock."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.batches: list[tuple[float, list[m.Event]]] = []
        self.beats: dict[str, m.StreamBeat] = {}  # newest of each stream
        self.notes: dict[str, str] = {}  # what workers say of how they work; each but once
        self.error: BaseException | None = None
        self._client = FeedClient(settings, kinds=(*KINDS, "stream_started", "stream_ended"))
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                got = self._client.poll(0.2)
                if events := [e for e in got if isinstance(e, m.Event)]:
                    self.batches.append((time.time(), events))
                for beat in got:
                    if isinstance(beat, m.Beat):
                        self.beats.update(beat.streams)
                        self.notes.update({s.note: name for name, s in beat.workers.items() if s.note})
        except BaseException as e:
            self.error = e

    def of(self, stream: str) -> list[tuple[float, list[m.Event]]]:
        """What came of a stream; what is one append is one step, and came when its last event did."""
        mine = [(at, e) for at, events in self.batches[:] for e in events if e.stream == stream]
        appends = [list(some) for _, some in groupby(mine, lambda x: (x[1].producer, x[1].n))]
        return [(some[-1][0], [e for _, e in some]) for some in appends]

    def streams(self) -> dict[str, str]:
        """source -> stream"""
        events = [e for _, some in self.batches[:] for e in some if e.kind == "stream_started"]
        return {body(e).source: e.stream for e in events}

    def close(self) -> None:
        self._over.set()
        self.join()
        self._client.close()


class Watched:
    """CPU seconds and memory of the model workers, looked at each second."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._rss = dict.fromkeys(WORKERS, 0.0)
        self._cpu: dict[tuple[str, int], float] = {}
        self.look()
        self._before = dict(self._cpu)

    def look(self) -> None:
        for worker in WORKERS:
            pid = self._system.pid(worker)
            try:
                process = psutil.Process(pid) if pid else None
                if process:
                    self._cpu[worker, process.pid] = sum(process.cpu_times()[:2])
                    self._rss[worker] = max(self._rss[worker], process.memory_info().rss / 2**20)
            except psutil.Error:  # it has just ended
                continue

    def costs(self, length_s: float) -> dict[str, Cost]:
        found = {}
        for worker in WORKERS:
            used = [cpu - self._before.get(key, 0.0) for key, cpu in self._cpu.items() if key[0] == worker]
            found[worker] = Cost(sum(used) / length_s, self._rss[worker], len(used))
        return found


class Stage:
    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._processes = Processes(folder, settings)
        write_wav(folder / "calm.wav", quiet(0.5))  # so that there is something to be started with
        self.system = System(self._processes, settings, file_source(folder / "calm.wav", "max", "calm"), speakers=True)
        self.subscriber = Subscriber(self.system.settings)

    def __enter__(self) -> Stage:
        """Models are loaded and calibrated before anybody speaks."""
        try:
            self.system.start()
            self._wait(lambda: all(map(self._calibrated, WORKERS)), AFTER_S, "the models")
        except BaseException:
            self._processes.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.subscriber.close()
            if self.system.launcher.alive:
                self.system.stop()
        finally:
            self._processes.close()

    def play(self, recording: Recording) -> Heard:
        watched = Watched(self.system)
        self._add(recording, "realtime")

        def over() -> bool:
            watched.look()
            return self._over(recording)

        self._wait(over, recording.length_s + AFTER_S, recording.name)
        return self._heard(recording, watched.costs(recording.length_s))

    def play_all(self, recordings: Sequence[Recording]) -> dict[str, Heard]:
        for r in recordings:
            self._add(r, "max")
        length_s = sum(r.length_s for r in recordings)
        self._wait(lambda: all(map(self._over, recordings)), 3 * length_s + AFTER_S, f"{len(recordings)} recordings")
        return {r.name: self._heard(r, {}) for r in recordings}

    def _wait(self, over: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not over():
            self._alive()
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not at its end after {timeout_s:.0f} s")
            time.sleep(1.0)

    def _alive(self) -> None:
        if not self.system.launcher.alive:
            raise SystemExit(self.system.launcher.output())
        if self.subscriber.error:
            raise self.subscriber.error

    def _add(self, recording: Recording, pace: str) -> None:
        path = self._folder / f"{recording.name}.wav"
        write_wav(path, recording.audio)
        added = self.system("capture", "--source", f"{path} name={recording.name} pace={pace}")
        if added.returncode:
            raise SystemExit(added.stdout + added.stderr)

    def _over(self, recording: Recording) -> bool:
        """Both have heard it to its end, and the diarizer has nothing more to do: it throws away what it kept."""
        stream = self.subscriber.streams().get(recording.name, "")
        beat = self.subscriber.beats.get(stream)
        if not beat or "stream_ended" not in beat.heads:
            return False
        at = [beat.producers[w].positions.get("audio", 0) if w in beat.producers else 0 for w in WORKERS]
        return min(at) >= len(recording.audio) and not self.system.settings.windows(stream).exists()

    def _heard(self, recording: Recording, costs: dict[str, Cost]) -> Heard:
        stream = self.subscriber.streams()[recording.name]
        at = clock(self.system.settings.streams / stream) if costs else None
        heard = Heard([], Shown(), [], [], costs)
        for wall, events in self.subscriber.of(stream):
            heard.shown.take(events)
            now_s = at.sample(wall) / RATE if at else 0.0
            for e in events:
                match e.decode():
                    case m.SpeakerTurn(span=span, speaker=speaker, provisional=True):
                        heard.told.append(Told(seconds(span, speaker), now_s))
                    case m.Transcript(words=words) as t:
                        heard.transcripts.append(t)
                        heard.captions_late_s.append(now_s - (words[-1].span[1] if words else t.span[1]) / RATE)
        return heard

    def _calibrated(self, worker: str) -> bool:
        """And then granted memory."""
        if not (self.system.settings.data / "logs" / f"{worker}.log").exists():
            return False
        return {"calibrated", "granted"} <= {r["event"] for r in log_rows(self.system.settings.data, worker)}


def seconds(span: m.Span, speaker: str) -> Turn:
    return span[0] / RATE, span[1] / RATE, speaker
