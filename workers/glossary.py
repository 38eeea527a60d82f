"""Names and terms that the decoder should know: how they are told to it, and when it has heard nothing else. Pure.

They stand at the beginning of its prompt. Where nobody speaks the decoder says what it was told, so a text that is
mostly such terms counts only if something like it is heard without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

GLOSSARY_TOKENS = 100  # with the first prompt and the text before it fits into the half of the decoder's context
ALIKE = 0.4  # share of letters in common: the same sound, written down by somebody who does not know the name
_WORD = re.compile(r"\w+")


def told(terms: Sequence[str]) -> str:
    """The text that stands in the prompt."""
    return f" {', '.join(terms)}." if terms else ""


def fitting(terms: Sequence[str], tokens: Callable[[str], int], most: int = GLOSSARY_TOKENS) -> tuple[str, ...]:
    """The first of the terms, as many as `told` writes within so many tokens."""
    kept = tuple(terms)
    while kept and tokens(told(kept)) > most:
        kept = kept[:-1]
    return kept


def mostly(text: str, terms: Sequence[str]) -> bool:
    """True when half or more of the words of `text` are words of the terms."""
    known = {word for term in terms for word in words(term)}
    said = words(text)
    return bool(said) and 2 * sum(word in known for word in said) >= len(said)


def alike(named: str, heard: str) -> bool:
    """Could these be the same sounds, once with the terms known and once without?"""
    a, b = "".join(words(named)), "".join(words(heard))
    return SequenceMatcher(None, a, b, autojunk=False).ratio() >= ALIKE


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
