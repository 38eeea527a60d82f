"""Files through a system as batch streams: which are captured, how far each is, which are done. Waits for nobody.

In: the launcher's answers, the feed's beat and `stream_ended`. Out: `capture` and `release` to the launcher. A batch
stream is named by the content of its file, so that whatever died, the same files go on where they were.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common import backlog, topology, wire
from common import messages as m
from common.feed_client import FeedClient
from common.given_sources import plain_name
from common.launch import NAME, PRIVATE
from common.settings import Settings, Source, UserError

AT_ONCE = 2  # captures: while one file is transcribed the next is made ready
ASK_EVERY_S = 0.25
ANSWER_S = 2.0
STILL_S = 600.0  # without a word from the diarizer of any stream, texts do not wait for it any more
DEATHS = 5  # of one capture in a row: the file is to blame
_DIED = re.compile(r"died (\d+) times")
HASH_DIGITS = 16  # as capture names its streams


class Job:
    """One file."""

    def __init__(self, path: Path, streams: Path, language: str = "") -> None:
        """Raises OSError, UserError."""
        self.path = path
        digest = _sha256(path)
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError:
            raise UserError("its path is not UTF-8; rename it") from None
        self.name = f"{plain_name(path.stem, 23)}.{digest[:8]}"
        for folder in backlog.streams(streams):  # the same sound under another name of its file
            meta = backlog.read_meta(folder)
            if meta and meta.lane == "batch" and folder.name.endswith(f"-{digest[:HASH_DIGITS]}"):
                self.name = meta.source
        self.stream = f"{self.name}-{digest[:HASH_DIGITS]}"
        self.source = Source(name=self.name, kind="file", path=str(path.absolute()), pace="max", language=language)
        self.state = "waiting"  # waiting | capturing | refused | reading | speakers | done | failed
        self.problem = ""
        self.before = False  # it was done when we came

    @property
    def settled(self) -> bool:
        return self.state in ("done", "failed")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Place(msgspec.Struct, frozen=True):
    """How far a stream is, in samples."""

    read: int = 0
    captured: int = 0
    whole: bool = False  # nothing more will be captured


class Batch:
    """All files of one command, in one system. `turn` is called some ten times a second."""

    def __init__(self, settings: Settings, jobs: Sequence[Job], held: bool = False, speakers: bool = False) -> None:
        self.settings, self.jobs = settings, jobs
        self.speakers = speakers  # a file is done when it is known who speaks, too
        self.held = held  # nothing is begun yet
        self.states: dict[str, str] = {}  # of the launcher's processes, by its last answer
        self.fatal = ""  # why nothing can be done at all
        self.client = FeedClient(settings, ("stream_ended",))
        self._ended: set[str] = set()  # streams that are read to their end
        self.heard = False  # which streams the journal has to their end is known to us
        self._status, self._order = (wire.Asker(wire.ipc(settings, "launcher")) for _ in range(2))
        self._turns = wire.Asker(wire.ipc(settings, "append"))
        self._turns_of, self._turns_at = "", 0.0
        self._known: set[str] = set()  # streams of which it is known who speaks
        self._told: dict[str, int] = {}  # how often the diarizer has said something of a stream
        self._told_at = 0.0  # when it last did, since somebody waits for it
        self._orders: list[m.Command] = []
        self._ask_at = self._order_at = 0.0
        self._asked = self._told_of = 0  # questions to the launcher so far; the one that `states` answers
        self._added = set[str]()  # sources that the launcher has because of us
        self._sure_from: dict[str, int] = {}  # by source: the first question after its order was carried out

    @property
    def over(self) -> bool:
        return bool(self.fatal) or all(job.settled for job in self.jobs)

    @property
    def private(self) -> bool:
        """The launcher is that of a `transcribe`, ours or another one."""
        return self.states.get(NAME) == PRIVATE

    @property
    def wants_work(self) -> bool:
        """Something is left to be captured or transcribed, as far as the journal is known."""
        return self.heard and not self.over

    def turn(self, wait_s: float = 0.0) -> list[Job]:
        """Go on with everything; the jobs that have been settled by it."""
        for event in self.client.poll(wait_s):
            if isinstance(event, m.Event) and event.kind == "stream_ended":
                if event.purged:
                    self.forget(event.stream)
                else:
                    self._ended.add(event.stream)
        self.heard = self.heard or (self.client.last_beat is not None and not self.client.follower.wants_replay)
        self._ask(time.monotonic())
        self._ask_for_turns(time.monotonic())
        return [job for job in self.jobs if self._step(job)] if self.heard and not self.held else []

    def forget(self, stream: str) -> None:
        """It was purged: what is known of its end is void."""
        self._ended.discard(stream)
        self._known.discard(stream)

    def place(self, job: Job) -> Place:
        beat = self.client.last_beat
        stream = beat.streams.get(job.stream) if beat else None
        if stream is None or not (self.settings.streams / job.stream).exists():  # purged: what is told of it is past
            return Place()
        producer = stream.producers.get(topology.COVERAGE_PRODUCER)
        read = producer.positions.get("audio", 0) if producer else 0
        return Place(read, max(read, stream.audio_head), stream.ended)

    def release_all(self) -> None:
        """Captures that we began end; they go on when they are asked for again."""
        for job in self.jobs:
            if job.state == "capturing" and job.name in self._added:
                self._send("release", name=job.name)
        deadline = time.monotonic() + ANSWER_S
        while self._orders and time.monotonic() < deadline:
            self._ask(time.monotonic())
            time.sleep(0.02)

    def close(self) -> None:
        self.client.close()
        for asker in (self._status, self._order, self._turns):
            asker.close()

    def _step(self, job: Job) -> bool:
        """True when it is settled now."""
        if job.settled:
            return False
        if job.stream in self._ended:
            job.before = job.before or job.state == "waiting"
            self._release(job)
            job.state = "speakers" if self.speakers and job.stream not in self._known else "done"
            return job.settled
        if job.state == "refused":
            job.state = "failed"
            return True
        state = self.states.get(f"capture@{job.name}", "")
        if job.state == "waiting" and self.states and sum(j.state == "capturing" for j in self.jobs) < AT_ONCE:
            job.state = "capturing"
            self._order_capture(job)
        elif job.state == "capturing" and state.startswith("cannot run: "):
            self._release(job)
            job.state, job.problem = "failed", state.removeprefix("cannot run: ")
            return True
        elif job.state == "capturing" and (deaths := _DIED.search(state)) and int(deaths[1]) >= DEATHS:
            self._release(job)
            job.state, job.problem = "failed", f"its capture dies again and again; see the log of capture@{job.name}"
            return True
        elif job.state == "capturing" and (state == "finished" or self._captured(job)):
            self._release(job)
            job.state = "reading"
        elif job.state == "capturing" and not state and self._told_of >= self._sure_from.get(job.name, 1):
            self._order_capture(job)  # another command released it, or this is another launcher
        return False

    def _order_capture(self, job: Job) -> None:
        if f"capture@{job.name}" not in self.states:
            self._added.add(job.name)
        self._sure_from[job.name] = sys.maxsize
        self._send("capture", source=msgspec.json.encode(job.source).decode())

    def _captured(self, job: Job) -> bool:
        meta = backlog.read_meta(self.settings.streams / job.stream)
        return meta is not None and meta.ended

    def _release(self, job: Job) -> None:
        if job.state == "capturing":
            self._send("release", name=job.name)

    def _send(self, verb: str, **args: str) -> None:
        self._orders.append(m.Command(id=uuid.uuid4().hex, verb=verb, args=args))

    def _ask(self, now: float) -> None:
        """Orders one after the other, each until it is answered: to send one twice is harmless."""
        if (answer := self._order.answer()) and self._orders:
            done = self._orders.pop(0)
            self._order_at = 0.0
            self._ask_at = 0.0  # what the launcher said before is of another life
            if done.verb == "capture":
                self._taken(msgspec.json.decode(done.args["source"], type=Source).name, answer)
        if self._orders and now >= self._order_at and self._order.ask(self._orders[0]):
            self._order_at = now + ANSWER_S
        if isinstance(answer := self._status.answer(), m.Done):
            self.states, self._told_of = json.loads(answer.detail), self._asked
            words = self.states.get(topology.COVERAGE_PRODUCER, "")
            if words.startswith("cannot run: "):
                self.fatal = f"{topology.COVERAGE_PRODUCER} {words}"
        if now >= self._ask_at and self._status.ask(m.Command(id=uuid.uuid4().hex, verb="status")):
            self._ask_at = now + ASK_EVERY_S
            self._asked += 1

    def _ask_for_turns(self, now: float) -> None:
        """Whether the diarizer is through with a file that is waited for: its place says so, at the very end, and then
        no windows are kept."""
        answer = self._turns.answer()
        over = isinstance(answer, m.At) and answer.positions.get("meta") == 2
        if over and not self.settings.windows(self._turns_of).exists():
            self._known.add(self._turns_of)
        waiting = [job for job in self.jobs if job.state == "speakers" and job.stream not in self._known]
        if waiting and now >= self._turns_at:
            self._turns_of = waiting[0].stream
            ask = m.Append(producer=topology.DIARIZER, stream=self._turns_of, expect_n=-1)  # it only asks
            self._turns_at = now + (ASK_EVERY_S if self._turns.ask(ask) else 0.1)
        self._told_at = self._told_at if waiting and not self._goes_on() and self._told_at else now
        if now - self._told_at > STILL_S:
            for job in waiting:
                job.problem = f"who says it is not known: nothing from the {topology.DIARIZER} for {STILL_S:.0f} s"
                self._known.add(job.stream)
        if self.speakers and self.states.get(topology.DIARIZER, "").startswith("cannot run: "):
            self.fatal = f"{topology.DIARIZER} {self.states[topology.DIARIZER]}"
        if waiting and self.states and not self.private and topology.DIARIZER not in self.states:
            self.fatal = (
                "the running system was started with speakers.enabled=false; leave --speakers out, or restart it"
            )

    def _goes_on(self) -> bool:
        """The diarizer has said something of any stream since the last time."""
        streams = self.client.last_beat.streams if self.client.last_beat else {}
        told = {s: b.producers[topology.DIARIZER].n for s, b in streams.items() if topology.DIARIZER in b.producers}
        new, self._told = any(n != self._told.get(s) for s, n in told.items()), self._told | told
        return new

    def _taken(self, name: str, answer: m.Answer) -> None:
        """The launcher has the source, or says why not."""
        self.states.pop(f"capture@{name}", None)
        self._sure_from[name] = self._asked + 1
        if isinstance(answer, m.Refused):
            self._added.discard(name)
        for job in self.jobs:
            if job.name == name and not job.settled and isinstance(answer, m.Refused):
                job.state, job.problem = "refused", f"not taken up: {answer.reason}"
                if answer.retry_after_s:  # it is ending: whatever comes after it has the file
                    job.state, job.problem = "waiting", ""
