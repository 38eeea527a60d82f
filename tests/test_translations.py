"""Translations beside transcripts: which count, in which order, and that only the set of events matters."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common.topology import COVERAGE_PRODUCER
from common.translations import Translations

pytestmark = pytest.mark.pure
STREAM = "talk-1"
SECOND = m.SAMPLE_RATE


def segment(i: int) -> str:
    return m.segment_id(STREAM, i * SECOND)


def said(i: int, text: str, revision: int = 0, language: str = "en") -> m.Transcript:
    supersedes = f"{segment(i)}/{revision - 1}" if revision else None
    span = (i * SECOND, (i + 1) * SECOND)
    return m.Transcript(
        segment=segment(i), revision=revision, supersedes=supersedes, span=span, text=text, language=language, model="x"
    )


def put(
    i: int, text: str, target: str = "pt", place: int = 0, revision: int = 0, goes_on: Sequence[tuple[int, int]] = ()
) -> m.Translation:
    further = tuple(f"{segment(n)}/{r}" for n, r in goes_on)
    return m.Translation(segment=segment(i), revision=revision, target=target, text=text, place=place, goes_on=further)


def events(*bodies: m.Body) -> list[m.Event]:
    out = []
    for seq, body in enumerate(bodies, 1):
        kind = str(type(body).__struct_config__.tag)
        by = f"translator.{body.target}" if isinstance(body, m.Translation) else COVERAGE_PRODUCER
        out.append(m.Event(seq=seq, prev=0, stream=STREAM, kind=kind, producer=by, n=seq, at_ns=0, body=m.encode(body)))
    return out


def after(*bodies: m.Body) -> Translations:
    t = Translations()
    for e in events(*bodies):
        t.take(e)
    return t


def left(t: Translations, target: str) -> list[str]:
    """Segments with words that are not translated."""
    return list(dict.fromkeys(rest.segment for rest in t.left(target)))


def texts(t: Translations, target: str = "pt") -> list[str]:
    return [s.text for s in t.sentences(target)]


def test_sentences_come_in_the_order_in_which_they_were_said() -> None:
    t = after(
        said(3, "Two. Three."), said(1, "One."), put(3, "Três.", place=1), put(3, "Dois."), put(1, "Um."),
        put(1, "Eins.", target="de"),
    )  # fmt: skip
    assert texts(t) == ["Um.", "Dois.", "Três."]
    assert texts(t, "de") == ["Eins."]
    assert t.targets() == ("de", "pt")
    assert left(t, "pt") == [] and left(t, "de") == [segment(3)]


def test_the_newest_of_a_place_counts_and_an_empty_one_takes_it_back() -> None:
    t = after(said(1, "One. Two."), put(1, "Um."), put(1, "Dois.", place=1), put(1, "Hum."), put(1, "", place=1))
    assert texts(t) == ["Hum."]


def test_words_that_were_corrected_have_no_translation_until_the_next() -> None:
    first = (said(1, "I saw"), said(2, "a ship."), said(3, "Yes."))
    whole = (put(1, "Vi um navio.", goes_on=[(2, 0)]), put(3, "Sim."))
    t = after(*first, *whole)
    assert texts(t) == ["Vi um navio.", "Sim."]
    assert t.sentences("pt")[0].segments == (segment(1), segment(2))
    mark = t.mark
    t.take(events(*first, *whole, said(2, "a sheep.", revision=1))[-1])
    assert texts(t) == ["Sim."] and left(t, "pt") == [segment(1), segment(2)]
    assert t.since(mark) == [segment(1)]
    corrected = (said(2, "a sheep.", revision=1), put(1, "Vi uma ovelha.", goes_on=[(2, 1)]))
    t.take(events(*first, *whole, *corrected)[-1])
    assert texts(t) == ["Vi uma ovelha.", "Sim."]


def test_what_turned_out_to_be_no_speech_has_none() -> None:
    nothing = m.Suppressed(
        span=(SECOND, 2 * SECOND), text="", reason="r", segment=segment(1), revision=1, supersedes=f"{segment(1)}/0"
    )
    assert texts(after(said(1, "One."), put(1, "Um."), nothing)) == []


def test_a_translation_of_older_words_that_comes_later_does_not_count() -> None:
    """The translator was at work while somebody corrected them."""
    t = after(said(1, "Won."), said(1, "One.", revision=1), put(1, "Ganhou."))
    assert texts(t) == []


def test_text_that_is_in_the_target_language_stands_for_itself() -> None:
    t = after(said(1, "Hello."), said(2, "Bom dia.", language="pt"), put(1, "Olá."))
    assert texts(t) == ["Olá.", "Bom dia."]
    assert t.sentences("pt")[1].model == "" and left(t, "pt") == []


def test_events_without_the_newer_fields_are_whole_segments() -> None:
    """As a producer of the first days wrote them."""
    t = after(said(1, "One."), m.Translation(segment=segment(1), revision=0, target="pt", text="Um."))
    [s] = t.sentences("pt")
    assert (s.text, s.source, s.source_language, s.span) == ("Um.", "One.", "en", (SECOND, 2 * SECOND))


numbers = st.integers(0, 2)
bodies = st.one_of(
    st.builds(said, numbers, st.sampled_from(["One.", "Two."]), numbers, st.sampled_from(["en", "pt"])),
    st.builds(put, numbers, st.sampled_from(["Um.", "Dois.", ""]), st.sampled_from(["pt", "de"]), numbers, numbers,
              st.lists(st.tuples(numbers, numbers), max_size=2)),
    st.builds(lambda a, n: m.Purged(stream=STREAM, seqs=((a, a + n),)), st.integers(1, 12), numbers),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(made=st.lists(bodies, max_size=12), seed=st.integers(0, 99))
def test_only_the_set_of_events_matters(made: list[m.Body], seed: int) -> None:
    """In any order, doubled, asked in between or not: the same sentences; what changed is named."""
    whole = Translations()
    for e in events(*made):
        whole.take(e)
    shuffled = events(*made) * 2
    random.Random(seed).shuffle(shuffled)
    other, known = Translations(), {}
    for e in shuffled:
        mark = other.mark
        other.take(e)
        changed = other.since(mark)
        now = {i: (other.of(segment(i), "de"), _translated(other, i)) for i in range(3)}
        assert {segment(i) for i in now if now[i] != known.get(i, ((), ()))} <= set(changed)
        known = now
    for target in ("pt", "de", "en"):
        assert other.sentences(target) == whole.sentences(target)
        assert other.left(target) == whole.left(target)


@settings(max_examples=200, deadline=None)
@given(made=st.lists(bodies, max_size=12), before=st.integers(0, 4), data=st.data())
def test_what_is_forgotten_can_still_be_purged(made: list[m.Body], before: int, data: st.DataObject) -> None:
    """And what is kept is what it would be without."""
    plain, other, gone = Translations(), Translations(), set[str]()
    for e in events(*made, m.Purged(stream=STREAM, seqs=((1, data.draw(st.integers(0, 12))),))):
        plain.take(e)
        other.take(e)
        if data.draw(st.booleans()):
            gone |= set(other.trim(before * SECOND))
    kept = {segment(i) for i in range(before, 3)}
    assert not gone & kept
    for s in kept:
        of = {t for t in plain.made(s) if all(x in kept for x in t.segments)}
        assert {t for t in other.made(s) if all(x in kept for x in t.segments)} == of


def test_what_is_translated_before_its_text_comes_is_kept_as_long_as_that() -> None:
    """A subscriber may hear of both in any order; one segment ends where the other begins."""
    t = Translations()
    first, second, text = events(said(0, "One."), put(1, "Dois."), said(1, "Two."))
    for e in (first, second):
        t.take(e)
    t.trim(SECOND)
    t.take(text)
    assert texts(t) == ["Dois."]


def test_a_day_leaves_nothing_behind() -> None:
    """Neither what was no speech, nor translations of what is forgotten, also of a target that is wanted later."""
    made: list[m.Body] = []
    for i in range(100):
        if i % 2:
            made += [said(i, "word"), put(i, "palavra")]
        else:
            made += [m.Suppressed(span=(i * SECOND, (i + 1) * SECOND), text="", reason="music", segment=segment(i))]
            made += [put(i, "palavra")]
    made += [put(i, "Wort", "de", goes_on=[(i + 1, 0)]) for i in range(100)]
    t = Translations()
    for e in events(*made):
        t.take(e)
        if isinstance(body := e.decode(), m.Transcript):
            t.trim(body.span[1] - 10 * SECOND)
    assert len(t.sentences("pt")) == 5
    assert len(t._made) <= 21 and len(t._key_of) == len(t._made) and len(t._touching) <= 12
    assert len(t._texts._versions) <= 10 and len(t._texts.chosen) <= 10 and len(t._texts._segment_of) <= 10
    t.trim(101 * SECOND)
    assert not (t._made or t._key_of or t._touching or t._texts._versions or t._sentences or t._changed or t._dirty)


def _translated(t: Translations, i: int) -> object:
    """Without what stands for itself, which changes with the transcript."""
    return tuple(s for s in t.of(segment(i), "pt") if s.model or s.source != s.text)
