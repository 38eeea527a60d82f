"""How long a burst must last and how much it can read, from what the last ones took."""

from __future__ import annotations

from math import inf

import pytest

from workers.pace import ENOUGH_TOKENS, Pace

pytestmark = pytest.mark.pure


def pace(*bursts: tuple[int, float], token_s: float = 0.1) -> Pace:
    """Each burst read so many tokens in so many seconds."""
    p = Pace()
    for read, seconds in bursts:
        p.burst(read, seconds, 10, 10 * token_s)
    return p


def test_before_any_burst_the_longest_piece_of_the_calibration_counts() -> None:
    assert Pace().least_s(1000, 256, 0.0) == 0.0, "nothing is known"
    assert Pace().least_s(1000, 256, 0.5) == 4 * 0.5 + ENOUGH_TOKENS / 8 * 0.5
    assert Pace().most_tokens(60.0) == inf and Pace().fits(10**9, 1.0)


def test_what_was_measured_counts_afterwards() -> None:
    assert pace((1000, 5.0)).least_s(1000, 256, 9.0) == pytest.approx(5.0 + 3.2)
    assert pace((1000, 5.0)).least_s(500, 256, 9.0) == pytest.approx(2.5 + 3.2)
    assert pace((1000, 5.0), (1000, 8.0)).least_s(1000, 256, 9.0) == pytest.approx(8.0 + 3.2), "the slower of two"
    assert pace((1000, 50.0), (1000, 5.0), (1000, 5.0)).least_s(1000, 256, 9.0) == pytest.approx(5.0 + 3.2)


def test_a_longer_text_may_take_more_than_its_share_but_not_more_than_the_longest_pieces() -> None:
    assert pace((500, 2.0)).least_s(1000, 250, 9.0) == pytest.approx(8.0 + 3.2)
    assert pace((500, 2.0)).least_s(1000, 250, 1.5) == pytest.approx(6.0 + 3.2)


def test_two_bursts_that_could_not_read_it_limit_the_next() -> None:
    """One may have been slow for a reason of its own; without a limit the third would be for nothing as well."""
    once, twice = pace((1000, 60.0)), pace((1000, 60.0), (1000, 60.0))
    assert once.fits(2000, 60.0) and once.most_tokens(60.0) == inf
    assert not twice.fits(2000, 60.0) and twice.fits(970, 60.0) and not twice.fits(990, 60.0)
    assert twice.most_tokens(60.0) == pytest.approx((54.0 - 3.2) / 0.06)
    assert twice.fits(2000, inf), "who is not held to a time reads everything"
    assert pace((1000, 60.0), (1000, 5.0)).fits(2000, 60.0)


def test_a_hold_too_short_to_write_anything_still_has_a_limit() -> None:
    assert pace((1000, 60.0), (1000, 60.0), token_s=9.0).most_tokens(1.0) == 1


def test_bursts_that_read_or_wrote_nothing_tell_nothing() -> None:
    p = pace((1000, 5.0), (1000, 5.0))
    p.burst(0, 0.0, 0, 0.0)
    assert p.most_tokens(60.0) == pace((1000, 5.0), (1000, 5.0)).most_tokens(60.0) < inf
