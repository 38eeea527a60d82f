"""What is known of one stream, as a subscriber has it who has applied all its events. Pure: events in, a Document out.

Of everything the newest word counts: what was superseded or purged is left out, turns have the labels that all relabels
give them, names and merges hold for the whole stream, and a translation is there as long as the words that it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from common import messages as m
from common.join import Join
from common.rests import Rest
from common.revisions import Revisions
from common.spans import Seqs
from common.speaker_runs import Piece, Run
from common.translations import Sentence, Translations

NoText = m.Gap | m.Suppressed
_NoText = TypeVar("_NoText", m.Gap, m.Suppressed)


class Speaker(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who speaks in the stream."""

    name: str = ""  # as somebody said it
    samples: int = 0


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one stream. Spans are samples."""

    stream: str
    seq: int = 0  # of the newest event in it
    source: str = ""
    lane: str = ""
    started_ns: int = 0  # wall clock of its first sample; 0: not told
    end: int = 0  # first sample after the stream, 0: it goes on
    end_reason: str = ""
    segments: tuple[m.Transcript, ...] = ()
    suppressed: tuple[m.Suppressed, ...] = ()
    gaps: tuple[m.Gap, ...] = ()
    runs: dict[str, tuple[Run, ...]] = {}  # by segment; empty when the stream has no turns
    turns: tuple[Piece, ...] = ()  # who speaks when; those of different speakers may overlap
    speakers: dict[str, Speaker] = {}  # by id, in the order in which they are numbered
    minutes: tuple[m.Summary, ...] = ()
    translations: dict[str, tuple[Sentence, ...]] = {}  # by target; also what was said in that language
    untranslated: dict[str, tuple[Rest, ...]] = {}  # by target: what was said and has no translation

    def call(self, speaker: str) -> str:
        """What to call a speaker: the name that somebody gave, else the id."""
        return self.speakers.get(speaker, Speaker()).name or speaker

    @property
    def heard(self) -> int:
        """First sample after all that is known of."""
        spans = [t.span for t in self.segments] + [s.span for s in self.suppressed] + [g.span for g in self.gaps]
        return self.end or max((end for _, end in spans), default=0)


def document(stream: str, events: Iterable[m.Event], producer: str, target: str = "") -> Document:
    """Of all events of a stream; of gaps and suppressed sound what `producer` says.

    `target`: a language that is wanted, whether or not there is a translation into it.
    """
    join, texts, translations = Join(), Revisions(), Translations()
    bodies: dict[int, tuple[str, m.EventBody]] = {}  # with their producers, by seq
    seq = 0
    for e in events:
        if e.stream != stream:
            continue
        seq = max(seq, e.seq)
        join.take(e)
        translations.take(e)
        if (body := e.decode()) is not None:
            bodies[e.seq] = (e.producer, body)
            texts.take(e, body)
    purged = Seqs(run for _, body in bodies.values() if isinstance(body, m.Purged) for run in body.seqs)
    texts.forget(purged)
    left = {n: b for n, b in sorted(bodies.items()) if n not in purged}
    said = [body for _, body in left.values()]
    without = [
        body
        for n, (who, body) in left.items()
        if isinstance(body, NoText) and who == producer and (not body.segment or texts.chosen.get(body.segment) == n)
    ]
    began = next((b for b in reversed(said) if isinstance(b, m.StreamStarted)), None)
    ended = next((b for b in reversed(said) if isinstance(b, m.StreamEnded)), None)
    spoken, names = join.spoken(), join.names()
    segments = tuple(sorted(texts.newest.values(), key=lambda t: (t.span, t.segment)))
    targets = sorted({*translations.targets(), *([target] if target else [])})
    return Document(
        stream=stream,
        seq=seq,
        source=began.source if began else "",
        lane=began.lane if began else "",
        started_ns=began.started_ns if began else 0,
        end=ended.end if ended else 0,
        end_reason=ended.reason if ended else "",
        segments=segments,
        suppressed=_in_order(m.Suppressed, without),
        gaps=_in_order(m.Gap, without),
        runs={t.segment: join.runs(t.segment) for t in segments} if spoken else {},
        turns=tuple(join.pieces()),
        speakers={s: Speaker(name=names.get(s, ""), samples=n) for s, n in spoken.items()},
        minutes=tuple(sorted((b for b in said if isinstance(b, m.Summary)), key=lambda b: b.span or (0, 0))),
        translations={t: tuple(translations.sentences(t)) for t in targets},
        untranslated={t: tuple(translations.left(t)) for t in targets},
    )


def _place(body: NoText) -> tuple[m.Span, str, str, str]:
    """Where it stands; what is at one place has an order, too, which is that of no journal."""
    return body.span, body.segment, body.reason, getattr(body, "text", "")


def _in_order(kind: type[_NoText], without: Sequence[NoText]) -> tuple[_NoText, ...]:
    return tuple(sorted((body for body in without if isinstance(body, kind)), key=_place))
