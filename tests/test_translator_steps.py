"""The translator without a system around it: real weights, a journal in memory, and a GPU that can be taken away.

`tests/test_translator.py` does the same with real processes; here every moment can be chosen.
"""

from __future__ import annotations

import gc
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sacrebleu.metrics import CHRF

from common import messages as m
from common.process import Log
from common.settings import Settings
from tests.in_process import run
from tests.system import weights
from tests.test_untranslated import STREAM, World
from tests.translating import with_targets
from workers._torch import set_up
from workers.poison import Poison
from workers.translation_models import Models, Translated, load
from workers.translator import Translator

pytestmark = pytest.mark.speech
SENTENCES = (
    "Good morning, everybody, and thank you for coming.",
    "My name is Helen Carter, and this is Mr. Dawson from the city council.",
    "We have 3 things to decide today.",
    "The first one is the new bridge over the river.",
    "It was closed in March because the old stones had become loose.",
    "How much will the repair cost?",
    "The engineers say that 250 thousand would be enough.",
    "That is a lot of money for a small town.",
    "I agree, but the children need a safe way to school.",
    "Could we ask the county for help?",
    "We did, and they promised to pay one half of it.",
    "Then I suggest that we begin in May.",
    "Does anybody want to say something about that?",
    "The shops in the old street will lose their customers while the work goes on.",
    "We should put up signs, so that people know that the shops are open.",
    "Very well, Mr. Dawson will write to the shop owners by Friday.",
    "The second thing is the library.",
    "It needs a new roof before the winter comes.",
    "Let us talk about it after a short break.",
)


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    settings = Settings()
    weights(*settings.translate.models)
    yield load(set_up(1, settings.cache), settings, settings.translate.models)
    gc.collect()


class StandInClient:
    """What the feed tells one subscriber, who misses nothing."""

    def __init__(self, world: World) -> None:
        self.world, self.head, self.follower = world, 0, SimpleNamespace(journal="")
        self._journal = ""

    def poll(self, timeout_s: float) -> list[m.Event]:
        self.follower.journal = self._journal  # events may come before it is known which journal they are of
        self._journal = "j"
        new = self.world.events[self.head :]
        self.head = self.world.head
        return new


class StandInRunner:
    """The base as a worker sees it; so many pieces are granted before the GPU is taken away, None: as many as it
    likes."""

    def __init__(self, folder: Path, world: World) -> None:
        self.ready, self.phase, self.world, self.folder = True, "", world, folder
        self.pieces: int | None = None
        self.batches: list[int] = []  # working bytes of each step
        self.restart()

    def restart(self) -> None:
        self.poison = Poison(self.folder, "translator")

    def step(self, work: Any, working_bytes: int) -> Any:
        self.batches.append(working_bytes)
        try:
            while self.pieces is None or self.pieces > 0:
                next(work)
                self.pieces = None if self.pieces is None else self.pieces - 1
        except StopIteration as e:
            return e.value
        work.close()
        return None

    def commit(self, stream: str, expect_n: int, step: Any, part: str) -> m.At:
        producer = f"translator.{part}"
        if step is None:
            return self.world.at(producer)
        return self.world.append(producer, expect_n, step.events, step.state, **step.positions)


def life(runner: StandInRunner, models: Any, *targets: str, **more: Any) -> Translator:
    """One life of the translator: it knows what the journal says."""
    settings = with_targets(Settings(data_dir=str(runner.folder)), *targets, **more)
    worker = Translator(SimpleNamespace(settings=settings, log=Log("test")))  # type: ignore[arg-type]
    worker._client.close()
    worker._client = StandInClient(runner.world)  # type: ignore[assignment]
    worker.models = models
    runner.restart()
    return worker


def work(worker: Translator, runner: StandInRunner, turns: int = 300) -> None:
    """Until there is nothing to do."""
    for _ in range(turns):
        worker.look(runner, 0.0)  # type: ignore[arg-type]
        if not worker.turn(runner):  # type: ignore[arg-type]
            return


def cut(rng: random.Random) -> list[tuple[str, float]]:
    """The sentences as one text, cut where somebody may pause, which is anywhere; and the pause before each piece,
    which is long only where a sentence has ended."""
    words = " ".join(SENTENCES).split()
    out: list[tuple[str, float]] = []
    while words:
        count = rng.randint(3, 14)
        before = out[-1][0] if out else ""
        ended = re.search(r"[.?]$", before) is not None and not before.endswith("Mr.")
        out.append((" ".join(words[:count]), rng.choice([0.3, 1.5, 4.0] if ended else [0.3, 1.5])))
        words = words[count:]
    return out


