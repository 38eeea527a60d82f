"""The journal: SQLite, WAL, synchronous=FULL. The only file that imports sqlite3.

In: groups of Append. Out: events with contiguous seq, At answers, pages. A group is one transaction: positions, state
and events of an append are on disk together or not at all, so a kill leaves whole appends only, and a producer that
asks again (compare-and-set on its append count n) never doubles anything.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from common import coverage
from common.messages import (
    APPEND_BYTES,
    BODIES,
    EVENT_BYTES,
    PAGE_BYTES,
    UNDECODABLE,
    Append,
    At,
    Event,
    Page,
    Purged,
    Refused,
    Replay,
    Span,
    encode,
)
from common.topology import COVERAGE_PRODUCER

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, prev INTEGER NOT NULL, stream TEXT NOT NULL, kind TEXT NOT NULL,
    producer TEXT NOT NULL, n INTEGER NOT NULL, at_ns INTEGER NOT NULL, body BLOB);
CREATE INDEX IF NOT EXISTS by_stream ON events (stream, seq);
CREATE TABLE IF NOT EXISTS places (
    producer TEXT, stream TEXT, n INTEGER NOT NULL, positions BLOB NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (producer, stream)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (
    stream TEXT, kind TEXT, seq INTEGER NOT NULL, PRIMARY KEY (stream, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tiles (
    stream TEXT, first INTEGER, last INTEGER NOT NULL, class TEXT NOT NULL, PRIMARY KEY (stream, first)) WITHOUT ROWID;
"""
COLUMNS = "seq, prev, stream, kind, producer, n, at_ns, body"
ROWS_LOOKED_AT = 5_000  # bound of one page's work when few events match
PURGE_RUNS = 10_000  # runs of seqs in one Purged event
LARGEST = 2**63 - 1  # integer that SQLite holds; MessagePack has larger ones
STREAM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")  # it is the name of a folder, too
_positions = msgspec.msgpack.Decoder(dict[str, int])


class _Tag(msgspec.Struct):
    """The part of an event body that tells its kind."""

    type: str


FULL = "disk full"
FULL_NAMES = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE", "SQLITE_IOERR_SHMSIZE")


class DiskFull(OSError):
    """There is no room on the journal's disk."""


_tag = msgspec.msgpack.Decoder(_Tag)


def connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{path}?mode={'ro' if read_only else 'rwc'}", uri=True, isolation_level=None, timeout=30)
    db.execute("PRAGMA synchronous=FULL")
    return db


