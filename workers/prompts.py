"""What the decoder is told about an utterance beside its sound: language, names to expect, the words before.

In: what the settings, the source and the state that travels with the position say. Out: tokens that stand before the
text. Half of the decoder's context is for them: the glossary first, then the first prompt, then the text before, of
which the oldest words go where place is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from common.settings import TranscriberSettings
from workers import glossary
from workers.captions import repeats
from workers.language import Belief

PROMPT_TOKENS = 100  # of the text before
MOST = 223  # tokens of any prompt; whisper drops the first of more
MARKS = 8  # tokens of the language, the task and such


class Told(NamedTuple):
    """About one utterance."""

    language: str = ""  # empty: to be found out
    before: tuple[int, ...] = ()  # tokens of the text before it, which is in the language of `belief`
    belief: Belief = Belief()
    paused: bool = False  # nobody has spoken for long
    terms: tuple[str, ...] = ()  # the glossary

    def within(self, language: str) -> Told:
        """The same in this language. Text in another one would make the decoder translate."""
        other = not self.language and bool(self.belief.best) and language != self.belief.best
        return self._replace(language=language, before=() if other else self.before)


class Try(NamedTuple):
    """One decoding: how warm, and with which parts of the prompt."""

    temperature: float = 0.0
    glossary: bool = False
    lead: bool = False  # the first prompt
    before: bool = False


WHOLE = Try(0.0, True, True, True)


class Prompts:
    """Prompts for one model."""

    def __init__(self, settings: TranscriberSettings, whisper: Any, model: Any) -> None:
        self.s, self._whisper, self._model = settings, whisper, model

    def tokenizer(self, language: str) -> Any:
        """Whisper's own. No text of ours is read as a special token, not even one that spells it: to find that out for
        each text, tiktoken compiles an expression of 1,600 of them, a quarter of a second of each start."""
        found = self._whisper.tokenizer.get_tokenizer(
            self._model.is_multilingual, num_languages=self._model.num_languages, language=language, task="transcribe"
        )
        encoding = found.encoding  # the same object for all tokenizers of one vocabulary
        vars(encoding).setdefault("encode", lambda text, **_: encoding.encode_ordinary(text))
        return found

    def fixed(self, wanted: str) -> str:
        """The language of a source, whatever is heard; empty: it is to be found out."""
        wanted = wanted or self.s.language
        if not self._model.is_multilingual:
            return "en"
        return "" if wanted == "auto" else wanted

    def first(self, language: str) -> tuple[int, ...]:
        """Tokens that make the decoder expect running speech; without any context it mishears short utterances."""
        if not self.s.first_prompt or language != "en":
            return ()
        return tuple(self.tokenizer("en").encode(" " + self.s.first_prompt.strip()))

    def terms(self, terms: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.tokenizer("en").encode(glossary.told(terms))) if terms else ()

    def fitting(self, terms: Sequence[str]) -> tuple[str, ...]:
        """As many of them as a prompt has place for."""
        return glossary.fitting(terms, lambda text: len(self.tokenizer("en").encode(text)))

    def tokens(self, told: Told, parts: Try = WHOLE) -> tuple[int, ...]:
        """The prompt of one decoding."""
        begin = self.terms(told.terms) if parts.glossary else ()
        begin += self.first(told.language) if parts.lead else ()
        left = max(0, MOST - len(begin))
        return begin + (told.before[-left:] if parts.before and left else ())

    def repeats(self, text: str, told: Told) -> bool:
        """Does it say what was said before?"""
        return bool(told.before) and repeats(text, self.tokenizer(told.language).decode(told.before))
