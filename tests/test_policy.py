"""Every rule of the policy (docs/swap.md "Who gets the GPU"), each with a test that fails without it."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest

from arbiter.effects import FREE, GRANTED, LOST, RECLAIMING, REVOKED, Roster
from arbiter.ledger import Ledger, Limits
from arbiter.policy import decide
from arbiter.show import Notes, view
from arbiter.view import Burst, Memory, Plan, View, Worker
from common.messages import Incarnation, Status, Want
from common.settings import GpuSettings

pytestmark = pytest.mark.pure

SET = GpuSettings()
CAP = 16 * 2**30
G = 2**30
NOW = 1000.0


def who(name: str, pid: int = 1) -> Incarnation:
    return Incarnation(worker=name, pid=pid, started_ticks=1, nonce="0" * 16)


def on(name: str, size: int, **more: Any) -> Worker:
    """Granted and resident for long."""
    plain = {"bytes": size * G, "want_bytes": size * G, "ready": True, "granted_at_s": NOW - 500.0, "reload_s": 1.0}
    return Worker(**({"who": who(name), "state": GRANTED, "since_s": NOW - 500.0} | plain | more))


def off(name: str, size: int, **more: Any) -> Worker:
    """Wants, and has nothing."""
    return Worker(
        **({"who": who(name), "state": FREE, "want_bytes": size * G, "since_s": NOW - 1.0, "reload_s": 1.0} | more)
    )


def plan(*workers: Worker, memory: Memory | None = None, cap: int = CAP, now: float = NOW) -> Plan:
    return decide(View(workers=workers, cap_bytes=cap, sum_text=" (the sum)", memory=memory or Memory()), SET, now)


def leaves(p: Plan) -> set[str]:
    return {w.worker for w, _ in p.revoke}


def granted(p: Plan) -> str:
    return p.grant[0].worker if p.grant else ""


def why(p: Plan, name: str) -> str:
    return next(text for w, text in p.waits.items() if w.worker == name)


def runs(for_s: float, name: str = "summarizer") -> Memory:
    """A burst that was granted, and resident at once, so long ago."""
    since_s = NOW - for_s
    return Memory(burst=Burst(who=who(name), began_s=since_s, held_s=since_s, ready_s=since_s, cost_s=2.0))


STACK = (on("transcriber", 6, silence_s=2.0), on("translator", 5), on("diarizer", 3))
RUNNING = runs(10.0)
EVICTED = (off("transcriber", 6), off("translator", 5), off("diarizer", 3))
SUMMARIZER = on("summarizer", 14, lane="burst", granted_at_s=NOW - 10.0, since_s=NOW - 60.0)


def burst(size: int = 14, **more: Any) -> Worker:
    return off("summarizer", size, **({"lane": "burst"} | more))


# refuse


def test_a_want_over_the_cap_is_refused_and_evicts_nobody() -> None:
    p = plan(*STACK, burst(17))
    assert not p.revoke and not p.grant and p.refused == (who("summarizer"),)
    assert "wants 17.0 GiB" in why(p, "summarizer") and "(the sum): it will never fit" in why(p, "summarizer")


def test_one_that_is_refused_more_keeps_what_it_has() -> None:
    greedy = on("transcriber", 6, want_bytes=17 * G)
    p = plan(greedy, off("translator", 11))
    assert not p.revoke and not p.grant, "its 6 are not anybody's"
    assert granted(plan(greedy, off("translator", 10))) == "translator"
    assert not plan(greedy, on("translator", 8), burst(11)).revoke, "nobody leaves for what cannot come"


def test_who_wants_too_much_after_running_out_of_memory_gets_all_there_is() -> None:
    """Else one transient lack of memory would keep a big model away for good."""
    grown = burst(17, least_bytes=14 * G)
    p = plan(on("transcriber", 6, silence_s=2.0), grown)
    assert leaves(p) == {"transcriber"} and not p.refused
    assert plan(off("transcriber", 6), grown, memory=RUNNING).grant == (who("summarizer"), CAP, SET.max_hold_s)
    has = on("summarizer", 15, want_bytes=17 * G, least_bytes=14 * G, lane="burst")
    assert not plan(has, memory=RUNNING).revoke, "and is not resized for a little more"
    assert plan(burst(17, least_bytes=17 * G)).refused


def test_live_workers_that_have_not_been_measured_share_where_their_guesses_do_not_fit() -> None:
    """Else the guesses of three that fit together would throw each other out until each has been measured."""
    guess = [off(n, 9, least_bytes=k * G) for n, k in (("transcriber", 6), ("translator", 5), ("diarizer", 3))]
    p = plan(*guess)
    assert p.grant and p.grant[:2] == (who("transcriber"), 6 * G)
    p = plan(on("transcriber", 6, want_bytes=9 * G, least_bytes=6 * G), *guess[1:])
    assert p.grant and p.grant[:2] == (who("translator"), 5 * G) and not p.revoke
    assert plan(guess[0]).grant == (who("transcriber"), 9 * G, 0.0), "alone it gets what it wants"


def test_one_that_the_least_does_not_suffice_gets_what_it_wants_though_they_crowd() -> None:
    workers = [off(name, 9, least_bytes=5 * G) for name in ("transcriber", "translator")]
    assert plan(*workers).grant == (who("transcriber"), 5 * G, 0.0)
    cramped = off("transcriber", 9, least_bytes=5 * G, cramped=True)
    assert plan(cramped, workers[1]).grant == (who("transcriber"), 9 * G, 0.0)


def test_one_that_has_measured_itself_gets_what_there_is_as_one_that_has_not() -> None:
    """The same worker on the same card: that it has been there before is no reason to refuse it."""
    for measured in (False, True):
        lone = off("transcriber", 17, least_bytes=10 * G, measured=measured)
        assert plan(lone).grant == (who("transcriber"), CAP, 0.0)
        p = plan(lone, off("translator", 5))
        assert p.grant == (who("transcriber"), 10 * G, 0.0) and not p.refused, "and leaves room, where others want some"
    assert plan(off("transcriber", 17, least_bytes=17 * G, measured=True)).refused


def test_one_that_has_measured_itself_makes_no_room_for_guesses() -> None:
    measured = off("transcriber", 6, least_bytes=3 * G, measured=True)
    assert plan(measured, off("translator", 15, least_bytes=5 * G)).grant == (who("transcriber"), 6 * G, 0.0)


# free ride


def test_what_fits_beside_everything_live_just_comes() -> None:
    late = on("transcriber", 6, lag_s=100.0, silence_s=0.0)
    p = plan(late, burst(10))
    assert granted(p) == "summarizer" and not p.revoke and p.phase == "free ride"
    assert p.grant and p.grant[2] == 0.0, "nobody waits for it: no longest hold"
    assert p.memory.swaps == 0


def test_a_free_rider_is_neither_cut_nor_over() -> None:
    ride = on("summarizer", 10, lane="burst", granted_at_s=NOW - 900.0)
    began = Memory(burst=Burst(who=ride.who, began_s=NOW - 900.0, held_s=NOW - 900.0))
    assert not plan(on("transcriber", 6, lag_s=100.0), ride, memory=began).revoke


# calm, silence, patience, overdue, rest


def test_a_calm_moment_begins_a_burst_and_everybody_in_its_way_leaves() -> None:
    p = plan(*STACK, burst())
    assert leaves(p) == {"transcriber", "translator", "diarizer"} and not p.grant
    assert p.phase == "making room" and p.memory.swaps == 1
    assert p.memory.burst and p.memory.burst.cost_s == 4.0


def test_captions_that_are_late_put_it_off() -> None:
    late = on("transcriber", 6, lag_s=4.1, silence_s=2.0)
    p = plan(late, burst(since_s=NOW - 79.0))
    assert not p.revoke and why(p, "summarizer") == "captions are 4.1 s late; overdue in 41 s"
    assert p.wake_at_s == NOW + 41.0


def test_it_waits_for_a_pause_but_not_for_ever() -> None:
    speech = on("transcriber", 6, silence_s=0.2)
    p = plan(speech, burst(since_s=NOW - 5.0))
    assert not p.revoke and p.wake_at_s == NOW + 40.0
    assert why(p, "summarizer") == "somebody speaks; it waits 40 s more for a pause; overdue in 115 s"
    assert plan(speech, burst(since_s=NOW - 45.0)).revoke


def test_after_its_patience_it_begins_in_mid_speech_but_not_while_a_caption_is_due() -> None:
    """An utterance that is over and not captioned would wait for all of the burst, and has waited already."""
    due = on("transcriber", 6, silence_s=0.0, owes=True)
    p = plan(due, burst(since_s=NOW - 79.0))
    assert not p.revoke and why(p, "summarizer") == "a caption is due first; overdue in 41 s"
    assert p.wake_at_s == NOW + 41.0
    assert plan(msgspec.structs.replace(due, owes=False), burst(since_s=NOW - 79.0)).revoke
    assert plan(due, burst(since_s=NOW - 120.0)).revoke


def test_overdue_wins_over_lag() -> None:
    late = on("transcriber", 6, lag_s=50.0)
    assert not plan(late, burst(since_s=NOW - 119.0)).revoke
    assert plan(late, burst(since_s=NOW - 120.0)).revoke


def test_overdue_wins_once_an_interval() -> None:
    late = on("transcriber", 6, lag_s=50.0)
    served = Memory(served_s={"summarizer": NOW - 10.0})
    p = plan(late, burst(since_s=NOW - 500.0), memory=served)
    assert not p.revoke and "overdue in 110 s" in why(p, "summarizer")


def test_after_a_swap_the_gpu_rests() -> None:
    rests = Memory(rest_until_s=NOW + 18.0)
    p = plan(*STACK, burst(), memory=rests)
    assert not p.revoke and "rests from swapping for 18 s" in why(p, "summarizer") and p.wake_at_s == NOW + 18.0
    assert plan(*STACK, burst(since_s=NOW - 120.0), memory=rests).revoke, "overdue wins over rest too"


def test_switching_takes_a_tenth_of_the_time_at_most() -> None:
    done = msgspec.structs.replace(SUMMARIZER, want_bytes=0)
    p = plan(*EVICTED, done, memory=RUNNING)
    assert p.memory.burst is None and p.memory.rest_until_s == NOW + 9 * 2.0


# piece by piece

DONE_ONE = msgspec.structs.replace(SUMMARIZER, pieces=8, since_s=NOW - 40.0)
SUMMARIZER_HAD = msgspec.structs.replace(RUNNING.burst, pieces=7, seen=7, start="silence")
HAD_SEVEN = msgspec.structs.replace(RUNNING, burst=SUMMARIZER_HAD)
SPEAKS = (off("transcriber", 6, silence_s=0.0), *EVICTED[1:])


def test_after_a_piece_of_its_work_a_burst_goes_on_only_where_it_might_begin() -> None:
    p = plan(*SPEAKS, DONE_ONE, memory=HAD_SEVEN)
    assert leaves(p) == {"summarizer"} and not p.memory.cuts
    assert why(p, "summarizer") == "a piece of its work is done, and captions wait"
    late = (off("transcriber", 6, silence_s=2.0), off("translator", 5, lag_s=4.0))
    assert leaves(plan(*late, DONE_ONE, memory=HAD_SEVEN)) == {"summarizer"}
    silent = (off("transcriber", 6, silence_s=2.0), *EVICTED[1:])
    p = plan(*silent, DONE_ONE, memory=HAD_SEVEN)
    assert not p.revoke and p.memory.burst and p.memory.burst.seen == 8
    assert not plan(*SPEAKS, DONE_ONE, memory=p.memory).revoke, "not in the midst of the next one"


def test_a_burst_that_cannot_keep_up_does_more_pieces_at_once() -> None:
    """One more for each OVERDUE that it has wanted the GPU all along: else its work would pile up."""
    old = msgspec.structs.replace(DONE_ONE, since_s=NOW - 2 * SET.overdue_s)
    for pieces, leaving in ((8, False), (9, False), (10, True)):
        one = msgspec.structs.replace(old, pieces=pieces)
        assert bool(plan(*SPEAKS, one, memory=HAD_SEVEN).revoke) is leaving, pieces


def test_pieces_are_counted_by_the_worker_whatever_its_positions_are() -> None:
    """The minutes' position is a number of the journal: one piece moves it by hundreds."""

    def ends(pieces: int, position: int) -> bool:
        ledger, notes = Ledger(Limits(), Roster()), Notes(moved_s={who("summarizer"): NOW - 10.0})
        burst = Status(
            incarnation=who("summarizer"),
            acted=1,
            pending=1,
            residency="resident",
            held_bytes=14 * G,
            lease_bytes=14 * G,
            wants=Want(bytes=14 * G, lane="burst", since_s=NOW - 2 * SET.overdue_s),
            positions={"s": position},
            pieces=pieces,
        )
        notes.wanted_s[burst.incarnation] = NOW
        ledger.heard(burst, NOW)
        return bool(plan(*SPEAKS, *view(ledger, notes, Memory(), SET).workers, memory=HAD_SEVEN).revoke)

    assert [ends(7 + done, 5000 + 180 * done) for done in (0, 1, 2, 3)] == [False, False, False, True]
    assert ends(10, 0), "nor does a position that stands still hide its pieces"


