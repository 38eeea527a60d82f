"""Sentences of a stream: where they end, what they are made of, and that nothing but texts and spans matters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from workers.sentences import LONGEST, Sentence, Sentences, ends

pytestmark = pytest.mark.pure
SECOND = m.SAMPLE_RATE


def said(
    text: str, start_s: float, end_s: float, language: str = "en", words: bool = True, revision: int = 0
) -> m.Transcript:
    """Its words share the time evenly."""
    span = (round(start_s * SECOND), round(end_s * SECOND))
    pieces = text.split()
    step = (span[1] - span[0]) // max(1, len(pieces))
    heard = tuple(
        m.Word(text=f" {w}", span=(span[0] + i * step, span[0] + (i + 1) * step), p=1.0) for i, w in enumerate(pieces)
    )
    return m.Transcript(
        segment=m.segment_id("s", span[0]), revision=revision, span=span, text=text, language=language,
        words=heard if words else (), model="x",
    )  # fmt: skip


def of(*texts: m.Transcript, hold_s: float = 3.0) -> list[Sentence]:
    """All sentences, the stream has ended."""
    s = Sentences(hold_s)
    return [*(x for t in texts for x in s.add(t)), *s.end()]


def words_of(sentences: list[Sentence]) -> list[str]:
    return [s.text for s in sentences]


def test_several_sentences_of_a_segment_have_their_places_and_spans() -> None:
    a, b, c = of(said("I saw him. Did you? Mr. Smith did.", 1, 9))
    assert (a.text, b.text, c.text) == ("I saw him.", "Did you?", "Mr. Smith did.")
    assert [s.place for s in (a, b, c)] == [0, 1, 2]
    assert {s.parts for s in (a, b, c)} == {("s:16000/0",)}
    assert (a.span, b.span, c.span) == ((16000, 64000), (64000, 96000), (96000, 144000))


def test_a_sentence_that_goes_on_is_held_until_it_ends() -> None:
    s = Sentences(3.0)
    assert s.add(said("We met Mr.", 0, 2)) == [] and s.open == ("s:0",)
    assert s.add(said("Quilter in the", 3, 5)) == [] and s.open == ("s:0", "s:48000")
    [whole] = s.add(said("old town. And", 6, 9, revision=2))
    assert whole.text == "We met Mr. Quilter in the old town."
    assert whole.parts == ("s:0/0", "s:48000/0", "s:96000/2") and whole.key == ("s:0", 0)
    assert whole.span == (0, 8 * SECOND)
    assert s.open == ("s:96000",)
    [rest] = s.end()
    assert (rest.text, rest.key) == ("And", ("s:96000", 0))


def test_a_pause_ends_it() -> None:
    s = Sentences(3.0)
    s.add(said("so I said", 0, 2))
    assert s.reach(5 * SECOND - 100) == []
    end = s._held[-1].span[1]
    [one] = s.reach(end + 3 * SECOND)
    assert one.text == "so I said" and not s.open


@pytest.mark.parametrize("later_s", [2.0, 4.9])
def test_it_does_not_matter_whether_the_pause_was_known_before_the_next_text(later_s: float) -> None:
    first, second = said("so I said", 0, 2), said("that it rains.", 2 + later_s, 8)
    told = Sentences(3.0)
    known = [*told.add(first), *told.reach(second.span[0]), *told.add(second)]
    assert known == of(first, second)
    assert words_of(known) == (["so I said that it rains."] if later_s < 3 else ["so I said", "that it rains."])


def test_another_language_ends_it() -> None:
    assert words_of(of(said("and then", 0, 1), said("bom dia.", 1, 2, language="pt"))) == ["and then", "bom dia."]


def test_a_recogniser_that_sets_no_stops_is_cut_at_a_segment() -> None:
    texts = [said("word " * 30, i * 5, i * 5 + 4.9) for i in range(6)]
    found = of(*texts)
    assert len(found) == 3 and all(len(s.text) <= LONGEST for s in found)
    assert sum(len(s.text.split()) for s in found) == 180


def test_a_text_without_words_shares_its_time_out() -> None:
    a, b = of(said("Four it is. Yes it.", 0, 19, words=False))
    assert (a.text, b.text) == ("Four it is.", "Yes it.")
    assert a.span == (0, 12 * SECOND) and b.span == (12 * SECOND, 19 * SECOND)


def test_scripts_without_spaces_get_none() -> None:
    [one] = of(said("元気", 0, 1, "ja"), said("ですか？", 1, 2, "ja"))
    assert one.text == "元気ですか？"


@pytest.mark.parametrize(
    ("text", "over"),
    [("I do.", True), ('He said, "Go."', True), ("Is it?", True), ("Nor is Mr.", False), ("so I", False),
     ("at the U.S.", False), ("well,", False)],
)  # fmt: skip
def test_where_a_sentence_ends(text: str, over: bool) -> None:
    assert ends(text, "en") == over


def test_empty_texts_are_nothing() -> None:
    assert of(said("  ", 0, 1)) == []


texts = st.lists(
    st.tuples(st.sampled_from(["I go", "Mr.", "Yes. No", "home.", "what? And then", "3.5 of it.", "... so", "(ok.)"]),
              st.floats(0.0, 4.0), st.sampled_from(["en", "en", "pt"]), st.booleans()),
    max_size=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(made=texts)
def test_no_word_is_lost_or_doubled(made: list[tuple[str, float, str, bool]]) -> None:
    at, stream = 0.0, list[m.Transcript]()
    for text, pause, language, words in made:
        stream.append(said(text, at + pause, at + pause + 1, language, words))
        at += pause + 1
    found = of(*stream)
    assert " ".join(words_of(found)).split() == " ".join(t.text for t in stream).split()
    assert len({s.key for s in found}) == len(found)
    parts = {f"{t.segment}/0" for t in stream if t.text.strip()}
    assert {p for s in found for p in s.parts} == parts
    assert [s.span for s in found] == sorted(s.span for s in found)
    assert all(s.segment == s.segments[0] for s in found)
