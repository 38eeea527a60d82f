"""What must hold after any faults, checked on what a run has left. Pure: evidence in, violations as lines out.

`Evidence` is all that is looked at; `violations` runs every check. Each check is named in `CHECKS` with what it proves;
`tests/test_scorecard.py` plants a violation for each, so that none of them passes because it cannot fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from common import backlog
from common import messages as m
from common.settings import SummarySettings
from tests.system import TILES, body, content, translations_told, turns_told
from workers.minutes import Book

TURN_S = 0.5  # the arbiter counts from when its turn began, we from when the roster was written


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the arbiter's decisions (see `troubled.watch_decisions`)."""

    event: str  # start | roster | lease | kill
    at_s: float
    arbiter: int
    n: int = 0
    rows: tuple[dict[str, Any], ...] = ()
    pid: int = 0
    epoch: int = 0
    granted: bool = False
    on_disk: bool = True
    signal: int = 0


class Evidence(msgspec.Struct, kw_only=True):
    """What a run has left behind."""

    stream: str
    events: list[m.Event]  # the journal
    lines: list[str]  # of an undisturbed run of the same audio: captions, silences, gaps
    appends: list[tuple[str, int]]  # and the transcriber's appends there
    turns: list[tuple[str, int]]  # and who spoke when, with the diarizer's appends
    targets: tuple[str, ...]  # languages
    translations: list[tuple[str, int]]  # and the same of the translator
    audio: list[str]  # what of the backlog is not the source's samples, byte for byte (see `backlog_differs`)
    delivered: list[int]  # seqs in the order in which a subscriber was handed them
    hashes: dict[str, str]  # who -> state hash over everything
    rules: SummarySettings
    card_bytes: int  # what leases may have together
    most_bytes: int  # that the card ever held
    too_much: list[str]
    decisions: list[Decision]
    left_processes: dict[int, str]  # after the stop
    left_bytes: int  # locked granules after the stop
    stop_status: int
    unrecovered: list[str]
    tracebacks: list[str]


def one_class(e: Evidence) -> list[str]:
    """Every sample of the stream is in exactly one text, silence, suppressed or gap; the stream ended once."""
    mine = [x for x in e.events if x.stream == e.stream]
    ends = [body(x).end for x in mine if x.kind == "stream_ended"]
    kinds = Counter(x.kind for x in mine)
    out = [f"{kinds[k]} times {k}" for k in ("stream_started", "stream_ended") if kinds[k] != 1]
    tiles = [body(x) for x in mine if x.kind in TILES and x.producer == "transcriber"]
    at = 0
    for span in sorted(t.span for t in tiles if getattr(t, "supersedes", None) is None):
        if not at == span[0] < span[1]:
            out.append(f"samples {at} to {span[0]} have {'no class' if at < span[0] else 'two classes'}")
        at = max(at, span[1])
    if ends and at != ends[-1]:
        out.append(f"classes end at {at}, the stream at {ends[-1]}")
    return out


def each_once(e: Evidence) -> list[str]:
    """No event is missing or doubled: contiguous seq, right prev, appends that rise, no segment twice, one stream."""
    out = []
    if [x.seq for x in e.events] != list(range(1, len(e.events) + 1)):
        out.append("seqs of the journal are not 1, 2, 3 ...")
    last: dict[tuple[str, str], int] = {}
    counts: dict[tuple[str, str], int] = {}
    for x in e.events:
        if x.prev != last.get((x.stream, x.kind), 0):
            out.append(f"event {x.seq} has prev {x.prev}")
        if x.n < counts.get((x.producer, x.stream), 0):
            out.append(f"event {x.seq} is of append {x.n} of {x.producer}, after a later one")
        last[x.stream, x.kind], counts[x.producer, x.stream] = x.seq, x.n
    segments = [(body(x).segment, body(x).revision) for x in e.events if x.kind == "transcript"]
    out += [f"segment {s} is there {n} times" for s, n in Counter(segments).items() if n > 1]
    out += [f"another stream than {e.stream}: {s}" for s in {x.stream for x in e.events} - {e.stream}]
    return out


