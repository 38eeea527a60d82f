"""PCM on standard input: s16le, any rate, any number of channels; 16 kHz mono goes through untouched.

The writer of the pipe sets the pace. When the disk is slow the pipe fills and its writer waits; when the disk is full
the newest audio is lost and recorded, because the writer may be a sound card that cannot wait.
"""

from __future__ import annotations

import os
import select

from capture.intake import Intake
from capture.pcm import converter
from capture.ring import Patience
from common.settings import Source, UserError

READ_BYTES = 65536  # what a pipe holds
POLL_MS = 200


class Pipe:
    """Standard input."""

    origin = "stdin"

    def __init__(self, source: Source, fd: int = 0) -> None:
        self.source, self.fd = source, fd
        if os.isatty(fd):
            raise UserError(f"source {source.name}: stdin is a terminal; pipe s16le PCM into it")

    def content(self, intake: Intake) -> str:
        return ""

    def changed_ns(self) -> int:
        return 0

    def run(self, intake: Intake) -> str:
        frame = 2 * self.source.channels
        convert = converter(self.source.rate_hz, self.source.channels)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        rest, heard = b"", False
        while not intake.stopping:
            if not poll.poll(POLL_MS):
                continue
            data = os.read(self.fd, READ_BYTES)
            if not data:
                if not heard:
                    raise UserError(f"source {self.source.name}: stdin ended before any audio came")
                intake.put(convert(b"", True), Patience.WHILE_DISK_TAKES)
                return "end of input"
            rest += data
            whole = len(rest) // frame * frame
            heard = heard or whole > 0
            intake.put(convert(rest[:whole], False), Patience.WHILE_DISK_TAKES)
            rest = rest[whole:]
        return ""
