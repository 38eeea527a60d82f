"""The helper that asks the driver how much memory is used, and by whom: its call may hang, the arbiter may not.

In: a numbered question a line on stdin. Out: one line of JSON for each on stdout. No CUDA context, ever: NVML, or the
simulated card. Holds nothing; it dies with the arbiter, which starts another when this one hangs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from common.card import SimulatedCard
from common.nvml import handle as nvml_handle
from common.settings import GpuSettings, Settings

PR_SET_PDEATHSIG = 1
Figures = tuple[int, int, dict[int, int] | None]  # total, used, by pid


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the device says; `error` when it says nothing."""

    number: int
    device: str = ""
    total_bytes: int = 0
    used_bytes: int = 0
    by_pid: dict[int, int] | None = None  # None: the driver names no figures of processes
    error: str = ""


def simulated(run: Path, gpu: GpuSettings) -> tuple[str, Callable[[], Figures]]:
    card = SimulatedCard(run, Settings(gpu=gpu))
    return "simulated GPU", card.measure


def nvidia(gpu: GpuSettings) -> tuple[str, Callable[[], Figures]]:
    """Raises ImportError without the library, and whatever NVML raises without a driver."""
    import pynvml as nvml

    nvml.nvmlInit()
    handle = nvml_handle(nvml, gpu.index)
    name = nvml.nvmlDeviceGetName(handle)

    def measure() -> Figures:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.used), _by_pid(nvml, handle)

    return name.decode() if isinstance(name, bytes) else str(name), measure


def _by_pid(nvml: Any, handle: Any) -> dict[int, int] | None:
    try:
        found = [*nvml.nvmlDeviceGetComputeRunningProcesses(handle), *_graphics(nvml, handle)]
    except nvml.NVMLError:  # not supported (WSL): the totals are still worth having
        return None
    named = {p.pid: p.usedGpuMemory for p in found}
    return None if any(size is None for size in named.values()) else named


def _graphics(nvml: Any, handle: Any) -> list[Any]:
    try:
        return list(nvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
    except nvml.NVMLError:  # data-centre cards have no such processes
        return []


def main() -> None:
    kind, run, parent, gpu = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)
    settings = msgspec.json.decode(gpu, type=GpuSettings)
    device, measure, broken = kind, None, ""
    try:
        device, measure = nvidia(settings) if kind == "cuda" else simulated(run, settings)
    except ImportError:
        broken = "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    except Exception as e:  # whatever a driver has to complain of is the answer
        broken = f"{type(e).__name__}: {e}"
    for line in sys.stdin:
        number = int(line)
        try:
            if measure is None:
                raise RuntimeError(broken)
            total, used, by_pid = measure()
            answer = Answer(number=number, device=device, total_bytes=total, used_bytes=used, by_pid=by_pid)
        except Exception as e:
            answer = Answer(number=number, device=device, error=broken or f"{type(e).__name__}: {e}")
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()
        if broken:
            sys.exit(0)  # asked anew, by another process: a driver may come back


if __name__ == "__main__":
    main()
