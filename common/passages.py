"""The text of a stream in the order in which it was said, each piece by one speaker, in a language. Pure.

In the language that was spoken a passage is a run of a segment's words. In another one it is a translated sentence; who
says most of it says it. What has no translation (yet), be it a part of what somebody said at once, is there as it was
said, and says so: nothing goes missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common import messages as m
from common.document import Document
from common.rests import Rest
from common.speaker_runs import NOBODY, Run
from common.translations import Sentence

UNKNOWN = "?"  # who it is, after somebody who is known


class Passage(NamedTuple):
    """What one speaker says, one after the other."""

    speaker: str  # what to call them; "" where nobody is known, or was before
    changes: bool  # somebody else spoke before
    span: m.Span
    text: str
    words: tuple[m.Word, ...] = ()  # with their times, if these are known
    language: str = ""  # of the text


def passages(document: Document, language: str = "") -> Iterator[Passage]:
    """The whole stream. `language`: "" is that in which it was said.

    `[en]` before a passage: it has no translation. `(?)` behind it: the translation may be wrong.
    """
    before = NOBODY
    for speaker, p in _translated(document, language) if language else _said(document):
        if not p.text.strip():
            continue
        called = document.call(speaker) or (UNKNOWN if before else "")
        yield p._replace(speaker=called, changes=speaker != before)
        before = speaker


def _said(document: Document) -> Iterator[tuple[str, Passage]]:
    for t in document.segments:
        yield from _segment(document, t)


def _segment(document: Document, t: m.Transcript) -> Iterator[tuple[str, Passage]]:
    runs = document.runs.get(t.segment, ())
    if len(runs) < 2:
        yield runs[0].speaker if runs else NOBODY, Passage("", False, t.span, t.text, t.words, t.language)
        return
    for r in (r for r in runs if r.text):
        yield r.speaker, Passage("", False, r.span, r.text, t.words[slice(*r.words)], t.language)


def _translated(document: Document, language: str) -> Iterator[tuple[str, Passage]]:
    texts = {t.segment: t for t in document.segments}
    pieces: list[Rest | Sentence] = [
        *document.translations.get(language, ()),
        *document.untranslated.get(language, ()),
    ]
    for one in sorted(pieces, key=lambda x: (x.span, x.segment)):
        if isinstance(one, Rest):
            t = texts[one.segment]
            yield from ((speaker, _as_it_is(p)) for speaker, p in _left(document, t, one))
        elif one.source_language == language and one.segment in texts:  # said in it: its words have times
            yield from _segment(document, texts[one.segment])
        else:
            text = f"{one.text} (?)" if one.suspect else one.text
            yield speaker_of(one, document.runs), Passage("", False, one.span, text, language=language)


def _left(document: Document, t: m.Transcript, rest: Rest) -> Iterator[tuple[str, Passage]]:
    if rest.text == t.text.strip():
        yield from _segment(document, t)
        return
    runs = document.runs.get(t.segment, ())
    shares = [(r.speaker, max(r.words[0], rest.words[0]), min(r.words[1], rest.words[1])) for r in runs]
    inside = [(speaker, t.words[first:end]) for speaker, first, end in shares if first < end]
    if len(inside) < 2:
        words = t.words[slice(*rest.words)]
        yield _most(rest.span, runs), Passage("", False, rest.span, rest.text, words, t.language)
        return
    for speaker, words in inside:
        span = (min(w.span[0] for w in words), max(w.span[1] for w in words))
        yield speaker, Passage("", False, span, "".join(w.text for w in words), words, t.language)


def _as_it_is(p: Passage) -> Passage:
    mark = f"[{p.language}]"
    start = p.words[0].span[0] if p.words else 0  # not that of the text, which may begin long before the first word
    words = (m.Word(text=f" {mark}", span=(start, start), p=0.0), *p.words) if p.words else ()
    return p._replace(text=f"{mark} {p.text.strip()}", words=words)


def speaker_of(sentence: Sentence, runs: dict[str, tuple[Run, ...]]) -> str:
    """Who says most of it."""
    return _most(sentence.span, (r for segment in sentence.segments for r in runs.get(segment, ())))


def _most(span: m.Span, runs: Iterable[Run]) -> str:
    shares: dict[str, int] = {}
    for run in runs:
        shares[run.speaker] = shares.get(run.speaker, 0) + max(0, min(span[1], run.span[1]) - max(span[0], run.span[0]))
    best = max(shares.values(), default=0)
    return next((speaker for speaker, share in shares.items() if share == best and best), NOBODY)
