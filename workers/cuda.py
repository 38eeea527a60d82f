"""A CUDA card as a `Device`: the only file that calls torch's CUDA memory functions.

The lease is torch's memory fraction, so an allocation over it raises here and nobody else suffers. Host memory is
registered once, at most 40 % of the machine's RAM for all workers together (each holds a locked file in RUN that says
how much it has); what is not registered goes through two pinned buffers. The CUDA context is made by `CudaDevice()`
and stays until the process ends: `residue_bytes`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import re
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workers.arena import as_bytes, mapping
from workers.device import MIB, OutOfMemory, StillHeld

if TYPE_CHECKING:
    from common.settings import Settings

PIN_SHARE = 0.4  # of RAM, for all workers together
PIN_CHUNK = 1024 * MIB  # registered in one call; a copy must not cross the border of two
RING_BYTES = 256 * MIB  # each of the two buffers for memory that is not registered
IN_FLIGHT = 2  # copies under way at once: the link stays full, and a reload can still turn back
CRUMBS = 64 * MIB  # less than this left after an offload is library caches: told, not fatal
NO_ROOM = re.compile("out of memory|ALLOC_FAILED|DEVICE_ALLOCATION_FAILED|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED")
_cuda: Any = torch.cuda  # the parts of it that have no types
CONTEXT_BYTES = 450 * MIB  # what a context is taken for where the driver does not tell


class CudaDevice:
    """One CUDA device, seen from one worker."""

    addresses_stay = False

    def __init__(self, settings: Settings, run: Path) -> None:
        index = settings.gpu.index
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            from common.settings import UserError

            raise UserError(
                f"settings: gpu.index is {index}, but torch sees no such CUDA device; see: swapscribe doctor"
            )
        _no_expandable_segments()
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        torch.zeros(1, device=self.torch_device)  # makes the context
        about = torch.cuda.get_device_properties(index)
        self._total = about.total_memory
        self.name = f"{about.name} (cuda:{index})"
        self.note = ""
        self._stream = _cuda.Stream(self.torch_device)
        self._events: deque[torch.cuda.Event] = deque()
        self._pins = _Pins(run)
        self._pinned: list[tuple[int, int]] = []  # [start, end) of registered host memory, by address
        self._ring: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []
        self.limit(0)
        self._let_go()
        nvml = _Nvml(str(getattr(about, "uuid", "")))
        self.driver = nvml.driver
        own = nvml.used_by_me()
        self.residue_bytes = CONTEXT_BYTES if own is None else max(0, own - self.held_bytes)
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    @property
    def held_bytes(self) -> int:
        return torch.cuda.memory_reserved(self.torch_device)

    @property
    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved(self.torch_device)

    def limit(self, lease_bytes: int) -> None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, lease_bytes / self._total), self.torch_device)

    def allocate(self, nbytes: int, block: torch.Tensor | None = None) -> torch.Tensor:
        with _translated(), torch.inference_mode(False):
            if block is None:
                block = torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)
            else:
                block.untyped_storage().resize_(nbytes)  # as FSDP does it: views stay what they are
        # A step may have had this memory, or torch may fill it: copies begin when the current stream is done with it.
        self._stream.wait_stream(torch.cuda.current_stream(self.torch_device))
        return block

    def release(self, block: torch.Tensor) -> None:
        block.untyped_storage().resize_(0)
        self._let_go()
        if self.held_bytes > CRUMBS:
            gc.collect()  # an exception with its frames, in a cycle?
            self._let_go()
        left = self.held_bytes
        if left > CRUMBS:
            raise StillHeld(f"{left // MIB} MiB stay on {self.name}: something still refers to them")
        self.note = f"{-(-left // MIB)} MiB of library caches stay on the device after an offload" if left else ""

    def _let_go(self) -> None:
        """Whatever torch keeps for later goes back to the driver."""
        torch.cuda.synchronize(self.torch_device)
        self._events.clear()
        for module, name in ((_cuda, "clear_cublas_workspaces"), (torch._C, "_cuda_clearCublasWorkspaces")):
            clear: Any = getattr(module, name, None)  # the first is the public one, of torch after 2.13
            if clear:
                clear()
                break
        torch.backends.cuda.cufft_plan_cache[self.torch_device.index].clear()
        torch.cuda.empty_cache()

    # -- host memory ------------------------------------------------------------------------------------------------

    def pin(self, host: torch.Tensor) -> None:
        start, end = host.data_ptr(), host.data_ptr() + host.numel()
        allowed = self._pins.take(end - start)
        at = start
        while at < min(end, start + allowed):
            size = min(PIN_CHUNK, end - at, start + allowed - at)
            if not _register(at, size):
                break
            self._pinned.append((at, at + size))
            at += size
        self._pins.give(allowed - (at - start))
        if at < end:
            why = f"{PIN_SHARE:.0%} of RAM are pinned" if allowed < end - start else "the driver refuses more"
            self.note = f"{(end - at) // MIB} MiB of weights are not pinned ({why}): reloads go through buffers"
            self._make_ring()

    def unpin(self, host: torch.Tensor) -> None:
        start, end = host.data_ptr(), host.data_ptr() + host.numel()
        for low, high in [p for p in self._pinned if start <= p[0] < end]:
            _cuda.cudart().cudaHostUnregister(low)
            self._pinned.remove((low, high))
            self._pins.give(high - low)

    def _make_ring(self) -> None:
        while len(self._ring) < 2:
            buffer = as_bytes(mapping(RING_BYTES), RING_BYTES)
            if not _register(buffer.data_ptr(), RING_BYTES):
                try:
                    buffer = torch.empty(RING_BYTES, dtype=torch.uint8, pin_memory=True)
                except RuntimeError:  # copies then wait for the driver's own buffers
                    self.note += ", and those cannot be pinned either"
            self._ring.append((buffer, None))

    # -- copies -----------------------------------------------------------------------------------------------------

    def copy_in(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        at, end = host.data_ptr(), host.data_ptr() + host.numel()
        base = at
        while at < end:  # a copy across two registrations, or out of one, is an error
            stop = min((high for low, high in self._pinned if low <= at < high), default=0)
            pinned = stop > at
            if not pinned:
                stop = min((low for low, _ in self._pinned if low > at), default=end)
            stop = min(stop, end, at + RING_BYTES)
            piece = host[at - base : stop - base]
            target = block[offset + at - base : offset + stop - base]
            if pinned:
                self._send(target, piece)
            else:
                self._send_by_ring(target, piece)
            at = stop

    def _send(self, target: torch.Tensor, piece: torch.Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._stream):
            target.copy_(piece, non_blocking=True)
            event: torch.cuda.Event = _cuda.Event()
            event.record(self._stream)
        self._events.append(event)
        while len(self._events) > IN_FLIGHT:
            self._events.popleft().synchronize()
        return event

    def _send_by_ring(self, target: torch.Tensor, piece: torch.Tensor) -> None:
        buffer, busy = self._ring.pop(0)
        if busy is not None:
            busy.synchronize()
        part = buffer[: len(piece)].copy_(piece)
        self._ring.append((buffer, self._send(target, part)))

    def copy_out(self, block: torch.Tensor, offset: int, host: torch.Tensor) -> None:
        host.copy_(block[offset : offset + host.numel()])

    def sync(self) -> None:
        self._stream.synchronize()
        self._events.clear()

    @contextlib.contextmanager
    def working(self, nbytes: int) -> Iterator[None]:
        with _translated():
            yield


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Every way in which CUDA says that there is no room, as OutOfMemory. The frames of the failed step are emptied:
    their tensors would keep the memory that is about to be given back.

    A library that finds no memory for its handle says NOT_INITIALIZED. It says the same where a kernel has broken the
    context, which is a crash: waiting for the device then fails too, with the true reason. And where it does not fit
    the driver, or is not whole: that is taken for a lack of memory. It is wrong, but nothing is lost by it: no audio is
    given up as poison, the worker tries ever more rarely, complains, and its log has the library's words.
    """
    trouble = ""
    try:
        yield
    except RuntimeError as e:
        if not (isinstance(e, torch.OutOfMemoryError) or NO_ROOM.search(str(e))):
            raise
        if "NOT_INITIALIZED" in str(e):
            torch.cuda.synchronize()
        trouble = str(e).partition("\n")[0]
        traceback.clear_frames(e.__traceback__)
    if trouble:
        raise OutOfMemory(trouble)


