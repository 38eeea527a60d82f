"""capture as a real process: exact samples, kill -9 at random moments, holes of the right length, graceful ends."""

from __future__ import annotations

import contextlib
import http.server
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from common import backlog
from common.process import EXIT_NAME_TAKEN
from common.settings import Settings, Source
from tests.capture_helpers import (
    RATE,
    Bells,
    Capturing,
    RealTimePipe,
    assert_numbered,
    audio_of,
    encode,
    numbered,
    offline,
)
from tests.conftest import ROOT, Processes, wait_for
from tests.standin_pyaudio import switch

pytestmark = pytest.mark.processes


@pytest.fixture
def capturing(processes: Processes, settings: Settings) -> Capturing:
    return Capturing(processes, settings)


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels", "video"),
    [
        ("a.wav", "pcm_s16le", 44_100, 2, False),
        ("a.flac", "flac", 16_000, 1, False),
        ("a.m4a", "aac", 48_000, 2, False),
        ("a.mkv", "libopus", 48_000, 1, True),
        ("a.mp3", "libmp3lame", 22_050, 1, False),
    ],
)
def test_a_file_gives_exactly_what_pyav_and_soxr_give(
    capturing: Capturing, folder: Path, name: str, codec: str, rate_hz: int, channels: int, video: bool
) -> None:
    encode(folder / name, codec, rate_hz, channels, seconds=20, video=video)
    capturing.configure(Source(name="f", kind="file", path=str(folder / name), pace="max"), capture={"file_s": 3})
    assert capturing.start("f").wait() == 0
    want = offline(folder / name)
    stream = capturing.stream()
    assert len(want) > 19 * RATE * 2
    assert audio_of(stream) == want
    meta = capturing.meta(stream)
    assert (meta.lane, meta.ended, meta.end, meta.end_reason) == ("batch", True, len(want) // 2, "end of file")
    assert len(backlog.audio_files(stream)) == 7
    again = capturing.start("f")
    assert again.wait() == 0 and "already complete" in again.output()
    assert capturing.stream() == stream and capturing.meta(stream) == meta


def test_killed_ten_times_a_file_still_gives_the_same_samples(capturing: Capturing, folder: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    encode(folder / "a.flac", "flac", 44_100, 2, seconds=240)
    capturing.configure(Source(name="f", kind="file", path=str(folder / "a.flac"), pace="20"), capture={"file_s": 7})
    process, head = capturing.start("f"), 0
    for _ in range(10):
        stream = capturing.stream()
        goal = head + rng.randrange(1, 12 * RATE)
        wait_for(lambda s=stream, g=goal: backlog.head(s) >= g, what="more samples")
        process.kill()
        head = backlog.head(stream)
        process = capturing.start("f")
    assert head < 230 * RATE, "it was killed while it ran"
    assert process.wait() == 0
    assert audio_of(capturing.stream()) == offline(folder / "a.flac")
    assert capturing.meta(capturing.stream()).end_reason == "end of file"


def test_a_stopped_batch_goes_on_at_its_sample(capturing: Capturing, folder: Path) -> None:
    encode(folder / "a.flac", "flac", 48_000, 1, seconds=900)
    capturing.configure(Source(name="f", kind="file", path=str(folder / "a.flac"), pace="max"))
    first = capturing.start("f")
    stream = capturing.stream()
    wait_for(lambda: backlog.head(stream) > 0, what="samples")
    assert first.stop() == 0
    stopped_at = backlog.head(stream)
    assert stopped_at < 900 * RATE and not capturing.meta(stream).ended
    assert capturing.start("f").wait() == 0
    assert audio_of(stream) == offline(folder / "a.flac") and capturing.meta(stream).ended


def test_a_killed_live_source_has_a_hole_as_long_as_it_was_down(capturing: Capturing, folder: Path) -> None:
    capturing.configure(Source(name="in", kind="stdin"))
    first = capturing.start("in", pipe=True)
    pipe = RealTimePipe(first)
    stream = capturing.stream()
    wait_for(lambda: backlog.head(stream) > RATE, what="a second of audio")
    first.kill()
    pipe.close()
    killed = backlog.head(stream)
    down_until = time.monotonic() + 1.5
    wait_for(lambda: time.monotonic() > down_until, what="the time it shall be down")
    second = capturing.start("in", pipe=True)
    pipe = RealTimePipe(second, pipe.born)
    wait_for(lambda: backlog.head(stream) > killed + 4 * RATE, what="audio after the hole")
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    pipe.close()
    assert capturing.stream() == stream
    (hole,) = backlog.holes(stream)
    assert (hole.start, hole.reason) == (killed, "capture was down")
    chunk = backlog.Reader(stream).read(hole.end, 1)
    value = int.from_bytes(chunk.pcm, "little")  # the sample that the "sound card" gave at its own clock
    off = (value - hole.end + 32768) % 65536 - 32768
    start_value = int.from_bytes(backlog.Reader(stream).read(0, 1).pcm, "little")
    assert abs(off - start_value) < 0.3 * RATE, f"the hole is wrong by {(off - start_value) / RATE:.3f} s"
    assert capturing.meta(stream).ended and capturing.meta(stream).end_reason == "stopped"


def test_a_stream_left_for_too_long_is_ended_and_a_new_one_begins(capturing: Capturing) -> None:
    capturing.configure(Source(name="in", kind="stdin"), capture={"resume_within_s": 0})
    first = capturing.start("in", pipe=True)
    assert first.popen.stdin
    first.popen.stdin.write(numbered(0, RATE))
    first.popen.stdin.flush()
    old = capturing.stream()
    wait_for(lambda: backlog.head(old) == RATE, what="the audio")
    first.kill()
    second = capturing.start("in", pipe=True)
    second.popen.communicate(numbered(0, 2 * RATE))
    assert second.wait() == 0
    meta = capturing.meta(old)
    assert (meta.ended, meta.end, meta.end_reason) == (True, RATE, "not resumed")
    (new,) = [s for s in capturing.streams() if s != old]
    assert assert_numbered(new, 2 * RATE) == []
    assert capturing.meta(new).end_reason == "end of input"


def test_a_graceful_stop_writes_what_is_in_ram(capturing: Capturing) -> None:
    capturing.configure(Source(name="in", kind="stdin"), capture={"sync_interval_ms": 60_000})
    process = capturing.start("in", pipe=True)
    assert process.popen.stdin
    process.popen.stdin.write(numbered(0, 5 * RATE))
    process.popen.stdin.flush()
    bells = Bells(capturing.settings, "in")
    assert bells.until(lambda b: b.ram_s >= 5.0).end == 0, "nothing is on the disk yet"
    bells.close()
    assert process.stop() == 0
    stream = capturing.stream()
    assert assert_numbered(stream, 5 * RATE) == []
    assert capturing.meta(stream).end == 5 * RATE


@pytest.mark.parametrize(("rate_hz", "channels"), [(48_000, 2), (8_000, 1), (16_000, 2)])
def test_stdin_of_another_rate_is_resampled_once(
    capturing: Capturing, folder: Path, rate_hz: int, channels: int
) -> None:
    encode(folder / "a.wav", "pcm_s16le", rate_hz, channels, seconds=5)
    capturing.configure(Source(name="in", kind="stdin", rate_hz=rate_hz, channels=channels))
    process = capturing.start("in", pipe=True)
    pcm = (folder / "a.wav").read_bytes()
    process.popen.communicate(pcm[pcm.index(b"data") + 8 :])
    assert process.wait() == 0
    assert audio_of(capturing.stream()) == offline(folder / "a.wav")


def test_a_second_copy_is_refused(capturing: Capturing) -> None:
    capturing.configure(Source(name="in", kind="stdin"))
    first = capturing.start("in", pipe=True)
    wait_for(lambda: "started" in first.output(), what="the first copy")
    second = capturing.start("in", pipe=True)
    assert second.wait() == EXIT_NAME_TAKEN
    assert f"already running as pid {first.pid}" in second.output()
    assert first.stop() == 0, "stopped before any audio came: no stream, no error"
    assert capturing.streams() == []


def test_a_stream_removed_under_a_live_source_is_noticed(capturing: Capturing) -> None:
    capturing.configure(Source(name="in", kind="stdin"))
    process = capturing.start("in", pipe=True)
    pipe = RealTimePipe(process)
    stream = capturing.stream()
    wait_for(lambda: backlog.head(stream) > 0, what="audio")
    backlog.remove(stream)
    assert process.wait() == 1, "the launcher starts it again, with a new stream"
    pipe.close()
    assert "stream was removed" in process.output()


def test_a_file_whose_stream_is_removed_is_done_and_goes_on_where_all_streams_were_away(
    capturing: Capturing, folder: Path
) -> None:
    """Their disk was unmounted for a moment: exit 0 would mean that the source is finished."""
    (folder / "a.raw").write_bytes(numbered(0, 60 * RATE))
    capturing.configure(Source(name="f", kind="pcm", path=str(folder / "a.raw"), pace="realtime"))
    streams = capturing.settings.streams
    first = capturing.start("f")
    stream = capturing.stream()
    wait_for(lambda: backlog.head(stream) > RATE // 2, what="audio")
    streams.rename(folder / "unmounted")
    streams.mkdir()
    assert first.wait() == 1
    streams.rmdir()
    (folder / "unmounted").rename(streams)
    head = backlog.head(stream)
    second = capturing.start("f")
    wait_for(lambda: backlog.head(stream) > head, what="more of it")
    assert capturing.streams() == [stream] and backlog.holes(stream) == []
    backlog.remove(stream)
    assert second.wait() == 0, "this one a person removed"


def test_audio_deleted_by_hand_is_a_hole_and_the_stream_goes_on(capturing: Capturing) -> None:
    """While capture runs, and again while it is dead: the numbers of samples never start over."""
    capturing.configure(Source(name="in", kind="stdin"))
    first = capturing.start("in", pipe=True)
    pipe = RealTimePipe(first)
    stream = capturing.stream()
    wait_for(lambda: backlog.head(stream) > RATE and backlog.anchors(stream), what="a second of audio")
    delete_audio(stream)
    ((new, _),) = wait_for(lambda: backlog.audio_files(stream), what="a new file")
    assert new > RATE and backlog.Reader(stream).read(RATE, 1).reason == backlog.GONE
    wait_for(lambda: backlog.head(stream) > new + RATE // 2, what="audio after it")
    first.kill()
    pipe.close()
    heard = backlog.head(stream)
    delete_audio(stream)
    assert 0 < backlog.head(stream) < heard, "an anchor proves some of it"
    second = capturing.start("in", pipe=True)
    pipe = RealTimePipe(second, pipe.born)
    wait_for(lambda: backlog.head(stream) > heard + 2 * RATE, what="audio after the hole")
    assert second.stop() == 0
    pipe.close()
    assert capturing.stream() == stream
    end = backlog.head(stream)
    assert [c.reason for c in chunks(stream, end) if not c.pcm] == [backlog.GONE, "capture was down"]


def delete_audio(stream: Path) -> None:
    """As `rm` would."""
    for _first, path in backlog.audio_files(stream):
        path.unlink()


def chunks(stream: Path, end: int) -> Iterator[backlog.Chunk]:
    reader, at = backlog.Reader(stream), 0
    while at < end:
        chunk = reader.read(at, 1 << 20)
        assert chunk.end > at, f"nothing at {at}, the end is {end}"
        yield chunk
        at = chunk.end


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server of our own; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_url_is_read_at_its_pace(capturing: Capturing, folder: Path) -> None:
    encode(folder / "a.mp3", "libmp3lame", 44_100, 2, seconds=20)
    with serving(partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))) as address:
        capturing.configure(Source(name="u", kind="file", path=f"{address}/a.mp3", pace="20"))
        assert capturing.start("u").wait() == 0
    stream = capturing.stream()
    assert audio_of(stream) == offline(folder / "a.mp3")
    meta = capturing.meta(stream)
    assert (meta.lane, meta.resumable, meta.end_reason) == ("live", True, "end of input")


class Radio(http.server.BaseHTTPRequestHandler):
    """A station that breaks the connection after 5 s of sound; it has no length and no end."""

    sound = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "audio/aac")
        self.end_headers()
        self.wfile.write(self.sound)

    def log_message(self, *_message: object) -> None:
        pass


def test_a_broken_radio_connection_is_made_again_and_leaves_a_hole(capturing: Capturing, folder: Path) -> None:
    encode(folder / "a.aac", "aac", 44_100, 2, seconds=5)
    Radio.sound = (folder / "a.aac").read_bytes()
    with serving(Radio) as address:
        capturing.configure(Source(name="u", kind="file", path=f"{address}/radio"))
        process, bells = capturing.start("u"), Bells(capturing.settings, "u")
        bells.until(lambda b: b.state == "reconnecting" and b.end > 4 * RATE)
        stream = capturing.stream()
        wait_for(lambda: backlog.head(stream) > 12 * RATE, what="two more connections")
        bells.close()
        assert process.stop() == 0
    meta, want = capturing.meta(stream), offline(folder / "a.aac")
    assert (meta.resumable, meta.end_reason, meta.lane) == (False, "stopped", "live")
    assert {h.reason for h in backlog.holes(stream)} == {"connection lost"}
    first = backlog.holes(stream)[0]
    assert backlog.Reader(stream).read(0, first.start).pcm == want
    assert backlog.Reader(stream).read(first.end, 5 * RATE).pcm[:1000] == want[:1000], "then the station's beginning"


class BreaksTwice(Radio):
    """A web server that breaks the connection at 40 % of the file, then at 80 %, then serves it."""

    share = (0.4, 0.8, 1.0)
    asked = 0

    def do_GET(self) -> None:
        part = self.sound[: int(len(self.sound) * self.share[min(type(self).asked, 2)])]
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.sound)))
        self.end_headers()
        self.wfile.write(part)