def test_pieces_are_those_of_bursts_and_bring_nothing_where_nobody_waits() -> None:
    turn = off("translator", 14, state=GRANTED, bytes=14 * G, ready=True, granted_at_s=NOW - 10.0, pieces=8)
    runs = msgspec.structs.replace(HAD_SEVEN, burst=msgspec.structs.replace(HAD_SEVEN.burst, who=who("translator")))
    assert not plan(SPEAKS[0], turn, memory=runs).revoke, "a live worker in its turn"
    rides = msgspec.structs.replace(DONE_ONE, want_bytes=2 * G, bytes=2 * G)
    assert not plan(*SPEAKS, rides, memory=HAD_SEVEN).revoke


# running, cut, over


def test_a_running_burst_goes_on_and_nobody_comes_back_meanwhile() -> None:
    p = plan(*EVICTED, SUMMARIZER, memory=RUNNING)
    assert not p.revoke and not p.grant and p.phase == "burst"
    assert why(p, "transcriber") == "summarizer has the GPU"


def test_a_burst_is_cut_when_captions_are_far_too_late() -> None:
    late = (off("transcriber", 6, lag_s=21.0), *EVICTED[1:])
    p = plan(*late, SUMMARIZER, memory=RUNNING)
    assert leaves(p) == {"summarizer"} and p.memory.cuts == {"summarizer": 1}
    assert "cut short: captions are 21 s late" in why(p, "summarizer")


