"""What the policy sees, remembers and answers: structs only.

`arbiter/show.py` makes the view from the ledger; `arbiter/policy.py` makes the plan from the view.
"""

from __future__ import annotations

from math import inf

import msgspec

from arbiter.effects import State
from common.messages import Incarnation

GUESS_BYTES_PER_S = 4e9  # of a reload that nobody has measured
MIB, GIB = 2**20, 2**30


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One living incarnation: its row in the ledger and its newest Status."""

    who: Incarnation
    state: State
    bytes: int = 0  # counted
    want_bytes: int = 0
    least_bytes: int = 0  # it can do with so many; 0: with no fewer than it wants
    measured: bool = False  # what it wants is no guess
    cramped: bool = False  # it ran out of memory again and again: the least may be too little
    lane: str = "live"
    since_s: float = 0.0  # when it began to want
    ready: bool = False  # its newest lease is carried out
    granted_at_s: float = 0.0
    lag_s: float = 0.0
    silence_s: float = inf
    owes: bool = False  # an utterance that is over has no caption yet
    reload_s: float = 0.0
    offload_s: float = 0.0
    burst_min_s: float = 0.0  # from its grant until it has got on, by its own word
    pieces: int = 0  # of its work that are done, by its own count
    pinned: bool = False  # a person wants it to stay
    off_until_s: float = 0.0  # a person wants it to be away

    @property
    def name(self) -> str:
        return self.who.worker

    @property
    def load_s(self) -> float:
        return self.reload_s or self.want_bytes / GUESS_BYTES_PER_S


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """The one that has the GPU for a while, from the decision to serve it to its end. Who rides free is none."""

    who: Incarnation
    began_s: float
    held_s: float = inf  # since when it is granted
    ready_s: float = inf  # since when it is resident: its time runs from there
    cost_s: float = 0.0  # of moving everybody there and back, as expected; 0: nobody had to leave
    pieces: int = 0  # of its worker, when it began
    seen: int = 0  # and when it was last let go on
    start: str = ""  # what let it go: silence | patience | overdue | by hand | found (there when the arbiter began)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy knows of earlier: handed back to it with the next view."""

    burst: Burst | None = None
    rest_until_s: float = -inf
    served_s: dict[str, float] = {}  # worker -> when its last burst ended: its waiting begins there anew
    lasted_s: dict[str, float] = {}  # and how long it was
    cuts: dict[str, int] = {}  # worker -> how often its want was cut short
    returning: bool = False  # those who left for a burst are not all back yet
    ended_s: float = -inf  # when the last burst for which somebody left ended
    came_in_s: float = 0.0  # and how long it had taken from the decision until it was resident
    forced: str = ""  # the worker whose burst a person asked for
    swaps: int = 0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision depends on, but the time."""

    workers: tuple[Worker, ...]
    cap_bytes: int
    sum_text: str = ""  # how the cap comes about: for people
    memory: Memory = Memory()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now. The next grant is asked for again once the bus is idle."""

    revoke: tuple[tuple[Incarnation, str], ...] = ()
    grant: tuple[Incarnation, int, float] | None = None  # who, bytes, max_hold_s
    waits: dict[Incarnation, str] = {}  # why it waits, or cannot be served
    refused: tuple[Incarnation, ...] = ()  # those whose want can never be served
    phase: str = "idle"
    reason: str = ""
    wake_at_s: float = inf
    memory: Memory


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"
