"""A stage for the translator: real feed, arbiter and translator with real weights; the test stands in for the
transcriber, and appends what one would. So what is said is known, and nothing has to be heard first.

    stage = Stage(processes, settings, "pt")
    stage.start(); stage.say("Good morning. My name is"); stage.say("Smith."); stage.end(); stage.over()
"""

from __future__ import annotations

import signal
import time
import uuid
from typing import Any

import msgspec

from common import messages as m
from common import wire
from common.feed_client import Appender, FeedClient, replay
from common.process import holder, signal_holder, wait_gone
from common.settings import Settings
from common.topology import COVERAGE_PRODUCER
from common.translations import Sentence, Translations
from tests.conftest import Processes, Started, wait_for
from tests.system import weights

START_S = 180.0  # a busy machine loads weights for long
RATE = m.SAMPLE_RATE
SHORT_S = 0.3  # a pause within a sentence
WORD_S = 0.4


def with_targets(settings: Settings, *targets: str, **more: Any) -> Settings:
    into = msgspec.structs.replace(settings.translate, targets=targets, **more)
    return msgspec.structs.replace(settings, translate=into)


class Stage:
    """One data folder. `translator` is its present process."""

    def __init__(self, processes: Processes, settings: Settings, *targets: str, stream: str = "talk-1") -> None:
        self.processes, self.settings = processes, with_targets(settings, *targets, batch_most=1)
        weights(*self.settings.translate.models)
        self.run = wire.run_dir(self.settings)
        self.stream, self.clock, self.n = stream, 0, 0
        self.texts: dict[str, m.Transcript] = {}  # newest, by segment
        self.translator: Started

    def start(self, *targets: str) -> Started:
        """The translator, and the others if they do not run; with other targets than before if any are named."""
        for name, module in (("feed", "workers.feed"), ("arbiter", "arbiter")):
            if holder(self.run, name) is None:
                self.processes.start(module, settings=self.settings)
        if targets:
            self.settings = with_targets(self.settings, *targets)
        self.translator = self.processes.start("workers.translator", settings=self.settings)
        return self.translator

    def kill(self) -> None:
        pid = wait_for(lambda: signal_holder(self.run, "translator", signal.SIGKILL), START_S, "the translator")
        assert pid and wait_gone(pid, 10.0)

    def order(self, verb: str, **args: str) -> m.Answer:
        """To the arbiter."""
        asker = wire.Requester(wire.ipc(self.settings, "arbiter"))
        try:
            return asker.request(m.Command(id=uuid.uuid4().hex, verb=verb, args=args), 10.0)
        finally:
            asker.close()

    # What is said

    def append(self, *bodies: m.Body) -> None:
        feed = Appender(self.settings, COVERAGE_PRODUCER)
        try:
            if not self.n:
                bodies = (m.StreamStarted(source="talk", lane="live", started_ns=time.time_ns()), *bodies)
            answer = feed.append(self.stream, self.n, {"audio": self.clock}, bodies, timeout_s=60.0)
            assert isinstance(answer, m.At) and answer.n == self.n + 1, answer
            self.n = answer.n
        finally:
            feed.close()

    def say(self, text: str, quiet_s: float = SHORT_S, language: str = "en") -> m.Transcript:
        """A pause and an utterance, in one append, as the transcriber does it."""
        start, before = self.clock + round(quiet_s * RATE), self.clock
        spans = [(start + round(i * WORD_S * RATE), start + round((i + 1) * WORD_S * RATE)) for i in range(99)]
        words = tuple(m.Word(text=f" {w}", span=s, p=1.0) for w, s in zip(text.split(), spans, strict=False))
        self.clock = words[-1].span[1]
        said = m.Transcript(
            segment=m.segment_id(self.stream, start), span=(start, self.clock), text=text, language=language,
            words=words, model="stand-in",
        )  # fmt: skip
        self.append(m.Silence(span=(before, start)), said)
        self.texts[said.segment] = said
        return said

    def correct(self, old: m.Transcript, text: str) -> m.Transcript:
        new = msgspec.structs.replace(
            old, text=text, words=(), revision=old.revision + 1, supersedes=f"{old.segment}/{old.revision}"
        )
        self.append(new)
        self.texts[new.segment] = new
        return new

    def end(self) -> None:
        self.append(m.StreamEnded(end=self.clock, reason="end of file"))

    # What became of it

    def journal(self) -> list[m.Event]:
        return list(replay(self.settings, stream=self.stream))

    def told(self, target: str) -> list[tuple[m.Translation, int]]:
        """All that was written in a language, each with the number of its append."""
        mine = [e for e in self.journal() if e.producer == f"translator.{target}"]
        return [(t, e.n) for e in mine if isinstance(t := e.decode(), m.Translation)]

    def translations(self) -> Translations:
        found = Translations()
        for e in self.journal():
            found.take(e)
        return found

    def sentences(self, target: str) -> list[Sentence]:
        """Of those that were translated."""
        return [s for s in self.translations().sentences(target) if s.model]

    def wait(self, target: str, count: int) -> list[Sentence]:
        """For so many sentences."""
        wait_for(lambda: len(self.sentences(target)) >= count, START_S, f"{count} sentences")
        return self.sentences(target)

    def over(self, *targets: str) -> None:
        """Wait until everything is translated, and the journal knows it."""
        client = FeedClient(self.settings, kinds=())

        def done() -> bool:
            client.poll(0.1)
            of = client.last_beat.streams.get(self.stream) if client.last_beat else None
            places = {p: at.positions.get("transcript", 0) for p, at in of.producers.items()} if of else {}
            return of is not None and all(
                places.get(f"translator.{t}", 0) >= of.heads["stream_ended"] for t in targets or self.targets
            )

        try:
            wait_for(done, START_S, "everything to be translated")
        finally:
            client.close()

    @property
    def targets(self) -> tuple[str, ...]:
        return self.settings.translate.targets

    def beat_of_translator(self, timeout_s: float = START_S) -> m.WorkerStatus:
        """Its next sign of life."""
        client = FeedClient(self.settings, kinds=())

        def told() -> m.WorkerStatus | None:
            client.poll(0.1)
            return client.last_beat.workers.get("translator") if client.last_beat else None

        try:
            found = wait_for(told, timeout_s, "a sign of life")
        finally:
            client.close()
        assert found
        return found