def test_a_burst_is_not_cut_in_its_first_seconds_nor_too_often() -> None:
    late = (off("transcriber", 6, lag_s=21.0), *EVICTED[1:])
    young = runs(1.0)
    p = plan(*late, SUMMARIZER, memory=young)
    assert not p.revoke and p.wake_at_s == NOW + SET.burst_min_s - 1.0
    assert not plan(*late, SUMMARIZER, memory=msgspec.structs.replace(RUNNING, cuts={"summarizer": 3})).revoke


def test_a_burst_is_not_cut_before_it_has_got_on_by_its_own_measurements() -> None:
    late = (off("transcriber", 6, lag_s=21.0), *EVICTED[1:])
    reads = msgspec.structs.replace(SUMMARIZER, burst_min_s=12.0)
    p = plan(*late, reads, memory=RUNNING)
    assert not p.revoke and p.wake_at_s == NOW + 2.0, "it has run for 10 s"
    assert plan(*late, reads, memory=RUNNING, now=NOW + 2.0).memory.cuts == {"summarizer": 1}
    endless = msgspec.structs.replace(SUMMARIZER, burst_min_s=1e9)
    assert leaves(plan(*late, endless, memory=RUNNING, now=NOW + 50.0)) == {"summarizer"}, "its longest hold wins"


