"""How late captions are, stage by stage, over the last minutes. A worker tells it with its sign of life.

A final's way: `end` from the end of its last word until the audio that makes the end of the utterance certain (VAD),
`wait` until the decoder begins (capture, other work, no lease), `decode`, `commit`; `total` is their sum. `first_text`:
from the onset of the voice to the first text of the utterance. Audio was heard when the backlog's anchors say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from common import backlog
from common import messages as m
from workers.interim import UnderWay
from workers.session import Speech, Utterance
from workers.steps import Step
from workers.window import Window


class Timed(NamedTuple):
    """When work was at the decoder, monotonic clock."""

    began_s: float
    ended_s: float


def ago_s(sample: int, anchors: Sequence[backlog.Anchor], now: backlog.Anchor) -> float:
    """For how long `sample` has been heard, by the nearest anchor before it, else by the first.

    Within one boot by the clock that nobody sets, else by the wall clock. 0 without anchors.
    """
    if not anchors:
        return 0.0
    near = next((a for a in reversed(anchors) if a.sample <= sample), anchors[0])
    same = near.boot_id == now.boot_id
    since_ns = now.boot_ns - near.boot_ns if same else now.wall_ns - near.wall_ns
    return max(0.0, since_ns / 1e9 - backlog.seconds(sample - near.sample))


class Delays:
    """Windows by lane and stage: of a worker that puts out captions."""

    def __init__(self, span_s: float, interim: bool) -> None:
        self._span_s, self._interim = span_s, interim
        self._windows: dict[tuple[str, str], Window] = {}

    def add(self, lane: str, now: float, **stages: float) -> None:
        """Seconds of one output, by stage."""
        for stage, seconds in stages.items():
            window = self._windows.get((lane, stage))
            if window is None:  # replaced, not changed: another thread may be reading
                window = Window(self._span_s)
                self._windows = self._windows | {(lane, stage): window}
            window.add(seconds, now)

    def figures(self) -> tuple[m.Delay, ...]:
        now = time.monotonic()
        found = [(lane, stage, window.quantiles(now)) for (lane, stage), window in self._windows.items()]
        return tuple(
            m.Delay(lane=lane, stage=stage, count=q.of, p50_s=round(q.p50, 3), p95_s=round(q.p95, 3))
            for lane, stage, q in found
            if q
        )

    def final(self, session: Speech, work: Utterance, step: Step, timed: Timed) -> None:
        """The journal has just taken this step: what its transcript took, if it is one."""
        said = next((b for b in step.events if isinstance(b, m.Transcript)), None)
        if said is None:
            return
        now, lane = time.monotonic(), session.meta.lane
        decode, commit = timed.ended_s - timed.began_s, now - timed.ended_s
        if lane != "live":  # its audio was heard at no time
            self.add(lane, now, decode=decode, commit=commit)
            return
        anchors, clocks = backlog.last_anchors(session.folder), backlog.anchor_now(0)
        certain = work.certain or work.span[1]
        spoken = said.words[-1].span[1] if said.words else work.voiced[1]
        end = max(0.0, backlog.seconds(certain - spoken))
        wait = max(0.0, ago_s(certain, anchors, clocks) - decode - commit)
        self.add(lane, now, total=end + wait + decode + commit, end=end, wait=wait, decode=decode, commit=commit)
        if self._interim and session.told_of != work.speech[0]:  # nothing came before its final
            self.add(lane, now, first_text=ago_s(work.voiced[0], anchors, clocks))

    def text(self, session: Speech, now: UnderWay) -> None:
        """Text of an utterance under way was told: measured when it is the first."""
        if session.told_of == now.start:
            return
        session.told_of = now.start
        heard_s = ago_s(now.onset, backlog.last_anchors(session.folder), backlog.anchor_now(0))
        self.add(session.meta.lane, time.monotonic(), first_text=heard_s)
