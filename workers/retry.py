"""`swapscribe retry`: gaps of failed steps are processed again, because a person asked by a Retry event.

Its position is the seq of the last Retry carried out, so a kill in the middle goes on with what is left. Each gap is
superseded, by text or by the next gap: what fails again is not tried for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from common import backlog, wire
from common import messages as m
from common.feed_client import FeedClient, replay
from common.process import Process
from common.settings import Settings
from workers.steps import Step
from workers.tenancy import NotCarriedOut

ANSWER_S = 1.0  # for the feed, before leases are looked at

if TYPE_CHECKING:
    from workers.base import Runner
    from workers.captioner import Captioner


class Retries:
    """Hears Retry events and carries them out, one gap at a time."""

    def __init__(self, process: Process, worker: Captioner) -> None:
        self.process, self.worker = process, worker
        self.settings, self.log = process.settings, process.log
        self.waiting: list[m.Event] = []
        self._client = FeedClient(self.settings, kinds=("retry",))

    def look(self) -> None:
        self.waiting += [e for e in self._client.poll(0.0) if isinstance(e, m.Event) and e.kind == "retry"]

    def carry_out(self, runner: Runner) -> m.At | None:
        """Supersede the next retryable gap that the oldest one is about; it is done when there is none left.

        Returns the place afterwards, None when nothing could be done now (the GPU was needed elsewhere, a stop).
        """
        event = min(self.waiting, key=lambda e: e.seq)
        body, stream = event.decode(), event.stream
        at = runner.commit(stream, -1, None)
        if at is None:
            return None
        gap = None
        # One behind the head is of another journal. Its seq as our position would hide what is asked for in this one.
        if isinstance(body, m.Retry) and at.positions.get("retry", 0) < event.seq <= at.head:
            gap = self._failed_before(runner, event.seq, stream, body.span)
            if self.process.stopping:
                return None
            superseding = self._again(runner, stream, gap, event.seq) if gap else None
            if gap and superseding is None:
                return None
            events = (superseding,) if superseding else ()
            positions = {} if gap else {"retry": event.seq}
            at = runner.commit(stream, at.n, Step(positions=positions, events=events, state=at.state))
        if gap is None:
            self.waiting.remove(event)
        return at

    def _failed_before(self, runner: Runner, seq: int, stream: str, span: m.Span) -> m.Gap | None:
        """The first gap that the Retry event `seq` is about and nothing has superseded since."""
        said = False
        while not self.process.stopping:
            try:
                return next(iter(open_gaps(self.settings, stream, span, seq)), None)
            except wire.Unreachable:
                if not said:
                    self.log.warning("feed does not answer; the retry waits", stream=stream)
                said = True
                runner.edge()
        return None

    def _again(self, runner: Runner, stream: str, gap: m.Gap, seq: int) -> m.Body | None:
        after = {"revision": gap.revision + 1, "supersedes": f"{gap.segment}/{gap.revision}"}
        try:
            pcm = backlog.Reader(self.settings.streams / stream).samples(gap.span)
        except OSError as e:
            self.log.warning("cannot retry; the gap stays", stream=stream, span=gap.span, error=str(e))
            return msgspec.structs.replace(gap, **after)
        if pcm is None:
            self.log.warning("cannot retry: the audio is gone", stream=stream, span=gap.span)
            return msgspec.structs.replace(gap, reason="failed; its audio is gone", retryable=False, **after)
        if runner.poison.begin(f"{stream} retry {seq}", gap.span[0]):  # a person asked: counted anew
            try:
                done = runner.step(self.worker.again(stream, gap, pcm))
            except NotCarriedOut:
                runner.poison.failed(counts=False)
                raise
            except Exception:
                runner.poison.failed()
                self.log.exception("retry failed; the gap stays", stream=stream, span=gap.span)
            else:
                if done is None:
                    runner.poison.failed(counts=False)
                    return None
                self.log.info("gap superseded", stream=stream, span=gap.span)
                return done
        else:
            self.log.warning("gave up again; the gap stays", stream=stream, span=gap.span)
        return msgspec.structs.replace(gap, **after)


def open_gaps(settings: Settings, stream: str, span: m.Span, before: int) -> list[m.Gap]:
    """Retryable gaps of `stream` touching `span`, journaled before event `before`, not superseded yet; in order."""
    newest: dict[str, tuple[int, m.EventBody]] = {}
    for event in replay(settings, kinds=("gap", "transcript", "suppressed"), stream=stream, timeout_s=ANSWER_S):
        body = event.decode()
        if isinstance(body, m.Gap | m.Transcript | m.Suppressed) and body.segment:
            known = newest.get(body.segment)
            if known is None or body.revision >= known[1].revision:  # type: ignore[union-attr]
                newest[body.segment] = (event.seq, body)
    gaps = [b for seq, b in newest.values() if isinstance(b, m.Gap) and b.retryable and seq < before]
    return sorted((g for g in gaps if g.span[0] < span[1] and span[0] < g.span[1]), key=lambda g: g.span)