def test_a_burst_that_is_done_forgets_its_cuts() -> None:
    done = msgspec.structs.replace(SUMMARIZER, want_bytes=0)
    assert plan(*EVICTED, done, memory=msgspec.structs.replace(RUNNING, cuts={"summarizer": 2})).memory.cuts == {}


def test_a_burst_is_over_after_its_longest_hold() -> None:
    old = runs(60.0)
    p = plan(*EVICTED, SUMMARIZER, memory=old)
    assert leaves(p) == {"summarizer"} and p.memory.lasted_s == {"summarizer": 60.0}
    assert plan(*EVICTED, SUMMARIZER, memory=RUNNING).wake_at_s == NOW + 50.0


def test_its_time_is_for_work_however_long_it_loads_but_it_does_not_load_for_ever() -> None:
    def over(granted_s: float, ready_s: float | None, now: float = NOW) -> bool:
        one = Burst(who=who("summarizer"), began_s=NOW - granted_s, held_s=NOW - granted_s, cost_s=2.0)
        if ready_s is not None:
            one = msgspec.structs.replace(one, ready_s=NOW - ready_s)
        has = msgspec.structs.replace(SUMMARIZER, granted_at_s=NOW - granted_s, ready=ready_s is not None)
        p = plan(*EVICTED, has, memory=Memory(burst=one), now=now)
        assert p.revoke or p.wake_at_s < inf
        return leaves(p) == {"summarizer"}

    assert not over(69.0, 59.0) and over(70.0, 60.0), "60 s from when it was there"
    assert not over(59.0, None) and over(60.0, None), "it never came"
    assert not over(90.0, 0.0), "it has come just now, and late"
    short = GpuSettings(max_hold_s=1.0)
    for loads_s, leaving in ((2.0, False), (29.0, False), (30.0, True)):
        one = Burst(who=who("summarizer"), began_s=NOW - loads_s, held_s=NOW - loads_s, cost_s=2.0)
        loads = msgspec.structs.replace(SUMMARIZER, ready=False)
        p = decide(View(workers=(*EVICTED, loads), cap_bytes=CAP, memory=Memory(burst=one)), short, NOW)
        assert bool(p.revoke) is leaving, "else it would leave before its first piece each time, for ever"


