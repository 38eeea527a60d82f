"""A microphone by PortAudio. It may vanish and return: the time between is a hole, and so is what the device drops.

PortAudio calls us in its own thread, with a flag when the device overflowed; that thread only queues. PyAudio is an
optional package: without it there is one line that says how to get it.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator
from typing import Any, NamedTuple

from capture.intake import Intake, boot_ns
from capture.pcm import converter
from capture.ring import Patience
from common.messages import SAMPLE_RATE
from common.settings import Source, UserError

BUFFER_S = 0.05
SILENT_S = 2.0  # a device that gives nothing for so long is gone
RETRY_S = 1.0
LOST_S = 0.5  # no driver buffers so much that it comes late but whole
RATES_DIFFER = 0.001  # at most, between a sound card's clock and ours


def boot_s() -> float:
    """A clock that goes on while the machine sleeps."""
    return boot_ns() / 1e9


class Device(NamedTuple):
    """An input of the sound system."""

    number: int
    name: str
    channels: int
    rate_hz: int
    default: bool


class NoDevice(Exception):
    """No input that fits is there now."""


def portaudio() -> Any:
    """The pyaudio module. Raises UserError with the way to get it."""
    try:
        import pyaudio
    except ImportError:
        raise UserError(
            "the microphone needs PortAudio: apt-get install portaudio19-dev gcc python3-dev, then pip install PyAudio"
        ) from None
    return pyaudio


@contextlib.contextmanager
def session(pyaudio: Any) -> Iterator[Any]:
    """PortAudio, started: it lists the devices that exist at its start only. ALSA's chatter about it is not shown."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        audio = pyaudio.PyAudio()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
    try:
        yield audio
    finally:
        audio.terminate()


def devices(audio: Any) -> list[Device]:
    try:
        default = int(audio.get_default_input_device_info()["index"])
    except OSError:
        default = -1
    rows = [audio.get_device_info_by_index(i) for i in range(audio.get_device_count())]
    return [
        Device(
            int(r["index"]),
            str(r["name"]),
            int(r["maxInputChannels"]),
            int(r["defaultSampleRate"]),
            int(r["index"]) == default,
        )
        for r in rows
        if r["maxInputChannels"] > 0
    ]


def choose(found: list[Device], wanted: str) -> Device:
    """By number, by a part of the name, or the default one."""
    if not found:
        raise NoDevice("no input device")
    if not wanted:
        return next((d for d in found if d.default), found[0])
    for d in found:
        if str(d.number) == wanted or (not wanted.isdigit() and wanted.lower() in d.name.lower()):
            return d
    raise NoDevice(f"no input device {wanted!r} among {', '.join(d.name for d in found)}")


class Behind:
    """How far samples lie behind the clock: a machine that slept or a stopped process loses sound without a flag."""

    def __init__(self) -> None:
        self._s = 0.0

    def heard(self, took_s: float, late_s: float) -> float:
        """A buffer of `took_s` came `late_s` after it was due; seconds that are lost for certain, each told once.

        What the driver still held comes in a hurry, so wait until buffers come at their pace again.
        """
        self._s = max(0.0, self._s + late_s - took_s * RATES_DIFFER)
        if self._s < LOST_S or abs(late_s) > took_s / 2:
            return 0.0
        lost_s, self._s = self._s, 0.0
        return lost_s


class Microphone:
    """One input device."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.origin = f"microphone {source.device or '(default)'}"
        self.pyaudio = portaudio()
        self._heard: queue.SimpleQueue[tuple[bytes, int, float]] = queue.SimpleQueue()

    def content(self, intake: Intake) -> str:
        return ""

    def changed_ns(self) -> int:
        return 0

    def run(self, intake: Intake) -> str:
        returned = intake.position > 0  # a stream to go on with: wait for its device, else say that there is none
        while not intake.stopping:
            try:
                with session(self.pyaudio) as audio:
                    device = self.choose(audio)
                    self._listen(audio, device, intake)
                    returned = True
                intake.state, intake.detail = "no_device", f"{device.name} gives no samples"
            except NoDevice as e:
                if not returned:
                    raise UserError(f"source {self.source.name}: {e}; list them with: swapscribe devices") from None
                intake.state, intake.detail = "no_device", str(e)
            except OSError as e:  # PortAudio could not open it: it is going or coming
                intake.state, intake.detail = "no_device", str(e)
            intake.away("device was away")
            intake.wait(RETRY_S)
        return ""

    def choose(self, audio: Any) -> Device:
        return choose(devices(audio), self.source.device)

    def _listen(self, audio: Any, device: Device, intake: Intake) -> None:
        """Until the device stops giving samples, or we stop."""
        rate_hz, channels = self._format(audio, device)
        convert = converter(rate_hz, channels)
        self._heard = queue.SimpleQueue()
        stream = audio.open(
            format=self.pyaudio.paInt16,
            rate=rate_hz,
            channels=channels,
            input=True,
            input_device_index=device.number,
            frames_per_buffer=int(rate_hz * BUFFER_S),
            stream_callback=self._callback,
        )
        try:
            before, behind = boot_s(), Behind()
            while not intake.stopping:
                try:
                    data, status, at = self._heard.get(timeout=0.25)
                except queue.Empty:
                    if not stream.is_active() or boot_s() - before > SILENT_S:
                        return
                    continue
                intake.state, intake.detail = "ok", ""
                took_s = len(data) / 2 / channels / rate_hz
                late_s = at - before - took_s
                if status & self.pyaudio.paInputOverflow:
                    # The device does not say how much it dropped: by the clock, and at least one sample.
                    intake.lost(max(1, int(late_s * SAMPLE_RATE)), "device overflow")
                elif lost_s := behind.heard(took_s, late_s):
                    intake.lost(int(lost_s * SAMPLE_RATE), "device or machine stood still")
                before = at
                intake.put(convert(data, False), Patience.NEVER)
        finally:
            with contextlib.suppress(OSError):
                stream.close()

    def _callback(self, data: bytes, frames: int, clock: Any, status: int) -> tuple[None, int]:
        self._heard.put((data, status, boot_s()))
        return None, int(self.pyaudio.paContinue)

    def _format(self, audio: Any, device: Device) -> tuple[int, int]:
        """What we want if the device can do it, else what it likes best."""
        for rate_hz, channels in ((SAMPLE_RATE, 1), (device.rate_hz, 1)):
            try:
                if audio.is_format_supported(
                    rate_hz, input_device=device.number, input_channels=channels, input_format=self.pyaudio.paInt16
                ):
                    return rate_hz, channels
            except ValueError:
                continue
        return device.rate_hz, device.channels
