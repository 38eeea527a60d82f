"""Beam search over any network that writes token by token; with one beam it is greedy decoding.

In: token ids of sentences, as one batch. Out: for each the ids of the best text that was found. In bounded pieces, so
that a worker can give the GPU back between two. Each sentence is searched for itself: what a batch does to it is only
what its network does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from workers.translation_guard import How

T = TypeVar("T")
Pieces = Generator[None, None, T]

PIECE_TOKENS = 8  # of each text, written in one piece
LONGER = 2.5  # a text has at most so many times the tokens of its source (Marian's own bound for its students),
LONGER_MORE = 12  # and so many more
BANNED = float("-inf")


class Choices(NamedTuple):
    """For each row the likeliest next tokens, best first, with their log-probabilities."""

    scores: list[list[float]]
    tokens: list[list[int]]


class Network(Protocol):
    """Reads sentences and tells what may come next; `state` is whatever it likes."""

    end: int  # the token that ends a text

    def begin(self, sources: Sequence[Sequence[int]]) -> Pieces[Any]:
        """A state with one row for each sentence."""

    def start(self, target: str) -> list[int]:
        """Tokens that stand before the first one that is chosen."""

    def step(self, state: Any, tokens: Sequence[Sequence[int]], banned: Sequence[Sequence[int]], most: int) -> Choices:
        """Each row goes on by its `tokens` (equally many); `most` choices of each that are not in its `banned`."""

    def keep(self, state: Any, rows: Sequence[Sequence[int]]) -> None:
        """Of each sentence the rows that go on, by their numbers within it, in this order; none: it is done."""

    def pretend(self, state: Any, length: int) -> None:
        """As if so many tokens were written (rehearsals)."""

    def working_bytes(self, batch: int, beams: int, source: int, target: int) -> int:
        """Device memory of its largest piece, for so many sentences of so many tokens: an upper bound."""


class Found(NamedTuple):
    """One text. `whole`: it ended by itself, not because there was no more room. `score`: log-probability a token."""

    tokens: list[int]
    whole: bool
    score: float


class _Beam(NamedTuple):
    tokens: list[int]
    score: float


class _Sentence:
    """The hypotheses of one sentence."""

    def __init__(self, most: int, how: How, end: int) -> None:
        self.most, self.how, self.end = most, how, end
        self.live = [_Beam([], 0.0)]
        self.ended: list[Found] = []

    def rate(self, score: float, length: int) -> float:
        return float(score / max(length, 1) ** self.how.length_penalty)

    def banned(self) -> list[list[int]]:
        return [repeats(beam.tokens, self.how.no_repeat) for beam in self.live]

    def take(self, scores: Sequence[list[float]], tokens: Sequence[list[int]]) -> list[int]:
        """One token more. Returns which of the old rows go on, in the new order; none: it is done."""
        width = self.how.beams
        found = [
            (-(beam.score + score), row, token)
            for row, (beam, own, named) in enumerate(zip(self.live, scores, tokens, strict=True))
            for score, token in zip(own, named, strict=True)
            if score > BANNED
        ]
        found.sort(key=lambda c: c[:2])  # equal ones: as they came
        live: list[_Beam] = []
        rows: list[int] = []
        for rank, (cost, row, token) in enumerate(found[: 2 * width]):
            old = self.live[row]
            if token == self.end:
                if rank < width:
                    self.ended.append(Found(old.tokens, True, self.rate(-cost, len(old.tokens) + 1)))
            elif len(live) < width:
                live.append(_Beam([*old.tokens, token], -cost))
                rows.append(row)
        self.live = live or self.live
        return rows if live and not self._over() else []

    def _over(self) -> bool:
        self.ended.sort(key=lambda f: -f.score)  # stable: the first of equal ones
        best = self.live[0]
        length = len(best.tokens)
        if length >= self.most:
            return True
        width = self.how.beams
        return len(self.ended) >= width and self.ended[width - 1].score >= self.rate(best.score, length)

    def best(self) -> Found:
        if self.ended:
            return max(self.ended, key=lambda f: f.score)
        beam = self.live[0]
        return Found(beam.tokens, False, self.rate(beam.score, len(beam.tokens)))


def search(network: Network, sources: Sequence[Sequence[int]], target: str, how: How, most: int) -> Pieces[list[Found]]:
    """The best text for each source; none has more than `most` tokens."""
    state = yield from network.begin(sources)
    texts = [_Sentence(min(most, int(LONGER * len(s)) + LONGER_MORE), how, network.end) for s in sources]
    going = list(texts)
    feed = [network.start(target) for _ in going]
    for written in range(1, most + 1):
        banned = [b for text in going for b in text.banned()]
        choices = network.step(state, feed, banned, 2 * how.beams)
        at, kept = 0, []
        for text in going:
            until = at + len(text.live)
            kept.append(text.take(choices.scores[at:until], choices.tokens[at:until]))
            at = until
        going = [text for text, rows in zip(going, kept, strict=True) if rows]
        if not going:
            break
        network.keep(state, kept)
        feed = [beam.tokens[-1:] for text in going for beam in text.live]
        if written % PIECE_TOKENS == 0:
            yield
    return [text.best() for text in texts]


def rehearse(network: Network, source: Sequence[int], batch: int, target: str, how: How, most: int) -> Iterator[None]:
    """The largest pieces there are: `batch` such sources are read, and the last tokens of texts of `most` written."""
    state = yield from network.begin([source] * batch)
    start = network.start(target)
    network.step(state, [start] * batch, [[]] * batch, 2 * how.beams)
    network.keep(state, [[0] * how.beams] * batch)
    yield
    network.pretend(state, max(most - PIECE_TOKENS, 1))
    rows = batch * how.beams
    for _ in range(PIECE_TOKENS):
        best = network.step(state, [source[:1]] * rows, [[]] * rows, 2 * how.beams)
        network.keep(state, [list(reversed(range(how.beams)))] * batch)
    assert len(best.tokens) == rows
    yield


def choose(logits: torch.Tensor, ids: torch.Tensor | None, banned: Sequence[Sequence[int]], most: int) -> Choices:
    """`logits`: (rows, choices), of the tokens `ids` (ascending, on the host), or of the whole vocabulary."""
    scores = torch.log_softmax(logits.float(), -1)
    rows = [row for row, tokens in enumerate(banned) for _ in tokens]
    columns = torch.tensor([token for tokens in banned for token in tokens], dtype=torch.long)
    if ids is not None and len(columns):
        at = torch.searchsorted(ids, columns).clamp_(max=len(ids) - 1)
        there = ids[at] == columns
        rows = [row for row, known in zip(rows, there.tolist(), strict=True) if known]
        columns = at[there]
    if rows:
        scores[torch.tensor(rows, device=scores.device), columns.to(scores.device)] = BANNED
    best = scores.topk(min(most, scores.shape[1]), dim=-1)
    found = best.indices.cpu()
    return Choices(best.values.cpu().tolist(), (found if ids is None else ids[found]).tolist())


def repeats(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would write `size` tokens in a row for the second time."""
    if size <= 0 or len(tokens) < size:
        return []
    last = list(tokens[len(tokens) - size + 1 :])
    ends = range(size - 1, len(tokens))
    return sorted({tokens[end] for end in ends if list(tokens[end - size + 1 : end]) == last})
