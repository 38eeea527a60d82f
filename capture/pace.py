"""The pace of sound that could be read faster than it is spoken: when each sample would have been heard."""

from __future__ import annotations

import time
from collections.abc import Iterator

from capture.intake import Intake
from common.backlog import BYTES
from common.messages import SAMPLE_RATE

BEHIND_S = 2.0  # further behind its pace a source does not hurry


class Schedule:
    """When the samples of a file would have been heard at this pace; pace 0: at once."""

    def __init__(self, factor: float) -> None:
        self.per_s = factor * SAMPLE_RATE
        self.piece_samples = int(min(SAMPLE_RATE, max(SAMPLE_RATE // 10, self.per_s // 10))) if factor else SAMPLE_RATE
        self._due = time.monotonic()

    def pieces(self, pcm: bytes) -> Iterator[bytes]:
        size = self.piece_samples * BYTES
        for i in range(0, len(pcm), size):
            yield pcm[i : i + size]

    def wait(self, intake: Intake, count: int) -> bool:
        """Wait until the next `count` samples are over. False: stop."""
        if not self.per_s:
            return not intake.stopping
        now = time.monotonic()
        self._due = max(self._due, now - BEHIND_S) + count / self.per_s
        return not (intake.wait(self._due - now) if self._due > now else intake.stopping)
