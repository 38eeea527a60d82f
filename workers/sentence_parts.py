"""Cuts a text that is too long for a model where a reader would breathe: pure."""

from __future__ import annotations

import re
from collections.abc import Callable

MARKS = (r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]", r"[;:—–]|[，；：、]", r",", r"\s")  # the best first
MIDDLE = 0.25  # of the text, on both sides: a cut so far from an end is as good as one in the middle


def parts(text: str, length: Callable[[str], int], most: int) -> list[str]:
    """`text` in parts none of which is longer than `most`; as it is if it fits. They have all its words in order."""
    text = text.strip()
    if length(text) <= most or len(text) < 2:
        return [text]
    at = _cut(text)
    return [*parts(text[:at], length, most), *parts(text[at:], length, most)]


def _cut(text: str) -> int:
    """Behind the best mark that is nearest to the middle; else the middle itself."""
    half, least = len(text) / 2, len(text) * MIDDLE
    for mark in MARKS:
        ends = [m.end() for m in re.finditer(mark, text) if least <= m.end() <= len(text) - least]
        if ends:
            return min(ends, key=lambda end: abs(end - half))
    return max(1, len(text) // 2)
