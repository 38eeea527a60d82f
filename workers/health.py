"""Are captions flowing? Pure: beats and process states in, reasons and metrics out; the viewer asks and shows.

Green is not the absence of news: a feed unheard, audio that stands still and captions that come late each have a line.
Without a stream to caption there is nothing to complain of: `idle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common import delay_text
from common import messages as m
from common.settings import Settings, lane

UNHEARD_S = 3.0  # beats come each second
STILL_S = 5.0  # a live stream's audio grows, or capture is dead


class Health:
    """The newest word on every stream. `now` is a monotonic clock."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.red_lag_s = settings.viewer.red_lag_s
        self.live_sources = {s.name for s in settings.source if lane(s) == "live"}
        self.beat: m.Beat | None = None
        self.heard_s = now
        self.gpu: m.GpuState | None = None
        self.gpu_heard_s = now
        self.streams: dict[str, m.StreamBeat] = {}  # of the last beat, and what is unfinished: not all there ever were
        self.moved: dict[str, tuple[int, float]] = {}  # audio head of each stream, and since when it stands there
        self.begun: set[str] = set()  # live sources that have had a stream
        self.ended: set[str] = set()  # sources all of whose streams that we know of have ended

    def take(self, beat: m.Beat, now: float) -> None:
        same = self.beat is None or self.beat.journal == beat.journal
        # Replaced, not changed: the server's thread may be reading them.
        streams = (self.unfinished() if same else {}) | beat.streams
        stood = {n: (s.audio_head, self.moved.get(n, (-1, now))) for n, s in streams.items()}
        self.moved = {n: old if old[0] == head else (head, now) for n, (head, old) in stood.items()}
        self.streams = streams
        self.begun = (self.begun if same else set()) | self.live_sources & {s.source for s in beat.streams.values()}
        named = {s.source for s in beat.streams.values()}
        still_open = {s.source for s in streams.values() if not s.ended}
        self.ended = ((self.ended if same else set()) | named) - still_open
        self.beat, self.heard_s = beat, now

    def take_gpu(self, state: m.GpuState, now: float) -> None:
        self.gpu, self.gpu_heard_s = state, now

    def heard(self, now: float) -> bool:
        return self.beat is not None and now - self.heard_s <= UNHEARD_S

    def unfinished(self) -> dict[str, m.StreamBeat]:
        return {n: s for n, s in self.streams.items() if not s.ended or s.coverage.pending}

    def processes(self, alive: Mapping[str, bool]) -> dict[str, str]:
        """Each process: `down`, `up`, `ended` (a capture whose source came to its end), or what it says of itself."""
        said = {w.worker: f"{w.phase}; {w.note}" if w.note else w.phase for w in self._workers()}
        said |= {f"capture@{b.source}": b.state for b in self.beat.captures.values()} if self.beat else {}
        over = {f"capture@{source}": "ended" for source in self.ended}
        return {n: said.get(n, "up") if up else over.get(n, "down") for n, up in alive.items()}

    def reasons(self, alive: Mapping[str, bool], now: float) -> Iterator[str]:
        """Why captions are not flowing; nothing when they are, or when there is nothing to caption."""
        if self.beat is None or not self.heard(now):
            yield f"feed {'silent' if alive['feed'] else 'not running'} for {now - self.heard_s:.0f} s"
            return  # the rest would be old news
        if self.beat.trouble:
            yield f"feed: {self.beat.trouble}"
        for bell in self.beat.captures.values():
            if bell.state not in ("ok", "ended"):
                yield f"capture@{bell.source}: {bell.state.replace('_', ' ')} {bell.detail}".rstrip()
        for worker in self.beat.workers.values():
            if worker.detail:
                yield f"{worker.worker}: {worker.detail}"
        for source in sorted(self.live_sources - self.begun):
            if not alive[f"capture@{source}"]:
                yield f"capture@{source} has not begun"
        for name, s in self.streams.items():
            wanted = s.source in self.live_sources or alive.get(
                f"capture@{s.source}"
            )  # else it was left open by a kill
            still_s = now - self.moved.get(name, (0, now))[1]
            if wanted and s.lane == "live" and not s.ended and still_s > STILL_S:
                yield f"capture@{s.source}: no audio for {still_s:.0f} s"
            if s.lane == "live" and s.lag_s > self.red_lag_s:
                yield f"{name}: captions are {s.lag_s:.0f} s late"
        if not alive.get("arbiter", True) and (waits := self.wait_for_gpu()):
            yield f"arbiter is not running, and {', '.join(waits)} waits for the GPU"
        if not alive["transcriber"] and (self.live_sources or self.unfinished()):
            yield "transcriber is not running"

    def wait_for_gpu(self) -> list[str]:
        """Workers that wait for a lease: by the arbiter's last word, and by what they say now."""
        by_arbiter = {w.worker for w in self.gpu.workers if w.waits_s} if self.gpu else set()
        by_themselves = (
            {w.worker for w in self.beat.workers.values() if w.phase.startswith("waiting")} if self.beat else set()
        )
        return sorted(by_arbiter | by_themselves)

    def status(self, alive: Mapping[str, bool], now: float) -> dict[str, Any]:
        """What the page and /healthz show."""
        reasons, recent = list(self.reasons(alive, now)), self.beat.streams if self.beat else {}
        state = "red" if reasons else "ok" if self.unfinished() else "idle"
        streams = recent | self.unfinished()
        gpu = self.gpu if now - self.gpu_heard_s <= UNHEARD_S else None
        return {
            "state": state,
            "reasons": reasons,
            "streams": streams,
            "processes": self.processes(alive),
            "gpu": gpu,
            "delays": [line for w in self._workers() for line in delay_text.lines(w)],
        }

    def _workers(self) -> list[m.WorkerStatus]:
        return list(self.beat.workers.values()) if self.beat else []

    def metrics(self, alive: Mapping[str, bool]) -> Iterator[Metric]:
        lag = GaugeMetricFamily("swapscribe_lag_seconds", "How late captions are", labels=["stream"])
        share = GaugeMetricFamily("swapscribe_coverage_samples", "Samples by class", labels=["stream", "class"])
        appends = CounterMetricFamily("swapscribe_appends", "Appends", labels=["producer", "stream"])
        up = GaugeMetricFamily("swapscribe_process_up", "1 while the process runs", labels=["process"])
        head = GaugeMetricFamily("swapscribe_seq_head", "Newest event", value=self.beat.head if self.beat else 0)
        for name, s in self.streams.items():
            lag.add_metric([name], s.lag_s)
            for klass, samples in msgspec.structs.asdict(s.coverage).items():
                share.add_metric([name, klass], samples)
            for producer, place in s.producers.items():
                appends.add_metric([producer, name], place.n)
        delay = GaugeMetricFamily(
            "swapscribe_delay_seconds",
            "How long output took of the last viewer.delays_over_s, by stage",
            labels=["worker", "lane", "stage", "quantile"],
        )
        for w in self._workers():
            for d in w.delays:
                delay.add_metric([w.worker, d.lane, d.stage, "0.5"], d.p50_s)
                delay.add_metric([w.worker, d.lane, d.stage, "0.95"], d.p95_s)
        for name, yes in alive.items():
            up.add_metric([name], yes)
        yield from (lag, share, appends, up, head, delay)
        yield from self.gpu_metrics()

    def gpu_metrics(self) -> Iterator[Metric]:
        if self.gpu is None:
            return
        size = GaugeMetricFamily("swapscribe_gpu_bytes", "Memory of the GPU", labels=["what"])
        state = GaugeMetricFamily(
            "swapscribe_gpu_worker", "Where a GPU worker stands", labels=["worker", "state", "residency"]
        )
        leased = GaugeMetricFamily("swapscribe_gpu_worker_bytes", "Leased bytes", labels=["worker"])
        waits = GaugeMetricFamily("swapscribe_gpu_wait_seconds", "How long it waits for the GPU", labels=["worker"])
        for what in ("total", "used", "foreign", "cap", "counted"):
            size.add_metric([what], getattr(self.gpu, f"{what}_bytes"))
        for w in {w.worker: w for w in self.gpu.workers}.values():  # the newest life of each
            state.add_metric([w.worker, w.state, w.residency], 1)
            leased.add_metric([w.worker], w.bytes)
            waits.add_metric([w.worker], w.waits_s)
        swaps = CounterMetricFamily("swapscribe_gpu_swaps", "Bursts that made others leave", value=self.gpu.swaps)
        yield from (size, state, leased, waits, swaps)
