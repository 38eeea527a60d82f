"""What a worker brings to the base: what there is to do, and steps that need its model. No loop and no lease here.

A step is a pure function of model, state and work; positions, events and state of a step are committed together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from common import messages as m
from common.process import Process

if TYPE_CHECKING:
    from workers.base import Runner


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one append carries: positions move, events are born, the state travels with them."""

    positions: dict[str, int]
    events: tuple[m.Body, ...]
    state: bytes


class Worker(ABC):
    """What a concrete worker brings. The work thread calls everything, save where it says otherwise."""

    name: str
    lane = "live"  # of its wants: live | burst
    pieces_done = 0  # of its bursts' work: between two of them it may have to give back. Also read by control

    @abstractmethod
    def load(self, process: Process) -> Sequence[Any]:
        """Load the model into RAM: its torch modules. Raises UserError in one line when it is missing."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Once, while the first lease is awaited: what takes a moment and needs no device."""

    @abstractmethod
    def key(self) -> str:
        """The weights (sha256) and the settings that shape a step: what a calibration is valid for."""

    @abstractmethod
    def working_bytes(self) -> int:
        """Device memory of its largest step beside the weights. A simulated device holds it to that, CUDA measures."""

    def least_working_bytes(self) -> int:
        """The same with the smallest steps that would do."""
        return self.working_bytes()

    def too_large(self) -> None:  # noqa: B027 - most have no smaller ones
        """A step ran out of memory: a worker that can take smaller ones does so from now on."""

    @abstractmethod
    def rehearse(self) -> Iterator[None]:
        """Its largest step in pieces, on made-up input: what is calibrated."""

    @abstractmethod
    def look(self, runner: Runner, now: float) -> None:
        """What is new? Cheap, called at least twice a second, never waits."""

    @abstractmethod
    def turn(self, runner: Runner) -> bool:
        """One bounded piece of work; False when there is none now, be it that `runner.ready` is false."""

    @abstractmethod
    def needs_model(self) -> bool:
        """A step waits for the model. Also asked by the control thread."""

    # Asked by the control thread

    def lags(self) -> dict[str, float]:
        """How late it is, in seconds, per open stream."""
        return {}

    def late(self) -> float:
        """How late it is on the worst live stream, in seconds: bursts are put off for it, and cut short."""
        return max(self.lags().values(), default=0.0)

    def owes(self) -> bool:
        """Something that was said has no caption yet, though whoever said it is silent."""
        return False

    def silence_s(self) -> float:
        """For how long nobody has spoken on any live stream."""
        return 0.0

    def positions(self) -> dict[str, int]:
        """How far its inputs are consumed: it makes progress when this changes."""
        return {}

    def trouble(self) -> str:
        """What keeps it from its work, for people; empty: nothing."""
        return ""

    def least_s(self) -> float:
        """Seconds with its model until a burst has got on; 0: not known. It is not cut short before."""
        return 0.0

    def note(self) -> str:
        """How far the work is that waits, for people; empty: nothing to tell."""
        return ""

    def delay_figures(self) -> tuple[m.Delay, ...]:
        """How late its output of the last `viewer.delays_over_s` was, by lane and stage."""
        return ()

    def sockets(self) -> Sequence[Any]:
        """That end the wait for work when they become readable; it drains them in `look`."""
        return ()
