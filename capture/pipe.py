"""Raw PCM on standard input or from a FIFO: any stated form; 16 kHz mono s16le goes through untouched.

The writer of the pipe sets the pace. When the disk is slow the pipe fills and its writer waits; when the disk is full
the newest audio is lost and recorded, because the writer may be a sound card that cannot wait. Standard input ends; a
FIFO whose writer has gone waits for the next one, and the time between is a hole.
"""

from __future__ import annotations

import os
import select
import stat

from capture.intake import Intake
from capture.pcm import SAMPLE_BYTES, converter
from capture.ring import Patience
from common.settings import Source, UserError, pace, sound_path

READ_BYTES = 65536  # what a pipe holds
POLL_MS = 200
WRITER_S = 0.1  # a look for a new writer of a FIFO


class Pipe:
    """Standard input, or a FIFO."""

    def __init__(self, source: Source, fd: int = 0) -> None:
        self.source, self.fd, self.fifo = source, fd, source.kind == "pcm"
        self.origin = source.path if self.fifo else "stdin"
        if self.fifo:
            if not pace(source):
                raise UserError(f"source {source.name}: pace max needs a regular file, and {source.path} is none")
            try:
                self.fd = os.open(sound_path(source.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as e:
                raise UserError(f"{source.path}: {e.strerror}") from None
        elif os.isatty(fd):
            raise UserError(f"source {source.name}: stdin is a terminal; pipe {source.format} PCM into it")

    def content(self, intake: Intake) -> str:
        return ""

    def changed_ns(self) -> int:
        return 0

    def run(self, intake: Intake) -> str:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        heard = False
        while not intake.stopping:
            got = self._one_writer(poll, intake)
            if got is None:
                break
            heard = heard or got
            if not self.fifo:
                if not heard:
                    raise UserError(f"source {self.source.name}: stdin ended before any audio came")
                return "end of input"
            intake.state, intake.detail = "reconnecting", f"nobody writes to {self.source.path}"
            intake.away("nobody wrote to the FIFO", at_least=1)
            intake.wait(WRITER_S)
        return ""

    def _one_writer(self, poll: select.poll, intake: Intake) -> bool | None:
        """Until the writer closes its end: was there sound? None when we are to stop."""
        frame = SAMPLE_BYTES[self.source.format] * self.source.channels
        convert = converter(self.source.rate_hz, self.source.channels, self.source.format)
        rest, heard = b"", False
        while not intake.stopping:
            if not poll.poll(POLL_MS):
                continue
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                if heard:
                    intake.put(convert(b"", True), Patience.WHILE_DISK_TAKES)
                return heard
            intake.state, intake.detail = "ok", ""
            rest += data
            whole = len(rest) // frame * frame
            heard = heard or whole > 0
            intake.put(convert(rest[:whole], False), Patience.WHILE_DISK_TAKES)
            rest = rest[whole:]
        return None


def is_pipe(path: str) -> bool:
    """A FIFO or a device: it cannot be read again. What is not there is for a file's complaint."""
    try:
        mode = os.stat(sound_path(path)).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
