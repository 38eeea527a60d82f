"""What of the texts of a stream has no translation, by letters. Pure.

A translation says in `source` which words it is of. Sentences are told in the order in which they were said; what none
of them has is left. White space counts for nothing: sources have their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from common import messages as m


class Rest(NamedTuple):
    """Words of a text, one after the other. `words`: their [first, end) in the transcript; none: it has no times."""

    segment: str
    span: m.Span
    text: str
    words: tuple[int, int]


class Rests:
    """The texts of one stream, into one language."""

    def __init__(self) -> None:
        self._translated: dict[str, set[int]] = {}  # numbers of letters, by segment
        self._behind: dict[str, int] = {}  # the last sentence that was told, by segment

    def take(self, texts: Sequence[m.Transcript], source: str, translated: bool) -> None:
        """A sentence that has words of these texts; one that was given up only says where the next ones are."""
        letters = [_letters(t.text) for t in texts]
        whole, wanted = "".join(letters), _letters(source)
        start = whole.find(wanted, self._behind.get(texts[0].segment, 0)) if wanted else -1
        end = start + len(wanted)
        if start < 0:
            if not translated:
                return
            start, end = 0, len(whole)  # of which words it is nobody knows: of all
        for text, its in zip(texts, letters, strict=True):
            inside = range(max(0, start), min(len(its), end))
            if inside:
                self._behind[text.segment] = inside.stop
                if translated:
                    self._translated.setdefault(text.segment, set()).update(inside)
            start, end = start - len(its), end - len(its)

    def left(self, t: m.Transcript) -> Iterator[Rest]:
        """What of a text no sentence had, in order."""
        places = [i for i, c in enumerate(t.text) if not c.isspace()]
        translated = self._translated.get(t.segment, set())
        for has, group in groupby(range(len(places)), translated.__contains__):
            if not has:
                letters = list(group)
                yield _rest(t, places, letters[0], letters[-1] + 1)


def _rest(t: m.Transcript, places: list[int], first: int, end: int) -> Rest:
    """Letters of a text, which stand at `places` in it."""
    text = t.text[places[first] : places[end - 1] + 1]
    if _letters("".join(w.text for w in t.words)) == _letters(t.text):
        behind = list(accumulate(len(_letters(w.text)) for w in t.words))
        a = next(i for i, n in enumerate(behind) if n > first)
        b = next(i for i, n in enumerate(behind) if n >= end) + 1
        spans = [w.span for w in t.words[a:b]]
        return Rest(t.segment, (min(s[0] for s in spans), max(s[1] for s in spans)), text, (a, b))
    (start, over), length = t.span, places[-1] + 1 - places[0]
    a, b = (start + (over - start) * (i - places[0]) // length for i in (places[first], places[end - 1] + 1))
    return Rest(t.segment, (a, b), text, (0, 0))


def _letters(text: str) -> str:
    return "".join(text.split())
