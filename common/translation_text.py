"""Translations in the words of a terminal: a printed line stays, what is translated anew is another one. Pure."""

from __future__ import annotations

from common import messages as m
from common.revisions import KINDS
from common.spans import clock
from common.translations import Sentence, Translations

KEPT = 1800 * m.SAMPLE_RATE  # samples: a new translation of older words is no news any more


class InOtherWords:
    """One stream: what was translated, and what of it is new. `only`: these languages; none named: all."""

    def __init__(self, only: tuple[str, ...] = ()) -> None:
        self._only, self._known, self._mark, self._trimmed = only, Translations(), 0, 0
        self._told: dict[str, dict[tuple[int, str], str]] = {}  # text by segment, and by place and target

    def take(self, e: m.Event) -> None:
        self._known.take(e)
        body = e.decode() if e.kind in KINDS else None
        if isinstance(body, m.Transcript | m.Suppressed | m.Gap) and body.span[0] > self._trimmed + KEPT // 10:
            self._trimmed = body.span[0]
            for segment in self._known.trim(body.span[0] - KEPT):
                self._told.pop(segment, None)

    def news(self) -> list[str]:
        """Lines about what has been translated since the last call, in the order in which it was said."""
        changed = self._known.since(self._mark)
        self._mark = self._known.mark
        new = [s for segment in changed for s in self._known.made(segment) if not self._only or s.target in self._only]
        return [line for s in sorted(new, key=lambda s: (s.span, s.place)) if (line := self._line(s))]

    def _line(self, s: Sentence) -> str:
        told = self._told.setdefault(s.segment, {})
        before = told.get((s.place, s.target))
        told[s.place, s.target] = s.text
        if before == s.text:
            return ""
        doubt = "?" * bool(s.suspect)
        anew = ", anew" * (before is not None)
        return f"{clock(s.span[0])}  ({s.target}{doubt}{anew}) {s.text}"
