"""The real translator with real weights, a real feed and a real arbiter: `tests.translating` says the words."""

from __future__ import annotations

import random
import signal

import pytest

from common import messages as m
from common.process import signal_holder
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.test_translator_steps import SENTENCES, chrf, cut, directly, models
from tests.translating import START_S, Stage
from workers.translation_models import Models

__all__ = ["models"]  # a fixture
pytestmark = [pytest.mark.processes, pytest.mark.speech, pytest.mark.timeout(900)]


@pytest.fixture
def stage(processes: Processes, settings: Settings) -> Stage:
    return Stage(processes, settings, "pt")


def test_sentences_that_pauses_cut_become_what_whole_ones_become(stage: Stage, models: Models) -> None:
    seed = random.SystemRandom().randrange(10**6)
    pieces = cut(random.Random(seed))
    stage.start()
    stage.beat_of_translator()
    for text, quiet_s in pieces:
        stage.say(text, quiet_s)
    stage.end()
    stage.over()
    found = stage.sentences("pt")
    assert [s.source for s in found] == list(SENTENCES)
    score = chrf([s.text for s in found], directly(models, SENTENCES))
    print(f"seed {seed}: {len(SENTENCES)} sentences in {len(pieces)} segments; chrF against whole ones: {score:.1f}")
    assert score >= 95


def test_kills_and_offloads_change_nothing(processes: Processes, settings: Settings, stage: Stage) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pieces = cut(rng)
    stage.start()
    moments = sorted(rng.sample(range(4, len(pieces) - 2), 3))
    for i, (text, quiet_s) in enumerate(pieces):
        stage.say(text, quiet_s)
        if i in moments:
            wait_for(lambda: stage.told("pt"), START_S, "a first translation")
            if i == moments[1]:
                # killed a moment ago, it may not have its weights back yet: it is sent away once it has
                wait_for(lambda: isinstance(stage.order("evict", worker="translator"), m.Done), START_S, "the card")
            else:
                stage.kill()
                stage.start()
    stage.end()
    stage.over()
    assert sum('"started"' in p.output() or "started" in p.output() for p in processes.started) >= 3
    disturbed = stage.told("pt")
    undisturbed = Stage(processes, settings, "pt", stream="talk-2")
    undisturbed.settings = stage.settings
    for text, quiet_s in pieces:
        undisturbed.say(text, quiet_s)
    undisturbed.end()
    undisturbed.over()

    def lines(told: list[tuple[m.Translation, int]], stream: str) -> list[str]:
        return [m.encode(t).decode("latin-1").replace(stream, "STREAM") for t, _ in told]

    assert lines(disturbed, "talk-1") == lines(undisturbed.told("pt"), "talk-2")
    assert len(disturbed) == len(SENTENCES)


def test_two_targets_at_once_and_one_that_is_set_later(stage: Stage, models: Models) -> None:
    english, portuguese = "The library needs a new roof.", "Bom dia a todos, vamos começar a reunião."
    stage.start()
    stage.say(english)
    stage.say(portuguese, language="pt")
    assert [s.text for s in stage.wait("pt", 1)] == directly(models, [english])
    assert [s.text for s in stage.translations().sentences("pt")][1:] == [portuguese], "it stands for itself"
    before = stage.told("pt")
    signal_holder(stage.run, "translator", signal.SIGTERM)
    assert stage.translator.wait(START_S) == 0
    stage.start("pt", "en")
    assert [s.text for s in stage.wait("en", 1)] == directly(models, [portuguese], source="pt", target="en")
    assert stage.told("pt") == before, "what is there is not done again"
    stage.say("Thank you very much.")
    stage.say("Muito obrigado.", language="pt")
    stage.end()
    stage.over()
    assert [s.source for s in stage.sentences("pt")] == [english, "Thank you very much."]
    assert [s.source for s in stage.sentences("en")] == [portuguese, "Muito obrigado."]
    assert stage.translations().left("pt") == stage.translations().left("en") == []


def test_a_pair_that_no_model_knows_is_one_line_and_holds_nothing_up(processes: Processes, settings: Settings) -> None:
    stage = Stage(processes, settings, "de", "pt")
    stage.start()
    stage.say("We begin now.")
    assert [s.source for s in stage.wait("pt", 1)] == ["We begin now."]
    line = "no model of translate.models translates en to de; captions go on without"
    wait_for(lambda: stage.beat_of_translator().detail == line, 30.0, "the line")
    stage.say("And so it goes.")
    stage.wait("pt", 2)
    stage.end()
    stage.over("de", "pt")
    assert stage.told("de") == []
    assert stage.translator.output().count(line) == 1


def test_a_correction_is_translated_again(stage: Stage, models: Models) -> None:
    stage.start()
    first = stage.say("He came. We met")
    stage.say("in the old town.")
    assert [s.source for s in stage.wait("pt", 2)] == ["He came.", "We met in the old town."]
    stage.correct(first, "He came early. We met")
    wait_for(lambda: [s.source for s in stage.sentences("pt")][:1] == ["He came early."], START_S, "the correction")
    stage.end()
    stage.over()
    found = stage.sentences("pt")
    assert [s.source for s in found] == ["He came early.", "We met in the old town."]
    assert [s.text for s in found] == directly(models, [s.source for s in found])
    assert len(stage.told("pt")) == 4
