"""What a start-up round has measured, kept in DATA/calibration.json, so that the next start can skip it.

One entry for each combination that changes a figure: weights, device, driver, torch, and the settings that shape a
step. Several workers write the file: each write is read, change, write and rename under a lock. A damaged file counts
as an empty one, said once; the next round writes it anew.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from common.backlog import replace_file
from common.messages import UNDECODABLE

log = logging.getLogger("swapscribe.calibration")


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device, as measured."""

    weights_bytes: int
    working_bytes: int  # peak of a step, less the weights
    reload_s: float
    reload_gb_s: float  # 10^9 bytes a second
    offload_s: float
    step_s: float  # the longest step of the round
    residue_bytes: int = 0  # of the process (a CUDA context)


def key(*, worker: str, device: str, driver: str, torch: str) -> str:
    """Name of an entry. `worker`: its weights and the settings that shape a step, as `Worker.key` tells them."""
    return f"{worker} · {device} · {driver} · torch {torch}"


class Calibrations:
    """The file. Anything wrong with it is as if it were empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = False

    def get(self, key: str) -> Calibration | None:
        return self._read().get(key)

    def put(self, key: str, calibration: Calibration) -> None:
        with self._turn():
            entries = self._read() | {key: calibration}
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(entries), indent=1), durable=False)

    def _read(self) -> dict[str, Calibration]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Calibration])
        except FileNotFoundError:
            return {}
        except (OSError, *UNDECODABLE) as e:
            if not self._said:
                self._said = True
                log.warning("%s cannot be read (%s): everything is measured again", self._path, e)
            return {}

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
