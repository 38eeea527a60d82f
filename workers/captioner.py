"""What captions need beyond hearing: who speaks or is silent, catching up, retries, interim text, how late it all was.

In: sessions of `utterances`, Retry events. Out: what the arbiter and viewers must know at once (silence, a caption that
is owed), finals in order. The audio of a gap stays, and `swapscribe retry` tries again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from common import backlog
from common import messages as m
from common.process import Process
from workers.catchup import CatchUp
from workers.delays import Delays, Timed
from workers.hearing import Hearing
from workers.retry import Retries
from workers.session import Speech, Utterance
from workers.steps import Step

if TYPE_CHECKING:
    from workers.base import Runner

NOBODY_S = 3600.0  # silence where there is no live stream
UNHEARD_S = 0.5  # of audio that nobody has listened to yet, and silence is not known any more


class Captioner(Hearing[Speech, Utterance]):
    """A worker that makes text of utterances and answers for every sample of a stream."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._retries = Retries(process, self)
        self._catch_up = CatchUp(self)
        self._most = 1  # utterances at once, of the stream whose turn it is
        self.delays = Delays(self.settings.viewer.delays_over_s, self.settings.transcriber.interim)
        # Is it silent for long enough, is a caption owed: as the arbiter was last told.
        self._last_told = (False, False)

    # What a concrete worker brings

    def infer_all(self, state: bytes, works: Sequence[Utterance], steps: list[Step]) -> Generator[None, None, None]:
        """Fills `steps` with those of (the first of) pieces of work right behind each other, each when it is final; a
        worker that can does them at once."""
        for work in works:
            steps.append((yield from self.infer(steps[-1].state if steps else state, work)))

    def together(self, session: Speech, late_s: float) -> int:
        """How many pieces of work of a stream may be done at once now that it is `late_s` late."""
        return 1

    @abstractmethod
    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Generator[None, None, m.Body]:
        """The event that supersedes a retryable gap."""

    def interim(self, runner: Runner, live: Sequence[Speech]) -> bool:
        """One bounded step of text that may still change, when nothing finished of live streams waits. False: none."""
        return False

    # What the base asks

    def needs_model(self) -> bool:
        return super().needs_model() or bool(self._retries.waiting)

    def delay_figures(self) -> tuple[m.Delay, ...]:
        return self.delays.figures()

    def silence_s(self) -> float:
        live = [self._silence_s(s) for s in list(self.sessions.values()) if s.meta.lane == "live" and not s.meta.ended]
        return min(live, default=NOBODY_S)

    def _silence_s(self, session: Speech) -> float:
        """Not known, so 0, when audio came while the model worked: somebody may speak in it."""
        most_s = max(UNHEARD_S, 2 * self.settings.capture.sync_interval_ms / 1000)
        try:
            unheard_s = backlog.seconds(backlog.head(session.folder) - session.listened)
        except OSError:
            return 0.0
        return session.silence_s if unheard_s <= most_s else 0.0

    def owes(self) -> bool:
        return any(s.owes for s in list(self.sessions.values()) if s.meta.lane == "live")

    # What hearing asks

    def scanned(self, runner: Runner) -> None:
        """At once when a burst may begin that could not, or the other way round: the next Status may be late by 1 s."""
        now = (self.silence_s() >= self.settings.gpu.silence_s, self.owes())
        if now != self._last_told:
            self._last_told = now
            runner.control.changed()

    def look(self, runner: Runner, now: float) -> None:
        super().look(runner, now)
        self._catch_up.only(self.sessions.keys() | self._unreadable.keys())
        self._retries.look()

    def outdated(self, session: Speech, meta: backlog.Meta) -> bool:
        return meta.language != session.meta.language  # we may not know that one

    def begins(self, meta: backlog.Meta) -> tuple[m.Body, ...]:
        return (m.StreamStarted(source=meta.source, lane=meta.lane, started_ns=meta.started_ns),)

    def ends(self, session: Speech) -> tuple[m.Body, ...]:
        # What was heard existed, also if deleted files no longer prove it.
        return (m.StreamEnded(end=max(session.meta.end, session.position), reason=session.meta.end_reason),)

    def turn(self, runner: Runner) -> bool:
        if self._retries.waiting and runner.ready:
            stream = self._retries.waiting[0].stream
            self._moved_elsewhere(stream, self._retries.carry_out(runner))
            return True
        return super().turn(runner)

    def _moved_elsewhere(self, stream: str, at: m.At | None) -> None:
        """A retry appended in our name: its session goes on from there."""
        session = self.sessions.get(stream)
        if at and session:
            self._take_place(session.folder, session.meta, at, (0, 0))

    def meanwhile(self, runner: Runner, urgent: Sequence[Speech]) -> bool:
        return self.interim(runner, urgent)

    def ahead(self, runner: Runner, session: Speech) -> bool:
        self._most = self._catch_up.most(runner, session)
        return self._most > 1 and self._catch_up.look_ahead(runner, session, self._most)

    def at_once(self, session: Speech, found: Utterance) -> list[Utterance]:
        return session.waiting(self._most) if self._most > 1 else [found]

    def _infer(self, runner: Runner, session: Speech, works: Sequence[Utterance]) -> list[Step]:
        if len(works) > 1:
            return self._catch_up.infer(runner, session, works)
        return super()._infer(runner, session, works)

    def written(self, session: Speech, work: Utterance, step: Step, timed: Timed) -> None:
        self.delays.final(session, work, step, timed)

    def gap(self, work: Utterance) -> m.Gap:
        segment = m.segment_id(work.stream, work.speech[0])
        return m.Gap(span=work.speech, reason="failed", retryable=True, segment=segment)
