"""Voices matched online, and clustered anew: ids, turns and state, on made-up voices. The real networks:
test_speaker_models."""

from __future__ import annotations

import time
import tracemalloc
from functools import cache
from itertools import permutations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Relabel
from tests.windows import DIMENSION, SECOND, Script, StandInEars
from workers.clustering import Settled, absorbed, settle
from workers.linkage import BLOCK, clusters
from workers.matching import assign
from workers.relabels import relabelled
from workers.turns import Turn
from workers.voices import CAP, Rules, Voices
from workers.windows import FRAME, LEAD, LOCALS, WINDOW, Window, on_grid

pytestmark = pytest.mark.pure
HOP = on_grid(SECOND)
RULES = Rules()
TWO: Script = [(0.5, 6, 0), (7, 12, 1), (13, 20, 0), (19, 24, 1), (26, 33, 0), (34, 35, 1)]
MANY: Script = [(4.0 * i, 4.0 * i + 3.2, i * 7 % 5) for i in range(40)]


def told(
    script: Script, end_s: float, rules: Rules = RULES, killed: frozenset[int] = frozenset(), settle_every_s: float = 20
) -> tuple[list[Turn], list[Turn], Voices, list[Window], list[str]]:
    """A stream from end to end: (turns as told at first, as called in the end, voices, windows, ids in order of birth).
    `killed`: hops after which everything is forgotten but the state and the kept windows, in their stored form."""
    ears, voices, end = StandInEars(script), Voices(rules), round(end_s * SECOND)
    first: list[Turn] = []
    now: list[Turn] = []
    kept: list[Window] = []
    seen: list[str] = []
    due = settle_every_s * SECOND

    def clustered(final: bool) -> None:
        nonlocal now
        found = settle(kept, now, voices, rules, final=final)
        now = sorted([*relabelled(now, found.relabels), *found.turns])
        voices.adopt(found)

    def take(turns: list[Turn]) -> None:
        nonlocal now
        first.extend(turns)
        now = sorted([*now, *turns])
        seen.extend(t.speaker for t in turns if t.speaker not in seen)

    for hop, upto in enumerate([*range(HOP, end, HOP), end // FRAME * FRAME]):
        window = (
            ears.hear(upto, voices)
            if any(a * SECOND < upto and b * SECOND > upto - HOP for a, b, _ in script)
            else None
        )
        take(voices.take(window, upto))
        if window:
            kept.append(window)
        if upto >= due:
            due += settle_every_s * SECOND
            clustered(final=False)
        if hop in killed:
            voices = Voices.decode(voices.encode(), rules)
            kept = [Window.decode(w.encode()) for w in kept]
    take(voices.finish(end))
    clustered(final=True)
    return first, now, voices, kept, seen


def wrong_s(turns: list[Turn], script: Script) -> float:
    """Seconds of the script in which the right speaker is not among the turns, under the best one-to-one naming."""
    names, people = sorted({t.speaker for t in turns}), sorted({v for *_, v in script})
    frames = round(max(b for _, b, _ in script) * SECOND / FRAME) + 200

    def rows(spans: list[tuple[float, float, object]], labels: list[object]) -> np.ndarray:
        on = np.zeros((len(labels), frames), np.bool_)
        for a, b, who in spans:
            on[labels.index(who), round(a / FRAME) : round(b / FRAME)] = True
        return on

    said = rows([(a * SECOND, b * SECOND, v) for a, b, v in script], list(people))
    heard = rows([(*t.span, t.speaker) for t in turns], list(names))
    shared = said.astype(int) @ heard.T.astype(int)
    right = sum(shared[r, c] for r, c in assign(shared))
    return float(said.sum() - right) * FRAME / SECOND


def test_two_people_are_two_speakers_by_first_appearance() -> None:
    first, now, voices, _, seen = told(TWO, 40)
    assert seen == ["S1", "S2"] and [v.speaker for v in voices.known()] == ["S1", "S2"]
    assert wrong_s(first, TWO) < 2.5
    assert wrong_s(now, TWO) < 0.5
    both = [t for t in now if t.span[0] < 19.5 * SECOND < t.span[1]]
    assert {t.speaker for t in both} == {"S1", "S2"}  # speech at the same time stays so


def test_turns_come_soon_and_in_pieces() -> None:
    """Nothing is told of what is not over yet, and nothing waits longer than a piece, a hop and the latency."""
    ears, voices, told_upto = StandInEars([(1, 30, 0)]), Voices(RULES), 0
    for upto in range(HOP, 30 * SECOND, HOP):
        for turn in voices.take(ears.hear(upto, voices), upto):
            assert turn.span[0] >= told_upto and turn.span[1] <= upto - RULES.latency
            told_upto = turn.span[1]
        if upto > 5 * SECOND:
            assert upto - told_upto <= RULES.latency + RULES.piece + HOP


@cache
def undisturbed() -> tuple[list[Turn], list[Turn], Voices]:
    return told(TWO, 40)[:3]


@settings(max_examples=10, deadline=None)
@given(st.frozensets(st.integers(0, 40), max_size=20))
def test_kills_at_any_hop_change_nothing(killed: frozenset[int]) -> None:
    want, got = undisturbed(), told(TWO, 40, killed=killed)
    assert got[:2] == want[:2] and got[2].encode() == want[2].encode()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4))
