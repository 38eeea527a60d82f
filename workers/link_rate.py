"""`python -m workers.link_rate [INDEX]`: GB/s from RAM to a CUDA device, as one line of JSON, for `doctor --measure`.

`pinned`: from pinned memory, what a reload can reach at best. `pageable`: from ordinary memory, what `model.to()` does.
`pin`: how fast memory is pinned, done once at a worker's start.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workers._torch import set_up

NBYTES = 512 * 2**20
TIMES = 5


def main(argv: list[str]) -> None:
    torch = set_up(1, Path.home() / ".cache" / "swapscribe")
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    torch.cuda.set_device(int(argv[0]) if argv else 0)
    target = torch.empty(NBYTES, dtype=torch.uint8, device="cuda")
    plain = torch.ones(NBYTES, dtype=torch.uint8)
    pinned = torch.ones(NBYTES, dtype=torch.uint8)
    runtime = torch.cuda.cudart()

    def rate(act: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        act()
        torch.cuda.synchronize()
        return NBYTES / 1e9 / (time.perf_counter() - began)

    def pin() -> None:
        if code := int(runtime.cudaHostRegister(pinned.data_ptr(), NBYTES, 0)):
            sys.exit(f"cudaHostRegister fails with {code}: memory cannot be pinned here")

    target.copy_(plain)  # the first copy also starts the context
    figures = {"pin": rate(pin)}
    figures["pinned"] = max(rate(lambda: target.copy_(pinned, non_blocking=True)) for _ in range(TIMES))
    figures["pageable"] = max(rate(lambda: target.copy_(plain)) for _ in range(TIMES))
    runtime.cudaHostUnregister(pinned.data_ptr())
    print(json.dumps({k: round(v, 2) for k, v in figures.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
