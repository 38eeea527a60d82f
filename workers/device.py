"""Where weights go when a worker is resident: what a device must be able to do, and the simulated one.

`SimulatedDevice` holds granules of the card's file, so that its capacity is enforced across processes; its "VRAM" is a
second private mapping into which the bytes are really copied. Fault switches are lines `WORKER KIND [ARG]` of the file
RUN/gpu.faults, read at each reload and each step: oom-reload N, oom-step N (the next N times of this process),
lag-reload SECONDS, lag-step SECONDS, hang-reload, hang-step (stuck, as in a C call, until the line has gone).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from common import card
from common.settings import Settings
from workers.arena import as_bytes, mapping

MIB = 2**20


class OutOfMemory(MemoryError):
    """The device, or the lease, has no room for that. Nothing was taken."""


class StillHeld(RuntimeError):
    """Device memory could not be given back, because something outside the arena refers to it."""


class Device(Protocol):
    """The one place in a worker that takes and gives back device memory. All of it from the work thread only, but
    `held_bytes`, `peak_bytes` and `residue_bytes` may be read by any."""

    @property
    def name(self) -> str: ...  # for people, and part of the key of a calibration
    @property
    def driver(self) -> str: ...  # its version, "" on the simulator
    @property
    def torch_device(self) -> torch.device: ...
    @property
    def note(self) -> str: ...  # one line for people: what is not as it should be; "" if nothing
    @property
    def held_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...  # the most ever held, working memory included
    @property
    def residue_bytes(self) -> int: ...  # what the process occupies for as long as it lives (a CUDA context)

    def limit(self, lease_bytes: int) -> None:
        """The most that this process may hold from now on; 0: nothing."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """One allocation, uint8 (nbytes,). OutOfMemory: nothing was taken."""

    def release(self, block: torch.Tensor) -> None:
        """Empty `block` and give its memory back for real, with all that the process has cached. StillHeld: something
        still refers to it; once that has gone, releasing the empty block again does it."""

    def pin(self, host: torch.Tensor) -> None:
        """Make host memory fast to copy from."""

    def unpin(self, host: torch.Tensor) -> None: ...

    def copy_in(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        """Start to copy `host`, uint8 (n,), to block[offset:]; may return before it is there."""

    def copy_out(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        """Copy block[offset:] back to `host`; it is there on return."""

    def sync(self) -> None:
        """All copies are done."""

    def working(self, nbytes: int) -> AbstractContextManager[None]:
        """Around each step, which needs about `nbytes` beside the weights. OutOfMemory: the step did not happen."""


def open_device(settings: Settings, run: Path, worker: str) -> Device:
    """The device of these settings, nothing held on it. Once a process."""
    if card.kind(settings) == "simulated":
        return SimulatedDevice(settings, run, worker)
    from workers.cuda import CudaDevice

    return CudaDevice(settings, run)


class SimulatedDevice:
    """A card that is a file; its memory is RAM."""

    name = "simulated"
    driver = ""
    note = ""
    residue_bytes = 0
    torch_device = torch.device("cpu")

    def __init__(self, settings: Settings, run: Path, worker: str) -> None:
        self._card = card.SimulatedCard(run, settings)
        self._bytes_s = settings.gpu.simulated_gb_s * 1e9
        self._faults = _Faults(run / "gpu.faults", worker)
        self._limit = 0
        self._blocks: dict[int, tuple[weakref.ref[mmap.mmap], card.Runs]] = {}  # by address
        self._leaving: list[tuple[weakref.ref[mmap.mmap], card.Runs]] = []
        self._link_free_at = 0.0
        self.peak_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._card.held_bytes

    def limit(self, lease_bytes: int) -> None:
        self._limit = lease_bytes

    def allocate(self, nbytes: int) -> torch.Tensor:
        if self._faults.counted("oom-reload"):
            raise OutOfMemory("simulated device: switched out of memory for a reload")
        runs = self._take(nbytes)
        memory = mapping(nbytes)
        block = as_bytes(memory, nbytes)
        self._blocks[block.data_ptr()] = (weakref.ref(memory), runs)
        try:
            self._faults.lag("reload")
        except BaseException:  # told to stop: hold nothing
            del memory
            self.release(block)
            raise
        self._link_free_at = time.monotonic()
        return block

    def release(self, block: torch.Tensor) -> None:
        if block.numel():
            self._leaving.append(self._blocks.pop(block.data_ptr()))
            block.data = torch.empty(0, dtype=torch.uint8)
        if any(memory() is not None for memory, _ in self._leaving):
            gc.collect()  # what refers to it may be garbage in a cycle: an exception with its frames
        self._leaving, gone = (
            [one for one in self._leaving if one[0]() is not None],
            [runs for memory, runs in self._leaving if memory() is None],
        )
        for runs in gone:
            self._card.give(runs)
        if self._leaving:
            raise StillHeld("something still views weights on the simulated device, whose memory stays taken")

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
        if self._faults.counted("oom-step"):
            raise OutOfMemory("simulated device: switched out of memory for a step")
        runs = self._take(nbytes)
        try:
            self._faults.lag("step")
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


class _Faults:
    """The switches of one worker. A count is kept in this process, and begins anew when the line goes or changes."""

    def __init__(self, path: Path, worker: str) -> None:
        self._path, self._worker = path, worker
        self._used: Counter[tuple[str, str]] = Counter()

    def _switches(self) -> dict[str, str]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {}
        rows = [line.split() for line in text.splitlines()]
        return {row[1]: (row[2] if len(row) > 2 else "") for row in rows if len(row) > 1 and row[0] == self._worker}

    def counted(self, kind: str) -> bool:
        """True for the first N times."""
        switches = self._switches()
        self._used = Counter({k: n for k, n in self._used.items() if switches.get(k[0]) == k[1]})
        if kind not in switches:
            return False
        key = (kind, switches[kind])
        self._used[key] += 1
        return self._used[key] <= int(switches[kind] or 1)

    def lag(self, what: str) -> None:
        """Wait for as long as the switches say."""
        switches = self._switches()
        if f"lag-{what}" in switches:
            time.sleep(float(switches[f"lag-{what}"] or 1))
        while f"hang-{what}" in switches:
            time.sleep(0.02)
            switches = self._switches()