def test_a_broken_download_goes_on_at_its_sample(capturing: Capturing, folder: Path) -> None:
    encode(folder / "a.flac", "flac", 44_100, 2, seconds=10)
    BreaksTwice.sound, BreaksTwice.asked = (folder / "a.flac").read_bytes(), 0
    with serving(BreaksTwice) as address:
        capturing.configure(Source(name="u", kind="file", path=f"{address}/a.flac", pace="20"))
        assert capturing.start("u").wait() == 0
    assert BreaksTwice.asked == 3
    assert audio_of(capturing.stream()) == offline(folder / "a.flac")
    assert capturing.meta(capturing.stream()).end_reason == "end of input"


MICROPHONE = "standin_pyaudio.py"


def test_a_microphone_that_vanishes_and_returns(capturing: Capturing, folder: Path) -> None:
    (folder / "modules").mkdir()
    (folder / "modules" / "pyaudio.py").write_bytes((ROOT / "tests" / MICROPHONE).read_bytes())
    words = folder / "switch"
    env = {"PYTHONPATH": f"{folder / 'modules'}:{ROOT}", "STANDIN_PYAUDIO": str(words)}
    env["STANDIN_PYAUDIO_BORN"] = str(time.monotonic())
    capturing.configure(Source(name="mic", kind="microphone"))
    switch(words, "")
    nothing = capturing.start("mic", env=env)
    assert nothing.wait() == 2
    assert "no input device" in nothing.output() and "Traceback" not in nothing.output()

    switch(words, "present")
    process, bells = capturing.start("mic", env=env), Bells(capturing.settings, "mic")
    stream = capturing.stream()
    bells.until(lambda b: b.end > RATE // 2)
    switch(words, "")
    gone = bells.until(lambda b: b.state == "no_device")
    switch(words, "present")
    bells.until(lambda b: b.state == "ok" and b.end > gone.end + RATE)
    switch(words, "present overflow")
    bells.until(lambda b: b.lost_samples > RATE and len(backlog.holes(stream)) == 2)
    switch(words, "present skip")
    heard = bells.until(lambda b: len(backlog.holes(stream)) == 3)
    bells.until(lambda b: b.end > heard.end + RATE)
    bells.close()
    assert process.stop() == 0
    away, overflow, skip = backlog.holes(stream)
    assert (away.reason, overflow.reason) == ("device was away", "device overflow")
    assert skip.reason == "device or machine stood still"
    assert abs(overflow.end - overflow.start - 8000) < 0.3 * RATE  # by the clock
    assert abs(skip.end - skip.start - 24_000) < 0.3 * RATE
    first = int.from_bytes(backlog.Reader(stream).read(0, 1).pcm, "little")
    for hole in (away, overflow, skip):
        value = int.from_bytes(backlog.Reader(stream).read(hole.end, 1).pcm, "little")
        off = (value - first - hole.end + 32768) % 65536 - 32768
        assert abs(off) < 0.3 * RATE, f"{hole.reason} is wrong by {off / RATE:.3f} s"


def test_devices_says_in_one_line_why_there_is_none(processes: Processes) -> None:
    script = "import sys; sys.modules['pyaudio'] = None; from capture import devices; sys.exit(devices.main())"
    process = processes.spawn([sys.executable, "-c", script], "devices")
    assert process.wait() == 1
    (line,) = process.output().splitlines()
    assert line.startswith("no microphone: ") and "pip install PyAudio" in line
