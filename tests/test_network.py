"""Sound over the network, with real sockets: broken connections, lost packets, names nobody knows, passwords."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import backlog
from common.settings import Settings, Source
from tests.capture_helpers import RATE, Bells, Capturing
from tests.conftest import Processes, Started, wait_for
from tests.stations import PACKET, StandInCamera, StandInRadio, Station

pytestmark = pytest.mark.processes


@pytest.fixture
def capturing(processes: Processes, settings: Settings) -> Capturing:
    return Capturing(processes, settings)


@pytest.fixture
def stations() -> Iterator[list[Station]]:
    made: list[Station] = []
    yield made
    for station in made:
        station.close()


def assert_on_the_clock(stream: Path, tolerance_s: float) -> None:
    """Every piece between holes is a run of the station's samples, each at the place where the clock puts it."""
    reader, at, first, end = backlog.Reader(stream), 0, None, backlog.head(stream)
    while at < end:
        chunk = reader.read(at, 1 << 20)
        assert chunk.end > at
        if chunk.pcm:
            values = memoryview(chunk.pcm).cast("H")
            assert all((b - a) % 65536 == 1 for a, b in itertools.pairwise(values)), "a sample is missing"
            off = values[0] - at if first is None else (values[0] - at - first + 32768) % 65536 - 32768
            first = off if first is None else first
            assert first == off or abs(off) < tolerance_s * RATE, f"at {at} it is off by {off / RATE:.3f} s"
        at = chunk.end


def broken_and_back(capturing: Capturing, station: Station, url: str) -> list[backlog.Hole]:
    """Capture, break the connection for 2 s in which nobody answers, capture again; the holes."""
    capturing.configure(Source(name="u", kind="file", path=url))
    process, bells = capturing.start("u"), Bells(capturing.settings, "u")
    bells.until(lambda b: b.end > RATE, 30)
    station.broken.set()
    gone = bells.until(lambda b: b.state == "reconnecting", 30)
    assert "127.0.0.1" in gone.detail and "s3cret" not in gone.detail and "t0ken" not in gone.detail, (
        "the feed shows it"
    )
    back_at = time.monotonic() + 2.0
    wait_for(lambda: time.monotonic() > back_at, what="the time it shall be away")
    station.broken.clear()
    bells.until(lambda b: b.state == "ok" and b.end > gone.end + 3 * RATE, 40)
    bells.close()
    assert process.stop() == 0
    stream = capturing.stream()
    assert capturing.meta(stream).end_reason == "stopped"
    assert station.connections == 2
    assert_on_the_clock(stream, 0.4)
    assert_no_secret(capturing, process)
    return backlog.holes(stream)


def assert_no_secret(capturing: Capturing, *processes: Started) -> None:
    """Neither what was printed nor anything on the disk knows the password; settings files do."""
    texts = [p.output() for p in processes]
    texts += [p.read_text(errors="replace") for p in capturing.settings.data.rglob("*") if p.is_file()]
    assert not any(secret in text for text in texts for secret in ("s3cret", "t0ken"))


def test_a_radio_that_breaks_and_returns_leaves_a_hole_of_the_right_length(
    capturing: Capturing, stations: list[Station]
) -> None:
    stations.append(radio := StandInRadio(time.monotonic()))
    (hole,) = broken_and_back(capturing, radio, f"http://me:s3cret@127.0.0.1:{radio.port}/live?key=t0ken")
    assert hole.reason == "connection lost" and hole.end - hole.start > 2 * RATE
    assert "key=t0ken" in radio.asked[0], "the station was asked with it"


def test_a_camera_that_breaks_and_returns(capturing: Capturing, stations: list[Station]) -> None:
    stations.append(camera := StandInCamera(time.monotonic()))
    (hole,) = broken_and_back(capturing, camera, f"rtsp://me:s3cret@127.0.0.1:{camera.port}/live")
    assert hole.reason == "connection lost" and hole.end - hole.start > 2 * RATE
    assert any("Authorization: Basic" in head for head in camera.asked)


def test_packets_that_never_arrive_are_a_hole(capturing: Capturing, stations: list[Station]) -> None:
    stations.append(camera := StandInCamera(time.monotonic()))
    capturing.configure(Source(name="u", kind="file", path=f"rtsp://me:s3cret@127.0.0.1:{camera.port}/live"))
    process, bells = capturing.start("u"), Bells(capturing.settings, "u")
    heard = bells.until(lambda b: b.end > 2 * RATE, 30)
    first = int((time.monotonic() - camera.born) * RATE) // PACKET + 25
    camera.drop = set(range(first, first + 40))  # 0.8 s
    bells.until(lambda b: b.end > heard.end + 3 * RATE, 30)
    bells.close()
    assert process.stop() == 0
    stream = capturing.stream()
    (hole,) = backlog.holes(stream)
    assert hole.reason == "lost on the way" and abs(hole.end - hole.start - 40 * PACKET) < 0.15 * RATE
    assert_on_the_clock(stream, 0.3)