def test_ids_are_never_used_twice_and_the_most_is_held(seed: int, most: int) -> None:
    """Whatever is said: an id that was left never comes back for another voice, and `most` is never passed."""
    chance = np.random.default_rng(seed)
    at, script = 0.5, []
    while at < 60:
        length = float(chance.uniform(0.2, 5))
        script.append((at, at + length, int(chance.integers(6))))
        at += max(0.1, length + float(chance.uniform(-1, 1.5)))
    rules = Rules(most=most)
    ears, voices, born = StandInEars(script, seed, noise=1.5), Voices(rules), 0
    now: list[Turn] = []
    kept: list[Window] = []
    gone: set[str] = set()
    for upto in range(HOP, 64 * SECOND, HOP):
        kept.append(ears.hear(upto, voices))
        turns = voices.take(kept[-1], upto)
        now = sorted([*now, *turns])
        if upto // HOP % 15 == 0:
            found = settle(kept, now, voices, rules)
            now = sorted([*relabelled(now, found.relabels), *found.turns])
            voices.adopt(found)
            used = {t.speaker for t in now} | {v.speaker for v in voices.known()}
            used |= {t.speaker for t in Voices.decode(voices.encode(), rules).finish(upto)}  # not told yet
            used |= {f"S{n}" for n in found.last}
            gone |= {f"S{i}" for i in range(1, voices.born + 1)} - used
        assert voices.born >= born
        born = voices.born
        alive = [v.speaker for v in voices.known()]
        assert len(set(alive)) == len(alive) <= rules.cap and not gone & set(alive)
        assert all(1 <= int(t.speaker[1:]) <= born for t in now)


def test_the_most_speakers_are_enough_for_more_people() -> None:
    _, now, voices, _, _ = told(MANY, 165, Rules(most=2))
    assert len(voices.known()) == 2 and len({t.speaker for t in now}) <= 2
    assert wrong_s(told(MANY, 165)[1], MANY) < 8


def test_who_spoke_only_in_the_first_seconds_is_not_lost() -> None:
    """Its embeddings are of the short windows that stood before the first whole one, which have no vote."""
    script: Script = [(0.5, 4.0, 0), (5.0, 20.0, 1)]
    _, now, _, _, _ = told(script, 24, settle_every_s=100)
    assert wrong_s(now, script) < 0.3 and len({t.speaker for t in now}) == 2


def test_who_was_heard_briefly_is_nobody_and_not_somebody_else() -> None:
    script: Script = [(0.5, 6.0, 0), (7.0, 7.7, 1), (8.5, 14.0, 0)]
    first, _, voices, _, seen = told(script, 18, settle_every_s=100)
    assert seen == ["S1"] and not [t for t in first if t.span[0] < 7.5 * SECOND and t.span[1] > 7.2 * SECOND]
    assert [v.speaker for v in voices.known()] == ["S1"]


