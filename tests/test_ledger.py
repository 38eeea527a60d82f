"""The ledger keeps I1-I8 whatever gets lost, late, doubled, killed or hung; and the checker that says so is not blind.

`python -m tests.test_ledger --histories 100000` plays as many seeded histories, `--seed N` one of them, aloud; a run of
the tests plays an eighth of those 100,000, drawn or chosen by TEST_SEED. TEST_HISTORIES=100000, as in CI: all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from arbiter import effects as e
from arbiter.ledger import Ledger
from common.messages import Incarnation, Lease, Status, Want
from tests.ledger_bugs import BUGS
from tests.ledger_checker import LIMITS, MARGIN, TOTAL, Violation
from tests.ledger_world import ACTIONS, World
from workers.lease import Holder

NAMES, WEIGHTS = list(ACTIONS), list(ACTIONS.values())
STEPS = 200
HISTORIES = int(os.environ.get("TEST_HISTORIES") or 12_500)


def play(seed: int, world_class: type[World] = World, aloud: bool = False) -> World:
    """One history: `STEPS` actions drawn from `seed`, after each one the checker, at times a happy end."""
    rng = random.Random(seed)
    world = world_class(figures=seed % 16 != 0)
    for name in rng.choices(NAMES, WEIGHTS, k=STEPS):
        n = rng.randrange(1 << 16)
        if aloud:
            print(name, n, world.now)
        getattr(world, f"do_{name}")(n)
        world.check_bytes()
    if seed % 4 == 0:
        world.finish()
    return world


@pytest.mark.joined
@pytest.mark.timeout(3600)
def test_histories_keep_the_invariants() -> None:
    """Of the bugs planted below, the one that hides best is seen in the 350th."""
    part = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6)) % max(1, 100_000 // HISTORIES)
    print(f"the same: python -m tests.test_ledger --first {part * HISTORIES} --histories {HISTORIES}")
    for seed in range(part * HISTORIES, (part + 1) * HISTORIES):
        try:
            play(seed)
        except Violation as e:
            pytest.fail(f"seed {seed}: {e}")


@pytest.mark.joined
@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.__name__)
def test_a_planted_bug_is_caught(bug: type[World]) -> None:
    for seed in range(3000):
        try:
            play(seed, bug)
        except Violation as caught:
            assert str(caught).startswith(bug.breaks), f"seed {seed}: it is caught for another reason"
            return
    pytest.fail(f"3000 histories with {bug.__name__} and the checker saw nothing")


class Machine(RuleBasedStateMachine):
    """The same world, led by hypothesis, which shrinks what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(name=st.sampled_from([n for n, times in ACTIONS.items() for _ in range(times)]), n=st.integers(0, 1023))
    def act(self, name: str, n: int) -> None:
        getattr(self.world, f"do_{name}")(n)

    @invariant()
    def bytes_are_counted(self) -> None:
        self.world.check_bytes()


