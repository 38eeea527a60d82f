"""What `export --format json` prints is what a subscriber has who only applies events, whatever they are."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from common import exports
from common import messages as m
from common.document import document
from tests.export_cases import RATE
from tests.fold import Subscriber
from tests.test_join import Journal, names, relabels, stretches, texts, turns

pytestmark = pytest.mark.pure


@st.composite
def translations(draw: st.DrawFn, said: list[m.Transcript]) -> m.Translation:
    """Of one or two texts that were there once, or of one that never was."""
    parts = draw(st.lists(st.sampled_from(said), min_size=1, max_size=2, unique_by=lambda t: t.segment))
    first, *more = sorted(parts, key=lambda t: t.span)
    whole = " ".join(t.text for t in parts)
    a, b = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    return m.Translation(
        segment=first.segment,
        revision=draw(st.sampled_from([first.revision, first.revision, 9])),
        target=draw(st.sampled_from(["pt", "de", "en"])),
        text=draw(st.sampled_from(["Sim.", "Não.", "Talvez.", ""])),
        suspect=draw(st.sampled_from([None, "empty"])),
        place=draw(st.integers(0, 1)),
        goes_on=tuple(f"{t.segment}/{t.revision}" for t in more),
        span=draw(st.none() | stretches),
        source=draw(st.sampled_from(["", "Yes.", whole[a:b], whole[a:b]])),
        source_language=draw(st.sampled_from(["", "en"])),
        model=draw(st.sampled_from(["", "stand-in"])),
    )


others = st.one_of(
    st.builds(m.Gap, span=stretches, reason=st.just("failed"), retryable=st.booleans()),
    st.builds(m.Suppressed, span=stretches, text=st.just(" uh "), reason=st.just("echo")),
    st.builds(m.Silence, span=stretches),
    st.builds(m.StreamStarted, source=st.just("mic"), lane=st.just("live"), started_ns=st.just(7)),
    st.builds(m.StreamEnded, end=st.integers(0, 60 * RATE), reason=st.just("source ended")),
)
bullets = st.builds(m.Bullet, kind=st.just("decision"), text=st.just("We go."), segments=st.just(("x:0",)))
minutes = st.builds(
    m.Summary, first=st.just("x:0"), last=st.just("x:0"), bullets=st.lists(bullets, max_size=2).map(tuple),
    model=st.just("m"), coverage=st.sampled_from([0.5, 1.0]), span=st.none() | stretches,
)  # fmt: skip


@st.composite
def journals(draw: st.DrawFn) -> list[m.Event]:
    journal = Journal()
    for _ in range(draw(st.integers(0, 16))):
        said = [b for e in journal.events if isinstance(b := e.decode(), m.Transcript)]
        by = draw(st.sampled_from(["transcriber", "transcriber", "diarizer", "cli.1", "summarizer", "translator.pt"]))
        kinds: dict[str, st.SearchStrategy[Any]] = {
            "transcriber": texts() | others,
            "diarizer": turns | turns | relabels | names | others,
            "cli.1": relabels | names,
            "summarizer": minutes | others,
            "translator.pt": translations(said) if said else others,
        }
        journal.add(*draw(st.lists(kinds[by], min_size=1, max_size=3)), by=by)
    if draw(st.integers(0, 3)) == 0:
        first = draw(st.integers(1, 20))
        journal.add(m.Purged(stream="x", seqs=((first, first + draw(st.integers(0, 8))),)), by="feed")
    return journal.events


@given(events=journals(), data=st.data())
@settings(max_examples=400, deadline=None)
def test_who_only_applies_events_has_the_state_that_is_exported(events: list[m.Event], data: st.DataObject) -> None:
    subscriber = Subscriber("x")
    for e in data.draw(st.permutations(events)):
        subscriber.take(m.encode(e))
    ours = document("x", data.draw(st.permutations(events)), "transcriber")
    assert json.loads(exports.json(ours, words=True)) == json.loads(json.dumps(subscriber.state()))


def test_the_state_is_of_something() -> None:
    """The comparison above would hold between two who know nothing."""
    journal = Journal()
    first = journal.say(0.0, "Good", "day.")
    journal.turn("S1", 0, 1)
    journal.turn("S2", 1, 2)
    journal.add(m.SpeakerName(speaker="S2", name="Bo"), by="cli.1")
    journal.relabel("S1", "S3", by="cli.2")
    journal.add(m.Translation(segment=first, revision=0, target="pt", text="Bom dia."), by="translator.pt")
    subscriber = Subscriber("x")
    for e in journal.events:
        subscriber.take(m.encode(e))
    state = subscriber.state()
    assert [s["text"] for s in state["translations"]["pt"]] == ["Bom dia."] and state["untranslated"] == {"pt": []}
    assert [(s["speaker"], s["name"], s["seconds"]) for s in state["speakers"]] == [
        ("S2", "Bo", 1.0),
        ("S3", None, 1.0),
    ]
    assert [(r["speaker"], r["text"]) for r in state["segments"][0]["runs"]] == [("S3", "Good"), ("S2", "day.")]
    journal.say(0.0, "Good", "night.", revision=1)
    subscriber.take(m.encode(journal.events[-1]))
    state = subscriber.state()
    assert state["translations"] == {} and state["segments"][0]["text"] == "Good night."
    part = m.Translation(segment=first, revision=1, target="pt", text="Noite.", place=1, source="night.")
    journal.add(part, by="translator.pt")
    subscriber.take(m.encode(journal.events[-1]))
    assert subscriber.state()["untranslated"] == {
        "pt": [{"segment": first, "start_s": 0.0, "end_s": 1.0, "text": "Good"}]
    }
