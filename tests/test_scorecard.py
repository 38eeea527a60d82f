"""The fault scorecard: twenty faults in a row of every kind, and checks that can fail.

`make faults` plays more of them, for longer, and writes docs/faults.md.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import backlog
from common import messages as m
from common.settings import SummarySettings
from tests.conftest import ROOT, Processes, wait_for
from tests.faults import checker, page
from tests.faults.checker import CHECKS, Decision, Evidence, violations
from tests.faults.inject import Done, Injector
from tests.faults.schedule import KINDS, Fault, draw
from tests.faults.scorecard import Run, tracebacks
from tests.faults.system import FaultSystem
from tests.small_disk import on_a_small_disk
from tests.system import Undisturbed, content, translations_told, turns_told
from tests.undisturbed import undisturbed_recording

STREAM, MIB = "talk-1", 2**20
RATE = m.SAMPLE_RATE


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_recording(tmp_path_factory.getbasetemp())


@pytest.mark.processes
@pytest.mark.speech
@pytest.mark.timeout(600)
@on_a_small_disk
def test_twenty_faults_violate_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}; the same: python -m tests.faults.scorecard --faults 20 --seed {seed} --no-doc")
    result = Run(undisturbed, tmp_path / "run", pace=0.8).play(seed, 20, 2.2)
    print((tmp_path / "run" / "faults.jsonl").read_text())
    assert not result.violations, "\n".join(result.violations)
    assert len(result.faults) >= 20 and sum(d.met for d in result.faults) >= 15
    assert {d.kind for d in result.faults} == set(KINDS)
    assert result.summaries >= 2 and result.looks > 500 and result.strict_looks > result.looks // 2


@pytest.mark.pure
def test_a_seed_gives_the_same_faults_and_every_kind_comes() -> None:
    faults = draw(5, 200, 2.5)
    assert faults == draw(5, 200, 2.5) != draw(6, 200, 2.5)
    assert {f.kind for f in faults[:200]} == set(KINDS) == {f.kind for f in draw(5, 20, 2.5)[:20]}
    assert [f.number for f in faults] == list(range(1, 301))
    assert 400 < faults[199].at_s < 600
    for f in faults:
        assert f.target in KINDS[f.kind].targets and KINDS[f.kind].least_s <= f.for_s <= KINDS[f.kind].most_s
    assert len(Counter(f.target for f in faults)) >= 9


# The checks: one journal in which all is well, and for each check what it must find


def journal(changes: Callable[[list[m.Body]], Any] = lambda bodies: None) -> list[m.Event]:
    """40 s: two intervals of 15 s with text, and the end."""
    bodies: list[m.Body] = [m.StreamStarted(source="talk", lane="live", started_ns=1)]
    for i in range(4):
        first = i * 10 * RATE
        span = (first + 2 * RATE, first + 10 * RATE)
        bodies.append(m.Silence(span=(first, span[0])))
        segment = m.segment_id(STREAM, span[0])
        bodies.append(m.Transcript(segment=segment, span=span, text=f"Words {i}.", language="en", model="tiny.en"))
    bodies.append(m.StreamEnded(end=40 * RATE, reason="finished"))
    for first, last, span, reason in (
        (0, 1, (0, 15), "interval"),
        (2, 2, (15, 30), "interval"),
        (3, 3, (30, 40), "end"),
    ):
        ids = [m.segment_id(STREAM, (i * 10 + 2) * RATE) for i in (first, last)]
        samples = (span[0] * RATE, span[1] * RATE)
        bodies.append(
            m.Summary(first=ids[0], last=ids[1], bullets=(), model="x", coverage=1.0, span=samples, reason=reason)
        )
    spoke = [("S1", (2, 10)), ("S2", (12, 20))]
    bodies += [m.SpeakerTurn(span=(a * RATE, b * RATE), speaker=s, provisional=True) for s, (a, b) in spoke]
    bodies.append(m.Relabel(source="S2", target="S1", span=(12 * RATE, 20 * RATE)))
    for i in range(4):
        segment = m.segment_id(STREAM, (i * 10 + 2) * RATE)
        bodies.append(m.Translation(segment=segment, revision=0, target="pt", text=f"Palavras {i}.", model="x"))
    changes(bodies)
    out: list[m.Event] = []
    last_of: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for seq, body in enumerate(bodies, 1):
        kind = str(type(body).__struct_config__.tag)
        others = {"summary": "summarizer", "speaker_turn": "diarizer", "relabel": "diarizer"}
        others["translation"] = "translator.pt"
        producer = others.get(kind, "transcriber")
        counts[producer] += 1
        out.append(
            m.Event(
                seq=seq,
                prev=last_of.get(kind, 0),
                stream=STREAM,
                kind=kind,
                producer=producer,
                n=counts[producer],
                at_ns=seq,
                body=m.encode(body),
            )
        )
        last_of[kind] = seq
    return out


def row(pid: int, state: str, epoch: int, mib: int) -> dict[str, Any]:
    return {
        "worker": "w",
        "pid": pid,
        "nonce": str(pid),
        "state": state,
        "epoch": epoch,
        "bytes": mib * MIB,
        "within_s": 2,
    }


def roster(at_s: float, n: int, *rows: dict[str, Any]) -> Decision:
    return Decision(event="roster", at_s=at_s, arbiter=1, n=n, rows=rows)


DECISIONS = [
    roster(1.0, 1, row(7, "granted", 1, 60)),
    Decision(event="lease", at_s=1.0, arbiter=1, pid=7, epoch=1, granted=True),
    roster(2.0, 2, row(7, "revoked", 2, 60)),
    roster(4.1, 2, row(7, "killed", 2, 60)),
    Decision(event="kill", at_s=4.1, arbiter=1, pid=7, signal=9),
    roster(4.2, 2, row(7, "reclaiming", 2, 60)),
    Decision(event="start", at_s=4.3, arbiter=2),
    roster(4.4, 3, row(8, "granted", 3, 90)),
]


def evidence(events: list[m.Event] | None = None, **changes: Any) -> Evidence:
    good = journal()
    events = good if events is None else events
    plain: dict[str, Any] = {
        "stream": STREAM,
        "events": events,
        "lines": content(good, STREAM),
        "appends": [(e.kind, e.n) for e in good if e.producer == "transcriber"],
        "turns": turns_told(good, STREAM),
        "targets": ("pt",),
        "translations": translations_told(good, STREAM, ("pt",)),
        "audio": [],
        "delivered": [e.seq for e in events],
        "hashes": {"feed": "a", "late joiner": "a"},
        "rules": SummarySettings(interval_s=15.0),
        "card_bytes": 100 * MIB,
        "most_bytes": 100 * MIB,
        "too_much": [],
        "decisions": DECISIONS,
        "left_processes": {},
        "left_bytes": 0,
        "stop_status": 0,
        "unrecovered": [],
        "tracebacks": [],
    }
    return Evidence(**(plain | changes))


@pytest.mark.pure
def test_all_is_well_where_all_is_well() -> None:
    assert violations(evidence()) == []


def _decided(*more: Decision) -> dict[str, Any]:
    return {"decisions": [*DECISIONS, *more]}


BODIES: list[tuple[str, Callable[[list[m.Body]], Any], str]] = [
    ("one_class", lambda b: b.pop(3), "no class"),
    ("one_class", lambda b: b.insert(2, m.Silence(span=(0, RATE))), "two classes"),
    ("one_class", lambda b: b.insert(1, b[0]), "2 times stream_started"),
    ("one_class", lambda b: b.pop(8), "classes end at"),
    ("each_once", lambda b: b.insert(3, b[2]), "is there 2 times"),
    ("same_words", lambda b: b.__setitem__(2, msgspec.structs.replace(b[2], text="Worlds.")), "only with faults"),
    ("same_words", lambda b: b.pop(2), "only without faults"),
    ("same_turns", lambda b: b.pop(13), "only without faults"),
    ("same_turns", lambda b: b.append(b[14]), "2 times"),
    ("same_turns", lambda b: b.__setitem__(13, msgspec.structs.replace(b[13], speaker="S3")), "only with faults"),
    ("same_turns", lambda b: b.insert(13, b.pop(15)), "in another order"),
    ("same_translations", lambda b: b.pop(16), "only without faults"),
    ("same_translations", lambda b: b.append(b[16]), "2 times"),
    ("same_translations", lambda b: b.__setitem__(16, msgspec.structs.replace(b[16], text="?")), "only with faults"),
    ("same_translations", lambda b: b.insert(16, b.pop(17)), "in another order"),
    ("summaries", lambda b: b.pop(11), "missing"),
    ("summaries", lambda b: b.append(b[11]), "minutes 2 times"),
    ("summaries", lambda b: b.__setitem__(10, msgspec.structs.replace(b[10], last=b[10].first)), "nobody asked for"),
]
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("each_once", {"events": journal()[:4] + journal()[5:]}, "are not 1, 2, 3"),
    ("each_once", {"events": [*journal()[:-1], msgspec.structs.replace(journal()[-1], prev=1)]}, "has prev 1"),
    ("each_once", {"events": [*journal()[:-1], msgspec.structs.replace(journal()[-1], n=0)]}, "after a later one"),
    ("each_once", {"events": [*journal()[:-1], msgspec.structs.replace(journal()[-1], stream="x")]}, "another stream"),
    ("same_words", {"audio": ["a hole"]}, "a hole"),
    ("same_words", {"appends": []}, "in other appends"),
    ("subscribers", {"hashes": {"feed": "a", "late joiner": "b"}}, "differ"),
    ("subscribers", {"delivered": [1, 2]}, "was handed 2 events"),
    ("never_over", {"most_bytes": 101 * MIB}, "101 MiB"),
    ("never_over", {"too_much": ["pid 7 holds 5 MiB"]}, "pid 7"),
    ("no_double_grant", _decided(roster(5, 4, row(8, "granted", 3, 90), row(9, "granted", 4, 20))), "granted 110 MiB"),
    ("no_double_grant", _decided(roster(5, 2)), "decision 2 after 3"),
    ("no_double_grant", _decided(roster(5, 3, row(9, "granted", 3, 90))), "epoch 3 was"),
    ("no_double_grant", _decided(roster(5, 3, row(7, "granted", 2, 60))), "epoch 2 was"),
    (
        "no_double_grant",
        _decided(Decision(event="lease", at_s=5, arbiter=1, pid=8, epoch=4, on_disk=False)),
        "did not say so",
    ),
    ("no_double_grant", _decided(Decision(event="kill", at_s=5, arbiter=1, pid=8)), "pid 8 was killed"),
    (
        "no_double_grant",
        _decided(roster(5, 4, row(8, "revoked", 4, 9)), Decision(event="kill", at_s=6, arbiter=1, pid=8)),
        "it had 2.00 s",
    ),
    ("nothing_left", {"left_processes": {12: "python -m workers.feed"}}, "pid 12 is left"),
    ("nothing_left", {"left_bytes": MIB}, "1 MiB"),
    ("nothing_left", {"stop_status": 1}, "status 1"),
    ("recovered", {"unrecovered": ["feed after fault 3 (kill)"]}, "fault 3"),
    ("no_crash", {"tracebacks": ["feed.log: ValueError"]}, "ValueError"),
]


@pytest.mark.pure
@pytest.mark.parametrize(("check", "change", "says"), BODIES, ids=[f"{c}: {s}" for c, _, s in BODIES])
def test_what_is_wrong_with_a_journal_is_found(check: str, change: Callable[[list[m.Body]], Any], says: str) -> None:
    found = getattr(checker, check)(evidence(journal(change)))
    assert any(says in one for one in found), found


@pytest.mark.pure
@pytest.mark.parametrize(("check", "change", "says"), OTHERS, ids=[f"{c}: {s}" for c, _, s in OTHERS])
def test_what_else_is_wrong_is_found(check: str, change: dict[str, Any], says: str) -> None:
    found = violations(evidence(**change))
    assert any(one.startswith(check) and says in one for one in found), found


@pytest.mark.pure
def test_every_check_can_fail() -> None:
    assert {c.__name__ for c in CHECKS} == {c for c, *_ in BODIES} | {c for c, *_ in OTHERS}


@pytest.mark.pure
def test_what_is_wrong_with_the_backlog_is_found(folder: Path) -> None:
    audio = bytes(range(200)) * 2
    writer = backlog.Writer(folder / "s", file_samples=50)
    writer.append(0, audio)
    writer.close()
    files = [path for _, path in backlog.audio_files(folder / "s")]
    assert checker.backlog_differs(folder / "s", audio, []) == []
    assert "ends at 200, the source at 201" in checker.backlog_differs(folder / "s", audio + b"xx", [])[0]
    data = files[2].read_bytes()
    files[2].write_bytes(data[:-1] + b"?")
    assert "other samples" in checker.backlog_differs(folder / "s", audio, [])[0]
    files[2].write_bytes(data)
    files[0].unlink()
    assert checker.backlog_differs(folder / "s", audio, []), "nobody has said that it went"
    assert checker.backlog_differs(folder / "s", audio, [{"disk_full": True}]) == []
    assert "without need" in checker.backlog_differs(folder / "s", audio, [{"disk_full": False}])[0]
    files[2].unlink()
    assert checker.backlog_differs(folder / "s", audio, [{"disk_full": True}]), "not the oldest"
    (folder / "s" / "gaps.jsonl").write_text('{"start": 1, "end": 2, "reason": "x"}\n')
    assert any("a hole" in x for x in checker.backlog_differs(folder / "s", audio, []))


@pytest.mark.pure
def test_a_traceback_in_a_log_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text('{"event": "x", "traceback": "Traceback\\n  File\\nValueError: 1"}\n')
    (tmp_path / "b.log").write_text("Traceback (most recent call last):\n  File x\n    y\nKeyError: 2\n{}\n")
    (tmp_path / "c.log").write_text('{"event": "died"}\nswapscribe: no\n')
    assert tracebacks(tmp_path) == ["a.log: ValueError: 1", "b.log: KeyError: 2"]


WRITES = """
import sys, threading
def write():
    with open(sys.argv[1], "ab", buffering=0) as file:
        while True:
            file.write(b"ab")
