"""What is exported of a stream: the newest word on everything, by speaker and in another language."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from common import exports
from common import messages as m
from common.cli_export import warnings
from common.document import document
from tests.export_cases import RATE, events, transcript, translation, turn
from tests.export_readers import read_rttm, read_srt, read_vtt

pytestmark = pytest.mark.pure
letters = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs"))


def test_only_the_newest_word_on_a_segment_counts() -> None:
    gap = m.Gap(span=(0, RATE), reason="failed", retryable=True, segment="s:0")
    hole = m.Gap(span=(9 * RATE, 10 * RATE), reason="connection lost", retryable=False)
    theirs = m.Gap(span=(0, 5), reason="no minutes", retryable=False)
    again = transcript(0.0, "Heard at last.", revision=1, segment="s:0", supersedes="s:0/0")
    ended = m.StreamEnded(end=10 * RATE, reason="end of file")
    found = document(
        "s",
        events(
            ("transcriber", transcript(5.0, "Then.")), ("transcriber", gap), ("transcriber", hole),
            ("summarizer", theirs), ("transcriber", again), ("transcriber", ended),
        ),
        "transcriber",
    )  # fmt: skip
    assert [t.text for t in found.segments] == ["Heard at last.", "Then."]
    assert found.gaps == (hole,) and (found.end, found.end_reason) == (10 * RATE, "end of file")
    assert exports.txt(found) == "Heard at last.\nThen.\n"
    row = json.loads(exports.json(found, words=True, file="x.wav"))
    assert (row["file"], row["duration_s"], row["gaps"][0]["reason"]) == ("x.wav", 10.0, "connection lost")
    assert row["segments"][1]["words"] == [{"text": "Then.", "start_s": 5.0, "end_s": 5.35, "p": 0.9}]
    assert "words" not in json.loads(exports.json(found))["segments"][0]


TALK = (
    ("transcriber", transcript(0.0, "How are you? I am well.")),
    ("transcriber", transcript(4.0, "Good.")),
    ("transcriber", transcript(20.0, "Somebody far away.")),
    ("transcriber", transcript(30.0, "And me again.")),
)
TURNS = (turn("S1", 0, 1.2), turn("S2", 1.2, 5), turn("S2", 30, 32), turn("S1", 30.9, 31))
NAMES = (("cli.1", m.SpeakerName(speaker="S2", name="Bo <b> & Co")),)


def test_speakers_are_named_where_they_change() -> None:
    found = document("s", events(*TALK, *TURNS, *NAMES), "transcriber")
    assert exports.txt(found).splitlines() == [
        "S1: How are you?",
        "Bo <b> & Co: I am well.",
        "Good.",
        "?: Somebody far away.",
        "Bo <b> & Co: And me again.",
    ]
    assert [" ".join(lines) for _, _, lines in read_srt(exports.srt(found))] == exports.txt(found).splitlines()
    assert re.findall("<v .*", exports.vtt(found)) == [
        "<v S1>How are you?",
        "<v Bo &lt;b&gt; &amp; Co>I am well.",
        "<v Bo &lt;b&gt; &amp; Co>Good.",
        "<v ?>Somebody far away.",
        "<v Bo &lt;b&gt; &amp; Co>And me again.",
    ]
    assert [" ".join(lines) for _, _, lines in read_vtt(exports.vtt(found))][1] == "I am well."
    row = json.loads(exports.json(found, words=True))
    assert row["speakers"] == [
        {"speaker": "S1", "name": None, "seconds": 1.3},
        {"speaker": "S2", "name": "Bo <b> & Co", "seconds": 5.8},
    ]
    assert row["segments"][0]["runs"] == [
        {"speaker": "S1", "start_s": 0.0, "end_s": 1.15, "text": "How are you?"},
        {"speaker": "S2", "start_s": 1.2, "end_s": 2.35, "text": "I am well."},
    ]
    assert row["segments"][2]["runs"][0]["speaker"] is None
    assert all(len(segment["words"]) == len(segment["text"].split()) for segment in row["segments"])


def test_without_turns_names_and_relabels_change_nothing() -> None:
    more = (*NAMES, ("cli.2", m.Relabel(source="S1", target="S2")))
    plain, named = (document("s", events(*TALK, *rest), "transcriber") for rest in ((), more))
    assert (plain.seq, named.seq) == (4, 6)
    for form in exports.FORMATS.values():
        assert form(plain, "") == form(msgspec.structs.replace(named, seq=4), "")
    assert "runs" not in exports.json(plain) and "speakers" not in exports.json(plain)


@given(st.text(letters, max_size=60), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(deadline=None, max_examples=60)
def test_any_name_leaves_the_formats_whole(name: str, second: list[bool]) -> None:
    turns = [turn("S2" if b else "S1", i * 0.4, i * 0.4 + 0.4) for i, b in enumerate(second)]
    words = ("transcriber", transcript(0.0, "one two three four five six seven eight"))
    called = ("cli.1", m.SpeakerName(speaker="S2", name=name))
    found = document("s", events(words, *turns, called), "transcriber")
    cues = read_vtt(exports.vtt(found))
    assert "".join("".join(lines) for _, _, lines in cues).replace(" ", "") == "onetwothreefourfivesixseveneight"
    assert sum(a != b for a, b in itertools.pairwise(second)) < len(cues)
    said = "".join("".join(lines) for _, _, lines in read_srt(exports.srt(found)))
    assert said.count("S1:") >= len([a for a, b in itertools.pairwise([True, *second]) if a and not b])


def test_turns_are_read_as_they_are_after_names_and_merges(tmp_path: Path) -> None:
    merged = ("cli.2", m.Relabel(source="S3", target="S1"))
    same = ("cli.3", m.SpeakerName(speaker="S4", name='Bo  "x" Li'))
    called = ("cli.1", m.SpeakerName(speaker="S2", name='Bo "x" Li'))
    odd = ("cli.4", m.SpeakerName(speaker="S5", name="<NA>"))
    turns = (turn("S1", 0, 1.2), turn("S2", 1.5, 5), turn("S3", 1.2, 2), turn("S4", 7, 8), turn("S5", 8, 9))
    found = document("s", events(*TALK, *turns, called, merged, same, odd), "transcriber")
    assert read_rttm(exports.rttm(found), tmp_path) == {
        "s": [
            (0.0, 2.0, "S1"),
            (1.5, 5.0, "Bo_'x'_Li"),  # both talk at once
            (7.0, 8.0, "Bo_'x'_Li_S4"),
            (8.0, 9.0, "S5"),
        ]
    }
    assert exports.rttm(document("s", events(*TALK), "transcriber")) == ""


@given(st.lists(st.sampled_from(["", "Bo", "Bo_S2", "Bo_S3", "Bo_S3_S3", "S1", "S3", "na"]), min_size=4, max_size=4))
def test_no_two_speakers_have_the_same_name_in_turns(names: list[str]) -> None:
    said = [e for n, name in enumerate(names, 1) for e in (turn(f"S{n}", n, n + 1), _called(f"S{n}", name))]
    rows = exports.rttm(document("s", events(*said), "transcriber")).splitlines()
    assert len({row.split()[7] for row in rows}) == 4


def _called(speaker: str, name: str) -> tuple[str, m.Body]:
    return ("cli.1", m.SpeakerName(speaker=speaker, name=name))


def test_an_open_stream_is_as_long_as_it_is_known() -> None:
    hole = m.Gap(span=(9 * RATE, 10 * RATE), reason="connection lost", retryable=False)
    found = document("s", events(*TALK[:2], ("transcriber", hole)), "transcriber")
    row = json.loads(exports.json(found))
    assert (row["duration_s"], row["ended"]) == (10.0, None)


HELLO, GOES_ON, OLA = (
    transcript(0.0, "Good morning. And so"),
    transcript(4.0, "we begin."),
    transcript(8.0, "Obrigado a todos.", language="pt"),
)
BYE = transcript(20.0, "Bye.")
SAID = (("transcriber", HELLO), ("transcriber", GOES_ON), ("transcriber", OLA), ("transcriber", BYE))


def test_another_language_has_whole_sentences_what_was_said_in_it_and_what_is_missing() -> None:
    first = translation("Bom dia.", HELLO, span=HELLO.span)
    second = translation("E assim começamos.", HELLO, GOES_ON, place=1, suspect="copied", span=(16_000, 5 * RATE))
    found = document("s", events(*SAID, first, second, turn("S1", 0, 1.2), turn("S2", 1.2, 30)), "transcriber", "pt")
    lines = exports.txt(found, "pt").splitlines()
    assert lines == [
        "S1: Bom dia.",
        "S2: E assim começamos. (?)",
        "Obrigado a todos.",
        "[en] Bye.",
    ]
    assert [" ".join(cue) for *_, cue in read_srt(exports.srt(found, "pt"))] == lines
    assert [rest.text for rest in found.untranslated["pt"]] == ["Bye."]
    rows = json.loads(exports.json(found, "pt"))["translations"]["pt"]
    assert [(r["place"], r["text"], r["suspect"]) for r in rows[:2]] == [
        (0, "Bom dia.", None),
        (1, "E assim começamos.", "copied"),
    ]
    assert rows[1]["segments"] == [HELLO.segment, GOES_ON.segment] and rows[2]["source_language"] == "pt"
    assert json.loads(exports.json(found, "fr"))["translations"] == {}


def test_corrections_and_relabels_reach_another_language() -> None:
    made = translation("Bom dia.", HELLO)
    turns = (turn("S1", 0, 9), ("cli.1", m.SpeakerName(speaker="S1", name="Ann")))
    better = msgspec.structs.replace(HELLO, text="Good night.", words=(), revision=1, supersedes=f"{HELLO.segment}/0")

    def lines(*more: tuple[str, m.Body]) -> list[str]:
        found = document("s", events(SAID[0], made, *turns, *more), "transcriber", "pt")
        return exports.txt(found, "pt").splitlines()

    assert lines() == ["Ann: Bom dia."]
    merged = ("cli.2", m.Relabel(source="S1", target="S2"))
    assert lines(merged, ("cli.3", m.SpeakerName(speaker="S2", name="Bo"))) == ["Bo: Bom dia."]
    assert lines(("transcriber", better)) == ["Ann: [en] Good night."]
    again = translation("Boa noite.", better)
    assert lines(("transcriber", better), again) == ["Ann: Boa noite."]


NEWS = transcript(0.0, "We start now. The budget is four. Any questions?")
START = translation("Começamos agora.", NEWS, span=(0, RATE), source="We start now.")
QUESTIONS = translation("Perguntas?", NEWS, place=2, span=(3 * RATE, 4 * RATE), source="Any  questions?")
GIVEN_UP = translation("", NEWS, place=1, suspect="failed", span=(RATE, 3 * RATE), source="The budget is four.")


@pytest.mark.parametrize(
    ("made", "lines"),
    [
        ([START], ["Começamos agora.", "[en] The budget is four. Any questions?"]),
        ([START, GIVEN_UP, QUESTIONS], ["Começamos agora.", "[en] The budget is four.", "Perguntas?"]),
        ([GIVEN_UP, QUESTIONS], ["[en] We start now. The budget is four.", "Perguntas?"]),
    ],
)
def test_what_is_left_of_an_utterance_is_there_as_it_was_said(made: list[tuple[str, m.Body]], lines: list[str]) -> None:
    for said in (NEWS, msgspec.structs.replace(NEWS, words=())):
        found = document("s", events(("transcriber", said), *made), "transcriber", "pt")
        assert exports.txt(found, "pt").splitlines() == lines
        assert [" ".join(cue) for *_, cue in read_srt(exports.srt(found, "pt"))] == lines
        [warned] = warnings(found, "srt", "pt")
        assert "1 utterance has words without a translation into pt, at 00:0" in warned
    turns = (turn("S1", 0, 2.4), turn("S2", 2.4, 5))
    found = document("s", events(("transcriber", NEWS), START, GIVEN_UP, *turns), "transcriber", "pt")
    assert exports.txt(found, "pt").splitlines() == [
        "S1: Começamos agora.",
        "[en] The budget is",
        "S2: [en] four. Any questions?",
    ]


def test_the_same_words_twice_are_told_apart_by_their_order() -> None:
    said = transcript(0.0, "Yes. I know. Yes.")
    given_up = translation("", said, suspect="failed", source="Yes.")
    known = translation("Eu sei.", said, place=1, source="I know.")
    last = translation("Sim.", said, place=2, source="Yes.")
    found = document("s", events(("transcriber", said), given_up, known, last), "transcriber", "pt")
    assert [(rest.text, rest.span) for rest in found.untranslated["pt"]] == [("Yes.", said.words[0].span)]


def test_a_sentence_that_goes_on_is_of_the_beginning_of_the_next_text() -> None:
    more = transcript(4.0, "we begin. At last.")
    made = translation("E assim começamos.", HELLO, more, place=1, source="And so we begin.")
    found = document("s", events(SAID[0], ("transcriber", more), made), "transcriber", "pt")
    assert [rest.text for rest in found.untranslated["pt"]] == ["Good morning.", "At last."]


def test_the_mark_of_what_is_not_translated_stands_with_its_first_word() -> None:
    late = msgspec.structs.replace(BYE, span=(18 * RATE, BYE.span[1]), segment=f"s:{18 * RATE}")
    found = document("s", events(("transcriber", late)), "transcriber", "pt")
    assert read_srt(exports.srt(found, "pt")) == [(20.0, 21.0, ["[en] Bye."])]
