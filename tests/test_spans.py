"""Stretches of the journal: what is in them, and that many of them cost little."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from common import messages as m
from common.join import Join
from common.spans import Seqs
from common.translations import Translations
from tests.test_join import Journal

pytestmark = pytest.mark.pure
seqs = st.integers(1, 30)
runs = st.lists(st.tuples(seqs, seqs), max_size=6)


@settings(max_examples=200, deadline=None)
@given(first=runs, later=runs, held=st.sets(seqs))
def test_a_seq_is_in_it_when_a_run_has_it(first: list[m.Span], later: list[m.Span], held: set[int]) -> None:
    both = Seqs(first)
    both.add(later)
    inside = {n for n in range(32) if any(a <= n <= b for a, b in [*first, *later])}
    assert {n for n in range(32) if n in both} == inside
    assert sorted(both.of(held)) == sorted(held & inside)


def test_a_purge_among_the_events_of_other_streams_costs_little() -> None:
    """Then each event is a run for itself."""
    j = Journal()
    for i in range(4000):
        segment = j.say(i, "word")
        j.turn("S1", i, i + 1)
        j.add(m.Translation(segment=segment, revision=0, target="pt", text="palavra"), by="translator.pt")
    join, translations = Join(), Translations()
    for e in j.events:
        join.take(replace(e, seq=2 * e.seq))
        translations.take(replace(e, seq=2 * e.seq))
    j.add(m.Purged(stream="x", seqs=tuple((2 * e.seq, 2 * e.seq) for e in j.events)), by="feed")
    purged = replace(j.events[-1], seq=2 * len(j.events))
    began = time.process_time()
    join.take(purged)
    translations.take(purged)
    assert time.process_time() - began < 1.0
    assert join.spoken() == {} and translations.targets() == ()