for _ in range(4):
    threading.Thread(target=write).start()
"""


@pytest.mark.processes
def test_a_torn_file_ends_with_its_tail_and_its_writer_is_dead(processes: Processes, folder: Path) -> None:
    path, system = folder / "file", FaultSystem.__new__(FaultSystem)
    writer = processes.spawn([sys.executable, "-c", WRITES, str(path)], "writer")
    wait_for(lambda: path.exists() and path.stat().st_size, what="the writer")
    injector = Injector(system, folder, 0.0)
    injector._pid = lambda target: writer.pid  # type: ignore[method-assign]
    fault = Fault(number=1, at_s=0.0, kind="torn audio", target="capture", for_s=0.0, share=0.0)
    assert injector._torn(fault, lambda: path, b"\x01") == (f"pid {writer.pid}, file", True)
    injector.finish()
    assert writer.wait() == -signal.SIGKILL
    assert set(path.read_bytes()[:-1]) == set(b"ab") and path.read_bytes()[-1:] == b"\x01"


@pytest.mark.pure
def test_the_page_counts_what_happened() -> None:
    faults = [
        Done(number=1, kind="kill", target="feed", began_s=1.0, for_s=0.0, recovered_s=2.0),
        Done(number=2, kind="kill", target="arbiter", began_s=2.0, for_s=0.0, recovered_s=1.0),
        Done(number=3, kind="hang", target="transcriber", began_s=3.0, for_s=9.0, met=False, recovered_s=0.5),
    ]
    result = page.Result(
        seed=7,
        faults=faults,
        violations=["one_class: samples"],
        minutes=3.0,
        audio_s=120.0,
        captions=20,
        summaries=4,
        grants=30,
        looks=900,
        strict_looks=890,
        most_mib=600,
        card_mib=624,
        machine="2 x this",
        commit="abc",
        date="today",
    )
    (row,) = [x for x in page.runs([result]) if x.startswith("| 7 ")]
    assert "| 7 | 3 | 2 | 2 | 1 | 2.0 min | 3.0 min | 20 | 4 | 30 | 600 of 624 MiB |" in row
    rows = page.kinds([result])
    assert "| 2 | 2 | 1.5 s, 2.0 s |" in rows[2] and "transcriber 1 | 1 | 0 |" in rows[3]
    counts = [x.rsplit("|", 2)[1].strip() for x in page.checks([result], CHECKS)[2:]]
    assert counts == ["1"] + ["0"] * (len(CHECKS) - 1)
    text = page.PAGE.read_text()
    assert page.BEGIN in text and page.END in text and page.PAGE == ROOT / "docs" / "faults.md"
