"""The ONE table of processes and endpoints. Launcher, CLI, README picture, tests and metrics labels come from it.

A row with `per_source` stands for one process per configured source, named `capture@SOURCE`.
"""

from __future__ import annotations

import msgspec

from common.settings import Settings


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A socket that a process binds: its name is the file name in the run folder, `@` means one per source."""

    name: str
    pattern: str  # ROUTER answers requests, PUB publishes
    may_be_tcp: bool = False
    doc: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of process: how it is started, what it reads and writes, and who outlives whom."""

    name: str
    module: str
    doc: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    gpu: str = "no"  # no | lease | burst
    binds: tuple[Endpoint, ...] = ()
    per_source: bool = False
    survives_launcher: bool = False  # adopted by its name lock when the launcher comes back; the others die with it
    runs_if: str = ""  # a setting, `section.key`, that must be true; empty: always


TABLE: tuple[Row, ...] = (
    Row(
        name="feed",
        module="workers.feed",
        doc="journal of all events, live publication, replay",
        reads=("appends", "backlog heads", "doorbells"),
        writes=("journal", "events", "beat"),
        binds=(
            Endpoint(
                name="append", pattern="ROUTER", doc="Append, Purge, Hypothesis, WorkerStatus, GpuState; local only"
            ),
            Endpoint(name="pub", pattern="PUB", may_be_tcp=True, doc="event.<kind>, live.hypothesis, live.gpu, beat"),
            Endpoint(name="replay", pattern="ROUTER", may_be_tcp=True, doc="Replay, StateHash"),
        ),
        survives_launcher=True,
    ),
    Row(
        name="capture",
        module="capture",
        doc="one source to the durable audio backlog",
        reads=("microphone, file, stdin", "beat"),
        writes=("backlog", "doorbells"),
        binds=(Endpoint(name="doorbell@", pattern="PUB", doc="Doorbell after each write, and each second"),),
        per_source=True,
        survives_launcher=True,
    ),
    Row(
        name="arbiter",
        module="arbiter",
        doc="leases on the memory of the one GPU",
        reads=("Status of each GPU worker", "memory figures of the device"),
        writes=("Lease to each GPU worker", "live.gpu", "roster"),
        binds=(Endpoint(name="arbiter", pattern="ROUTER", doc="Status -> Lease; Command -> Done or Refused"),),
        survives_launcher=True,
    ),
    Row(
        name="transcriber",
        module="workers.transcriber",
        doc="speech to final text with word times",
        reads=("backlog", "doorbells", "event.retry"),
        writes=("transcript", "silence", "suppressed", "gap", "stream_started", "stream_ended"),
        gpu="lease",
    ),
    Row(
        name="translator",
        module="workers.translator",
        doc="captions in other languages, sentence by sentence",
        reads=("event.transcript", "event.suppressed", "event.gap", "event.silence", "event.stream_ended"),
        writes=("translation", "gap"),
        gpu="lease",
        runs_if="translate.targets",
    ),
    Row(
        name="diarizer",
        module="workers.diarizer",
        doc="who speaks when, and which of them is the same",
        reads=("backlog", "doorbells", "beat"),
        writes=("speaker_turn", "relabel", "speaker_name", "gap"),
        gpu="lease",
        runs_if="speakers.enabled",
    ),
    Row(
        name="summarizer",
        module="workers.summarizer",
        doc="minutes of what was said, in bursts",
        reads=("event.transcript", "event.silence", "event.stream_ended", "event.summary_wanted", "event.speaker_name"),
        writes=("summary", "gap"),
        gpu="burst",
        runs_if="summary.enabled",
    ),
    Row(
        name="viewer",
        module="workers.viewer",
        doc="the web page, health and metrics",
        reads=("events", "beat", "replay"),
        writes=("web page",),
    ),
)

# In no table: it runs for seconds, once an hour, for the time when no capture runs that would do it.
SWEEPER = Row(
    name="sweeper", module="capture.sweeper", doc="deletes old audio once an hour", reads=("beat",), writes=()
)
LAUNCHER_ENDPOINT = Endpoint(name="launcher", pattern="ROUTER", doc="Command -> Done|Refused")
READS_BEHIND = {"transcriber": 0, "diarizer": 160_000}  # readers of audio; samples before their position: a window
DIARIZER = "diarizer"  # the producer of turns
TRANSLATOR = "translator"  # its producers are `translator.<target>`
COVERAGE_PRODUCER = "transcriber"  # the one whose spans classify every sample


def row(name: str) -> Row:
    """The row of process `name` (`capture@mic` has the row `capture`); KeyError when there is none."""
    base = name.partition("@")[0]
    for r in TABLE:
        if r.name == base and r.per_source == ("@" in name):
            return r
    raise KeyError(name)


def wanted(r: Row, settings: Settings) -> bool:
    """Whether these settings want processes of a row."""
    section, _, key = r.runs_if.partition(".")
    return not r.runs_if or bool(getattr(getattr(settings, section), key))


def audio_readers(settings: Settings) -> dict[str, int]:
    """Producers whose `audio` position must pass a sample before it may be deleted, and how many samples before it
    each of them still reads."""
    return {name: behind for name, behind in READS_BEHIND.items() if wanted(row(name), settings)}


def names(settings: Settings) -> tuple[str, ...]:
    """Names of all processes that these settings want, in starting order."""
    out: list[str] = []
    for r in TABLE:
        if not wanted(r, settings):
            continue
        out += [f"{r.name}@{s.name}" for s in settings.source] if r.per_source else [r.name]
    return tuple(out)


def doorbell(source: str) -> str:
    return f"doorbell@{source}"
