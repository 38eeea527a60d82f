"""Every message that crosses a process boundary, as frozen msgspec structs.

Encoding: msgpack maps with field names, tag in the key `type`. Fields are only ever added, with defaults; readers
skip kinds and fields they do not know. `common/PROTOCOL.md` is the same catalogue for other languages, and a test
holds the two together. A position of audio is a sample number (16 kHz) since its stream began: an int, never a float.
"""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import msgspec

PROTOCOL = 1
SAMPLE_RATE = 16_000
PAGE_BYTES = 256 * 1024  # a replay page never exceeds this, one oversized event excepted
EVENT_BYTES = 1024 * 1024  # larger events, and states, are refused as "too large";
APPEND_BYTES = 8 * EVENT_BYTES  # so are larger appends. A turn takes 60

Span = tuple[int, int]  # [first sample, end sample)
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what decoding a stranger's bytes may raise


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all wire structs: immutable, built by keyword."""


class Word(Struct, frozen=True, kw_only=True):
    """One word of a transcript with its place in the audio and the model's probability (0..1)."""

    text: str
    span: Span
    p: float


class Body(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of event bodies; the tag is the event's kind and the end of its topic `event.<kind>`."""


class StreamStarted(Body, frozen=True, kw_only=True, tag="stream_started"):
    """A stream began: its source, whether it is `live` or `batch`, and the wall clock (ns) of sample 0."""

    source: str
    lane: str
    started_ns: int


class StreamEnded(Body, frozen=True, kw_only=True, tag="stream_ended"):
    """A stream ended at sample `end`; everything before it has its class."""

    end: int
    reason: str


class Transcript(Body, frozen=True, kw_only=True, tag="transcript"):
    """Final text of one utterance. `segment` is `stream:first_sample`; a correction has a higher `revision`."""

    segment: str
    revision: int = 0
    supersedes: str | None = None  # `segment/revision` of the event this one replaces
    span: Span
    text: str
    language: str
    words: tuple[Word, ...] = ()
    model: str


class Silence(Body, frozen=True, kw_only=True, tag="silence"):
    """The voice-activity detector ran over `span` and heard no speech."""

    span: Span


class Suppressed(Body, frozen=True, kw_only=True, tag="suppressed"):
    """Sound that was decoded or gated and deliberately not captioned: what came out, and why it was dropped."""

    span: Span
    text: str
    reason: str
    segment: str = ""
    revision: int = 0
    supersedes: str | None = None


class Gap(Body, frozen=True, kw_only=True, tag="gap"):
    """Audio of `span` that has no caption because it was never captured or could not be processed."""

    span: Span
    reason: str
    retryable: bool
    segment: str = ""
    revision: int = 0
    supersedes: str | None = None


class SpeakerTurn(Body, frozen=True, kw_only=True, tag="speaker_turn"):
    """`speaker` talks during `span`; provisional until the clustering on the whole stream confirms it.

    How turns, relabels and names become the speaker of a word: `common/join.py`.
    """

    span: Span
    speaker: str
    provisional: bool


class Relabel(Body, frozen=True, kw_only=True, tag="relabel"):
    """Turns labelled `source` are labelled `target` ("": nobody's), inside `span` or everywhere.

    The diarizer's concern the turns that stand before them in the journal, those of people also turns to come. The
    relabels of one append are one step: each looks at the labels before it.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    span: Span | None = None


class SpeakerName(Body, frozen=True, kw_only=True, tag="speaker_name"):
    """`speaker` got a name ("" takes it back), from a person or, by the diarizer, from a voiceprint."""

    speaker: str
    name: str


class Translation(Body, frozen=True, kw_only=True, tag="translation"):
    """One sentence in language `target`: number `place` of those that begin in `segment`, and where it goes on.

    The newest event of a (segment, place, target) counts, as long as every text that it was made from is the newest of
    its segment: `common/translations.py`. `text` "": there is no such sentence any more.
    """

    segment: str
    revision: int
    target: str
    text: str
    suspect: str | None = None  # what the guard against bad translations found
    place: int = 0
    goes_on: tuple[str, ...] = ()  # `segment/revision` of the further texts that have words of it, in order
    span: Span | None = None
    source: str = ""  # the words that were translated
    source_language: str = ""
    model: str = ""


class Bullet(Struct, frozen=True, kw_only=True):
    """One point of the minutes and the segments that prove it."""

    kind: str  # point | decision | action | question
    text: str
    segments: tuple[str, ...]


class Summary(Body, frozen=True, kw_only=True, tag="summary"):
    """Minutes of what was said in `span`, of which the segments `first`..`last` were read.

    `coverage` below 1 says that the text was too long for the model: that share of its words was read, the newest.
    """

    first: str
    last: str
    bullets: tuple[Bullet, ...]
    model: str
    coverage: float
    span: Span | None = None
    reason: str = ""  # interval | asked | end


class Purged(Body, frozen=True, kw_only=True, tag="purged"):
    """The bodies of these `seqs` of `stream` are gone for good; whoever holds them makes tombstones of them."""

    stream: str
    seqs: tuple[Span, ...]  # inclusive runs (first seq, last seq)


class Retry(Body, frozen=True, kw_only=True, tag="retry"):
    """A person wants the retryable gaps that touch `span` processed again."""

    span: Span


class SummaryWanted(Body, frozen=True, kw_only=True, tag="summary_wanted"):
    """A person wants minutes of this stream now."""


EventBody = (
    StreamStarted
    | StreamEnded
    | Transcript
    | Silence
    | Suppressed
    | Gap
    | SpeakerTurn
    | Relabel
    | SpeakerName
    | Translation
    | Summary
    | Purged
    | Retry
    | SummaryWanted
)
BODIES: dict[str, type[Body]] = {str(c.__struct_config__.tag): c for c in get_args(EventBody)}
KINDS = tuple(BODIES)


class Event(Struct, frozen=True, kw_only=True):
    """Envelope of one journal entry. `body` is msgpack bytes of an event body, empty when `purged`.

    `prev` is the seq of the previous event of the same (stream, kind), 0 for the first: a subscriber to one topic
    sees its own holes by it. The body travels as bytes so that any language can hash exactly what was stored.
    """

    seq: int
    prev: int
    stream: str
    kind: str
    producer: str
    n: int
    at_ns: int
    body: bytes
    purged: bool = False

    def decode(self) -> EventBody | None:
        """The body, or None for a tombstone or a kind this version does not know."""
        if self.purged or self.kind not in BODIES:
            return None
        body: EventBody = _body.decode(self.body)
        return body

    def canonical(self) -> bytes:
        """One line that two holders of the same event agree on, byte for byte."""
        body = "purged" if self.purged else hashlib.sha256(self.body).hexdigest()
        return (
            f"{self.seq} {self.prev} {self.stream} {self.kind} {self.producer} {self.n} {self.at_ns} {body}\n".encode()
        )

    def tombstone(self) -> Event:
        return msgspec.structs.replace(self, body=b"", purged=True)


class Request(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of requests; a server answers `Refused("wrong protocol")` when it does not speak `protocol`."""

    protocol: int = PROTOCOL


class Append(Request, frozen=True, kw_only=True, tag="append"):
    """Commit `events`, `positions` and `state` together iff `producer`'s append count on `stream` is `expect_n`.

    `expect_n = -1` never matches: it asks for the place (`At`) without changing anything. `positions` are merged
    into the stored ones; `state` None keeps the stored state.
    """

    producer: str
    stream: str
    expect_n: int
    positions: dict[str, int] = {}
    events: tuple[msgspec.Raw, ...] = ()  # each one an encoded event body, `type` first
    state: bytes | None = None


class At(Struct, frozen=True, kw_only=True, tag_field="type", tag="at"):
    """Where a producer stands: the answer to every Append not refused, whether new, resent or in conflict."""

    n: int
    positions: dict[str, int]
    state: bytes
    head: int


class Refused(Struct, frozen=True, kw_only=True, tag_field="type", tag="refused"):
    """Nothing was done: why, and after how many seconds trying again makes sense (0: never as it is)."""

    reason: str
    retry_after_s: float = 0.0


class Done(Struct, frozen=True, kw_only=True, tag_field="type", tag="done"):
    """A command was carried out."""

    detail: str = ""


class Purge(Request, frozen=True, kw_only=True, tag="purge"):
    """Really delete the bodies of every event of `stream` from the journal."""

    stream: str


class Hypothesis(Request, frozen=True, kw_only=True, tag="hypothesis"):
    """Text of an utterance so far: `stable` will not change, `unstable` may. Never journaled, never answered."""

    stream: str
    segment: str
    revision: int
    span: Span
    stable: str
    unstable: str


class Delay(Struct, frozen=True, kw_only=True):
    """How long one stage of a worker's output took in one lane lately: quantiles, in seconds, of `count` of them.

    Readers show stages they do not know by their names. `total` is the whole way, so the others add up to it.
    """

    lane: str  # live | batch
    stage: str  # total | end | wait | decode | commit | first_text
    count: int
    p50_s: float
    p95_s: float


class WorkerStatus(Request, frozen=True, kw_only=True, tag="worker_status"):
    """A worker's sign of life, each second from its control thread. Never answered."""

    worker: str
    pid: int
    phase: str  # loading | idle | scanning | inferring | appending
    lag_s: dict[str, float] = {}  # per open stream
    detail: str = ""
    delays: tuple[Delay, ...] = ()  # of what it put out in the last `delays_over_s`
    delays_over_s: float = 0.0
    note: str = ""  # one line for people: how it does its work, where nothing is wrong with that


class Doorbell(Struct, frozen=True, kw_only=True, tag_field="type", tag="doorbell"):
    """Capture wrote (or wants to be seen): `end` is the first sample not yet on disk. Losing one costs latency only."""

    source: str
    stream: str
    end: int
    state: str  # ok | disk_full | no_device | reconnecting | ended
    detail: str = ""
    ram_s: float = 0.0  # seconds of audio waiting in RAM for the disk
    lost_samples: int = 0  # since this process began; each one is in gaps.jsonl or will be


class Replay(Request, frozen=True, kw_only=True, tag="replay"):
    """Events with seq > `after`, of `kinds` and `stream` if given, at most `limit`."""

    after: int
    limit: int = 1000
    kinds: tuple[str, ...] | None = None
    stream: str | None = None


class Page(Struct, frozen=True, kw_only=True, tag_field="type", tag="page"):
    """Answer to Replay: every matching event with seq in (after, upto]; ask again from `upto` until it is `head`.

    `first` is the oldest seq the journal still has: `first > after + 1` tells a truncated history.
    """

    journal: str
    first: int
    head: int
    upto: int
    events: tuple[Event, ...]


class StateHash(Request, frozen=True, kw_only=True, tag="state_hash"):
    """Ask for the sha256 over the canonical lines of all events (of `kinds`) with seq <= `upto` (-1: head)."""

    kinds: tuple[str, ...] | None = None
    upto: int = -1


class Hash(Struct, frozen=True, kw_only=True, tag_field="type", tag="hash"):
    """Answer to StateHash."""

    upto: int
    sha256: str


class Coverage(Struct, frozen=True, kw_only=True):
    """Samples of a stream by class; together with `pending` they are all there is."""

    text: int = 0
    silence: int = 0
    suppressed: int = 0
    gap: int = 0
    pending: int = 0


class ProducerBeat(Struct, frozen=True, kw_only=True):
    """One producer's append count and positions on a stream."""

    n: int
    positions: dict[str, int]


class StreamBeat(Struct, frozen=True, kw_only=True):
    """One stream in the beat: heads of its inputs and topics, who has read how far, how late we are."""

    source: str
    lane: str
    ended: bool
    audio_head: int
    heads: dict[str, int]  # kind -> seq
    producers: dict[str, ProducerBeat]
    lag_s: float
    coverage: Coverage


class Beat(Struct, frozen=True, kw_only=True, tag_field="type", tag="beat"):
    """Each second: what a complete subscriber knows by now.

    Names the streams that are live or changed in the last 60 s, and a few of the others in turn.
    """

    protocol: int
    journal: str
    head: int
    at_ns: int
    streams: dict[str, StreamBeat]
    workers: dict[str, WorkerStatus]
    captures: dict[str, Doorbell]
    trouble: str = ""  # why appends are refused at present, if they are
    feed: str = ""  # which run of the feed it is: each has another id
    up_s: float = 0.0  # of that run, by a clock that nobody sets


class Command(Request, frozen=True, kw_only=True, tag="command"):
    """An order to the launcher or the arbiter. Sending it twice under one `id` carries it out once."""

    id: str
    verb: str
    args: dict[str, str] = {}


class Incarnation(Struct, frozen=True, kw_only=True):
    """One life of one process: no two processes share it, not even after a pid is used again."""

    worker: str
    pid: int
    started_ticks: int  # start time of the process, field 22 of /proc/PID/stat
    nonce: str  # 64 random bits, 16 hex digits


class Want(Struct, frozen=True, kw_only=True):
    """What a worker needs of the GPU: `bytes` 0 means nothing. `since_s` is CLOCK_MONOTONIC, one for the machine."""

    bytes: int
    least_bytes: int = 0  # it can do with so many, should `bytes` never be free; 0: with no fewer than `bytes`
    lane: str = "live"  # live | burst | batch
    since_s: float = 0.0
    measured: bool = False  # `bytes` is no guess: where guesses crowd, it is not asked to do with the least


class Lease(Struct, frozen=True, kw_only=True, tag_field="type", tag="lease"):
    """The arbiter's newest decision on one incarnation, whole; sent on change and again each second."""

    protocol: int = PROTOCOL
    incarnation: Incarnation
    epoch: int
    granted: bool  # else revoked
    bytes: int  # granted: hold at most this; revoked: what is to be given back
    offload_within_s: float  # revoked: who has not reported it offloaded by then is killed
    max_hold_s: float = 0.0  # granted: give it back unasked so long after the weights are there; 0: never


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """All that the arbiter may believe of one incarnation, from its control thread; on change and each second.

    Answered by `Lease`s. `acted`, `residency`, `held_bytes` and `lease_bytes` are of one moment.
    """

    incarnation: Incarnation
    acted: int  # newest epoch that the WORK thread has carried out
    pending: int  # newest epoch received; it will be carried out at the edge of the step
    residency: str  # absent | offloaded | loading | resident | offloading
    held_bytes: int
    lease_bytes: int  # the most that a lease in force or pending lets it hold
    peak_bytes: int = 0
    residue_bytes: int = 0  # device bytes of the process that no offload gives back (a CUDA context), or will be
    wants: Want
    waiting: bool = False  # input waits for a step: no progress now means that it hangs
    lag_s: float = 0.0
    silence_s: float = 0.0
    owes: bool = False  # an utterance that is over has no caption yet
    positions: dict[str, int] = {}
    stepped_at_s: float = 0.0  # CLOCK_MONOTONIC of the last step or the last copy of a reload
    step_p99_s: float = 0.0  # longest piece that cannot be interrupted, a step or one copy; 0: not measured yet
    offload_p99_s: float = 0.0
    weights_bytes: int = 0  # of the model; 0: not loaded into RAM yet
    reload_s: float = 0.0  # how long the last reload took, from its first copy to resident; 0: none yet
    reload_gb_s: float = 0.0  # and how fast its bytes moved, in 10^9 bytes a second
    offload_s: float = 0.0  # how long the last offload took
    revoke_s: float = 0.0  # from hearing the last revocation to having carried it out
    complaint: str = ""  # one line for people: why it cannot use what it was granted
    burst_min_s: float = 0.0  # from a grant until its burst has got on: cut short before, it was for nothing
    note: str = ""  # one line for people: how far the work is that waits
    pieces: int = 0  # of its bursts' work that are done in this life, such as minutes: between two it may give back


class GpuWorker(Struct, frozen=True, kw_only=True):
    """One GPU worker in GpuState: where it stands, and why it waits if it does."""

    worker: str
    pid: int
    state: str  # free | granted | revoked | killed | reclaiming | lost
    residency: str  # absent | offloaded | loading | resident | offloading
    lane: str  # live | burst | batch
    bytes: int  # counted against the cap
    held_bytes: int  # on the device, by its own word
    wants_bytes: int  # 0: nothing
    waits_s: float = 0.0  # since when it wants what it has not got; 0: it does not wait
    reason: str = ""  # why it waits, has to leave, or cannot be served: for people
    lag_s: float = 0.0
    reload_s: float = 0.0
    reload_gb_s: float = 0.0
    offload_s: float = 0.0
    pinned: bool = False


class GpuState(Request, frozen=True, kw_only=True, tag="gpu_state"):
    """The GPU as the arbiter sees it, on change and each second: arbiter -> feed -> `live.gpu`. Never answered."""

    device: str  # its name
    simulated: bool
    total_bytes: int  # 0: not measured yet
    used_bytes: int  # by anybody, as measured
    foreign_bytes: int  # by programs that are none of ours
    cap_bytes: int  # what all leases together may have
    counted_bytes: int  # what they have
    phase: str  # idle | free ride | making room | burst | giving back | reclaiming
    reason: str = ""  # why the phase is what it is
    captions_resume_in_s: float = -1.0  # estimate while live workers have to wait; -1: they do not
    swaps: int = 0  # bursts for which somebody had to leave, since the arbiter began
    workers: tuple[GpuWorker, ...] = ()
    trouble: str = ""  # the driver does not answer, figures of processes are missing, ...


FeedRequest = Append | Purge | Hypothesis | WorkerStatus | GpuState
ArbiterRequest = Status | Command
ReplayRequest = Replay | StateHash
Answer = At | Refused | Done | Page | Hash

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_body: msgspec.msgpack.Decoder[EventBody] = msgspec.msgpack.Decoder(EventBody)


def decode_answer(data: bytes) -> Answer:
    return _answer.decode(data)


def raw(body: Body) -> msgspec.Raw:
    """An encoded event body, ready to stand in an Append."""
    return msgspec.Raw(encode(body))


def segment_id(stream: str, first_sample: int) -> str:
    return f"{stream}:{first_sample}"


def wire_types() -> list[type[Any]]:
    """Every struct of the protocol, for the test that holds PROTOCOL.md against this file."""
    return [v for v in globals().values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
