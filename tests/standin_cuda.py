"""Stand-in for the CUDA of torch, in RAM: the whole of `workers.cuda.CudaDevice` runs on a machine without a card.

`StandInCuda().take_place(monkeypatch)` puts it where workers/cuda.py looks for torch; nothing else sees it. The card is
torch's CPU device. It has a capacity, a limit and an account of what was allocated, and knows which host memory is
registered; it computes nothing on its own, and a name that it does not have is an error.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

TOTAL = 16 * 2**30
CPU = torch.device("cpu")


class StandInStream:
    """Remembers which streams it waited for, and how often each was asked to be done."""

    def __init__(self, device: torch.device) -> None:
        self.waited: list[object] = []
        self.done = 0

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        self.done += 1


class StandInEvent:
    """A mark in a stream."""

    def record(self, stream: StandInStream) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        assert self.stream


class StandInCuda:
    """`torch.cuda` of one card."""

    Stream, Event = StandInStream, StandInEvent

    def __init__(self, pinnable: int = TOTAL) -> None:
        self.pinnable = pinnable  # bytes of host memory that the driver agrees to register
        self.registered: list[tuple[int, int]] = []  # [start, end)
        self.limit = TOTAL
        self.broken = ""  # what every wait for the device says, once a kernel has failed
        self.peak = self.synchronized = 0
        self.default_stream = StandInStream(CPU)
        self._blocks: list[weakref.ref[torch.Tensor]] = []

    def take_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plans = SimpleNamespace(clear=lambda: None)
        changed = {
            "cuda": self,
            "device": lambda kind, index: CPU,
            "empty": self.empty,
            "backends": SimpleNamespace(cuda=SimpleNamespace(cufft_plan_cache={CPU.index: plans})),
        }
        monkeypatch.setattr("workers.cuda.torch", _Torch(changed))
        monkeypatch.setattr("workers.cuda._cuda", self)

    def empty(self, nbytes: int, dtype: torch.dtype, device: torch.device = CPU, pin_memory: bool = False) -> Any:
        if pin_memory:
            raise RuntimeError("a stand-in has no pinned memory of its own")
        if self.memory_reserved(device) + nbytes > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes\nmore lines")
        block = torch.empty(nbytes, dtype=dtype, device=device)
        self._blocks.append(weakref.ref(block))
        return block

    def memory_reserved(self, device: torch.device) -> int:
        held = sum(block.untyped_storage().nbytes() for ref in self._blocks if (block := ref()) is not None)
        self.peak = max(self.peak, held)
        return held

    def max_memory_reserved(self, device: torch.device) -> int:
        self.memory_reserved(device)
        return self.peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = 0

    def set_per_process_memory_fraction(self, fraction: float, device: torch.device) -> None:
        self.limit = int(fraction * TOTAL)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def set_device(self, device: torch.device) -> None:
        assert device == CPU

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name="Stand-in", total_memory=TOTAL, uuid="stand-in")

    def synchronize(self, device: torch.device | None = None) -> None:
        self.synchronized += 1
        if self.broken:
            raise RuntimeError(self.broken)

    def empty_cache(self) -> None:
        assert self.synchronized  # or memory that a kernel still uses would go

    def current_stream(self, device: torch.device) -> StandInStream:
        return self.default_stream

    @contextlib.contextmanager
    def stream(self, stream: StandInStream) -> Iterator[None]:
        yield

    def _sleep(self, cycles: int) -> None:
        raise RuntimeError("the refusal of before")

    def cudart(self) -> SimpleNamespace:
        return SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister)

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        assert all(address >= end or address + nbytes <= start for start, end in self.registered)
        if sum(end - start for start, end in self.registered) + nbytes > self.pinnable:
            return 2
        self.registered.append((address, address + nbytes))
        return 0

    def _unregister(self, address: int) -> int:
        self.registered.remove(next(r for r in self.registered if r[0] == address))
        return 0


class _Torch:
    """torch, but for what the stand-in changes."""

    def __init__(self, changed: dict[str, Any]) -> None:
        vars(self).update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
