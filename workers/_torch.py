"""The way torch is set up in every model worker; imported before torch and any model library.

`torchaudio_beside_cpu_torch` comes before transformers and pyannote, which import torchaudio where it is installed.

Threads come from settings (two workers fighting over two cores are slower than turns), telemetry is off, compiled
kernels are cached so that a restart does not compile again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workers.alignment import dtw


def set_up(threads: int, cache: Path) -> Any:
    """Import torch with `threads` intra-op threads and deterministic kernels; returns the module."""
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[key] = str(threads)
    # oneDNN and torch's layer over it each keep up to 1,024 compiled kernels, one for each shape ever seen: minutes,
    # whose texts are never of the same length, grew by 2 MiB each. 16 cost no time that could be measured.
    for key in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(key, "16")
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache / "numba"))
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts: the card that we use is the one that is measured
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # can be set once
        torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    # What torch.use_deterministic_algorithms does; that would also import the compiler: 145 MiB, and seconds.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    # That would fill what torch.empty gives: 0.7 s for 512 MiB of RAM, and on a card a kernel beside a reload's copies.
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    return torch


def whisper_without_compiler() -> Any:
    """Import openai-whisper; returns the package. Its one compiled loop is ours (`alignment`).

    It imports numba for that loop alone, which stays in memory and takes long to start: it gets a stand-in that leaves
    functions as they are, and that is gone afterwards. Where numba is imported already, there is nothing to save.
    """
    stand_in = types.ModuleType("numba")
    vars(stand_in)["jit"] = lambda **_: lambda function: function
    ours = sys.modules.setdefault("numba", stand_in) is stand_in
    try:
        import whisper
        import whisper.timing
    finally:
        if ours:
            del sys.modules["numba"]
    whisper.timing.dtw_cpu = dtw
    return whisper


@contextlib.contextmanager
def unfilled(torch: Any) -> Iterator[None]:
    """Modules made in here get no random weights: drawing them takes longer than reading the right ones from a file."""
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.Embedding)
    own = [kind.reset_parameters for kind in kinds]
    try:
        for kind in kinds:
            kind.reset_parameters = lambda self: None
        yield
    finally:
        for kind, reset in zip(kinds, own, strict=True):
            kind.reset_parameters = reset


def torchaudio_beside_cpu_torch() -> None:
    """Let torchaudio be imported where its wheel was built for CUDA and torch was not; else this does nothing.

    Its compiled part then cannot be loaded (OSError). All that we and our libraries use of it is Python.
    """
    with contextlib.suppress(ImportError):
        try:
            import torchaudio
        except OSError:
            for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
                del sys.modules[name]
            sys.modules["torchaudio._extension"] = _without_extension()
            import torchaudio  # noqa: F401


def _without_extension() -> types.ModuleType:
    """What torchaudio/_extension/__init__.py is when it finds no compiled part."""
    module = types.ModuleType("torchaudio._extension")

    def fail(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f"{function.__name__} needs the compiled part of torchaudio, which does not fit this torch"
            )

        return refuse

    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=fail,
    )
    return module