class Journal:
    """The single writer. Keeps every producer's place and every topic's head in memory, as they stand on disk.

    `DiskFull` when made: there is no room to open it. Nothing has changed; try again later.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = connect(self.path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA secure_delete=ON")  # purged bodies are overwritten, not just unlinked
            self._db.executescript(SCHEMA)
            # A feed killed in a purge, after its commit, left the old copies of the overwritten pages in the WAL.
            self._cut_wal()
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('journal', ?)", (os.urandom(8).hex(),))
        except (sqlite3.Error, OSError) as e:
            if getattr(e, "errno", None) != errno.ENOSPC and self._why(e) != FULL:
                raise
            raise DiskFull(f"{self.path}: {FULL}") from e
        self.id: str = self._db.execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0]
        self._load()
        self._files = self._on_disk()

    def _on_disk(self) -> list[tuple[int, int]]:
        """Which files our names stand for."""
        found = (os.stat(f"{self.path}{end}") for end in ("", "-wal"))
        return [(info.st_dev, info.st_ino) for info in found]

    @property
    def in_place(self) -> bool:
        """False: what was opened is not what another would open; SQLite goes on writing to it all the same."""
        try:
            return self._on_disk() == self._files
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _cut_wal(self) -> None:
        """Old copies of pages go; on a full disk with the first append that finds room. A reader may delay it too."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._uncut = False
        except sqlite3.Error:
            self._uncut = True

    def _load(self) -> None:
        """Memory from disk: at start, and after a transaction that failed."""
        self.head: int = self._db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()[0]
        self.places: dict[tuple[str, str], tuple[int, dict[str, int], bytes]] = {
            (p, s): (n, _positions.decode(positions), state)
            for p, s, n, positions, state in self._db.execute("SELECT * FROM places")
        }
        self.heads: dict[str, dict[str, int]] = {}
        for stream, kind, seq in self._db.execute("SELECT * FROM heads"):
            self.heads.setdefault(stream, {})[kind] = seq
        self.sums: dict[str, dict[str, int]] = {}
        for stream, klass, n in self._db.execute(
            "SELECT stream, class, sum(last - first) FROM tiles GROUP BY stream, class"
        ):
            self.sums.setdefault(stream, {})[klass] = n

    def at(self, producer: str, stream: str) -> At:
        n, positions, state = self.places.get((producer, stream), (0, {}, b""))
        return At(n=n, positions=positions, state=state, head=self.head)

    def ended_ns(self, seq: int) -> int:
        """Wall clock (ns) at which the stream ended whose StreamEnded is event `seq`, as far as is known by now."""
        dated = self._db.execute("SELECT value FROM meta WHERE key = ?", (f"ended {seq}",)).fetchone()
        row = dated or self._db.execute("SELECT at_ns FROM events WHERE seq = ?", (seq,)).fetchone()
        return int(row[0]) if row else 0

    def date_end(self, seq: int, at_ns: int) -> None:
        """The clock was wrong when it ended. Without room on the disk nothing changes."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"ended {seq}", str(at_ns)))

    def append(self, group: list[Append]) -> tuple[list[At | Refused], list[Event]]:
        """Commit a group in one transaction; answers in order, and the new events to publish.

        A full disk refuses the whole group and changes nothing.
        """
        answers: list[At | Refused] = []
        events: list[Event] = []
        if all(a.expect_n != self.places.get((a.producer, a.stream), (0,))[0] for a in group):
            return [self.at(a.producer, a.stream) for a in group], []  # questions and resends touch no disk
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for a in group:
                refused = self._one(a, events)
                answers.append(refused or self.at(a.producer, a.stream))
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            self._abandon()
            return [Refused(reason=self._why(e), retry_after_s=1.0)] * len(group), []
        if self._uncut:
            self._cut_wal()
        return answers, events

    def _one(self, a: Append, out: list[Event]) -> Refused | None:
        n, positions, state = self.places.get((a.producer, a.stream), (0, {}, b""))
        if a.expect_n != n:
            return None
        sizes = [len(a.state or b""), *(len(memoryview(e)) for e in a.events)]
        if sum(sizes) > APPEND_BYTES or max(sizes) > EVENT_BYTES:
            return Refused(reason=f"too large: {EVENT_BYTES >> 20} MiB an event, {APPEND_BYTES >> 20} MiB an append")
        if not STREAM_NAME.fullmatch(a.stream):
            return Refused(
                reason="malformed stream name: 1 to 200 of A-Z a-z 0-9 _ . @ + - that begin with none of .@+-"
            )
        kinds: list[str] = []
        tiles: list[coverage.Tile] = []
        for raw in a.events:
            try:
                kind = _tag.decode(raw).type
                body = msgspec.msgpack.decode(raw, type=BODIES[kind]) if kind in BODIES else None
            except UNDECODABLE as e:
                return Refused(reason=f"malformed event: {e}")
            kinds.append(kind)
            tile = coverage.tile_of(body) if body is not None and a.producer == COVERAGE_PRODUCER else None  # type: ignore[arg-type]
            if tile and not 0 <= tile.span[0] < tile.span[1] <= LARGEST:
                return Refused(reason=f"malformed event: no span {tile.span}")
            if tile:
                tiles.append(tile)
        new_positions = positions | a.positions
        if a.producer == COVERAGE_PRODUCER:
            wrong = coverage.untiled(positions.get("audio", 0), new_positions.get("audio", 0), tiles)
            if wrong or not all(self._replaceable(a.stream, t) for t in tiles if t.replaces):
                return Refused(reason=wrong or "a superseding event must have the span of the one it replaces")
        now = time.time_ns()
        heads = self.heads.setdefault(a.stream, {})
        for kind, raw in zip(kinds, a.events, strict=True):
            self.head += 1
            event = Event(
                seq=self.head, prev=heads.get(kind, 0), stream=a.stream, kind=kind,
                producer=a.producer, n=n + 1, at_ns=now, body=bytes(raw),
            )  # fmt: skip
            self._insert(event)
            heads[kind] = self.head
            out.append(event)
        for tile in tiles:
            self._put_tile(a.stream, tile)
        place = (n + 1, new_positions, state if a.state is None else a.state)
        self.places[a.producer, a.stream] = place
        self._db.execute(
            "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)",
            (a.producer, a.stream, place[0], encode(place[1]), place[2]),
        )
        return None

    def _insert(self, e: Event) -> None:
        self._db.execute(
            f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (e.seq, e.prev, e.stream, e.kind, e.producer, e.n, e.at_ns, e.body),
        )
        self._db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (e.stream, e.kind, e.seq))

    def _tile_class(self, stream: str, tile: coverage.Tile) -> str | None:
        row = self._db.execute(
            "SELECT class FROM tiles WHERE stream = ? AND first = ? AND last = ?", (stream, *tile.span)
        ).fetchone()
        return row[0] if row else None

    def _replaceable(self, stream: str, tile: coverage.Tile) -> bool:
        return self._tile_class(stream, tile) is not None

    def _put_tile(self, stream: str, tile: coverage.Tile) -> None:
        replaced = self._tile_class(stream, tile) if tile.replaces else None
        self._db.execute("INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?)", (stream, *tile.span, tile.klass))
        coverage.add(self.sums.setdefault(stream, {}), tile, replaced)

    def purge(self, stream: str, forget: bool = False) -> list[Event]:
        """Overwrite the bodies of all events of `stream`; returns the Purged events. OSError when the disk is full.

        It counts as two appends of every producer there: no step begun before it can bring words afterwards, and
        none is answered as if it had (that would be n + 1).
        `forget`: the audio is gone too; a stream of this name that comes again (a file always has the same) is new.
        """
        rows = self._db.execute(
            "SELECT seq FROM events WHERE stream = ? AND body IS NOT NULL AND kind != 'purged' ORDER BY seq", (stream,)
        ).fetchall()
        runs: list[Span] = []
        for (seq,) in rows:
            if runs and runs[-1][1] == seq - 1:
                runs[-1] = (runs[-1][0], seq)
            else:
                runs.append((seq, seq))
        events: list[Event] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE events SET body = NULL WHERE stream = ? AND kind != 'purged'", (stream,))
            self._db.execute("DELETE FROM tiles WHERE stream = ?", (stream,))
            self._db.execute("UPDATE places SET n = n + 2, state = x'' WHERE stream = ?", (stream,))
            if forget:
                self._db.execute("UPDATE places SET positions = ? WHERE stream = ?", (encode({}), stream))
            n, positions, _ = self.places.get(("feed", stream), (0, {}, b""))
            for i in range(0, len(runs), PURGE_RUNS):
                n += 1
                self.head += 1
                heads = self.heads.setdefault(stream, {})
                event = Event(
                    seq=self.head, prev=heads.get("purged", 0), stream=stream, kind="purged", producer="feed", n=n,
                    at_ns=time.time_ns(), body=encode(Purged(stream=stream, seqs=tuple(runs[i : i + PURGE_RUNS]))),
                )  # fmt: skip
                self._insert(event)
                heads["purged"] = self.head
                events.append(event)
            self._db.execute(
                "INSERT OR REPLACE INTO places VALUES ('feed', ?, ?, ?, x'')", (stream, n, encode(positions))
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            self._abandon()
            raise OSError(self._why(e)) from e
        self._load()
        self._cut_wal()  # old copies of the overwritten pages lie there
        return events

    def _abandon(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._load()

    @staticmethod
    def _why(e: Exception) -> str:
        full = getattr(e, "sqlite_errorname", "") in FULL_NAMES
        return FULL if full or "full" in str(e) else f"journal: {e}"

    def close(self) -> None:
        self._db.close()


def _event(row: tuple[int, int, str, str, str, int, int, bytes | None]) -> Event:
    seq, prev, stream, kind, producer, n, at_ns, body = row
    return Event(
        seq=seq, prev=prev, stream=stream, kind=kind, producer=producer, n=n, at_ns=at_ns,
        body=body or b"", purged=body is None,
    )  # fmt: skip


class Reader:
    """Reads pages beside the writer, each in its own read transaction. One per thread."""

    def __init__(self, path: Path, journal: str) -> None:
        self._db = connect(path, read_only=True)
        self.journal = journal

    def close(self) -> None:
        """The last connection that closes puts the WAL into the file; one that is only forgotten keeps it beside."""
        self._db.close()

    def page(self, ask: Replay) -> Page:
        """Events after `ask.after`, bounded in count, bytes and rows looked at."""
        self._db.execute("BEGIN")
        try:
            first, head = self._db.execute("SELECT ifnull(min(seq), 0), ifnull(max(seq), 0) FROM events").fetchone()
            after = min(ask.after, LARGEST)
            where, values = "seq > ?", [after]
            if ask.stream is not None:
                where, values = "stream = ? AND seq > ?", [ask.stream, after]  # type: ignore[list-item]
            if ask.kinds is not None and self._newest(ask.kinds) <= after:  # rare kinds: not a million rows for nothing
                return Page(journal=self.journal, first=first, head=head, upto=head, events=())
            events: list[Event] = []
            size, upto = 0, head
            rows = self._db.execute(f"SELECT {COLUMNS} FROM events WHERE {where} ORDER BY seq", values)
            for looked, row in enumerate(rows, 1):
                if ask.kinds is None or row[3] in ask.kinds:
                    size += len(row[7] or b"") + len(row[2]) + len(row[3]) + len(row[4]) + 120  # 120: field names, ints
                    if events and size > PAGE_BYTES:
                        upto = events[-1].seq
                        break
                    events.append(_event(row))
                if looked >= ROWS_LOOKED_AT or len(events) >= max(1, ask.limit):
                    upto = row[0]
                    break
        finally:
            self._db.execute("COMMIT")
        upto = max(upto, min(ask.after, head))
        return Page(journal=self.journal, first=first, head=head, upto=upto, events=tuple(events))

    def _newest(self, kinds: tuple[str, ...]) -> int:
        """Highest seq of these kinds, 0 when there is none."""
        rows = self._db.execute("SELECT kind, max(seq) FROM heads GROUP BY kind")
        return max((seq for kind, seq in rows if kind in kinds), default=0)

    def events(self, kinds: tuple[str, ...] | None, upto: int) -> Iterator[Event]:
        for row in self._db.execute(f"SELECT {COLUMNS} FROM events WHERE seq <= ? ORDER BY seq", (upto,)):
            if kinds is None or row[3] in kinds:
                yield _event(row)

    def state_hash(self, kinds: tuple[str, ...] | None, upto: int) -> tuple[int, str]:
        """(seq, sha256 over canonical lines) of everything up to `upto`, -1 meaning the head."""
        self._db.execute("BEGIN")  # one snapshot: a purge in between must not give half of each
        try:
            head: int = self._db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()[0]
            upto = head if upto < 0 else min(upto, head)
            digest = hashlib.sha256()
            for event in self.events(kinds, upto):
                digest.update(event.canonical())
        finally:
            self._db.execute("COMMIT")
        return upto, digest.hexdigest()
