"""A stand-in for the PyAudio package, for tests: one microphone of numbered samples in real time, with fault switches.

The file named by STANDIN_PYAUDIO holds words: `present`, `overflow` (what comes next is dropped and flagged), `skip`
(dropped without a word, as when the machine sleeps).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

paInt16, paContinue, paInputOverflow = 8, 0, 2
RATE = 16_000


def _switches() -> list[str]:
    return Path(os.environ["STANDIN_PYAUDIO"]).read_text().split()


def switch(path: Path, words: str) -> None:
    """Replaces the file whole: an empty one, seen on the way, is a microphone that vanished."""
    new = path.with_suffix(".new")
    new.write_text(words)
    new.rename(path)


class PyAudio:
    def __init__(self) -> None:
        self.present = "present" in _switches()  # PortAudio lists what is there when it starts

    def get_default_input_device_info(self) -> dict[str, Any]:
        if not self.present:
            raise OSError("No Default Input Device Available")
        return self.get_device_info_by_index(0)

    def get_device_count(self) -> int:
        return int(self.present)

    def get_device_info_by_index(self, index: int) -> dict[str, Any]:
        return {"index": index, "name": "Stand-in", "maxInputChannels": 2, "defaultSampleRate": 44100.0}

    def is_format_supported(self, rate: float, **_format: Any) -> bool:
        if rate != RATE:
            raise ValueError("Invalid sample rate")
        return True

    def open(self, *, frames_per_buffer: int, stream_callback: Callable[..., Any], **_format: Any) -> Stream:
        return Stream(frames_per_buffer, stream_callback)

    def terminate(self) -> None:
        pass


class Stream:
    def __init__(self, frames: int, callback: Callable[..., Any]) -> None:
        self.frames, self.callback = frames, callback
        self.active = True
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        born = float(os.environ["STANDIN_PYAUDIO_BORN"])
        at = int((time.monotonic() - born) * RATE)
        while self.active and "present" in _switches():
            at += self.frames
            status = 0
            if "overflow" in _switches():
                switch(Path(os.environ["STANDIN_PYAUDIO"]), "present")
                at += 8000
                status = paInputOverflow
            elif "skip" in _switches():
                switch(Path(os.environ["STANDIN_PYAUDIO"]), "present")
                at += 24_000
            time.sleep(max(0.0, born + at / RATE - time.monotonic()))
            data = b"".join((i % 65536).to_bytes(2, "little") for i in range(at - self.frames, at))
            self.callback(data, self.frames, {}, status)
        self.active = False

    def is_active(self) -> bool:
        return self.active

    def close(self) -> None:
        self.active = False
