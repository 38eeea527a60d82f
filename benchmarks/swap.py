"""What a swap costs: reload and offload of real models beside raw copies and `model.to()`-style moves, interleaved.

`python benchmarks/swap.py [--rounds 30] [--json]`: Whisper tiny.en, segmentation-3.0, CAM++ and SmolLM2 (where stored),
and a model of 1.2 GB with random weights, on CUDA where there is a card, else on the simulated one.
`--models whisper-tiny.en,campplus` picks some.

`python benchmarks/swap.py --true-size`: the models of the mission at their true size with random weights, on CUDA. For
that a bare GPU machine needs this tree and `pip install "torch>=2.11" transformers`, nothing else: no set-up, no model
files. On the simulator `--true-size --scale 0.02` runs the same code at a fiftieth of the layers and vocabulary; its
figures say nothing.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from figures import Figure, show  # noqa: E402
from torch import nn  # noqa: E402

from workers._torch import torchaudio_beside_cpu_torch  # noqa: E402
from workers.arena import as_bytes  # noqa: E402
from workers.residency import Device, Residency, copies  # noqa: E402

GB = 1e9
# On the simulator nothing waits for anything: seconds of CPU are what it takes on a machine with nothing else to do.
clock = time.perf_counter if torch.cuda.is_available() else time.thread_time
SPARE = 512 * 2**20
Once = Callable[[], tuple[float, float]]


class Raw:
    """The same bytes moved by nothing but one allocation and one copy: what no swap can beat.

    What the device's books ask for is in it on both: those of the allocator on CUDA, the granules' locks on the
    simulated card. `unmaps` are the seconds without them, on the latter.
    """

    def __init__(self, device: Device, host: torch.Tensor) -> None:
        self.device, self.host = device, host
        self.cuda = device.torch_device.type == "cuda"
        self.unmaps: list[float] = []

    def once(self) -> tuple[float, float]:
        """Seconds in, seconds out."""
        began = clock()
        if self.cuda:
            block = torch.empty(len(self.host), dtype=torch.uint8, device=self.device.torch_device)
            block.copy_(self.host, non_blocking=True)  # pinned, as the arena is
            torch.cuda.synchronize()
            there = clock()
            del block
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        else:
            from workers.simulated import SimulatedDevice, vram

            assert isinstance(self.device, SimulatedDevice)
            runs = self.device._card.take(len(self.host))
            memory = vram(len(self.host))
            target = as_bytes(memory, len(self.host)).data_ptr()
            for start, end in copies(len(self.host)):  # one memcpy of all is slower
                ctypes.memmove(target + start, self.host.data_ptr() + start, end - start)
            there = clock()
            del memory
            self.unmaps.append(clock() - there)
            self.device._card.give(runs)
        return there - began, clock() - there


class Naive:
    """What `model.to(device)` and `model.to("cpu")` do: each tensor copied into memory of its own, and back."""

    def __init__(self, device: Device, model: nn.Module) -> None:
        self.device, self.model = device, model

    def once(self) -> tuple[float, float]:
        seconds = []
        for target in (self.device.torch_device, torch.device("cpu")):
            began = clock()
            if self.device.torch_device.type == "cuda":
                self.model.to(target)
                torch.cuda.synchronize()
                if target.type == "cpu":
                    torch.cuda.empty_cache()
            else:  # .to("cpu") would do nothing
                self.model._apply(lambda t: t if t.is_sparse else t.clone())
            seconds.append(clock() - began)
        return seconds[0], seconds[1]


def measure(name: str, device: Device, model: nn.Module, rounds: int) -> list[Figure]:
    """Ours beside raw copies, then beside what `.to()` does."""
    naive_model = copy.deepcopy(model)
    residency = Residency(device, [model])
    device.limit(2 * residency.arena_bytes + SPARE)
    raw, naive = Raw(device, residency._arena.host), Naive(device, naive_model)
    seconds: dict[str, tuple[list[float], list[float]]] = {
        k: ([], []) for k in ("ours", "raw", "ours beside naive", "naive")
    }
    copied = 0

    returns: list[float] = []

    def ours() -> tuple[float, float]:
        """An offload is over when the memory is free: the proof goes out then, and the next one can have it."""
        nonlocal copied
        began = clock()
        residency.reload()
        there, freed = clock(), list[float]()
        copied += residency.offload(lambda: freed.append(clock())).copied_bytes
        returns.append(clock() - there)
        return there - began, freed[-1] - there

    def turns(first: tuple[str, Once], second: tuple[str, Once]) -> None:
        """Each goes first in turn: memory that the other has just freed is easier to get. Three turns to warm up."""
        for turn in range(-3, rounds):
            for way, once in (first, second) if turn % 2 else (second, first):
                in_s, out_s = once()
                if turn >= 0:
                    seconds[way][0].append(in_s)
                    seconds[way][1].append(out_s)

    turns(("ours", ours), ("raw", raw.once))
    turns(("ours beside naive", ours), ("naive", naive.once))
    device.limit(0)
    size, unique = residency.arena_bytes, residency.weights_bytes
    (in_s, out_s), (raw_in, raw_out), (beside_in, beside_out), (to_in, to_out) = (
        tuple(statistics.median(s) for s in way) for way in seconds.values()
    )
    figures = [
        Figure.against(f"{name}: arena, beside its {unique / 1e6:.0f} MB of storage (<= 1.02)", size, "bytes", unique),
        Figure.against(f"{name}: reload, beside one raw copy (>= 0.9)", size / in_s / GB, "GB/s", size / raw_in / GB),
        Figure.against(
            f"{name}: offload until the memory is free, beside raw freeing (<= 1.3)", out_s * 1e3, "ms", raw_out * 1e3
        ),
        *(
            [Figure.against(f"{name}: the same, beside unmapping alone", out_s * 1e3, "ms", unmap_s * 1e3)]
            if (unmap_s := statistics.median(raw.unmaps[3:] or [0.0]))
            else []
        ),
        Figure(f"{name}: the same, until it returns", statistics.median(returns) * 1e3, "ms"),
        Figure(f"{name}: bytes copied back in {2 * rounds + 6} offloads (0)", copied, "bytes"),
        Figure.against(f"{name}: reload, beside model.to(device)", beside_in * 1e3, "ms", to_in * 1e3),
        Figure.against(f"{name}: offload, beside model.to(host)", beside_out * 1e3, "ms", to_out * 1e3),
    ]
    residency.close()
    return figures


def open_here(folder: Path) -> Device:
    """CUDA where there is a card, else the simulated one with room for all."""
    if torch.cuda.is_available():
        from types import SimpleNamespace

        from workers.cuda import CudaDevice

        bare: Any = SimpleNamespace(gpu=SimpleNamespace(index=0))  # settings need msgspec, which may not be here
        return CudaDevice(bare, folder)
    from common.settings import load
    from workers.residency import open_device

    return open_device(load(None, ("gpu.device=simulated",), {}), folder, "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", default="", help="comma-separated; default: all that are here")
    parser.add_argument("--true-size", action="store_true", help="the mission's models at true size (needs CUDA)")
    parser.add_argument("--scale", type=float, default=1.0, help="with --true-size: share of layers and vocabulary")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    if args.true_size and args.scale == 1.0 and not torch.cuda.is_available():
        sys.exit("benchmarks/swap.py --true-size needs a CUDA device; to check its code path: --true-size --scale 0.02")
    with tempfile.TemporaryDirectory(prefix="swap-") as tmp:
        device = open_here(Path(tmp))
        if args.true_size:
            import true_size

            figures = true_size.run(device, args.scale, args.rounds)
        else:
            from true_models import qwen

            from tests.torch_models import FAMILIES

            here: dict[str, Callable[[], nn.Module]] = {n: (lambda f=f: f().model) for n, f in FAMILIES.items()}
            torchaudio_beside_cpu_torch()
            here["random-1.2-gb"] = lambda: qwen(896, 4864, 24, 14, 2, 151_936, True)(0.6)
            chosen = args.models.split(",") if args.models else list(here)
            unknown = [name for name in chosen if name not in here]
            if unknown:
                sys.exit(f"benchmarks/swap.py: no model {unknown[0]!r} here (there are: {', '.join(here)})")
            figures = []
            for name in chosen:
                figures += measure(name, device, here[name](), args.rounds)
    if not args.json:
        print(f"device: {device.name}  driver: {device.driver or 'none'}  torch {torch.__version__}")
        if args.scale != 1.0:
            print(f"scale {args.scale}: shows that the code runs; the figures say nothing")
    show(figures, args.json)


if __name__ == "__main__":
    main()