def test_its_time_does_not_run_while_it_waits_for_room() -> None:
    comes = Memory(burst=Burst(who=who("summarizer"), began_s=NOW - 70.0, cost_s=2.0))
    assert plan(*EVICTED, burst(), memory=comes).grant
    p = plan(*EVICTED, SUMMARIZER, memory=comes)
    assert not p.revoke and p.memory.burst and p.memory.burst.held_s == SUMMARIZER.granted_at_s


def test_the_lease_of_a_burst_names_its_longest_hold() -> None:
    p = plan(*EVICTED, burst(), memory=RUNNING)
    assert p.grant == (who("summarizer"), 14 * G, SET.max_hold_s)


def test_a_dead_burst_is_over() -> None:
    p = plan(*EVICTED, memory=RUNNING)
    assert granted(p) == "transcriber" and p.memory.burst is None and p.phase == "giving back"


def test_a_burst_found_on_the_gpu_by_a_new_arbiter_runs() -> None:
    p = plan(*EVICTED, SUMMARIZER)
    assert not p.revoke and p.memory.burst and p.memory.burst.began_s == NOW - 10.0 and p.phase == "burst"


# target


def test_only_the_cheapest_leave() -> None:
    assert leaves(plan(*STACK, burst(8))) == {"translator", "diarizer"}, "the captions stay"
    assert leaves(plan(*STACK, burst(4))) == {"diarizer"}
    dear = (STACK[0], STACK[1], on("diarizer", 3, reload_s=9.0))
    short = Memory(lasted_s={"summarizer": 5.0})
    assert leaves(plan(*dear, burst(5), memory=short)) == {"translator"}, "what takes long to come back stays"
    assert leaves(plan(*dear, burst(5))) == {"diarizer"}, "but a long burst keeps out who is missed least"


def test_captions_stay_though_they_would_be_back_soonest() -> None:
    """Where not all live ones fit, it is for good: who is missed most stays, whatever a reload takes."""
    quick = on("transcriber", 6, reload_s=0.1)
    assert leaves(plan(quick, on("translator", 5, reload_s=9.0), on("diarizer", 3, reload_s=9.0), cap=12 * G)) == {
        "diarizer"
    }


def test_the_transcriber_comes_first_after_a_burst_one_after_the_other() -> None:
    back = (off("diarizer", 3, since_s=0.0), off("translator", 5), off("transcriber", 6))
    p = plan(*back)
    assert granted(p) == "transcriber" and why(p, "translator") == "transcriber is loading"
    loading = on("transcriber", 6, ready=False, granted_at_s=NOW - 1.0)
    p = plan(back[0], back[1], loading)
    assert not p.grant, "one load on the bus at a time"
    assert granted(plan(back[0], back[1], on("transcriber", 6))) == "translator"


def test_one_that_never_loads_does_not_keep_the_others_waiting() -> None:
    stuck = on("transcriber", 6, ready=False, granted_at_s=NOW - SET.stuck_after_s)
    assert granted(plan(stuck, off("translator", 5))) == "translator"


def test_nothing_is_granted_before_the_room_is_proven_free() -> None:
    leaving = on("transcriber", 6, state=REVOKED)
    p = plan(leaving, burst(), memory=RUNNING)
    assert not p.grant and not p.revoke and why(p, "summarizer") == "transcriber has not given back"


def test_bytes_of_one_that_does_not_die_are_nobodys() -> None:
    undying = on("old", 4, state=LOST, want_bytes=0)
    assert plan(undying, burst(13)).refused
    assert granted(plan(undying, burst(12))) == "summarizer"


def test_live_workers_do_not_push_each_other_out_every_moment() -> None:
    fresh = on("diarizer", 12, granted_at_s=NOW - 5.0, reload_s=1.0)
    p = plan(fresh, off("transcriber", 6))
    assert not p.revoke and p.wake_at_s == NOW + 5.0
    assert leaves(plan(msgspec.structs.replace(fresh, granted_at_s=NOW - 10.0), off("transcriber", 6))) == {"diarizer"}


