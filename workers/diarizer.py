"""The diarizer: audio of the backlog in, who speaks when out; speakers keep their ids while a stream goes on.

Scan: `hops` finds with Silero VAD where somebody speaks. Infer: two networks hear a window of ten seconds there
(`speaker_models`), `voices` matches whom they tell apart to the voices of the stream; turns that later windows would
not change go to the journal, with the voices' centroids as the state of the position. From time to time everything
heard so far is clustered anew (`settling`), and relabels say what was wrong. Turns are a function of samples and
settings, wherever it was killed; only where it, or the captions, are late, its steps grow (`stride`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from common import backlog, models, voiceprints, wire
from common import messages as m
from common.process import Process, arguments, give_way, main
from common.settings import SpeakerSettings
from common.voiceprints import Voiceprint
from workers import vad
from workers._torch import set_up
from workers.base import Runner
from workers.delays import Delays, Timed, ago_s
from workers.hearing import Hearing
from workers.hops import Hearer, Hop, Hops, State, heard_by, told, unpack, voices_of
from workers.kept_windows import KeptWindows
from workers.recognised import recognised
from workers.settling import Settling
from workers.steps import Step
from workers.stride import note, stride
from workers.voices import Rules
from workers.windows import on_grid

if TYPE_CHECKING:
    from workers.speaker_models import Ears

NICE = 5  # captions come first; but a piece of its work must end before others would have the GPU
NOBODY_S = 3600.0  # of silence, as far as it is asked
HEARD_WITHIN_S = 3.0  # a beat older than that says nothing of how late captions are

_beat = msgspec.msgpack.Decoder(m.Beat)


class HeardStep(Step, frozen=True, kw_only=True):
    """A step that heard a window, which is kept."""

    upto: int = 0
    record: bytes = b""


class Diarizer(Hearing[Hops, Hop]):
    """Windows of all streams to the two networks; whom they hear to the journal."""

    name = "diarizer"
    ears: Ears

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.s: SpeakerSettings = process.settings.speakers
        self.hearer: Hearer
        self._windows: dict[str, KeptWindows] = {}
        self._delays = Delays(self.settings.viewer.delays_over_s, interim=False)
        self._beats = wire.subscriber([wire.ipc(self.settings, "pub")], ["beat"], hwm=10)
        self._captions_late_s, self._captions_heard_s = 0.0, 0.0
        self._known: list[Voiceprint] = []
        self._prints_ns = 0

    def load(self, process: Process) -> Sequence[Any]:
        folder = models.available(process.settings, self.s.model, check=True)
        vad_folder = models.available(process.settings, "silero_vad", check=True)
        torch = set_up(self.s.threads, process.settings.cache)
        from workers import speaker_models

        self.ears = speaker_models.load(torch, folder)
        self._sha256 = models.stored(folder).sha256
        self.hearer = Hearer(
            vad=vad.Vad(torch, vad_folder),
            model=f"{self.s.model} {self._sha256[:16]}",
            rules=Rules(most=self.s.max, threshold=self.s.threshold),
            hop=on_grid(self.s.hop_s * m.SAMPLE_RATE),
            voiced_from=self.settings.transcriber.vad_threshold - vad.HYSTERESIS,
            settle_every=round(self.s.settle_every_s * m.SAMPLE_RATE),
        )
        return list(self.ears.modules)

    def key(self) -> str:
        return f"{self.s.model} {self._sha256} threads={self.s.threads}"

    def working_bytes(self) -> int:
        return self.ears.working_bytes()

    def rehearse(self) -> Iterator[None]:
        return self.ears.rehearse()

    # Streams

    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Hops:
        kept = self._kept(meta.stream)
        if unpack(at.state).model in ("", self.hearer.model):
            kept.cut(at.positions.get("audio", 0))
        else:
            kept.remove()  # of another model: they have nothing to do with ours
        return Hops(folder, meta, at, self.hearer, self._stride, self._settling)

    def _kept(self, stream: str) -> KeptWindows:
        return self._windows.setdefault(stream, KeptWindows(self.settings.windows(stream)))

    def _settling(self, session: Hops) -> Settling:
        stream = session.meta.stream
        voices, kept = session.voices(), self._kept(stream)
        return Settling(self.settings, self.name, stream, session.at.n, voices, kept, session.state.over)

    def ended(self, stream: str) -> None:
        self._kept(stream).remove()
        del self._windows[stream]

    def urgent(self, session: Hops) -> bool:
        """Who came late to a stream that is over (it was off, say) has time for that."""
        return session.meta.lane == "live" and not session.meta.ended

    # How late everything is

    def look(self, runner: Runner, now: float) -> None:
        while frames := wire.receive(self._beats):
            beat = _beat.decode(frames[-1])
            live = [s.lag_s for s in beat.streams.values() if s.lane == "live" and not s.ended]
            self._captions_late_s, self._captions_heard_s = max(live, default=0.0), now
        super().look(runner, now)

    def _stride(self, session: Hops) -> int:
        if not self.urgent(session):
            return 1
        known = time.monotonic() - self._captions_heard_s <= HEARD_WITHIN_S
        return stride(self.late_s(session), self._captions_late_s if known else 0.0, self.s)

    def note(self) -> str:
        return note([s.stride for s in list(self.sessions.values()) if self.urgent(s)], self.s.hop_s)

    def late(self) -> float:
        return 0.0  # no burst is put off or cut short for it: its steps grow. How late it really is, the beat says

    def silence_s(self) -> float:
        return NOBODY_S  # whether somebody speaks is for the transcriber to say

    def delay_figures(self) -> tuple[m.Delay, ...]:
        return self._delays.figures()

    # Work

    def infer(self, state: bytes, work: Hop) -> Generator[None, None, Step]:
        before = unpack(state)
        voices = voices_of(before, self.hearer)
        turns = voices.take(None, work.quiet) if work.quiet else []
        pcm = np.frombuffer(work.pcm, "<i2").astype(np.float32) / 32768.0
        window = yield from self.ears.hear(pcm, work.start, voices.wants)
        turns += voices.take(window, work.upto)
        turns += voices.finish(work.span[1]) if work.last else []
        names = recognised(voices.known(), self._prints(), before.named)
        more = {"windows": before.windows + 1, "named": before.named | names}
        after = self._after(before, work, **more, **heard_by(voices, self.hearer))
        named = tuple(m.SpeakerName(speaker=speaker, name=name) for speaker, name in names.items())
        return HeardStep(
            positions={"audio": work.span[1]},
            events=(*told(turns), *named),
            state=m.encode(after),
            upto=work.upto,
            record=window.encode(),
        )

    def _prints(self) -> list[Voiceprint]:
        """Of people whom somebody enrolled with this model. Read again when one was added or is gone."""
        try:
            changed_ns = voiceprints.folder(self.settings).stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed_ns != self._prints_ns:
            self._known = [p for p in voiceprints.read(self.settings) if p.model == self.s.model]
            self._prints_ns = changed_ns
        return self._known

    def _after(self, before: State, work: Hop, **more: Any) -> State:
        return msgspec.structs.replace(before, vad=work.vad, over=work.last, **more)

    def skipped(self, state: bytes, work: Hop, gap: m.Gap) -> Step:
        before = unpack(state)
        voices = voices_of(before, self.hearer)
        turns = voices.take(None, work.upto)
        turns += voices.finish(work.span[1]) if work.last else []
        after = self._after(before, work, **heard_by(voices, self.hearer))
        return Step(positions={"audio": work.span[1]}, events=(*told(turns), gap), state=m.encode(after))

    def keep(self, session: Hops, step: Step) -> None:
        if isinstance(step, HeardStep):
            self._kept(session.meta.stream).add(step.upto, step.record)

    def written(self, session: Hops, work: Hop, step: Step, timed: Timed) -> None:
        if not self.urgent(session):
            return
        anchors, clocks = backlog.last_anchors(session.folder), backlog.anchor_now(0)
        for body in step.events:
            if isinstance(body, m.SpeakerTurn):
                self._delays.add("live", time.monotonic(), turn=ago_s(body.span[1], anchors, clocks))


def run(process: Process) -> None:
    give_way(NICE)  # before anything is loaded: captions must not start later because of it
    Runner(process, Diarizer(process)).run()


if __name__ == "__main__":
    main("diarizer", run, arguments(__doc__ or ""))
