"""Words joined with turns: what a person sees follows from the events alone, in whatever order they came."""

from __future__ import annotations

import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common.join import KINDS, Join
from common.speaker_runs import NEAR, NOBODY, Piece, Run, runs_of, speaker_of

pytestmark = pytest.mark.pure
RATE = m.SAMPLE_RATE


def s(start: float, end: float) -> m.Span:
    """Seconds as a span of samples."""
    return (round(start * RATE), round(end * RATE))


class Journal:
    """Events of one stream, as the feed numbers them; each call is one append."""

    def __init__(self) -> None:
        self.events: list[m.Event] = []
        self._n: dict[str, int] = {}

    def add(self, *bodies: m.Body, by: str = "diarizer") -> int:
        """Returns the seq of the last one."""
        n = self._n[by] = self._n.get(by, 0) + 1
        for body in bodies:
            kind = str(type(body).__struct_config__.tag)
            event = m.Event(
                seq=len(self.events) + 1, prev=0, stream="x", kind=kind, producer=by, n=n, at_ns=0, body=m.encode(body)
            )
            self.events.append(event)
        return len(self.events)

    def say(self, start: float, *words: str, revision: int = 0, each: float = 1.0) -> str:
        """Words of a second each; returns their segment."""
        spans = [s(start + i * each, start + (i + 1) * each) for i in range(len(words))]
        segment = m.segment_id("x", spans[0][0])
        body = m.Transcript(
            segment=segment,
            revision=revision,
            supersedes=f"{segment}/{revision - 1}" if revision else None,
            span=(spans[0][0], spans[-1][1]),
            text=" ".join(words),
            language="en",
            words=tuple(m.Word(text=f" {w}", span=span, p=1.0) for w, span in zip(words, spans, strict=True)),
            model="x",
        )
        self.add(body, by="transcriber")
        return segment

    def turn(self, speaker: str, start: float, end: float) -> int:
        return self.add(m.SpeakerTurn(span=s(start, end), speaker=speaker, provisional=True))

    def relabel(self, source: str, target: str, span: m.Span | None = None, by: str = "cli.1") -> int:
        return self.add(m.Relabel(source=source, target=target, span=span), by=by)

    def join(self) -> Join:
        join = Join()
        for e in self.events:
            join.take(e)
        return join

    def said(self, segment: str) -> list[tuple[str, str]]:
        return said(self.join(), segment)


def said(join: Join, segment: str) -> list[tuple[str, str]]:
    return [(r.speaker, r.text) for r in join.runs(segment)]


def test_words_are_given_to_whose_turn_they_are_in() -> None:
    j = Journal()
    segment = j.say(10, "one", "two", "three", "four")
    assert j.said(segment) == [(NOBODY, "one two three four")], "shown at once"
    j.turn("S1", 9.5, 12.1)
    j.turn("S2", 12.1, 15)
    assert j.said(segment) == [("S1", "one two"), ("S2", "three four")]
    assert j.join().runs(segment) == (
        Run("S1", s(10, 12), "one two", (0, 2)),
        Run("S2", s(12, 14), "three four", (2, 4)),
    )


def test_a_word_in_two_turns_belongs_to_the_one_it_shares_more_with() -> None:
    j = Journal()
    segment = j.say(0, "one", "two")
    j.turn("S1", 0, 1.4)
    j.turn("S2", 1.3, 3)
    assert j.said(segment) == [("S1", "one"), ("S2", "two")]


def test_pieces_of_one_turn_count_together_and_not_twice() -> None:
    j = Journal()
    segment = j.say(0, "word")
    j.turn("S2", 0, 0.45)
    for piece in ((0.45, 0.75), (0.7, 1), (0.72, 0.9)):
        j.turn("S1", *piece)
    assert j.said(segment) == [("S1", "word")], "55 hundredths in three pieces"
    j.turn("S2", 0.4, 0.58)
    assert j.said(segment) == [("S2", "word")], "58 against 55, for what both pieces cover counts once"


def test_a_word_in_two_parts_is_nobody_elses_halfway() -> None:
    parts = ((" his", s(0, 1)), (" self", s(1, 2)), ("-portrait", s(2, 2.9)), (" mine", s(3, 4)))
    text = m.Transcript(
        segment="x/0",
        span=s(0, 4),
        text="his self-portrait mine",
        language="en",
        words=tuple(m.Word(text=w, span=span, p=1.0) for w, span in parts),
        model="x",
    )
    pieces = [Piece(*s(0, 2.1), "S1"), Piece(*s(2.1, 4), "S2")]
    assert [r.text for r in runs_of(text, pieces)] == ["his self-portrait", "mine"]
    unspaced = msgspec.structs.replace(text, language="ja")
    assert [r.text for r in runs_of(unspaced, pieces)] == ["his self", "-portrait mine"]