def same_words(e: Evidence) -> list[str]:
    """Captions, silences and samples are those of a run in which nothing happened."""
    mine = content(e.events, e.stream)
    out = list(e.audio)
    out += [f"only without faults: {line[:150]}" for line in e.lines if line not in set(mine)]
    out += [f"only with faults: {line[:150]}" for line in mine if line not in set(e.lines)]
    if not out and mine != e.lines:
        out.append("the same captions, in another order")
    if [(x.kind, x.n) for x in e.events if x.producer == "transcriber"] != e.appends:
        out.append("the same captions, in other appends")
    return out


def same_turns(e: Evidence) -> list[str]:
    """Who spoke when, under which id, and what was relabelled, is what it is where nothing happened; each once."""
    return _same(turns_told(e.events, e.stream), e.turns)


def same_translations(e: Evidence) -> list[str]:
    """Every sentence is translated as it is where nothing happened, once."""
    return _same(translations_told(e.events, e.stream, e.targets), e.translations)


def _same(mine: list[tuple[str, int]], undisturbed: list[tuple[str, int]]) -> list[str]:
    out = [f"only without faults: {line[:150]}" for line, _ in undisturbed if line not in {x for x, _ in mine}]
    out += [f"only with faults: {line[:150]}" for line, _ in mine if line not in {x for x, _ in undisturbed}]
    out += [f"{n} times: {line[:150]}" for line, n in Counter(x for x, _ in mine).items() if n > 1]
    if not out and mine != undisturbed:
        out.append("the same, in another order or in other appends")
    return out


def backlog_differs(folder: Path, audio: bytes, removed: list[dict[str, Any]]) -> list[str]:
    """`removed` are capture's words on what it deleted: read files may go, the oldest first, when the disk is full."""
    out = [f"deleted without need: {r}" for r in removed if not r["disk_full"]]
    out += [f"a hole: {h}" for h in backlog.holes(folder)]
    files = backlog.audio_files(folder)
    at = files[0][0] if files and removed else 0
    for first, path in files:
        data = path.read_bytes()
        if first != at or data != audio[2 * first : 2 * first + len(data)]:
            out.append(f"{path.name} has other samples than the source has from {at} on")
        at = first + len(data) // 2
    return out if 2 * at == len(audio) else [*out, f"the backlog ends at {at}, the source at {len(audio) // 2}"]


def subscribers(e: Evidence) -> list[str]:
    """Who was connected throughout got each event once, in order; all hold what the feed holds."""
    out = [] if len(set(e.hashes.values())) == 1 else [f"state hashes differ: {e.hashes}"]
    if e.delivered != [x.seq for x in e.events]:
        out.append(f"a subscriber was handed {len(e.delivered)} events, not {len(e.events)} in order")
    return out


def summaries(e: Evidence) -> list[str]:
    """Each interval with text has its minutes, once, of all its segments; the journal alone says what is due."""
    book = Book(e.stream, m.At(n=0, positions={}, state=b"", head=0), e.rules)
    for x in e.events:
        if x.stream == e.stream:
            book.take(x)
    due, before = [], 0
    for cut in book.cuts:
        lines = [line for line in book.lines(cut) if line.seq > before]
        before = max(before, cut.upto)
        if lines:
            due.append((cut.reason, cut.span, lines[0].segment, lines[-1].segment, 1.0))
    made = [body(x) for x in e.events if x.kind == "summary" and x.stream == e.stream]
    there = [(s.reason, s.span, s.first, s.last, s.coverage) for s in made]
    out = [f"minutes are missing: {d}" for d in due if d not in there]
    out += [f"minutes nobody asked for: {t}" for t in there if t not in due]
    out += [f"minutes {n} times: {t}" for t, n in Counter(there).items() if n > 1]
    out += [f"the {x.producer} gave up: {body(x)}" for x in e.events if x.kind == "gap" and x.producer == "summarizer"]
    return out