def test_a_live_worker_that_never_fits_beside_the_better_ones_takes_its_turn() -> None:
    """Also how a summarizer is calibrated on a card that the transcriber fills: its want is live then."""
    p = plan(on("transcriber", 6, silence_s=2.0), off("summarizer", 14))
    assert leaves(p) == {"transcriber"} and p.memory.burst and p.memory.burst.who.worker == "summarizer"
    old = runs(60.0)
    over = plan(off("transcriber", 6), on("summarizer", 14, granted_at_s=NOW - 59.0), memory=old)
    assert leaves(over) == {"summarizer"}


# lanes, resize, pins, orders


def test_batch_comes_last_and_yields() -> None:
    batch = off("quantizer", 14, lane="batch", since_s=NOW - 300.0)
    p = plan(on("transcriber", 6, silence_s=2.0), batch, burst())
    assert p.memory.burst and p.memory.burst.who.worker == "summarizer"
    runs = Memory(burst=Burst(who=who("quantizer"), began_s=NOW - 2.0, held_s=NOW - 2.0, cost_s=1.0))
    p = plan(off("transcriber", 6), on("quantizer", 14, lane="batch"), burst(), memory=runs)
    assert leaves(p) == {"quantizer"}


def test_batch_leaves_at_once_for_anything_live() -> None:
    assert leaves(plan(on("quantizer", 14, lane="batch", granted_at_s=NOW), off("transcriber", 6))) == {"quantizer"}


@pytest.mark.parametrize("size", [5, 7])
def test_another_size_is_revoke_and_grant(size: int) -> None:
    p = plan(on("transcriber", 6, want_bytes=size * G))
    assert leaves(p) == {"transcriber"} and p.revoke[0][1] == f"resize: it wants {size}.0 GiB and has 6.0 GiB"
    assert plan(off("transcriber", size)).grant == (who("transcriber"), size * G, 0.0)


def test_a_burst_that_is_resized_is_still_the_burst() -> None:
    p = plan(*EVICTED, burst(15), memory=RUNNING)
    assert p.grant and p.grant[:2] == (who("summarizer"), 15 * G)


def test_a_burst_that_has_measured_itself_keeps_the_rest_until_it_is_over() -> None:
    assert not plan(*EVICTED, burst(12, state=GRANTED, bytes=14 * G, ready=True), memory=RUNNING).revoke
    assert plan(*EVICTED, burst(15, state=GRANTED, bytes=14 * G, ready=True), memory=RUNNING).revoke


def test_a_pinned_worker_stays_whatever_waits() -> None:
    p = plan(on("transcriber", 6, pinned=True, silence_s=2.0), burst(since_s=NOW - 500.0))
    assert not p.revoke and not p.grant and why(p, "summarizer").startswith("transcriber is pinned")
    pinned = msgspec.structs.replace(SUMMARIZER, pinned=True)
    old = runs(900.0)
    p = plan(off("transcriber", 6, lag_s=99.0), pinned, memory=old)
    assert not p.revoke and p.memory.burst


def test_one_evicted_by_hand_stays_away_for_a_while() -> None:
    p = plan(on("transcriber", 6, off_until_s=NOW + 7.0))
    assert p.revoke == ((who("transcriber"), "evicted by hand"),)
    p = plan(off("transcriber", 6, off_until_s=NOW + 7.0))
    assert not p.grant and p.wake_at_s == NOW + 7.0
    assert granted(plan(off("transcriber", 6, off_until_s=NOW + 7.0), now=NOW + 7.0)) == "transcriber"


def test_a_swap_by_hand_goes_now() -> None:
    late = on("transcriber", 6, lag_s=50.0)
    p = plan(late, burst(), memory=Memory(forced="summarizer", rest_until_s=NOW + 99.0))
    assert leaves(p) == {"transcriber"} and p.memory.forced == ""


def test_the_same_view_gives_the_same_plan() -> None:
    assert plan(*STACK, burst()) == plan(*STACK, burst())


def test_no_burst_begins_before_those_it_would_push_out_are_there() -> None:
    """At the start, say: captions come first."""
    p = plan(off("transcriber", 6), burst())
    assert granted(p) == "transcriber" and why(p, "summarizer").startswith("transcriber comes first; overdue in")
    p = plan(on("transcriber", 6, ready=False), burst())
    assert not p.revoke and why(p, "summarizer").startswith("transcriber comes first")
    assert granted(plan(off("transcriber", 6), burst(9))) == "transcriber", "nor does a free rider load before it"


