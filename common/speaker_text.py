"""Who speaks, in the words of a terminal: a printed line stays, so what comes later is a line of its own. Pure."""

from __future__ import annotations

from common import messages as m
from common.join import Join
from common.spans import clock
from common.speaker_runs import NOBODY

KEPT = 1800 * m.SAMPLE_RATE  # samples: who said what is older is no news any more
MOST = 3  # lines of news at once; a clustering may find another speaker for much of an hour


class Who:
    """One stream: what was told of its speakers, and what is new."""

    def __init__(self) -> None:
        self.join = Join()
        self._told: dict[str, tuple[str, ...]] = {}  # speakers by segment, as the lines say it
        self._last = NOBODY  # whose name was printed last: who reads takes what follows for theirs
        self._newest = ""  # segment
        self._mark = 0
        self._named: dict[str, str] = {}  # as the lines say it
        self._trimmed = 0

    def caption(self, text: m.Transcript) -> list[str]:
        """Lines of a transcript that the join has: one, and another one where somebody else goes on."""
        lines: list[str] = []
        for run in self.join.runs(text.segment):
            begins = run.speaker not in (NOBODY, self._last)
            if begins:
                self._last = run.speaker
            said = f"{self._call(run.speaker)}: {run.text}" if begins else run.text
            if begins and lines:
                lines.append(f"{clock(run.span[0])}  {said}")
            elif lines:
                lines[-1] += f" {said}"
            else:
                lines.append(f"{clock(text.span[0])}  {said}")
        self._told[text.segment] = self._speakers(text.segment)
        self._newest = text.segment
        self._trim(text.span[0] - KEPT)
        return lines

    def news(self) -> list[str]:
        """What has been found out about lines that stand there already, and who is called otherwise now."""
        changed = [segment for segment in self.join.since(self._mark) if segment in self._told]
        self._mark = self.join.mark
        lines = [line for segment in reversed(changed) if (line := self._found(segment))]
        if len(lines) > MOST:
            lines = [f"[{len(lines)} captions have other speakers now]"]
        for speaker, name in list(self._named.items()):
            if self.join.name(speaker) != name:
                lines.append(f"[{name} is {self._call(speaker)}]")
        return lines

    def _found(self, segment: str) -> str:
        """The line about one caption; "" when it goes without saying."""
        before, now = self._told[segment], self._speakers(segment)
        if now in (before, ()):  # (taken away: something else comes in its place, or it stays as it was said)
            return ""
        self._told[segment] = now
        if before == () and now == (self._last,):
            return ""
        if segment == self._newest:
            self._last = now[-1]
        runs, speaker, said = self.join.runs(segment), NOBODY, list[str]()
        for run in runs:
            if run.speaker not in (NOBODY, speaker):
                said.append(f"{clock(run.span[0])} {self._call(run.speaker)}")
                speaker = run.speaker
        return f"[{', '.join(said)}{f', not {self._call(before[0])}' if len(now) == len(before) == 1 else ''}]"

    def _speakers(self, segment: str) -> tuple[str, ...]:
        """Of a segment, in order, each change once."""
        known = [run.speaker for run in self.join.runs(segment) if run.speaker != NOBODY]
        return tuple(s for i, s in enumerate(known) if i == 0 or s != known[i - 1])

    def _call(self, speaker: str) -> str:
        self._named[speaker] = self.join.name(speaker)
        return self._named[speaker]

    def _trim(self, before: int) -> None:
        if before > self._trimmed + KEPT // 10:
            self._trimmed = before
            for segment in self.join.trim(before):
                self._told.pop(segment, None)
