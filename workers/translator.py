"""The translator: final text of all streams in, sentence by sentence in other languages out, also several at once.

`sentences` says what a sentence is, `untranslated` what of a stream is due, `translation_models` what it is called in
another language, and whether that can be believed. Each target language is a producer of its own, so one that is set
later catches up by itself. After a kill it goes on where the journal stands, for what is due follows from the journal
alone. Captions never wait for it; where it is late, more sentences go through the model at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from common import backlog, wire
from common import messages as m
from common.feed_client import FeedClient, replay
from common.process import Process, arguments, give_way, main
from common.settings import TranslateSettings
from workers._torch import set_up
from workers.base import Runner
from workers.delays import Delays, ago_s
from workers.sentences import Sentence
from workers.steps import Step, Worker
from workers.tenancy import NotCarriedOut
from workers.untranslated import KINDS, Script, Target, translation

if TYPE_CHECKING:
    from workers.translation_models import Models

NICE = 3  # captions come first, and this before the turns of speakers
NOBODY_S = 3600.0  # of silence, as far as it is asked
FAILED = "failed"  # `suspect` of a sentence that ended the process too often
PLACE = Step(positions={}, events=(), state=b"")  # an append that says nothing


class Translator(Worker):
    """Every sentence of every stream to the models, once for each target."""

    name = "translator"
    models: Models

    def __init__(self, process: Process) -> None:
        self.process, self.settings, self.log = process, process.settings, process.log
        self.s: TranslateSettings = process.settings.translate
        self.scripts: dict[str, Script] = {}
        self._over: dict[str, int] = {}  # streams of which nothing is due any more: the seq of their last event
        self._client = FeedClient(self.settings, kinds=KINDS)
        self._journal = ""
        self._delays = Delays(self.settings.viewer.delays_over_s, interim=False)
        self._most = self.s.batch_most
        self._alone = 0  # so many sentences go one by one now: some of them ended badly together
        self._said: set[tuple[str, str]] = set()

    # The models

    def load(self, process: Process) -> Sequence[Any]:
        torch = set_up(self.s.threads, process.settings.cache)
        from workers import translation_models

        self.models = translation_models.load(torch, process.settings, self.s.models)
        return self.models.modules

    def key(self) -> str:
        return f"{self.models.sha256} threads={self.s.threads} batch={self.s.batch_most}"

    def working_bytes(self) -> int:
        return self.models.working_bytes(self._most)

    def least_working_bytes(self) -> int:
        return self.models.working_bytes(1)

    def too_large(self) -> None:
        self._most = max(1, self._most // 2)

    def rehearse(self) -> Iterator[None]:
        return self.models.rehearse(self._most)

    # What is due

    def sockets(self) -> Sequence[Any]:
        return self._client.sockets

    def look(self, runner: Runner, now: float) -> None:
        events = [e for e in self._client.poll(0.0) if isinstance(e, m.Event)]
        journal = self._client.follower.journal
        if self._journal not in ("", journal):  # another journal: what we know is of no use
            self.scripts.clear()
            self._over.clear()
        self._journal = journal
        for e in events:
            if not self._take(runner, e):
                return
        for stream, script in list(self.scripts.items()):
            script.settle(self._client.head)
            if script.stale:
                self._read_again(runner, stream)
            elif all(script.over(target) for target in script.targets.values()):
                self._over[stream] = script.last
                del self.scripts[stream]
            elif news := script.unknown - self._said:
                self._said |= news
                self.log.warning(_unknown(sorted(news)), stream=stream)

    def _take(self, runner: Runner, e: m.Event) -> bool:
        """False: we are told to stop."""
        stream = e.stream
        if stream in self._over:
            if e.kind == "translation" or e.seq <= self._over[stream]:
                return True
            del self._over[stream]  # something was corrected after its end
            return self._read_again(runner, stream)
        script = self.scripts.get(stream) or self._open(runner, stream)
        if script is None:
            return False
        script.take(e)
        return True

    def _open(self, runner: Runner, stream: str) -> Script | None:
        places = dict[str, m.At]()
        for code in self.s.targets:
            at = runner.commit(stream, -1, None, code)
            if at is None:
                return None
            places[code] = at
        self.scripts[stream] = Script(stream, places, self.s.hold_s, self._knows)
        return self.scripts[stream]

    def _knows(self, source: str, target: str) -> bool:
        return self.models.knows(source, target)

    def _read_again(self, runner: Runner, stream: str) -> bool:
        """From the beginning of the journal. False: we are told to stop."""
        script = self._open(runner, stream)
        if script is None:
            return False
        seq = 0
        try:
            for e in replay(self.settings, kinds=(*KINDS, "purged"), stream=stream, timeout_s=1.0):  # a lease may wait
                script.take(e)
                seq = e.seq
            script.settle(seq)
            script.stale = False  # purges that it has read are in its place
        except wire.Unreachable:
            script.stale = True  # the next look tries again
        return True

    def _waiting(self) -> list[tuple[Script, Target]]:
        """Where something may be to do: live streams first, then what has waited longest."""
        found = [(s, t) for s in self.scripts.values() for t in s.targets.values() if t.due or s.ended]
        return sorted(found, key=lambda st: (st[0].ended, st[0].lane != "live", st[0].oldest_s(st[1])))

    def needs_model(self) -> bool:
        return any(t.due for s in list(self.scripts.values()) for t in s.targets.values())

    # For the control thread

    def lags(self) -> dict[str, float]:
        return {name: round(self._late_s(script), 1) for name, script in list(self.scripts.items())}

    def late(self) -> float:
        """What was said before we came is caught up with, and bursts need not wait for that."""
        live = [s for s in list(self.scripts.values()) if s.lane == "live" and not s.ended]
        return max(map(self._late_s, live), default=0.0)

    @staticmethod
    def _late_s(script: Script) -> float:
        oldest = [since_s for t in script.targets.values() if (since_s := script.oldest_s(t))]
        return time.monotonic() - min(oldest) if oldest else 0.0

    def silence_s(self) -> float:
        return NOBODY_S  # whether somebody speaks is for the transcriber to say

    def positions(self) -> dict[str, int]:
        return {
            f"{name} {t.code}": t.at.n for name, s in list(self.scripts.items()) for t in list(s.targets.values())
        }  # a sentence that is held keeps the position where it is, and those behind it are progress

    def trouble(self) -> str:
        pairs = {pair for script in list(self.scripts.values()) for pair in list(script.unknown)}
        return _unknown(sorted(pairs)) if pairs else ""

    def note(self) -> str:
        waiting = sum(len(t.due) for s in list(self.scripts.values()) for t in s.targets.values())
        return f"{waiting} sentences wait" if waiting > 1 else ""

    def delay_figures(self) -> tuple[m.Delay, ...]:
        return self._delays.figures()

    # Work

    def turn(self, runner: Runner) -> bool:
        for script, target in self._waiting():
            if not target.at.n and target.due:
                if at := runner.commit(script.stream, 0, PLACE, target.code):
                    script.noted(target, at)
                return True
            if target.at.n and not script.settled(target, self._client.head):
                continue
            if gone := script.gone(target):
                self._commit(runner, script, target, script.step(target, gone))
                return True
            if sentences := script.next(target, self._many(script, target)):
                if runner.ready:
                    self._translate(runner, script, target, sentences)
                    return True
            elif script.ended and not script.over(target) and script.reached(target) > target.position:
                self._commit(runner, script, target, script.step(target))
                return True
        return False

    def _many(self, script: Script, target: Target) -> int:
        """Sentences at once: one more for each second that a live stream's are late. A recording is not late."""
        if self._alone or script.lane != "live":
            return 1
        oldest_s = script.oldest_s(target)
        late_s = time.monotonic() - oldest_s if oldest_s else 0.0
        return max(1, min(self._most, int(late_s)))

    def _translate(self, runner: Runner, script: Script, target: Target, sentences: list[Sentence]) -> None:
        what = f"{target.code} {script.stream}"
        if runner.poison.ended_badly(what) >= 0 and not self._alone:
            self._alone, sentences = self.s.batch_most, sentences[:1]
        first, language = sentences[0], sentences[0].language
        name = self.models.name(language, target.code)
        if not runner.poison.begin(what, first.span[0]):
            self.log.warning("gave up", stream=script.stream, target=target.code, span=first.span)
            left_out = translation(first, target.code, "", FAILED, name)
            gap = m.Gap(span=first.span, reason=FAILED, retryable=False)
            self._commit(runner, script, target, script.step(target, [left_out], [gap]))
            return
        runner.phase = "inferring"
        try:
            pieces = self.models.translate([s.text for s in sentences], language, target.code)
            done = runner.step(pieces, self.models.working_bytes(len(sentences)))
        except NotCarriedOut:
            runner.poison.failed(counts=False)
            raise
        except Exception:
            failures = runner.poison.failed()
            self.log.exception("translation failed", stream=script.stream, span=first.span, failures=failures)
            raise
        if done is None:  # the GPU had to be given back first; many at once may take too long for the time we get
            runner.poison.failed(counts=False)
            self._alone = max(self._alone, len(sentences) - 1)
            return
        made = [translation(s, target.code, d.text, d.suspect, name) for s, d in zip(sentences, done, strict=True)]
        self._alone = max(0, self._alone - len(sentences))
        if self._commit(runner, script, target, script.step(target, made)) and not script.ended:
            self._measure(script, sentences)

    def _commit(self, runner: Runner, script: Script, target: Target, step: Step) -> bool:
        at = runner.commit(script.stream, target.at.n, step, target.code)
        if at is None:
            return False
        if not script.moved(target, at, step):
            self.log.warning("place taken from the journal", stream=script.stream, target=target.code, n=at.n)
            return False
        runner.poison.rest()  # an end of the process from now on has nothing to do with these sentences
        return True

    def _measure(self, script: Script, sentences: Sequence[Sentence]) -> None:
        """From the commit of the text that made a sentence whole; and from its last word, as captions are measured."""
        if script.lane != "live":
            return
        anchors = backlog.last_anchors(self.settings.streams / script.stream)
        clocks, now = backlog.anchor_now(0), time.time_ns()
        for s in sentences:
            total_s, since_s = ago_s(s.span[1], anchors, clocks), (now - script.known_ns[s.key]) / 1e9
            self._delays.add("live", time.monotonic(), total=total_s)
            if 0.0 <= since_s <= total_s:  # else somebody set the wall clock meanwhile
                self._delays.add("live", time.monotonic(), translation=since_s)


def _unknown(pairs: Sequence[tuple[str, str]]) -> str:
    names = ", ".join(f"{source} to {target}" for source, target in pairs)
    return f"no model of translate.models translates {names}; captions go on without"


def run(process: Process) -> None:
    give_way(NICE)  # before anything is loaded: captions must not start later because of it
    Runner(process, Translator(process)).run()


if __name__ == "__main__":
    main("translator", run, arguments(__doc__ or ""))