def test_the_rest_counts_those_who_left_only() -> None:
    p = plan(*STACK, burst(8))
    assert p.memory.burst and p.memory.burst.cost_s == 3.0, "the transcriber stayed"


def test_a_worker_that_cannot_come_back_does_not_make_the_return_last_for_ever() -> None:
    over = Memory(returning=True, served_s={"diarizer": NOW - 1.0})
    p = plan(on("transcriber", 6, silence_s=0.1), off("diarizer", 12), memory=over)
    assert not p.memory.returning and p.phase == "idle"


def test_the_return_is_over_when_the_live_ones_are_back() -> None:
    p = plan(on("transcriber", 6), off("quantizer", 5, lane="batch"), memory=Memory(returning=True))
    assert not p.memory.returning and granted(p) == "quantizer"


def test_a_dead_worker_that_held_nothing_is_no_news() -> None:
    dead = Worker(who=who("translator"), state=RECLAIMING)
    assert plan(on("transcriber", 6), dead).phase == "idle"
    assert plan(on("transcriber", 6), msgspec.structs.replace(dead, bytes=5 * G)).phase == "reclaiming"


def test_a_burst_whose_time_is_over_leaves_even_if_nobody_can_use_its_room() -> None:
    """Else its lease would have no end; it comes again in its turn."""
    old = runs(61.0)
    p = plan(off("transcriber", 6), off("diarizer", 11), on("summarizer", 9, lane="burst"), memory=old)
    assert leaves(p) == {"summarizer"}


def test_batch_does_not_come_while_somebody_live_waits() -> None:
    speech = on("transcriber", 6, silence_s=0.1)
    p = plan(speech, off("diarizer", 11), off("quantizer", 5, lane="batch", since_s=NOW - 900.0))
    assert not p.grant and why(p, "quantizer") == "diarizer is first"


def test_the_phase_says_when_the_stack_is_back() -> None:
    over = plan(*EVICTED, memory=RUNNING).memory
    assert over.returning
    p = plan(*STACK, memory=over)
    assert p.phase == "idle" and not p.memory.returning


# several bursts, riders, what a swap took


def test_who_has_waited_for_longest_since_its_last_turn_is_first() -> None:
    old = off("summarizer", 14, lane="burst", since_s=NOW - 500.0)
    new = off("minutes", 14, lane="burst", since_s=NOW - 60.0)
    p = plan(*STACK, old, new, memory=Memory(served_s={"summarizer": NOW - 10.0}))
    assert p.memory.burst and p.memory.burst.who.worker == "minutes" and why(p, "summarizer") == "minutes is first"


def test_who_left_for_the_last_burst_comes_back_before_an_overdue_one() -> None:
    waits = off("minutes", 14, lane="burst", since_s=NOW - 500.0)
    p = plan(*EVICTED, waits, memory=RUNNING)
    assert granted(p) == "transcriber" and why(p, "minutes").startswith("transcriber comes first; overdue in 0 s")
    for_long = Memory(ended_s=NOW - SET.stuck_after_s)
    assert granted(plan(*EVICTED, waits, memory=for_long)) == "minutes", "one that cannot come back holds nobody up"


def test_a_free_rider_holds_no_other_burst_up() -> None:
    rider = on("minutes", 2, lane="burst", granted_at_s=NOW - 900.0)
    p = plan(*STACK, rider, burst())
    assert p.memory.burst and p.memory.burst.who.worker == "summarizer"
    assert leaves(p) == {"transcriber", "translator", "diarizer"}, "the rider fits beside it, too"
    young = plan(*STACK, msgspec.structs.replace(rider, granted_at_s=NOW - 1.0), burst())
    assert not young.revoke and why(young, "summarizer") == "minutes has just come"


def test_what_a_swap_took_counts_though_one_by_hand_cuts_its_way_back_short() -> None:
    back = Memory(returning=True, ended_s=NOW - 2.0, came_in_s=1.0, forced="summarizer")
    p = plan(on("transcriber", 6, silence_s=2.0), *EVICTED[1:], burst(), memory=back)
    assert p.memory.burst and p.memory.burst.start == "by hand"
    assert p.memory.rest_until_s == NOW + SET.rest_swaps * 3.0


