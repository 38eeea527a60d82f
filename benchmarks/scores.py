"""How near captions, speakers and translations come to what is known: one measure of a published tool each. Pure.

    word_errors(said, heard)                             jiwer, words as Whisper's normaliser has them
    score([(reference, hypothesis, length_s), ...])      DER and JER of pyannote.metrics
    cpwer(reference, hypothesis)                         words and who said them, by meeteval
    chrf(live, direct)                                   translations beside whole-sentence ones, by sacrebleu

For `swapscribe demo`, benchmarks and tests. The tools are imported where they are used: each may be missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

Turn = tuple[float, float, str]  # start and end in seconds, speaker
Turns = list[Turn]
Translated = tuple[str, str]  # what was said, and that in another language

# Words


class WordErrors(NamedTuple):
    errors: int
    words: int

    @property
    def percent(self) -> float:
        return 100 * self.errors / self.words if self.words else 0.0


def words(text: str, language: str = "en") -> list[str]:
    """Words as Whisper's papers count them: lower case, no punctuation; English numbers and such one way."""
    return str(_normalizer(language == "en")(text)).split()


def word_errors(reference: str, heard: str, language: str = "en") -> int:
    """Substituted, missing and invented words."""
    import jiwer

    said, got = words(reference, language), words(heard, language)
    if not said or not got:  # jiwer takes no empty reference
        return len(said) + len(got)
    o = jiwer.process_words(" ".join(said), " ".join(got))
    return int(o.substitutions + o.deletions + o.insertions)


def wer(reference: str, heard: str, language: str = "en") -> WordErrors:
    return WordErrors(word_errors(reference, heard, language), len(words(reference, language)))


@cache
def _normalizer(english: bool) -> Callable[[str], str]:
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if english else BasicTextNormalizer()  # type: ignore[no-any-return]


# Speakers. Ids mean nothing across recordings or systems: the measures find the mapping that suits the hypothesis.


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


def plain(name: str) -> str:
    """Without accents: pyannote calls one of its test files trñ00."""
    return normalize("NFKD", name).encode("ascii", "ignore").decode()


def cpwer(reference: Mapping[str, str], hypothesis: Mapping[str, str]) -> WordErrors:
    """Concatenated minimum-permutation word error rate: speaker -> all that this speaker says, in order of time.

    What nobody is said to have said is one more speaker. (Watanabe et al. 2020, CHiME-6)
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


# Translations


def chrf(live: Sequence[Translated], direct: Sequence[Translated]) -> float:
    """chrF (0 to 100) of `live` with `direct` as reference: two translations of the same words, cut as each likes.

    They are held against each other stretch by stretch: from one place where both cut to the next. Where `live` lacks
    words, there is no such place any more, and the rest is one stretch.
    """
    import sacrebleu

    pairs = stretches(live, direct)
    if not pairs:
        return 0.0
    return float(sacrebleu.corpus_chrf([a for a, _ in pairs], [[b for _, b in pairs]]).score)


def bleu(live: Sequence[Translated], human: Sequence[Translated]) -> float:
    """BLEU (0 to 100), stretch by stretch as `chrf`."""
    import sacrebleu

    pairs = stretches(live, human)
    return float(sacrebleu.corpus_bleu([a for a, _ in pairs], [[b for _, b in pairs]]).score) if pairs else 0.0


def stretches(one: Sequence[Translated], other: Sequence[Translated]) -> list[tuple[str, str]]:
    """The translations of the words between two places where both end a piece, side by side."""
    last = max(_length(source for source, _ in side) for side in (one, other))
    cuts = sorted({length for length, _ in _ends(one) & _ends(other)} | {last})
    return [(a, b) for a, b in zip(_gathered(one, cuts), _gathered(other, cuts), strict=True) if a or b]


def _length(texts: Iterable[str]) -> int:
    return sum(len("".join(text.split())) for text in texts)


def _ends(side: Sequence[Translated]) -> set[tuple[int, str]]:
    """How many characters were said up to the end of each piece, spaces apart, and which."""
    ends, at, said = set[tuple[int, str]](), 0, sha256()
    for source, _ in side:
        at += _length([source])
        said.update("".join(source.split()).encode())
        ends.add((at, said.hexdigest()))
    return ends


def _gathered(side: Sequence[Translated], cuts: Sequence[int]) -> list[str]:
    texts: list[list[str]] = [[] for _ in cuts]
    at, i = 0, 0
    for source, translated in side:
        at += _length([source])
        texts[i].append(translated)
        if at >= cuts[i] and i + 1 < len(cuts):
            i += 1
    return [" ".join(t for t in some if t) for some in texts]
