"""The audio of audio and video files and of URLs, by PyAV: first audio stream, at a pace or as fast as it can be read.

After a crash the file is decoded from its beginning and the samples that are in the backlog already are skipped:
seeking would give other samples. A URL without a duration (radio, RTSP) cannot be read again: the time away is a hole.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error

from capture.intake import Intake
from capture.ring import Patience
from capture.truncation import missing
from common.backlog import BYTES
from common.messages import SAMPLE_RATE
from common.settings import Source, UserError, pace

URL_TIMEOUT_S = 10.0
RETRY_S = 1.0
BEHIND_S = 2.0  # further behind its pace a source does not hurry


class Opened(NamedTuple):
    """An open container and what its header says."""

    container: Any
    stream: Any
    declared_s: float  # 0: unknown


class File:
    """A file on disk, or a URL."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.is_url = "://" in source.path and not source.path.startswith("file://")
        self.path = Path(source.path.removeprefix("file://")).absolute()
        self.origin = without_password(source.path) if self.is_url else str(self.path)
        self.pace = pace(source)
        if self.is_url and not self.pace:
            raise UserError(f"source {source.name}: pace max needs a file on disk; download {self.origin} first")
        if not self.is_url:
            self._check()

    def _check(self) -> None:
        try:
            with self.path.open("rb") as f:
                if not f.read(1):
                    raise UserError(f"{self.path}: the file is empty")
        except OSError as e:
            raise UserError(f"{self.path}: {e.strerror}; set source {self.source.name}.path to an audio file") from None

    def changed_ns(self) -> int:
        return 0 if self.is_url else os.stat(self.path).st_mtime_ns

    def content(self, intake: Intake) -> str:
        digest = hashlib.sha256()
        with self.path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
                if intake.stopping:
                    return ""
        return digest.hexdigest()

    def run(self, intake: Intake) -> str:
        while not intake.stopping:
            try:
                opened = self._open()
                intake.resumable = opened.declared_s > 0 or not self.is_url
                intake.state, intake.detail = "ok", ""
                return self._read(opened, intake)
            except (av.error.FFmpegError, UserError) as e:
                # A connection that gave samples once is made again; what never gave any is for a person to look at.
                if not self.is_url or not intake.position:
                    raise self._unusable(e) from None
                intake.state, intake.detail = "reconnecting", without_password(str(e))
            if not intake.resumable:
                intake.away("connection lost")
            intake.wait(RETRY_S)
        return ""

    def _unusable(self, error: av.error.FFmpegError | UserError) -> UserError:
        name = self.origin
        if isinstance(error, UserError):
            return error
        if isinstance(error, av.error.InvalidDataError):
            return UserError(f"{name}: not an audio or video file, or damaged beyond reading; try another one")
        return UserError(f"{name}: {error.strerror or error}")

    def _open(self) -> Opened:
        timeout = (URL_TIMEOUT_S, URL_TIMEOUT_S) if self.is_url else None
        container = av.open(self.source.path if self.is_url else str(self.path), timeout=timeout)
        if not container.streams.audio:
            raise UserError(f"{self.origin}: no audio stream in it")
        stream = container.streams.audio[0]
        declared_s = 0.0
        if stream.duration is not None and stream.time_base is not None:
            declared_s = float(stream.duration * stream.time_base)
        elif container.duration is not None and (self.is_url or len(container.streams) == 1):
            declared_s = container.duration / av.time_base
        return Opened(container, stream, max(0.0, declared_s))

    def _read(self, opened: Opened, intake: Intake) -> str:
        skip = intake.position if intake.resumable else 0
        schedule = _Schedule(self.pace if intake.resumable else 0.0)
        decoded = Decoded(opened, self.is_url and intake.resumable)
        # Sound that comes only once cannot wait for a full disk.
        patience = Patience.ALWAYS if intake.resumable else Patience.WHILE_DISK_TAKES
        at = 0
        for pcm in decoded:
            begin, at = at, at + len(pcm) // BYTES
            if intake.stopping:
                return ""
            for piece in _pieces(pcm[max(0, skip - begin) * BYTES :], schedule.piece_samples):
                if not schedule.wait(intake, len(piece) // BYTES) or not intake.put(piece, patience):
                    return ""
        if not at:
            raise UserError(f"{self.origin}: its audio stream holds nothing that can be decoded")
        if self.is_url and decoded.error:
            raise decoded.error
        if self.is_url and not intake.resumable:
            raise UserError(f"{self.origin}: the other side ended the stream")
        if self.is_url:
            return "end of input"
        reason = missing(self.path, opened.container.format.name, opened.declared_s, at / SAMPLE_RATE)
        reason = reason or (f"truncated: {decoded.error.strerror}" if decoded.error else "end of file")
        return f"{reason}; {decoded.damaged} damaged packets" if decoded.damaged else reason


def without_password(text: str) -> str:
    """URLs in `text` without `user:password@`: it is shown on the page and to every subscriber."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


class Decoded:
    """All samples of a file as pieces of 16 kHz mono s16le, always the same ones. What was wrong is told at the end."""

    def __init__(self, opened: Opened, read_again: bool) -> None:
        self.opened = opened
        self.read_again = read_again  # after an error the sound is read again from its beginning
        self.damaged = 0  # packets that could not be decoded
        self.error: av.error.FFmpegError | None = None  # why it could not be read to its end

    def __iter__(self) -> Iterator[bytes]:
        resampler: Any = None
        for frame in self._frames():
            if resampler is None or resampler.rate_hz != frame.sample_rate:
                from capture.resample import Resampler

                if resampler is not None:
                    yield resampler.flush()
                resampler = Resampler(frame.sample_rate)
            yield resampler.push(_samples(frame))
        # The resampler's tail assumes silence after it: where the sound itself will follow, it would be a wrong sample.
        if resampler is not None and not (self.error and self.read_again):
            yield resampler.flush()

    def _frames(self) -> Iterator[Any]:
        packets = self.opened.container.demux(self.opened.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as e:
                self.error = e
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1


def _samples(frame: Any) -> Any:
    """(samples, channels) of a decoded frame."""
    array = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples × channels)
    return array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)


def _pieces(pcm: bytes, samples: int) -> Iterator[bytes]:
    for i in range(0, len(pcm), samples * BYTES):
        yield pcm[i : i + samples * BYTES]


class _Schedule:
    """When the samples of a file would have been heard at this pace; pace 0: at once."""

    def __init__(self, factor: float) -> None:
        self.per_s = factor * SAMPLE_RATE
        self.piece_samples = int(min(SAMPLE_RATE, max(SAMPLE_RATE // 10, self.per_s // 10))) if factor else SAMPLE_RATE
        self._due = time.monotonic()

    def wait(self, intake: Intake, count: int) -> bool:
        """Wait until the next `count` samples are over. False: stop."""
        if not self.per_s:
            return not intake.stopping
        now = time.monotonic()
        self._due = max(self._due, now - BEHIND_S) + count / self.per_s
        return not (intake.wait(self._due - now) if self._due > now else intake.stopping)
