"""A whole system for tests: `swapscribe run-all` as real processes, a subscriber, and what the journal must hold.

    system = System(processes, settings, Source(name="talk", kind="file", path=...))
    system.start(); end = system.ended(); assert_whole(system.journal(), end.stream)

Two journals hold the same words when `content` of both is equal: bodies in order, the stream's name left out.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common import messages as m
from common import models, wire
from common.feed_client import FeedClient, replay
from common.fetch import fetch
from common.process import holder, signal_holder, wait_gone
from common.settings import Settings, Source, SpeakerSettings, TranscriberSettings, UserError
from common.topology import TRANSLATOR
from tests.capture_helpers import audio_of
from tests.conftest import ROOT, Processes, Started, clean_environment, wait_for
from tests.speech import RATE, Samples, samples, write_wav

RECORDING = ROOT / "examples" / "recording.flac"  # 44 s of speech
TILES = ("transcript", "silence", "suppressed", "gap")  # kinds whose spans classify the audio


class System:
    """One data folder, its launcher, and everything that the launcher starts."""

    def __init__(
        self,
        processes: Processes,
        settings: Settings,
        *sources: Source,
        program: str = "common.cli",
        summaries: bool = False,  # they take seconds of a core each
        speakers: bool = False,  # they take a part of a core
        targets: tuple[str, ...] = (),  # languages that captions are translated to
    ) -> None:
        viewer = msgspec.structs.replace(settings.viewer, port=0)
        summary = msgspec.structs.replace(settings.summary, enabled=summaries)
        who = msgspec.structs.replace(settings.speakers, enabled=speakers)
        into = msgspec.structs.replace(settings.translate, targets=targets or settings.translate.targets)
        self.settings = msgspec.structs.replace(
            settings, source=sources, viewer=viewer, summary=summary, speakers=who, translate=into
        )
        self.more_weights = (self.settings.speakers.model,) * speakers + into.models * bool(into.targets)
        self.run = wire.run_dir(self.settings)
        self.processes = processes
        self._argv = [sys.executable, "-m", program, "--config", str(processes.config(self.settings))]
        self.launcher: Started

    def start(self, **popen: Any) -> Started:
        """Start the launcher; again after its kill."""
        weights(*self.more_weights)
        self.launcher = self.processes.spawn([*self._argv, "run-all"], "run-all", **popen)
        return self.launcher

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`swapscribe ARGS` on this system."""
        argv = [self._argv[0], "-m", "common.cli", *self._argv[3:], *args]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)

    def pid(self, name: str) -> int | None:
        """Pid of the process that holds this name now."""
        return holder(self.run, name)

    def up(self, name: str, timeout_s: float = 30.0, but: int = 0) -> int:
        """Wait until a process holds this name, other than pid `but`."""
        return wait_for(lambda: (pid := self.pid(name)) != but and pid, timeout_s, f"{name} to be up") or 0

    def kill(self, name: str) -> int:
        """kill -9 of the holder of this name, as soon as there is one; returns its pid once it is dead."""
        if name == "launcher":
            self.launcher.kill()
            return self.launcher.pid
        pid = self.signal(name, signal.SIGKILL)
        assert wait_gone(pid, 10.0), f"{name} (pid {pid}) outlives SIGKILL"
        return pid

    def signal(self, name: str, number: int) -> int:
        """Signal the holder of this name, as soon as there is one; returns its pid."""
        return wait_for(lambda: signal_holder(self.run, name, number), 30.0, f"{name} to be up") or 0

    def stop(self) -> None:
        """The graceful end that Ctrl-C is."""
        assert self.launcher.stop(90.0) == 0, self.launcher.output()

    def log(self, name: str) -> str:
        return (self.settings.data / "logs" / f"{name}.log").read_text(errors="replace")

    def journal(self, stream: str | None = None) -> list[m.Event]:
        return list(replay(self.settings, stream=stream))

    def state_hash(self, upto: int = -1) -> m.Hash:
        """What the feed itself says about the first `upto` events."""
        asker = wire.Requester(wire.ipc(self.settings, "replay"))
        try:
            answer = asker.request(m.StateHash(upto=upto), 10.0)
        finally:
            asker.close()
        assert isinstance(answer, m.Hash), answer
        return answer

    def ended(self, timeout_s: float = 120.0) -> m.Event:
        """Wait until a stream has ended in the journal; returns its StreamEnded event."""
        follower = Following(self.settings)
        try:
            return follower.wait("stream_ended", timeout_s)
        finally:
            follower.close()


