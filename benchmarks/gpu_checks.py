"""Everything that awaits a CUDA card, in one command: `python benchmarks/gpu_checks.py FOLDER`.

The CUDA part of the tests, then `swap.py` on the card, then `swap.py --true-size`. Each leaves its output in FOLDER
(tests.txt, swap.jsonl, true_size.jsonl, device.txt), also when it failed; status 1 then. A bare machine needs this tree
and torch, transformers, pytest, msgspec and pyzmq.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("device.txt", ["nvidia-smi"]),
    ("tests.txt", [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/test_cuda.py"]),
    ("swap.jsonl", [sys.executable, "benchmarks/swap.py", "--json", "--models", "random-1.2-gb"]),
    ("true_size.jsonl", [sys.executable, "benchmarks/swap.py", "--json", "--true-size"]),
)


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print("gpu_checks: torch sees no CUDA device here; run it on a machine with an NVIDIA card", file=sys.stderr)
        return 2
    out, failed = Path(sys.argv[1]), []
    out.mkdir(parents=True, exist_ok=True)
    for name, argv in CHECKS:
        began = time.monotonic()
        with (out / name).open("w") as file, (out / f"{name}.err").open("w") as err:
            status = subprocess.run(argv, cwd=ROOT, stdout=file, stderr=err).returncode
        print(f"{name}: status {status} after {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if status else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
