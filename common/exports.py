"""Text of a stream as a file for other programs: srt, vtt, txt, json. Pure: events in, text out.

`document` takes the newest word on every segment from a stream's events; a format is a function of a document.
Subtitles are cut where a sentence or a pause ends, to at most two lines of 42 columns and about 6 s (BBC and Netflix
guides agree on these within a few units); cues never overlap. Where the stream has speaker turns, a cue is one
speaker's; without any, everything is as if there were no speakers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from common import messages as m
from common.join import Join
from common.speaker_runs import NOBODY, Run

LINE_COLUMNS = 42
CUE_S = 6.0
LEAST_CUE_S = 1.0
PAUSE_S = 0.8
SENTENCE_ENDS = ".?!…。？！"
CLAUSE_ENDS = ",;:—、，"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one stream. Spans are samples."""

    stream: str
    end: int = 0  # first sample after the stream, 0: it goes on
    end_reason: str = ""
    segments: tuple[m.Transcript, ...] = ()
    gaps: tuple[m.Gap, ...] = ()
    runs: dict[str, tuple[Run, ...]] = {}  # by segment; empty when the stream has no turns
    speakers: dict[str, Speaker] = {}  # by id, in the order in which they are numbered


class Speaker(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who speaks in the stream."""

    name: str = ""  # as somebody said it
    samples: int = 0


class Cue(NamedTuple):
    """One subtitle."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]
    speaker: str = ""  # what to call who says it; "" if that is not known


class Said(NamedTuple):
    """What one speaker says of a segment: a piece of its transcript."""

    speaker: str
    text: m.Transcript
    changes: bool  # somebody else spoke before


def document(stream: str, events: Iterable[m.Event], producer: str) -> Document:
    """Of all events of a stream: its segments and the gaps of `producer`, superseded ones left out, in order."""
    texts: list[m.Transcript] = []
    gaps: list[m.Gap] = []
    replaced, end, reason, join = set[str](), 0, "", Join()
    for event in events:
        if event.stream != stream:
            continue
        join.take(event)
        body = event.decode()
        replaced.add(getattr(body, "supersedes", None) or "")
        if isinstance(body, m.Transcript):
            texts.append(body)
        elif isinstance(body, m.Gap) and event.producer == producer:
            gaps.append(body)
        elif isinstance(body, m.StreamEnded):
            end, reason = body.end, body.reason
    spoken, names = join.spoken(), join.names()
    return Document(
        stream=stream,
        end=end,
        end_reason=reason,
        segments=tuple(sorted((t for t in texts if _id(t) not in replaced), key=lambda t: t.span)),
        gaps=tuple(sorted((g for g in gaps if not g.segment or _id(g) not in replaced), key=lambda g: g.span)),
        runs={t.segment: join.runs(t.segment) for t in texts} if spoken else {},
        speakers={s: Speaker(name=names.get(s, ""), samples=n) for s, n in spoken.items()},
    )


def said(document: Document) -> Iterator[Said]:
    """The text in order, each piece by one speaker. Who is not known after somebody was is told as `?`."""
    before = NOBODY
    for t in document.segments:
        runs = document.runs.get(t.segment, ())
        for run in (r for r in runs if r.text):
            piece = t if len(runs) == 1 else _piece(t, run)
            called = document.speakers.get(run.speaker, Speaker()).name or run.speaker or ("?" if before else "")
            yield Said(called, piece, run.speaker != before)
            before = run.speaker
        if not runs:
            yield Said("", t, False)


def _piece(t: m.Transcript, run: Run) -> m.Transcript:
    return msgspec.structs.replace(t, span=run.span, text=run.text, words=t.words[slice(*run.words)])


def _id(body: m.Transcript | m.Gap) -> str:
    return f"{body.segment}/{body.revision}"


def txt(document: Document) -> str:
    """One line for each utterance, and for each speaker in it; the speaker's name where it changes."""
    return "".join(
        f"{f'{s.speaker}: ' * bool(s.changes and s.speaker)}{text}\n"
        for s in said(document)
        if (text := " ".join(s.text.text.split()))
    )


def json(document: Document, words: bool = False, **more: object) -> str:
    """One object on one line: `segments` with times in seconds, `gaps`, and whatever `more` says of the file.

    With speakers: `speakers`, how long each talks, and for each segment `runs`, its words by speaker.
    """
    segments = []
    for t in document.segments:
        runs = document.runs.get(t.segment, ())
        row: dict[str, object] = {"start_s": _s(t.span[0]), "end_s": _s(t.span[1]), "text": t.text.strip()}
        row |= {"language": t.language, "model": t.model}
        if runs:
            row["runs"] = [
                {"speaker": r.speaker or None, "start_s": _s(r.span[0]), "end_s": _s(r.span[1]), "text": r.text}
                for r in runs
            ]
        if words:
            row["words"] = [
                {"text": w.text.strip(), "start_s": _s(w.span[0]), "end_s": _s(w.span[1]), "p": w.p} for w in t.words
            ]
        segments.append(row)
    speakers = [
        {"speaker": s, "name": of.name or None, "seconds": _s(of.samples)} for s, of in document.speakers.items()
    ]
    gaps = [{"start_s": _s(g.span[0]), "end_s": _s(g.span[1]), "reason": g.reason} for g in document.gaps]
    whole = more | {"stream": document.stream, "duration_s": _s(document.end), "segments": segments, "gaps": gaps}
    whole |= {"speakers": speakers} if speakers else {}
    return msgspec.json.encode(whole).decode() + "\n"


def srt(document: Document) -> str:
    """SubRip."""
    return "".join(
        f"{n}\n{_clock(c.start_s, ',')} --> {_clock(c.end_s, ',')}\n" + "\n".join(c.lines) + "\n\n"
        for n, c in enumerate(cues(document, names=True), 1)
    )


def vtt(document: Document) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(c.start_s, '.')} --> {_clock(c.end_s, '.')}\n"
        + f"<v {_escaped(c.speaker)}>" * bool(c.speaker)
        + "\n".join(map(_escaped, c.lines))
        + "\n\n"
        for c in cues(document)
    )


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


