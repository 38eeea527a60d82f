"""Formats of a finished text, each held to its own grammar by a strict reader; subtitles of a readable size."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from common import exports
from common import messages as m

pytestmark = pytest.mark.pure
RATE = m.SAMPLE_RATE
CLOCK = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"


def transcript(start_s: float, text: str, words: bool = True, revision: int = 0, **more: object) -> m.Transcript:
    """One utterance, two and a half words a second."""
    parts = text.split()
    spans = [(int((start_s + i * 0.4) * RATE), int((start_s + i * 0.4 + 0.35) * RATE)) for i in range(len(parts))]
    made = tuple(m.Word(text=f" {p}", span=s, p=0.9) for p, s in zip(parts, spans, strict=True))
    whole = (int(start_s * RATE), spans[-1][1] if spans else int(start_s * RATE) + RATE)
    plain = m.Transcript(
        segment=f"s:{whole[0]}",
        span=whole,
        text=text,
        language="en",
        words=made if words else (),
        model="tiny.en",
        revision=revision,
    )
    return msgspec.structs.replace(plain, **more)


def doc(*segments: m.Transcript) -> exports.Document:
    return exports.Document(stream="s", segments=segments, end=max((t.span[1] for t in segments), default=0))


def read_srt(text: str) -> list[tuple[float, float, list[str]]]:
    """A strict SubRip reader: counted from 1, `HH:MM:SS,mmm --> HH:MM:SS,mmm`, lines, one empty line."""
    out, blocks = [], text.split("\n\n")
    assert blocks.pop() == "", "ends with an empty line"
    for n, block in enumerate(blocks, 1):
        number, times, *lines = block.split("\n")
        assert number == str(n)
        found = re.fullmatch(f"{CLOCK % ','} --> {CLOCK % ','}", times)
        assert found and lines and all(line.strip() == line and line for line in lines), block
        out.append((seconds(found.groups()[:4]), seconds(found.groups()[4:]), lines))
    return out


def read_vtt(text: str) -> list[tuple[float, float, list[str]]]:
    """A strict WebVTT reader (W3C, section 4): the cue text has no bare `&`, `<` and no `-->`."""
    head, *blocks = text.split("\n\n")
    assert head == "WEBVTT" and blocks.pop() == ""
    out = []
    for block in blocks:
        times, *lines = block.split("\n")
        found = re.fullmatch(f"{CLOCK % '.'} --> {CLOCK % '.'}", times)
        assert found and lines
        lines[0] = re.sub(r"^<v [^<>\n]+>", "", lines[0])  # whose voice it is
        for line in lines:
            assert "-->" not in line and "<" not in line and re.fullmatch(r"(?:[^&]|&(?:amp|lt|gt);)+", line), line
        plain = [x.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for x in lines]
        out.append((seconds(found.groups()[:4]), seconds(found.groups()[4:]), plain))
    return out


def seconds(clock: tuple[str, ...]) -> float:
    h, minutes, s, ms = map(int, clock)
    return h * 3600 + minutes * 60 + s + ms / 1000


LONG = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in liberty, "
    "and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war."
)


def test_subtitles_are_cut_at_sentences_and_clauses() -> None:
    cues = exports.cues(doc(transcript(1.0, LONG)))
    texts = [" ".join(c.lines) for c in cues]
    assert " ".join(texts) == LONG
    assert texts[0] == "Four score and seven years ago our fathers brought forth on this continent,"
    assert texts[-1].endswith("Now we are engaged in a great civil war.")
    assert cues[0].start_s == 1.0
    for cue in cues:
        assert len(cue.lines) <= 2 and all(len(line) <= 42 for line in cue.lines)
        assert cue.end_s - cue.start_s <= exports.CUE_S + exports.LEAST_CUE_S


def test_a_short_word_stays_for_a_second_unless_the_next_comes() -> None:
    cues = exports.cues(doc(transcript(0.0, "Yes."), transcript(0.6, "No."), transcript(5.0, "So.")))
    assert [(c.start_s, c.end_s) for c in cues] == [(0.0, 0.6), (0.6, 1.6), (5.0, 6.0)]


def test_without_words_time_is_shared_out_by_length() -> None:
    cues = exports.cues(doc(transcript(2.0, LONG, words=False)))
    assert " ".join(" ".join(c.lines) for c in cues) == LONG and cues[0].start_s == 2.0
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(cues))


def test_scripts_without_spaces_are_cut_by_columns() -> None:
    text = "私たちは今日この大きな会場に集まりました" * 5
    cues = exports.cues(doc(transcript(0.0, text)))
    assert "".join("".join(c.lines) for c in cues) == text
    assert all(exports.columns(line) <= 42 for c in cues for line in c.lines)


letters = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs"))
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
            assert len(lines) <= 3 and all(exports.columns(line) <= 42 for line in lines)


def test_hours_and_marks_of_the_format_itself() -> None:
    late = doc(transcript(3 * 3600 + 1.5, "a < b --> c & d"))
    assert exports.srt(late).startswith("1\n03:00:01,500 --> 03:00:04,250\n")
    assert read_vtt(exports.vtt(late))[0][2] == ["a < b --> c & d"]
    assert exports.srt(doc()) == "" and exports.vtt(doc()) == "WEBVTT\n\n" and exports.txt(doc()) == ""


def events(*bodies: tuple[str, m.Body]) -> list[m.Event]:
    kinds = [str(type(b).__struct_config__.tag) for _, b in bodies]
    return [
        m.Event(seq=n, prev=0, stream="s", kind=kind, producer=who, n=n, at_ns=0, body=bytes(m.raw(b)))
        for n, ((who, b), kind) in enumerate(zip(bodies, kinds, strict=True), 1)
    ]


def test_only_the_newest_word_on_a_segment_counts() -> None:
    gap = m.Gap(span=(0, RATE), reason="failed", retryable=True, segment="s:0")
    hole = m.Gap(span=(9 * RATE, 10 * RATE), reason="connection lost", retryable=False)
    theirs = m.Gap(span=(0, 5), reason="no minutes", retryable=False)
    again = transcript(0.0, "Heard at last.", revision=1, segment="s:0", supersedes="s:0/0")
    ended = m.StreamEnded(end=10 * RATE, reason="end of file")
    found = exports.document(
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


def test_columns_are_those_of_a_screen() -> None:
    assert [exports.columns(t) for t in ("abc", "日本", unicodedata.normalize("NFD", "é"))] == [3, 4, 1]


def turn(speaker: str, start_s: float, end_s: float) -> tuple[str, m.Body]:
    span = (int(start_s * RATE), int(end_s * RATE))
    return ("diarizer", m.SpeakerTurn(span=span, speaker=speaker, provisional=True))


TALK = (
    ("transcriber", transcript(0.0, "How are you? I am well.")),
    ("transcriber", transcript(4.0, "Good.")),
    ("transcriber", transcript(20.0, "Somebody far away.")),
    ("transcriber", transcript(30.0, "And me again.")),
)
TURNS = (turn("S1", 0, 1.2), turn("S2", 1.2, 5), turn("S2", 30, 32), turn("S1", 30.9, 31))
NAMES = (("cli.1", m.SpeakerName(speaker="S2", name="Bo <b> & Co")),)


def test_speakers_are_named_where_they_change() -> None:
    found = exports.document("s", events(*TALK, *TURNS, *NAMES), "transcriber")
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
    plain, named = (exports.document("s", events(*TALK, *rest), "transcriber") for rest in ((), more))
    for form in exports.FORMATS.values():
        assert form(plain) == form(named)
    assert "runs" not in exports.json(plain) and "speakers" not in exports.json(plain)


@given(st.text(letters, max_size=60), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(deadline=None, max_examples=60)
def test_any_name_leaves_the_formats_whole(name: str, second: list[bool]) -> None:
    turns = [turn("S2" if b else "S1", i * 0.4, i * 0.4 + 0.4) for i, b in enumerate(second)]
    words = ("transcriber", transcript(0.0, "one two three four five six seven eight"))
    called = ("cli.1", m.SpeakerName(speaker="S2", name=name))
    found = exports.document("s", events(words, *turns, called), "transcriber")
    cues = read_vtt(exports.vtt(found))
    assert "".join("".join(lines) for _, _, lines in cues).replace(" ", "") == "onetwothreefourfivesixseveneight"
    assert sum(a != b for a, b in itertools.pairwise(second)) < len(cues)
    said = "".join("".join(lines) for _, _, lines in read_srt(exports.srt(found)))
    assert said.count("S1:") >= len([a for a, b in itertools.pairwise([True, *second]) if a and not b])
