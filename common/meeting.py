"""A stream as the document of a meeting, in Markdown: when, who, the minutes, and everything that was said. Pure.

Every point of the minutes leads to the paragraph that proves it, and what was not captioned is said in its place.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from common import messages as m
from common.document import Document
from common.passages import passages

PARAGRAPH_S = 60.0  # whoever speaks for longer gets another paragraph,
PAUSE_S = 3.0  # and so does who goes on after such a pause
KINDS = {"decision": "Decision: ", "action": "Action: ", "question": "Question: "}
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")


class Paragraph(NamedTuple):
    """What one speaker says without a long pause, or (`speaker` None) why nothing is there."""

    start: int  # samples
    end: int
    speaker: str | None
    text: str


def md(document: Document, language: str = "") -> str:
    """Markdown (CommonMark)."""
    paragraphs = sorted([*_paragraphs(document, language), *_holes(document)], key=lambda p: p.start)
    parts = [f"# {_plain(document.source or document.stream)}", "\n".join(_facts(document, language))]
    parts += _minutes(document, paragraphs)
    parts += ["## What was said" + f" ({language})" * bool(language)]
    for n, p in enumerate(paragraphs):
        who = f"**{_plain(p.speaker)}** " if p.speaker else ""
        text = f"*{_plain(p.text)}*" if p.speaker is None else _plain(p.text)
        parts.append(f'<a id="p{n}"></a>{who}({_clock(p.start)}) {text}')
    return "\n\n".join(parts + ["Nothing."] * (not paragraphs)) + "\n"


def _paragraphs(document: Document, language: str) -> Iterator[Paragraph]:
    start, end, speaker, said = 0, 0, "", list[str]()
    for p in passages(document, language):
        if not (text := " ".join(p.text.split())):
            continue
        far = p.span[0] - end > PAUSE_S * m.SAMPLE_RATE or p.span[0] - start > PARAGRAPH_S * m.SAMPLE_RATE
        if said and (p.changes or far):
            yield Paragraph(start, end, speaker, " ".join(said))
            said = []
        if not said:
            start, end, speaker = *p.span, p.speaker
        said.append(text)
        end = max(end, p.span[1])
    if said:
        yield Paragraph(start, end, speaker, " ".join(said))


def _holes(document: Document) -> Iterator[Paragraph]:
    for g in document.gaps:
        yield Paragraph(*g.span, None, f"nothing until {_clock(g.span[1])}: {g.reason}")


def _facts(document: Document, language: str) -> Iterator[str]:
    yield f"- Stream: {_plain(document.stream)}"
    if document.started_ns:
        yield time.strftime("- Began: %Y-%m-%d %H:%M:%S UTC", time.gmtime(document.started_ns // 1_000_000_000))
    yield f"- Length: {_clock(document.heard)}" + ", and it goes on" * (not document.end)
    spoken = ", ".join(dict.fromkeys(t.language for t in document.segments if t.language))
    if spoken:
        yield f"- Language: {_plain(spoken)}" + f", here in {language}" * bool(language and language != spoken)
    total = sum(s.samples for s in document.speakers.values())
    for speaker, of in document.speakers.items():
        yield f"- {_plain(document.call(speaker))} speaks for {_clock(of.samples)} ({of.samples / max(1, total):.0%})"
    if missing := sum(g.span[1] - g.span[0] for g in document.gaps):
        yield f"- Without text: {_clock(missing)}, in {len(document.gaps)} place" + "s" * (len(document.gaps) > 1)


def _minutes(document: Document, paragraphs: list[Paragraph]) -> Iterator[str]:
    if document.minutes:
        yield "## Minutes"
    for s in document.minutes:
        if s.span:
            yield f"### {_clock(s.span[0])} to {_clock(s.span[1])}"
        read = f", who read the last {s.coverage:.0%} of the words" if s.coverage < 1 else ""
        lines = []
        for b in (b for b in s.bullets if b.text.strip()):
            places = [int(at) for segment in b.segments if (at := segment.rpartition(":")[2]).isdecimal()]
            links = ", ".join(_link(paragraphs, at) for at in places)
            lines.append(f"- {KINDS.get(b.kind, '')}{_plain(b.text)}" + f" ({links})" * bool(links))
        yield "\n".join(lines or ["- No points."])
        yield f"Written by {_plain(s.model)}{read}."


def _link(paragraphs: list[Paragraph], at: int) -> str:
    """The time where a segment begins; it leads to the paragraph with its first words, which may begin after it."""
    spoken = (n for n, p in enumerate(paragraphs) if p.end > at and p.speaker is not None)
    return f"[{_clock(at)}](#p{n})" if (n := next(spoken, -1)) >= 0 else _clock(at)


def _plain(text: str) -> str:
    """Text in which nothing means anything to Markdown, wherever in a line it stands."""
    text = _MARKS.sub(r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)


def _clock(samples: int) -> str:
    """`1:02:03` or `02:03`."""
    at_s = samples // m.SAMPLE_RATE
    return f"{at_s // 3600}:" * (at_s >= 3600) + f"{at_s // 60 % 60:02d}:{at_s % 60:02d}"