def test_a_tie_goes_to_who_spoke_before_then_to_who_began_first_then_to_the_lower_id() -> None:
    voices = {"S10": [s(0, 9)], "S2": [s(0, 9)], "S3": [s(1, 9)]}
    assert speaker_of(s(2, 3), voices) == "S2"
    assert speaker_of(s(2, 3), voices, before="S3") == "S3"
    assert speaker_of(s(0.5, 1.5), voices, before="S3") == "S2", "no tie"
    assert speaker_of(s(2, 3), {"S1": [s(1, 9)], "S2": [s(0, 9)]}) == "S2"


def test_a_word_in_no_turn_belongs_to_the_nearest_or_to_nobody() -> None:
    voices = {"S1": [(0, 100)], "S2": [(1000, 1100)]}
    assert speaker_of((200, 300), voices) == "S1"
    assert speaker_of((800, 900), voices) == "S2"
    assert speaker_of((500, 600), voices) == "S1", "as far from both: who began first"
    assert speaker_of((1100 + NEAR, 1200 + NEAR), voices) == "S2"
    assert speaker_of((1101 + NEAR, 1200 + NEAR), voices) == NOBODY
    assert speaker_of((50, 50), voices) == "S1", "a word without length"


def test_text_without_word_times_is_one_word() -> None:
    j = Journal()
    body = m.Transcript(segment="x:0", span=s(0, 4), text=" all of it ", language="en", model="x")
    j.add(body, by="transcriber")
    j.turn("S1", 0, 1.9)
    j.turn("S2", 1.9, 4)
    assert j.join().runs("x:0") == (Run("S2", s(0, 4), "all of it", (0, 0)),)


def test_a_correction_takes_the_place_of_what_it_supersedes() -> None:
    j = Journal()
    segment = j.say(0, "won", "too")
    j.turn("S1", 0, 2)
    join = j.join()
    mark = join.mark
    assert said(join, segment) == [("S1", "won too")]
    j.say(0, "one", "two", revision=1)
    join.take(j.events[-1])
    assert said(join, segment) == [("S1", "one two")] and join.since(mark) == [segment]
    nothing = m.Suppressed(span=s(0, 2), text="", reason="no speech", segment=segment, revision=2)
    j.add(nothing, by="transcriber")
    assert j.said(segment) == []
    j.add(m.Gap(span=s(0, 2), reason="failed", retryable=False, segment=segment, revision=3), by="summarizer")
    j.say(0, "one", "two", revision=3)
    assert j.said(segment) == [("S1", "one two")]


def test_a_relabel_holds_in_its_span_or_everywhere() -> None:
    j = Journal()
    segment = j.say(0, "one", "two", "three", "four")
    j.turn("S1", 0, 4)
    j.relabel("S1", "S2", s(1, 3), by="diarizer")
    assert j.said(segment) == [("S1", "one"), ("S2", "two three"), ("S1", "four")]
    assert j.join().pieces() == [Piece(*s(0, 1), "S1"), Piece(*s(1, 3), "S2"), Piece(*s(3, 4), "S1")]
    j.relabel("S1", "S3")
    assert j.said(segment) == [("S3", "one"), ("S2", "two three"), ("S3", "four")]
    j.relabel("S2", NOBODY, s(2, 3))
    assert j.said(segment) == [("S3", "one"), ("S2", "two three"), ("S3", "four")], "nobody's: the nearest is left"
    assert j.join().spoken() == {"S2": RATE, "S3": 2 * RATE}


def test_of_two_relabels_the_later_one_wins() -> None:
    j = Journal()
    segment = j.say(0, "one", "two")
    j.turn("S1", 0, 2)
    j.relabel("S1", "S2", by="diarizer")
    j.relabel("S2", "S3", by="diarizer")
    assert j.said(segment) == [("S3", "one two")]
    j.relabel("S1", "S9", by="diarizer")
    assert j.said(segment) == [("S3", "one two")], "S1 it is no longer"


