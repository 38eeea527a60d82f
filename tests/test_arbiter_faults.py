"""Twenty faults drawn from a seed, one after the other, into a running swap of real processes.

After each: whoever died is started again (the launcher's part), the burst gets its turn, the transcriber is back; and
the card's granules, read 20 times a second, were never over the cap.
"""

from __future__ import annotations

import random
import signal
import time

import psutil
import pytest

from common import wire
from common.settings import Settings
from tests.conftest import Processes, Started, wait_for
from tests.gpu import CARD_MIB, MARGIN_MIB, Gpu, Watcher

pytestmark = pytest.mark.processes
SIZES = {"transcriber": 600, "summarizer": 900}
FAULTS = (
    "kill transcriber",
    "kill summarizer",
    "stop transcriber",
    "stop summarizer",
    "deaf transcriber",
    "deaf summarizer",
    "oom transcriber",
    "oom summarizer",
    "kill arbiter",
    "stop arbiter",
    "kill helper",
    "stop helper",
)
SEEDS = range(4)
EACH = 5


class Swapping:
    """An arbiter and two workers of which the card holds one."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.arbiter = gpu.arbiter()
        self.workers = {n: gpu.worker(n) for n in SIZES}
        self.faults: dict[str, dict[str, object]] = {}
        self.calm()

    def calm(self, **faults: dict[str, object]) -> None:
        """What both want when nothing is wrong with them, and what is: the transcriber always, the summarizer once."""
        slow = {"reload_s": 0.05, "offload_s": 0.03, "step_p99_s": 0.05}
        for name, lane, works_s in (("transcriber", "live", 0.0), ("summarizer", "burst", 0.25)):
            plain: dict[str, object] = {"want_mib": SIZES[name], "lane": lane, "works_s": works_s}
            self.gpu.script(name, **(plain | slow | faults.get(name, {})))

    def inflict(self, fault: str) -> None:
        what, _, name = fault.partition(" ")
        self.faults = {name: {"deaf": True} if what == "deaf" else {"ooms": 1}} if what in ("deaf", "oom") else {}
        if self.faults:
            self.calm(**self.faults)
            return
        number = signal.SIGKILL if what == "kill" else signal.SIGSTOP
        if name == "helper":
            for child in psutil.Process(self.arbiter.pid).children():
                child.send_signal(number)
        else:
            (self.arbiter if name == "arbiter" else self.workers[name]).signal(number)

    def mend(self, fault: str) -> None:
        """What a launcher does for the dead, and a person for an arbiter that is stopped."""
        if fault == "stop arbiter":
            self.arbiter.signal(signal.SIGCONT)
        if fault == "kill arbiter":
            self.arbiter.wait()
            self.arbiter = self.gpu.arbiter()

    def recovers(self, fault: str) -> None:
        """The dead are replaced, a burst gets its turn and the transcriber is back.

        One that is stopped holding what others want is killed by the arbiter; one that holds nothing, by nobody: it is
        let go on after a while.
        """
        gpu, began = self.gpu.settings.gpu, time.monotonic()
        let_go_s = gpu.max_hold_s + 3 * gpu.offload_within_s
        burst = self.workers["summarizer"]
        before = turns(burst)
        self.calm(**self.faults)  # it wants a turn again
        seen: set[str] = set()

        def both_had_it() -> bool:
            for name, worker in self.workers.items():
                if worker.alive and time.monotonic() > began + let_go_s:
                    worker.signal(signal.SIGCONT)
                if not worker.alive:
                    self.calm()
                    self.workers[name] = self.gpu.worker(name, want_mib=SIZES[name], lane=lane(name), works_s=0.2)
            now = self.workers["summarizer"]
            if turns(now) > (before if now is burst else 0):  # by its log: it is on the GPU for a moment only
                seen.add("summarizer")
            try:
                state = self.gpu.state(5.0)
            except wire.Unreachable:
                return False
            on = [w.pid for w in state.workers if w.residency == "resident" and w.state == "granted"]
            if "summarizer" in seen and self.workers["transcriber"].pid in on:
                seen.add("transcriber")
            return seen == set(SIZES)

        # One that is deaf and never loads is revoked only when it has had the time to.
        wait_for(both_had_it, let_go_s + gpu.stuck_after_s + 30.0, f"both to have had the GPU after: {fault}")


def lane(name: str) -> str:
    return "live" if name == "transcriber" else "burst"


def turns(worker: Started) -> int:
    """That it has had, each to its end."""
    return worker.output().count('"event": "done"')


@pytest.mark.parametrize("seed", SEEDS)
def test_seeded_faults_never_end_the_swapping(processes: Processes, settings: Settings, seed: int) -> None:
    gpu = Gpu(
        processes,
        settings,
        offload_within_s=0.7,
        offload_at_least_s=0.7,
        measure_timeout_s=2.0,
        overdue_s=1.0,
        max_hold_s=2.0,
    )
    rng = random.Random(seed)
    faults = rng.sample(FAULTS, EACH)
    swapping = Swapping(gpu)
    gpu.has("transcriber")
    watcher = Watcher(gpu)
    for fault in faults:
        swapping.calm()
        moment, latest = rng.choice(("making room", "burst", "giving back", "idle")), time.monotonic() + 1.5
        wait_for(lambda m=moment, t=latest: gpu.state().phase == m or time.monotonic() > t)  # type: ignore[misc]
        swapping.inflict(fault)
        swapping.mend(fault)
        swapping.recovers(fault)
        print(f"{fault} at {moment}")
    watcher.stop()
    assert watcher.looks > EACH and watcher.most_mib <= CARD_MIB - MARGIN_MIB
    assert all(isinstance(w, Started) and w.alive for w in swapping.workers.values())
    gpu.close()
