"""What a person reads in the terminal: captions, the state of processes and streams, the source used by default.

In: the feed, as any subscriber has it. Out: lines of text; nothing here waits longer than it is told, so that a dead
feed never holds up whoever prints. Nothing is kept.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from common import messages as m
from common import models, topology, wire
from common.delay_text import lines as delay_lines
from common.feed_client import FeedClient
from common.gpu_text import Pauses, summary
from common.hypotheses import Hypotheses
from common.join import WHO_KINDS
from common.past import Past
from common.settings import NO_FEED, Settings, UserError
from common.spans import clock
from common.speaker_text import Who
from common.translation_text import InOtherWords

CAPTION_KINDS = (
    "transcript",
    "gap",
    "suppressed",
    "stream_started",
    "stream_ended",
    "summary",
    "translation",
    *WHO_KINDS,
)
RECORDING = Path(__file__).resolve().parent.parent / "examples" / "recording.flac"
FROM_THE_END = 2**62  # replay after this: no events, but the head


def caption(e: m.Event) -> str | None:
    """One line for one event (minutes: one for each point), None for what is no caption or news of a stream."""
    match e.decode():
        case m.Summary() as minutes:
            return _minutes(minutes)
        case m.Gap(span=span, reason=reason) if e.producer != topology.COVERAGE_PRODUCER:
            return f"[{clock(span[0])} nothing by the {e.producer} until {clock(span[1])}: {reason}]"
        case m.Transcript(span=span, text=text):
            return f"{clock(span[0])}  {text.strip()}"
        case m.Gap(span=span, reason=reason, retryable=retryable):
            cure = f"; again with: swapscribe retry {e.stream}" if retryable else ""
            return f"[{clock(span[0])} gap until {clock(span[1])}: {reason}{cure}]"
        case m.Suppressed(span=span, text=text, reason=reason):
            return (
                f"[{clock(span[0])} suppressed until {clock(span[1])}: {reason}{f': {text.strip()}' if text else ''}]"
            )
        case m.StreamStarted(source=source):
            return f"[{source}: stream {e.stream}]"
        case m.StreamEnded(end=end, reason=reason):
            return f"[{e.stream} ended at {clock(end)}: {reason}]"
    return None


def _minutes(s: m.Summary) -> str:
    """Minutes with the times of the segments that prove each point."""
    span = f" {clock(s.span[0])}-{clock(s.span[1])}" if s.span else ""
    read = f", the last {s.coverage:.0%} of the words read" if s.coverage < 1 else ""
    lines = [f"[minutes{span} by {s.model}{read}]" if s.bullets else f"[minutes{span} by {s.model}{read}: none]"]
    for b in s.bullets:
        at = ", ".join(clock(int(first)) for segment in b.segments if (first := segment.rpartition(":")[2]).isdecimal())
        lines.append(f"  • {'' if b.kind == 'point' else f'{b.kind}: '}{b.text}  ({at})")
    return "\n".join(lines)


def as_json(e: m.Event) -> str:
    """An event as one JSON line; also of kinds this version does not know."""
    body: dict[str, Any] = msgspec.msgpack.decode(e.body) if e.body else {}
    body.pop("type", None)
    head = {"seq": e.seq, "stream": e.stream, "kind": e.kind, "producer": e.producer, "at_ns": e.at_ns}
    return json.dumps(head | ({"purged": True} if e.purged else {}) | {"body": body}, ensure_ascii=False, default=repr)


class Captions:
    """Lines of the captions from now on (or after seq `after`); with several streams each line names its source.

    `languages`: translations into these only; none named: all that there are.
    """

    def __init__(
        self, settings: Settings, after: int | None = None, interim: bool = False, languages: tuple[str, ...] = ()
    ) -> None:
        self._settings, self._interim, self._languages_wanted = settings, interim, languages
        self._now = Hypotheses()
        self._client = None if after is None else self._follow(after)
        self._pauses = Pauses()
        self._asker = wire.Asker(wire.ipc(settings, "replay"))
        self._next_ask_s = 0.0
        self._streams: set[str] = set()
        self._languages: dict[str, str] = {}  # of the last caption of each stream
        self._who: dict[str, Who] = {}
        self._translated: dict[str, InOtherWords] = {}
        self._past = Past(settings, WHO_KINDS)
        self.words = 0
        self.gpu: m.GpuState | None = None

    @property
    def beat(self) -> m.Beat | None:
        return self._client.last_beat if self._client else None

    @property
    def beat_heard_s(self) -> float:
        return self._client.beat_heard_s if self._client else 0.0

    def lines(self) -> list[str]:
        """What came since the last call; never waits."""
        if self._client is None:
            self._find_head()
        if self._client is None:
            return []
        out: list[str] = []
        for e in self._client.poll(0.0):
            if isinstance(e, m.GpuState):
                self.gpu = e
                out += self._pauses.lines(e, time.monotonic())
            elif isinstance(e, m.Hypothesis):
                self._now.take(e)
            elif isinstance(e, m.Event):
                self._now.event(e)
                who = self._whose(e)
                who.join.take(e)
                self._translated.setdefault(e.stream, InOtherWords(self._languages_wanted)).take(e)
                if not (line := caption(e)):
                    continue
                lines = [line]
                self._streams.add(e.stream)
                if isinstance(body := e.decode(), m.Transcript):
                    if self._languages.setdefault(e.stream, body.language) != body.language:
                        self._languages[e.stream] = body.language
                        out.append(f"[{e.stream} goes on in {body.language}]")
                    self.words += len(body.text.split())
                    lines = who.caption(body) or lines
                out += [x if len(self._streams) == 1 or x[0] == "[" else f"{e.stream}  {x}" for x in lines]
        for e in self._past.events():
            self._whose(e).join.take(e)
        for stream, translated in self._translated.items():
            out += [x if len(self._streams) == 1 else f"{stream}  {x}" for x in translated.news()]
        for stream, who in self._who.items():
            out += [x if len(self._streams) == 1 else f"[{stream}: {x[1:]}" for x in who.news()]
        return out

    def _whose(self, e: m.Event) -> Who:
        """What is known of the speakers of a stream; of one that began before we came, also what was said of them."""
        if e.stream not in self._who:
            self._who[e.stream] = Who()
            if e.kind != "stream_started":
                self._past.want(e.stream)
        return self._who[e.stream]

    def now(self) -> tuple[str, str]:
        """(stable, unstable) words of who is speaking, with the time; of the newest stream when there are several."""
        newest = max(self._now.newest.values(), key=lambda h: h.span[1], default=None)
        return (f"{clock(newest.span[0])}  {newest.stable}", newest.unstable) if newest else ("", "")

    def _follow(self, after: int) -> FeedClient:
        return FeedClient(self._settings, CAPTION_KINDS, after, hypotheses=self._interim, gpu=True)

    def _find_head(self) -> None:
        answer, now = self._asker.answer(), time.monotonic()
        if isinstance(answer, m.Page):
            self._client = self._follow(answer.head)
        elif now >= self._next_ask_s:
            asked = self._asker.ask(m.Replay(after=FROM_THE_END, limit=1))
            self._next_ask_s = now + (2.0 if asked else 0.1)


def one_beat(settings: Settings, timeout_s: float = 2.0) -> m.Beat | None:
    """The next beat of the feed, None when there is none in time."""
    client = FeedClient(settings, kinds=())
    deadline = time.monotonic() + timeout_s
    while client.last_beat is None and time.monotonic() < deadline:
        client.poll(deadline - time.monotonic())
    client.close()
    return client.last_beat


def coverage_line(c: m.Coverage) -> str:
    return "  ".join(f"{k} {getattr(c, k) / m.SAMPLE_RATE:.1f} s" for k in c.__struct_fields__)


def status(
    settings: Settings,
    pids: dict[str, int],
    states: dict[str, str],
    beat: m.Beat | None,
    gpu: m.GpuState | None = None,
) -> list[str]:
    """Processes, the GPU, then streams. `states` are the launcher's, by name; empty when there is no launcher."""
    rows = ["launcher", *(r.name for r in topology.TABLE)]
    known = {"launcher", *topology.names(settings), *pids, *states}
    lines = []
    for name in sorted(known, key=lambda n: (rows.index(n.partition("@")[0]), n)):
        pid, words = pids.get(name), [states.get(name, "up" if name in pids else "not running")]
        if beat and pid and (bell := beat.captures.get(name.partition("@")[2])):
            words += [bell.state, bell.detail]
            words += [f"{bell.ram_s:.0f} s of audio wait in RAM for the disk"] if bell.ram_s >= 1 else []
            words += [f"{bell.lost_samples / m.SAMPLE_RATE:.1f} s lost"] if bell.lost_samples else []
        if beat and pid and (worker := beat.workers.get(name)):
            words += [worker.phase, worker.detail, worker.note]
        if pid and name == topology.COVERAGE_PRODUCER:
            words.append(models.only_language(settings))
        lines.append(f"{name:<18} {f'pid {pid}' if pid else '-':<12} {', '.join(w for w in words if w)}")
    if gpu:
        lines.append(f"gpu: {summary(gpu)}")
    if beat:
        lines += [f"delay of the {line}" for w in beat.workers.values() for line in delay_lines(w)]
    if beat is None:
        why = f"feed (pid {pids['feed']}) gives no sign of life" if "feed" in pids else "the feed is not running"
        return [*lines, f"{why}, so nothing is known about streams"]
    lines.append(
        f"journal {beat.journal[:8]}, head {beat.head}" + (f"; trouble: {beat.trouble}" if beat.trouble else "")
    )
    for stream, sb in sorted(beat.streams.items()):
        lines.append(f"{stream}  {sb.lane}, {'ended' if sb.ended else 'open'}  {clock(sb.audio_head)}")
        lines.append(f"    {coverage_line(sb.coverage)}")
        behind = {p: sb.audio_head - b.positions["audio"] for p, b in sb.producers.items() if "audio" in b.positions}
        behind = behind or {topology.COVERAGE_PRODUCER: sb.audio_head}
        waits = [f"{p} has {n / m.SAMPLE_RATE:.1f} s to read" for p, n in behind.items() if n > 0]
        lines.append(f"    lag {sb.lag_s:.1f} s" + (f"; {', '.join(waits)}" if waits else "; everything is read"))
        if codes := sorted(p.partition(".")[2] for p in sb.producers if p.startswith(f"{topology.TRANSLATOR}.")):
            lines.append(f"    in {', '.join(codes)}: {_translated(stream, beat)}")
    return lines