def _register(address: int, nbytes: int) -> bool:
    if int(_cuda.cudart().cudaHostRegister(address, nbytes, 1)) == 0:  # 1: portable
        return True
    with contextlib.suppress(RuntimeError):  # else the refusal is reported by whatever kernel is started next
        _cuda._sleep(1)
    return False


def _no_expandable_segments() -> None:
    """They have given nothing back in this use: switched off if the environment switches them on."""
    wanted = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    if "expandable_segments:True" not in wanted:
        return
    change: Any = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (change or _cuda.memory._set_allocator_settings)("expandable_segments:False")


class _Pins:
    """How much RAM the workers have pinned: RUN/pinned.PID says it, for as long as its owner holds a lock on it."""

    def __init__(self, run: Path) -> None:
        self._run, self._mine = run, 0
        self._fd = os.open(run / f"pinned.{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def take(self, nbytes: int) -> int:
        """How many of them may be pinned; they count from now on."""
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with (self._run / "pinned.lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            free = int(total * PIN_SHARE) - self._mine - self._others()
            allowed = max(0, min(nbytes, free)) // MIB * MIB if free < nbytes else nbytes
            self._say(self._mine + allowed)
        return allowed

    def give(self, nbytes: int) -> None:
        self._say(self._mine - nbytes)

    def _say(self, nbytes: int) -> None:
        self._mine = nbytes
        os.pwrite(self._fd, f"{nbytes:20d}".encode(), 0)

    def _others(self) -> int:
        total = 0
        for path in self._run.glob("pinned.*[0-9]"):
            if path.name == f"pinned.{os.getpid()}":
                continue
            with contextlib.suppress(FileNotFoundError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    path.unlink()  # its owner is dead
                except BlockingIOError:
                    total += int(file.read() or 0)
        return total


class _Nvml:
    """What the driver says of this process, where there is NVML and it says it (not in WSL, not in every container)."""

    def __init__(self, uuid: str) -> None:
        self.driver, self._nvml, self._handle = "", None, None
        with contextlib.suppress(Exception):  # any failure of NVML means only that we are not told
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self.driver = str(nvml.nvmlSystemGetDriverVersion())
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._nvml = nvml

    def used_by_me(self) -> int | None:
        """Bytes of device memory; None: not told."""
        nvml: Any = self._nvml
        for _ in range(10):  # it learns of a new process a little later
            with contextlib.suppress(Exception):
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                    if process.pid == os.getpid() and process.usedGpuMemory:
                        return int(process.usedGpuMemory)
            if nvml is None:
                return None
            time.sleep(0.02)
        return None
