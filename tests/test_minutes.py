"""Which minutes are due follows from the journal alone: whenever it is read, and however often one is killed."""

from __future__ import annotations

import sys
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import messages as m
from common.settings import SummarySettings
from workers.minutes import Book, Cut, State

RATE = m.SAMPLE_RATE
RULES = SummarySettings(interval_s=60.0)
pytestmark = pytest.mark.pure


class Journal:
    """Events of stream `s` and the place of the summarizer on it, as the feed keeps both."""

    def __init__(self, rules: SummarySettings = RULES) -> None:
        self.rules, self.events = rules, list[m.Event]()
        self.at = m.At(n=0, positions={}, state=b"", head=0)
        self.clock = 0

    def add(self, body: m.Body, producer: str = "transcriber") -> int:
        kind = str(type(body).__struct_config__.tag)
        seq = len(self.events) + 1
        event = m.Event(
            seq=seq, prev=0, stream="s", kind=kind, producer=producer, n=1, at_ns=0, body=m.encode(body)
        )  # fmt: skip
        self.events.append(event)
        return seq

    def say(self, text: str, seconds: float = 5.0) -> str:
        """The next utterance; returns its segment."""
        start, self.clock = self.clock, self.clock + round(seconds * RATE)
        self.add(spoken(start, self.clock, text))
        return m.segment_id("s", start)

    def silent(self, seconds: float) -> None:
        start, self.clock = self.clock, self.clock + round(seconds * RATE)
        self.add(m.Silence(span=(start, self.clock)))

    def end(self) -> None:
        self.add(m.StreamEnded(end=self.clock, reason="end"))

    def ask(self) -> int:
        return self.add(m.SummaryWanted(), "cli.1")

    def book(self) -> Book:
        book = Book("s", self.at, self.rules)
        self.read(book)
        return book

    def read(self, book: Book) -> None:
        for e in self.events:
            book.take(e)

    def commit(self, book: Book, cut: Cut, *events: m.Body) -> None:
        """Carry out the oldest cut."""
        step = book.step(cut, *events)
        assert book.at.n == self.at.n
        self.at = m.At(
            n=self.at.n + 1, positions=self.at.positions | step.positions, state=step.state, head=len(self.events)
        )
        for body in events:
            self.add(body, "summarizer")
        assert book.moved(self.at, step)


def spoken(start: int, end: int, text: str, revision: int = 0) -> m.Transcript:
    return m.Transcript(
        segment=m.segment_id("s", start), revision=revision, span=(start, end), text=text, language="en", model="test"
    )


def texts(book: Book, cut: Cut) -> list[str]:
    return [line.text for line in book.lines(cut)]


def everything(journal: Journal, book: Book) -> list[tuple[str, m.Span, tuple[str, ...]]]:
    """Carry out all that is due."""
    out = []
    while cut := book.due():
        out.append((cut.reason, cut.span, tuple(texts(book, cut))))
        journal.commit(book, cut)
    return out


def test_nothing_is_due_before_the_interval_is_over() -> None:
    j = Journal()
    for i in range(11):
        j.say(f"line {i}")
    book = j.book()
    assert book.due() is None
    j.say("line 11")  # ends at 60.0 s
    j.read(book)
    cut = book.due()
    assert cut and (cut.reason, cut.span) == ("interval", (0, 60 * RATE))
    assert texts(book, cut) == [f"line {i}" for i in range(12)]


def test_an_interval_ends_in_silence_too_and_text_that_began_in_it_belongs_to_it() -> None:
    j = Journal()
    j.silent(58.0)
    j.say("across the edge", 4.0)
    j.say("after it")
    j.silent(60.0)
    book = j.book()
    assert everything(j, book) == [
        ("interval", (0, 60 * RATE), ("across the edge",)),
        ("interval", (60 * RATE, 120 * RATE), ("after it",)),
    ]


def test_without_words_there_are_no_minutes() -> None:
    j = Journal()
    j.silent(400.0)
    j.end()
    book = j.book()
    assert book.due() is None
    asked = j.ask()
    j.read(book)
    cut = book.due()
    assert cut and book.lines(cut) == [] and book.step(cut).positions == {"transcript": 0, "wanted": asked}
    j.commit(book, cut)
    assert book.due() is None and j.book().due() is None


def test_intervals_keep_their_grid_over_silence() -> None:
    j = Journal()
    j.silent(190.0)
    j.say("late")
    j.silent(60.0)
    assert everything(j, j.book()) == [("interval", (180 * RATE, 240 * RATE), ("late",))]


def test_minutes_of_the_rest_at_the_end_of_the_stream() -> None:
    j = Journal()
    j.say("one")
    j.silent(70.0)
    j.say("two")
    j.end()
    assert [c[::2] for c in everything(j, j.book())] == [("interval", ("one",)), ("end", ("two",))]
    j = Journal(msgspec.structs.replace(RULES, at_end=False))
    j.say("one")
    j.end()
    assert j.book().due() is None


