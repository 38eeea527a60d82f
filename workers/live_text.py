"""Interim text of the live streams: whose turn it is, one bounded look at an utterance under way, what is told.

Only when nothing finished waits, only under the lease, and never more than two thirds of the work thread's time: what
suffers first when there is too much to do is this text, never a final, whose decoding knows nothing of it. Nothing is
kept: after a kill the words of the utterance under way are found again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from common import messages as m
from common.settings import TranscriberSettings
from workers.interim import PAUSE, Interim, LeftOut, Piece, Shown, UnderWay
from workers.tenancy import NotCarriedOut

if TYPE_CHECKING:
    from workers.base import Runner
    from workers.session import Speech

PLACE = m.SAMPLE_RATE // 50  # samples of a place of the encoder
REST = 0.5  # of the time that a look took
Glimpse = Generator[None, None, tuple[Sequence[Piece], str]]


class Looker(Protocol):
    """What brings the model."""

    def glimpse(self, state: bytes, now: UnderWay, upto: int, known: Interim) -> Glimpse:
        """What follows the stable words in the audio before `upto`, and the language. Bounded pieces."""


class LiveText:
    """One `Interim` for each stream with somebody speaking."""

    def __init__(
        self, looker: Looker, settings: TranscriberSettings, told: Callable[[Speech, UnderWay], None] | None = None
    ) -> None:
        self._looker, self._told = looker, told
        self._every = round(settings.interim_every_s * m.SAMPLE_RATE) if settings.interim else 0
        self._streams: dict[str, Interim] = {}
        self._rest_until = 0.0
        self._left_out = LeftOut(settings.interim_every_s)

    def turn(self, runner: Runner, sessions: Sequence[Speech]) -> bool:
        """One look at the first of these streams that is due; False: none is."""
        if not self._every or (runner.ready and time.monotonic() < self._rest_until):
            return False
        for session in sessions:
            now = None if session.meta.ended else session.under_way()
            if now is None:
                if runner.ready:  # else its final is still to come
                    self._streams.pop(session.meta.stream, None)
                continue
            known = self._streams.get(now.stream)
            if known is None or known.start != now.start:
                known = self._streams[now.stream] = Interim(now.start, now.onset)
            if not runner.ready:
                known.away = True
            elif (upto := known.due(now, self._every)) and self._look(runner, session, now, upto, known):
                return True
        return False

    def final(self, stream: str, speech: m.Span) -> None:
        """An utterance of a live stream has its final text."""
        if self._every and speech[1] - speech[0] >= 2 * self._every:
            known = self._streams.get(stream)
            known = known if known and known.start == speech[0] else None
            if known and known.away and not known.looks:
                return  # finals were not the reason: there was nothing to look with
            spoken_s = (speech[1] - speech[0]) / m.SAMPLE_RATE
            self._left_out.final(time.monotonic(), known.looks if known else 0, spoken_s)

    def note(self) -> str:
        """What was left out for finals, for people."""
        return self._left_out.note(time.monotonic())

    def _look(self, runner: Runner, session: Speech, now: UnderWay, upto: int, known: Interim) -> bool:
        if not runner.poison.begin(f"{now.stream} interim", now.start):
            return False  # this utterance has ended it too often: its final will do
        runner.phase = "inferring"
        began = time.monotonic()
        known.looked(upto)  # also when the GPU has to be given back: it is not made up for
        try:
            found = runner.step(self._looker.glimpse(session.at.state, now, upto, known))
        except NotCarriedOut:
            runner.poison.failed(counts=False)
            raise
        except Exception:
            failures = runner.poison.failed()
            runner.log.exception("interim text failed", stream=now.stream, start=now.start, failures=failures)
            raise
        ended = time.monotonic()
        self._rest_until = ended + REST * (ended - began)
        if found is None:
            runner.poison.failed(counts=False)
            return True
        pieces, known.language = found
        before, paused = known.shown, upto - now.voice_end >= PAUSE
        after = known.take(pieces, None if paused else (upto - now.start) // PLACE)
        if after != before:
            runner.tell(hypothesis(now, upto, after))
            if self._told and any(after):
                self._told(session, now)
        return True


def hypothesis(now: UnderWay, upto: int, shown: Shown) -> m.Hypothesis:
    """Its revision is how far it has heard, so it rises over a restart too."""
    return m.Hypothesis(
        stream=now.stream,
        segment=m.segment_id(now.stream, now.start),
        revision=upto - now.start,
        span=(now.start, upto),
        stable=shown.stable,
        unstable=shown.unstable,
    )
