"""The system that faults happen to, and who watches it: card and roster at 20 Hz, a subscriber of everything.

The real launcher, feed, capture, arbiter, viewer, transcriber (tiny.en), diarizer, translator (the students) and
summarizer (SmolLM2-135M). The simulated card holds the live ones, or the summarizer and some of them. DATA lies on a
small file system of its own, which can be filled; logs and switches lie beside it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from arbiter.hands import read_roster
from common import card
from common.settings import Settings, Source, SpeakerSettings, SummarySettings
from tests.conftest import Processes, Started
from tests.faults.schedule import WORKERS
from tests.faults.troubled import TROUBLE, Trouble
from tests.swaps import gpu
from tests.system import Following, System, one_by_one, weights

CARD_MIB, MARGIN_MIB = 820, 16  # 428 + 177 + 114 are live, the summarizer 470
TARGETS = ("pt",)
EVERYBODY = ("feed", "arbiter", *WORKERS, "viewer", "launcher")  # captures finish
INTERVAL_S = 10.0  # of the minutes: a burst for each
SPEAKERS = SpeakerSettings(settle_every_s=15.0)  # so that many clusterings meet something
MARK = "FAULTS_OF"  # in the environment of every process of a run
WATCHED_HZ = 20
DISK_MIB = 128
FILLER = ".filler"
MIB = 2**20


def changed(settings: Settings) -> Settings:
    """Short deadlines, minutes every few seconds, a small card."""
    card_settings = gpu(
        simulated_mib=CARD_MIB, margin_mib=MARGIN_MIB, stuck_after_s=12.0, hello_timeout_s=5.0, offload_within_s=10.0
    )
    minutes = SummarySettings(interval_s=INTERVAL_S, max_new_tokens=16)
    return one_by_one(msgspec.structs.replace(settings, gpu=card_settings, summary=minutes, speakers=SPEAKERS))


class FaultSystem(System):
    """`folder` is outside of the small file system that DATA is on."""

    def __init__(self, processes: Processes, settings: Settings, folder: Path, source: Source) -> None:
        super().__init__(processes, changed(settings), source, summaries=True, speakers=True, targets=TARGETS)
        self.folder = folder
        self._config = str(processes.config(self.settings))
        (folder / "logs").mkdir(parents=True)
        (folder / TROUBLE).write_bytes(msgspec.json.encode(Trouble()))
        (folder / "gpu.faults").touch()
        (self.settings.data / "logs").symlink_to(folder / "logs")  # what is said of a full disk can be read
        (self.run / "gpu.faults").symlink_to(folder / "gpu.faults")
        self.follower = WellFollowing(self.settings)

    def start(self, **popen: Any) -> Started:
        weights(*self.more_weights)
        argv = [sys.executable, "-m", "tests.faults.troubled", str(self.folder), "launcher", self._config]
        env = {MARK: str(self.folder)}
        self.launcher = self.processes.spawn(argv, "launcher", env, **popen)
        return self.launcher

    def fill_disk(self) -> None:
        """Leave nothing free on DATA's file system. Reserved, not written: at once, however busy the machine is."""
        with (self.settings.data / FILLER).open("ab") as file:
            info = os.statvfs(self.settings.data)
            with contextlib.suppress(OSError):  # others write meanwhile: full is full
                os.posix_fallocate(file.fileno(), 0, info.f_bavail * info.f_frsize)

    def free_disk(self) -> None:
        (self.settings.data / FILLER).unlink(missing_ok=True)

    def of_this_run(self) -> dict[int, str]:
        """Every process that any process of this run has started, however long ago: pid -> command."""
        found, mark = {}, f"{MARK}={self.folder}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(path.name)] = command.strip()
        return found


class WellFollowing(Following):
    """Knows how old the newest beat is, and what it says of everybody."""

    def fresh(self) -> bool:
        """A beat came within 3 s."""
        return self.error is None and time.monotonic() - self._client.beat_heard_s < 3.0

    def well(self) -> bool:
        beat = self.last_beat
        if beat is None or not self.fresh() or beat.trouble:
            return False
        return all(bell.state in ("ok", "ended") for bell in beat.captures.values())


class CardWatch(threading.Thread):
    """Granules beside the roster: the high-water mark, and holders of more than their lease."""

    def __init__(self, run: Path, settings: Settings) -> None:
        super().__init__(daemon=True, name="card watch")
        self.run_folder, self.card = run, card.SimulatedCard(run, settings)
        self.most_bytes = self.looks = self.strict = 0
        self.too_much: list[str] = []  # who held what no row of the roster allows
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(1 / WATCHED_HZ):
            before = read_roster(self.run_folder)[0]
            held = self.card.by_pid()
            after = read_roster(self.run_folder)[0]
            self.looks += 1
            self.most_bytes = max(self.most_bytes, sum(held.values()))
            if before != after or not before.n:
                continue  # it changed meanwhile: the next look compares
            self.strict += 1
            allowed: dict[int, int] = {}
            for row in after.rows:
                allowed[row.incarnation.pid] = allowed.get(row.incarnation.pid, 0) + row.bytes
            for pid, size in held.items():
                if size > allowed.get(pid, 0):
                    self.too_much.append(
                        f"pid {pid} holds {size // MIB} MiB, its lease is {allowed.get(pid, 0) // MIB}"
                    )

    def close(self) -> None:
        self._ended.set()
        self.join()
