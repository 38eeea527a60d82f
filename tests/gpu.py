"""A GPU of the tests: the real arbiter and stand-in workers as processes, on a simulated card that holds one of them.

gpu = Gpu(processes, settings); gpu.arbiter(); gpu.worker("transcriber", want_mib=700)
gpu.until(lambda s: s["transcriber"].residency == "resident")
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import msgspec

from common import messages as m
from common import wire
from common.card import MIB, SimulatedCard
from common.settings import GpuSettings, Settings
from tests.conftest import Processes, Started, wait_for
from tests.standin_gpu_worker import Script

CARD_MIB, MARGIN_MIB = 1000, 16


def quick(**more: object) -> GpuSettings:
    """A small card and short deadlines, but a machine that stands still for a second gets nobody killed."""
    plain = GpuSettings(
        device="simulated",
        simulated_mib=CARD_MIB,
        margin_mib=MARGIN_MIB,
        offload_within_s=3.0,
        offload_at_least_s=3.0,
        hello_timeout_s=10.0,
        stuck_after_s=20.0,
        reclaim_within_s=2.0,
        patience_s=0.2,
        silence_s=0.0,
    )
    return msgspec.structs.replace(plain, **more)


class Gpu:
    """The arbiter, its workers, and what the test sees of them."""

    def __init__(self, processes: Processes, settings: Settings, **gpu: object) -> None:
        self.settings = msgspec.structs.replace(settings, gpu=quick(**gpu))
        self.settings.data.mkdir(parents=True, exist_ok=True)
        self.processes = processes
        self.run = wire.run_dir(self.settings)
        self._asker = wire.Requester(wire.ipc(self.settings, "arbiter"))

    def arbiter(self) -> Started:
        return self.processes.start("arbiter", settings=self.settings)

    def worker(self, name: str, **script: object) -> Started:
        self.script(name, **script)
        argv = ["tests.standin_gpu_worker", name, "--config", str(self.processes.config(self.settings))]
        import sys

        return self.processes.spawn([sys.executable, "-m", *argv], name)

    def script(self, name: str, **script: object) -> None:
        path = self.settings.data / f"gpu-{name}"
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(Script(**script)))  # type: ignore[arg-type]
        new.rename(path)

    def command(self, verb: str, **args: str) -> m.Done | m.Refused:
        return self.ask(_command(verb, **args))

    def ask(self, command: m.Command, timeout_s: float = 20.0) -> m.Done | m.Refused:
        answer = self._asker.request(command, timeout_s)
        assert isinstance(answer, m.Done | m.Refused), answer
        return answer

    def state(self, timeout_s: float = 20.0) -> m.GpuState:
        answer = self.ask(_command("status"), timeout_s)
        assert isinstance(answer, m.Done), answer
        return msgspec.json.decode(answer.detail, type=m.GpuState)

    def until(self, what: Callable[[dict[str, m.GpuWorker]], object], timeout_s: float = 30.0, why: str = "") -> float:
        """Wait until the workers are as `what` says; returns the seconds it took."""
        began = time.monotonic()
        self.when(lambda s: what({w.worker: w for w in s.workers}), timeout_s, why)
        return time.monotonic() - began

    def has(self, name: str, timeout_s: float = 30.0, but: int = 0) -> float:
        """Wait until the worker (another one than pid `but`) is on the GPU."""

        def on(workers: dict[str, m.GpuWorker]) -> bool:
            w = workers.get(name)
            return w is not None and w.residency == "resident" and w.state == "granted" and w.pid != but

        return self.until(on, timeout_s, f"{name} on the GPU")

    def when(self, what: Callable[[m.GpuState], object], timeout_s: float = 30.0, why: str = "") -> None:
        """Wait until the GPU is as `what` says. The arbiter may come only now."""

        def asked() -> object:
            try:
                return what(self.state(5.0))
            except wire.Unreachable:
                return False

        wait_for(asked, timeout_s, why or "another state of the GPU")

    def close(self) -> None:
        self._asker.close()


def _command(verb: str, **args: str) -> m.Command:
    return m.Command(id=uuid.uuid4().hex, verb=verb, args=args)


class Watcher:
    """Reads the card's granules 20 times a second, as NVML would be read: their high-water mark."""

    def __init__(self, gpu: Gpu) -> None:
        self._card = SimulatedCard(gpu.run, gpu.settings)
        self.most_mib = self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.most_mib = max(self.most_mib, sum(self._card.by_pid().values()) // MIB)
            self.looks += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
