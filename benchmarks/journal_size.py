"""How large a journal has to be for what it holds, by the file format of SQLite (https://sqlite.org/fileformat2.html).

In: the events as they are replayed and the places of the producers. Out: bytes. Nothing here reads the file: what it
has beyond this is bloat. Counted are the rows of each table (`workers/journal.py`), record headers, cell pointers,
page headers, and the room that a page of `events` has left when the next row does not fit in. One thing is no rule of
the format: a page of an index that grew at its end is seven eighths full (measured, 200 to 8,000 rows).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

from common import coverage
from common import messages as m
from common.topology import COVERAGE_PRODUCER

PAGE = 4096
LEAF = PAGE - 8  # of a leaf page, without its header
POINTER = 2  # to each cell of a page
SMALL_TABLES = 3  # pages: schema, meta, heads
OVER_TABLE = PAGE - 35  # a record beyond this has the rest in pages of its own; in an index the first is smaller
OVER_INDEX = (PAGE - 12) * 64 // 255 - 23
FILLED = 7 / 8  # of a page of an index
KEPT = (PAGE - 12) * 32 // 255 - 23

Value = int | str | bytes | None


def varint(n: int) -> int:
    """Bytes of a variable-length integer."""
    return next(k for k in range(1, 10) if k == 9 or n < 1 << 7 * k)


def record(values: Iterable[Value]) -> int:
    """Bytes of one record: its header, and the values."""
    header = size = 0
    for v in values:
        if isinstance(v, str | bytes):
            length = len(v.encode() if isinstance(v, str) else v)
            header, size = header + varint(2 * length + 13), size + length
        else:
            header += 1
            size += (
                0
                if v in (None, 0, 1)
                else next(k for k in (1, 2, 3, 4, 6, 8) if -(1 << 8 * k - 1) <= v < 1 << 8 * k - 1)
            )
    return 1 + header + size


def cell(payload: int, most: int) -> tuple[int, int]:
    """(bytes on its own page, overflow pages) of a record."""
    if payload <= most:
        return payload, 0
    local = KEPT + (payload - KEPT) % (PAGE - 4)
    local = local if local <= most else KEPT
    return local + 4, ceil((payload - local) / (PAGE - 4))


def appended(rows: Iterable[tuple[int, int]]) -> int:
    """Pages of a table to whose end all rows were appended, (rowid, record bytes): each goes to the last leaf."""
    leaves, left, beside, last = 1, LEAF, 0, 0
    for last, payload in rows:
        local, overflow = cell(payload, OVER_TABLE)
        need = varint(payload) + varint(last) + local + POINTER
        if need > left:
            leaves, left = leaves + 1, LEAF
        left -= need
        beside += overflow
    return leaves + beside + (ceil(leaves * (4 + varint(last) + POINTER) / LEAF) if leaves > 1 else 0)


def index(payloads: Iterable[int]) -> int:
    """Pages of an index or a table without rowid."""
    total = beside = rows = 0
    for payload in payloads:
        local, overflow = cell(payload, OVER_INDEX)
        total += varint(payload) + local + POINTER
        beside += overflow
        rows += 1
    if total <= LEAF:
        return 1 + beside
    leaves = ceil(total / (LEAF * FILLED))
    return leaves + ceil(leaves * (total / rows + 4) / LEAF) + beside


def journal_bytes(events: Sequence[m.Event], places: Iterable[tuple[str, str, m.At]]) -> int:
    """The whole file, `places` being (producer, stream, where it stands)."""
    rows = [(None, e.prev, e.stream, e.kind, e.producer, e.n, e.at_ns, e.body) for e in events]
    pages = SMALL_TABLES + appended((e.seq, record(row)) for e, row in zip(events, rows, strict=True))
    pages += index(record((e.stream, e.seq, e.seq)) for e in events)  # an index ends with the rowid
    tiles = [(e.stream, t) for e in events if e.producer == COVERAGE_PRODUCER and (t := coverage.tile_of(e.decode()))]
    pages += index(record((stream, *t.span, t.klass)) for stream, t in tiles if not t.replaces)
    pages += index(record((p, s, at.n, m.encode(at.positions), at.state)) for p, s, at in places)
    return pages * PAGE
