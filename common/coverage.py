"""Coverage: every sample of a stream has exactly one class. Pure; the feed keeps the tiles, everybody shows the sums.

A tile is the span of a Transcript (text), Silence, Suppressed or Gap of the coverage producer. Its appends must tile
the audio from the old position to the new one without hole or overlap; that is checked before anything is committed.
"""

from __future__ import annotations

import msgspec

from common.messages import Coverage, EventBody, Gap, Silence, Span, Suppressed, Transcript

CLASSES = ("text", "silence", "suppressed", "gap")


class Tile(msgspec.Struct, frozen=True):
    """One classified span; `replaces`: it stands in for the tile that has exactly this span."""

    span: Span
    klass: str
    replaces: bool


def tile_of(body: EventBody) -> Tile | None:
    """The tile an event body stands for, None for bodies that classify nothing."""
    match body:
        case Transcript():
            return Tile(body.span, "text", body.supersedes is not None)
        case Silence():
            return Tile(body.span, "silence", False)
        case Suppressed():
            return Tile(body.span, "suppressed", body.supersedes is not None)
        case Gap():
            return Tile(body.span, "gap", body.supersedes is not None)
    return None


def untiled(start: int, end: int, tiles: list[Tile]) -> str:
    """Why the new `tiles` do not tile [start, end); empty when they do."""
    at = start
    for t in sorted((t for t in tiles if not t.replaces), key=lambda t: t.span):
        if t.span[0] != at or t.span[1] <= t.span[0]:
            return f"spans do not tile: expected one from sample {at}, got {t.span[0]}..{t.span[1]}"
        at = t.span[1]
    return "" if at == end else f"spans do not tile: they end at sample {at}, the position moves to {end}"


def add(sums: dict[str, int], tile: Tile, replaced: str | None) -> None:
    """Count `tile` into `sums` (samples per class), taking it out of the class it replaces."""
    samples = tile.span[1] - tile.span[0]
    if replaced is not None:
        sums[replaced] = sums.get(replaced, 0) - samples
    sums[tile.klass] = sums.get(tile.klass, 0) + samples


def coverage(sums: dict[str, int], head: int) -> Coverage:
    """Sums of a stream whose backlog reaches sample `head`; what no tile covers is pending."""
    done = sum(sums.get(c, 0) for c in CLASSES)
    return Coverage(pending=max(0, head - done), **{c: sums.get(c, 0) for c in CLASSES})
