"""What a device must be able to do, to hold a worker's weights: the only one to take and give back device memory.

`open_device` gives the simulated one or CUDA. Nothing here needs more than torch, so that a benchmark of CUDA runs on a
bare machine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from common.settings import Settings

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
    def addresses_stay(self) -> bool: ...  # views of a released block find nothing there, but no fault either
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

    def allocate(self, nbytes: int, block: torch.Tensor | None = None) -> torch.Tensor:
        """One allocation, uint8 (nbytes,). With a released `block` of the same size: memory for that one, so that views
        of it are good again. OutOfMemory: nothing was taken."""

    def release(self, block: torch.Tensor) -> None:
        """Give the memory of `block` back for real, with all that the process has cached, whoever views it: make sure
        that nobody does. StillHeld: the process holds much more, which is not of this block."""

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
    from common import card

    if card.kind(settings) == "simulated":
        from workers.simulated import SimulatedDevice

        return SimulatedDevice(settings, run, worker)
    from workers.cuda import CudaDevice

    return CudaDevice(settings, run)
