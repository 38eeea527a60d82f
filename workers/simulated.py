"""The simulated card as a `Device`: granules of RUN/gpu.vram, and memory that is RAM.

The card's file enforces its capacity across processes; its "VRAM" is a second private mapping into which the bytes are
really copied. Fault switches are lines `WORKER KIND [ARG]` of the file RUN/gpu.faults, read at each reload and each
step: oom-reload N, oom-step N (the next N times of this process), lag-reload SECONDS, lag-step SECONDS, hang-reload,
hang-step (stuck, as in a C call, until the line has gone).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from common import card
from common.settings import Settings
from workers.arena import HUGE, as_bytes, choose_pages, mapping
from workers.device import MIB, OutOfMemory

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class SimulatedDevice:
    """A card that is a file; its memory is RAM."""

    name = "simulated"
    driver = ""
    note = ""
    residue_bytes = 0
    addresses_stay = True
    torch_device = torch.device("cpu")

    def __init__(self, settings: Settings, run: Path, worker: str) -> None:
        self._card = card.SimulatedCard(run, settings)
        self._bytes_s = settings.gpu.simulated_gb_s * 1e9
        self._faults = _Faults(run / "gpu.faults", worker)
        self._limit = 0
        self._memory: dict[int, mmap.mmap] = {}  # of each block, by address
        self._runs: dict[int, card.Runs] = {}  # of each block that has memory
        self._link_free_at = 0.0
        self.peak_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._card.held_bytes

    def limit(self, lease_bytes: int) -> None:
        self._limit = lease_bytes

    def allocate(self, nbytes: int, block: torch.Tensor | None = None) -> torch.Tensor:
        switches = self._faults.switches()
        if self._faults.counted("oom-reload", switches):
            raise OutOfMemory("simulated device: switched out of memory for a reload")
        runs = self._take(nbytes)
        if block is None:
            memory = vram(nbytes)
            block = as_bytes(memory, nbytes)
            self._memory[block.data_ptr()] = memory
            weakref.finalize(block, self._memory.pop, block.data_ptr(), None)
        elif block.data_ptr() not in self._runs:
            choose_pages(self._memory[block.data_ptr()])
        self._runs[block.data_ptr()] = runs
        try:
            self._faults.lag("reload", switches)
        except BaseException:  # told to stop: hold nothing
            self.release(block)
            raise
        self._link_free_at = time.monotonic()
        return block

    def release(self, block: torch.Tensor) -> None:
        """The addresses stay, the pages go: it is an unmapping to the kernel, and views find zeros, not a fault."""
        memory = self._memory.get(block.data_ptr())
        if memory is not None:
            _libc.madvise(block.data_ptr(), len(memory), mmap.MADV_DONTNEED)  # without the GIL
        self._card.give(self._runs.pop(block.data_ptr(), []))

    def pin(self, host: torch.Tensor) -> None:
        pass

    def unpin(self, host: torch.Tensor) -> None:
        pass

    def copy_in(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        ctypes.memmove(block.data_ptr() + offset, host.data_ptr(), host.numel())  # without the GIL
        if self._bytes_s:
            self._link_free_at += host.numel() / self._bytes_s
            time.sleep(max(0.0, self._link_free_at - time.monotonic()))

    def copy_out(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        ctypes.memmove(host.data_ptr(), block.data_ptr() + offset, host.numel())

    def sync(self) -> None:
        pass

    @contextlib.contextmanager
    def working(self, nbytes: int) -> Iterator[None]:
        switches = self._faults.switches()
        if self._faults.counted("oom-step", switches):
            raise OutOfMemory("simulated device: switched out of memory for a step")
        runs = self._take(nbytes)
        try:
            self._faults.lag("step", switches)
            yield
        finally:
            self._card.give(runs)

    def _take(self, nbytes: int) -> card.Runs:
        held, wanted = self._card.held_bytes, -(-nbytes // MIB) * MIB
        if held + wanted > self._limit:
            raise OutOfMemory(
                f"{wanted // MIB} MiB more than the {held // MIB} MiB held exceed the lease of {self._limit // MIB} MiB"
            )
        try:
            runs = self._card.take(nbytes)
        except card.CardFull as e:
            raise OutOfMemory(str(e)) from None
        self.peak_bytes = max(self.peak_bytes, self._card.held_bytes)
        return runs


def vram(nbytes: int) -> mmap.mmap:
    """A fresh mapping as the simulated card hands it out: whole huge pages, which the kernel then places on a border of
    theirs; it fills any other in small pages, ten times slower."""
    return mapping(-(-nbytes // HUGE) * HUGE)


class _Faults:
    """The switches of one worker. A count is kept in this process, and begins anew when the line goes or changes."""

    def __init__(self, path: Path, worker: str) -> None:
        self._path, self._worker = str(path), worker
        self._used: Counter[tuple[str, str]] = Counter()

    def switches(self) -> dict[str, str]:
        """Ours, kind -> argument, as they are now."""
        if not os.access(self._path, os.F_OK):  # the rule, and cheaper than an exception
            return {}
        try:
            with open(self._path) as file:
                text = file.read()
        except FileNotFoundError:
            return {}
        rows = [line.split() for line in text.splitlines()]
        return {row[1]: (row[2] if len(row) > 2 else "") for row in rows if len(row) > 1 and row[0] == self._worker}

    def counted(self, kind: str, switches: dict[str, str]) -> bool:
        """True for the first N times."""
        if not switches and not self._used:
            return False
        self._used = Counter({k: n for k, n in self._used.items() if switches.get(k[0]) == k[1]})
        if kind not in switches:
            return False
        key = (kind, switches[kind])
        self._used[key] += 1
        return self._used[key] <= int(switches[kind] or 1)

    def lag(self, what: str, switches: dict[str, str]) -> None:
        """Wait for as long as the switches say."""
        if f"lag-{what}" in switches:
            time.sleep(float(switches[f"lag-{what}"] or 1))
        while f"hang-{what}" in switches:
            time.sleep(0.02)
            switches = self.switches()