def test_a_swap_by_hand_that_comes_before_all_are_back_adds_its_own_rest() -> None:
    """Whoever is still away comes back after it: that is switching too."""
    back = Memory(returning=True, ended_s=NOW - 0.5, forced="summarizer")
    p = plan(*EVICTED, burst(), memory=back)
    assert p.memory.burst and p.memory.burst.cost_s == 4.0
    done = msgspec.structs.replace(SUMMARIZER, want_bytes=0, granted_at_s=NOW + 1.0)
    p = plan(*EVICTED, done, memory=p.memory, now=NOW + 5.0)
    assert p.memory.returning and p.memory.rest_until_s == NOW + 5.0 + SET.rest_swaps * 4.0


def test_free_riders_that_come_and_go_do_not_hold_an_overdue_burst_up() -> None:
    young = on("minutes", 1, lane="burst", granted_at_s=NOW - 1.0)
    next_one = off("notes", 1, lane="burst")
    stack = (*STACK[:2], on("diarizer", 2))
    assert granted(plan(*stack, young, next_one, burst(since_s=NOW - 119.0))) == "notes"
    p = plan(*stack, young, next_one, burst(since_s=NOW - 120.0))
    assert not p.grant and not p.revoke and why(p, "notes") == "an overdue burst is first"


def test_a_free_rider_that_never_gets_on_holds_no_other_up_for_longer_than_a_burst_may_last() -> None:
    """Its own word for how long it needs is a measurement: it may be anything."""
    rider = on("minutes", 2, lane="burst", granted_at_s=NOW - SET.max_hold_s + 1.0, burst_min_s=1e9)
    p = plan(*STACK, rider, burst())
    assert not p.revoke and p.wake_at_s == NOW + 1.0
    assert leaves(plan(*STACK, rider, burst(), now=NOW + 1.0)) == {"transcriber", "translator", "diarizer"}


def test_one_that_comes_by_itself_is_not_overtaken_for_ever() -> None:
    rider = off("minutes", 2, lane="burst", since_s=NOW - 600.0)
    p = plan(*STACK, rider, burst(since_s=NOW - 500.0))
    assert granted(p) == "minutes" and not p.revoke and why(p, "summarizer") == "minutes is first"


def test_the_lag_of_one_that_has_no_room_anyway_ends_nobody() -> None:
    left_out = off("diarizer", 12, lag_s=900.0)
    p = plan(on("transcriber", 6, silence_s=2.0), left_out, burst(5, since_s=NOW - 600.0), memory=Memory())
    assert p.memory.burst is None or p.memory.burst.who.worker != "diarizer"
    runs = plan(off("transcriber", 6), left_out, SUMMARIZER, memory=RUNNING)
    assert not runs.revoke


def test_the_rest_counts_what_the_swap_really_took() -> None:
    slow = Memory(returning=True, ended_s=NOW - 20.0, came_in_s=10.0, rest_until_s=NOW + 1.0)
    assert plan(*STACK, memory=slow).memory.rest_until_s == NOW + 9 * 30.0


def test_cuts_are_forgotten_after_a_turn_only() -> None:
    cut_once = msgspec.structs.replace(RUNNING, cuts={"summarizer": 1})
    assert plan(*EVICTED, memory=cut_once).memory.cuts == {}
    never = Memory(burst=Burst(who=who("summarizer"), began_s=NOW - 1.0, cost_s=2.0), cuts={"summarizer": 1})
    assert plan(*STACK, memory=never).memory.cuts == {"summarizer": 1}


def test_of_many_live_workers_those_that_fit_are_kept() -> None:
    many = [on(f"live{i}", 1) for i in range(14)]
    assert not plan(*many, cap=14 * G).revoke
    assert len(leaves(plan(*many, cap=13 * G))) == 1


def test_what_lets_a_burst_go_is_said() -> None:
    assert plan(*STACK, burst()).reason == "summarizer comes by silence"
    speech = on("transcriber", 6, silence_s=0.1)
    assert plan(speech, burst(since_s=NOW - 50.0)).reason == "summarizer comes by patience"
    assert plan(speech, burst(since_s=NOW - 500.0), memory=Memory(rest_until_s=NOW + 9.0)).reason.endswith("by overdue")


def test_a_turn_of_a_live_worker_is_over_when_it_fits_beside_the_others() -> None:
    """Else it is the running burst for ever, which no free rider has to end, and nobody else is ever served."""
    turn = runs(99.0, "translator")
    both = (on("transcriber", 6, silence_s=2.0), on("translator", 5))
    p = plan(*both, burst(14, since_s=NOW - 500.0), memory=turn)
    p = plan(*both, burst(14, since_s=NOW - 500.0), memory=p.memory)
    assert leaves(p) == {"transcriber", "translator"}
