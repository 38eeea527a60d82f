"""Which minutes are due: the events of one stream folded in the order of the journal. Pure: no clock, no model.

Text is cut into minutes by what stands in the journal alone: after each `interval_s` of stream time, where somebody
asked, and at the end of the stream. So it does not matter when the GPU is there to write them, nor how often the
summarizer was killed. A cut is due until the summary that carries out its positions is journaled.

Positions: `transcript`, the seq of the last transcript event that some minutes are about; `wanted`, that of the last
SummaryWanted carried out; `over`, that of the last event of a stream that had ended, when nothing of it was owed. The
state is the sample at which the interval under way began, and what a burst that was cut short has written of the oldest
minutes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from common import messages as m
from common.join import WHO_KINDS, Join
from common.settings import SummarySettings
from common.spans import Seqs
from common.topology import COVERAGE_PRODUCER
from workers.steps import Step

KINDS = (
    "transcript", "suppressed", "gap", "silence", "stream_started", "stream_ended", "summary_wanted", *WHO_KINDS,
)  # fmt: skip
FORGET_EVERY = 1000  # events: turns of what minutes are about already are of no use


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One segment that no minutes are about yet, in its newest revision; `seq` is that of its first."""

    segment: str
    revision: int
    seq: int
    span: m.Span
    text: str
    said: tuple[tuple[str, str], ...] = ()  # the same text by (name of the speaker, words); () when no name is known


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes that are due: of every line with seq <= `upto` that the cuts before it left."""

    reason: str  # interval | asked | end
    upto: int
    span: m.Span
    begin: int  # where the interval after it begins
    wanted: int = 0  # seq of the SummaryWanted that it carries out


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an answer that a later burst goes on from. It is good for exactly what was `asked`."""

    asked: bytes  # sha256 of the prompt, the model, and the settings that shape an answer
    tokens: tuple[int, ...]
    loops: int = 0  # see generation.Answer
    room: int = 0  # tokens that the transcript was given in the prompt


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What travels with the positions. The words of a draft go when the feed purges the stream: no other copy is."""

    begin: int = 0
    draft: Draft | None = None


_state = msgspec.msgpack.Decoder(State)


def state_of(at: m.At) -> State:
    try:
        return _state.decode(at.state) if at.state else State()
    except m.UNDECODABLE:
        return State()  # of another version: at worst one cut falls elsewhere


class Book:
    """One stream, from the place that the journal gave. Events come in seq order, each at least once."""

    def __init__(self, stream: str, at: m.At, rules: SummarySettings) -> None:
        self.stream, self.at, self.rules = stream, at, rules
        self.every = round(rules.interval_s * m.SAMPLE_RATE)
        self.since = at.head  # events up to this may be missing here, and a purge among them
        self.stale = False  # what is here may differ from the journal: make a new Book
        self.seen = 0
        self.ended = False
        self.head = 0
        self.begin = state_of(at).begin
        self.cuts: list[Cut] = []
        self._lines: dict[str, Line] = {}  # in the order of their seq
        self._covered: set[str] = set()  # segments that minutes are about: a correction is no news
        self._join, self._taken = Join(), 0
        self._cut_upto = self.position

    @property
    def draft(self) -> Draft | None:
        return state_of(self.at).draft

    @property
    def position(self) -> int:
        return self.at.positions.get("transcript", 0)

    @property
    def wanted(self) -> int:
        return self.at.positions.get("wanted", 0)

    # Events

    def take(self, e: m.Event) -> None:
        if e.seq <= self.seen:
            return
        self.seen = e.seq
        if e.kind in ("stream_started", "stream_ended"):  # a purge leaves the kind
            self.ended = e.kind == "stream_ended"
        self._join.take(e)
        self._taken += 1
        if self._taken % FORGET_EVERY == 0:
            self._join.trim(min((line.span[0] for line in self._lines.values()), default=self.head))
        match e.decode():
            case m.Transcript() as body:
                self._reach(body.span[0])
                self._text(body, e.seq)
                self._reach(body.span[1])
            case m.Suppressed() | m.Gap() as body if e.producer == COVERAGE_PRODUCER:
                old = self._lines.get(body.segment)
                if old and body.revision > old.revision:  # it turned out to be no speech
                    del self._lines[body.segment]
                self._reach(body.span[1])
            case m.Silence() as body:
                self._reach(body.span[1])
            case m.SummaryWanted() if e.seq > self.wanted:
                self._cut("asked", self.head, wanted=e.seq)
            case m.StreamEnded() as body:
                self._reach(body.end)
                if self.rules.at_end and self._uncut():
                    self._cut("end", body.end)
            case m.Purged() as body:
                self._forget(body.seqs)

    def _text(self, body: m.Transcript, seq: int) -> None:
        if seq <= self.position:
            self._covered.add(body.segment)
        if body.segment in self._covered:
            return
        old = self._lines.get(body.segment)
        if old and old.revision >= body.revision:
            return
        self._lines[body.segment] = Line(
            segment=body.segment,
            revision=body.revision,
            seq=old.seq if old else seq,
            span=body.span,
            text=body.text.strip(),
        )

    def _reach(self, sample: int) -> None:
        """The stream is known up to `sample`: intervals may be over. What begins before the cut belongs to it."""
        self.head = max(self.head, sample)
        while self.every and self.head >= self.begin + self.every:
            if self._uncut():
                self._cut("interval", self.begin + self.every)
            else:
                self.begin += (self.head - self.begin) // self.every * self.every

    def _uncut(self) -> bool:
        return any(line.seq > self._cut_upto for line in self._lines.values())

    def _cut(self, reason: str, end: int, wanted: int = 0) -> None:
        start = self.begin
        if self._uncut():
            self._cut_upto = max(line.seq for line in self._lines.values())
            self.begin = end
        self.cuts.append(
            Cut(reason=reason, upto=self._cut_upto, span=(start, max(start, end)), begin=self.begin, wanted=wanted)
        )

    def _forget(self, seqs: Iterable[m.Span]) -> None:
        gone = Seqs(seqs)
        for name in [n for n, line in self._lines.items() if line.seq in gone]:
            del self._lines[name]
        self.stale = True  # a purge moves our place too

    # Minutes

    def due(self) -> Cut | None:
        return next(iter(self.cuts), None)  # the control thread asks, too: it may be gone between two looks

    def lines(self, cut: Cut) -> list[Line]:
        """The text of the oldest cut as it stands now, in the order in which it was said; empty lines left out."""
        found = [line for line in list(self._lines.values()) if line.seq <= cut.upto and line.text]
        return sorted(found, key=lambda line: line.span)

    def named(self, lines: Iterable[Line]) -> list[Line]:
        """The same lines with who says what, where somebody has a name. Not for the control thread."""
        names, out = self._join.names(), list[Line]()
        for line in lines:
            runs = self._join.runs(line.segment)
            said = tuple((names.get(r.speaker, ""), r.text) for r in runs)
            out.append(msgspec.structs.replace(line, said=said) if any(name for name, _ in said) else line)
        return out

    def step(self, cut: Cut, *events: m.Body) -> Step:
        """What carries out the oldest cut."""
        positions = {"transcript": max(self.position, cut.upto), "wanted": max(self.wanted, cut.wanted)}
        return Step(positions=positions, events=events, state=m.encode(State(begin=cut.begin)))

    def moved(self, at: m.At, step: Step) -> bool:
        """As `carried_out`, of what carries out the oldest cut."""
        if not self.carried_out(at, step):
            return False
        cut = self.cuts.pop(0)
        done = [n for n, line in self._lines.items() if line.seq <= cut.upto]
        for name in done:
            del self._lines[name]
        self._covered.update(done)
        return True

    def carried_out(self, at: m.At, step: Step) -> bool:
        """The feed's answer to a step. False: somebody else of our name wrote, or a purge came between."""
        if at.n != self.at.n + 1 or any(at.positions.get(k, 0) != v for k, v in step.positions.items()):
            self.stale = True
            return False
        self.at = at
        return True

    def noting(self, draft: Draft | None) -> Step:
        """Keeps a draft of the oldest minutes: moves no position and no cut."""
        begin = state_of(self.at).begin
        return Step(positions={}, events=(), state=m.encode(State(begin=begin, draft=draft)))

    def noted(self, at: m.At, draft: Draft | None) -> bool:
        """The feed's answer to `noting`. False: our place was moved, and what we have read may be gone for good.

        An older draft of the same is ours as well: then the answer to that one was lost.
        """
        kept = state_of(at).draft
        ours = kept.asked == draft.asked if kept and draft else kept is draft and at.n == self.at.n + 1
        if at.positions == self.at.positions and (ours or at.n == self.at.n):
            self.at = at
        else:
            self.stale = True
        return not self.stale

    def skipped(self, cut: Cut) -> Step:
        """In place of minutes that failed too often: says so, and goes on."""
        return self.step(cut, m.Gap(span=cut.span, reason="failed", retryable=False))

    # When it is over

    @property
    def over(self) -> bool:
        """The stream has ended, and nothing is due."""
        return self.ended and not self.cuts and not self.stale

    @property
    def complete(self) -> bool:
        """There are minutes of all its text: nothing would be due under other rules, either."""
        return not self._lines

    def closing(self) -> Step:
        """Says so in the journal."""
        return Step(positions={"over": self.seen}, events=(), state=m.encode(State(begin=state_of(self.at).begin)))
