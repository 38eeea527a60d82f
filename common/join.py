"""Who said it: the words of a stream joined with its speaker turns, in one place for viewer, exports and minutes. Pure.

In: events, in any order. Out: for a segment the runs of its words by speaker, and the names of speakers. The result is
a function of the set of events alone, for each event says its place in the journal; so whoever follows some kinds, and
gets a turn after a later relabel, shows the same. A word without a turn is shown at once, as nobody's.

The rules, also in PROTOCOL.md: a turn's label is changed by the diarizer's relabels that stand after it, in the order
of the journal, then by those of people, whenever they came: what people said stays true for turns to come. Relabels of
one append are one step, so that two speakers can change places. A name that people gave comes before a voiceprint's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from common import messages as m
from common.revisions import KINDS as TEXT_KINDS
from common.revisions import Revisions
from common.spans import Seqs, Spans, parts_within, union
from common.speaker_runs import NEAR, NOBODY, Piece, Run, number, reach, runs_of
from common.topology import DIARIZER

WHO_KINDS = ("speaker_turn", "relabel", "speaker_name", "purged")
KINDS = tuple(dict.fromkeys([*TEXT_KINDS, *WHO_KINDS]))


class _Turn(msgspec.Struct):
    span: m.Span
    speaker: str
    relabels: list[int] = []  # seqs of those that may concern it
    pieces: tuple[Piece, ...] | None = None  # None: to be found anew


class _Relabel(NamedTuple):
    """In the order in which they are carried out: those of the machine first."""

    by_people: bool
    seq: int
    step: tuple[str, int]  # producer and n: one append
    source: str
    target: str
    span: m.Span | None


class Join:
    """One stream. Every event costs about what it touches: the turns and segments near it."""

    def __init__(self) -> None:
        self.mark = 0  # rises with each change of a segment's runs
        self._turns: dict[int, _Turn] = {}
        self._relabels: dict[int, _Relabel] = {}
        self._names: dict[int, tuple[bool, str, str]] = {}  # by people?, speaker, name
        self._texts = Revisions()
        self._shown: dict[str, m.Transcript] = {}  # of those, what `_segments_at` knows
        self._runs: dict[str, tuple[Run, ...]] = {}
        self._changed: dict[str, int] = {}  # the mark at which the runs of a segment became what they are; oldest first
        self._dirty: dict[str, None] = {}
        self._purged = Seqs()
        self._turns_at, self._segments_at = Spans[int](), Spans[str]()
        self._known: dict[str, str] | None = None  # names by speaker; None: to be found anew

    # In

    def take(self, e: m.Event) -> None:
        """An event of this stream; those it knows or has no use for change nothing."""
        if e.purged:
            self._forget(Seqs([(e.seq, e.seq)]))
        elif e.seq not in self._purged:
            self._take(e, e.decode())

    def _take(self, e: m.Event, body: m.EventBody | None) -> None:
        by_people = e.producer != DIARIZER  # its relabels and names give way to those of people
        match body:
            case m.Transcript() | m.Suppressed() | m.Gap():
                if segment := self._texts.take(e, body):
                    self._show(segment)
            case m.SpeakerTurn() if e.seq not in self._turns and body.span[0] < body.span[1]:
                self._turns[e.seq] = turn = _Turn(body.span, body.speaker)
                turn.relabels = [r.seq for r in self._relabels.values() if _concerns(r, e.seq, body.span)]
                self._turns_at.add(body.span, e.seq)
                self._touch(body.span)
            case m.Relabel() if e.seq not in self._relabels:
                r = _Relabel(by_people, e.seq, (e.producer, e.n), body.source, body.target, body.span)
                self._relabels[e.seq] = r
                for seq in self._turns_in(r.span):
                    if _concerns(r, seq, self._turns[seq].span):
                        self._turns[seq].relabels.append(r.seq)
                        self._stale(seq)
                self._known = None
            case m.SpeakerName() if e.seq not in self._names:
                self._names[e.seq] = (by_people, body.speaker, " ".join(body.name.split()))
                self._known = None
            case m.Purged():
                self._purged.add(body.seqs)
                self._forget(Seqs(body.seqs))

    def _forget(self, gone: Seqs) -> None:
        """Events whose bodies are gone for good, whether or not we have them yet."""
        for seq in gone.of(self._turns):
            turn = self._turns.pop(seq)
            self._turns_at.remove(turn.span, seq)
            self._touch(turn.span)
        for seq in gone.of(self._relabels):
            for n in self._turns_in(self._relabels.pop(seq).span):
                if seq in self._turns[n].relabels:
                    self._turns[n].relabels.remove(seq)
                    self._stale(n)
        for seq in gone.of(self._names):
            del self._names[seq]
        for segment in self._texts.forget(gone):
            self._show(segment)
        self._known = None

    def _show(self, segment: str) -> None:
        """Another text of a segment may be the newest."""
        old, new = self._shown.pop(segment, None), self._texts.newest.get(segment)
        if old:
            self._segments_at.remove(reach(old), segment)
        if new:
            self._shown[segment] = new
            self._segments_at.add(reach(new), segment)
        self._dirty[segment] = None

    def _turns_in(self, span: m.Span | None) -> list[int]:
        return list(self._turns) if span is None else self._turns_at.touching(span)

    def _stale(self, seq: int) -> None:
        self._turns[seq].pieces = None
        self._touch(self._turns[seq].span)

    def _touch(self, span: m.Span) -> None:
        self._dirty |= dict.fromkeys(self._segments_at.touching(span))

    def trim(self, before: int) -> list[str]:
        """Forget turns and segments that ended before a sample, for who does not show them any more; which segments.

        What concerns the whole stream stays, and so does what is said of the rest.
        """
        self._settle()
        for seq in [seq for seq, turn in self._turns.items() if turn.span[1] <= before - NEAR]:
            self._turns_at.remove(self._turns.pop(seq).span, seq)
        for seq in [r.seq for r in self._relabels.values() if r.span and r.span[1] <= before - NEAR]:
            del self._relabels[seq]
            for turn in self._turns.values():
                turn.relabels = [n for n in turn.relabels if n != seq]
        gone = self._texts.trim(before)
        for segment in gone:
            if text := self._shown.pop(segment, None):
                self._segments_at.remove(reach(text), segment)
            self._runs.pop(segment, None)
            self._changed.pop(segment, None)
        return gone

    # Out

    def runs(self, segment: str) -> tuple[Run, ...]:
        """The words of a segment as it stands now, by speaker; none when it has no text (any more)."""
        self._settle()
        return self._runs.get(segment, ())

    def since(self, mark: int) -> list[str]:
        """Segments whose runs have become others after `mark` was the mark, the last one first."""
        self._settle()
        out = []
        for segment in reversed(self._changed):
            if self._changed[segment] <= mark:
                break
            out.append(segment)
        return out

    def name(self, speaker: str) -> str:
        """What to call a speaker: the name that somebody gave, else the id."""
        return self.names().get(speaker, speaker)

    def names(self) -> dict[str, str]:
        """By id, of those who have one and were not made part of another."""
        if self._known is None:
            self._known = self._found_names()
        return self._known

    def now(self, speaker: str) -> str:
        """The id that a speaker goes by, after all that was said of the whole stream."""
        for _, steps in groupby(sorted(r for r in self._relabels.values() if r.span is None), lambda r: r.step):
            for r in reversed(list(steps)):
                if r.source == speaker:
                    speaker = r.target
                    break
        return speaker

    def pieces(self, span: m.Span | None = None) -> list[Piece]:
        """Who speaks when, in order; with `span` only what touches it. Pieces of different speakers may overlap."""
        return sorted(p for seq in self._turns_in(span) for p in self._pieces(seq) if p.speaker != NOBODY)

    def spoken(self) -> dict[str, int]:
        """Samples in which each speaker talks, in the order in which they are numbered."""
        by_speaker: dict[str, list[m.Span]] = {}
        for p in self.pieces():
            by_speaker.setdefault(p.speaker, []).append((p.start, p.end))
        return {s: sum(b - a for a, b in union(by_speaker[s])) for s in sorted(by_speaker, key=number)}

    # In between

    def _settle(self) -> None:
        for segment in self._dirty:
            text = self._shown.get(segment)
            runs = runs_of(text, self.pieces(reach(text))) if text else ()
            if runs != self._runs.get(segment, ()):
                self.mark += 1
                self._changed.pop(segment, None)
                self._changed[segment] = self.mark
            if runs:
                self._runs[segment] = runs
            else:
                self._runs.pop(segment, None)
        self._dirty.clear()

    def _pieces(self, seq: int) -> tuple[Piece, ...]:
        turn = self._turns[seq]
        if turn.pieces is None:
            pieces = [Piece(*turn.span, turn.speaker)]
            for _, step in groupby(sorted(self._relabels[n] for n in turn.relabels), lambda r: r.step):
                relabels = list(step)
                pieces = [new for p in pieces for new in _relabelled(p, relabels)]
            turn.pieces = tuple(pieces)
        return turn.pieces

    def _found_names(self) -> dict[str, str]:
        """People before the machine; a speaker's own before that of one who was merged into it; then the newest."""
        best: dict[str, tuple[tuple[bool, bool, int], str]] = {}
        for seq, (by_people, speaker, name) in self._names.items():
            target = self.now(speaker)
            rank = (by_people, target == speaker, seq)
            if target not in best or best[target][0] < rank:
                best[target] = (rank, name)
        return {speaker: name for speaker, (_, name) in best.items() if name and speaker != NOBODY}


def _concerns(r: _Relabel, turn: int, span: m.Span) -> bool:
    """Whether a relabel is about the turn with seq `turn`, should it have the label."""
    return (r.by_people or r.seq > turn) and (r.span is None or (r.span[0] < span[1] and span[0] < r.span[1]))


def _relabelled(piece: Piece, step: Sequence[_Relabel]) -> Iterator[Piece]:
    """What one append of relabels makes of a piece: each looks at the label before all of them, the last one wins."""
    parts = [piece]
    for r in step:
        if r.source == piece.speaker:
            parts = [
                Piece(a, b, r.target if inside else p.speaker)
                for p in parts
                for a, b, inside in parts_within((p.start, p.end), r.span or (p.start, p.end))
            ]
    return iter(parts)
