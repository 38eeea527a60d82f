"""What of one stream is to be translated: its events folded into sentences, beside what the journal has of them. Pure.

Level-triggered: due is every sentence of which the journal has no translation, or one that was made from other texts.
So it does not matter how often the translator was killed, in which order it works, since when a target is wanted, or
what was corrected meanwhile. A translation of which there is no such sentence any more is taken back.

Each target is a producer of its own, `translator.<target>`. Its position `transcript`: of everything up to that seq
there is a translation, if one is wanted. Its state: the sha256 of what its last append said, by which the answer to an
append is known from that to another's.

Of a stream that goes on for long only the end is held. What is said about the rest makes what is here stale, and the
stream is read again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, nsmallest
from typing import NamedTuple

from common import messages as m
from common.revisions import Revisions
from common.topology import COVERAGE_PRODUCER
from common.translations import parts_of
from workers.due import Due, Key
from workers.sentences import Sentence, Sentences
from workers.steps import Step

KINDS = ("transcript", "suppressed", "gap", "silence", "stream_started", "stream_ended", "translation")
MOST_GONE = 500  # taken back in one append: an append has a limit
KEPT = 2 * 3600 * m.SAMPLE_RATE  # samples that are held before the end of what is known
Knows = Callable[[str, str], bool]  # a pair of languages


class _Made(NamedTuple):
    """The newest translation of a sentence. `n`: the append that brought it."""

    n: int
    parts: tuple[str, ...]
    source: str
    empty: bool


class Target:
    """One language that a stream is translated to."""

    def __init__(self, code: str, at: m.At) -> None:
        self.code, self.at = code, at
        self.since = at.head  # events up to this may be missing here, and translations of ours among them
        self.due = Due()
        self.made: dict[str, dict[int, _Made]] = {}  # by segment and place
        self.known_n = 0  # what these appends of ours said of what is forgotten is known

    @property
    def position(self) -> int:
        return self.at.positions.get("transcript", 0)


class Script:
    """One stream. Events of each kind come in seq order, each at least once; then `settle`."""

    def __init__(self, stream: str, places: dict[str, m.At], hold_s: float, knows: Knows) -> None:
        self.stream, self._hold_s, self._knows = stream, hold_s, knows
        self.targets = {code: Target(code, at) for code, at in places.items()}
        self.lane, self.ended = "live", False
        self.stale = False  # what is here may differ from the journal: make a new Script
        self.last = 0  # seq of the last event that is no translation
        self.head = 0  # everything that was said before this sample is known
        self.sentences: dict[Key, Sentence] = {}  # that are over
        self.known_ns: dict[Key, int] = {}  # wall clock of the commit that made them so
        self.known_s: dict[Key, float] = {}  # since when that is known here, by a clock that nobody sets
        self.unknown: set[tuple[str, str]] = set()  # pairs that no model knows
        self._texts = Revisions()
        self._seq_of: dict[str, int] = {}  # of the newest event of a segment
        self._told: set[str] = set()  # segments that `_split` was told of
        self._corrected: dict[str, int] = {}  # segments since the last fold, and the wall clock of the last commit
        self._split = Sentences(hold_s)
        self._ahead: dict[int, m.Event] = {}  # by seq: what is before them has not come yet
        self._needs: list[tuple[int, int]] = []  # a heap: sample up to which all must be known, and seq
        self._begin = -1  # sample: what ended before it is forgotten
        self._forgot = 0  # seq: with all that had been told up to it
        self._forget_at = 0  # sample: not before it is known; 0: not until some time has passed

    # Events

    def take(self, e: m.Event) -> None:
        """What another kind is needed for first waits, for a lost event is healed after later ones of other kinds."""
        if e.seq > self._forgot and e.seq not in self._ahead:
            self._ahead[e.seq] = e
            heappush(self._needs, (_needs(e), e.seq))
        self._take_ready()

    def settle(self, upto: int) -> None:
        """Every event up to this seq has been given to `take`."""
        for seq in sorted(seq for seq in self._ahead if seq <= upto):
            self._take(self._ahead.pop(seq))
        self._needs = [(sample, seq) for sample, seq in self._needs if seq in self._ahead]
        heapify(self._needs)
        self._take_ready()
        self._fold()
        self._forget(upto)

    def _take_ready(self) -> None:
        while self._needs and self._needs[0][0] <= self.head:
            self._take(self._ahead.pop(heappop(self._needs)[1]))

    def _take(self, e: m.Event) -> None:
        body = e.decode()
        if e.kind == "translation":
            if isinstance(body, m.Translation):
                self._was_made(e.producer, body, e.n)
            return
        self.last = max(self.last, e.seq)
        match body:
            case m.StreamStarted():
                self.lane = body.lane
            case m.Transcript() | m.Suppressed() | m.Gap() | m.Silence() if e.producer == COVERAGE_PRODUCER:
                if not isinstance(body, m.Silence) and body.segment and body.span[0] <= self._begin:
                    self.stale = True  # also by the first text that is held: what was before may go on in its new words
                elif segment := self._texts.take(e, body):
                    self._seq_of[segment] = e.seq
                    self._said(segment, body.span, e.at_ns)
                self._reach(body.span[1], e.at_ns)
            case m.StreamEnded():
                self.ended = True
                self._over(self._split.end(), e.at_ns)
            case m.Purged():
                self.stale = True

    def _said(self, segment: str, span: m.Span, at_ns: int) -> None:
        text = self._texts.newest.get(segment)
        if text and segment not in self._told and span[0] >= self.head and not self.ended:
            self._told.add(segment)
            self._over(self._split.add(text), at_ns)
        elif text or segment in self._told:
            self._corrected[segment] = at_ns

    def _reach(self, sample: int, at_ns: int) -> None:
        self.head = max(self.head, sample)
        self._over(self._split.reach(self.head), at_ns)

    def _fold(self) -> None:
        """Once for all texts in the middle that are others now."""
        if not self._corrected:
            return
        corrected, self._corrected = self._corrected, {}
        texts = sorted(self._texts.newest.values(), key=lambda t: (t.span, t.segment))
        self._told = {t.segment for t in texts}
        self._split = Sentences(self._hold_s)
        found = [s for t in texts for s in self._split.add(t)] + self._split.reach(self.head)
        found += self._split.end() if self.ended else []
        last_ns, now_s = max(corrected.values()), time.monotonic()
        for s in found:
            if self.sentences.get(s.key) != s:
                own = [corrected[segment] for segment in s.segments if segment in corrected]
                self.known_ns[s.key], self.known_s[s.key] = max(own, default=last_ns), now_s
        self.sentences = {s.key: s for s in found}
        self.known_ns = {key: self.known_ns[key] for key in self.sentences}
        self.known_s = {key: self.known_s[key] for key in self.sentences}
        for target in self.targets.values():
            self._look(target, {*self.sentences, *_keys(target.made, target.made), *target.due.keys()})

    def _over(self, found: Sequence[Sentence], at_ns: int) -> None:
        for s in found:
            self.sentences[s.key] = s
            self.known_ns[s.key] = at_ns
            self.known_s[s.key] = time.monotonic()
        if found:
            segments = {segment for s in found for segment in s.segments}
            for target in self.targets.values():
                self._look(target, {*(s.key for s in found), *_keys(target.made, segments)})

    def _was_made(self, producer: str, t: m.Translation, n: int) -> None:
        target = self.targets.get(t.target)
        if not target or producer != f"translator.{t.target}":
            return
        if (t.span[0] if t.span else 0) < self._begin and t.segment not in self._seq_of:
            self.stale |= n > target.known_n
        else:
            self._note(target, t, n)
            self._look(target, [(t.segment, t.place)])

    def _note(self, target: Target, t: m.Translation, n: int) -> None:
        places = target.made.setdefault(t.segment, {})
        if t.place not in places or places[t.place].n <= n:
            places[t.place] = _Made(n, parts_of(t), t.source, not t.text)

    def _look(self, target: Target, keys: Iterable[Key]) -> None:
        """What is to be done about these sentences. Before a fold nobody can tell: it looks at all."""
        for key in () if self._corrected else keys:
            s, made = self.sentences.get(key), target.made.get(key[0], {}).get(key[1])
            if s and s.language != target.code:
                if made and (made.parts, made.source) == (s.parts, s.text):
                    target.due.done(key)
                elif self._knows(s.language, target.code):
                    target.due.translate(s, self.known_s[key], min(self._seq_of[x] for x in s.segments))
                else:
                    target.due.done(key)
                    self.unknown.add((s.language, target.code))
            elif made and not made.empty and key[0] not in self._split.open:
                target.due.take_back(key)
            else:
                target.due.done(key)

    # What is not held any more

    def _forget(self, upto: int) -> None:
        """All up to a seq is known: what lies far behind is let go, if nothing of it is due, where a text begins with a
        sentence and what comes after it is the same without what was before."""
        waits = any(t.due.gone or upto < t.since for t in self.targets.values())
        self._forget_at = self._forget_at or self.head + KEPT // 8
        if waits or self.stale or self._ahead or self.ended or self.head < self._forget_at:
            return
        self._forget_at = self.head + KEPT // 8
        go_on = {segment for s in self.sentences.values() for segment in s.segments[1:]}
        texts = sorted(self._texts.newest.values(), key=lambda t: (t.span, t.segment))
        limit = min([self.head - KEPT, *(s.span[0] for t in self.targets.values() for s in t.due.first(1))])
        old = [t.span[0] for t in texts if t.span[0] <= limit and t.segment not in go_on]
        begin = max(old, default=-1)
        split = Sentences(self._hold_s)
        found = [s for t in texts if t.span[1] > begin for s in split.add(t)] + split.reach(self.head)
        later = {t.segment for t in texts if t.span[1] > begin}
        same = {s.key: s for s in found} == {key: s for key, s in self.sentences.items() if key[0] in later}
        if begin <= self._begin or not same or split.open != self._split.open:
            return
        self._begin, self._forgot, self._split = begin, upto, split
        gone = set(self._texts.trim(begin))
        self._told -= gone
        self.sentences = {key: s for key, s in self.sentences.items() if key[0] not in gone}
        self.known_ns = {key: self.known_ns[key] for key in self.sentences}
        self.known_s = {key: self.known_s[key] for key in self.sentences}
        for segment in gone:
            self._seq_of.pop(segment, None)
        for target in self.targets.values():
            target.known_n = target.at.n
            target.made = {segment: made for segment, made in target.made.items() if segment not in gone}

    # What is due

    def settled(self, target: Target, upto: int) -> bool:
        """Nothing of ours can be on its way to us. (A purge moves only the places of those who have appended.)"""
        return not self.stale and target.at.n > 0 and upto >= target.since

    def next(self, target: Target, most: int) -> list[Sentence]:
        """The first sentences that are due, of one language."""
        self._fold()
        waiting = target.due.first(most)
        return [s for s in waiting if s.language == waiting[0].language]

    def gone(self, target: Target) -> list[m.Translation]:
        """What takes back the translations of sentences that are not there any more, as many as fit one append."""
        self._fold()
        out = []
        for segment, place in nsmallest(MOST_GONE, target.due.gone):
            revision = int(target.made[segment][place].parts[0].rpartition("/")[2])
            t = m.Translation(segment=segment, revision=revision, target=target.code, text="", place=place)
            out.append(t)
        return out

    def oldest_s(self, target: Target) -> float:
        """Since when the sentence that waits longest is known to be over, monotonic clock; 0: none waits. The control
        thread asks, too."""
        return target.due.oldest_s()

    def reached(self, target: Target, done: Iterable[Key] = ()) -> int:
        """The position, once these are done. It stands still as long as something is to be taken back."""
        self._fold()
        but = {*done}
        if not target.due.gone <= but:
            return target.position
        first = target.due.first_seq(but)
        seqs = [self._seq_of[segment] for segment in self._split.open] + ([] if first is None else [first])
        return max(target.position, min(seqs) - 1 if seqs else self.last)

    def over(self, target: Target) -> bool:
        """The stream has ended, and the journal knows that nothing is due."""
        self._fold()
        return self.ended and not self._ahead and target.position >= self.last

    def step(self, target: Target, made: Sequence[m.Translation] = (), more: Sequence[m.Body] = ()) -> Step:
        position = self.reached(target, {(t.segment, t.place) for t in made})
        said = hashlib.sha256(repr((position, [m.encode(t) for t in made])).encode()).digest()
        return Step(positions={"transcript": position}, events=(*made, *more), state=said)

    def noted(self, target: Target, at: m.At) -> None:
        """The place as the journal has it. It may know of translations, and of a purge, that are still to come here."""
        target.at, target.since = at, at.head

    def moved(self, target: Target, at: m.At, step: Step) -> bool:
        """The feed's answer to `step`. False: somebody else of our name wrote, or a purge came between."""
        if at.n != target.at.n + 1 or at.state != step.state:
            self.noted(target, at)
            return False
        target.at = at
        for body in step.events:
            if isinstance(body, m.Translation):
                self._was_made(f"translator.{target.code}", body, at.n)
        return True


def _needs(e: m.Event) -> int:
    """Up to which sample all must be known before it: that at which it begins."""
    match e.decode():
        case m.Transcript() | m.Silence() | m.Suppressed() | m.Gap() as body if e.producer == COVERAGE_PRODUCER:
            return body.span[0]
        case m.StreamEnded() as body:
            return body.end
    return 0


def translation(s: Sentence, target: str, text: str, suspect: str, model: str) -> m.Translation:
    """What became of a sentence."""
    segment, _, revision = s.parts[0].rpartition("/")
    return m.Translation(
        segment=segment,
        revision=int(revision),
        target=target,
        text=text,
        suspect=suspect or None,
        place=s.place,
        goes_on=s.parts[1:],
        span=s.span,
        source=s.text,
        source_language=s.language,
        model=model,
    )


def _keys(made: dict[str, dict[int, _Made]], segments: Iterable[str]) -> list[Key]:
    return [(segment, place) for segment in segments for place in made.get(segment, ())]
