"""Vectors of voices to clusters, at a bounded cost: centroid linkage, as in pyannote's offline pipeline. Pure.

Clusters whose centroids are the nearest are merged, until the nearest are farther apart than `together`. More than
BLOCK vectors are first taken together to small groups, block by block: of hours, what a minute says again and again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.windows import Floats

BLOCK = 1200  # vectors clustered at once: 0.3 s on one core
TIGHT = 0.6  # share of `together` up to which vectors of a block are one group

Ints = np.ndarray[Any, np.dtype[np.int64]]


def clusters(vectors: Floats, together: float) -> Ints:
    """(n, dimension) of unit length -> (n,) numbers from 0 on, by first appearance."""
    groups = np.arange(len(vectors))
    weights = np.ones(len(vectors), np.float64)
    centroids = vectors.astype(np.float64)
    while len(centroids) > BLOCK:
        found = np.empty(len(centroids), np.int64)
        count = 0
        for begin in range(0, len(centroids), BLOCK):
            part = slice(begin, begin + BLOCK)
            found[part] = count + _merged(centroids[part], weights[part], TIGHT * together)
            count = int(found[part].max()) + 1
        found = by_appearance(found)
        count = int(found.max()) + 1
        if count == len(centroids):  # all are different: nothing to gain
            break
        groups, centroids, weights = found[groups], *_means(centroids, weights, found, count)
    return by_appearance(_merged(centroids, weights, together)[groups])


def by_appearance(labels: Ints) -> Ints:
    """The same partition, numbered from 0 in the order in which its parts appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    out: Ints = rank[inverse]
    return out


def _means(centroids: Any, weights: Any, found: Ints, count: int) -> tuple[Any, Any]:
    total = np.zeros((count, centroids.shape[1]))
    weight = np.zeros(count)
    np.add.at(total, found, centroids * weights[:, None])
    np.add.at(weight, found, weights)
    return total / weight[:, None], weight


def _merged(vectors: Any, weights: Any, together: float) -> Ints:
    """Labels after all merges of centroids up to `together`. Each row remembers its nearest: a merge costs O(n)."""
    n = len(vectors)
    label = np.arange(n)
    if n < 2:
        return label
    centre, weight, alive = vectors.copy(), weights.copy(), np.ones(n, np.bool_)
    square = (centre**2).sum(1)
    distance = square[:, None] + square[None] - 2 * centre @ centre.T
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(1)
    best = distance[np.arange(n), nearest]
    while True:
        i = int(best.argmin())
        if best[i] > together**2:
            return label
        i, j = sorted((i, int(nearest[i])))
        centre[i] = (weight[i] * centre[i] + weight[j] * centre[j]) / (weight[i] + weight[j])
        weight[i] += weight[j]
        square[i] = centre[i] @ centre[i]
        label[label == j] = i
        alive[j] = False
        best[j], distance[j], distance[:, j] = np.inf, np.inf, np.inf
        row = np.where(alive, square + square[i] - 2 * centre @ centre[i], np.inf)
        row[i] = np.inf
        distance[i], distance[:, i] = row, row
        again = np.flatnonzero(alive & ((nearest == i) | (nearest == j)))
        for r in {i, *again.tolist()}:
            nearest[r] = distance[r].argmin()
            best[r] = distance[r, nearest[r]]
        closer = row < best
        nearest[closer], best[closer] = i, row[closer]
