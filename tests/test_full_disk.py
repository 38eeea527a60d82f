"""The whole system on a disk that fills up in mid-stream: nothing lost, everybody says so, all goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from common import messages as m
from common.settings import Settings
from tests.conftest import ROOT, Processes, wait_for
from tests.small_disk import Disk, on_a_small_disk, small_disk
from tests.system import Following, System, assert_whole, file_source, text

pytestmark = [pytest.mark.processes, pytest.mark.speech]
MIB = 100  # more than the 64 MiB below which the feed speaks of a nearly full disk


@pytest.fixture
def disk(settings: Settings, processes: Processes) -> Iterator[Disk]:
    with small_disk(settings.data, MIB) as leave:
        yield leave
        processes.close()


@on_a_small_disk
def test_a_full_disk_delays_a_file_and_loses_nothing(processes: Processes, settings: Settings, disk: Disk) -> None:
    recording = ROOT / "examples" / "recording.flac"
    system = System(processes, settings, file_source(recording, "1"))  # it has to outlast the filling
    system.start()
    for name in ("feed", "transcriber", "capture@talk"):
        system.up(name)
    following = Following(system.settings)
    following.wait("transcript", 60)
    disk(0)
    wait_for(lambda: following.last_beat and following.last_beat.trouble, 30, "the beat to speak of the disk")

    def full() -> m.Doorbell | None:
        bell = following.last_beat.captures.get("talk") if following.last_beat else None
        return bell if bell and bell.state == "disk_full" else None

    bell = wait_for(full, 30, "capture to say that the disk is full")
    assert bell and bell.lost_samples == 0
    assert "disk" in system("status").stdout
    disk(90 * 1024)
    end = system.ended(90)
    events = system.journal()
    assert_whole(events, end.stream)
    assert not [e for e in events if e.kind == "gap"]
    assert "ask what you can do" in text(events, end.stream).lower()
    wait_for(lambda: following.last_beat and not following.last_beat.trouble, 10, "the trouble to be over")
    following.wait_seq(events[-1].seq)
    assert following.state_hash(events[-1].seq) == system.state_hash(events[-1].seq).sha256
    assert msgspec.json.decode((settings.streams / end.stream / "meta.json").read_bytes())["ended"] is True
    system.stop()
