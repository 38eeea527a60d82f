"""The journal by itself: compare-and-set, whole transactions, coverage, pages, purge, full disk."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from tests.small_disk import on_a_small_disk, small_disk
from workers.journal import DiskFull, Journal, Reader, connect

pytestmark = pytest.mark.pure


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def append(
    n: int,
    *events: m.Body,
    stream: str = "s",
    producer: str = "test",
    state: bytes | None = None,
    **positions: int,
) -> m.Append:
    raw = tuple(m.raw(e) for e in events)
    return m.Append(
        producer=producer, stream=stream, expect_n=n, positions=positions, events=raw, state=state
    )  # fmt: skip


def silence(a: int, b: int) -> m.Silence:
    return m.Silence(span=(a, b))


def one(journal: Journal, ask: m.Append) -> m.At | m.Refused:
    return journal.append([ask])[0][0]


def test_seq_is_contiguous_and_prev_names_the_one_before_of_the_same_stream_and_kind(journal: Journal) -> None:
    _, a = journal.append([append(0, silence(0, 1), m.SummaryWanted()), append(0, silence(0, 5), stream="t")])
    _, b = journal.append([append(1, silence(1, 2))])
    assert [e.seq for e in a + b] == [1, 2, 3, 4]
    assert [e.prev for e in a + b] == [0, 0, 0, 1]


def test_success_duplicate_and_conflict_are_answered_alike(journal: Journal) -> None:
    first = append(0, silence(0, 10), state=b"x", audio=10)
    answers = [one(journal, ask) for ask in (first, first, append(7, silence(10, 20), audio=20), append(-1))]
    expected = m.At(n=1, positions={"audio": 10}, state=b"x", head=1)
    assert answers == [expected] * 4


def test_n_rises_on_appends_that_move_nothing(journal: Journal) -> None:
    assert one(journal, append(0)) == m.At(n=1, positions={}, state=b"", head=0)
    assert one(journal, append(1)) == m.At(n=2, positions={}, state=b"", head=0)


def test_two_writers_of_one_name_in_one_group_cannot_both_write(journal: Journal) -> None:
    answers, events = journal.append([append(0, silence(0, 1), audio=1), append(0, silence(0, 2), audio=2)])
    assert len(events) == 1
    assert answers[0] == answers[1] and answers[0].positions == {"audio": 1}  # type: ignore[union-attr]


def test_everything_is_there_after_reopening(journal: Journal) -> None:
    one(journal, append(0, silence(0, 10), producer="transcriber", state=b"state", audio=10))
    again = Journal(journal.path.parent)
    assert (again.id, again.head, again.heads, again.sums) == (
        journal.id,
        1,
        {"s": {"silence": 1}},
        {"s": {"silence": 10}},
    )
    assert again.at("transcriber", "s") == m.At(n=1, positions={"audio": 10}, state=b"state", head=1)


def test_spans_of_the_coverage_producer_must_tile(journal: Journal) -> None:
    def ask(n: int, audio: int, *spans: m.Span) -> m.At | m.Refused:
        return one(journal, append(n, *(silence(*s) for s in spans), producer="transcriber", audio=audio))

    for bad in (ask(0, 10, (0, 9)), ask(0, 10, (1, 10)), ask(0, 10, (0, 6), (5, 10)), ask(0, 10, (0, 11)), ask(0, 5)):
        assert isinstance(bad, m.Refused) and "tile" in bad.reason and not bad.retry_after_s
    assert isinstance(ask(0, 10, (0, 4), (4, 10)), m.At)
    assert journal.sums["s"] == {"silence": 10}


def test_a_superseding_transcript_takes_the_place_of_its_gap(journal: Journal) -> None:
    gap = m.Gap(span=(0, 10), reason="failed", retryable=True, segment="s:0")
    one(journal, append(0, gap, producer="transcriber", audio=10))

    def text(span: m.Span) -> m.Transcript:
        return m.Transcript(
            segment="s:0", revision=1, supersedes="s:0/0", span=span, text="hi", language="en", model="x"
        )

    assert isinstance(one(journal, append(1, text((0, 9)), producer="transcriber")), m.Refused)
    assert isinstance(one(journal, append(1, text((0, 10)), producer="transcriber")), m.At)
    assert journal.sums["s"] == {"gap": 0, "text": 10}
    assert Journal(journal.path.parent).sums["s"] == {"text": 10}


def test_malformed_and_oversized_appends_are_refused_and_change_nothing(journal: Journal) -> None:
    import msgspec

    bad = m.Append(
        producer="p", stream="s", expect_n=0, events=(msgspec.Raw(m.encode({"type": "silence", "span": 3})),)
    )
    torn = m.Append(producer="p", stream="s", expect_n=0, events=(msgspec.Raw(b"\x81\xa4type\xa2\xff\xfe"),))
    deep = m.Append(
        producer="p",
        stream="s",
        expect_n=0,
        events=(msgspec.Raw(b"\x82\xa1x" + b"\x91" * 5000 + b"\xc0\xa4type\xa1y"),),
    )
    big = append(0, m.Suppressed(span=(0, 1), text="x" * m.EVENT_BYTES, reason="loop"))
    half = m.Suppressed(span=(0, 1), text="x" * (m.EVENT_BYTES // 2), reason="loop")
    many = append(0, *[half] * (m.APPEND_BYTES // m.EVENT_BYTES * 2))
    long = msgspec.structs.replace(append(0), state=b"x" * (m.EVENT_BYTES + 1))
    sizes = [(big, "too large"), (many, "too large"), (long, "too large")]
    for ask, word in ((bad, "malformed"), (torn, "malformed"), (deep, "malformed"), *sizes):
        answer = one(journal, ask)
        assert isinstance(answer, m.Refused) and word in answer.reason
    assert journal.head == 0 and journal.places == {}


def test_kinds_of_a_newer_version_are_kept(journal: Journal) -> None:
    import msgspec

    newer = m.Append(producer="p", stream="s", expect_n=0, events=(msgspec.Raw(m.encode({"type": "mood", "x": 1})),))
    _, events = journal.append([newer])
    assert events[0].kind == "mood" and events[0].decode() is None


def test_a_full_disk_refuses_the_group_and_later_takes_it(journal: Journal) -> None:
    one(journal, append(0, silence(0, 1), audio=1))
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    ask = append(1, m.Suppressed(span=(0, 1), text="x" * 200_000, reason="loop"), audio=2)
    answer = one(journal, ask)
    assert isinstance(answer, m.Refused) and answer.reason == "disk full" and answer.retry_after_s > 0
    assert journal.head == 1 and journal.at("test", "s").n == 1
    journal._db.execute("PRAGMA max_page_count = 1000000")
    assert one(journal, ask) == m.At(n=2, positions={"audio": 2}, state=b"", head=2)


def pages(reader: Reader, limit: int, kinds: tuple[str, ...] | None, stream: str | None) -> list[m.Event]:
    out: list[m.Event] = []
    after = 0
    while True:
        page = reader.page(m.Replay(after=after, limit=limit, kinds=kinds, stream=stream))
        assert all(after < e.seq <= page.upto for e in page.events)
        out += page.events
        if page.upto >= page.head:
            return out
        assert page.upto > after
        after = page.upto


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["silence", "retry", "summary_wanted"])), max_size=40),
    st.integers(1, 7),
    st.sampled_from([None, ("retry",), ("silence", "summary_wanted"), ("gap",)]),
    st.sampled_from([None, "a", "nobody"]),
)
def test_pages_hold_every_matching_event_once(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[str, str]],
    limit: int,
    kinds: tuple[str, ...] | None,
    stream: str | None,
) -> None:
    journal = Journal(tmp_path_factory.mktemp("j"))
    body = {"silence": silence(0, 1), "retry": m.Retry(span=(0, 1)), "summary_wanted": m.SummaryWanted()}
    events: list[m.Event] = []
    for i, (s, kind) in enumerate(history):
        events += journal.append([append(0, body[kind], stream=s, producer=f"p{i}")])[1]
    wanted = [e for e in events if (kinds is None or e.kind in kinds) and stream in (None, e.stream)]
    assert pages(Reader(journal.path, journal.id), limit, kinds, stream) == wanted
    journal.close()


def test_a_page_stays_small_and_bounded_in_work(journal: Journal) -> None:
    big = m.Suppressed(span=(0, 1), text="x" * 100_000, reason="loop")
    for n in range(6):
        one(journal, append(n, big))
    page = Reader(journal.path, journal.id).page(m.Replay(after=0))
    assert len(page.events) == 2 and page.upto == 2 and len(m.encode(page)) <= m.PAGE_BYTES


def test_a_kind_that_has_nothing_new_costs_one_page(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.journal.ROWS_LOOKED_AT", 3)
    one(journal, append(0, m.Retry(span=(0, 1)), *[silence(i, i + 1) for i in range(10)]))
    reader = Reader(journal.path, journal.id)
    retries = reader.page(m.Replay(after=0, kinds=("retry", "gap")))
    assert ([e.seq for e in retries.events], retries.upto) == ([1], 3)
    rest = reader.page(m.Replay(after=3, kinds=("retry", "gap")))
    assert (rest.events, rest.upto, rest.head) == ((), 11, 11)


def test_purge_really_deletes_the_text(journal: Journal) -> None:
    secret = "the launch code is nine seven five"
    told = m.Suppressed(span=(0, 5), text=secret, reason="loop", segment="s:0")
    for n in range(50):
        one(journal, append(n, told, producer="p", state=secret.encode(), audio=5))
    one(journal, append(0, silence(0, 1), stream="other"))
    assert secret.encode() in b"".join(p.read_bytes() for p in journal.path.parent.iterdir())
    (event,) = journal.purge("s")
    assert event.kind == "purged" and event.decode() == m.Purged(stream="s", seqs=((1, 50),))
    held = Reader(journal.path, journal.id).page(m.Replay(after=0)).events
    assert [e.purged for e in held] == [True] * 50 + [False, False]
    assert [e.seq for e in held] == list(range(1, 53))
    assert secret.encode() not in b"".join(p.read_bytes() for p in journal.path.parent.iterdir())
    assert journal.at("p", "s") == m.At(n=52, positions={"audio": 5}, state=b"", head=52)  # nothing is heard again
    assert journal.purge("s") == []  # once is enough


def test_a_purge_that_was_killed_after_its_commit_deletes_when_the_feed_is_back(journal: Journal) -> None:
    secret = "the launch code is nine seven five"
    one(journal, append(0, m.Suppressed(span=(0, 5), text=secret, reason="loop"), producer="p"))
    reader = connect(journal.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()  # the WAL cannot be cut now, as if the kill had come before it
    journal.purge("s")
    killed = journal.path.parent.with_name("killed")
    shutil.copytree(journal.path.parent, killed)
    assert secret.encode() in b"".join(p.read_bytes() for p in killed.iterdir())
    reader.close()
    again = Journal(killed)
    assert secret.encode() not in b"".join(p.read_bytes() for p in killed.iterdir())
    again.close()


def test_a_step_begun_before_a_purge_brings_no_words_after_it(journal: Journal) -> None:
    one(journal, append(0, silence(0, 1), producer="p", audio=1))
    begun = append(1, m.Suppressed(span=(1, 2), text="secret", reason="loop"), producer="p", audio=2)
    journal.purge("s")
    answers, events = journal.append([begun])
    assert not events and answers == [m.At(n=3, positions={"audio": 1}, state=b"", head=2)]


def test_a_stream_purged_with_its_audio_is_new_when_it_comes_again(journal: Journal) -> None:
    one(journal, append(0, silence(0, 10), producer="transcriber", state=b"x", audio=10, meta=2))
    journal.purge("s", forget=True)
    assert journal.at("transcriber", "s") == m.At(n=3, positions={}, state=b"", head=2)
    assert isinstance(one(journal, append(3, silence(0, 20), producer="transcriber", audio=20)), m.At)
    assert Journal(journal.path.parent).sums == {"s": {"silence": 20}}


@pytest.mark.parametrize("stream", ["", "..", "../../x", "a/b", "a\0b", ".hidden", "x" * 201, "a\nb"])
def test_a_name_that_is_no_folder_of_its_own_is_no_stream(journal: Journal, stream: str) -> None:
    refused = one(journal, append(0, m.SummaryWanted(), stream=stream))
    assert isinstance(refused, m.Refused) and "malformed stream name" in refused.reason and not refused.retry_after_s
    assert journal.head == 0


def test_numbers_that_sqlite_cannot_hold_are_refused_or_mean_the_end(journal: Journal) -> None:
    huge = 2**64 - 1
    refused = one(journal, append(0, silence(0, huge), producer="transcriber", audio=huge))
    assert isinstance(refused, m.Refused) and refused.reason.startswith("malformed")
    one(journal, append(0, silence(0, 1)))
    page = Reader(journal.path, journal.id).page(m.Replay(after=huge))
    assert (page.head, page.upto, page.events) == (1, 1, ())


def test_a_transaction_that_breaks_leaves_memory_as_the_disk_is(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(journal, append(0, silence(0, 1), audio=1))

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(journal, "_insert", broken)
    assert isinstance(one(journal, append(1, silence(1, 2), audio=2)), m.Refused)
    monkeypatch.undo()
    assert one(journal, append(1, silence(1, 2), audio=2)) == m.At(n=2, positions={"audio": 2}, state=b"", head=2)


@on_a_small_disk
def test_a_journal_is_opened_on_a_full_disk(tmp_path: Path) -> None:
    """What was purged last is still in the WAL; it goes with the first append that finds room."""
    with small_disk(tmp_path / "disk", 4) as leave:
        folder = tmp_path / "disk" / "journal"
        first = Journal(folder)
        for n in range(40):
            one(first, append(n, m.Suppressed(span=(n, n + 1), text="secret " * 2000, reason="loop"), audio=n + 1))
        reader = connect(first.path, read_only=True)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()  # keeps the WAL from being cut
        first._db.execute("PRAGMA busy_timeout = 0")
        first.purge("s", True)
        kept = folder.with_name("killed")
        shutil.copytree(folder, kept)  # as a kill leaves it
        reader.close()
        first.close()
        shutil.rmtree(folder)
        wal = kept / "journal.sqlite-wal"
        assert b"secret" in wal.read_bytes()
        (kept / "journal.sqlite-shm").unlink(missing_ok=True)
        leave(0)
        with pytest.raises(DiskFull):
            Journal(tmp_path / "disk" / "new")
        with contextlib.suppress(DiskFull):  # no room for the index of the WAL: nothing has changed
            again = Journal(kept)
            assert isinstance(one(again, append(0, m.Silence(span=(0, 1)), stream="t")), m.At | m.Refused)
            again.close()
        leave(2000)
        again = Journal(kept)
        assert not again._uncut and (not wal.exists() or b"secret" not in wal.read_bytes())
        assert again.at("test", "s").n == first.at("test", "s").n
        again.close()


def test_a_checkpoint_that_found_no_room_comes_with_the_next_append(journal: Journal) -> None:
    one(journal, append(0, silence(0, 1), audio=1))
    wal = journal.path.with_name("journal.sqlite-wal")
    assert wal.stat().st_size > 0
    journal._uncut = True
    one(journal, append(1, silence(1, 2), audio=2))
    assert not journal._uncut and wal.stat().st_size == 0
