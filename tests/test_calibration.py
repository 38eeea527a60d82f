"""The file of measured figures: two writers, damage, keys."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from workers.calibration import Calibration, Calibrations, key

pytestmark = pytest.mark.pure
ONE = Calibration(
    weights_bytes=10, working_bytes=3, reload_s=0.5, reload_gb_s=2.0, offload_s=0.01, step_s=1.0, residue_bytes=4
)


def test_a_figure_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "calibration.json"
    assert Calibrations(path).get("a") is None
    Calibrations(path).put("a", ONE)
    assert Calibrations(path).get("a") == ONE and Calibrations(path).get("b") is None


def test_writers_do_not_lose_each_others_entries(tmp_path: Path) -> None:
    def write(worker: int) -> None:
        for i in range(20):
            Calibrations(tmp_path / "c.json").put(f"{worker}.{i}", ONE)

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(Calibrations(tmp_path / "c.json").get(f"{w}.{i}") == ONE for w in range(4) for i in range(20))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"a": {"weights_bytes": "many"}}', b"[]"])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(damage)
    known = Calibrations(path)
    with caplog.at_level(logging.WARNING, logger="swapscribe.calibration"):
        assert known.get("a") is None and known.get("a") is None
    assert len(caplog.records) == 1
    known.put("a", ONE)
    assert Calibrations(path).get("a") == ONE


def test_keys_tell_everything_apart() -> None:
    base = {"worker": "w", "device": "d", "driver": "1", "torch": "2"}
    assert len({key(**base), *(key(**base | {k: "x"}) for k in base)}) == len(base) + 1
