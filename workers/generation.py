"""Greedy decoding of a causal LM in bounded pieces, for a worker that may have to give the GPU back between two.

In: token ids of a prompt, and of the answer as far as an earlier burst wrote it. Out: token ids of the whole answer,
the same ones wherever it was interrupted. The cache of keys and values is allocated once, at its full size, and is
gone when the generator is closed. Imports transformers: only after `_torch.set_up`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.pace import BLOCK_TOKENS as BLOCK
from workers.pace import PIECE_TOKENS as DECODE_TOKENS

NGRAM = 8  # an answer does not say the same so many tokens twice
LOOPS = 3  # and ends when it has tried so often


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, (1, heads, room, head size), filled up to `length`.

    A cache that grows by concatenation holds two copies while it does, and leaves holes of every size.
    """

    is_sliding = False

    def __init__(self, room: int, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room, self.length = room, filled

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        heads, size = key_states.shape[1], key_states.shape[3]
        self.keys = key_states.new_zeros(1, heads, self.room, size)
        self.values = value_states.new_zeros(1, heads, self.room, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; the number is negative, as transformers has it."""
        self.length += tokens_to_remove

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.room

    get_max_cache_shape = get_max_length  # its name in earlier versions


def new_cache(config: Any, room: int, filled: int = 0) -> Any:
    """A cache for `room` tokens; `filled` of them count as there (rehearsals)."""
    layers = [_Layer(room, filled) for _ in range(config.num_hidden_layers)]
    return Cache(layers=list(layers))


def cache_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """Size of a cache for `tokens` tokens: keys and values of every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * _head_size(config) * tokens * itemsize)


def working_bytes(config: Any, tokens: int, step_tokens: int, itemsize: int) -> int:
    """What a step of `step_tokens` needs beside the weights at a context of `tokens`: an upper bound.

    The cache; of one layer the attention scores (in float32, twice, as the plain kernel makes them), keys and values
    repeated for all heads, and the wide part of the feed-forward block; the mask; the logits of one token.
    """
    heads, step_tokens = config.num_attention_heads, max(step_tokens, BLOCK)
    scores = 2 * heads * step_tokens * tokens * 4
    repeated = 2 * heads * _head_size(config) * tokens * itemsize
    wide = step_tokens * (8 * config.hidden_size + 4 * config.intermediate_size) * itemsize
    logits = config.vocab_size * 16
    mask = step_tokens * tokens * 4
    return int(cache_bytes(config, tokens, itemsize) + scores + repeated + wide + logits + mask)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Answer:
    """What is written so far. `whole`: it ended by itself, not because there was no more room.

    What a later burst can go on from are the complete blocks, `kept`, with the `loops` of that moment: how often it
    had tried to repeat itself does not follow from the tokens.
    """

    def __init__(self, tokens: Sequence[int] = (), loops: int = 0) -> None:
        self.tokens = list(tokens)
        self.whole = False
        self.read = 0  # tokens that went through the model to be read, not to be followed by a new one
        self.loops = self._loops = loops
        self._banned: dict[tuple[int, ...], set[int]] = {}
        for end in range(NGRAM, len(self.tokens) + 1):
            gram = self.tokens[end - NGRAM : end]
            self._banned.setdefault(tuple(gram[:-1]), set()).add(gram[-1])

    def over(self, most: int) -> bool:
        """Nothing is to be added, though it may have been interrupted."""
        return self.whole or len(self.tokens) >= most

    @property
    def kept(self) -> list[int]:
        return self.tokens[: len(self.tokens) // BLOCK * BLOCK]

    def choose(self, logits: torch.Tensor, stop: frozenset[int]) -> bool:
        """Append the likeliest token that repeats no n-gram; False at the end. `logits`: (vocabulary,)."""
        key = tuple(self.tokens[-(NGRAM - 1) :])
        banned = self._banned.get(key, set())
        best = int(logits.argmax())
        if best in banned:
            self._loops += 1
            logits = logits.clone()
            logits[list(banned)] = float("-inf")
            best = int(logits.argmax())
        if best in stop or self._loops >= LOOPS:
            self.whole = True
            return False
        if len(key) == NGRAM - 1:
            self._banned.setdefault(key, set()).add(best)
        self.tokens.append(best)
        if len(self.tokens) % BLOCK == 0:
            self.loops = self._loops
        return True


def write(
    model: Any, prompt: Sequence[int], answer: Answer, most: int, step_tokens: int, stop: frozenset[int]
) -> Iterator[None]:
    """Fill `answer` up to `most` tokens; each piece reads `step_tokens` or writes a few. It may begin with blocks.

    Keys and values computed for one token differ in their last bits from those computed for many at once, and
    sometimes a word does then. So that an answer does not depend on where it was interrupted, its keys and values
    are always those of whole blocks: a block that is complete is read again at once, whether or not somebody
    interrupts; the same pieces with the same neighbours are what a later burst reads.
    """
    if answer.over(most):
        return
    assert len(answer.tokens) % BLOCK == 0, "an answer goes on from whole blocks"
    device = next(model.parameters()).device
    cache = new_cache(model.config.get_text_config(), len(prompt) + most)
    blocks = [answer.tokens[at : at + BLOCK] for at in range(0, len(answer.tokens), BLOCK)]
    chunks = [prompt[at : at + step_tokens] for at in range(0, len(prompt), step_tokens)] + blocks
    more = True
    for left, chunk in zip(range(len(chunks) - 1, -1, -1), chunks, strict=True):
        logits = _forward(model, chunk, cache, device)
        answer.read += len(chunk)
        if left == 0:
            more = answer.choose(logits, stop)
        else:
            int(logits.argmax())  # waits for the device: a piece that has ended is over there, too
        yield
    while more and len(answer.tokens) < most:
        for _ in range(min(DECODE_TOKENS, most - len(answer.tokens))):
            more = answer.choose(_next(model, answer, cache, device), stop)
            if not more:
                break
        yield


def _next(model: Any, answer: Answer, cache: Any, device: Any) -> torch.Tensor:
    """Logits of the token after the answer so far: its last token is read, or the whole block that it completes."""
    if len(answer.tokens) % BLOCK:
        return _forward(model, answer.tokens[-1:], cache, device)
    cache.crop(1 - BLOCK)  # the block's other tokens are in there, one by one
    return _forward(model, answer.tokens[-BLOCK:], cache, device)


def rehearse(model: Any, tokens: int, step_tokens: int) -> Iterator[None]:
    """The two largest pieces there are: a part of a prompt, and of an answer, at the end of the longest context."""
    device = next(model.parameters()).device
    step = min(max(step_tokens, BLOCK), tokens - DECODE_TOKENS)
    cache = new_cache(model.config.get_text_config(), tokens, filled=tokens - step - DECODE_TOKENS)
    _forward(model, [0] * step, cache, device)
    yield
    for _ in range(DECODE_TOKENS):
        int(_forward(model, [0], cache, device).argmax())
    yield


def _forward(model: Any, tokens: Sequence[int], cache: Any, device: Any) -> torch.Tensor:
    """Logits (vocabulary,) after the last of `tokens`."""
    ids = torch.tensor([list(tokens)], device=device)
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    last: torch.Tensor = out.logits[0, -1]
    return last
