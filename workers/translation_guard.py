"""What machine translation does wrong when nobody looks: pure checks of one sentence and its translation.

Each has a name, which is what `suspect` of a Translation says. Where one strikes, the sentence is translated once more
with another decoding (`again`); where one still strikes, the text is kept and marked. A check would rather miss
something than mark what is right: what marks too often is not read any more.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import product

import msgspec


class How(msgspec.Struct, frozen=True, kw_only=True):
    """One way to decode: a text's log-probability is divided by its length to the power of `length_penalty`."""

    beams: int = 1  # 1: greedy
    length_penalty: float = 1.0
    no_repeat: int = 0  # so many tokens in a row do not come twice; 0: they may


NO_REPEAT = 4
MORE_BEAMS = 3


def again(first: How) -> How:
    """Another way, for the second try."""
    return How(beams=first.beams + MORE_BEAMS, length_penalty=first.length_penalty, no_repeat=NO_REPEAT)


LEAST_LETTERS = 12  # shorter sentences may well be the same in both languages: names, "OK", "No."
RUNAWAY = 3.0  # times the letters of the source,
RUNAWAY_MORE = 40  # or so many more: longer is no translation
SHORT_LOOP, LONG_LOOP = 6, 30  # words
LOOP_TIMES = 3  # a short loop comes so often; a long one twice
COPIED = 0.8  # of the words
PLAIN_WORDS = 3  # that are no names: what has fewer may be the same in both
MAY_BE_WORDS = frozenset(map(str, (*range(21), *range(30, 100, 10), *range(100, 1100, 100))))  # "ten", "dez"
TENS_OF_THOUSANDS = frozenset({"zh", "ja", "ko", "yue"})  # they say 2000万 for 20 million
AFTERNOON = 12  # 7 p.m. is 19h

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_NUMBER = re.compile(r"\d{1,3}(?:[.,'’\u00a0\u202f ]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?")


def suspect(text: str, translation: str, source: str, target: str, whole: bool = True) -> str:
    """What is wrong with `translation`: empty | runaway | repetition | copied | numbers; or "". `source`, `target`:
    codes of languages. `whole`: the text ended by itself."""
    if not letters(translation):
        return "empty" if letters(text) else ""
    if not whole or runs_away(text, translation):
        return "runaway"
    if repeats(text, translation):
        return "repetition"
    if copies(text, translation):
        return "copied"
    if changes_numbers(text, translation, source, target):
        return "numbers"
    return ""


def letters(text: str) -> int:
    """Letters and digits; a wide one (Chinese, Japanese, Korean) says as much as two."""
    return sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in text if c.isalnum())


def runs_away(text: str, translation: str) -> bool:
    was = letters(text)
    return letters(translation) > max(RUNAWAY * was, was + RUNAWAY_MORE)


def repeats(text: str, translation: str) -> bool:
    """It says something over and over that the source does not."""
    was, now = _items(text), _items(translation)
    if _loops(now, 1, SHORT_LOOP) >= LOOP_TIMES and _loops(now, 1, SHORT_LOOP) > _loops(was, 1, SHORT_LOOP):
        return True
    return _loops(now, SHORT_LOOP, LONG_LOOP) > 1 and _loops(was, SHORT_LOOP - 2, LONG_LOOP) == 1


def _items(text: str) -> list[str]:
    """Words; of a script without spaces, characters."""
    spaced = "".join(f" {c} " if unicodedata.east_asian_width(c) == "W" else c for c in text.lower())
    return _WORD.findall(spaced)


def _loops(items: list[str], least: int, most: int) -> int:
    """How often the same `least` to `most` items come in a row, at most."""
    times = 1
    for size in range(least, most + 1):
        same = 0  # items in a row that equal those `size` before them
        for before, item in zip(items, items[size:], strict=False):
            same = same + 1 if item == before else 0
            times = max(times, same // size + 1)
    return times


def copies(text: str, translation: str) -> bool:
    """It is the source, or nearly. Names and numbers alone are no copy."""
    if letters(text) < LEAST_LETTERS:
        return False
    was, now = _items(text), _items(translation)
    plain = [word for word in _WORD.findall(text)[1:] if word[0].islower()]
    if len(plain) < PLAIN_WORDS:
        return False
    common = sum((Counter(was) & Counter(now)).values())
    return common >= COPIED * max(len(was), len(now))


def changes_numbers(text: str, translation: str, source: str, target: str) -> bool:
    """A number in figures is another one, or missing. 1,000 and 1.000 and 1 000 are the same, and 10:30 and 10h30. What
    is a word on one side is not looked at."""
    was, now = numbers(text), numbers(translation)
    if {source, target} & TENS_OF_THOUSANDS:
        was, now = (Counter(n.rstrip("0") or "0" for n in found.elements()) for found in (was, now))
    lost, new = was - now, now - was
    for one, other in product(list(lost), list(new)):
        if len(one + other) <= 4 and abs(int(one) - int(other)) == AFTERNOON:
            lost[one] -= 1
            new[other] -= 1
    lost, new = +lost, +new
    return bool(lost and new) or any(n not in MAY_BE_WORDS for n in lost)


def numbers(text: str) -> Counter[str]:
    """Their digits alone, ASCII."""
    found = ([unicodedata.digit(c) for c in n if c.isdecimal()] for n in _NUMBER.findall(text))
    return Counter("".join(map(str, digits)) for digits in found)
