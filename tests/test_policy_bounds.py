"""The bounds of the policy hold in random schedules, and each rule that is taken away is missed.

`python -m tests.test_policy_bounds --schedules 100000` plays as many (`--first N`: from that seed on); `--seed N` one.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time

import pytest

from tests.policy_bugs import BUGS
from tests.policy_checker import Violation, play

IN_CI = 500  # of each of four parts
SAY_EVERY = 5000


@pytest.mark.joined
@pytest.mark.parametrize("part", range(4))
def test_random_schedules_keep_every_bound(part: int) -> None:
    starts: collections.Counter[str] = collections.Counter()
    for seed in range(part * IN_CI + 1, (part + 1) * IN_CI + 1):
        try:
            starts.update(play(seed)[1].starts)
        except Violation as v:
            pytest.fail(f"seed {seed}: {v}")
    for how in ("silence", "patience", "overdue", "by hand"):
        assert starts[how] >= 5, f"the schedules try too little: {starts}"


@pytest.mark.joined
@pytest.mark.parametrize("name", BUGS)
def test_a_rule_that_is_taken_away_is_missed(name: str) -> None:
    breaks, decide = BUGS[name]
    for seed in range(1, 3000):
        try:
            play(seed, decide)
        except Violation as v:
            assert str(v).partition(":")[0] in breaks.split("|"), f"seed {seed}: it is caught for another reason: {v}"
            return
    pytest.fail(f"3000 schedules without {name!r} and the checker saw nothing")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.schedules) if args.seed is None else [args.seed]
    began, cpu, bad, seconds = time.monotonic(), time.process_time(), 0, 0.0
    starts: collections.Counter[str] = collections.Counter()
    for n, seed in enumerate(seeds, 1):
        try:
            world, checker = play(seed)
            starts.update(checker.starts)
            seconds += world.now
        except Violation as v:
            bad += 1
            print(f"seed {seed}: {v}", flush=True)
        if n % SAY_EVERY == 0 or n == len(seeds):
            took = f"{time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
            print(
                f"{n} schedules, {bad} violations, {seconds / 3600:.0f} h played in {took}; {dict(starts)}", flush=True
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
