"""The work thread's end of the lease: grants and revocations at the edges of steps, lack of memory, held long enough.

Device and residency are stand-ins that count bytes; the Holder is the real one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from common.messages import Incarnation, Lease
from common.process import Log
from workers.lease import Holder, Place
from workers.tenancy import Tenant

ME = Incarnation(worker="w", pid=1, started_ticks=1, nonce="0")
pytestmark = pytest.mark.joined


class StandInDevice:
    """Bytes, nothing else."""

    def __init__(self) -> None:
        self.lease = self.held_bytes = self.peak_bytes = self.residue_bytes = 0

    def limit(self, lease_bytes: int) -> None:
        self.lease = lease_bytes
        assert self.held_bytes <= lease_bytes

    def take(self, size: int) -> None:
        if self.held_bytes + size > self.lease:
            raise MemoryError("over the lease")
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    @contextlib.contextmanager
    def working(self, size: int) -> Iterator[None]:
        self.take(size)
        try:
            yield
        finally:
            self.held_bytes -= size


class StandInMove:
    gb_per_s = 1.0


class StandInResidency:
    """Weights of 100 bytes in four copies."""

    weights_bytes, longest_piece_s = 100, 0.01

    def __init__(self, device: StandInDevice) -> None:
        self.device, self.resident = device, False
        self.log: list[str] = []
        self.between: Callable[[int], None] = lambda copy: None

    def reload(self, turn_back: Callable[[], bool], progress: Callable[[int], None]) -> StandInMove | None:
        for copy in range(4):
            self.between(copy)
            if turn_back():
                self.device.held_bytes -= 25 * copy
                return None
            try:
                self.device.take(25)
            except MemoryError:
                self.device.held_bytes -= 25 * copy
                raise
            progress(25)
        self.resident = True
        self.log.append("reload")
        return StandInMove()

    def offload(self, freed: Callable[[], None] = lambda: None) -> StandInMove:
        self.device.held_bytes -= 100
        self.resident = False
        freed()
        self.log.append("offload")
        return StandInMove()


class Game:
    def __init__(self) -> None:
        self.holder = Holder(ME, place=Place(residency="offloaded"))
        self.device = StandInDevice()
        self.residency = StandInResidency(self.device)
        self.tenant = Tenant(self.holder, self.device, self.residency, Log("test"))
        self.tenant.need_bytes = 130
        self.epoch = 0

    def lease(self, granted: bool, size: int = 130, hold_s: float = 0.0) -> Lease:
        self.epoch += 1
        lease = Lease(
            incarnation=ME, epoch=self.epoch, granted=granted, bytes=size, offload_within_s=2.0, max_hold_s=hold_s
        )
        assert self.holder.accept(lease)
        return lease


@pytest.fixture
def game() -> Game:
    return Game()


def test_a_grant_loads_and_a_revocation_offloads(game: Game) -> None:
    game.lease(True)
    assert not game.tenant.ready
    game.tenant.edge()
    assert game.tenant.ready and game.holder.place.residency == "resident" and game.holder.place.held_bytes == 100
    game.lease(False)
    assert not game.tenant.ready, "a step must not begin any more"
    game.tenant.edge()
    assert (game.holder.place.residency, game.holder.place.acted) == ("offloaded", 2)
    assert game.device.held_bytes == game.device.lease == 0


def test_a_reload_turns_back_between_two_copies(game: Game) -> None:
    game.lease(True)
    game.residency.between = lambda copy: game.lease(False) and None if copy == 2 else None
    game.tenant.edge()
    assert (game.holder.place.residency, game.holder.place.acted) == ("offloaded", 2)
    assert game.device.held_bytes == 0 and not game.residency.resident


def test_a_grant_after_a_turned_back_reload_loads_again(game: Game) -> None:
    game.lease(True)

    def both(copy: int) -> None:
        if game.epoch == 1 and copy == 2:
            game.lease(False)
            game.lease(True)

    game.residency.between = both
    game.tenant.edge()
    assert game.holder.place.acted == 3 and game.tenant.ready and game.device.held_bytes == 100


def test_pieces_end_at_the_edge_where_a_revocation_waits(game: Game) -> None:
    game.lease(True)
    done: list[int] = []

    def pieces() -> Iterator[None]:
        try:
            for i in range(5):
                assert game.device.held_bytes == 130, "working memory is held during a piece"
                done.append(i)
                if i == 1:
                    game.lease(False)
                yield
        finally:
            done.append(-1)
            game.residency.log.append("closed")  # what a step has on the device must be gone before the offload

    assert not game.tenant.run(pieces(), 30)
    assert (
        done == [0, 1, -1]
        and game.residency.log == ["reload", "closed", "offload"]
        and game.holder.place.residency == "offloaded"
        and game.device.held_bytes == 0
    )


def test_pieces_run_to_their_end(game: Game) -> None:
    game.lease(True)
    assert game.tenant.run(iter([None] * 3), 30)
    assert game.tenant.pieces.p99() > 0 and game.holder.place.held_bytes == 100


def test_without_a_lease_nothing_runs(game: Game) -> None:
    def never() -> Iterator[None]:
        raise AssertionError("a step without a lease")
        yield

    assert not game.tenant.run(never(), 30)


def test_a_step_over_the_lease_offloads_and_wants_more_later(game: Game) -> None:
    game.tenant.want("live")
    game.lease(True)
    assert not game.tenant.run(iter([None]), 31)
    place = game.holder.place
    assert (place.acted, place.residency, place.held_bytes) == (1, "offloaded", 0)
    assert game.holder.wants(1e9).bytes == 0, "nothing before the lease that it gave up was revoked"
    game.lease(False)
    game.tenant.edge()
    game.tenant.want("live")
    assert game.holder.wants(0.0).bytes == 0, "it pauses"
    assert game.holder.wants(1e9).bytes == 130, "at least as much as before"


def test_a_reload_over_the_lease_is_no_crash(game: Game) -> None:
    game.tenant.want("live")
    for n in range(1, 4):
        game.lease(True, size=90)
        game.tenant.edge()
        assert game.holder.place.residency == "offloaded" and game.device.held_bytes == 0
        assert game.holder.ooms == n
        game.lease(False)
        game.tenant.edge()
    assert "3 times" in game.tenant.complaint


def test_what_a_piece_raises_is_passed_on_and_the_pieces_are_closed(game: Game) -> None:
    game.lease(True)
    closed = []

    def pieces() -> Iterator[None]:
        try:
            yield
            raise ArithmeticError
        finally:
            closed.append(True)

    with pytest.raises(ArithmeticError):
        game.tenant.run(pieces(), 30)
    assert closed and game.device.held_bytes == 100


def test_a_burst_ends_itself_when_it_was_held_long_enough(game: Game) -> None:
    game.tenant.want("burst")
    game.lease(True, hold_s=1e-6)
    assert not game.tenant.run(iter([None] * 1000), 30)
    assert game.holder.place.residency == "offloaded" and game.holder.place.acted == 1
    assert game.holder.wants(1e9).bytes == 0


def test_a_burst_has_its_time_for_work_however_long_it_loads(game: Game) -> None:
    """Else one that loads for longer than it may hold would leave before its first piece each time, for ever."""
    game.residency.between = lambda copy: time.sleep(0.02)
    game.lease(True, hold_s=0.06)
    game.tenant.edge()
    assert game.tenant.ready and game.tenant.run(iter([None]), 30)
    time.sleep(0.06)
    assert not game.tenant.run(iter([None]), 30)


def test_wants_keep_their_beginning(game: Game) -> None:
    game.tenant.want("batch")
    first = game.holder.want
    game.tenant.want("batch")
    assert game.holder.want is first
    game.tenant.want("live")
    assert game.holder.want.lane == "live" and game.holder.want.since_s == first.since_s
    game.tenant.want("")
    assert game.holder.want.bytes == 0


def test_a_step_that_was_closed_is_not_finished_even_if_the_next_grant_is_there_at_once(game: Game) -> None:
    """The arbiter may answer `offloaded` while the work thread is still busy with writing its log line."""
    game.lease(True)
    game.tenant.changed = lambda: (
        game.lease(True) and None if game.holder.place.acted == 2 and game.epoch == 2 else None
    )
    done: list[int] = []

    def pieces() -> Iterator[None]:
        for i in range(5):
            done.append(i)
            if i == 1:
                game.lease(False)
            yield

    assert not game.tenant.run(pieces(), 30), "half a step was taken for a whole one"
    assert done == [0, 1] and game.tenant.ready and game.holder.place.acted == 3


def test_pieces_that_fit_do_not_make_one_that_does_not_the_first_again(game: Game) -> None:
    game.tenant.want("live")
    for n in range(1, 5):
        game.lease(True)
        game.tenant.edge()

        def pieces() -> Iterator[None]:
            yield
            game.device.take(31)
            yield

        assert not game.tenant.run(pieces(), 0)
        assert game.holder.ooms == n, "it would be tried again each second for ever, and nobody would hear of it"
        game.lease(False)
        game.tenant.edge()
    assert "4 times" in game.tenant.complaint


def test_a_step_that_never_fits_wants_more_until_it_does(game: Game) -> None:
    """A peak knows only of what was there: the piece that did not fit is not in it."""
    game.tenant.want("live")
    for _ in range(8):
        game.lease(True, size=game.tenant.need_bytes)
        game.tenant.edge()
        if game.tenant.run(iter([None]), 100):
            break
        game.lease(False)
        game.tenant.edge()
        game.tenant.want("live")
    assert game.tenant.ready and 200 <= game.tenant.need_bytes < 300
