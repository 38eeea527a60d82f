"""Parameters out of torch's own files: read with weights_only, so that nothing of a stranger's is run.

pyannote's checkpoints name a few classes of its package beside the parameters. Each gets a stand-in that keeps nothing,
so the package need not be installed, and no other class is let through.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import torch

from workers.binary import BadFile

NAMED = (
    "pyannote.audio.core.task.Problem",
    "pyannote.audio.core.task.Resolution",
    "pyannote.audio.core.task.Specifications",
    "torch.torch_version.TorchVersion",
)


class Nothing:
    """Stands where a checkpoint has an object that we do not read."""

    def __new__(cls, *args: object) -> Nothing:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def tensors(file: Path | IO[bytes]) -> dict[str, torch.Tensor]:
    """Parameters by name. Raises BadFile, or OSError."""
    names: list[Any] = [(type(name.rpartition(".")[2], (Nothing,), {}), name) for name in NAMED]
    try:
        with torch.serialization.safe_globals(names):
            told = torch.load(file, map_location="cpu", weights_only=True)
        told = told.get("state_dict", told)
        return {str(name): value.contiguous() for name, value in told.items() if isinstance(value, torch.Tensor)}
    except (OSError, MemoryError):
        raise
    except Exception as e:  # torch's reader falls over a damaged file in any way there is
        raise BadFile(f"not a checkpoint of torch that can be trusted ({_why(e)})") from None


def _why(e: Exception) -> str:
    if not isinstance(e, (RuntimeError, pickle.UnpicklingError)):  # its words are about the reader, not the file
        return "damaged, cut short or empty"
    lines = str(e).rpartition("WeightsUnpickler error: ")[2].splitlines()  # before it stands advice to trust the file
    said = [line for line in lines if line and not line.startswith("Weights only load failed")]
    return (said or [type(e).__name__])[0][:120]