def test_relabels_of_one_append_are_one_step() -> None:
    j = Journal()
    segment = j.say(0, "one", "two")
    j.turn("S1", 0, 1)
    j.turn("S2", 1, 2)
    j.add(m.Relabel(source="S1", target="S2"), m.Relabel(source="S2", target="S1"))
    assert j.said(segment) == [("S2", "one"), ("S1", "two")], "they change places"
    j.add(m.Relabel(source="S1", target="S3"), m.Relabel(source="S1", target="S4", span=s(1, 1.4)))
    assert j.said(segment) == [("S2", "one"), ("S3", "two")], "the last one wins, in its span"
    assert j.join().spoken() == {"S2": RATE, "S3": round(0.6 * RATE), "S4": round(0.4 * RATE)}


def test_the_diarizer_means_turns_that_are_there_people_mean_all() -> None:
    j = Journal()
    first, later = j.say(0, "one"), j.say(5, "two")
    j.turn("S3", 0, 1)
    j.relabel("S3", "S1", by="diarizer")
    j.turn("S3", 5, 6)
    assert (j.said(first), j.said(later)) == ([("S1", "one")], [("S3", "two")])
    j.relabel("S3", "S2", by="viewer.1")
    third = j.say(9, "three")
    j.turn("S3", 9, 10)
    assert (j.said(first), j.said(later), j.said(third)) == ([("S1", "one")], [("S2", "two")], [("S2", "three")])
    j.relabel("S3", "S4", by="diarizer")
    assert j.said(third) == [("S4", "three")], "S2 was what S3 is called, and this was not S3"
    j.relabel("S4", "S2", s(9, 10))
    j.relabel("S4", "S5", s(9, 10), by="diarizer")
    j.relabel("S5", "S4", s(9, 10), by="diarizer")
    assert j.said(third) == [("S2", "three")], "what people said is carried out last"


def test_merges_follow_chains_and_end_in_cycles() -> None:
    j = Journal()
    segments = [j.say(i, f"w{i}") for i in range(3)]
    for i in range(3):
        j.turn(f"S{i + 1}", i, i + 1)
    j.relabel("S3", "S2")
    j.relabel("S2", "S1")
    assert [j.said(x)[0][0] for x in segments] == ["S1", "S1", "S1"]
    assert [j.join().now(x) for x in ("S1", "S2", "S3", "S4")] == ["S1", "S1", "S1", "S4"]
    j.relabel("S1", "S2")
    assert [j.said(x)[0][0] for x in segments] == ["S2", "S2", "S2"]
    assert j.join().spoken() == {"S2": 3 * RATE}


def named(*steps: tuple[str, str, str]) -> dict[str, str]:
    """Names after (who says it, speaker, name or `=` and who it is)."""
    j = Journal()
    for by, speaker, what in steps:
        if what.startswith("="):
            j.relabel(speaker, what[1:], by=by)
        else:
            j.add(m.SpeakerName(speaker=speaker, name=what), by=by)
    return j.join().names()


def test_the_newest_name_holds_and_people_come_before_voiceprints() -> None:
    assert named() == {}
    assert named(("cli.1", "S1", "Ann"), ("cli.2", "S1", "  Ann\nB. ")) == {"S1": "Ann B."}
    assert named(("cli.1", "S1", "Ann"), ("diarizer", "S1", "Bob")) == {"S1": "Ann"}
    assert named(("diarizer", "S1", "Ann"), ("diarizer", "S1", "Bob")) == {"S1": "Bob"}
    assert named(("cli.1", "S1", "Ann"), ("cli.2", "S1", "")) == {}, "taken back"
    assert Journal().join().name("S7") == "S7"


def test_a_name_comes_along_where_its_speaker_is_merged_unless_there_is_one() -> None:
    assert named(("cli.1", "S3", "Ann"), ("cli.2", "S3", "=S1")) == {"S1": "Ann"}
    assert named(("cli.1", "S3", "Ann"), ("cli.2", "S1", "Bob"), ("cli.3", "S3", "=S1")) == {"S1": "Bob"}
    assert named(("cli.2", "S1", "Bob"), ("cli.1", "S3", "Ann"), ("cli.3", "S3", "=S1")) == {"S1": "Bob"}
    assert named(("cli.1", "S3", "Ann"), ("diarizer", "S1", "Bob"), ("cli.3", "S3", "=S1")) == {"S1": "Ann"}


def test_what_was_purged_is_gone_whether_it_comes_before_or_after() -> None:
    j = Journal()
    kept = j.say(0, "one")
    secret = j.say(1, "secret")
    j.turn("S1", 0, 2)
    relabel = j.relabel("S1", "S2", s(0, 0.9))
    name = j.add(m.SpeakerName(speaker="S2", name="Ann"), by="cli.2")
    join = j.join()
    j.add(m.Purged(stream="x", seqs=((2, 2), (relabel, name))), by="feed")
    join.take(j.events[-1])
    for held in (join, Join()):
        for e in reversed(j.events):  # what was purged comes again from an older page
            held.take(e)
        assert said(held, kept) == [("S1", "one")]
        assert held.runs(secret) == () and held.names() == {}
    join.take(j.events[2].tombstone())
    assert said(join, kept) == [(NOBODY, "one")]


