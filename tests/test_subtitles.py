"""Subtitles of a readable size and speed, whatever is said; SubRip and WebVTT held to their grammar."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from common import exports, subtitles
from common.document import Document
from common.passages import passages
from tests.export_cases import RATE, doc, transcript
from tests.export_readers import read_srt, read_vtt, shown

pytestmark = pytest.mark.pure


def cues(document: Document) -> list[subtitles.Cue]:
    return subtitles.cues(passages(document))


LONG = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in liberty, "
    "and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war."
)


def test_subtitles_are_cut_at_sentences_and_clauses() -> None:
    found = cues(doc(transcript(1.0, LONG)))
    texts = [" ".join(c.lines) for c in found]
    assert " ".join(texts) == LONG
    assert texts[0] == "Four score and seven years ago our fathers brought forth on this continent,"
    assert texts[-1].endswith("Now we are engaged in a great civil war.")
    assert found[0].start_s == 1.0
    for cue in found:
        assert len(cue.lines) <= 2 and all(len(line) <= 42 for line in cue.lines)
        assert cue.end_s - cue.start_s <= subtitles.LONGEST_CUE_S


def test_a_short_word_stays_for_a_second_and_holds_the_next_one_up_for_a_moment() -> None:
    found = cues(doc(transcript(0.0, "Yes."), transcript(0.6, "No."), transcript(5.0, "So."), transcript(5.1, "Go.")))
    assert [(c.start_s, c.end_s) for c in found] == [(0.0, 1.0), (1.0, 2.0), (5.0, 5.8), (5.8, 6.8)]


def test_what_is_long_stays_until_it_can_be_read() -> None:
    long = "Incomprehensibilities notwithstanding, straightforwardness."  # 58 columns on two lines in 1.15 s
    alone, then = cues(doc(transcript(0.0, long), transcript(9.0, "Yes.")))
    assert alone.end_s == pytest.approx(58 / subtitles.COLUMNS_S, abs=0.01) and then.start_s == 9.0
    held, late = cues(doc(transcript(0.0, long), transcript(2.0, "Yes.")))
    assert (held.end_s, late.start_s) == (2.7, 2.7), "not for longer than that"


@given(
    st.lists(
        st.tuples(st.floats(0, 4), st.lists(st.text("abcdefgh", min_size=1, max_size=14), min_size=1, max_size=30)),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=60)
def test_a_cue_can_be_read_or_the_next_one_is_late_already(spoken: list[tuple[float, list[str]]]) -> None:
    segments, at = [], 0.0
    for pause, said in spoken:
        segments.append(transcript(at + pause, " ".join(said)))
        at = segments[-1].span[1] / RATE
    found, words = cues(doc(*segments)), iter([w for t in segments for w in t.words])
    said_s = []
    for c in found:
        told = [next(words) for _ in " ".join(c.lines).split()]
        assert " ".join(w.text.strip() for w in told) == " ".join(c.lines)
        said_s.append(told[0].span[0] / RATE)
    late_s = [c.start_s - s for c, s in zip(found, said_s, strict=True)]
    assert all(-0.001 <= late <= subtitles.LATE_S + 0.01 for late in late_s)
    for n, c in enumerate(found):
        lasts_s = c.end_s - c.start_s
        assert 0 < lasts_s <= subtitles.LONGEST_CUE_S + 0.001
        needs_s = max(subtitles.LEAST_CUE_S, sum(map(len, c.lines)) / subtitles.COLUMNS_S)
        if lasts_s + 0.002 < needs_s:  # then the next one has waited as long as it may
            assert found[n + 1].start_s == c.end_s and late_s[n + 1] >= subtitles.LATE_S - 0.01


def test_without_words_time_is_shared_out_by_length() -> None:
    found = cues(doc(transcript(2.0, LONG, words=False)))
    assert " ".join(" ".join(c.lines) for c in found) == LONG and found[0].start_s == 2.0
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(found))


def test_scripts_without_spaces_are_cut_by_columns() -> None:
    text = "私たちは今日この大きな会場に集まりました" * 5
    found = cues(doc(transcript(0.0, text)))
    assert "".join("".join(c.lines) for c in found) == text
    assert all(subtitles.columns(line) <= 42 for c in found for line in c.lines)


def test_a_sentence_without_spaces_is_cut_behind_clauses_and_each_cue_has_its_time() -> None:
    text = "今日は会議の予算について話し合い、その後で次の作業計画を決めます。よろしくお願いします。"
    [said] = [transcript(0.0, text, words=False, language="ja", span=(0, 7 * RATE))]
    assert [(c.start_s, c.end_s, c.lines) for c in cues(doc(said))] == [
        (0.0, 5.289, ("今日は会議の予算について話し合い、", "その後で次の作業計画を決めます。")),
        (5.289, 7.0, ("よろしくお願いします。",)),
    ]


UNSPACED = {"zh": "这是会议预算", "ja": "今日はカイ議", "th": "กขคงจฉั้า"}


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2),
            st.floats(2, 20),  # letters a second
            st.sampled_from(sorted(UNSPACED)).flatmap(
                lambda code: st.tuples(st.just(code), st.text(UNSPACED[code] + "。，、？」", min_size=30, max_size=120))
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(deadline=None, max_examples=100)
def test_a_text_without_spaces_and_times_of_words_is_shown_as_long_as_it_was_said(
    spoken: list[tuple[float, float, tuple[str, str]]],
) -> None:
    segments, took_s, at = [], list[float](), 0.0
    for pause, rate, (code, text) in spoken:
        lasts_s = len(text) / rate
        span = (int((at + pause) * RATE), int((at + pause + lasts_s) * RATE))
        segments.append(transcript(at + pause, text, words=False, language=code, span=span))
        took_s += [lasts_s / (len(text) + 1)] * len(text)
        at = span[1] / RATE
    found = cues(doc(*segments))
    assert "".join("".join(c.lines) for c in found) == "".join(t.text for t in segments)
    last = 0.0
    for c in found:
        letters = sum(map(len, c.lines))
        said_s, took_s = sum(took_s[:letters]), took_s[letters:]
        assert c.end_s - c.start_s >= min(subtitles.LEAST_CUE_S, said_s) - 0.01
        assert last <= c.start_s and len(c.lines) <= 2
        assert all(subtitles.columns(line) <= 42 for line in c.lines)
        last = c.end_s


letters = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs"), blacklist_characters="＜｛")
word_texts = st.text(letters, min_size=1, max_size=50).filter(lambda w: w.split() == [w])


@given(st.lists(st.tuples(st.floats(0, 30), st.lists(word_texts, min_size=1, max_size=16)), max_size=4), st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_text_comes_out_whole_and_in_form(spoken: list[tuple[float, list[str]]], words: bool) -> None:
    segments, at = [], 0.0
    for pause, said in spoken:
        segments.append(transcript(at + pause, " ".join(said), words))
        at = segments[-1].span[1] / RATE
    document = doc(*segments)
    for found in (read_srt(exports.srt(document)), read_vtt(exports.vtt(document))):
        assert "".join("".join(" ".join(lines) for _, _, lines in found).split()) == "".join(
            "".join(t.text for t in segments).split()
        )
        last = 0.0
        for start_s, end_s, lines in found:
            assert last <= start_s < end_s
            last = end_s
            assert len(lines) <= 3 and all(subtitles.columns(line) <= 42 for line in lines)


def test_hours_and_marks_of_the_format_itself() -> None:
    late = doc(transcript(3 * 3600 + 1.5, "a < b --> c & d"))
    assert exports.srt(late).startswith("1\n03:00:01,500 --> 03:00:04,250\n")
    assert read_vtt(exports.vtt(late))[0][2] == ["a < b --> c & d"]
    assert exports.srt(doc()) == "" and exports.vtt(doc()) == "WEBVTT\n\n" and exports.txt(doc()) == ""


def test_what_would_be_a_tag_of_subrip_stays_visible(tmp_path: Path) -> None:
    said = ["<b>now</b> {\\an8} {laughs}", "a < b and c > d", "a < b", "c > d {", "<3 & <i"]
    text = exports.srt(doc(*(transcript(n * 10.0, line) for n, line in enumerate(said))))
    assert [" ".join(lines) for *_, lines in read_srt(text)] == said
    assert shown(text, tmp_path) == ["＜b>now＜/b> ｛\\an8} ｛laughs}", "a ＜ b and c > d", *said[2:]]


def test_columns_are_those_of_a_screen() -> None:
    assert [subtitles.columns(t) for t in ("abc", "日本", unicodedata.normalize("NFD", "é"), "กั้")] == [3, 4, 1, 1]