def test_interval_zero_means_only_at_the_end_and_when_asked() -> None:
    j = Journal(SummarySettings(interval_s=0.0))
    for _ in range(30):
        j.say("word", 60.0)
    j.ask()
    j.say("last")
    j.end()
    assert [(reason, len(said)) for reason, _, said in everything(j, j.book())] == [("asked", 30), ("end", 1)]


def test_an_answer_starts_the_interval_anew() -> None:
    j = Journal()
    j.say("before", 40.0)
    j.ask()
    j.say("after", 40.0)
    book = j.book()
    assert everything(j, book) == [("asked", (0, 40 * RATE), ("before",))]
    j.silent(20.0)
    j.read(book)
    assert everything(j, book) == [("interval", (40 * RATE, 100 * RATE), ("after",))]


def test_who_asks_twice_gets_one_answer() -> None:
    j = Journal()
    j.say("before")
    j.ask()
    second = j.ask()
    book = j.book()
    assert [c[2] for c in everything(j, book)] == [("before",), ()]
    assert j.at.positions == {"transcript": 1, "wanted": second}


def test_a_cut_stays_due_until_its_summary_is_journaled() -> None:
    j = Journal()
    j.say("one")
    j.silent(60.0)
    for _ in range(3):  # killed, put off, failed: whatever the reason
        cut = j.book().due()
        assert cut and cut.reason == "interval"
    book = j.book()
    j.commit(book, cut)
    assert book.due() is None and j.book().due() is None


def test_the_newest_revision_is_read_and_a_correction_of_old_text_is_no_news() -> None:
    j = Journal()
    j.say("hte first")
    j.say("second")
    j.add(spoken(0, 5 * RATE, "the first", 1))
    j.add(spoken(0, 5 * RATE, "an older one", 0))
    j.silent(60.0)
    book = j.book()
    assert [c[2] for c in everything(j, book)] == [("the first", "second")]
    j.add(spoken(5 * RATE, 10 * RATE, "the second", 1))
    j.end()
    j.read(book)
    assert book.due() is None and j.book().due() is None


def test_a_correction_in_time_does_not_move_text_behind_the_cut() -> None:
    j = Journal()
    j.say("frist")
    j.silent(60.0)
    j.say("next")
    j.add(spoken(0, 5 * RATE, "first", 1))
    j.end()
    assert [c[2] for c in everything(j, j.book())] == [("first",), ("next",)]


def test_text_that_turned_out_to_be_none_is_left_out() -> None:
    j = Journal()
    segment = j.say("thank you for watching")
    j.say("real")
    j.add(m.Suppressed(span=(0, 5 * RATE), text="", reason="no speech", segment=segment, revision=1))
    j.end()
    assert [c[2] for c in everything(j, j.book())] == [("real",)]


def test_a_gap_that_was_retried_is_news() -> None:
    j = Journal()
    segment, start, end = m.segment_id("s", 0), 0, 5 * RATE
    j.add(m.Gap(span=(start, end), reason="failed", retryable=True, segment=segment))
    j.clock = end
    j.say("two")
    j.silent(60.0)
    book = j.book()
    assert [c[2] for c in everything(j, book)] == [("two",)]
    j.add(spoken(start, end, "one, at last", 1))
    j.say("three")
    j.end()
    j.read(book)
    assert [c[2] for c in everything(j, book)] == [("one, at last", "three")], "in the order of speech"


def test_a_gap_of_another_producer_is_not_about_captions() -> None:
    j = Journal()
    segment = j.say("said")
    j.add(m.Gap(span=(0, 500 * RATE), reason="failed", retryable=False, segment=segment, revision=9), "translator.pt")
    book = j.book()
    assert book.due() is None and book.head == 5 * RATE


def test_purged_text_vanishes_and_the_place_is_asked_again() -> None:
    j = Journal()
    j.say("secret")
    j.say("secret too")
    j.silent(60.0)
    book = j.book()
    assert book.due()
    j.add(m.Purged(stream="s", seqs=((1, 3),)), "feed")
    j.read(book)
    assert book.stale and not any(book.lines(c) for c in book.cuts)
    j.events[:3] = [e.tombstone() for e in j.events[:3]]
    fresh = j.book()
    assert fresh.due() is None and "secret" not in str(fresh.__dict__)


def test_another_copy_that_wrote_first_is_noticed() -> None:
    j = Journal()
    j.say("one")
    j.silent(60.0)
    a, b = j.book(), j.book()
    cut = a.due()
    assert cut
    j.commit(a, cut)
    j.say("more")
    step = b.step(cut)
    answer = msgspec.structs.replace(j.at, n=j.at.n + 1)  # somebody wrote twice
    assert not b.moved(answer, step) and b.stale