def test_since_names_what_has_become_other() -> None:
    j = Journal()
    first, second = j.say(0, "one"), j.say(10, "two")
    join = j.join()
    assert join.since(0) == [second, first]
    mark = join.mark
    j.turn("S1", 0, 1)
    join.take(j.events[-1])
    assert join.since(mark) == [first] and join.since(0) == [first, second]
    mark = join.mark
    j.turn("S1", 0.2, 0.8)
    join.take(j.events[-1])
    assert join.since(mark) == [], "it says nothing new"


# -- whatever happens -----------------------------------------------------------------------------------------------

places = st.integers(0, 40).map(lambda half: half * RATE // 2)
stretches = st.tuples(places, st.integers(1, 12)).map(lambda p: (p[0], p[0] + p[1] * RATE // 2))
ids = st.sampled_from(["S1", "S2", "S3"])
turns = st.builds(m.SpeakerTurn, span=stretches, speaker=ids, provisional=st.just(True))
relabels = st.builds(m.Relabel, source=ids, target=ids | st.just(NOBODY), span=st.none() | stretches)
names = st.builds(m.SpeakerName, speaker=ids, name=st.sampled_from(["Ann", "Bob", ""]))


@st.composite
def texts(draw: st.DrawFn) -> m.Body:
    start, revision = draw(places), draw(st.integers(0, 2))
    segment = m.segment_id("x", start)
    count = draw(st.integers(0, 5))
    supersedes = draw(st.sampled_from([None, f"{segment}/{max(0, revision - 1)}"]))
    if draw(st.integers(0, 5)) == 0:
        return m.Suppressed(
            span=(start, start + RATE), text="", reason="x", segment=segment, revision=revision, supersedes=supersedes
        )
    at = [start + draw(st.integers(-2, 12)) * RATE // 4 for _ in range(count)]
    words = [m.Word(text=f" {i}", span=(a, a + draw(st.integers(0, 6)) * RATE // 8), p=1.0) for i, a in enumerate(at)]
    return m.Transcript(
        segment=segment,
        revision=revision,
        supersedes=supersedes,
        span=(start, start + 2 * RATE),
        text="".join(w.text for w in words) or "text",
        language="en",
        words=tuple(words),
        model="x",
    )


@st.composite
def journals(draw: st.DrawFn) -> list[m.Event]:
    journal = Journal()
    for _ in range(draw(st.integers(0, 12))):
        by = draw(st.sampled_from(["transcriber", "diarizer", "diarizer", "cli.1", "viewer.2"]))
        kinds = texts() if by == "transcriber" else turns | relabels | names if by == "diarizer" else relabels | names
        journal.add(*draw(st.lists(kinds, min_size=1, max_size=3)), by=by)
    if draw(st.booleans()):
        first = draw(st.integers(1, 10))
        journal.add(m.Purged(stream="x", seqs=((first, first + draw(st.integers(0, 8))),)), by="feed")
    return journal.events


def state(join: Join, events: list[m.Event]) -> object:
    segments = {getattr(e.decode(), "segment", "") for e in events}
    return {x: join.runs(x) for x in segments}, join.names(), join.pieces(), join.spoken()


@settings(max_examples=150, deadline=None)
@given(events=journals(), data=st.data())
def test_any_order_and_any_looking_in_between_give_the_same(events: list[m.Event], data: st.DataObject) -> None:
    plain = Join()
    for e in events:
        plain.take(e)
    other, mark, told = Join(), 0, dict[str, tuple[Run, ...]]()
    for e in data.draw(st.permutations(events)):
        other.take(e)
        if data.draw(st.booleans()):
            other.take(e)  # twice
        if data.draw(st.booleans()):
            told |= {x: other.runs(x) for x in other.since(mark)}
            mark = other.mark
    assert state(other, events) == state(plain, events)
    told |= {x: other.runs(x) for x in other.since(mark)}
    assert {x: r for x, r in told.items() if r} == {x: r for x, r in state(plain, events)[0].items() if r}, (  # type: ignore[index]
        "who follows the changes knows all"
    )


def oracle(events: list[m.Event], segment: str, sample: int) -> set[str]:
    """Who talks at a sample of a segment, by the words of PROTOCOL.md and nothing clever."""
    gone = {q for e in events if isinstance(b := e.decode(), m.Purged) for f, t in b.seqs for q in range(f, t + 1)}
    held = [e for e in events if e.seq not in gone]
    out = set()
    for turn in held:
        body = turn.decode()
        if not isinstance(body, m.SpeakerTurn) or not body.span[0] <= sample < body.span[1]:
            continue
        label = body.speaker
        for people in (False, True):
            appends: dict[tuple[str, int], list[m.Event]] = {}
            for e in held:
                if e.kind == "relabel" and (e.producer != "diarizer") == people and (people or e.seq > turn.seq):
                    appends.setdefault((e.producer, e.n), []).append(e)
            for step in appends.values():
                before = label
                for e in step:
                    r = e.decode()
                    assert isinstance(r, m.Relabel)
                    if r.source == before and (r.span is None or r.span[0] <= sample < r.span[1]):
                        label = r.target
        out.add(label)
    return out - {NOBODY}


@settings(max_examples=150, deadline=None)
@given(events=journals(), sample=st.integers(0, 50 * RATE // 2))
def test_pieces_are_what_the_plain_words_of_the_rule_say(events: list[m.Event], sample: int) -> None:
    join = Join()
    for e in events:
        join.take(e)
    assert {p.speaker for p in join.pieces() if p.start <= sample < p.end} == oracle(events, "", sample)


@settings(max_examples=80, deadline=None)
@given(events=journals())
def test_no_word_is_lost_doubled_or_moved(events: list[m.Event]) -> None:
    join = Join()
    for e in events:
        join.take(e)
    for e in events:
        runs = join.runs(getattr(e.decode(), "segment", ""))
        assert all(a.words[1] == b.words[0] and a.speaker != b.speaker for a, b in pairwise(runs))
        assert not runs or runs[0].words[0] == 0


@settings(max_examples=80, deadline=None)
@given(events=journals(), data=st.data())
def test_what_is_forgotten_changes_nothing_that_is_kept(events: list[m.Event], data: st.DataObject) -> None:
    plain, other, gone = Join(), Join(), set[str]()
    before = data.draw(places)
    for e in events:
        plain.take(e)
        other.take(e)
        if data.draw(st.booleans()):
            gone |= set(other.trim(before))
    kept = {getattr(e.decode(), "segment", "") for e in events} - gone
    texts = [t for e in events if isinstance(t := e.decode(), m.Transcript)]
    kept -= {t.segment for t in texts if min([t.span[0], *(w.span[0] for w in t.words)]) < before}
    assert {x: other.runs(x) for x in kept} == {x: plain.runs(x) for x in kept}
    assert other.names() == plain.names()


def test_what_is_old_is_forgotten() -> None:
    j = Journal()
    segments = [j.say(i, "word") for i in range(20)]
    for i in range(20):
        j.turn("S1", i, i + 1)
        j.relabel("S1", "S2", s(i, i + 1))
    join = j.join()
    assert set(join.since(0)) == set(segments)
    mark = join.mark
    assert join.trim(10 * RATE) == segments[:10]
    assert join.since(mark) == [] and [bool(join.runs(x)) for x in segments] == [False] * 10 + [True] * 10
    assert 10 <= len(join.pieces()) <= 11 and join.trim(10 * RATE) == []
    join.take(j.events[3])
    assert join.runs(segments[3]) != (), "what comes again is taken again"


def test_an_hour_of_turns_costs_little_for_each_event() -> None:
    """Ten times as long a stream does not make an event ten times as dear."""

    def cost_s(minutes: int) -> float:
        j = Journal()
        for i in range(minutes * 60 // 4):
            j.say(4 * i, *map(str, range(8)), each=0.5)
            for k in range(2):
                j.turn(f"S{i % 5 + 1}", 4 * i + 2 * k, 4 * i + 2 * k + 2)
            if i % 15 == 14:
                for k in range(3):
                    j.relabel(f"S{k + 1}", f"S{k + 2}", s(4 * i - 40 + 7 * k, 4 * i - 33 + 7 * k), by="diarizer")
        join, mark = Join(), 0
        began = time.process_time()
        for e in j.events:
            join.take(e)
            join.since(mark)
            mark = join.mark
        return (time.process_time() - began) / len(j.events)

    short, long = map(min, zip(*((cost_s(6), cost_s(60)) for _ in range(3)), strict=True))
    assert long < 4 * short, (short, long)
    assert long < 0.01, "of a core, while events come less than once a second"


def test_the_kinds_are_those_it_reads() -> None:
    assert set(KINDS) <= set(m.KINDS)
