"""One clustering of all that was heard of a stream, in a thread of its own: the work thread must obey leases meanwhile.

In: the windows kept on disk, the turns that the journal has, the voices as of the position. Out: relabels, turns with
better boundaries, the voices that later windows are matched to. Reads only; whoever asked appends what comes of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import groupby

from common import messages as m
from common import wire
from common.feed_client import replay
from common.settings import Settings
from workers.clustering import Settled, settle
from workers.kept_windows import KeptWindows
from workers.relabels import relabelled
from workers.turns import Turn
from workers.voices import Voices
from workers.windows import Window

ANSWER_S = 5.0


class Settling(threading.Thread):
    """See the module. `outcome` once it is not alive any more."""

    def __init__(
        self,
        settings: Settings,
        producer: str,
        stream: str,
        upto_n: int,
        voices: Voices,
        kept: KeptWindows,
        final: bool,
    ) -> None:
        super().__init__(name="settling", daemon=True)
        self._settings, self._producer, self._stream, self._upto_n = settings, producer, stream, upto_n
        self._voices, self._kept, self._final = voices, kept, final
        self._settled: Settled | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            kinds = ("speaker_turn", "relabel")
            events = replay(self._settings, kinds=kinds, stream=self._stream, timeout_s=ANSWER_S)
            turns = turns_told(e for e in events if e.producer == self._producer and e.n <= self._upto_n)
            windows = [Window.decode(record) for record in self._kept.newest()]
            self._settled = settle(windows, turns, self._voices, self._voices.rules, self._final)
        except wire.Unreachable:
            pass  # the next try
        except BaseException as e:
            self._error = e

    def outcome(self) -> Settled | None:
        """None: the feed did not answer. Raises what went wrong, so that it counts: nothing else waits for a disk or
        for memory as long as this could."""
        if isinstance(self._error, OSError | MemoryError):
            raise RuntimeError(f"no clustering: {self._error!r}") from self._error
        if self._error:
            raise self._error
        return self._settled


def turns_told(events: Iterable[m.Event]) -> list[Turn]:
    """The turns of a stream as they are labelled after all relabels of later appends; by start."""
    turns = list[Turn]()
    for _, append in groupby(events, lambda e: e.n):
        bodies = [e.decode() for e in append]
        if relabels := [b for b in bodies if isinstance(b, m.Relabel)]:
            turns = relabelled(turns, relabels)
        turns += [Turn(b.span, b.speaker) for b in bodies if isinstance(b, m.SpeakerTurn)]
    return sorted(turns)
