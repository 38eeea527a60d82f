"""The arbiter's books as people see them: the cap as a sum, when captions resume, and what is no Status at all."""

from __future__ import annotations

import os
from math import inf

import msgspec
import pytest

from arbiter import show
from arbiter.effects import FREE, GRANTED, Roster
from arbiter.inbox import nonsense
from arbiter.ledger import Ledger, Limits
from arbiter.view import Burst, Memory, View, Worker
from common import messages as m
from common.settings import GpuSettings

pytestmark = pytest.mark.pure
GIB = 2**30
NOW = 1000.0
SET = GpuSettings()


def who(name: str) -> m.Incarnation:
    return m.Incarnation(worker=name, pid=os.getpid(), started_ticks=1, nonce="0" * 16)


WAITS = Worker(who=who("transcriber"), state=FREE, want_bytes=6 * GIB, reload_s=1.5)
HAS = Worker(who=who("summarizer"), state=GRANTED, want_bytes=14 * GIB, bytes=14 * GIB, ready=True, offload_s=0.5)
BURST = Burst(who=HAS.who, began_s=NOW - 4.0, held_s=NOW - 3.0, ready_s=NOW - 2.0, cost_s=4.0)


def resume(*workers: Worker, memory: Memory | None = None) -> float:
    return show.resume_in_s(View(workers=workers, cap_bytes=16 * GIB, memory=memory or Memory(burst=BURST)), SET, NOW)


def test_captions_resume_after_the_rest_of_the_burst_its_offload_and_the_reload() -> None:
    assert resume(WAITS, HAS) == 58.0 + 0.5 + 1.5, "its longest hold, if nothing better is known"
    lasted = Memory(burst=BURST, lasted_s={"summarizer": 8.0})
    assert resume(WAITS, HAS, memory=lasted) == 5.0 + 0.5 + 1.5
    longer = Memory(burst=BURST, lasted_s={"summarizer": 2.0})
    assert resume(WAITS, HAS, memory=longer) == 58.0 + 0.5 + 1.5, "it takes longer than the last one did"
    loads = msgspec.structs.replace(HAS, ready=False, reload_s=2.0)
    comes = Memory(burst=msgspec.structs.replace(BURST, ready_s=inf))
    assert resume(WAITS, loads, memory=comes) == 59.0 + 0.5 + 1.5, "its hold begins when it is there"


def test_captions_resume_when_the_load_under_way_is_done() -> None:
    loads = msgspec.structs.replace(WAITS, state=GRANTED, granted_at_s=NOW - 1.0)
    assert resume(loads, memory=Memory()) == 0.5
    guess = msgspec.structs.replace(WAITS, reload_s=0.0)
    assert resume(guess, memory=Memory()) == pytest.approx(6 * GIB / 4e9)


def test_captions_that_do_not_wait_resume_never() -> None:
    assert resume(msgspec.structs.replace(WAITS, state=GRANTED, ready=True), HAS) == -1
    assert resume(msgspec.structs.replace(WAITS, want_bytes=0), HAS) == -1
    assert resume(HAS) == -1


def test_the_cap_is_a_sum_and_has_a_limit_of_its_own() -> None:
    ledger = Ledger(Limits(margin_bytes=GIB // 4), Roster())
    ledger.total_bytes, ledger.foreign_bytes = 16 * GIB, 5 * GIB // 2
    assert show.cap(ledger, SET) == 16 * GIB - GIB // 4 - 5 * GIB // 2
    assert show.cap_sum(ledger, SET) == " (16.0 GiB total - 0.2 GiB margin - 2.5 GiB foreign)"
    small = GpuSettings(cap_mib=8192)
    assert show.cap(ledger, small) == 8 * GIB
    assert show.cap_sum(ledger, small).endswith(", at most 8.0 GiB by gpu.cap_mib)")


def status(**more: object) -> m.Status:
    plain = {"incarnation": who("transcriber"), "acted": 1, "pending": 1, "residency": "offloaded", "held_bytes": 0}
    return m.Status(**(plain | {"lease_bytes": 0, "wants": m.Want(bytes=1)} | more))  # type: ignore[arg-type]


def test_people_and_the_policy_hear_how_far_waiting_work_is() -> None:
    ledger, notes = Ledger(Limits(), Roster()), show.Notes()
    said = "minutes put off at 32 tokens; resumes"
    ledger.heard(status(burst_min_s=7.5, note=said), NOW)
    seen = show.view(ledger, notes, Memory(), SET)
    assert seen.workers[0].burst_min_s == 7.5
    (shown,) = show.state(ledger, notes, seen, None, SET, NOW).workers
    assert shown.reason == said


def test_a_status_that_cannot_be_is_told_from_one_that_can() -> None:
    assert nonsense(status()) == ""
    for bad in (
        {"held_bytes": -1},
        {"acted": 2**60},
        {"lag_s": float("inf")},
        {"residency": "gone"},
        {"burst_min_s": float("inf")},
        {"wants": m.Want(bytes=-5)},
        {"wants": m.Want(bytes=1, since_s=float("nan"))},
        {"incarnation": who("../x")},
        {"incarnation": m.Incarnation(worker="x", pid=0, started_ticks=1, nonce="")},
    ):
        assert nonsense(status(**bad)), bad
