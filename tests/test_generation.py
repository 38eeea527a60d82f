"""Greedy decoding in pieces gives what decoding in one go gives, in the memory that was declared.

Tiny models of random weights, one of each family; what they write means nothing, but it must be the same.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from common.settings import Settings
from workers._torch import set_up, torchaudio_beside_cpu_torch

pytestmark = pytest.mark.joined
SMALL = {
    "vocab_size": 99, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "Llama": {"head_dim": 16},  # not hidden / heads
    "Qwen2": {},
    "Mistral": {"sliding_window": 24},
    "Phi3": {"sliding_window": 24},
}
PROMPT = [(7 * i * i + 3) % 90 + 5 for i in range(75)]


@pytest.fixture(scope="module")
def torch() -> Any:
    module = set_up(1, Settings().cache)
    torchaudio_beside_cpu_torch()
    return module


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, torch: Any) -> Any:
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, f"{request.param}Config")(**SMALL, **FAMILIES[request.param])
    return getattr(transformers, f"{request.param}ForCausalLM")(config).eval()


def written(model: Any, step: int, most: int = 24, stop: frozenset[int] = frozenset()) -> tuple[list[int], int, bool]:
    from workers import generation

    answer = generation.Answer()
    pieces = sum(1 for _ in generation.write(model, PROMPT, answer, most, step, stop))
    return answer.tokens, pieces, answer.whole


def test_pieces_change_nothing_and_the_library_decodes_the_same(model: Any, torch: Any) -> None:
    from workers import generation

    tokens, pieces, whole = written(model, 16)
    assert (len(tokens), whole) == (24, False) and pieces == -(-len(PROMPT) // 16) + -(-23 // generation.DECODE_TOKENS)
    for step in (7, 75, 500):
        assert written(model, step)[0] == tokens
    theirs = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    same = theirs[0, len(PROMPT) :].tolist()
    until = next((i for i in range(24) if tokens[i] != same[i]), 24)  # where it would have begun to repeat itself
    assert until == 24 or until >= generation.NGRAM
    stop = frozenset({tokens[11]})
    cut, _, whole = written(model, 16, stop=stop)
    assert cut == tokens[: tokens.index(tokens[11])] and whole


def test_cache_is_as_large_as_declared_and_gone_when_closed(model: Any) -> None:
    from workers import generation

    config = model.config
    cache = generation.new_cache(config, 100)
    generation._forward(model, PROMPT, cache, "cpu")
    real = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert real == generation.cache_bytes(config, 100, 4) and cache.get_seq_length() == 75
    assert generation.working_bytes(config, 512, 64, 4) > generation.cache_bytes(config, 512, 4)
    pieces = generation.write(model, PROMPT, generation.Answer(), 40, 16, frozenset())
    next(pieces)
    alive = weakref.ref(pieces.gi_frame.f_locals["cache"])
    assert alive()
    pieces.close()
    gc.collect()
    assert alive() is None, "whoever gives the GPU back must hold nothing of it"


def test_the_rehearsal_runs_the_largest_pieces(model: Any, torch: Any) -> None:
    from workers import generation

    seen: list[tuple[int, int]] = []
    hook = model.register_forward_hook(
        lambda _m, _a, kw, out: seen.append((kw["input_ids"].shape[1], kw["past_key_values"].get_seq_length())),
        with_kwargs=True,
    )
    assert sum(1 for _ in generation.rehearse(model, 512, 64)) == 2
    hook.remove()
    assert seen[0] == (64, 512 - generation.DECODE_TOKENS) and seen[-1] == (1, 512)


def test_an_answer_that_goes_round_in_circles_ends(torch: Any) -> None:
    from workers import generation

    answer = generation.Answer()
    circle, steps = [5, 6, 7, 8], 0
    logits = torch.zeros(20)
    while answer.choose(logits + 9 * torch.eye(20)[circle[steps % 4]], frozenset()):
        steps += 1
        assert steps < 100
    assert answer.whole and len(answer.tokens) < 30
    grams = [tuple(answer.tokens[i : i + generation.NGRAM]) for i in range(len(answer.tokens) - generation.NGRAM + 1)]
    assert len(grams) == len(set(grams))