FORMATS: dict[str, Callable[[Document], str]] = {"srt": srt, "vtt": vtt, "txt": txt, "json": json}


def cues(document: Document, names: bool = False) -> list[Cue]:
    """Subtitles in order. Each lasts LEAST_CUE_S where the next one leaves it the time.

    `names`: where the speaker changes, the text begins with the name.
    """
    found = [
        (_s(words[0].span[0]), _s(words[-1].span[1]), wrapped("".join(w.text for w in words)), s.speaker)
        for s in said(document)
        for words in _cut(list(_words(s.text, f"{s.speaker}:" if names and s.changes and s.speaker else "")))
    ]
    out: list[Cue] = []
    for i, (start_s, end_s, lines, speaker) in enumerate(found):
        follows_s = found[i + 1][0] if i + 1 < len(found) else float("inf")
        start_s = max(start_s, out[-1].end_s if out else 0.0)
        end_s = min(max(end_s, start_s + LEAST_CUE_S), max(follows_s, start_s + 0.001))
        out.append(Cue(start_s, end_s, lines, speaker))
    return out


def _words(t: m.Transcript, name: str = "") -> Iterator[m.Word]:
    """The words of a segment; where it has none, its text cut at spaces, the time shared out by length.

    `name` goes before them and takes no time.
    """
    words = [w for w in t.words if w.text.strip()]
    if not words:
        parts = [f" {p}" for p in t.text.split()]
        total, at = sum(map(len, parts)), 0
        for part in parts:
            start, end = (t.span[0] + (t.span[1] - t.span[0]) * n // total for n in (at, at + len(part)))
            words.append(m.Word(text=part, span=(start, end), p=0.0))
            at += len(part)
    start = words[0].span[0] if words else 0
    names = [m.Word(text=f" {part}", span=(start, start), p=0.0) for part in name.split() if words]
    for word in (*names, *words):
        text = " ".join(word.text.split())
        text = (" " if word.text[:1].isspace() else "") + text
        while columns(text) > LINE_COLUMNS:  # a script without spaces, or an address: no word ends in time
            head = _fitting(text, LINE_COLUMNS)
            yield m.Word(text=head, span=word.span, p=word.p)
            text = text[len(head) :]
        yield m.Word(text=text, span=word.span, p=word.p)


def _cut(words: list[m.Word]) -> Iterator[list[m.Word]]:
    """Words in groups that fit one subtitle: up to the last good end before it is full."""
    while words:
        size = 0
        for i, word in enumerate(words):
            late = (word.span[1] - words[0].span[0]) > CUE_S * m.SAMPLE_RATE
            pause = i and word.span[0] - words[i - 1].span[1] > PAUSE_S * m.SAMPLE_RATE
            if i and (late or pause or len(wrapped("".join(w.text for w in words[: i + 1]))) > 2):
                break
            size = i + 1
        if size < len(words) and not (words[size].span[0] - words[size - 1].span[1] > PAUSE_S * m.SAMPLE_RATE):
            size = _good_end(words, size)
        yield words[:size]
        words = words[size:]


def _good_end(words: list[m.Word], size: int) -> int:
    """The last end of a sentence among the first `size` words, else of a clause, if not too much is left over."""
    for marks in (SENTENCE_ENDS, CLAUSE_ENDS):
        for n in range(size, size // 2, -1):
            if words[n - 1].text.rstrip("\"'”’)»")[-1:] in marks:
                return n
    return size


def wrapped(text: str) -> tuple[str, ...]:
    """One line if it fits, else two or more that are as even as can be."""
    text = text.strip()
    if columns(text) <= LINE_COLUMNS:
        return (text,)
    breaks = [i for i, c in enumerate(text) if c == " "]
    fitting = [i for i in breaks if max(columns(text[:i]), columns(text[i + 1 :])) <= LINE_COLUMNS]
    if fitting:
        best = min(fitting, key=lambda i: abs(columns(text[:i]) - columns(text[i + 1 :])))
        return (text[:best], text[best + 1 :])
    head = _fitting(text, LINE_COLUMNS)
    cut = head.rfind(" ") if " " in head and text[len(head) : len(head) + 1] != " " else len(head)
    return (text[:cut].strip(), *wrapped(text[cut:]))


def columns(text: str) -> int:
    """Width on a screen: Chinese, Japanese and Korean letters have two columns, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fitting(text: str, wide: int) -> str:
    """The longest beginning of at most `wide` columns, at least one letter."""
    for n in range(1, len(text) + 1):
        if columns(text[:n]) > wide:
            return text[: max(1, n - 1)]
    return text


def _s(samples: int) -> float:
    return round(samples / m.SAMPLE_RATE, 3)


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"