def _translated(stream: str, beat: m.Beat) -> str:
    worker = beat.workers.get(topology.TRANSLATOR)
    if worker is None:
        return "nobody translates now"
    late_s = worker.lag_s.get(stream, 0.0)
    return f"{late_s:.1f} s late" if late_s else "every sentence that is over is translated"


def default_source() -> tuple[dict[str, str], str]:
    """(a source, the line that says which and why): the microphone if there is one, else the bundled recording."""
    try:  # in a process of its own with a time-out: a broken sound system may hang, and often prints pages
        ask = [sys.executable, "-m", "capture.devices"]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=5.0, stdin=subprocess.DEVNULL)
        lines = found.stdout.strip().splitlines() or ["no microphone: the list of devices cannot be read"]
    except subprocess.TimeoutExpired:
        return recording("realtime"), f"source: the bundled {RECORDING.name}; no microphone: the sound system hangs"
    default = [line for line in lines if "(default)" in line]
    if found.returncode == 0 and default:
        return {"name": "mic", "kind": "microphone"}, f"source: the microphone ({' '.join(default[0].split())})"
    why = lines[-1] if found.returncode else "no microphone is the default one; choose: swapscribe devices"
    return recording("realtime"), f"source: the bundled {RECORDING.name}; {why}"


def recording(pace: str) -> dict[str, str]:
    if not RECORDING.exists():
        raise UserError(f"{RECORDING}: the bundled recording is missing; name a [[source]] in swapscribe.toml")
    return {"name": "recording", "kind": "file", "path": str(RECORDING), "pace": pace}


