"""The document of a meeting: read as Markdown by a parser of others it has the minutes, the names and every word."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from markdown_it import MarkdownIt
from markdown_it.token import Token

from common import exports
from common import messages as m
from common.document import document
from tests.export_cases import RATE, events, transcript, translation, turn

pytestmark = pytest.mark.pure


def read(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each heading, paragraph and point, without marks."""
    out, kind = list[tuple[str, str]](), list[str]()
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "inline":
            out.append((next(k for k in reversed(kind) if k != "p" or kind[-2:-1] != ["li"]), _words(token)))
        elif token.nesting == 1:
            kind.append(token.tag)
        elif token.nesting == -1:
            kind.pop()
        else:
            raise AssertionError(f"{token.type} in a document that has none")
    return out


def _words(token: Token) -> str:
    assert all(t.type != "image" for t in token.children or ())
    return "".join(t.content for t in token.children or () if t.type in ("text", "softbreak"))


FIRST, SECOND = transcript(0.0, "We start on Monday. All agree?"), transcript(65.0, "* I do, 2 < 3 & `so`!")
MINUTES = m.Summary(
    first=FIRST.segment,
    last=SECOND.segment,
    bullets=(
        m.Bullet(kind="decision", text="Start on *Monday*", segments=(FIRST.segment,)),
        m.Bullet(kind="point", text="1. all agree", segments=(FIRST.segment, SECOND.segment)),
    ),
    model="small",
    coverage=0.5,
    span=(0, 70 * RATE),
)
MEETING = (
    ("transcriber", m.StreamStarted(source="room_1", lane="live", started_ns=1_700_000_000_000_000_000)),
    ("transcriber", FIRST),
    ("transcriber", m.Gap(span=(10 * RATE, 40 * RATE), reason="connection lost", retryable=False)),
    ("transcriber", SECOND),
    ("transcriber", m.StreamEnded(end=70 * RATE, reason="source ended")),
    ("summarizer", MINUTES),
    turn("S1", 0, 3),
    turn("S2", 60, 70),
    ("cli.1", m.SpeakerName(speaker="S2", name="Bo *x*")),
)


def test_a_meeting_has_minutes_names_and_captions() -> None:
    text = exports.md(document("s", events(*MEETING), "transcriber"))
    assert read(text) == [
        ("h1", "room_1"),
        ("li", "Stream: s"),
        ("li", "Began: 2023-11-14 22:13:20 UTC"),
        ("li", "Length: 01:10"),
        ("li", "Language: en"),
        ("li", "S1 speaks for 00:03 (23%)"),
        ("li", "Bo *x* speaks for 00:10 (77%)"),
        ("li", "Without text: 00:30, in 1 place"),
        ("h2", "Minutes"),
        ("h3", "00:00 to 01:10"),
        ("li", "Decision: Start on *Monday* (00:00)"),
        ("li", "1. all agree (00:00, 01:05)"),
        ("p", "Written by small, who read the last 50% of the words."),
        ("h2", "What was said"),
        ("p", "S1 (00:00) We start on Monday. All agree?"),
        ("p", "(00:10) nothing until 00:40: connection lost"),
        ("p", "Bo *x* (01:05) * I do, 2 < 3 & `so`!"),
    ]
    anchors = set(re.findall(r'<a id="(p\d+)"></a>', text))
    assert set(re.findall(r"\(#(p\d+)\)", text)) == {"p0", "p2"} <= anchors, "points lead to what proves them"


def test_points_lead_to_the_words_of_their_segment_which_begin_a_little_after_it() -> None:
    early = [msgspec.structs.replace(t, span=(max(0, t.span[0] - 5000), t.span[1])) for t in (FIRST, SECOND)]
    early = [msgspec.structs.replace(t, segment=m.segment_id("s", t.span[0])) for t in early]
    points = tuple(m.Bullet(kind="point", text="x", segments=(s,)) for s in (early[1].segment, "s:99000000"))
    minutes = msgspec.structs.replace(MINUTES, bullets=points)
    gap = m.Gap(span=(10 * RATE, 40 * RATE), reason="lost", retryable=False)
    made = translation("Concordo.", early[1], span=SECOND.span)
    said = [*(("transcriber", t) for t in early), ("transcriber", gap), ("summarizer", minutes), made]
    text = exports.md(document("s", events(*said), "transcriber", "pt"), "pt")
    assert re.findall(r'<a id="(p\d+)"></a>\(01:05\) Concordo', text) == ["p2"]
    assert "- x ([01:04](#p2))\n" in text and "- x (1:43:07)\n" in text, "what has no text is a time without a link"
    nothing = exports.md(document("s", events(("transcriber", gap), ("summarizer", minutes)), "transcriber"))
    assert "(#p" not in nothing


def test_in_another_language_the_minutes_are_as_they_were_written() -> None:
    said = document("s", events(*MEETING, translation("Começamos na segunda.", FIRST)), "transcriber", "pt")
    shown = read(exports.md(said, "pt"))
    assert ("li", "Language: en, here in pt") in shown and ("h2", "What was said (pt)") in shown
    assert ("li", "Decision: Start on *Monday* (00:00)") in shown
    assert ("p", "S1 (00:00) Começamos na segunda.") in shown
    assert ("p", "Bo *x* (01:05) [en] * I do, 2 < 3 & `so`!") in shown, (
        "what has no translation is there as it was said"
    )


def test_a_stream_of_which_nothing_is_known_yet() -> None:
    assert read(exports.md(document("s", [], "transcriber")))[-1] == ("p", "Nothing.")


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=60))
@settings(deadline=None, max_examples=200)
def test_whatever_is_said_means_nothing_to_markdown(said: str) -> None:
    words = " ".join(said.split())
    bullet = m.Bullet(kind="point", text=said, segments=())
    minutes = m.Summary(first="", last="", bullets=(bullet,), model="x", coverage=1.0)
    body = m.Transcript(segment="s:0", span=(0, RATE), text=said, language="en", model="x")
    shown = read(exports.md(document("s", events(("transcriber", body), ("summarizer", minutes)), "transcriber")))
    assert shown[-1] == ("p", f"(00:00) {words}" if words else "Nothing.")
    assert shown[shown.index(("h2", "Minutes")) + 1] == ("li", words or "No points.")
