"""What this machine plays: a monitor of PulseAudio or PipeWire, or ALSA's loopback card, by way of PortAudio.

Where PortAudio lists monitors as devices of their own they are taken from its list. Else the sound server is asked for
their names (`pactl`), and ALSA's device `pulse` is opened on the one that was chosen.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any, NamedTuple

from capture.microphone import Device, Microphone, NoDevice, devices
from common.settings import Source, UserError

ASK_S = 3.0  # a sound server that hangs must not hang us
_LIKE = re.compile(r"\bmonitor\b|loopback", re.I)


class Monitor(NamedTuple):
    """A source of the sound server that gives what an output plays."""

    name: str
    default: bool  # of the output that is the default one


def is_loopback(device: Device) -> bool:
    return bool(_LIKE.search(device.name))


def monitors() -> list[Monitor]:
    """What the sound server has; nothing where there is no sound server, or no pactl to ask it with."""
    sink = _pactl("get-default-sink").strip()
    rows = (line.split("\t") for line in _pactl("list", "short", "sources").splitlines())
    names = [row[1] for row in rows if len(row) > 1 and row[1].endswith(".monitor")]
    return [Monitor(n, n == f"{sink}.monitor") for n in names]


def _pactl(*args: str) -> str:
    try:
        done = subprocess.run(
            ["pactl", *args], capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def choose(found: list[Device], known: list[Monitor], wanted: str) -> tuple[Device, str]:
    """(the device to open, the monitor that it is to be opened on or ""). Raises NoDevice, UserError."""
    own = [d for d in found if is_loopback(d)]
    for d in own:
        if not known and not wanted:
            return d, ""
        if wanted and (str(d.number) == wanted or (not wanted.isdigit() and wanted.lower() in d.name.lower())):
            return d, ""
    fit = [m for m in known if wanted.lower() in m.name.lower()]
    if not fit:
        names = ", ".join([*(d.name for d in own), *(m.name for m in known)])
        raise NoDevice(f"no loopback device {wanted!r} among {names}" if names else "no loopback device")
    monitor = next((m for m in fit if m.default), fit[0])
    for d in found:
        if d.name == "pulse":
            return d._replace(name=monitor.name), monitor.name
    raise UserError("PortAudio has no device `pulse` to hear a monitor with: apt-get install libasound2-plugins")


class Loopback(Microphone):
    """One output of this machine, heard as an input."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.origin = f"loopback {source.device or '(default)'}"

    def choose(self, audio: Any) -> Device:
        device, monitor = choose(devices(audio), monitors(), self.source.device)
        if monitor:
            os.environ["PULSE_SOURCE"] = monitor  # libpulse reads it when ALSA opens the device
        return device
