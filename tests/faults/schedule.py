"""Which faults happen when, drawn from a seed. Pure: the same seed gives the same schedule.

Each kind of fault comes once before any comes by weight (if there are that many); the time between two is drawn, too,
so that some overlap. What a fault finds when it comes (a swap, a commit, a start) is not in the seed.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import msgspec

WORKERS = ("transcriber", "summarizer", "diarizer", "translator")  # have leases
FIRST_S = 1.0  # after the stream has begun
SWAPPED = ("transcriber", "transcriber", "diarizer", "summarizer")  # come and go at each burst


class Kind(NamedTuple):
    """A kind of fault: how often, against whom (more often if named twice), and for how long at least and at most."""

    weight: int
    targets: tuple[str, ...]
    least_s: float = 0.0
    most_s: float = 0.0
    what: str = ""


ARBITER = ("arbiter", "arbiter", "arbiter", "arbiter's helper")
MOST = (*WORKERS, "transcriber", "diarizer", "feed", "feed", "capture", "capture")
KINDS: dict[str, Kind] = {
    "kill": Kind(40, (*MOST, *ARBITER, "launcher", "launcher", "viewer"), what="SIGKILL, at any moment"),
    "stop": Kind(
        26,
        (*WORKERS, "feed", "feed", "capture", "launcher", "viewer", *ARBITER),
        0.3,
        6.0,
        what="SIGSTOP, and SIGCONT after a while",
    ),
    "deaf": Kind(8, WORKERS, 15.0, 25.0, what="no Lease reaches the worker's ears; it goes on and says that it lives"),
    "hang": Kind(10, WORKERS, 20.0, 30.0, what="a step never ends, as in a call of a driver"),
    "hang in reload": Kind(6, SWAPPED, 20.0, 30.0, what="the same while weights move in"),
    "oom in step": Kind(10, WORKERS, 8.0, 14.0, what="the device says that memory is out, once or twice"),
    "oom in reload": Kind(10, SWAPPED, 8.0, 14.0, what="the same while weights move in"),
    "slow": Kind(6, WORKERS, 2.0, 5.0, what="each step and reload takes half a second longer"),
    "loss": Kind(
        16,
        ("feed", "arbiter", *WORKERS, "capture", "everybody"),
        2.0,
        8.0,
        what="10 to 50 % of what the process sends never arrives",
    ),
    "doubled": Kind(
        12,
        ("feed", "arbiter", *WORKERS, "capture", "everybody"),
        2.0,
        8.0,
        what="30 to 100 % of what the process sends arrives twice",
    ),
    "disk full": Kind(8, ("disk",), 1.0, 5.0, what="no byte is free on the file system of the data"),
    "torn audio": Kind(5, ("capture",), what="capture is killed; half a sample stands at the end of its newest file"),
    "torn anchor": Kind(4, ("capture",), what="capture is killed; half a line stands at the end of anchors.jsonl"),
    "torn journal": Kind(5, ("feed",), what="the feed is killed; half a frame stands at the end of SQLite's log"),
    "clock step": Kind(8, ("everybody",), what="every process' wall clock jumps, by a second up to a day, either way"),
}


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One drawn fault. `share` is a number from 0 to 1 whose meaning is the kind's."""

    number: int
    at_s: float  # after the stream's start
    kind: str
    target: str
    for_s: float
    share: float

    @property
    def seat(self) -> str:
        """What it happens to: two faults of one seat never overlap."""
        return "everybody" if self.kind in ("clock step", "disk full") else self.target


def draw(seed: int, count: int, apart_s: float) -> list[Fault]:
    """`count` faults, `apart_s` apart on average; and half as many again, for those of them that meet nothing."""
    rng = random.Random(seed)
    kinds = list(KINDS)
    weights = [k.weight for k in KINDS.values()]
    kinds += rng.choices(list(KINDS), weights, k=max(0, count - len(kinds)))
    rng.shuffle(kinds)
    kinds += rng.choices(list(KINDS), weights, k=count // 2)
    at, out = FIRST_S, []
    for number, name in enumerate(kinds, 1):
        kind = KINDS[name]
        out.append(
            Fault(
                number=number,
                at_s=round(at, 2),
                kind=name,
                target=rng.choice(kind.targets),
                for_s=round(rng.uniform(kind.least_s, kind.most_s), 2),
                share=round(rng.random(), 3),
            )
        )
        at += rng.uniform(0.2, 1.8) * apart_s
    return out
