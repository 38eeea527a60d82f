"""A stream as a file for other programs and for people: srt, vtt, txt, json, md, rttm. Pure: a Document in, text out.

`FORMATS` has each as a function of the document and a language ("" is that in which it was said); what a language makes
no difference to leaves it alone. Where the stream has no speaker turns, everything is as if there were no speakers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from common import messages as m
from common.document import Document
from common.meeting import md
from common.passages import passages
from common.speaker_runs import by_voice, number
from common.subtitles import cues, seconds

NOTHING = {"", "na", "n/a", "nan", "none", "null"}  # names that readers of RTTM take for a missing one


def txt(document: Document, language: str = "") -> str:
    """One line for each utterance, and for each speaker in it; the speaker's name where it changes."""
    return "".join(
        f"{f'{p.speaker}: ' * bool(p.changes and p.speaker)}{text}\n"
        for p in passages(document, language)
        if (text := " ".join(p.text.split()))
    )


def srt(document: Document, language: str = "") -> str:
    """SubRip."""
    return "".join(
        f"{n}\n{_clock(c.start_s, ',')} --> {_clock(c.end_s, ',')}\n" + _visible("\n".join(c.lines)) + "\n\n"
        for n, c in enumerate(cues(passages(document, language), names=True), 1)
    )


def _visible(text: str) -> str:
    """SubRip has no escapes: what players would take for a tag, and hide, begins with the wide form of its bracket."""
    return re.sub("(?s){(?=.*})", "｛", re.sub("(?s)<(?=.*>)", "＜", text))


def vtt(document: Document, language: str = "") -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(c.start_s, '.')} --> {_clock(c.end_s, '.')}\n"
        + f"<v {_escaped(c.speaker)}>" * bool(c.speaker)
        + "\n".join(map(_escaped, c.lines))
        + "\n\n"
        for c in cues(passages(document, language))
    )


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def rttm(document: Document, language: str = "") -> str:
    """Who speaks when, as programs that score it read it (NIST RTTM): a name is one word, and no two are alike."""
    called: dict[str, str] = {}
    for speaker in sorted({p.speaker for p in document.turns}, key=number):
        name = "_".join(document.call(speaker).replace('"', "'").split())
        name = speaker if name.strip("<>").casefold() in NOTHING else name
        while name in called.values():
            name = f"{name}_{speaker}"
        called[speaker] = name
    spans = sorted((a, b, speaker) for speaker, union in by_voice(document.turns).items() for a, b in union)
    return "".join(
        f"SPEAKER {document.stream} 1 {start:.3f} {end - start:.3f} <NA> <NA> {called[speaker]} <NA> <NA>\n"
        for a, b, speaker in spans
        if (end := seconds(b)) > (start := seconds(a))
    )


def json(document: Document, language: str = "", *, words: bool = False, **more: object) -> str:
    """One object on one line: all that a subscriber knows of the stream, and whatever `more` says of it.

    Times are seconds since it began; `duration_s` of a stream that goes on is how far it is known. With turns:
    `speakers`, `turns`, and of each segment `runs`, words by speaker.
    `language`: of the translations, and of what has none, only that into it.
    """
    segments = []
    for t in document.segments:
        row: dict[str, object] = {"segment": t.segment, "revision": t.revision, **_span(t.span), "text": t.text.strip()}
        row |= {"language": t.language, "model": t.model}
        if runs := document.runs.get(t.segment, ()):
            row["runs"] = [{"speaker": r.speaker or None, **_span(r.span), "text": r.text} for r in runs]
        if words:
            row["words"] = [{"text": w.text.strip(), **_span(w.span), "p": w.p} for w in t.words]
        segments.append(row)
    whole = more | {
        "stream": document.stream,
        "seq": document.seq,
        "source": document.source or None,
        "lane": document.lane or None,
        "started_ns": document.started_ns or None,
        "duration_s": seconds(document.heard),
        "ended": document.end_reason or None,
        "segments": segments,
        "suppressed": [{**_span(s.span), "text": s.text.strip(), "reason": s.reason} for s in document.suppressed],
        "gaps": [{**_span(g.span), "reason": g.reason} for g in document.gaps],
        "translations": {
            target: [
                {
                    "segments": sentence.segments,
                    "place": sentence.place,
                    **_span(sentence.span),
                    "text": sentence.text,
                    "source": sentence.source,
                    "source_language": sentence.source_language,
                    "suspect": sentence.suspect,
                    "model": sentence.model or None,
                }
                for sentence in sentences
            ]
            for target, sentences in document.translations.items()
            if language in ("", target)
        },
        "untranslated": {
            target: [{"segment": rest.segment, **_span(rest.span), "text": rest.text} for rest in rests]
            for target, rests in document.untranslated.items()
            if language in ("", target)
        },
        "minutes": [_minutes(s) for s in document.minutes],
    }
    if document.speakers:
        whole["speakers"] = [
            {"speaker": s, "name": of.name or None, "seconds": seconds(of.samples)}
            for s, of in document.speakers.items()
        ]
        whole["turns"] = [
            {"speaker": speaker, **_span((a, b))}
            for a, b, speaker in sorted((*s, who) for who, spans in by_voice(document.turns).items() for s in spans)
        ]
    return msgspec.json.encode(whole).decode() + "\n"


def _minutes(s: m.Summary) -> dict[str, object]:
    bullets = [{"kind": b.kind, "text": b.text, "segments": b.segments} for b in s.bullets]
    return {**_span(s.span or (0, 0)), "bullets": bullets, "model": s.model, "coverage": s.coverage}


def _span(span: m.Span) -> dict[str, float]:
    return {"start_s": seconds(span[0]), "end_s": seconds(span[1])}


def _clock(at_s: float, point: str) -> str:
    ms = round(at_s * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"


FORMATS: dict[str, Callable[[Document, str], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": json,
    "md": md,
    "rttm": rttm,
}
