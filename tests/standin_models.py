"""Stand-ins for models of any size in the real base, under real leases, on the real simulated card; and their launcher.

python -m tests.standin_models --config F launcher PLAN    the real launcher over the table, changed by PLAN (JSON):
      {"transcriber": {"ballast_mib": 500}, "translator": {"mib": 500, "step_s": 0.05}, "summarizer": {"mib": 1400,
       "every_s": 8, "burst_s": 2.0}, ...}: ballast makes the REAL transcriber bigger, mib a stand-in of that size;
      says_mib: a stand-in transcriber of that size (tests/standin_hearing.py)
python -m tests.standin_models --config F worker NAME PLAN

What a stand-in computes is nothing; its bytes are really moved, held and accounted for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from common.child import Want, wants
from common.launch import Launcher
from common.process import Process, arguments, main
from common.settings import load
from workers._torch import set_up
from workers.base import Runner
from workers.steps import Worker
from workers.transcriber import Transcriber

MIB = 2**20


def ballast(torch: Any, mib: int, seed: int) -> Any:
    """A module with `mib` MiB of weights from a PRNG, some of them in pieces as models have them."""
    generator = torch.Generator().manual_seed(seed)
    module = torch.nn.Module()
    left, k = mib * MIB // 4, 0
    while left:
        size = min(left, (1, 3, 16)[k % 3] * MIB)
        weight = torch.empty(size).uniform_(generator=generator)
        module.register_parameter(f"w{k}", torch.nn.Parameter(weight, requires_grad=False))
        left, k = left - size, k + 1
    return module


class StandInModel(Worker):
    """So many MiB; live: a step each `every_s`; burst: `burst_s` of pieces each `every_s`, all of them or none."""

    def __init__(self, process: Process, name: str, plan: dict[str, Any]) -> None:
        self.process, self.name, self.plan = process, name, plan
        self.lane = "burst" if "burst_s" in plan else "live"
        self._next = time.monotonic() + plan.get("every_s", 0.5)
        self._steps = 0

    def load(self, process: Process) -> Sequence[Any]:
        self.module = ballast(set_up(1, process.settings.cache), self.plan["mib"], seed=len(self.name))
        self.sums = [float(p[:1000].sum()) for p in self.module.parameters()]
        return [self.module]

    def key(self) -> str:
        return f"{self.name} {self.plan}"

    def working_bytes(self) -> int:
        return int(self.plan.get("working_mib", 20)) * MIB

    def rehearse(self) -> Iterator[None]:
        yield

    def look(self, runner: Runner, now: float) -> None:
        pass

    def needs_model(self) -> bool:
        return time.monotonic() >= self._next

    def positions(self) -> dict[str, int]:
        return {"steps": self._steps}

    def turn(self, runner: Runner) -> bool:
        if not self.needs_model() or not runner.ready:
            return False
        began = time.monotonic()
        if runner.carry(self._pieces(self.plan.get("burst_s", self.plan.get("step_s", 0.02))), self.working_bytes()):
            self._next = time.monotonic() + self.plan.get("every_s", 0.5)
            self._steps += 1  # not before: what is given up half-way is begun anew
            if self.lane == "burst":
                runner.log.info("burst done", seconds=round(time.monotonic() - began, 3))
        return True

    def _pieces(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while True:
            if [float(p[:1000].sum()) for p in self.module.parameters()] != self.sums:
                raise RuntimeError("the weights are not what they were")
            time.sleep(min(0.05, max(0.0, end - time.monotonic())))  # stands for a kernel
            if time.monotonic() >= end:
                return
            yield


class BigTranscriber(Transcriber):
    """The real one, with ballast beside its weights."""

    ballast_mib = 0

    def load(self, process: Process) -> Sequence[Any]:
        modules = super().load(process)
        return [*modules, ballast(self.torch, self.ballast_mib, 1)]

    def key(self) -> str:
        return f"{super().key()} ballast={self.ballast_mib}"


def launcher(config: str, plans: dict[str, dict[str, Any]]) -> None:
    settings = load(config, (), {})
    table = {w.name: w for w in wants(settings, ["--config", config])}
    for name, plan in plans.items():
        command = ("-m", "tests.standin_models", "--config", config, "worker", name, json.dumps(plan))
        table[name] = msgspec.structs.replace(table.get(name, Want(name=name)), command=command)
    Launcher(settings, list(table.values()), lambda line: print(f"-- {line}", flush=True)).run()


def worker(process: Process) -> None:
    plan: dict[str, Any] = json.loads(process.args.plan)
    if "ballast_mib" in plan:
        BigTranscriber.ballast_mib = plan["ballast_mib"]
        Runner(process, BigTranscriber(process)).run()
    elif "says_mib" in plan:
        from tests.standin_hearing import StandInTranscriber

        Runner(process, StandInTranscriber(process, plan["says_mib"])).run()
    else:
        Runner(process, StandInModel(process, process.name, plan)).run()


if __name__ == "__main__":
    at = sys.argv.index("--config") + 2
    if sys.argv[at] == "launcher":
        launcher(sys.argv[at - 1], json.loads(sys.argv[at + 1]))
    else:
        _, name, plan = sys.argv[at : at + 3]
        del sys.argv[at : at + 3]
        sys.argv += ["--plan", plan]
        parser = arguments(__doc__ or "")
        parser.add_argument("--plan")
        main(name, worker, parser)
