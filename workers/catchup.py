"""Catching up: how many finished utterances go to the model at once, and who finds them.

In: how late a stream is, what its session has found, what ended badly before. Out: steps in order, each of which is an
append of its own, so that a kill between two loses and doubles nothing. Whatever ends badly at once is done one by one;
so is what took so long that the GPU had to be given back before any of it was done, or it would begin for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING

from common import messages as m
from common.settings import TranscriberSettings
from workers.steps import Step
from workers.tenancy import NotCarriedOut

if TYPE_CHECKING:
    from workers.base import Runner
    from workers.captioner import Captioner
    from workers.session import Speech, Utterance

READY_SAMPLES = 30 * m.SAMPLE_RATE  # looked ahead at a time
AWAY_SAMPLES = 5 * m.SAMPLE_RATE  # the same while the model is away: a lease must not wait for long


def how_many(late_s: float, s: TranscriberSettings) -> int:
    """Utterances at once: one more for each `batch_lag_s` that captions are late; one when they are not."""
    return max(1, min(s.batch_most, int(late_s / s.batch_lag_s)))


class CatchUp:
    """Several utterances of one stream at once. `most` of 1 is what goes on without it."""

    def __init__(self, worker: Captioner) -> None:
        self.worker, self.log = worker, worker.log
        self._alone: dict[str, int] = {}  # stream -> sample before which it goes one by one

    def most(self, runner: Runner, session: Speech) -> int:
        """How many go to the model at once now: one by one where doing otherwise has ended badly."""
        try:
            most = self.worker.together(session, self.worker.late_s(session))
        except OSError:
            return 1  # its folder is going away
        alone = self._alone.get(session.meta.stream, 0)
        if most > 1 and session.position < max(alone, runner.poison.ended_badly(self._what(session))):
            return 1
        return most

    def only(self, streams: Collection[str]) -> None:
        """Others are over: forget what is known of them."""
        self._alone = {name: upto for name, upto in self._alone.items() if name in streams}

    @staticmethod
    def _what(session: Speech) -> str:
        return f"{session.meta.stream} together"

    def look_ahead(self, runner: Runner, session: Speech, most: int) -> bool:
        """Find what is behind the utterance that waits. False: there is nothing, or enough is found."""
        samples = READY_SAMPLES if runner.ready else AWAY_SAMPLES
        runner.poison.begin(self._what(session), session.heard + samples, waits=True)
        try:
            return session.look_ahead(most, samples)
        except (OSError, MemoryError):
            return False  # it is met again when its turn comes
        except Exception:
            runner.poison.failed()
            raise

    def infer(self, runner: Runner, session: Speech, works: Sequence[Utterance]) -> list[Step]:
        """Their steps; the first of them when the GPU had to be given back, none when it failed: then one by one."""
        stream, span = session.meta.stream, (works[0].span[0], works[-1].span[1])
        runner.poison.begin(self._what(session), span[1], waits=True)
        runner.phase = "inferring"
        steps = list[Step]()

        def pieces() -> Generator[None, None, bool]:
            yield from self.worker.infer_all(session.at.state, works, steps)
            return True

        try:
            whole = runner.step(pieces(), self.worker.bytes_of(works))
        except NotCarriedOut:
            runner.poison.failed(counts=False)
            raise
        except Exception:
            runner.poison.failed()
            self.log.exception("step failed; utterances one by one", stream=stream, span=span, count=len(works))
            return []
        if not whole:
            runner.poison.failed(counts=False)
            if not steps:
                self._alone[stream] = span[1]
            return steps
        self._alone.pop(stream, None)
        self.log.info("utterances at once", stream=stream, count=len(steps), position=span[0])
        return steps
