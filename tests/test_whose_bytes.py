"""Whose the used bytes are where the driver does not say it: nobody's grant rests on a guess, nobody leaves for one."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from arbiter import effects as e
from arbiter.__main__ import Arbiter
from arbiter.ledger import Ledger
from arbiter.measure import Answer
from arbiter.show import Notes
from common.messages import Incarnation
from tests.ledger_checker import LIMITS, MARGIN, TOTAL, Violation
from tests.ledger_world import World
from tests.test_ledger import NAMES, STEPS, WEIGHTS, V, W, ledger, measured, status


@pytest.mark.pure
def test_without_figures_of_processes_only_settled_leases_explain_what_is_used() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    x.tick(2.0)
    total = e.Measured(number=x.asked, total_bytes=TOTAL, used_bytes=50, by_pid=None)
    x.measured(total)
    assert (x.foreign_bytes, x.doubt_bytes) == (0, 50), "it has not said that it loaded: who knows"
    assert x.why_not(V, 30) and x.cap() == TOTAL - MARGIN, "nobody gets them, nobody loses his for them"
    asked = x.asked
    x.heard(status(W, acted=1, residency="resident", held=45), 2.5)
    assert x.asked == asked + 1, "the device can tell now"
    x.measured(total)
    assert (x.foreign_bytes, x.doubt_bytes) == (0, 50), "it said so later than the device was asked"
    x.measured(msgspec.structs.replace(total, number=x.asked))
    assert (x.foreign_bytes, x.doubt_bytes) == (0, 5), "what it has taken since, perhaps"
    x.tick(3.5)
    x.measured(msgspec.structs.replace(total, number=x.asked))
    assert (x.foreign_bytes, x.doubt_bytes) == (5, 0) and not x.why_not(V, 30)


@pytest.mark.pure
def test_a_worker_whose_pid_is_not_among_the_figures_is_in_doubt_while_it_loads_and_leaves() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    x.tick(2.0)
    x.measured(measured(x.asked, used=50))
    assert (x.foreign_bytes, x.doubt_bytes) == (0, 50)
    x.measured(measured(x.asked, used=50, p7=40))
    assert (x.foreign_bytes, x.doubt_bytes) == (10, 0), "it is, and has 40"
    x.heard(status(W, acted=1, residency="resident", held=50), 2.5)
    x.revoke(W, 3.0, "a burst")
    x.tick(3.1)
    x.measured(measured(x.asked, used=60))
    assert (x.foreign_bytes, x.doubt_bytes) == (10, 50)
    asked = x.asked
    x.heard(status(W, acted=2), 3.2)
    assert x.asked == asked + 1 and x.why_not(V, 60)
    x.measured(measured(x.asked, used=10))
    assert not x.why_not(V, 60)


@pytest.mark.pure
def test_one_that_never_gets_there_is_no_reason_to_doubt_what_is_foreign_for_ever() -> None:
    """Else the policy would make room again and again, and the ledger grant nothing there."""
    x = ledger()
    x.grant(W, 60, 1.0)
    for second in range(40):
        x.tick(2.0 + second)
        x.measured(e.Measured(number=x.asked, total_bytes=TOTAL, used_bytes=30, by_pid=None))
        if second in (25, 39):
            assert x.foreign_bytes == (30 if second > LIMITS.stuck_after_s else 0)


@pytest.mark.pure
def test_a_list_that_lacked_one_who_holds_memory_names_nobody_until_it_names_them_all() -> None:
    x, notes = ledger(), Notes()
    arbiter: Any = SimpleNamespace(ledger=x, notes=notes)

    def named(**by_pid: int) -> bool:
        x.tick(x.asked + 1.0)
        figures = {int(k[1:]): v for k, v in by_pid.items()}
        answer = Answer(number=x.asked, total_bytes=TOTAL, used_bytes=60, by_pid=figures)
        return Arbiter._named(arbiter, answer) is not None

    assert named(), "nobody holds anything"
    x.grant(W, 60, 1.0)
    x.heard(status(W, acted=1, residency="resident", held=60), 1.5)
    assert not named(p4711=60), "its pid is another one over there"
    x.heard(status(W, acted=1), 2.0)
    assert not named(), "nobody holds anything: that proves nothing"
    x.heard(status(W, acted=1, residency="resident", held=60), 2.5)
    assert named(p7=60)


QUIET = {"spawn": 6, "want": 6, "work": 24, "status": 8, "deliver_status": 10, "deliver_lease": 20, "policy": 24}


@pytest.mark.joined
def test_without_figures_nobody_who_loads_works_or_leaves_becomes_foreign() -> None:
    """Nothing is foreign here, nobody dies, and what each one says it holds is heard before the device is asked."""
    doubts = 0
    for seed in range(200):
        rng, world = random.Random(seed), World(figures=False)
        assert world.ledger
        world.ledger.limits = msgspec.structs.replace(LIMITS, offload_at_least_s=1e6, stuck_after_s=1e6)
        for name in rng.choices([*QUIET, "measure"], [*QUIET.values(), 16], k=STEPS):
            if name != "measure":
                getattr(world, f"do_{name}")(rng.randrange(1 << 16))
                continue
            for i in range(len(world.processes)):
                world.do_status(i)
            while world.up:
                world.do_deliver_status(64)
            world.do_tick(2)
            while world.questions or world.answers:
                world.do_look(0)
                world.do_answer(0)
            assert world.ledger.foreign_bytes == 0, f"seed {seed}"
            doubts += world.ledger.doubt_bytes > 0
    assert doubts > 200, "nobody was ever in between"


class Strict(World):
    """I1 to the byte, though words of workers may be old: in few histories only that breaks it."""

    def check_grant(self, who: Incarnation, epoch: int, size: int) -> None:
        self.figures = True
        try:
            super().check_grant(who, epoch, size)
        finally:
            self.figures = False


class Hopeful(Strict):
    """What is in doubt will turn out to be the worker's own."""

    class ledger_class(Ledger):
        def why_not(self, who: Incarnation, size: int) -> str:
            doubt, self.doubt_bytes = self.doubt_bytes, 0
            why = super().why_not(who, size)
            self.doubt_bytes = doubt
            return why


def over_the_cap(world_class: type[World]) -> str:
    for seed in range(600):
        rng, world = random.Random(seed), world_class(figures=False)
        try:
            for name in rng.choices(NAMES, WEIGHTS, k=STEPS):
                getattr(world, f"do_{name}")(rng.randrange(1 << 16))
        except Violation as caught:
            return str(caught)
    return ""


@pytest.mark.joined
def test_no_grant_rests_on_what_is_in_doubt() -> None:
    assert over_the_cap(Strict) == ""
    assert over_the_cap(Hopeful).startswith("I1")
