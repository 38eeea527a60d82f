"""DATA/calibration.json: what a full round of reload, largest step and offload measured, so that a start can skip it.

Valid for the same weights, device, driver, torch and settings that shape a step: all of them are in the key. Several
workers write it in turn (flock); a kill leaves the old file or the new one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from common.backlog import replace_file
from common.messages import UNDECODABLE


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's measurements."""

    weights_bytes: int
    working_bytes: int  # most that the device held beside the weights
    reload_s: float
    reload_gb_s: float
    offload_s: float
    step_s: float


def key(worker_key: str, device: Any, torch_version: str) -> str:
    """`device` is a Device of workers/device.py."""
    return " | ".join((worker_key, device.name, device.driver, torch_version))


class Calibrations:
    """See the module. `complain` is told once what is wrong with a file that cannot be read."""

    def __init__(self, path: Path, complain: Callable[[str], None] = lambda why: None) -> None:
        self._path, self._complain = path, complain

    def get(self, key: str) -> Calibration | None:
        return self._all().get(key)

    def put(self, key: str, found: Calibration) -> None:
        """Raises OSError, on a full disk for example: then the next start measures again."""
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            everything = self._all() | {key: found}
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(everything)), durable=False)

    def _all(self) -> dict[str, Calibration]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Calibration])
        except FileNotFoundError:
            return {}
        except (OSError, *UNDECODABLE) as e:
            self._complain(f"{self._path} is no use and is written anew: {e}")
            return {}
