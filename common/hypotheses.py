"""Interim text as a receiver keeps it: the newest of each stream, until its final is there. Pure.

What is older than what was seen, and what a final has replaced, is dropped: publications overtake one another.
"""

from __future__ import annotations

from common import messages as m
from common.topology import COVERAGE_PRODUCER

ENDS_IT = ("transcript", "suppressed", "gap")  # kinds of events that stand in the place of an utterance's interim text


class Hypotheses:
    """`newest` has at most one Hypothesis a stream. It is replaced, not changed: another thread may be reading it."""

    def __init__(self) -> None:
        self.newest: dict[str, m.Hypothesis] = {}
        self._done: dict[str, int] = {}  # stream -> end of the newest final

    def take(self, h: m.Hypothesis) -> bool:
        """False: it is old news."""
        seen = self.newest.get(h.stream)
        if h.span[0] < self._done.get(h.stream, 0):
            return False
        if seen and (h.span[0], h.revision) <= (seen.span[0], seen.revision):
            return False
        self.newest = self.newest | {h.stream: h}
        return True

    def event(self, e: m.Event) -> None:
        """A final takes the place of the interim text of its utterance, the end of a stream that of all."""
        if e.kind == "stream_ended":
            self.newest = {k: v for k, v in self.newest.items() if k != e.stream}
        if e.producer != COVERAGE_PRODUCER or e.kind not in ENDS_IT or not (body := e.decode()):
            return
        assert isinstance(body, m.Transcript | m.Suppressed | m.Gap)
        self._done[e.stream] = max(self._done.get(e.stream, 0), body.span[1])
        seen = self.newest.get(e.stream)
        if seen and seen.span[0] < body.span[1]:
            self.newest = {k: v for k, v in self.newest.items() if k != e.stream}
