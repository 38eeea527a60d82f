"""The best pairs of a few rows with a few columns. Pure."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
SMALL = 4  # rows: of so many, every way to choose is tried


def assign(scores: Matrix) -> list[tuple[int, int]]:
    """(row, column) pairs with the greatest sum of scores, each row and column at most once, as many as there can be.

    Exact: in a best assignment each of n rows has one of its n best columns. Of equals the first wins.
    """
    rows, columns = scores.shape
    if rows > columns:
        return sorted((row, column) for column, row in assign(scores.T))
    if not rows:
        return []
    if rows > SMALL:
        return _greedy(scores)
    best = [np.argsort(-scores[row], kind="stable")[:rows] for row in range(rows)]
    ways = [way for way in product(*best) if len(set(way)) == rows]
    top = max(ways, key=lambda way: float(sum(scores[row, column] for row, column in enumerate(way))))
    return [(row, int(column)) for row, column in enumerate(top)]


def _greedy(scores: Matrix) -> list[tuple[int, int]]:
    left, pairs = scores.astype(np.float64), []
    for _ in range(min(scores.shape)):
        row, column = divmod(int(np.argmax(left)), left.shape[1])
        pairs.append((row, column))
        left[row], left[:, column] = -np.inf, -np.inf
    return sorted(pairs)
