"""From a subscriber's record to figures: when each word was first shown, when it was settled, how often it was taken
back. Pure; the record may be of any system.

A record is JSON lines `{"t": s, "segment": id, "text": ..., "final": bool}`: at `t` seconds after the first sample was
played, `text` was all that was shown for this piece of the stream. An empty final: what was shown there went away.
What comes for a piece behind its final counts only when it is final too. One line more, `{"cpu_s": s, "mib": MiB}`, may
say what the recogniser cost: cpu-seconds in all, and its most resident memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Word = tuple[str, float]  # as it is said, and when it ends, in seconds of the audio


class Row(NamedTuple):
    """One line of a record."""

    t: float
    segment: str
    text: str
    final: bool = False


class Costs(NamedTuple):
    """Of the process that recognises, over the whole run; 0: not known."""

    cpu_s: float = 0.0
    mib: float = 0.0


class Timing(NamedTuple):
    """A word of the final text: seconds from its end in the audio until it was first shown, and settled for good."""

    word: str
    shown_s: float
    settled_s: float


class Figures(NamedTuple):
    """What a record says."""

    timings: list[Timing]
    final_words: int
    taken_back: int
    text: str  # all finals in the order of their first appearance

    @property
    def taken_back_per_word(self) -> float:
        return self.taken_back / max(1, self.final_words)

    def shown(self, share: float) -> float:
        return quantile([t.shown_s for t in self.timings], share)

    def settled(self, share: float) -> float:
        return quantile([t.settled_s for t in self.timings], share)


def read(lines: Iterable[str]) -> tuple[list[Row], Costs]:
    """A record from its lines."""
    rows, costs = list[Row](), Costs()
    for line in filter(str.strip, lines):
        fields = json.loads(line)
        if "t" in fields:
            rows.append(Row(**fields))
        else:
            costs = Costs(**fields)
    return rows, costs


def written(rows: Iterable[Row], costs: Costs) -> str:
    """The lines of a record."""
    return "".join(json.dumps(x._asdict(), ensure_ascii=False) + "\n" for x in (*rows, costs))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def plain(text: str) -> list[str]:
    """Words without case and marks: what a change of punctuation does not change."""
    return [w for w in (re.sub(r"[\W_]+", "", part).lower() for part in text.split()) if w]


def align(a: Sequence[str], b: Sequence[str], open_end: bool = False) -> list[int]:
    """For each word of `a` the index of its partner in `b`, -1 for none, by the fewest edits.

    `open_end`: what `b` has behind the last partner costs nothing: `a` is what was there of `b` so far.
    """
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    out = list(range(head))
    a, b = a[head:], b[head:]
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                rows[i][j] = i + j
            else:
                same = rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])
                rows[i][j] = min(same, rows[i - 1][j] + 1, rows[i][j - 1] + 1)
    i, j = len(a), len(b)
    if open_end:
        j = min(range(len(b) + 1), key=lambda k: rows[i][k])
    found = [-1] * len(a)
    while i and j:
        if rows[i][j] == rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]):
            i, j = i - 1, j - 1
            found[i] = head + j
        elif rows[i][j] == rows[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return out + found


def standing(shown: Sequence[str], final: Sequence[str]) -> set[int]:
    """Which words of `final` stand at their place in `shown`."""
    return {k for i, k in enumerate(align(shown, final, open_end=True)) if k >= 0 and shown[i] == final[k]}


def figures(record: Iterable[Row], said: Sequence[Word]) -> Figures:
    """`said`: the words of the audio in order. Final words that stand for none of them have no delay."""
    rows: dict[str, list[Row]] = {}
    for row in record:
        history = rows.setdefault(row.segment, [])
        if row.final or not (history and history[-1].final):
            history.append(row)
    times: list[tuple[str, float, float]] = []
    taken_back, texts = 0, []
    for history in rows.values():
        final = plain(history[-1].text)
        before: list[str] = []
        shown, settled = [math.inf] * len(final), [math.inf] * len(final)
        for row in history:
            now = plain(row.text)
            partners = align(before, now, open_end=True)
            taken_back += sum(k < 0 or now[k] != w for w, k in zip(before, partners, strict=True))
            stand = standing(now, final)
            for k in range(len(final)):
                if k not in stand:
                    settled[k] = math.inf
                    continue
                shown[k] = min(shown[k], row.t)
                settled[k] = min(settled[k], row.t)
            before = now
        times += zip(final, shown, settled, strict=True)
        texts.append(history[-1].text)
    partners = align([w for w, _, _ in times], [p for w, _ in said for p in plain(w)])
    ends = [end for w, end in said for _ in plain(w)]
    timings = [
        Timing(word, first - ends[k], last - ends[k])
        for (word, first, last), k in zip(times, partners, strict=True)
        if k >= 0
    ]
    return Figures(timings, len(times), taken_back, " ".join(texts))
