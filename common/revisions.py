"""Which text of a segment counts: of all that was said of it, the newest word. Pure.

In: transcripts, and what was said instead of one (`suppressed`, `gap`), in any order. Out: each segment's newest
transcript, if it has text. A function of the set of events alone; PROTOCOL.md has the rule for other languages.
"""

from __future__ import annotations

from typing import NamedTuple

from common import messages as m
from common.spans import Seqs
from common.topology import COVERAGE_PRODUCER

KINDS = ("transcript", "suppressed", "gap", "purged")


class _Version(NamedTuple):
    """One revision of a segment; `text` None: it turned out to be no speech, or failed."""

    revision: int
    seq: int
    supersedes: str | None
    text: m.Transcript | None
    end: int  # sample


class Revisions:
    """The segments of one stream."""

    def __init__(self) -> None:
        self.newest: dict[str, m.Transcript] = {}
        self.chosen: dict[str, int] = {}  # seq of the newest word, also where that is no text
        self._versions: dict[str, dict[int, _Version]] = {}  # by segment and seq
        self._segment_of: dict[int, str] = {}  # by seq

    def take(self, e: m.Event, body: m.EventBody | None) -> str:
        """An event of the stream and its body; the segment that it says something new about, "" if none."""
        if not isinstance(body, m.Transcript | m.Suppressed | m.Gap) or not body.segment or e.seq in self._segment_of:
            return ""
        text = body if isinstance(body, m.Transcript) else None
        if text is None and e.producer != COVERAGE_PRODUCER:
            return ""  # others fail at things of their own
        self._segment_of[e.seq] = body.segment
        self._versions.setdefault(body.segment, {})[e.seq] = _Version(
            body.revision, e.seq, body.supersedes, text, body.span[1]
        )
        self._choose(body.segment)
        return body.segment

    def forget(self, seqs: Seqs) -> list[str]:
        """Events whose bodies are gone for good; the segments that they were about."""
        out = dict.fromkeys(self._segment_of.pop(seq) for seq in seqs.of(self._segment_of))
        for segment in out:
            versions = self._versions[segment]
            for seq in [seq for seq in versions if seq not in self._segment_of]:
                del versions[seq]
            self._choose(segment)
        return list(out)

    def trim(self, before: int) -> list[str]:
        """Forget segments that ended before a sample, also those without text, for who does not show them any more;
        which segments."""
        ends = {segment: max(v.end for v in versions.values()) for segment, versions in self._versions.items()}
        ends |= {segment: text.span[1] for segment, text in self.newest.items()}
        gone = [segment for segment, end in ends.items() if end <= before]
        for segment in gone:
            self.newest.pop(segment, None)
            self.chosen.pop(segment, None)
            for seq in self._versions.pop(segment):
                del self._segment_of[seq]
        return gone

    def _choose(self, segment: str) -> None:
        versions = self._versions[segment].values()
        replaced = {v.supersedes for v in versions}
        left = [v for v in versions if f"{segment}/{v.revision}" not in replaced]
        chosen = max(left, default=None)
        if chosen:
            self.chosen[segment] = chosen.seq
        else:
            self.chosen.pop(segment, None)
        if chosen and chosen.text:
            self.newest[segment] = chosen.text
        else:
            self.newest.pop(segment, None)
        if not versions:
            del self._versions[segment]
