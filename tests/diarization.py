"""How good "who said it" is: turns and words of speakers held against what is known of a recording. No model here.

    score([(reference, hypothesis, length_s), ...])     DER and JER of pyannote.metrics
    provisional(told, reference)                         what was shown of who speaks soon after each turn
    Shown().take(events)                                 words whose speaker changed after it was shown
    cpwer(reference, hypothesis)                         words and who said them, by meeteval

Ids of speakers mean nothing across recordings or systems: every measure finds the mapping that suits the hypothesis.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common import messages as m
from common.join import Join
from common.speaker_runs import NOBODY, Run
from tests.speech import plain, words

Turn = tuple[float, float, str]  # start and end in seconds, speaker
Turns = list[Turn]
SOON_S = 3.0  # after the end of a turn its label is to be there


class Score(NamedTuple):
    """Percent; the parts of DER are shares of the reference's speech, so that they add up to it."""

    der: float
    jer: float
    missed: float
    false_alarm: float
    confusion: float


def score(recordings: Iterable[tuple[Turns, Turns, float]], collar_s: float = 0.0) -> Score:
    """(reference, hypothesis, length in seconds) of each recording, counted together.

    `collar_s` as pyannote.metrics has it: that much around each edge of the reference is not counted, half of it before
    and half behind. Overlapping speech counts.
    """
    from pyannote.core import Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    der, jer = DiarizationErrorRate(collar=collar_s), JaccardErrorRate(collar=collar_s)
    for reference, hypothesis, length_s in recordings:
        ours, uem = (annotation(reference), annotation(hypothesis)), Timeline([Segment(0, length_s)])
        der(*ours, uem=uem)
        jer(*ours, uem=uem)
    total = der["total"] or 1.0
    parts = (100 * der[part] / total for part in ("missed detection", "false alarm", "confusion"))
    return Score(100 * abs(der), 100 * abs(jer), *parts)


def annotation(turns: Iterable[Turn]):  # type: ignore[no-untyped-def]
    """For pyannote.metrics. Pieces of one speaker that touch or overlap are one turn."""
    from pyannote.core import Annotation, Segment

    found = Annotation()
    for i, (start, end, who) in enumerate(turns):
        if end > start:
            found[Segment(start, end), i] = who
    return found.support()


def rttm(path: Path) -> dict[str, Turns]:
    """Recording -> turns of an RTTM file."""
    turns: dict[str, Turns] = {}
    for row in map(str.split, path.read_text().splitlines()):
        start, length = float(row[3]), float(row[4])
        turns.setdefault(plain(row[1]), []).append((start, start + length, row[7]))
    return turns


class Told(NamedTuple):
    """A turn of the journal, and when a subscriber had it: seconds of the stream that had been heard by then."""

    turn: Turn
    at_s: float


def provisional(told: Sequence[Told], reference: Turns, soon_s: float = SOON_S) -> Turns:
    """What a subscriber that takes no notice of relabels shows `soon_s` after the end of each turn of the reference.

    What it is told of a turn later than that does not count: the turn is missed there. Where two turns of the reference
    overlap, the later end counts. What is told where nobody speaks counts whenever it comes.
    """
    shown: Turns = []
    for (start, end, who), at_s in told:
        soon = [(a, b) for a, b, _ in reference if at_s <= b + soon_s]
        late = outside([(a, b) for a, b, _ in reference if at_s > b + soon_s], soon)
        shown += [(a, b, who) for a, b in outside([(start, end)], late)]
    return shown


def outside(spans: Iterable[tuple[float, float]], others: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The parts of `spans` that are in none of `others`."""
    left = list(spans)
    for a, b in others:
        left = [p for start, end in left for p in ((start, min(end, a)), (max(start, b), end)) if p[0] < p[1]]
    return left


class Shown:
    """A subscriber's captions: the speaker that each word was first shown with, and the one it has now.

    A word that is nobody's again has another speaker than the one it had.
    """

    def __init__(self) -> None:
        self.join = Join()
        self._mark = 0
        self._first: dict[tuple[str, int], str] = {}  # segment, word -> speaker
        self._ever: set[tuple[str, int]] = set()  # words that had another one than at first, at some time
        self._now: dict[str, list[str]] = {}

    def take(self, events: Iterable[m.Event]) -> None:
        """What came at once is shown at once."""
        for e in events:
            self.join.take(e)
        changed = self.join.since(self._mark)
        self._mark = self.join.mark
        for segment in changed:
            runs = self.join.runs(segment)
            self._now[segment] = [r.speaker for r in runs for _ in range(*r.words)]
            for i, who in enumerate(self._now[segment]):
                key = (segment, i)
                if who != NOBODY:
                    self._first.setdefault(key, who)
                if self._first.get(key, who) != who:
                    self._ever.add(key)

    @property
    def runs(self) -> list[Run]:
        """Of all segments, by time."""
        return sorted((r for segment in self._now for r in self.join.runs(segment)), key=lambda r: r.span)

    def counted(self) -> tuple[int, int, int, int]:
        """Words; of them without a speaker; with another speaker now than the first one shown; ever so."""
        now = {(segment, i): who for segment, all_of in self._now.items() for i, who in enumerate(all_of)}
        changed = sum(key in self._first and self._first[key] != who for key, who in now.items())
        return len(now), sum(who == NOBODY for who in now.values()), changed, len(self._ever & now.keys())


class WordErrors(NamedTuple):
    errors: int
    words: int

    @property
    def percent(self) -> float:
        return 100 * self.errors / self.words if self.words else 0.0


def cpwer(reference: Mapping[str, str], hypothesis: Mapping[str, str]) -> WordErrors:
    """Concatenated minimum-permutation word error rate: speaker -> all that this speaker says, in order of time.

    Words as in tests.speech. What nobody is said to have said is one more speaker. (Watanabe et al. 2020, CHiME-6)
    """
    from meeteval.wer import cp_word_error_rate

    logging.getLogger("preprocess").setLevel(logging.ERROR)  # of meeteval; it notes that there are no times
    said, heard = ({who: " ".join(words(text)) for who, text in side.items()} for side in (reference, hypothesis))
    found = cp_word_error_rate(said, heard)
    return WordErrors(found.errors, found.length)


def by_speaker(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(speaker, text) in the order of time -> all of each speaker's text"""
    texts: dict[str, list[str]] = {}
    for who, text in parts:
        texts.setdefault(who, []).append(text)
    return {who: " ".join(some) for who, some in texts.items()}
