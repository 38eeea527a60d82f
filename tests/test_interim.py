"""Interim text, pure: what becomes stable, what is shown, when another look is worth it, what is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common.hypotheses import Hypotheses
from common.messages import SAMPLE_RATE as S
from common.settings import TranscriberSettings
from workers.interim import PAUSE, TAIL, Interim, LeftOut, Piece, UnderWay, agree, text
from workers.live_text import LiveText, hypothesis

pytestmark = pytest.mark.pure


def pieces(said: str, p: float = 1.0, heard: int = 0) -> list[Piece]:
    """Words and marks as Whisper's tokenizer splits them: `Yes , no` is three pieces."""
    return [Piece(w if w in ",.!?" else f" {w}", (hash(w) % 1000,), p, heard) for w in said.split()]


def test_a_word_is_stable_when_two_decodings_in_a_row_agree() -> None:
    known = Interim(0, 0)
    assert known.take(pieces("ask not"), None) == ("", "ask not")
    assert known.take(pieces("ask not what"), None) == ("ask not", " what")
    # The next decoding is given the stable words and brings only what follows.
    assert known.take(pieces("watt your"), None) == ("ask not", " watt your")
    assert known.take(pieces("what your country"), None) == ("ask not", " what your country")
    assert known.take(pieces("what your country can"), None) == ("ask not what your country", " can")


def test_agreement_ends_at_the_first_other_word() -> None:
    known = Interim(0, 0)
    known.take(pieces("a b c d"), None)
    assert known.take(pieces("a x c d"), None) == ("a", " x c d")


def test_marks_and_case_do_not_count_and_marks_behind_the_last_stable_word_stay_open() -> None:
    known = Interim(0, 0)
    known.take(pieces("yes . i"), None)
    assert known.take(pieces("Yes , I"), None) == ("Yes, I", "")
    known.take(pieces("do ."), None)
    assert known.take(pieces("do ."), None) == ("Yes, I do", ".")
    assert known.take(pieces(", sir"), None) == ("Yes, I do", ", sir")


def test_a_decoding_without_words_takes_nothing_back_that_is_stable() -> None:
    known = Interim(0, 0)
    known.take(pieces("ask not"), None)
    known.take(pieces("ask not"), None)
    assert known.take([], None) == ("ask not", "")
    known.take(pieces("what"), None)
    assert known.take(pieces("what"), None) == ("ask not what", "")


def test_unsure_words_and_words_at_the_edge_of_the_audio_are_not_shown_before_they_are_agreed() -> None:
    known = Interim(0, 0)
    unsure = [*pieces("ask"), *pieces("knot", p=0.3), *pieces("what")]
    assert known.take(unsure, None) == ("", "ask")
    assert known.take(unsure, None) == ("ask knot what", "")
    edge = [*pieces("your", heard=80), *pieces("coun", heard=96)]
    assert known.take(edge, 100) == ("ask knot what", " your")
    assert Interim(0, 0).take(edge, None) == ("", "your coun")  # in a pause no word is cut in two
    assert Interim(0, 0).take([*pieces("yes"), *pieces(",", p=0.1), *pieces("sir")], None) == ("", "yes, sir")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "A", "c", ",", "."]), max_size=6), max_size=8))
def test_stable_text_only_grows(decodings: list[list[str]]) -> None:
    known, before = Interim(0, 0), ""
    for said in decodings:
        shown = known.take(pieces(" ".join(said)), None)
        assert shown.stable.startswith(before)
        assert (shown.stable + shown.unstable).split() == text([*known.stable, *known._before]).split()
        before = shown.stable


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("ab,"), max_size=6), st.lists(st.sampled_from("ab,"), max_size=6))
def test_what_is_agreed_says_the_same_and_ends_with_a_word(a: list[str], b: list[str]) -> None:
    before, after = pieces(" ".join(a)), pieces(" ".join(b))
    n = agree(before, after)
    words = [p.key for p in after[:n] if p.key]
    assert words == [p.key for p in before if p.key][: len(words)]
    assert n == 0 or after[n - 1].key


