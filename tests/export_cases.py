"""Streams to be exported: what was said as events and documents, and who said it."""

from __future__ import annotations

import msgspec

from common import messages as m
from common.document import Document

RATE = m.SAMPLE_RATE


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


def doc(*segments: m.Transcript) -> Document:
    return Document(stream="s", segments=segments, end=max((t.span[1] for t in segments), default=0))


def events(*bodies: tuple[str, m.Body]) -> list[m.Event]:
    """(producer, body) each, one append each."""
    kinds = [str(type(b).__struct_config__.tag) for _, b in bodies]
    return [
        m.Event(seq=n, prev=0, stream="s", kind=kind, producer=who, n=n, at_ns=0, body=bytes(m.raw(b)))
        for n, ((who, b), kind) in enumerate(zip(bodies, kinds, strict=True), 1)
    ]


def turn(speaker: str, start_s: float, end_s: float) -> tuple[str, m.Body]:
    span = (int(start_s * RATE), int(end_s * RATE))
    return ("diarizer", m.SpeakerTurn(span=span, speaker=speaker, provisional=True))


def translation(text: str, of: m.Transcript, *more: m.Transcript, **fields: object) -> tuple[str, m.Body]:
    """One sentence of Portuguese, made of whole segments."""
    made = m.Translation(
        segment=of.segment,
        revision=of.revision,
        target="pt",
        text=text,
        goes_on=tuple(f"{t.segment}/{t.revision}" for t in more),
        span=(of.span[0], (of, *more)[-1].span[1]),
        source=" ".join(t.text for t in (of, *more)),
        source_language="en",
        model="stand-in",
    )
    return ("translator.pt", msgspec.structs.replace(made, **fields))
