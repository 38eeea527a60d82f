"""The ledger keeps I1-I8 whatever gets lost, late, doubled, killed or hung; and the checker that says so is not blind.

`python -m tests.test_ledger --histories 100000` plays as many seeded histories; `--seed N` one of them, aloud.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.ledger_world import ACTIONS, Violation, World

NAMES, WEIGHTS = list(ACTIONS), list(ACTIONS.values())
STEPS = 200


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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--seed", type=int, help="play this one, aloud")
    args = parser.parse_args()
    if args.seed is not None:
        play(args.seed, aloud=True)
        return 0
    began = time.monotonic()
    for seed in range(args.histories):
        try:
            play(seed)
        except Violation as e:
            print(f"seed {seed}: {e}")
            return 1
    print(f"{args.histories} histories of {STEPS} actions hold I1-I8 · {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
