"""The colours of the page: legible, and speakers can be told apart whatever one sees."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _luminance(rgb: list[float]) -> float:
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def _contrast(a: str, b: str) -> float:
    """WCAG 2.2."""
    low, high = sorted(_luminance(_linear(c)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


SIGHTS = {  # Machado, Oliveira, Fernandes 2009: what is left of linear RGB where one kind of cone is missing
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def _lab(rgb: list[float]) -> list[float]:
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(r, rgb, strict=True)) / w for r, w in zip(rows, (0.9505, 1, 1.089), strict=True)]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def _palettes() -> list[tuple[str, str, list[str]]]:
    """(background, ink, colours of speakers) in the dark and in the light."""
    style = (Path(__file__).parent.parent / "workers" / "viewer.html").read_text().partition("</style>")[0]
    found = []
    for part in style.split("@media"):
        value = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        found.append((value["back"], value["ink"], [value[f"s{i}"] for i in range(6)]))
    return found


def test_speakers_are_legible_and_can_be_told_apart_whatever_one_sees() -> None:
    dark, light = _palettes()
    assert _luminance(_linear(dark[0])) < 0.1 < 0.8 < _luminance(_linear(light[0]))
    for back, ink, colours in (dark, light):
        assert all(_contrast(c, back) >= 4.5 for c in (ink, *colours)), "WCAG AA"
        for rows in SIGHTS.values():
            seen = []
            for c in colours:
                rgb = [max(0.0, min(1.0, sum(a * b for a, b in zip(r, _linear(c), strict=True)))) for r in rows]
                seen.append(_lab(rgb))
            assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 25, "2.3 is just noticeable"