class Following:
    """A subscriber that is connected throughout and keeps everything, in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.events: list[m.Event] = []  # in the order in which the client handed them out
        self.hypotheses: list[m.Hypothesis] = []
        self.last_beat: m.Beat | None = None
        self.error: BaseException | None = None
        self._client = FeedClient(settings, keep=True, hypotheses=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                got = self._client.poll(0.1)
                self.events += [e for e in got if isinstance(e, m.Event)]
                self.hypotheses += [h for h in got if isinstance(h, m.Hypothesis)]
                self.last_beat = self._client.last_beat
        except BaseException as e:
            self.error = e

    def find(self, kind: str) -> m.Event | None:
        assert self.error is None, self.error
        return next((e for e in self.events[:] if e.kind == kind), None)

    def wait(self, kind: str, timeout_s: float = 60.0) -> m.Event:
        """The first event of this kind, once it is here."""
        event = wait_for(lambda: self.find(kind), timeout_s, f"an event {kind}")
        assert event
        return event

    def wait_interim(self, timeout_s: float = 60.0) -> None:
        """Until there is interim text. Whether more follows is not promised: finals come first on a busy machine."""
        wait_for(lambda: self.error or self.hypotheses, timeout_s, "interim text")
        assert self.error is None, self.error

    def wait_seq(self, seq: int, timeout_s: float = 20.0) -> None:
        """Wait until everything up to `seq` is here."""
        wait_for(lambda: self.error or (self.events and self.events[-1].seq >= seq), timeout_s, f"event {seq}")
        assert self.error is None, self.error

    def state_hash(self, upto: int) -> str:
        """Closes the subscriber; the hash of what it holds."""
        self.close()
        assert self._client.store
        return self._client.store.state_hash(upto)

    def close(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._client.close()


@cache
def weights(*more: str) -> None:
    """The models that the default settings need, and these."""
    for name in (TranscriberSettings().model, "silero_vad", *more):
        try:
            models.available(Settings(), name)
        except UserError:
            fetch(Settings(), [name])


def recording_text() -> str:
    """The words of RECORDING."""
    lines = RECORDING.with_suffix(".txt").read_text().splitlines()
    return " ".join(line.split("\t")[2] for line in lines)


def body(event: m.Event) -> Any:
    decoded = event.decode()
    assert decoded is not None, event
    return decoded


def content(events: list[m.Event], stream: str, kinds: tuple[str, ...] = TILES) -> list[str]:
    """Bodies of these kinds as JSON lines in journal order, with the stream's name replaced by `STREAM`."""
    mine = [e for e in events if e.stream == stream and e.kind in kinds]
    return [msgspec.json.encode(body(e)).decode().replace(stream, "STREAM") for e in mine]


def text(events: list[m.Event], stream: str) -> str:
    """All captions of a stream as one text, superseded ones left out."""
    newest = {body(e).segment: body(e) for e in events if e.stream == stream and e.kind == "transcript"}
    return " ".join(t.text for t in sorted(newest.values(), key=lambda t: t.span))


def assert_whole(events: list[m.Event], stream: str) -> int:
    """What every finished stream's journal must hold; returns the stream's end.

    Contiguous seq, right `prev`, each append once; begun and ended once; every sample in exactly one tile.
    """
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    last: dict[tuple[str, str], int] = {}
    for e in events:
        assert e.prev == last.get((e.stream, e.kind), 0), e
        last[e.stream, e.kind] = e.seq
    mine = [e for e in events if e.stream == stream]
    appends = [e.n for e in mine if e.producer == "transcriber"]
    assert appends == sorted(appends)
    kinds = [e.kind for e in mine]
    assert kinds.count("stream_started") == kinds.count("stream_ended") == 1
    # (The diarizer may have been faster with what it heard.)
    assert next(e.kind for e in mine if e.producer == "transcriber") == "stream_started"
    end: int = body(next(e for e in mine if e.kind == "stream_ended")).end
    tiles = [body(e) for e in mine if e.kind in TILES]
    ids = [(t.segment, t.revision) for t in tiles if getattr(t, "segment", "")]
    assert len(ids) == len(set(ids)), "a segment was written twice"
    at = 0
    for span in sorted(t.span for t in tiles if getattr(t, "supersedes", None) is None):
        assert span[0] == at < span[1], f"samples {at} to {span[0]} have no class, or two"
        at = span[1]
    assert at == end
    return end


def quiet(seconds: float, seed: int = 1) -> Samples:
    """A quiet room: noise at about -76 dBFS."""
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(rng.standard_normal(round(seconds * RATE)) * 5), -32768, 32767).astype(np.int16)


def told(events: list[m.Event], stream: str, *producers: str) -> list[tuple[str, int]]:
    """All that these wrote of a stream, with its name replaced by `STREAM`, each with the number of its append."""
    mine = [e for producer in producers for e in events if (e.stream, e.producer) == (stream, producer)]
    return [(msgspec.json.encode(body(e)).decode().replace(stream, "STREAM"), e.n) for e in mine]


def turns_told(events: list[m.Event], stream: str) -> list[tuple[str, int]]:
    """All that the diarizer wrote."""
    return told(events, stream, "diarizer")