def addresses(settings: Settings) -> list[str]:
    viewer, feed = settings.viewer, settings.feed
    tcp = ", ".join(a for a in (feed.pub_tcp, feed.replay_tcp) if a)
    return [
        f"viewer: {wire.page(viewer.host, viewer.port, viewer.token)}",
        f"feed: {wire.ipc(settings, 'pub')} and {wire.ipc(settings, 'replay')}" + (f"; {tcp} (CURVE)" if tcp else ""),
    ]


def free_port() -> int:
    """A port for a viewer that must not disturb the one that may be running."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class LastLine:
    """The line at the end of a terminal that is written again and again: what is being said, the unsure part dim."""

    def __init__(self) -> None:
        self._there = ("", "")

    def clear(self) -> None:
        if any(self._there):
            sys.stdout.write("\r\x1b[K")
        self._there = ("", "")

    def show(self, stable: str, unstable: str) -> None:
        if (stable, unstable) == self._there:
            return
        self.clear()
        room = shutil.get_terminal_size().columns - 1
        dim = unstable[-room:]
        sys.stdout.write(f"{stable[-(room - len(dim)) :] if room > len(dim) else ''}\x1b[2m{dim}\x1b[0m")
        sys.stdout.flush()
        self._there = (stable, unstable)


def tail(settings: Settings, json_lines: bool, first: int | None, languages: tuple[str, ...] = ()) -> None:
    """Print captions (or every event as JSON) until interrupted, or read by nobody; says so when the feed is silent."""
    after = None if first is None else max(0, first - 1)
    if json_lines and after is None:
        page = wire.Requester(wire.ipc(settings, "replay"))
        try:
            answer = page.request(m.Replay(after=FROM_THE_END, limit=1), 3.0)
        except wire.Unreachable:
            raise UserError(NO_FEED) from None
        after = answer.head if isinstance(answer, m.Page) else 0
    interim = LastLine() if sys.stdout.isatty() and not json_lines else None
    captions = Captions(settings, after, interim is not None, languages)
    client = FeedClient(settings, None, after or 0) if json_lines else None
    silent_since, told = time.monotonic(), False
    reader = select.poll()
    reader.register(sys.stdout, 0)  # that it has gone is told unasked
    while not reader.poll(0):
        if client:
            lines = [as_json(e) for e in client.poll(0.2) if isinstance(e, m.Event)]
            beat_s = client.beat_heard_s
        else:
            lines = captions.lines()
            time.sleep(0.1)
            beat_s = captions.beat_heard_s
        if interim and lines:
            interim.clear()
        try:
            for line in lines:
                print(line, flush=True)
        except BrokenPipeError:
            break
        if interim:
            interim.show(*captions.now())
        quiet = time.monotonic() - max(silent_since, beat_s) > 3.0
        if quiet and not told:
            print("swapscribe: the feed is silent; captions go on when it is back", file=sys.stderr)
        told = quiet
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer
