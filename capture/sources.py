"""What every source of audio offers, and the one place that knows their kinds.

A source runs in its own thread, makes 16 kHz mono s16le of whatever it reads and puts that into the intake. Libraries
are imported by the source that needs them, when it runs: PCM on stdin needs none.
"""

from __future__ import annotations

from typing import Protocol

from capture.intake import Intake
from common import settings
from common.settings import UserError


class Input(Protocol):
    """A source of audio."""

    origin: str  # where the samples come from, for people; the same again after a restart

    def content(self, intake: Intake) -> str:
        """sha256 of a batch file; empty when asked to stop meanwhile."""

    def changed_ns(self) -> int:
        """The file's own time of its last change; 0 where there is no file."""

    def run(self, intake: Intake) -> str:
        """Put all samples into the intake. Returns why it ended, "" when it was asked to stop. Raises UserError."""


def make(source: settings.Source) -> Input:
    """The input that the settings describe. Raises UserError."""
    if source.kind == "stdin":
        from capture.pipe import Pipe

        return Pipe(source)
    if source.kind == "microphone":
        from capture.microphone import Microphone

        return Microphone(source)
    if source.kind == "loopback":
        from capture.loopback import Loopback

        return Loopback(source)
    if source.kind == "pcm":
        from capture.pipe import Pipe, is_pipe

        if is_pipe(source.path):
            return Pipe(source)
    if source.kind == "file" and "://" in source.path and not source.path.startswith("file://"):
        from capture.network import Url

        return Url(source)
    if source.kind in ("file", "pcm"):
        from capture.files import File

        return File(source)
    raise UserError(f"source {source.name}: unknown kind {source.kind!r}")