def directly(models: Models, sentences: Sequence[str], source: str = "en", target: str = "pt") -> list[str]:
    """Each for itself."""
    return [run(models.translate([s], source, target))[0].text for s in sentences]


def told(world: World, target: str) -> list[tuple[m.Translation, int]]:
    mine = [e for e in world.events if e.producer == f"translator.{target}"]
    return [(t, e.n) for e in mine if isinstance(t := e.decode(), m.Translation)]


def texts_told(world: World, target: str) -> list[m.Translation]:
    """Not with the number of each append: who is late writes several sentences in one."""
    return [t for t, _ in told(world, target)]


def chrf(texts: Sequence[str], reference: Sequence[str]) -> float:
    return float(CHRF().corpus_score([" ".join(texts)], [[" ".join(reference)]]).score)


@pytest.fixture
def runner(folder: Path) -> StandInRunner:
    return StandInRunner(folder, World())


def test_sentences_that_pauses_cut_become_what_whole_ones_become(runner: StandInRunner, models: Models) -> None:
    seed = random.SystemRandom().randrange(10**6)
    pieces = cut(random.Random(seed))
    world, worker = runner.world, life(runner, models, "pt")
    for text, quiet_s in pieces:
        world.say(text, quiet_s)
        work(worker, runner)
    world.end()
    work(worker, runner)
    found = world.found("pt")
    assert [source for source, _ in found] == list(SENTENCES)
    reference = directly(models, SENTENCES)
    score = chrf([text for _, text in found], reference)
    apart = chrf(directly(models, [text for text, _ in pieces]), reference)
    print(f"seed {seed}: {len(SENTENCES)} sentences in {len(pieces)} segments; chrF against direct translation of the")
    print(f"whole sentences: {score:.1f}; if each segment were translated for itself: {apart:.1f}")
    assert score >= 95 > apart
    assert sum(bool(t.goes_on) for t, _ in told(world, "pt")) > 3


def test_killed_or_sent_away_at_any_piece_it_writes_the_same(folder: Path, models: Models) -> None:
    texts = [("Good morning. My name is", 0.3), ("Mr. Smith, and I am glad", 0.5), ("to see you all.", 1.0)]
    undisturbed = StandInRunner(folder, World())
    worker = life(undisturbed, models, "pt")
    for text, quiet_s in texts:
        undisturbed.world.say(text, quiet_s)
        work(worker, undisturbed)
    undisturbed.world.end()
    work(worker, undisturbed)
    wanted, rng = texts_told(undisturbed.world, "pt"), random.Random(7)
    assert len(wanted) == 2
    for most in (1, 2, 5, 9):
        disturbed = StandInRunner(folder, World())
        worker = life(disturbed, models, "pt")
        for text, quiet_s in texts:
            disturbed.world.say(text, quiet_s)
            for _ in range(3):
                disturbed.pieces = rng.randint(0, most)
                work(worker, disturbed, turns=4)
                if rng.random() < 0.5:
                    worker = life(disturbed, models, "pt")
        disturbed.world.end()
        disturbed.pieces = None
        work(worker, disturbed)
        assert texts_told(disturbed.world, "pt") == wanted