def test_garbage_among_the_packets_does_not_end_the_stream(capturing: Capturing, stations: list[Station]) -> None:
    stations.append(camera := StandInCamera(time.monotonic()))
    capturing.configure(Source(name="u", kind="file", path=f"rtsp://me:s3cret@127.0.0.1:{camera.port}/live"))
    process, bells = capturing.start("u"), Bells(capturing.settings, "u")
    heard = bells.until(lambda b: b.end > 2 * RATE, 30)
    camera.garbage = True
    bells.until(lambda b: b.state == "ok" and b.end > heard.end + 3 * RATE, 40)
    bells.close()
    assert process.stop() == 0
    last = backlog.Reader(capturing.stream()).read(backlog.head(capturing.stream()) - RATE, RATE).pcm
    values = memoryview(last).cast("H")
    assert all((b - a) % 65536 == 1 for a, b in itertools.pairwise(values)), "its sound is whole again"
    assert_no_secret(capturing, process)


def test_a_camera_with_mu_law(capturing: Capturing, stations: list[Station]) -> None:
    stations.append(camera := StandInCamera(time.monotonic()))
    camera.codec = "PCMU"
    capturing.configure(Source(name="u", kind="file", path=f"rtsp://me:s3cret@127.0.0.1:{camera.port}/live"))
    process, bells = capturing.start("u"), Bells(capturing.settings, "u")
    bells.until(lambda b: b.end > 2 * RATE, 30)
    bells.close()
    assert process.stop() == 0
    stream = capturing.stream()
    assert backlog.holes(stream) == [] and any(backlog.Reader(stream).read(0, RATE).pcm)


def test_a_wrong_password_and_garbage_are_one_line(capturing: Capturing, stations: list[Station]) -> None:
    class Garbage(Station):
        def serve(self, peer: socket.socket) -> None:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(range(256)) * 400)

    stations += [camera := StandInCamera(time.monotonic()), garbage := Garbage(time.monotonic())]
    rows = {
        f"rtsp://me:t0ken@127.0.0.1:{camera.port}/live": "401",
        f"http://me:s3cret@127.0.0.1:{garbage.port}/x": "closed the connection, or sends nothing that is known",
        "http://me:s3cret@nobody.invalid/a?k=t0ken": "the name 'nobody.invalid' cannot be resolved",
        "rtsp://me:s3cret@nobody.invalid/a": "the name 'nobody.invalid' cannot be resolved",
        "nonsense://me:s3cret@h/": "nonsense://h/: Protocol not found",
    }
    for url, says in rows.items():
        capturing.configure(Source(name="u", kind="file", path=url))
        process = capturing.start("u")
        assert process.wait(120) == 2
        (line,) = (x for x in process.output().splitlines() if not x.startswith("{"))
        assert line.startswith("swapscribe: ") and says in line, line
        assert_no_secret(capturing, process)


def test_a_fifo_waits_for_its_next_writer(capturing: Capturing, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    source = Source(name="p", kind="pcm", path=str(folder / "fifo"), format="s16be", rate_hz=16_000)
    capturing.configure(source)
    process, bells = capturing.start("p"), Bells(capturing.settings, "p")
    for turn in (1, 2):
        with (folder / "fifo").open("wb") as pipe:
            pipe.write(b"\x01\x02" * RATE)
        bells.until(lambda b, n=turn: b.end >= n * RATE and b.state == "reconnecting")
    bells.close()
    assert process.stop() == 0
    stream = capturing.stream()
    (hole,) = backlog.holes(stream)
    assert (hole.start, hole.reason) == (RATE, "nobody wrote to the FIFO")
    assert backlog.Reader(stream).read(0, RATE).pcm == b"\x02\x01" * RATE
    assert backlog.Reader(stream).read(hole.end, 2 * RATE).pcm == b"\x02\x01" * RATE


def test_raw_pcm_in_a_file_is_a_batch_of_its_form(capturing: Capturing, folder: Path) -> None:
    (folder / "a.raw").write_bytes(bytes([0x80, 0xFF]) * RATE)
    streams = []
    for form in ("u8", "mulaw"):
        path = str(folder / "a.raw")
        capturing.configure(Source(name="p", kind="pcm", path=path, format=form, channels=2, pace="max"))
        assert capturing.start("p").wait() == 0
        streams = capturing.streams("p")
    assert len(streams) == 2, "the same bytes in another form are another sound"
    assert [backlog.head(s) for s in streams] == [RATE, RATE]
    assert {capturing.meta(s).lane for s in streams} == {"batch"}
