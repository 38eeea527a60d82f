"""A soak run from outside: the operator who orders swaps, and what is looked at meanwhile; each look becomes a row.

In: a running system, its feed and its processes. Out: lines of JSON, each complete when it is written (`Rows`).
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec
import psutil

from common import cli_gpu, topology, wire
from common import messages as m
from common.process import holder
from common.settings import Settings, UserError
from tests.system import System

MEMORY_EVERY_S, SIZES_EVERY_S = 0.5, 10.0


class Rows:
    """The file: one JSON object a line, complete after each line. Written from two threads."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._lock = out, threading.Lock()
        self.part = ""

    def put(self, row: str, **fields: Any) -> None:
        line = json.dumps({"row": row, "part": self.part, "at": round(time.time(), 3), **fields})
        with self._lock:
            print(line, file=self._out, flush=True)


class Operator(threading.Thread):
    """Orders a swap at each tick that finds none under way, and waits until it is over."""

    def __init__(self, settings: Settings, rows: Rows, every_s: float) -> None:
        super().__init__(daemon=True)
        self.settings, self.rows, self.every_s = settings, rows, every_s
        self.swaps = 0  # carried out whole
        self._over = threading.Event()

    def run(self) -> None:
        tick = time.monotonic()
        while not self._over.wait(max(0.0, tick - time.monotonic())):
            try:
                self._swap()
            except (UserError, OSError) as e:
                self.rows.put("refused", why=str(e))
            tick += self.every_s * max(1, -(-(time.monotonic() - tick) // self.every_s))

    def _swap(self) -> None:
        began = time.monotonic()
        said = cli_gpu.order(self.settings, "swap")
        while not self._over.wait(0.1):
            answer = cli_gpu.ask(self.settings, "swapped")
            if isinstance(answer, m.Done):
                self.swaps += 1
                burst = not said.startswith("nobody waits")
                took = round(time.monotonic() - began, 3)
                self.rows.put("swap", n=self.swaps, burst=burst, seconds=took, detail=answer.detail)
                return
            if answer is not None and not answer.retry_after_s:
                raise UserError(answer.reason)
            if time.monotonic() - began > cli_gpu.SWAP_S:
                raise UserError(f"not over after {cli_gpu.SWAP_S:.0f} s")

    def close(self) -> None:
        self._over.set()
        self.join()


class Look:
    """What a part looks like from outside: memory by process, lag by the beat, swaps by live.gpu, bytes on disk."""

    def __init__(self, system: System, rows: Rows) -> None:
        self.system, self.rows = system, rows
        self.settings = system.settings
        self.gpu: m.GpuState | None = None
        self.beat: m.Beat | None = None
        self.processes: dict[str, psutil.Process] = {}
        self._sub = wire.subscriber([wire.ipc(self.settings, "pub")], ["live.gpu", "beat"])
        self._memory_at = self._sizes_at = 0.0

    def turn(self, swaps: int) -> None:
        """What has been published since, and memory when it is time to look."""
        while frames := wire.receive(self._sub):
            if frames[0] == b"live.gpu":
                self.gpu = msgspec.msgpack.decode(frames[-1], type=m.GpuState)
            else:
                self.beat = msgspec.msgpack.decode(frames[-1], type=m.Beat)
                for name, stream in self.beat.streams.items():
                    if not stream.ended:
                        self.rows.put("lag", stream=name, lag_s=stream.lag_s, head=stream.audio_head)
        now = time.monotonic()
        if now >= self._memory_at:
            self._memory_at = now + MEMORY_EVERY_S
            self._find()
            rss = {name: self._bytes(name, "rss") for name in self.processes}
            self.rows.put("memory", swaps=swaps, rss=rss)
        if now >= self._sizes_at:
            self._sizes_at = now + SIZES_EVERY_S
            pss = {name: self._bytes(name, "pss") for name in self.processes}
            live = self.gpu.swaps if self.gpu else 0
            data = self.settings.data
            sizes = {f.name: size_of(f) for f in (data / "journal", data / "streams", data / "logs")}
            self.rows.put("sizes", pss=pss, live_swaps=live, bytes=sizes)

    def _find(self) -> None:
        """Everybody by name, and a child that is none of the table (the arbiter's measuring helper)."""
        names = ("launcher", *topology.names(self.settings))
        found = {name: pid for name in names if (pid := holder(self.system.run, name))}
        for name, pid in found.items():
            if name not in self.processes or self.processes[name].pid != pid:
                if name in self.processes and not name.startswith("capture"):
                    self.rows.put("ended", process=name, pid=self.processes[name].pid)
                self.processes[name] = psutil.Process(pid)
        arbiter = self.processes.get("arbiter")
        for child in arbiter.children() if arbiter and arbiter.is_running() else ():
            self.processes["arbiter's helper"] = child

    def _bytes(self, name: str, kind: str) -> int:
        try:
            p = self.processes[name]
            return int(p.memory_info().rss if kind == "rss" else p.memory_full_info().pss)
        except psutil.NoSuchProcess:
            return 0

    def minutes_wait(self) -> bool:
        return self.gpu is not None and any(w.worker == "summarizer" and w.wants_bytes for w in self.gpu.workers)

    def close(self) -> None:
        self._sub.close()


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