def window_of(upto_s: float, talks: Script, embeddings: dict[int, np.ndarray]) -> Window:
    """A whole window whose local speakers are those of `talks`."""
    end = on_grid(upto_s * SECOND)
    start = max(0, end - WINDOW)
    active = np.zeros(((end - start) // FRAME - 3, LOCALS), np.bool_)
    for a, b, local in talks:
        first, last = ((round(x * SECOND) - start) // FRAME - LEAD for x in (a, b))
        active[max(0, first) : max(0, last), local] = True
    rows = np.full((LOCALS, DIMENSION), np.nan, np.float32)
    for local, vector in embeddings.items():
        rows[local] = vector / np.linalg.norm(vector)
    return Window(start, end - start, active, rows)


def test_a_voice_that_the_network_split_in_two_is_one() -> None:
    """Online and in the clustering: another voice is there that one of the halves could be, but does not sound like."""
    me, other = np.eye(DIMENSION)[0], np.eye(DIMENSION)[1]
    tone = me + 0.3 * np.eye(DIMENSION)[2]
    kept = [
        window_of(10, [(0.5, 4, 0), (5, 9.8, 1)], {0: me, 1: other}),
        window_of(22, [(13, 16, 0), (17, 21.8, 1)], {0: me, 1: tone}),
    ]
    voices, turns = Voices(RULES), list[Turn]()
    for window in kept:
        turns += voices.take(window, window.end)
    turns += voices.finish(22 * SECOND)
    assert {t.speaker for t in turns if t.span[0] > 12 * SECOND} == {"S1"} and voices.born == 2
    found = settle(kept, turns, voices, RULES, final=True)
    now = sorted([*relabelled(turns, found.relabels), *found.turns])
    assert {t.speaker for t in now if t.span[0] > 12 * SECOND} == {"S1"}


def test_what_is_known_better_goes_for_the_whole_stretch() -> None:
    """What windows before said of the frames that are not told yet is said again when the voice is recognised."""
    one, two = np.eye(DIMENSION)[0], np.eye(DIMENSION)[1]
    voices, turns = Voices(msgspec.structs.replace(RULES, latency=on_grid(3 * SECOND))), list[Turn]()
    begin = 12.2  # of a stretch whose first half second sounds a little like the other voice
    said: list[tuple[float, Script, dict[int, np.ndarray]]] = [
        (10, [(0.5, 4, 0), (5, 9.8, 1)], {0: one, 1: two}),
        (13, [(5, 9.8, 1), (begin, 12.9, 2)], {2: one + 2 * np.eye(DIMENSION)[3]}),
        (14, [(5, 9.8, 1), (begin, 13.9, 2)], {}),
        (15, [(5.1, 9.8, 1), (begin, 14.9, 2)], {2: two}),
    ]
    for upto, talks, heard in said:
        window = window_of(upto, talks, heard)
        turns += voices.take(window, window.end)
    turns += voices.finish(15 * SECOND)
    assert {t.speaker for t in turns if t.span[0] > 11 * SECOND} == {"S2"}


def test_few_seconds_are_no_other_person_if_they_sound_alike() -> None:
    def close_to(axis: int, cosine: float) -> np.ndarray:
        return cosine * np.eye(4)[0] + (1 - cosine**2) ** 0.5 * np.eye(4)[axis]

    vectors = np.array([np.eye(4)[0], close_to(1, 0.55), close_to(2, 0.4)], np.float32)
    members = [np.array([k]) for k in range(3)]
    brief = absorbed(members, vectors, lambda rows: 20.0 if 0 in rows else 3.0, RULES)
    assert [sorted(some.tolist()) for some in brief] == [[0, 1], [2]]
    assert len(absorbed(members, vectors, lambda rows: 20.0, RULES)) == 3


def test_silence_and_short_sounds_are_no_trouble() -> None:
    for script in ([(5, 5.05, 0)], [(3, 3.3, 0), (20, 20.2, 1)], [(0, 0.1, 0)]):
        first, now, _, _, _ = told(script, 30)
        assert sum(b - a for (a, b), _ in now) <= sum(b - a for (a, b), _ in first) + SECOND
    voices = Voices(RULES)
    assert voices.take(None, 60 * SECOND) == [] and voices.finish(61 * SECOND) == []
    assert settle([], [], voices, RULES, final=True).relabels == ()


def test_a_long_time_of_one_speaker_is_bounded() -> None:
    """State that travels stays small, a settling cheap, and it is one speaker all the time."""
    script = [(10.0 * i, 10.0 * i + 9.0, 0) for i in range(60)]
    ears, voices, kept, now = StandInEars(script), Voices(RULES), [], []
    for upto in range(HOP, 600 * SECOND, HOP):
        kept.append(ears.hear(upto, voices))
        now += voices.take(kept[-1], upto)
        assert len(voices.encode()) < 4000 + 4 * DIMENSION
    began = time.process_time()
    found = settle(kept, now, voices, RULES)
    assert time.process_time() - began < 10
    assert [v.speaker for v in found.voices] == ["S1"] and not [r for r in found.relabels if r.target]


def test_hours_of_nothing_cost_nothing() -> None:
    """A hole: audio was deleted before the diarizer was turned on."""
    script = [(0.0, 4.0, 0), (4.0, 8.0, 1), (7.0, 8.5, 2)]
    turns = []
    for day in (1, 0):
        ears, voices = StandInEars(script), Voices(Rules())
        told = [t for end in range(HOP, 8 * SECOND, HOP) for t in voices.take(ears.hear(end, voices), end)]
        tracemalloc.start()
        told += voices.take(None, on_grid((24 * 3600 * day + 12) * SECOND))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20 and len(voices.encode()) < 4096
        turns.append(told)
    assert turns[0] == turns[1] and max(t.span[1] for t in turns[0]) > 7 * SECOND


def test_voices_are_no_more_than_their_cap() -> None:
    script = [(3.0 * i, 3.0 * i + 2.5, i % 32) for i in range(40)]
    _, _, voices, _, _ = told(script, 125, settle_every_s=1000)
    assert len(voices.known()) <= CAP and len(voices.encode()) < CAP * (4 * DIMENSION + 64) + 4000


def test_lost_windows_leave_turns_as_they_are() -> None:
    first, _, voices, kept, _ = told(TWO, 40, settle_every_s=1000)
    now = sorted(first)
    fresh = Voices.decode(voices.encode(), RULES)
    found = settle([w for w in kept if w.start > 20 * SECOND], now, fresh, RULES, final=True)
    after = [*relabelled(now, found.relabels), *found.turns]
    early = [t for t in now if t.span[1] < 15 * SECOND]
    assert early and all(t in after for t in early)


def test_relabels_of_one_append_look_at_what_was_before() -> None:
    turns = [Turn((0, 100), "S1"), Turn((100, 200), "S2")]
    swap = [Relabel(source="S1", target="S2"), Relabel(source="S2", target="S1")]
    assert relabelled(turns, swap) == [Turn((0, 100), "S2"), Turn((100, 200), "S1")]
    part = [Relabel(source="S1", target="S3", span=(40, 60)), Relabel(source="S2", target="", span=(100, 200))]
    assert relabelled(turns, part) == [Turn((0, 40), "S1"), Turn((40, 60), "S3"), Turn((60, 100), "S1")]


def test_what_was_settled_is_matched_to_afterwards() -> None:
    voices = Voices(RULES)
    ears = StandInEars([(0, 9, 0)])
    for upto in range(HOP, 8 * SECOND, HOP):
        voices.take(ears.hear(upto, voices), upto)
    (only,) = voices.known()
    renamed = only._replace(speaker="S4")
    voices.adopt(Settled(voices=(renamed,), born=4, last=(4, 4, 4)))
    assert {t.speaker for t in voices.finish(8 * SECOND)} == {"S4"} and voices.born == 4


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6))
def test_the_best_pairs_are_found(seed: int, rows: int, columns: int) -> None:
    """Against every way there is."""
    scores = np.random.default_rng(seed).normal(size=(rows, columns))
    short, long_ = sorted((rows, columns))
    wide = scores if rows <= columns else scores.T
    best = max(sum(wide[i, c] for i, c in enumerate(way)) for way in permutations(range(long_), short))
    pairs = assign(scores)
    assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs) == short
    assert sum(scores[r, c] for r, c in pairs) == pytest.approx(best)


def test_clusters_are_those_of_scipy() -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    chance = np.random.default_rng(3)
    people = chance.normal(size=(5, DIMENSION))
    vectors = people[chance.integers(5, size=200)] + 0.4 * chance.normal(size=(200, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    want = hierarchy.fcluster(hierarchy.linkage(vectors, "centroid"), 0.85, "distance")
    got = clusters(vectors, 0.85)
    assert len(set(zip(got.tolist(), want.tolist(), strict=True))) == len(set(got.tolist())) == len(set(want.tolist()))


def test_hours_are_clustered_in_blocks() -> None:
    chance = np.random.default_rng(4)
    people = chance.normal(size=(4, DIMENSION))
    who = chance.integers(4, size=3 * BLOCK)
    vectors = people[who] + 0.4 * chance.normal(size=(len(who), DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    got = clusters(vectors, 0.85)
    assert len(set(got.tolist())) == 4 and len(set(zip(got.tolist(), who.tolist(), strict=True))) == 4
