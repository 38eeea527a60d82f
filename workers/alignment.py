"""Dynamic time warping of whisper's word times, in numpy: the same path, without a compiler in the process.

openai-whisper compiles this one loop with numba, which costs memory for good and a second at every start. Here a whole
anti-diagonal of the table is computed at once. Pure; tests hold it against the original.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DIAGONAL, UP, LEFT = 0, 1, 2  # where the cheapest way to a cell comes from


def dtw(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """x: cost of (token, frame). The cheapest monotone path from first to last as (2, steps): tokens, frames."""
    n, m = x.shape
    flat = np.ascontiguousarray(x).ravel()
    trace = np.full((n + 1, m + 1), LEFT, np.int8)
    steps = trace.ravel()
    older, old = np.full(n + 1, np.inf), np.full(n + 1, np.inf)  # the table's two diagonals before, by row
    older[0] = 0.0
    for k in range(2, n + m + 1):  # cells (i, k - i)
        low, high = max(1, k - m), min(n, k - 1)
        diagonal, up, left = older[low - 1 : high], old[low - 1 : high], old[low : high + 1]
        by_diagonal = (diagonal < up) & (diagonal < left)
        by_up = (up < diagonal) & (up < left)
        first, stride = (low - 1) * m + k - low - 1, max(1, m - 1)
        new = np.full(n + 1, np.inf)
        new[low : high + 1] = np.where(by_diagonal, diagonal, np.where(by_up, up, left))
        new[low : high + 1] += flat[first : first + (high - low) * stride + 1 : stride]
        steps[low * m + k : high * m + k + 1 : m] = np.where(by_diagonal, DIAGONAL, np.where(by_up, UP, LEFT))
        older, old = old, new
    return _back(trace)


def _back(trace: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    i, j = trace.shape[0] - 1, trace.shape[1] - 1
    trace[0, :], trace[:, 0] = LEFT, UP
    path = list[tuple[int, int]]()
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        by = trace[i, j]
        i, j = i - (by != LEFT), j - (by != UP)
    return np.array(path[::-1], np.int64).T