def never_over(e: Evidence) -> list[str]:
    """The granules, read 20 times a second: never more than the cap, nobody more than its lease."""
    out = list(dict.fromkeys(e.too_much))
    if e.most_bytes > e.card_bytes:
        out.append(f"the card held {e.most_bytes >> 20} MiB, the cap is {e.card_bytes >> 20}")
    return out


def no_double_grant(e: Evidence) -> list[str]:
    """The arbiters' decisions: epochs rise over restarts, one holder each, on disk before sent, never more than the
    cap in all; SIGKILL only for one that was revoked for its whole time."""
    out: list[str] = []
    highest = 0
    owner: dict[int, tuple[Any, ...]] = {}
    revoked: dict[int, tuple[float, float]] = {}  # pid -> since when, and how long it has at least
    for d in e.decisions:
        if d.event == "roster":
            total = sum(r["bytes"] for r in d.rows)
            fresh = [r for r in d.rows if r["epoch"] > highest]
            if total > e.card_bytes and any(r["state"] == "granted" for r in fresh):
                out.append(f"granted {total >> 20} MiB in all, the cap is {e.card_bytes >> 20}: {fresh}")
            if d.n < highest:
                out.append(f"decision {d.n} after {highest}")
            for r in (r for r in d.rows if r["epoch"]):  # 0: nobody ever decided about it, it only was there
                name = (r["nonce"], r["pid"], "granted" if r["state"] == "granted" else "revoked")
                known = owner.setdefault(r["epoch"], name)
                if known[:2] != name[:2] or (known[2], name[2]) == ("revoked", "granted"):
                    out.append(f"epoch {r['epoch']} was {known} and is {name}")
            asked = {r["pid"]: r["within_s"] for r in d.rows if r["state"] in ("revoked", "killed")}
            since = {pid: revoked.get(pid, (d.at_s, within)) for pid, within in asked.items()}
            revoked = {pid: (since[pid][0], min(since[pid][1], within)) for pid, within in asked.items()}
            highest = max([highest, d.n, *(r["epoch"] for r in d.rows)])
        elif d.event == "lease" and not d.on_disk:
            out.append(f"a lease of epoch {d.epoch} left, and the roster on disk did not say so")
        elif d.event == "kill":
            began, had_s = revoked.get(d.pid, (d.at_s, inf))
            if d.at_s - began < had_s - TURN_S:
                out.append(f"pid {d.pid} was killed {d.at_s - began:.2f} s after its revocation, it had {had_s:.2f} s")
    return out


def nothing_left(e: Evidence) -> list[str]:
    """After the stop: no process of the run, no granule of the card; the launcher ended as asked."""
    out = [f"pid {pid} is left: {command[:150]}" for pid, command in e.left_processes.items()]
    out += [f"{e.left_bytes >> 20} MiB of the card are still held"] if e.left_bytes else []
    out += [f"the launcher ended with status {e.stop_status}"] if e.stop_status else []
    return out


def recovered(e: Evidence) -> list[str]:
    """Whoever was hit lives and says so, within the time allowed."""
    return list(e.unrecovered)


def no_crash(e: Evidence) -> list[str]:
    """No process fell over by itself: no traceback in any log."""
    return list(e.tracebacks)


Check = Callable[[Evidence], list[str]]
CHECKS: tuple[Check, ...] = (
    one_class,
    each_once,
    same_words,
    same_turns,
    same_translations,
    subscribers,
    summaries,
    never_over,
    no_double_grant,
    nothing_left,
    recovered,
    no_crash,
)


def violations(evidence: Evidence) -> list[str]:
    """`check: what` for everything that is wrong."""
    return [f"{check.__name__}: {what}" for check in CHECKS for what in check(evidence)]
