"""Who spoke, seen from all that was heard so far: the clustering of the offline pipeline over a stream's windows. Pure.

In: the stream's windows, its turns as they are labelled now, its voices. Out: relabels for turns whose speaker it sees
otherwise, turns with the boundaries that all windows together give them, and the voices that later windows are matched
to. numpy only, on the CPU, whatever the length of the stream: what it costs is bounded (docs/decisions/speakers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from common.messages import SAMPLE_RATE, Relabel
from workers.linkage import clusters
from workers.matching import assign
from workers.relabels import Told, changes, named, span_of, withdrawn
from workers.turns import Turn, chosen, name
from workers.voices import Rules, Voice, Voices
from workers.windows import FRAME, LOCALS, Active, Floats, Window, followed, lone, newest, runs, seconds

TRAIN_S = 1.0  # of speech alone in a window: an embedding of less makes no cluster, it is only given to one
MOST = 2400  # vectors that make the clusters: 20 minutes' worth; of hours every second one, or third, is enough
SMALL = 0.1  # of all speech: `Rules.least_s` asks no more of a cluster
EDGE = 0.1  # weight of a window's first and last frame; it rises to 1
EDGE_FRAMES = 150  # within 2.3 s
AT_ONCE = 50_000  # frames
RECENT_S = 60.0  # who came so shortly ago may be somebody, with however little

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """FINAL. One append: first `relabels`, then `turns` as `SpeakerTurn(provisional=False)`, then `Voices.adopt` this.

    Up to where the last one was, turns have their boundaries, and only labels change. From there to `upto` a relabel to
    nobody ("") takes away what was provisional, and `turns` are what was found instead.
    """

    relabels: tuple[Relabel, ...] = ()  # a span may cut turns; all look at the labels before this append
    turns: tuple[Turn, ...] = ()
    voices: tuple[Voice, ...] = ()  # those whose id is used no more are not in it
    born: int = 0  # ids given out so far
    upto: int = 0  # sample up to which boundaries are settled now
    last: tuple[int, ...] = ()  # numbers of the local speakers of the last window


def settle(
    windows: Sequence[Window], turns: Sequence[Turn], voices: Voices, rules: Rules, final: bool = False
) -> Settled:
    """FINAL. `turns`: all told so far, by start, as labelled now (`relabelled`). `final`: after `Voices.finish`; else
    the last ten seconds wait for the next time. Deterministic.

    Speakers keep their id where they can: clusters take the ids that they share the most speech with. Windows that were
    lost leave their turns as they are.
    """
    every = [w for w in windows if len(w.active)]
    windows = _whole(every)
    told = voices.settled // FRAME
    upto = told if final or not windows else min(told, windows[-1].first)
    known = tuple(voices.known())
    labels, centroids, heard = _labelled(windows, every, rules, final)
    if not len(centroids) or upto <= 0:
        return Settled(voices=known, born=voices.born, upto=voices.confirmed)
    found, covered = _activity(windows, labels, len(centroids), told)
    # What waits has its say in who is who: else a speaker that was hardly heard before would change its id there.
    numbers, born = named(found, Told(turns, told), voices.born)
    found, covered, before = found[:, :upto], covered[:upto], Told(turns, upto)
    after = {numbers[k]: found[k] for k in range(len(centroids))}
    since = min(voices.confirmed // FRAME, upto)
    relabels = changes(before, after, covered, since)
    relabels += withdrawn(before, covered, since)
    new = [
        Turn(span_of(begin + since, end + since), name(number))
        for number, on in after.items()
        for begin, end in runs(on[since:] & covered[since:])
    ]
    kept = {int(v.speaker[1:]): v for v in known if int(v.speaker[1:]) in before.outside(covered)}
    for k in np.flatnonzero(heard > 0):
        kept[numbers[k]] = Voice(name(numbers[k]), centroids[k], float(heard[k]))
    return Settled(
        relabels=tuple(relabels),
        turns=tuple(sorted(new)),
        voices=tuple(kept[number] for number in sorted(kept)),
        born=born,
        upto=upto * FRAME,
        last=tuple(0 if k < 0 else numbers[k] for k in labels[-1].tolist()),
    )


def _whole(windows: Sequence[Window]) -> list[Window]:
    """Without the short ones of the first seconds, when a later one heard those seconds too, and more around them."""
    early = [w for w in windows if w.start == 0]
    return [*early[-1:], *(w for w in windows if w.start > 0)]


# Clusters


def _labelled(
    windows: Sequence[Window], every: Sequence[Window], rules: Rules, final: bool
) -> tuple[Ints, Floats, Floats]:
    """(windows, LOCALS) cluster of each local speaker or -1; centroids of the clusters; seconds of speech alone.

    `every`: with those that have no labels, but embeddings. Two local speakers of a window are two people, unless
    one sounds like the other and like nobody else: the network at times takes a change of tone for another speaker.
    """
    labels = np.full((len(windows), LOCALS), -1, np.int64)
    clear = [lone(window.active) for window in windows]
    vectors, weights = _gathered(windows, clear, every)
    if not weights.any():
        return labels, np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    alone_s = np.array([c.sum(axis=0) for c in clear]) * (FRAME / SAMPLE_RATE) * (weights > 0)
    ws, ls = np.nonzero(alone_s >= min(TRAIN_S, float(alone_s.max())))
    step = -(-len(ws) // MOST)
    ws, ls = ws[::step], ls[::step]
    group = clusters(vectors[ws, ls], rules.together)

    def spoken_s(which: Ints) -> float:
        return _union_s(windows, clear, [(int(ws[i]), int(ls[i])) for i in which])

    members = absorbed(
        [np.flatnonzero(group == k) for k in range(int(group.max()) + 1)], vectors[ws, ls], spoken_s, rules
    )
    spoken = np.array([spoken_s(some) for some in members])
    large = spoken >= min(rules.least_s, SMALL * spoken.sum())
    if not final:
        end = windows[-1].end
        large |= np.array([end - windows[ws[some[0]]].start <= RECENT_S * SAMPLE_RATE for some in members])
    if rules.most and large.sum() > rules.most:
        kept = np.argsort(-spoken * large, kind="stable")[: rules.most]
        large = np.isin(np.arange(len(members)), kept)
    centroids = unit([vectors[ws, ls][some].mean(axis=0) for some in members])[large]
    for w in range(len(windows)):
        known = np.flatnonzero(weights[w] > 0)
        near = vectors[w, known] @ centroids.T
        labels[w, known] = near.argmax(axis=1)
        for i, k in assign(near):
            if near[i].max() - near[i, k] <= rules.apart:
                labels[w, known[i]] = k
    _follow(windows, labels)
    return labels, centroids.astype(np.float32), spoken[large].astype(np.float32)


def absorbed(members: Sequence[Ints], vectors: Floats, spoken_s: Callable[[Ints], float], rules: Rules) -> list[Ints]:
    """Clusters (of rows of `vectors`) of which the small ones that are not unlike another are part of it; the likest
    first.

    How a voice sounds in a few seconds varies more than how it sounds in many: what would be two people, had each
    spoken for long, may be one who said little.
    """
    groups = list(members)
    centroids = unit([vectors[some].mean(axis=0) for some in groups])
    spoken = [spoken_s(some) for some in groups]
    while len(groups) > 1:
        near = centroids @ centroids.T
        np.fill_diagonal(near, -1.0)
        near[[s >= rules.little_s for s in spoken]] = -1.0
        small, other = np.unravel_index(int(near.argmax()), near.shape)
        if near[small, other] < rules.alike:
            break
        groups[other] = np.sort(np.concatenate([groups[other], groups[small]]))
        centroids[other] = unit([vectors[groups[other]].mean(axis=0)])[0]
        spoken[other] = spoken_s(groups[other])
        centroids = np.delete(centroids, small, axis=0)
        del groups[small], spoken[small]
    return groups


def unit(rows: Sequence[Floats]) -> Floats:
    out: Floats = np.array(rows, np.float32)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    return out


def _gathered(windows: Sequence[Window], clear: Sequence[Active], every: Sequence[Window]) -> tuple[Floats, Floats]:
    """(windows, LOCALS, dimension) of unit length and (windows, LOCALS) frames that they were made from.

    An embedding is of one stretch. What a local speaker sounds like in all of a window is the mean of the stretches
    that are in it, whichever windows they were embedded in; of `every` window, for in the first ten seconds these are
    the short ones that have no vote.
    """
    dimension = windows[0].embeddings.shape[1] if windows else 0
    vectors = np.zeros((len(windows), LOCALS, dimension), np.float32)
    weights = np.zeros((len(windows), LOCALS), np.float32)
    heard = [
        (window.first, newest(window.active)[:, local] & lone(window.active)[:, local], window.embeddings[local])
        for window in every
        for local in np.flatnonzero(window.embedded).tolist()
    ]
    earliest = 0
    for w, window in enumerate(windows):
        end = window.first + len(window.active)
        while earliest < len(heard) and heard[earliest][0] + len(heard[earliest][1]) <= window.first:
            earliest += 1
        for first, stretch, embedding in heard[earliest:]:
            if first >= end:
                break
            begin, stop = max(first, window.first), min(first + len(stretch), end)
            both = clear[w][begin - window.first : stop - window.first] & stretch[begin - first : stop - first, None]
            weight = both.sum(axis=0).astype(np.float32)
            weights[w] += weight
            vectors[w] += weight[:, None] * embedding
    vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-9)
    return vectors, weights


def _union_s(windows: Sequence[Window], clear: Sequence[Active], members: Sequence[tuple[int, int]]) -> float:
    """Seconds in which somebody speaks alone, whatever the number of windows that heard it."""
    total, told = 0, 0
    for w, local in members:  # in order of time
        first = windows[w].first
        total += int(clear[w][max(0, told - first) :, local].sum())
        told = max(told, first + len(clear[w]))
    return seconds(total)


def _follow(windows: Sequence[Window], labels: Ints) -> None:
    """Local speakers of whom nothing was embedded are who they were in the window before, else in the one after."""
    links = [followed(new.first, new.active, old.first, old.active) for old, new in pairwise(windows)]
    for w, link in enumerate(links, 1):
        for local, past in enumerate(link):
            if labels[w, local] < 0 <= past and windows[w].active[:, local].any():
                labels[w, local] = labels[w - 1, past]
    for w in range(len(links), 0, -1):
        for local, past in enumerate(links[w - 1]):
            if past >= 0 and labels[w - 1, past] < 0:
                labels[w - 1, past] = labels[w, local]


# Frames


def _activity(windows: Sequence[Window], labels: Ints, count: int, upto: int) -> tuple[Active, Active]:
    """(clusters, upto) who speaks in each frame, by the votes of all windows; (upto,) frames that any window heard."""
    seen, speakers = np.zeros(upto, np.float32), np.zeros(upto, np.float32)
    votes = np.zeros((count, upto), np.float32)
    for window, row in zip(windows, labels, strict=True):
        begin = window.first
        active = window.active[: max(0, upto - begin)]
        part = slice(begin, begin + len(active))
        weight = _weight(len(window.active))[: len(active)]
        seen[part] += weight
        speakers[part] += weight * active.sum(axis=1)
        for k in {int(k) for k in row if k >= 0}:
            votes[k, part] += weight * active[:, row == k].any(axis=1)
    how_many = np.rint(speakers / np.maximum(seen, 1e-6)).astype(np.int64)
    on = np.zeros(votes.shape, np.bool_)
    for begin in range(0, upto, AT_ONCE):  # what is needed to choose is many times as large as what comes of it
        part = slice(begin, begin + AT_ONCE)
        on[:, part] = chosen(votes[:, part], how_many[part])
    return on, seen > 0


@cache
def _weight(frames: int) -> Floats:
    """(frames,) What is heard near the edge of a window is heard with little around it, and counts less."""
    inside = np.minimum(np.arange(frames), np.arange(frames)[::-1])
    return np.minimum(1.0, EDGE + inside / EDGE_FRAMES).astype(np.float32)
