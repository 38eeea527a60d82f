"""`python -m common.nvml [INDEX]`: what the NVIDIA driver says about one device, as one line of JSON.

A process of its own with a time-out (`read`): a driver in trouble blocks whoever asks it, and nothing here may block.
Figures that the driver does not give (containers, WSL) are left out. Needs the package nvidia-ml-py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

TIMEOUT_S = 5.0
MIB = 2**20


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One CUDA device. 0 or empty: not told."""

    name: str = ""
    driver: str = ""
    total_mib: int = 0
    free_mib: int = 0
    pcie_now: tuple[int, int] = (0, 0)  # generation, lanes; an idle link is slower than it can be
    pcie_max: tuple[int, int] = (0, 0)
    by_pid: dict[int, int] | None = None  # MiB; None: the driver does not tell
    error: str = ""


def read(index: int = 0, timeout_s: float = TIMEOUT_S) -> Device:
    """Ask in a process of its own; `error` says why there is no answer."""
    argv = [sys.executable, "-m", "common.nvml", str(index)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, cwd=Path(__file__).parent.parent, check=False
        )
        return msgspec.json.decode(done.stdout, type=Device)
    except subprocess.TimeoutExpired:
        return Device(error=f"the driver does not answer within {timeout_s:.0f} s")
    except msgspec.MsgspecError:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Device(error=lines[-1][:200])


def handle(nv: Any, index: int) -> Any:
    """CUDA device `index` as NVML knows it. Both count by bus (`workers._torch` sees to that), but CUDA only what
    CUDA_VISIBLE_DEVICES lets it see: numbers of cards, or their UUIDs as far as these tell them apart."""
    chosen = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    one = chosen[index] if index < len(chosen) else str(index)
    if one.isdecimal():
        return nv.nvmlDeviceGetHandleByIndex(int(one))
    cards = [nv.nvmlDeviceGetHandleByIndex(i) for i in range(nv.nvmlDeviceGetCount())]
    found = [card for card in cards if str(nv.nvmlDeviceGetUUID(card)).startswith(one)]
    return found[0] if len(found) == 1 else nv.nvmlDeviceGetHandleByUUID(one)  # a part of a card (MIG), or an error


def _ask(index: int) -> dict[str, Any]:
    try:
        import pynvml as nv
    except ImportError:
        return {"error": "the package nvidia-ml-py is not installed"}
    out: dict[str, Any] = {}
    try:
        nv.nvmlInit()
        device = handle(nv, index)
        memory = nv.nvmlDeviceGetMemoryInfo(device)
        out = {"total_mib": memory.total // MIB, "free_mib": memory.free // MIB}
        out |= {"name": str(nv.nvmlDeviceGetName(device)), "driver": str(nv.nvmlSystemGetDriverVersion())}
    except nv.NVMLError as e:
        return out | {"error": f"NVML: {e}"}
    try:
        out["pcie_now"] = nv.nvmlDeviceGetCurrPcieLinkGeneration(device), nv.nvmlDeviceGetCurrPcieLinkWidth(device)
        out["pcie_max"] = nv.nvmlDeviceGetMaxPcieLinkGeneration(device), nv.nvmlDeviceGetMaxPcieLinkWidth(device)
    except nv.NVMLError:
        pass
    try:
        told = {p.pid: p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(device)}
        if None not in told.values():
            out["by_pid"] = {pid: used // MIB for pid, used in told.items()}
    except nv.NVMLError:
        pass
    return out


if __name__ == "__main__":
    print(json.dumps(_ask(int(sys.argv[1]) if sys.argv[1:] else 0)))
