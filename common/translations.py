"""The text of a stream in other languages, sentence by sentence, in one place for viewer, exports and everybody. Pure.

In: transcripts and translations, in any order. Out: for each target language the sentences in the order in which they
were said. Like `join`, a function of the set of events alone.

The rule, also in PROTOCOL.md: of a sentence (segment, place, target) the newest translation counts, and only as long as
every text that it was made from is still the newest of its segment. So nobody shows the translation of words that were
corrected: for a moment there is none. Text that is in the target language already stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from common import messages as m
from common.rests import Rest, Rests
from common.revisions import KINDS as TEXT_KINDS
from common.revisions import Revisions
from common.spans import Seqs

KINDS = (*TEXT_KINDS, "translation")
_Key = tuple[str, int, str]  # segment, place, target


class Sentence(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence in a target language."""

    target: str
    segment: str  # in which it begins
    place: int  # number among the sentences that begin there, from 0
    segments: tuple[str, ...]  # all that have words of it, in order
    span: m.Span
    text: str
    source: str  # what was said
    source_language: str
    suspect: str | None = None  # what the guard found
    model: str = ""  # "": it was said in the target language


class Translations:
    """One stream. Every event costs about what it touches."""

    def __init__(self) -> None:
        self.mark = 0  # rises with each change of a segment's sentences
        self._texts = Revisions()
        self._made: dict[_Key, dict[int, m.Translation]] = {}  # by seq
        self._key_of: dict[int, _Key] = {}  # by seq
        self._touching: dict[str, set[_Key]] = {}  # sentences that have words of a segment
        self._sentences: dict[str, tuple[Sentence, ...]] = {}  # by the segment in which they begin, all targets
        self._changed: dict[str, int] = {}  # the mark at which they became what they are; oldest first
        self._dirty: dict[str, None] = {}
        self._purged = Seqs()
        self._trimmed = -1  # sample: what is older is refused where its text is not here

    # In

    def take(self, e: m.Event) -> None:
        """An event of this stream; those it knows or has no use for change nothing."""
        if e.purged:
            self._forget(Seqs([(e.seq, e.seq)]))
        elif e.kind == "purged" or e.seq not in self._purged:
            self._take(e, e.decode())

    def _take(self, e: m.Event, body: m.EventBody | None) -> None:
        match body:
            case m.Transcript() | m.Suppressed() | m.Gap():
                if segment := self._texts.take(e, body):
                    self._touch(segment)
            case m.Translation() if e.seq not in self._key_of and not self._forgotten(body):
                key = (body.segment, body.place, body.target)
                self._made.setdefault(key, {})[e.seq] = body
                self._key_of[e.seq] = key
                for segment in segments_of(body):
                    self._touching.setdefault(segment, set()).add(key)
                self._dirty[body.segment] = None
            case m.Purged():
                self._purged.add(body.seqs)
                self._forget(Seqs(body.seqs))

    def _forget(self, seqs: Seqs) -> None:
        for segment in self._texts.forget(seqs):
            self._touch(segment)
        for seq in seqs.of(self._key_of):
            self._drop(seq)

    def _drop(self, seq: int) -> None:
        """A translation."""
        key = self._key_of.pop(seq)
        gone, rest = self._made[key].pop(seq), self._made[key]
        for segment in {*segments_of(gone)} - {s for t in rest.values() for s in segments_of(t)}:
            self._touching[segment].discard(key)
            if not self._touching[segment]:
                del self._touching[segment]
        if not rest:
            del self._made[key]
        self._dirty[key[0]] = None

    def _forgotten(self, t: m.Translation) -> bool:
        """The text in which it begins is not here, and is not on its way either."""
        return t.segment not in self._texts.newest and _end(t) <= self._trimmed

    def _touch(self, segment: str) -> None:
        self._dirty |= dict.fromkeys([segment, *(s for s, _, _ in sorted(self._touching.get(segment, ())))])

    def trim(self, before: int) -> list[str]:
        """Forget segments that ended before a sample, and sentences that begin there, for who does not show them any
        more; which segments. Translations of what is older are not taken any more."""
        self._settle()
        self._trimmed = max(self._trimmed, before)
        gone = dict.fromkeys(self._texts.trim(before))
        made = [(seq, t) for made in self._made.values() for seq, t in made.items()]
        for seq in [seq for seq, t in made if t.segment in gone or self._forgotten(t)]:
            self._drop(seq)
        for segment in gone:
            self._sentences.pop(segment, None)
            self._changed.pop(segment, None)
            self._dirty.pop(segment, None)
        return list(gone)

    # Out

    def made(self, segment: str) -> tuple[Sentence, ...]:
        """The translations of sentences that begin in a segment, into all languages."""
        self._settle()
        return self._sentences.get(segment, ())

    def begin(self, segment: str) -> list[str]:
        """Segments in which the sentences begin that have words of this one."""
        return list(dict.fromkeys(first for first, _, _ in sorted(self._touching.get(segment, ()))))

    def targets(self) -> tuple[str, ...]:
        """Languages that there is a translation in."""
        self._settle()
        return tuple(sorted({s.target for sentences in self._sentences.values() for s in sentences}))

    def sentences(self, target: str) -> list[Sentence]:
        """The whole stream in a language, as far as there is one, in the order in which it was said."""
        return [s for t in self._in_order() for s in self.of(t.segment, target)]

    def of(self, segment: str, target: str) -> tuple[Sentence, ...]:
        """The sentences that begin in a segment; none: it has no text any more, no translation yet, or only the rest of
        a sentence that began before it."""
        self._settle()
        text = self._texts.newest.get(segment)
        found = tuple(s for s in self._sentences.get(segment, ()) if s.target == target)
        return (_as_said(text),) if text and text.language == target and not found and text.text.strip() else found

    def left(self, target: str) -> list[Rest]:
        """What was said and is not translated (yet), in order: whole texts, the rest of one, sentences given up."""
        rests, texts = Rests(), self._in_order()
        for t in texts:
            of_it = [k for k in self._touching.get(t.segment, ()) if k[0] == t.segment and k[2] == target]
            for _, made in sorted((k[1], self._made[k]) for k in of_it):
                newest = made[max(made)]
                if parts := self._made_from(newest):
                    rests.take(parts, newest.source, bool(newest.text))
        return [rest for t in texts if t.language != target for rest in rests.left(t)]

    def since(self, mark: int) -> list[str]:
        """Segments whose translations have become others after `mark` was the mark, the last one first. (One whose own
        text changed is not named for that.)"""
        self._settle()
        out = []
        for segment in reversed(self._changed):
            if self._changed[segment] <= mark:
                break
            out.append(segment)
        return out

    # In between

    def _in_order(self) -> list[m.Transcript]:
        return sorted(self._texts.newest.values(), key=lambda t: (t.span, t.segment))

    def _settle(self) -> None:
        for segment in self._dirty:
            keys = sorted((k for k in self._touching.get(segment, ()) if k[0] == segment), key=lambda k: (k[2], k[1]))
            found = tuple(s for k in keys if (s := self._sentence(self._made[k])))
            if found != self._sentences.get(segment, ()):
                self.mark += 1
                self._changed.pop(segment, None)
                self._changed[segment] = self.mark
            if found:
                self._sentences[segment] = found
            else:
                self._sentences.pop(segment, None)
        self._dirty.clear()

    def _sentence(self, made: dict[int, m.Translation]) -> Sentence | None:
        newest = made[max(made)]
        texts = self._made_from(newest)
        if not texts or not newest.text:
            return None
        return Sentence(
            target=newest.target,
            segment=newest.segment,
            place=newest.place,
            segments=segments_of(newest),
            span=newest.span or (texts[0].span[0], texts[-1].span[1]),
            text=newest.text,
            source=newest.source or " ".join(t.text.strip() for t in texts),
            source_language=newest.source_language or texts[0].language,
            suspect=newest.suspect,
            model=newest.model,
        )

    def _made_from(self, made: m.Translation) -> list[m.Transcript]:
        """The texts; none: one of them is not the newest any more."""
        parts = [self._texts.newest.get(segment) for segment in segments_of(made)]
        texts = [t for t in parts if t]
        return texts if len(texts) == len(parts) and texts_id(texts) == parts_of(made) else []


def parts_of(t: m.Translation) -> tuple[str, ...]:
    """`segment/revision` of all the texts that a translation was made from."""
    return (f"{t.segment}/{t.revision}", *t.goes_on)


def segments_of(t: m.Translation) -> tuple[str, ...]:
    return (t.segment, *(part.rpartition("/")[0] for part in t.goes_on))


def _end(t: m.Translation) -> int:
    """Sample; where it is not said, the first that it may be: one behind that at which its first segment begins."""
    first = t.segment.rpartition(":")[2]
    return t.span[1] if t.span else int(first) + 1 if first.isdecimal() else 0


def texts_id(texts: Iterable[m.Transcript]) -> tuple[str, ...]:
    return tuple(f"{t.segment}/{t.revision}" for t in texts)


def _as_said(t: m.Transcript) -> Sentence:
    text = t.text.strip()
    return Sentence(
        target=t.language,
        segment=t.segment,
        place=0,
        segments=(t.segment,),
        span=t.span,
        text=text,
        source=text,
        source_language=t.language,
    )
