"""capture and bad luck: unusable inputs, damaged and very long files, a full disk, retention."""

from __future__ import annotations

import os
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common import backlog
from common.settings import Settings, Source
from tests.capture_helpers import (
    RATE,
    Bells,
    Capturing,
    StandInFeed,
    assert_numbered,
    audio_of,
    encode,
    numbered,
    offline,
)
from tests.conftest import Processes, Started, wait_for
from tests.small_disk import Disk, on_a_small_disk, small_disk

pytestmark = pytest.mark.processes


@pytest.fixture
def capturing(processes: Processes, settings: Settings) -> Capturing:
    return Capturing(processes, settings)


def make(path: Path) -> None:
    """The unusable input that the name asks for."""
    if path.stem == "empty":
        path.touch()
    elif path.stem == "text":
        path.write_text("this is no sound at all\n" * 100)
    elif path.stem == "folder":
        path.mkdir()
    elif path.stem == "silent-film":
        encode_video_only(path)
    elif path.stem == "no-samples":
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))


def encode_video_only(path: Path) -> None:
    import av

    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=5, width=64, height=64, pix_fmt="yuv420p")
        for i in range(10):
            still = av.VideoFrame(64, 64, "yuv420p")
            still.pts = i
            out.mux(picture.encode(still))
        out.mux(picture.encode(None))


@pytest.mark.parametrize("pace", ["max", "realtime"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.wav", "No such file"),
        ("empty.wav", "the file is empty"),
        ("text.wav", "not an audio or video file"),
        ("folder.wav", "Is a directory"),
        ("silent-film.mkv", "no audio stream"),
        ("no-samples.wav", "nothing that can be decoded"),
    ],
)
def test_an_unusable_file_is_one_line(capturing: Capturing, folder: Path, name: str, says: str, pace: str) -> None:
    make(folder / name)
    capturing.configure(Source(name="f", kind="file", path=str(folder / name), pace=pace))
    assert_one_line(capturing.start("f"), says)
    assert capturing.streams() == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Source(name="x", kind="file", path="http://127.0.0.1:1/a.mp3"), "Connection refused"),
        (Source(name="x", kind="file", path="http://127.0.0.1:1/a.mp3", pace="max"), "download"),
        (
            Source(name="x", kind="file", path="http://me:secret@127.0.0.1:1/a"),
            "http://127.0.0.1:1/a: Connection refused",
        ),
        (
            Source(name="x", kind="file", path="http://me:secret@127.0.0.1:1/a", pace="max"),
            "download http://127.0.0.1:1/a",
        ),
        (Source(name="x", kind="stdin"), "stdin ended before any audio"),
        (Source(name="other", kind="stdin"), "no source named 'x'"),
    ],
)
def test_an_unusable_source_is_one_line(capturing: Capturing, source: Source, says: str) -> None:
    capturing.configure(source)
    assert_one_line(capturing.start("x"), says)


def test_a_name_that_is_a_path_is_refused(capturing: Capturing) -> None:
    process = capturing.start("../x")
    assert process.wait() == 2
    assert "is no name of a source" in process.output() and "Traceback" not in process.output()


def assert_one_line(process: Started, says: str) -> None:
    assert process.wait() == 2
    lines = [line for line in process.output().splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith("swapscribe: ") and says in lines[0], lines


@pytest.mark.parametrize(
    ("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.mkv", "libopus")]
)
def test_of_a_truncated_file_everything_that_is_there_is_captured(
    capturing: Capturing, folder: Path, name: str, codec: str
) -> None:
    encode(folder / name, codec, 48_000, 1, seconds=20)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    capturing.configure(Source(name="f", kind="file", path=str(folder / name), pace="max"))
    assert capturing.start("f").wait() == 0
    meta = capturing.meta(capturing.stream())
    assert meta.ended and meta.end_reason.startswith("truncated"), meta.end_reason
    assert 9 * RATE < meta.end < 11 * RATE and len(audio_of(capturing.stream())) == 2 * meta.end


