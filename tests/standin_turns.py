"""Stand-in for the diarizer where only its events matter: turns and relabels as they are told, one append each."""

from __future__ import annotations

from common import messages as m
from common.feed_client import Appender
from common.settings import Settings

RATE = m.SAMPLE_RATE


class StandinTurns:
    """Appends to one stream as producer `diarizer`. Times are seconds."""

    def __init__(self, settings: Settings, stream: str) -> None:
        self.stream, self._appender, self.n = stream, Appender(settings, "diarizer"), 0

    def append(self, *bodies: m.Body) -> int:
        """Returns the seq of the last one."""
        answer = self._appender.append(self.stream, self.n, {}, bodies)
        assert isinstance(answer, m.At) and answer.n == self.n + 1, answer
        self.n = answer.n
        return answer.head

    def turn(self, speaker: str, start_s: float, end_s: float) -> int:
        span = (round(start_s * RATE), round(end_s * RATE))
        return self.append(m.SpeakerTurn(span=span, speaker=speaker, provisional=True))

    def relabel(self, source: str, target: str, start_s: float, end_s: float) -> int:
        span = (round(start_s * RATE), round(end_s * RATE))
        return self.append(m.Relabel(source=source, target=target, span=span))

    def close(self) -> None:
        self._appender.close()