class StandInModels:
    """Translates by marking; a sentence with the word `poison` fails."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def knows(self, source: str, target: str) -> bool:
        return target != "xx"

    def name(self, source: str, target: str) -> str:
        return "stand-in"

    def working_bytes(self, batch: int) -> int:
        return batch

    def translate(self, texts: Sequence[str], source: str, target: str) -> Iterator[None]:
        yield
        if any("poison" in text for text in texts):
            raise ArithmeticError("the stand-in was told to fail here")
        self.batches.append(len(texts))
        return [Translated(f"<{target} {text}>", "") for text in texts]


def test_a_sentence_that_fails_three_times_is_left_out_and_nothing_else(runner: StandInRunner) -> None:
    world, models = runner.world, StandInModels()
    for text in ("One.", "Two is poison.", "Three.", "Four."):
        world.say(text)
    failures = 0
    for _ in range(20):
        worker = life(runner, models, "pt", batch_most=4)
        try:
            work(worker, runner)
        except ArithmeticError:
            failures += 1  # the process ends, and the launcher starts the next
            continue
        break
    assert 3 <= failures <= 5
    assert [s for s, _ in world.found("pt")] == ["One.", "Three.", "Four."]
    [gap] = [e.decode() for e in world.events if e.kind == "gap"]
    [left_out] = [t for t, _ in told(world, "pt") if not t.text]
    assert isinstance(gap, m.Gap) and gap.reason == "failed" and gap.span == left_out.span
    assert left_out.suspect == "failed" and left_out.source == "Two is poison."
    work(life(runner, models, "pt"), runner)
    assert len(told(world, "pt")) == 4, "it is not tried for ever"


def test_the_later_it_is_the_more_go_at_once(runner: StandInRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    world, models = runner.world, StandInModels()
    for i in range(20):
        world.say(f"This is number {i}.")
    worker = life(runner, models, "pt", batch_most=8)
    worker.look(runner, 0.0)  # type: ignore[arg-type]
    later(monkeypatch, 100.0)
    work(worker, runner)
    assert models.batches == [8, 8, 4]
    assert worker.note() == "" and worker.lags() == {STREAM: 0.0}
    # A recording is not late: one by one, so it is the same each time.
    other = StandInRunner(runner.folder, World())
    other.world.events[0] = m.Event(
        seq=1, prev=0, stream=STREAM, kind="stream_started", producer="transcriber", n=1, at_ns=1,
        body=m.encode(m.StreamStarted(source="s", lane="batch", started_ns=0)),
    )  # fmt: skip
    for i in range(3):
        other.world.say(f"This is number {i}.")
    batch = StandInModels()
    work(life(other, batch, "pt", batch_most=8), other)
    assert batch.batches == [1, 1, 1]


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """So long passes."""
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + seconds)


@pytest.mark.parametrize("set_by_s", [-3600, 0, 3600])
def test_how_late_it_is_no_wall_clock_says(
    runner: StandInRunner, monkeypatch: pytest.MonkeyPatch, set_by_s: int
) -> None:
    """Commits of this world lie in 1970, too."""
    runner.world.say("He came.")
    worker = life(runner, StandInModels(), "pt", batch_most=8)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + set_by_s * 10**9)
    runner.ready = False
    work(worker, runner)
    (script,) = worker.scripts.values()
    (target,) = script.targets.values()
    assert worker.late() < 30 and worker.lags()[STREAM] < 30, "what was said before it came it does not count"
    later(monkeypatch, 90.0)
    assert 90 <= worker.late() < 120 and 90 <= worker.lags()[STREAM] < 120 and worker._many(script, target) == 8
    runner.ready = True
    work(worker, runner)
    assert worker.late() == 0
    assert all(d.stage != "translation" for d in worker.delay_figures()), "nobody waited since 1970"


def test_without_the_gpu_it_knows_how_late_it_is_and_what_needs_no_model_goes_on(runner: StandInRunner) -> None:
    world, models = runner.world, StandInModels()
    worker = life(runner, models, "pt")
    runner.ready = False
    world.say("He came. We met")
    world.say("there.")
    work(worker, runner)
    assert worker.needs_model() and worker.late() > 0
    assert told(world, "pt") == [] and worker.note() == "2 sentences wait"
    runner.ready = True
    work(worker, runner)
    assert len(told(world, "pt")) == 2 and not worker.needs_model()
    runner.ready = False
    world.correct(0, "He came there and")
    work(worker, runner)
    assert [t.place for t, _ in told(world, "pt") if not t.text] == [1], "what is gone is taken back at once"


def test_an_unknown_pair_is_one_line(runner: StandInRunner, caplog: pytest.LogCaptureFixture) -> None:
    world, models = runner.world, StandInModels()
    worker = life(runner, models, "xx", "pt")
    world.say("One. Two.")
    work(worker, runner)
    world.say("Three.")
    work(worker, runner)
    assert worker.trouble() == "no model of translate.models translates en to xx; captions go on without"
    assert len(told(world, "pt")) == 3 and not worker.needs_model() and worker.late() == 0.0
    assert sum("en to xx" in r.getMessage() for r in caplog.records) == 1


def test_a_stream_that_is_over_is_forgotten_until_something_comes(runner: StandInRunner) -> None:
    world, models = runner.world, StandInModels()
    worker = life(runner, models, "pt")
    world.say("One.")
    world.end()
    work(worker, runner)
    assert not worker.scripts, "nothing of it is held"
    worker_2 = life(runner, models, "pt")
    work(worker_2, runner)
    assert not worker_2.scripts and len(told(world, "pt")) == 1
