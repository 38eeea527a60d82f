"""A stand-in for nvidia-ml-py: two cards whose figures are made up. $STANDIN_NVML names a folder with its faults.

Files there: `hang` (the next call does not return), `error` (it raises), `nofigures` (processes without figures),
`noprocesses` (it refuses to tell of processes).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

FAULTS = Path(os.environ["STANDIN_NVML"])
GIB = 2**30
UUIDS = ["GPU-aaaa", "GPU-abbb"]


class NVMLError(Exception):
    pass


def nvmlInit() -> None:
    if (FAULTS / "nodriver").exists():
        raise NVMLError("Driver Not Loaded")


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetCount() -> int:
    return len(UUIDS)


def nvmlDeviceGetUUID(handle: int) -> str:
    return UUIDS[handle]


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    """Whole ones only, as NVML has it."""
    if uuid not in UUIDS:
        raise NVMLError("Not Found")
    return UUIDS.index(uuid)


def nvmlDeviceGetName(handle: int) -> str:
    return f"Stand-in {handle}"


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    while (FAULTS / "hang").exists():
        time.sleep(0.05)
    if (FAULTS / "error").exists():
        raise NVMLError("GPU is lost")
    return SimpleNamespace(total=16 * GIB, used=3 * GIB)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    if (FAULTS / "noprocesses").exists():
        raise NVMLError("Not Supported")
    size = None if (FAULTS / "nofigures").exists() else 2 * GIB
    return [SimpleNamespace(pid=4711, usedGpuMemory=size)]


def nvmlDeviceGetGraphicsRunningProcesses(handle: int) -> list[SimpleNamespace]:
    raise NVMLError("Not Supported")
