"""A live stream while models take turns on a card too small for them: what is watched, and what it must come to.

system = SwapSystem(processes, settings, plans, source); watch = Watch(system.settings); ...; watch.close()
turns_of(system, "transcriber")       when it was away, and how long each phase took, by its own log
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from common import card, wire
from common import messages as m
from common.settings import GpuSettings, Settings, Source
from tests.conftest import Processes, Started
from tests.system import System, weights

SAMPLES_A_SECOND = 20
MIB = 2**20
SOON = GpuSettings(  # bursts as often as the rules allow, not as often as viewers would like
    device="simulated", margin_mib=0, patience_s=2.0, overdue_s=4.0, lag_soft_s=2.0, silence_s=0.3
)


def gpu(**changes: Any) -> GpuSettings:
    return msgspec.structs.replace(SOON, **changes)


class SwapSystem(System):
    """`run-all` with some processes of the table replaced or added by `tests.standin_models`."""

    def __init__(
        self, processes: Processes, settings: Settings, plans: dict[str, dict[str, Any]], *sources: Source, **more: Any
    ) -> None:
        super().__init__(processes, settings, *sources, **more)
        self.plans = plans
        self._config = str(processes.config(self.settings))

    def start(self, **popen: Any) -> Started:
        weights(*self.more_weights)
        argv = [sys.executable, "-m", "tests.standin_models", "--config", self._config, "launcher"]
        self.launcher = self.processes.spawn([*argv, json.dumps(self.plans)], "launcher", **popen)
        return self.launcher


class Watch(threading.Thread):
    """The card's granules at 20 Hz, and everything on `live.gpu`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.card = card.SimulatedCard(wire.run_dir(settings), settings)
        self.most_mib = 0
        self.samples = 0
        self.states: list[tuple[float, m.GpuState]] = []  # wall clock
        self._sub = wire.subscriber([wire.ipc(settings, "pub")], ["live.gpu"])
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        decoder = msgspec.msgpack.Decoder(m.GpuState)
        while not self._ended.wait(1 / SAMPLES_A_SECOND):
            self.most_mib = max(self.most_mib, sum(self.card.by_pid().values()) // MIB)
            self.samples += 1
            while frames := wire.receive(self._sub):
                self.states.append((time.time(), decoder.decode(frames[-1])))

    def swaps(self) -> int:
        return self.states[-1][1].swaps if self.states else 0

    def close(self) -> None:
        self._ended.set()
        self.join()
        self._sub.close()


class Turn(NamedTuple):
    """One time that a worker was away from the card; wall clock, seconds, milliseconds."""

    left: float
    back: float
    revoke_ms: float
    offload_ms: float
    reload_ms: float
    gb_s: float

    @property
    def away_s(self) -> float:
        return self.back - self.left


def log_rows(data: Path, worker: str) -> list[dict[str, Any]]:
    lines = (data / "logs" / f"{worker}.log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def turns_of(system: System, worker: str) -> list[Turn]:
    """Each revocation of `worker` with the grant that followed it."""
    out, left = [], None
    for row in log_rows(system.settings.data, worker):
        if row["event"] == "revoked":
            left = row
        elif row["event"] == "granted" and left:
            figures = (left["revoke_ms"], left["offload_ms"], row["reload_ms"], row["gb_s"])
            out.append(Turn(left["at"], row["at"], *figures))
            left = None
    return out


def lag_back(watch: Watch, turn: Turn, under_s: float = 2.0, worker: str = "transcriber") -> float:
    """Seconds from `turn.back` until the worker said that it is less than `under_s` late; inf if it never did."""
    for at, state in watch.states:
        if at >= turn.back and any(w.worker == worker and w.lag_s < under_s for w in state.workers):
            return at - turn.back
    return float("inf")
