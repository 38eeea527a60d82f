"""The search over translations, on a stand-in network whose every score is known: exact, bounded, interruptible."""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import pytest
import torch

from workers.translation_guard import How
from workers.translation_search import PIECE_TOKENS, Choices, choose, repeats, search

pytestmark = pytest.mark.pure

T = TypeVar("T")
END = 0
WORDS = 4  # tokens, with END


class StandInNetwork:
    """Log-probabilities of the next token are made from the source and all tokens before it, by a hash."""

    end = END

    def __init__(self, ends_at: int = 0, never: frozenset[int] = frozenset()) -> None:
        self.ends_at, self.never = ends_at, never
        self.steps, self.widest = 0, 0

    def scores(self, source: Sequence[int], before: Sequence[int]) -> torch.Tensor:
        dice = random.Random(repr((list(source), list(before))))
        logits = torch.tensor([dice.uniform(-3, 3) for _ in range(WORDS)])
        if len(before) < self.ends_at or END in self.never:
            logits[END] = float("-inf")
        return torch.log_softmax(logits, -1)

    def begin(self, sources: Sequence[Sequence[int]]) -> Generator[None, None, list[list[tuple[Any, list[int]]]]]:
        yield
        return [[(source, [])] for source in sources]

    def start(self, target: str) -> list[int]:
        return [-1, -2]

    def step(self, state: Any, tokens: Sequence[Sequence[int]], banned: Sequence[Sequence[int]], most: int) -> Choices:
        rows = [row for rows in state for row in rows]
        assert len(rows) == len(tokens) == len(banned)
        self.steps, self.widest = self.steps + 1, max(self.widest, len(rows))
        for (_, before), new in zip(rows, tokens, strict=True):
            if list(new) != [-1, -2]:
                before.extend(new)
        logits = torch.stack([self.scores(source, before) for source, before in rows])
        return choose(logits, None, banned, most)

    def keep(self, state: Any, rows: Sequence[Sequence[int]]) -> None:
        kept = [[(old[i][0], list(old[i][1])) for i in own] for old, own in zip(state, rows, strict=True)]
        state[:] = [own for own in kept if own]

    def pretend(self, state: Any, length: int) -> None:
        raise NotImplementedError

    def working_bytes(self, batch: int, beams: int, source: int, target: int) -> int:
        return 0


def whole(pieces: Generator[None, None, T]) -> tuple[T, int]:
    """What it returns, and how many pieces there were before its last."""
    count = 0
    while True:
        try:
            next(pieces)
            count += 1
        except StopIteration as e:
            return e.value, count


def score(network: StandInNetwork, source: Sequence[int], text: Sequence[int]) -> float:
    tokens = [*text, END]
    return sum(float(network.scores(source, tokens[:i])[t]) for i, t in enumerate(tokens)) / len(tokens)


SOURCES = [[seed, 7] for seed in range(12)]  # texts of at most 2.5 × 2 + 12 tokens


def test_one_beam_takes_the_likeliest_token_each_time() -> None:
    network = StandInNetwork()
    for source, found in zip(SOURCES, whole(search(network, SOURCES, "xx", How(), 40))[0], strict=True):
        text: list[int] = []
        while len(text) < 17 and (best := int(network.scores(source, text).argmax())) != END:
            text.append(best)
        assert found.tokens == text
        assert found.whole == (len(text) < 17)


def test_enough_beams_find_the_best_text_there_is() -> None:
    """Against all texts of up to three tokens."""
    network = StandInNetwork()
    every = [t for n in range(4) for t in itertools.product(range(1, WORDS), repeat=n)]
    for source in SOURCES:
        ((found,), _) = whole(search(network, [source], "xx", How(beams=200), 4))
        best = max(every, key=lambda text: score(network, source, text))
        assert found.whole and found.tokens == list(best)
        assert found.score == pytest.approx(score(network, source, best), abs=1e-5)


def test_more_beams_are_never_worse_where_all_texts_are_tried() -> None:
    network = StandInNetwork(ends_at=2)
    ones, many = ([f.score for f in whole(search(network, SOURCES, "xx", How(beams=n), 6))[0]] for n in (1, 300))
    assert all(b >= a - 1e-6 for a, b in zip(ones, many, strict=True)) and many != ones


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_changes_nothing(beams: int) -> None:
    alone = [whole(search(StandInNetwork(), [s], "xx", How(beams=beams), 40))[0][0] for s in SOURCES]
    assert whole(search(StandInNetwork(), SOURCES, "xx", How(beams=beams), 40))[0] == alone


def test_what_does_not_end_is_cut_and_says_so() -> None:
    network = StandInNetwork(never=frozenset({END}))
    found, pieces = whole(search(network, [[1, 7], list(range(40))], "xx", How(), 30))
    assert [(f.whole, len(f.tokens)) for f in found] == [(False, 17), (False, 30)]
    assert network.steps == 30 and pieces == 1 + 30 // PIECE_TOKENS


def test_rows_end_with_their_sentence() -> None:
    network = StandInNetwork()
    whole(search(network, SOURCES, "xx", How(beams=3), 40))
    assert network.widest <= 3 * len(SOURCES)


def test_no_words_in_a_row_come_twice() -> None:
    network = StandInNetwork(never=frozenset({END}))
    for n in (2, 3):
        ((found,), _) = whole(search(network, [list(range(40))], "xx", How(beams=2, no_repeat=n), 12))
        grams = [tuple(found.tokens[i : i + n]) for i in range(len(found.tokens) - n + 1)]
        assert len(grams) == len(set(grams)) > 0
    assert repeats([1, 2, 3, 1, 2], 3) == [3] and repeats([1, 1], 2) == [1] and repeats([1, 2, 3], 0) == []


def test_a_shortlist_names_its_tokens_and_bans_work_in_it() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    ids = torch.tensor([4, 7, 900])
    free = choose(logits, ids, [[], []], 2)
    assert free.tokens == [[7, 900], [4, 7]]
    banned = choose(logits, ids, [[7, 5000, 1], [4]], 3)
    assert banned.tokens[0][:2] == [900, 4] and banned.scores[0][2] == float("-inf")
    assert banned.tokens[1][:2] == [7, 900]
    assert banned.scores[1][0] == free.scores[1][1]  # what is left keeps its probability