def test_a_damaged_middle_does_not_stop_the_file(capturing: Capturing, folder: Path) -> None:
    encode(folder / "a.flac", "flac", 48_000, 1, seconds=20)
    data = bytearray((folder / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (folder / "a.flac").write_bytes(data)
    capturing.configure(Source(name="f", kind="file", path=str(folder / "a.flac"), pace="max"))
    assert capturing.start("f").wait() == 0
    assert capturing.meta(capturing.stream()).end > 19 * RATE


def test_three_hours_are_read_in_bounded_memory(capturing: Capturing, folder: Path) -> None:
    seconds = 3 * 3600
    size = seconds * RATE * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * 2, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
    (folder / "long.wav").write_bytes(head)
    os.truncate(folder / "long.wav", len(head) + size)  # silence, sparse on the disk
    capturing.configure(Source(name="f", kind="file", path=str(folder / "long.wav"), pace="max"))
    process, peak_kib = capturing.start("f"), [0]

    def ended() -> bool:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kib[0] = max(peak_kib[0], int(status.partition("VmHWM:")[2].split()[0]))
        except (OSError, IndexError):  # it has just gone
            pass
        return not process.alive

    wait_for(ended, timeout_s=120, what="the end of three hours")
    assert process.wait() == 0
    meta = capturing.meta(capturing.stream())
    assert (meta.end, meta.end_reason) == (seconds * RATE, "end of file")
    assert 20 * 1024 < peak_kib[0] < 150 * 1024, f"{peak_kib[0] / 1024:.0f} MiB"


@pytest.fixture
def disk(capturing: Capturing) -> Iterator[Disk]:
    """A small file system under the streams."""
    with small_disk(capturing.settings.streams, 6) as leave:
        yield leave
        for process in capturing.processes.started:
            process.close()


@on_a_small_disk
def test_a_live_source_on_a_full_disk(capturing: Capturing, disk: Disk) -> None:
    """RAM first, then the newest audio is lost and recorded; it goes on by itself."""
    disk(200)
    capturing.configure(Source(name="in", kind="stdin"), capture={"ram_s": 30, "file_s": 2})
    process, bells = capturing.start("in", pipe=True), Bells(capturing.settings, "in")
    pipe = process.popen.stdin
    assert pipe
    at = 0

    def feed(seconds: float) -> int:
        nonlocal at
        pipe.write(numbered(at, int(seconds * RATE)))
        pipe.flush()
        at += int(seconds * RATE)
        return at

    feed(10)
    first = bells.until(lambda b: b.state == "disk_full")
    assert 0 < first.end < 7 * RATE and first.lost_samples == 0 and "space" in first.detail
    feed(50)
    full = bells.until(lambda b: b.state == "disk_full" and b.lost_samples > 0 and b.ram_s > 27)
    assert capturing.meta(capturing.stream()).ended is False and backlog.holes(capturing.stream()) == []
    disk(4000)
    ok = bells.until(lambda b: b.state == "ok" and b.ram_s == 0)
    assert ok.lost_samples >= full.lost_samples and ok.end == at
    end = feed(5)
    bells.until(lambda b: b.end == end)
    assert process.stop() == 0
    bells.close()
    holes = assert_numbered(capturing.stream(), end)
    assert {h.reason for h in holes} == {"disk full"} and len(holes) == 1
    assert sum(h.end - h.start for h in holes) == ok.lost_samples == holes[0].end - holes[0].start
    assert holes[0].start >= first.end + 28 * RATE, "the ring held what it promised"
    assert "disk has space again" in process.output()


@on_a_small_disk
def test_a_file_on_a_full_disk_waits(capturing: Capturing, disk: Disk, folder: Path) -> None:
    encode(folder / "a.flac", "flac", 44_100, 2, seconds=100)
    disk(0)
    capturing.configure(Source(name="f", kind="file", path=str(folder / "a.flac"), pace="max"), capture={"ram_s": 30})
    process, bells = capturing.start("f"), Bells(capturing.settings, "f")
    bells.until(lambda b: b.state == "disk_full" and b.ram_s > 28)
    disk(600)  # not even its name fitted before; now a part of the audio does
    bells.until(lambda b: b.state == "disk_full" and b.end > 5 * RATE)
    disk(4000)
    bells.close()
    assert process.wait() == 0
    assert audio_of(capturing.stream()) == offline(folder / "a.flac")


@on_a_small_disk
def test_a_stop_with_a_full_disk_ends_and_says_what_is_lost(capturing: Capturing, disk: Disk) -> None:
    disk(100)
    capturing.configure(Source(name="in", kind="stdin"))
    process, bells = capturing.start("in", pipe=True), Bells(capturing.settings, "in")
    assert process.popen.stdin
    process.popen.stdin.write(numbered(0, 10 * RATE))
    process.popen.stdin.flush()
    bells.until(lambda b: b.state == "disk_full" and b.ram_s > 5)
    bells.close()
    assert process.stop() == 0
    assert "stopped with a full disk" in process.output()
    assert_numbered(capturing.stream(), backlog.head(capturing.stream()))


@pytest.fixture
def stand_in_feed(settings: Settings) -> Iterator[StandInFeed]:
    feed = StandInFeed(settings)
    yield feed
    feed.close()


@on_a_small_disk
def test_on_a_full_disk_read_audio_goes_first(capturing: Capturing, disk: Disk, stand_in_feed: StandInFeed) -> None:
    disk(300)
    stand_in_feed.read = lambda: {p.name: backlog.head(p) for p in capturing.streams()}
    capturing.configure(Source(name="in", kind="stdin"), capture={"file_s": 1})
    process, bells = capturing.start("in", pipe=True), Bells(capturing.settings, "in")
    pipe = process.popen.stdin
    assert pipe
    for at in range(0, 60 * RATE, 4 * RATE):  # 1.9 MB into 0.3
        pipe.write(numbered(at, 4 * RATE))
        pipe.flush()
        bells.until(lambda b, end=at + 4 * RATE: b.end == end)
    assert process.stop() == 0
    bells.close()
    stream = capturing.stream()
    assert backlog.head(stream) == 60 * RATE and backlog.holes(stream) == [], "nothing was lost"
    first = backlog.audio_files(stream)[0][0]
    assert first > 40 * RATE, "the oldest went"
    kept = backlog.Reader(stream).read(first, 1000)
    assert kept.pcm == numbered(first, 1000)
    assert '"disk_full": true' in process.output()


def test_retention_removes_read_files_and_keeps_meta(
    capturing: Capturing, folder: Path, stand_in_feed: StandInFeed
) -> None:
    encode(folder / "a.flac", "flac", 16_000, 1, seconds=10)
    capturing.configure(
        Source(name="f", kind="file", path=str(folder / "a.flac"), pace="max"),
        capture={"file_s": 1},
        retention={"read_audio_h": 1e-6},
    )
    assert capturing.start("f").wait() == 0
    ended = capturing.stream("f")
    assert len(backlog.audio_files(ended)) == 10
    stand_in_feed.garbage = True
    stand_in_feed.read = lambda: {ended.name: int(5.5 * RATE)}
    capturing.configure(Source(name="in", kind="stdin"))
    process = capturing.start("in", pipe=True)
    wait_for(lambda: len(backlog.audio_files(ended)) <= 5, what="the read files to go")
    assert [first // RATE for first, _ in backlog.audio_files(ended)] == [5, 6, 7, 8, 9]
    stand_in_feed.read = lambda: {ended.name: 10 * RATE}
    wait_for(lambda: not backlog.audio_files(ended), what="the rest to go")
    assert capturing.meta(ended).end == backlog.head(ended) == 10 * RATE
    assert process.alive and process.output().count("no beat") == 1, "garbage is dropped, and said once"


def test_where_no_capture_runs_a_sweeper_removes_read_files_of_ended_streams(
    capturing: Capturing, folder: Path, stand_in_feed: StandInFeed
) -> None:
    for name in ("a", "b"):
        encode(folder / f"{name}.flac", "flac", 16_000, 1, seconds=10 if name == "a" else 5)
        source = Source(name=name, kind="file", path=str(folder / f"{name}.flac"), pace="max")
        capturing.configure(source, capture={"file_s": 1}, retention={"read_audio_h": 1e-6})
        assert capturing.start(name).wait() == 0
    a, b = capturing.stream("a"), capturing.stream("b")
    still_open = msgspec.structs.replace(capturing.meta(b), ended=False)
    backlog.write_meta(b, still_open)
    stand_in_feed.garbage = True
    stand_in_feed.read = lambda: {a.name: int(5.5 * RATE), b.name: 5 * RATE}
    sweeper = capturing.processes.start("capture.sweeper", settings=capturing.settings)
    assert sweeper.wait() == 0
    assert [first // RATE for first, _ in backlog.audio_files(a)] == [5, 6, 7, 8, 9]
    assert len(backlog.audio_files(b)) == 5, "an open stream is its capture's"
    stand_in_feed.close()
    assert capturing.processes.start("capture.sweeper", settings=capturing.settings).wait() == 0
    assert len(backlog.audio_files(a)) == 5, "with no beat nothing goes"
