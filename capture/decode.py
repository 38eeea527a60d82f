"""Sound of any container to 16 kHz mono s16le, by PyAV: its first audio stream, the same samples each time.

Used for files on disk and for URLs. What cannot be decoded is counted; why the sound ended is told at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import av.error

from capture.resample import Resampler
from common.settings import UserError


class Opened(NamedTuple):
    """An open container and what its header says."""

    container: Any
    stream: Any
    declared_s: float  # 0: unknown


class Piece(NamedTuple):
    """Samples, and what the container says of the time of the first one (None: nothing)."""

    pcm: bytes
    at_s: float | None
    sound_s: float  # how long the sound is that they were made from


def open_sound(
    where: str,
    name: str,
    form: str | None = None,
    options: dict[str, str] | None = None,
    timeout_s: float | None = None,
    alone: bool = False,
) -> Opened:
    """Open a file or URL. `name` is what people may see of it. `alone`: the container's duration is the sound's.

    Raises UserError, FFmpegError.
    """
    timeout = (timeout_s, timeout_s) if timeout_s else None
    container = av.open(where, format=form, options=options or {}, timeout=timeout)
    if not container.streams.audio:
        container.close()
        raise UserError(f"{name}: no audio stream in it")
    stream = container.streams.audio[0]
    declared_s = 0.0
    if stream.duration is not None and stream.time_base is not None:
        declared_s = float(stream.duration * stream.time_base)
    elif container.duration is not None and (alone or len(container.streams) == 1):
        declared_s = container.duration / av.time_base
    return Opened(container, stream, max(0.0, declared_s))


class Decoded:
    """All samples of an opened sound in order. What was wrong is told when they have ended."""

    def __init__(self, opened: Opened, read_again: bool) -> None:
        self.opened = opened
        self.read_again = read_again  # after an error the sound is read again from its beginning
        self.damaged = 0  # packets that could not be decoded
        self.error: av.error.FFmpegError | None = None  # why it could not be read to its end

    def __iter__(self) -> Iterator[Piece]:
        resampler: Resampler | None = None
        for frame in self._frames():
            if resampler is None or resampler.rate_hz != frame.sample_rate:
                if resampler is not None:
                    yield Piece(resampler.flush(), None, 0.0)
                resampler = Resampler(frame.sample_rate)
            yield Piece(resampler.push(_samples(frame)), frame.time, frame.samples / frame.sample_rate)
        # The resampler's tail assumes silence after it: where the sound itself will follow, it would be a wrong sample.
        if resampler is not None and not (self.error and self.read_again):
            yield Piece(resampler.flush(), None, 0.0)

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


def unusable(name: str, error: av.error.FFmpegError | UserError, why: str = "") -> UserError:
    """The one line for people. `why`: what is known better than what the library says."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, av.error.InvalidDataError):
        return UserError(f"{name}: not an audio or video file, or damaged beyond reading; try another one")
    return UserError(f"{name}: {why or error.strerror or type(error).__name__}")
