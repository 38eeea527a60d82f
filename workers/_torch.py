"""The way torch is set up in every model worker; imported before torch and any model library.

Threads come from settings (two workers fighting over two cores are slower than turns), telemetry is off, compiled
kernels are cached so that a restart does not compile again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def set_up(threads: int, cache: Path) -> Any:
    """Import torch with `threads` intra-op threads and deterministic kernels; returns the module."""
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[key] = str(threads)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache / "numba"))
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch
