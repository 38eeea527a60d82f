"""Who spoke, seen from all that was heard so far: the clustering of the offline pipeline over a stream's windows. Pure.

In: the stream's windows, its turns as they are labelled now, its voices. Out: relabels for turns whose speaker it sees
otherwise, and the voices that later windows are matched to. numpy only, on the CPU, whatever the length of the stream:
what it costs is bounded (docs/decisions/speakers.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from common.messages import Relabel
from workers.voices import Rules, Turn, Voice, Voices, Window


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """FINAL. In this order: journal `relabels`, then `Voices.adopt` this; both in the same append."""

    relabels: tuple[Relabel, ...]  # a span may cut turns; those of one settling do not depend on their order
    voices: tuple[Voice, ...]  # those whose id is used no more are not in it
    born: int  # ids given out so far


def settle(windows: Sequence[Window], turns: Sequence[Turn], voices: Voices, rules: Rules) -> Settled:
    """FINAL. `turns`: all told so far, by start, as labelled now (`relabelled`). Deterministic.

    Speakers keep their id where they can: clusters take the ids that they share the most speech with. Windows that were
    lost leave their turns as they are.
    """
    raise NotImplementedError


def relabelled(turns: Iterable[Turn], relabels: Iterable[Relabel]) -> list[Turn]:
    """FINAL. Turns as they are called after relabels, in the order of the journal; a span that cuts a turn splits it."""
    raise NotImplementedError
