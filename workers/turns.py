"""Who speaks when: each window votes on the frames that it heard, and decided frames become turns. Pure.

In a frame there speak as many as the windows heard on average: those with the most votes. A turn that goes on is told
in pieces, so that captions get their speaker soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.messages import Span
from workers.windows import FRAME, Active, Window, newest

Counts = npt.NDArray[np.uint8]


class Turn(NamedTuple):
    """FINAL. A stretch of one speaker. A long turn comes in pieces that touch each other."""

    span: Span
    speaker: str  # S1, S2, … in the order of their first appearance in the stream; never used twice


def name(number: int) -> str:
    return f"S{number}"


class Tally(msgspec.Struct, kw_only=True):
    """Votes for the frames from `settled` on, one row for each number, and turns that are not over."""

    settled: int = 0  # frame of the stream
    windows: bytes = b""  # per frame: how many windows heard it
    speakers: bytes = b""  # and how many speakers they heard in it, all together
    votes: dict[int, bytes] = {}
    open: dict[int, int] = {}  # number -> frame that its turn (or the piece that is not told) began in

    def vote(self, window: Window, numbers: Sequence[int]) -> None:
        """`numbers`: of the window's local speakers; 0: nobody's."""
        skip = max(0, self.settled - window.first)
        active, stretches = window.active[skip:], newest(window.active)[skip:]
        begin = window.first + skip - self.settled
        end = begin + len(active)
        size = max(end, len(self.windows))

        def added(old: bytes, more: npt.NDArray[np.bool_] | Counts) -> bytes:
            out = np.zeros(size, np.uint8)
            out[: len(old)] = np.frombuffer(old, np.uint8)
            out[begin:end] += more.astype(np.uint8)
            return out.tobytes()

        self.windows = added(self.windows, np.ones(len(active), np.uint8))
        self.speakers = added(self.speakers, active.sum(axis=1).astype(np.uint8))
        self.votes = {n: added(v, np.zeros(len(active), np.uint8)) for n, v in self.votes.items()}
        for local, number in enumerate(numbers):
            if number:
                self.votes[number] = added(self.votes.get(number, b""), stretches[:, local])

    def correct(self, window: Window, local: int, was: int, now: int) -> None:
        """Whom the windows before took for `was` is `now`: their votes for this stretch go there."""
        if was not in self.votes:
            return
        skip = max(0, self.settled - window.first)
        stretch = newest(window.active)[skip:, local]
        begin = window.first + skip - self.settled
        old = np.frombuffer(self.votes[was], np.uint8).copy()
        part = slice(begin, min(begin + len(stretch), len(old)))
        moved = old[part] * stretch[: len(old[part])]
        new = np.zeros(len(self.windows), np.uint8)
        there = np.frombuffer(self.votes.get(now, b""), np.uint8)
        new[: len(there)] = there
        new[part] += moved
        old[part] -= moved
        self.votes |= {was: old.tobytes(), now: new.tobytes()}

    def settle(self, upto: int, piece: int) -> list[Turn]:
        """Decide the frames before `upto`; what of turns is told by that, by their start."""
        n = upto - self.settled
        if n <= 0:
            return []
        count = min(n, len(self.windows))
        n = min(n, count + 1)  # behind that nobody speaks, be it for hours
        windows = np.frombuffer(self.windows, np.uint8)[:count].astype(np.float32)
        speakers = np.frombuffer(self.speakers, np.uint8)[:count]
        how_many = np.rint(speakers / np.maximum(windows, 1)).astype(int)
        numbers = sorted(self.votes)
        votes = np.zeros((len(numbers), n), np.int32)
        for row, number in enumerate(numbers):
            votes[row, :count] = np.frombuffer(self.votes[number], np.uint8)[:count]
        on = chosen(votes, np.pad(how_many, (0, n - count)))
        turns = []
        for row, number in enumerate(numbers):
            turns += self._turns(number, on[row], piece)
        for number in [x for x in self.open if x not in self.votes]:
            turns += self._turns(number, np.zeros(n, np.bool_), piece)
        self.settled = upto
        self.windows, self.speakers = self.windows[n:], self.speakers[n:]
        self.votes = {number: v[n:] for number, v in self.votes.items() if any(v[n:])}
        return sorted(turns)

    def _turns(self, number: int, on: npt.NDArray[np.bool_], piece: int) -> list[Turn]:
        """What of a speaker's turns is told now, of the frames from `settled` on."""
        out = []
        before = number in self.open
        edges = np.flatnonzero(np.diff(np.concatenate([[before], on]).astype(np.int8)))
        for edge in edges:
            at = self.settled + int(edge)
            if number in self.open:
                begin = self.open.pop(number)
                if begin < at:
                    out.append(Turn((begin * FRAME, at * FRAME), name(number)))
            else:
                self.open[number] = at
        end = self.settled + len(on)
        if number in self.open and (end - self.open[number]) * FRAME >= piece:
            out.append(Turn((self.open[number] * FRAME, end * FRAME), name(number)))
            self.open[number] = end
        return out

    def rename(self, names: dict[int, int]) -> None:
        """Speakers of what is not settled yet are called otherwise."""
        votes, begun = dict[int, bytes](), dict[int, int]()
        for number, data in self.votes.items():
            new = names.get(number, number)
            votes[new] = _sum(votes[new], data) if new in votes else data
        for number, begin in self.open.items():
            new = names.get(number, number)
            begun[new] = min(begin, begun.get(new, begin))
        self.votes, self.open = votes, begun


def _sum(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, np.uint8) + np.frombuffer(b, np.uint8)).tobytes()


def chosen(votes: npt.NDArray[np.generic], how_many: npt.NDArray[np.int_]) -> Active:
    """(rows, frames): for each frame the rows with the most votes, as many as speak in it; the first of equals."""
    order = np.argsort(-votes.astype(np.float32), axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(votes))[:, None], axis=0)
    on: Active = (rank < how_many[None]) & (votes.astype(np.float32) > 0)
    return on