def test_minutes_that_fail_too_often_say_so_and_the_next_follow() -> None:
    j = Journal()
    j.say("poison")
    j.silent(60.0)
    j.say("fine")
    j.silent(60.0)
    book = j.book()
    cut = book.due()
    assert cut
    step = book.skipped(cut)
    (gap,) = step.events
    assert gap == m.Gap(span=(0, 60 * RATE), reason="failed", retryable=False)
    j.commit(book, cut, gap)
    cut = book.due()
    assert cut and texts(book, cut) == ["fine"]


def test_a_state_of_another_version_is_no_reason_to_stop() -> None:
    j = Journal()
    j.at = m.At(n=3, positions={"transcript": 0}, state=b"\xc1\xff", head=0)
    j.say("one")
    j.end()
    assert [c[2] for c in everything(j, j.book())] == [("one",)]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.floats(0.5, 30.0)),
        st.tuples(st.just("silent"), st.floats(0.5, 150.0)),
        st.tuples(st.just("ask"), st.just(0.0)),
        st.tuples(st.sampled_from(["kill", "write"]), st.just(0.0)),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_kills_and_late_bursts_change_no_minutes(actions: list[tuple[str, float]]) -> None:
    """One summarizer writes when it may and is killed now and then; another one reads it all at the end."""
    j, whole = Journal(), Journal()
    book, written, said = j.book(), [], 0
    for what, seconds in [*actions, ("end", 0.0)]:
        if what in ("say", "silent", "ask", "end"):
            for one in (j, whole):
                if what == "say":
                    one.say(f"line {said}", seconds)
                elif what == "silent":
                    one.silent(seconds)
                else:
                    getattr(one, what)()
            said += what == "say"
            j.read(book)
        elif what == "kill":
            book = j.book()
        elif cut := book.due():
            written.append((cut.reason, cut.span, tuple(texts(book, cut))))
            j.commit(book, cut, m.Gap(span=cut.span, reason="stands for a summary", retryable=False))
    written += everything(j, book)
    assert written == everything(whole, whole.book())
    lines = [text for _, _, said_in in written for text in said_in]
    assert lines == [f"line {i}" for i in range(said)], "every line once, in order"
    ends = [span[1] for _, span, said_in in written if said_in]
    assert ends == sorted(ends)
    assert msgspec.msgpack.decode(j.at.state, type=State).begin <= j.clock + 60 * RATE if j.at.state else True


def test_the_control_thread_may_look_while_events_come_in() -> None:
    """`needs_model` is asked by both threads: an error there would end the worker."""
    journal = Journal(RULES)
    for _ in range(200):
        journal.say("word", 1.0)
    wrong: list[Exception] = []
    books = [journal.book()]
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                cut = books[0].due()
                if cut:
                    books[0].lines(cut)
            except (RuntimeError, IndexError) as e:
                wrong.append(e)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(20):
            book = Book("s", journal.at, RULES)
            books[0] = book
            journal.read(book)
            while cut := book.due():
                step = book.step(cut)
                at = m.At(n=book.at.n + 1, positions=book.at.positions | step.positions, state=step.state, head=0)
                assert book.moved(at, step)
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not wrong


def turn(start: float, end: float, speaker: str) -> m.SpeakerTurn:
    return m.SpeakerTurn(span=(round(start * RATE), round(end * RATE)), speaker=speaker, provisional=True)


def test_lines_carry_the_names_that_are_known_and_nothing_else_is_other() -> None:
    plain, j = Journal(), Journal()
    for journal in (plain, j):
        for i in range(12):
            journal.say(f"line {i}")
            if journal is j:
                j.add(turn(5 * i, 5 * i + 5, f"S{i % 3 + 1}"), "diarizer")
    book, without = j.book(), plain.book()
    cut, bare = book.due(), without.due()
    assert cut and bare and cut.span == bare.span
    assert [x.said for x in book.named(book.lines(cut))] == [()] * 12, "a speaker without a name is nobody's news"
    j.add(m.SpeakerName(speaker="S1", name="Ann"), "cli.1")
    j.add(m.Relabel(source="S3", target="S1"), "cli.2")
    j.read(book)
    said = [x.said for x in book.named(book.lines(cut))]
    assert said[:3] == [(("Ann", "line 0"),), (), (("Ann", "line 2"),)]
    assert [x.text for x in book.named(book.lines(cut))] == [x.text for x in without.lines(bare)]
    j.commit(book, cut)
    plain.commit(without, bare)
    for journal in (plain, j):
        journal.end()
        journal.read(book if journal is j else without)
    assert book.due() == without.due() is None


def test_a_long_stream_of_turns_is_not_kept() -> None:
    j = Journal(SummarySettings(interval_s=0.0))
    book = j.book()
    for i in range(3000):
        j.say(f"line {i}", 1.0)
        j.add(turn(i, i + 1, "S1"), "diarizer")
        if i % 60 == 59:
            j.ask()
            j.read(book)
            cut = book.due()
            assert cut
            j.commit(book, cut)
    assert len(book._join.pieces()) < 1500
