"""`python -m capture.devices`: inputs and loopbacks of this machine, or one line that says why there is none."""

from __future__ import annotations

import sys

from capture import loopback, microphone
from common.settings import UserError


def main() -> int:
    try:
        with microphone.session(microphone.portaudio()) as audio:
            found = microphone.devices(audio)
    except (UserError, OSError) as e:
        print(f"no microphone: {e}")
        return 1
    for d in found:
        default = " (default)" if d.default else ""
        what = "  loopback" if loopback.is_loopback(d) else ""
        print(f"{d.number:3d}  {d.name}{default}  {d.channels} channels  {d.rate_hz} Hz{what}")
    for m in loopback.monitors():
        print(f"  -  {m.name}  loopback{' of the default output' if m.default else ''}")
    if not found:
        print("no microphone: PortAudio knows no input device here")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