def under_way(voice_end: float, heard: float) -> UnderWay:
    return UnderWay("s", 0, S // 2, round(voice_end * S), round(heard * S), b"")


def test_while_speech_goes_on_a_look_is_due_after_so_much_of_it() -> None:
    known, every = Interim(0, S // 2), S // 2
    assert known.due(under_way(0.9, 0.9), every) == 0
    assert known.due(under_way(1.0, 1.0), every) == S
    known.looked(S)
    assert known.due(under_way(1.4, 1.4), every) == 0
    assert known.due(under_way(1.4, 1.5), every) == S * 3 // 2


def test_in_a_pause_one_look_at_the_last_words_is_due_at_once() -> None:
    known, every = Interim(0, S // 2), S // 2
    known.looked(S)
    now = under_way(1.1, 1.1 + PAUSE / S)
    assert known.due(now, every) == now.heard
    known.looked(now.heard)
    assert known.due(under_way(1.1, 1.5), every) == 0
    late = under_way(1.1, 3.0)  # nothing was looked at for long
    assert Interim(0, S // 2).due(late, every) == late.voice_end + TAIL


def test_a_look_that_was_made_shortly_before_the_pause_does_not_replace_the_one_in_it() -> None:
    known = Interim(0, S // 2)
    known.looked(round(1.1 * S))  # the last word was cut in two there
    assert known.due(under_way(1.1, 1.31), S // 2) == round(1.31 * S)


def test_a_hypothesis_names_its_segment_and_its_revision_rises_with_what_is_heard() -> None:
    now = UnderWay("talk", 4000, 8000, 9000, 20_000, b"")
    first, second = (hypothesis(now, upto, Interim(0, 0).shown) for upto in (10_000, 12_000))
    assert first.segment == second.segment == "talk:4000"
    assert first.span == (4000, 10_000)
    assert first.revision < second.revision


def heard(first: int, revision: int, stream: str = "talk") -> m.Hypothesis:
    span = (first, first + revision)
    return m.Hypothesis(
        stream=stream, segment=m.segment_id(stream, first), revision=revision, span=span, stable="a", unstable=" b"
    )


def event(kind: str, body: m.Body, producer: str = "transcriber", stream: str = "talk") -> m.Event:
    packed = m.encode(body)
    return m.Event(seq=1, prev=0, stream=stream, kind=kind, producer=producer, n=1, at_ns=0, body=packed)


def final(start: int, end: int) -> m.Event:
    body = m.Transcript(segment=m.segment_id("talk", start), span=(start, end), text="a b", language="en", model="x")
    return event("transcript", body)


def test_a_receiver_keeps_the_newest_of_each_stream_and_drops_what_is_older() -> None:
    kept = Hypotheses()
    assert kept.take(heard(1000, 500)) and kept.take(heard(1000, 900)) and kept.take(heard(0, 10, "other"))
    assert not kept.take(heard(1000, 700)) and not kept.take(heard(1000, 900))
    assert kept.newest == {"talk": heard(1000, 900), "other": heard(0, 10, "other")}


def test_a_final_takes_the_place_of_its_interim_text_also_when_that_comes_late() -> None:
    kept = Hypotheses()
    kept.take(heard(1000, 900))
    kept.event(final(1000, 4000))
    assert kept.newest == {} and not kept.take(heard(1000, 2000))
    assert kept.take(heard(5000, 100))
    kept.event(final(1000, 4000))  # a replay
    kept.event(event("gap", m.Gap(span=(0, 90_000), reason="failed", retryable=True), producer="summarizer"))
    assert kept.newest == {"talk": heard(5000, 100)}
    kept.event(event("suppressed", m.Suppressed(span=(5000, 6000), text="", reason="loop")))
    assert kept.newest == {}
    kept.take(heard(7000, 100))
    kept.event(event("stream_ended", m.StreamEnded(end=9000, reason="end of file")))
    assert kept.newest == {}


def test_what_is_left_out_is_said_for_a_minute() -> None:
    left = LeftOut(0.5)
    left.final(0.0, 4, 4.0)
    left.final(1.0, 0, 4.0)
    assert left.note(2.0) == "", "one may be chance"
    left.final(3.0, 0, 4.0)
    assert left.note(4.0) == "no interim text for 2 of the last 3 captions: finals first"
    assert left.note(60.5) == "no interim text for 2 of the last 2 captions: finals first"
    assert left.note(61.5) == ""


def test_that_interim_text_is_seldom_is_said() -> None:
    left = LeftOut(0.5)
    left.final(0.0, 2, 4.0)
    assert left.note(0.0) == "", "one may be chance"
    left.final(1.0, 2, 4.0)
    assert left.note(2.0) == "interim text each 2.0 s instead of 0.5: finals first"
    left.final(2.0, 8, 4.0)
    assert left.note(2.0) == ""


@pytest.mark.parametrize("ready", [False, True])
def test_what_had_no_text_because_the_gpu_was_away_was_not_left_out_for_finals(ready: bool) -> None:
    shown: list[UnderWay | None] = []
    session: Any = SimpleNamespace(meta=SimpleNamespace(stream="talk", ended=False), under_way=lambda: shown[-1])
    texts = LiveText(None, TranscriberSettings(interim=True))  # type: ignore[arg-type]
    for n in range(3):
        start = n * 10 * S
        if not ready:
            runner: Any = SimpleNamespace(ready=False)
            for now in (UnderWay("talk", start, start, start + 3 * S, start + 3 * S, b""), None):  # it ends, and waits
                shown.append(now)
                assert not texts.turn(runner, [session])
        texts.final("talk", (start, start + 4 * S))
    assert texts.note() == ("no interim text for 3 of the last 3 captions: finals first" if ready else "")