@pytest.mark.joined
def test_hypothesis_finds_no_history_that_breaks_the_invariants() -> None:
    class Led(Machine):
        pass

    Led.TestCase.settings = settings(
        max_examples=2000 if HISTORIES >= 100_000 else 600,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Led.TestCase("runTest").runTest()


# What the rules mean, one by one

W = Incarnation(worker="transcriber", pid=7, started_ticks=70, nonce="7" * 16)
V = Incarnation(worker="summarizer", pid=8, started_ticks=80, nonce="8" * 16)


def status(who: Incarnation = W, acted: int = 0, residency: str = "offloaded", held: int = 0, **more: object) -> Status:
    fields = {"pending": acted, "lease_bytes": held, "wants": Want(bytes=60), "step_p99_s": 1.0} | more
    return Status(incarnation=who, acted=acted, residency=residency, held_bytes=held, **fields)  # type: ignore[arg-type]


def measured(number: int, used: int = 0, **by_pid: int) -> e.Measured:
    figures = {int(k[1:]): v for k, v in by_pid.items()}
    return e.Measured(number=number, total_bytes=TOTAL, used_bytes=used, by_pid=figures)


def ledger(roster: e.Roster | None = None) -> Ledger:
    """At time 0, the device measured and empty; both workers known unless a roster is given."""
    made = Ledger(LIMITS, roster or e.Roster())
    made.start(0.0)
    made.measured(measured(made.asked))
    if roster is None:
        made.heard(status(W), 0.0)
        made.heard(status(V), 0.0)
    return made


def leases(effects: list[e.Effect]) -> list[Lease]:
    return [x.lease for x in effects if isinstance(x, e.Send)]


@pytest.mark.pure
def test_a_grant_is_on_disk_before_it_is_sent() -> None:
    effects = ledger().grant(W, 60, 1.0)
    kinds = [type(x) for x in effects]
    assert kinds.index(e.SaveRoster) < kinds.index(e.Send)
    assert leases(effects)[0].epoch == 1 and leases(effects)[0].granted


@pytest.mark.pure
def test_the_next_is_granted_only_after_proof_of_the_revocation() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    assert not leases(x.grant(V, 60, 1.0)) and "do not fit" in x.why_not(V, 60)
    x.revoke(W, 2.0, "a burst")
    x.heard(status(W, acted=1), 2.1)  # offloaded under the grant's epoch: it may be about to load
    assert x.why_not(V, 60)
    x.heard(status(W, acted=2, residency="resident", held=60), 2.2)
    assert x.why_not(V, 60)
    x.heard(status(W, acted=2), 2.3)
    assert leases(x.grant(V, 60, 2.3))[0].epoch == 3


@pytest.mark.pure
def test_who_does_not_offload_in_time_is_killed_and_counts_until_the_device_shows_it() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    x.revoke(W, 2.0, "a burst")
    assert x.rows[W].until == 5.0  # three steps of 1 s
    assert e.Kill(W) not in x.tick(4.9) and e.Kill(W) in x.tick(5.0)
    asked_before = x.asked
    x.died(W, 5.1)
    x.measured(measured(asked_before))  # as it was before the death
    assert x.rows[W].state is e.RECLAIMING and x.why_not(V, 60)
    x.measured(measured(x.asked, used=60, p7=60))
    assert x.why_not(V, 60)
    x.tick(6.2)
    x.measured(measured(x.asked))
    assert W not in x.rows and not x.why_not(V, 60)


@pytest.mark.pure
def test_bytes_that_are_never_reclaimed_become_foreign_and_are_measured_again() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    x.died(W, 2.0)
    x.tick(2.0 + LIMITS.reclaim_within_s)
    assert W not in x.rows and x.foreign_bytes == 60 and x.cap() == TOTAL - MARGIN - 60
    x.tick(20.0)
    x.measured(measured(x.asked, used=25))
    assert x.foreign_bytes == 25


@pytest.mark.pure
def test_who_survives_sigkill_is_lost_and_still_counted() -> None:
    x = ledger()
    x.grant(W, 60, 1.0)
    x.revoke(W, 2.0, "a burst")
    x.tick(5.0)
    x.tick(5.0 + LIMITS.die_within_s)
    assert x.rows[W].state is e.LOST and x.counted() == 60 and not x.why_not(V, 30)


@pytest.mark.pure
def test_a_hang_is_lack_of_progress_while_input_waits() -> None:
    x = ledger()
    x.grant(W, 60, 0.0)
    for now in (10.0, 20.0, 29.0):
        x.heard(status(W, acted=1, residency="resident", held=60, stepped_at_s=10.0, waiting=True), now)
    assert x.wake_at() <= 40.0
    assert not [r for r in leases(x.tick(39.9)) if not r.granted]
    assert [r for r in leases(x.tick(40.0)) if not r.granted]
    x = ledger()
    x.grant(W, 60, 0.0)
    x.heard(status(W, acted=1, residency="resident", held=60), 1.0)
    assert not [r for r in leases(x.tick(1000.0)) if not r.granted], "nothing waits: silence is no hang"


@pytest.mark.pure
def test_a_restart_grants_nothing_before_every_row_is_heard_or_dead() -> None:
    old = ledger()
    old.grant(W, 30, 1.0)
    old.grant(V, 30, 1.0)
    x = ledger(old.roster())
    assert x.n == 2 and x.counted() == 60
    third = Incarnation(worker="translator", pid=9, started_ticks=90, nonce="9" * 16)
    x.heard(status(third), 0.1)
    x.heard(status(W, acted=1, residency="resident", held=30), 0.2)
    assert "not been heard" in x.why_not(third, 20)
    x.died(V, 0.3)
    assert not x.why_not(third, 20) and x.why_not(third, 60)
    y = ledger(old.roster())
    sent = leases(y.tick(LIMITS.hello_timeout_s))
    assert {(r.incarnation, r.granted, r.epoch) for r in sent if r.epoch > 2} == {(W, False, 3), (V, False, 4)}


@pytest.mark.pure
def test_a_resident_worker_that_no_roster_knows_is_adopted_with_all_that_its_lease_allows() -> None:
    x = ledger(e.Roster())
    effects = x.heard(status(W, acted=17, residency="resident", held=40, lease_bytes=60), 1.0)
    assert x.rows[W].state is e.GRANTED and x.counted() == 60 and x.n == 17
    assert not leases(effects) and e.Watch(W) in effects
    x.heard(status(V, acted=3, pending=19, residency="offloaded", lease_bytes=50), 1.0)  # about to load
    assert x.rows[V].state is e.REVOKED and x.rows[V].epoch == 20 and x.counted() == 110


def lease(epoch: int, granted: bool = True, who: Incarnation = W, hold: float = 0.0) -> Lease:
    return Lease(incarnation=who, epoch=epoch, granted=granted, bytes=60, offload_within_s=2.0, max_hold_s=hold)


@pytest.mark.pure
def test_a_worker_takes_only_its_own_and_newer_leases() -> None:
    x = Holder(W)
    assert not x.accept(lease(5, who=V)) and x.accept(lease(5)) and not x.accept(lease(5)) and not x.accept(lease(4))
    first = x.due()
    assert first and x.status(0.0).acted == 0 and x.status(0.0).pending == 5 and x.status(0.0).lease_bytes == 60
    x.loading(first, 30)
    assert x.status(0.0).acted == 0 and x.status(0.0).residency == "loading"
    x.loaded(first, 45, 0.0)
    assert x.status(0.0).acted == 5 and x.due() is None
    assert x.accept(lease(6, granted=False)) and x.status(0.0).residency == "resident"
    second = x.due()
    assert second
    x.offloaded(second)
    assert (x.status(0.0).acted, x.status(0.0).residency, x.status(0.0).lease_bytes) == (6, "offloaded", 0)


@pytest.mark.pure
def test_out_of_memory_gives_back_then_wants_more_and_complains_from_the_third() -> None:
    x, now, epoch = Holder(W, want=Want(bytes=60)), 0.0, 0
    for pause in (1, 2, 4):
        epoch += 1
        grant = lease(epoch)
        x.accept(grant)
        x.loading(grant, 30)
        x.out_of_memory(80, now)
        said = x.status(now + 100)
        assert (said.acted, said.residency, said.wants.bytes) == (epoch, "offloaded", 0), "until it is revoked"
        epoch += 1
        x.offloaded(lease(epoch, granted=False))
        assert x.wants(now + pause - 0.1).bytes == 0 and x.wants(now + pause).bytes == 100
        assert x.complains == (pause == 4)
        now += pause
    x.stepped()
    assert not x.complains
    x.ooms = 5000
    x.out_of_memory(80, 0.0)
    assert x.wants(60.0).bytes, "however often: a minute at most"


@pytest.mark.pure
def test_a_burst_ends_itself_without_an_arbiter() -> None:
    x = Holder(W, want=Want(bytes=60, lane="burst"))
    grant = lease(1, hold=60.0)
    x.accept(grant)
    x.loading(grant, 30)
    assert not x.held_long_enough(1e9), "its time is for work"
    x.loaded(grant, 60, 100.0)
    assert not x.held_long_enough(159.9) and x.held_long_enough(160.0)
    x.gave_up()
    assert not x.held_long_enough(1e9)
    assert x.status(160.0).residency == "offloaded" and x.status(160.0).wants.bytes == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--seed", type=int, help="play this one, aloud")
    args = parser.parse_args()
    if args.seed is not None:
        play(args.seed, aloud=True)
        return 0
    began = time.monotonic()
    for seed in range(args.first, args.first + args.histories):
        try:
            play(seed)
        except Violation as e:
            print(f"seed {seed}: {e}")
            return 1
    print(f"{args.histories} histories of {STEPS} actions hold I1-I8 · {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
