"""The audio of a file on disk: of audio and video files, and raw PCM of a stated form; at a pace, or at full speed.

After a crash the file is decoded from its beginning and the samples that are in the backlog already are skipped:
seeking would give other samples.
"""

from __future__ import annotations

import hashlib
import os

import av.error

from capture.decode import Decoded, Opened, open_sound, unusable
from capture.intake import Intake
from capture.pace import Schedule
from capture.ring import Patience
from capture.truncation import missing
from common.backlog import BYTES
from common.messages import SAMPLE_RATE
from common.settings import Source, UserError, pace, sound_path


class File:
    """A regular file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = sound_path(source.path)
        self.origin = str(self.path)
        self.pace = pace(source)
        self.raw = source.kind == "pcm"
        self._check()

    def _check(self) -> None:
        try:
            with self.path.open("rb") as f:
                if not f.read(1):
                    raise UserError(f"{self.path}: the file is empty")
        except OSError as e:
            raise UserError(f"{self.path}: {e.strerror}; set source {self.source.name}.path to an audio file") from None

    def changed_ns(self) -> int:
        return os.stat(self.path).st_mtime_ns

    def content(self, intake: Intake) -> str:
        """sha256 of the file, and of how it is to be read where the file does not say that itself."""
        digest = hashlib.sha256()
        with self.path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
                if intake.stopping:
                    return ""
        if self.raw:
            digest.update(f"{self.source.format} {self.source.rate_hz} {self.source.channels}".encode())
        return digest.hexdigest()

    def run(self, intake: Intake) -> str:
        try:
            opened = self._open()
            intake.resumable = True
            return self._read(opened, intake)
        except (av.error.FFmpegError, UserError) as e:
            raise unusable(self.origin, e) from None

    def _open(self) -> Opened:
        if not self.raw:
            return open_sound(str(self.path), self.origin)
        s = self.source
        options = {"sample_rate": str(s.rate_hz), "ch_layout": f"{s.channels} channels"}
        return open_sound(str(self.path), self.origin, s.format, options)

    def _read(self, opened: Opened, intake: Intake) -> str:
        skip, schedule = intake.position, Schedule(self.pace)
        decoded, at = Decoded(opened, read_again=False), 0
        for pcm, _, _ in decoded:
            begin, at = at, at + len(pcm) // BYTES
            if intake.stopping:
                return ""
            for piece in schedule.pieces(pcm[max(0, skip - begin) * BYTES :]):
                if not schedule.wait(intake, len(piece) // BYTES) or not intake.put(piece, Patience.ALWAYS):
                    return ""
        if not at:
            raise UserError(f"{self.origin}: its audio stream holds nothing that can be decoded")
        reason = missing(self.path, opened.container.format.name, opened.declared_s, at / SAMPLE_RATE)
        reason = reason or (f"truncated: {decoded.error.strerror}" if decoded.error else "end of file")
        return f"{reason}; {decoded.damaged} damaged packets" if decoded.damaged else reason
