"""What capture's tests share: samples that tell their number, doorbells, a stand-in feed, a pipe in real time."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import msgspec
import numpy as np
import soxr
from numpy.typing import NDArray

from common import backlog, topology, wire
from common import messages as m
from common.settings import Settings, Source
from tests.conftest import Processes, Started, wait_for

RATE = m.SAMPLE_RATE


def numbered(first: int, count: int) -> bytes:
    """s16le samples; sample i has the value i modulo 65536."""
    return (np.arange(first, first + count) % 65536).astype("<u2").tobytes()


def assert_numbered(folder: Path, end: int) -> list[backlog.Hole]:
    """Every sample of the stream up to `end` is the one that belongs there, or lies in a recorded hole."""
    reader, at = backlog.Reader(folder), 0
    while at < end:
        chunk = reader.read(at, 1 << 16)
        assert chunk.end > at, f"nothing at {at}, the end should be {end}"
        if chunk.pcm:
            assert chunk.pcm == numbered(at, chunk.end - at), f"other samples than those of {at} to {chunk.end}"
        at = chunk.end
    assert at == end == backlog.head(folder)
    return backlog.holes(folder)


def noise(seconds: float, rate_hz: int, channels: int, seed: int = 1) -> NDArray[np.int16]:
    """(channels, samples)"""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((channels, int(seconds * rate_hz))) * 4000).astype(np.int16)


def encode(path: Path, codec: str, rate_hz: int, channels: int, seconds: float, video: bool = False) -> None:
    """Write noise as a media file."""
    layout = {1: "mono", 2: "stereo"}[channels]
    sound = noise(seconds, rate_hz, channels)
    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=5, width=64, height=64, pix_fmt="yuv420p") if video else None
        stream = out.add_stream(codec, rate=rate_hz)
        stream.layout = layout
        if picture:
            for i in range(int(seconds * 5)):
                still = av.VideoFrame(64, 64, "yuv420p")
                still.pts = i
                out.mux(picture.encode(still))
            out.mux(picture.encode(None))
        fit = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate_hz)
        for i in range(0, sound.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, i : i + 1024]), "s16p", layout)
            frame.sample_rate, frame.pts = rate_hz, i
            for fitted in fit.resample(frame):
                out.mux(stream.encode(fitted))
        out.mux(stream.encode(None))


def offline(path: Path) -> bytes:
    """What PyAV and one pass of soxr over the whole sound give: 16 kHz mono s16le."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate_hz, channels, blocks = stream.rate, stream.channels, []
        for frame in container.decode(stream):
            array = frame.to_ndarray()
            blocks.append(array if frame.format.is_planar else array.reshape(-1, channels).T)
    sound = np.concatenate(blocks, axis=1)
    if sound.dtype == np.int16:
        sound = sound.astype(np.float32) / np.float32(32768)
    mono = np.ascontiguousarray(sound.T.mean(axis=1, dtype=np.float32))
    if rate_hz != RATE:
        mono = soxr.resample(mono, rate_hz, RATE, quality="HQ")
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype("<i2").tobytes()


def audio_of(folder: Path) -> bytes:
    """All samples of a stream that has no hole."""
    assert backlog.holes(folder) == []
    reader, at, parts = backlog.Reader(folder), 0, []
    while (chunk := reader.read(at, 1 << 20)).pcm:
        parts.append(chunk.pcm)
        at = chunk.end
    return b"".join(parts)


class Capturing:
    """Captures of one test: settings with sources, processes, streams, doorbells."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        self.processes, self.settings = processes, settings

    def configure(self, source: Source, **sections: dict[str, object]) -> None:
        changed = {k: msgspec.structs.replace(getattr(self.settings, k), **v) for k, v in sections.items()}
        others = tuple(s for s in self.settings.source if s.name != source.name)
        self.settings = msgspec.structs.replace(self.settings, source=(*others, source), **changed)

    def start(self, source: str, env: dict[str, str] | None = None, pipe: bool = False) -> Started:
        stdin = {"stdin": subprocess.PIPE} if pipe else {}
        return self.processes.start("capture", "--source", source, settings=self.settings, env=env, **stdin)

    def streams(self, source: str = "") -> list[Path]:
        found = backlog.streams(self.settings.streams)
        return [p for p in found if not source or self.meta(p).source == source]

    def stream(self, source: str = "") -> Path:
        """The only stream, once there is one."""
        wait_for(lambda: self.streams(source), what="a stream")
        (folder,) = self.streams(source)
        return folder

    def meta(self, folder: Path) -> backlog.Meta:
        meta = backlog.read_meta(folder)
        assert meta
        return meta


class Bells:
    """The doorbells of one source."""

    def __init__(self, settings: Settings, source: str) -> None:
        self.socket = wire.subscriber([wire.ipc(settings, topology.doorbell(source))], ["doorbell"])
        self.last: m.Doorbell | None = None

    def until(self, wanted: Callable[[m.Doorbell], bool], timeout_s: float = 20.0) -> m.Doorbell:
        def look() -> m.Doorbell | None:
            while frames := wire.receive(self.socket):
                assert frames[0] == b"doorbell"
                self.last = msgspec.msgpack.decode(frames[1], type=m.Doorbell)
                if wanted(self.last):
                    return self.last
            return None

        return wait_for(look, timeout_s, f"a doorbell; last: {self.last}")

    def close(self) -> None:
        self.socket.close()


class StandInFeed:
    """Publishes a beat every 50 ms; tests say what all who read audio have read."""

    def __init__(self, settings: Settings) -> None:
        self.read: Callable[[], dict[str, int]] = dict  # stream -> position `audio`
        self.garbage = False
        self._socket = wire.publisher(wire.ipc(settings, "pub"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            if self.garbage:
                wire.send(self._socket, [b"beat", b"\xc1 no beat"])
            streams = {
                name: m.StreamBeat(
                    source="x",
                    lane="live",
                    ended=False,
                    audio_head=position,
                    heads={},
                    producers={
                        name: m.ProducerBeat(n=1, positions={"audio": position + behind})
                        for name, behind in topology.READS_BEHIND.items()
                    },
                    lag_s=0.0,
                    coverage=m.Coverage(),
                )
                for name, position in self.read().items()
            }
            beat = m.Beat(
                protocol=1, journal="j", head=0, at_ns=time.time_ns(), streams=streams, workers={}, captures={}
            )
            wire.send(self._socket, [b"beat", m.encode(beat)])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


class RealTimePipe:
    """Feeds numbered samples into a process' stdin as a sound card would: sample i at `born` (now) + i / 16000 s.

    It waits until capture has started: a pipe holds two seconds, and what waits in it for longer is heard too late.
    """

    def __init__(self, process: Started, born: float | None = None) -> None:
        wait_for(lambda: '"started"' in process.output(), what="the start of capture")
        self.process, self.born = process, time.monotonic() if born is None else born
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        pipe = self.process.popen.stdin
        assert pipe
        at = int((time.monotonic() - self.born) * RATE)
        while not self._stop.wait(0.02):
            end = int((time.monotonic() - self.born) * RATE)
            try:
                pipe.write(numbered(at, end - at))
                pipe.flush()
            except (BrokenPipeError, ValueError):
                return
            at = end

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
