"""What a worker brings to the base: sessions that scan audio on the CPU, and steps that the model infers. No loop here.

A step is a pure function of model, state and work; positions, events and state of a step are committed together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec

from common import backlog
from common import messages as m
from common.process import Process


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one append carries: positions move, events are born, the state travels with them."""

    positions: dict[str, int]
    events: tuple[m.Body, ...]
    state: bytes


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One bounded piece for the model: tiles `span`, begun by `silence` samples without speech."""

    stream: str
    span: m.Span
    speech: m.Span
    voiced: m.Span
    pcm: bytes  # s16le of `speech`
    state: bytes  # scan state after `span`


class Session(ABC):
    """One stream under work, from the place the journal gave."""

    def __init__(self, folder: Path, meta: backlog.Meta, at: m.At) -> None:
        self.folder, self.meta, self.at = folder, meta, at
        self.served_s = 0.0  # monotonic clock of its last step
        self.position = at.positions.get("audio", 0)

    @property
    @abstractmethod
    def reached(self) -> int:
        """Everything before this sample is scanned or belongs to the utterance under way."""

    @abstractmethod
    def scan(self) -> Step | Work | None:
        """Look at more audio, bounded. None: nothing to do before more audio comes."""

    @abstractmethod
    def deaf(self) -> Step | None:
        """A bounded Gap over audio that `scan` cannot survive; None: wait until there is more of it."""

    @abstractmethod
    def moved(self, at: m.At) -> None:
        """The journal took the step; go on from `at`."""


class Worker(ABC):
    """What a concrete worker brings."""

    name: str

    @abstractmethod
    def load(self, process: Process) -> Any:
        """Load the model; raises UserError in one line when it is missing."""

    @abstractmethod
    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Session: ...

    @abstractmethod
    def infer(self, model: Any, state: bytes, work: Work) -> Step:
        """Pure: the same samples, settings and state give the same step."""

    @abstractmethod
    def skipped(self, state: bytes, work: Work, gap: m.Gap) -> Step:
        """The step that stands in for `work` when it failed too often."""

    @abstractmethod
    def again(self, model: Any, stream: str, gap: m.Gap, pcm: bytes) -> m.Body:
        """The event that supersedes a retryable gap."""