def translations_told(events: list[m.Event], stream: str, targets: tuple[str, ...]) -> list[tuple[str, int]]:
    """All that the translator wrote."""
    return told(events, stream, *(f"{TRANSLATOR}.{target}" for target in targets))


def heard(stream: str, beat: m.Beat | None) -> bool:
    """The diarizer has told all that it ever will."""
    places = beat.streams[stream].producers if beat and stream in beat.streams else {}
    return "diarizer" in places and places["diarizer"].positions.get("meta") == 2


def translated(stream: str, beat: m.Beat | None, targets: tuple[str, ...]) -> bool:
    """The translator has, too."""
    if not beat or stream not in beat.streams or "stream_ended" not in beat.streams[stream].heads:
        return False
    s = beat.streams[stream]
    places = [s.producers.get(f"{TRANSLATOR}.{target}") for target in targets]
    return all(p is not None and p.positions.get("transcript", 0) >= s.heads["stream_ended"] for p in places)


def done_to_the_end(system: System, stream: str, timeout_s: float = 120.0) -> None:
    """Wait until the diarizer and the translator, as far as the system has them, have come to a stream's end."""
    client = FeedClient(system.settings, kinds=())
    speakers, targets = system.settings.speakers.enabled, system.settings.translate.targets

    def over() -> bool:
        client.poll(0.1)
        beat = client.last_beat
        return (heard(stream, beat) or not speakers) and translated(stream, beat, targets)

    try:
        wait_for(over, timeout_s, "speakers and translations to come to the end")
    finally:
        client.close()


def one_by_one(settings: Settings) -> Settings:
    """Without catching up: the same captions, turns and translations whenever the workers get to them."""
    return msgspec.structs.replace(
        settings,
        transcriber=msgspec.structs.replace(settings.transcriber, batch_most=1),
        speakers=msgspec.structs.replace(settings.speakers, longest_hop_s=settings.speakers.hop_s),
        translate=msgspec.structs.replace(settings.translate, batch_most=1),
    )


def with_interim(settings: Settings, wanted: bool = True) -> Settings:
    """Text of what is being said before its final."""
    return msgspec.structs.replace(settings, transcriber=msgspec.structs.replace(settings.transcriber, interim=wanted))


def file_source(path: Path, pace: str, name: str = "talk") -> Source:
    return Source(name=name, kind="file", path=str(path), pace=pace)


def compose(path: Path, repeats: int = 1) -> None:
    """Real speech, a long pause, speech backwards (sound that is no language), and the speech again."""
    speech = samples(RECORDING)
    backwards = speech[2 * RATE : 9 * RATE][::-1]
    write_wav(path, speech, *[quiet(9.3), backwards, quiet(2.1), speech] * repeats, quiet(1.7))


class Undisturbed:
    """The clip, and what the journal of a run without any disturbance holds."""

    def __init__(
        self,
        folder: Path,
        repeats: int = 1,
        clip: Path | None = None,
        timeout_s: float = 0.0,
        speakers: SpeakerSettings | None = None,  # None: nobody listens for them
        targets: tuple[str, ...] = (),
    ) -> None:
        self.clip = clip or folder / "clip.wav"
        if clip is None:
            compose(self.clip, repeats)
        settings = Settings(data_dir=str(folder / "data"), speakers=speakers or SpeakerSettings())
        settings = with_interim(one_by_one(settings), False)
        processes = Processes(folder, settings)
        try:
            source, listens = file_source(self.clip, "1000"), speakers is not None
            system = System(processes, settings, source, speakers=listens, targets=targets)
            system.start()
            timeout_s = timeout_s or 120.0 + 60.0 * repeats
            ended = system.ended(timeout_s)
            done_to_the_end(system, ended.stream, timeout_s)
            events = system.journal()
            self.turns = turns_told(events, ended.stream)
            self.translations = translations_told(events, ended.stream, targets)
            self.events = events
            self.end = assert_whole(events, ended.stream)
            self.lines = content(events, ended.stream)
            self.appends = [(e.kind, e.n) for e in events if e.producer == "transcriber"]
            self.audio = audio_of(settings.streams / ended.stream)
            system.stop()
        finally:
            processes.close()

    def assert_same(self, system: System, stream: str) -> None:
        """The journal and the backlog of `system` hold exactly what ours hold."""
        events = system.journal()
        assert {e.stream for e in events} == {stream}, "one source, one stream"
        assert assert_whole(events, stream) == self.end
        assert content(events, stream) == self.lines
        assert [(e.kind, e.n) for e in events if e.producer == "transcriber"] == self.appends
        if system.settings.speakers.enabled:
            assert turns_told(events, stream) == self.turns
        if targets := system.settings.translate.targets:
            assert translations_told(events, stream, targets) == self.translations
        assert audio_of(system.settings.streams / stream) == self.audio
        assert events[-1].seq == len(events)
