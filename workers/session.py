"""One stream under work, as a worker that reads the backlog holds it, and the pieces of work that it gives.

A session is rebuilt from the journal's place; nothing in it has to outlive a kill. `Speech` is what the sessions of
captions can do beyond that: they know who waits, who is silent, and what is under way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from common import backlog
from common import messages as m
from workers.interim import UnderWay
from workers.steps import Step


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One bounded piece for the model, which takes the position from the one end of `span` to the other."""

    stream: str
    span: m.Span


class Utterance(Work, frozen=True, kw_only=True):
    """What was said between two pauses; `span` begins with the silence before it."""

    speech: m.Span
    certain: int = 0  # the audio before this sample makes the cut certain; 0: not known
    voiced: m.Span
    pcm: bytes  # s16le of `speech`
    state: bytes  # scan state after `span`
    language: str = ""  # as its source says; empty: as in the settings
    glossary: tuple[str, ...] = ()  # of its source


W = TypeVar("W", bound=Work)


class Session(ABC, Generic[W]):
    """One stream under work, from the place the journal gave."""

    def __init__(self, folder: Path, meta: backlog.Meta, at: m.At) -> None:
        self.folder, self.meta, self.at = folder, meta, at
        self.served_s = 0.0  # monotonic clock of its last step
        self.position = at.positions.get("audio", 0)

    @property
    @abstractmethod
    def reached(self) -> int:
        """Everything before this sample is scanned or belongs to what is under way: what is behind it is late."""

    @property
    def done(self) -> bool:
        """The stream has ended, and there is nothing left to do."""
        return self.meta.ended and self.position >= self.meta.end

    @property
    def scanning(self) -> str:
        """What `scan` does next: what ends badly is counted apart for each kind."""
        return "scan"

    @abstractmethod
    def scan(self) -> Step | W | None:
        """Look at more audio, bounded. None: nothing to do before more audio comes."""

    @abstractmethod
    def deaf(self) -> Step | None:
        """A bounded Gap over audio that `scan` cannot survive; None: wait until there is more of it."""

    @abstractmethod
    def moved(self, at: m.At) -> None:
        """The journal took the step; go on from `at`."""


class Speech(Session[Utterance]):
    """A session of captions."""

    def __init__(self, folder: Path, meta: backlog.Meta, at: m.At) -> None:
        super().__init__(folder, meta, at)
        self.listened = self.position  # first sample that no voice was looked for in yet
        self.told_of = -1  # first sample of the utterance of which text was told last, before its final

    @property
    @abstractmethod
    def heard(self) -> int:
        """Everything before this sample is scanned."""

    @property
    @abstractmethod
    def silence_s(self) -> float:
        """For how long nobody had spoken at `listened`; 0 while an utterance is under way or waits for the model."""

    @property
    @abstractmethod
    def owes(self) -> bool:
        """An utterance that is over waits for the model, or is with it."""

    @abstractmethod
    def look_ahead(self, most: int, samples: int) -> bool:
        """Scan behind the work that waits, `samples` at most, until `most` pieces wait. False: nothing was done."""

    @abstractmethod
    def waiting(self, most: int) -> list[Utterance]:
        """The pieces of work that wait right behind each other, `most` of them; the first is what `scan` gives."""

    @abstractmethod
    def under_way(self) -> UnderWay | None:
        """The utterance that is still being spoken at the end of what is scanned, if there is one."""
