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


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_an_answer_goes_on_from_any_block_as_if_nothing_had_been(model: Any, torch: Any, kind: str) -> None:
    from workers import generation

    model = model.to(getattr(torch, kind))
    whole, loops = generation.Answer(), {0: 0}
    for _ in generation.write(model, PROMPT, whole, 60, 16, frozenset()):
        loops[len(whole.kept)] = whole.loops
    assert len(whole.tokens) > 2 * generation.BLOCK
    for end in range(0, len(whole.tokens), generation.BLOCK):
        answer = generation.Answer(whole.tokens[:end], loops[end])
        for _ in generation.write(model, PROMPT, answer, 60, 16, frozenset()):
            pass
        assert answer.tokens == whole.tokens and answer.whole == whole.whole
        assert answer.read == len(PROMPT) + end, "what was written is read, not written again"


def test_keys_and_values_do_not_depend_on_where_an_answer_was_interrupted(model: Any, torch: Any) -> None:
    """Bit by bit: that tokens are the same may be luck."""
    from workers import generation

    model = model.to(torch.bfloat16)

    def caches(answer: Any, most: int) -> list[Any]:
        pieces = generation.write(model, PROMPT, answer, most, 16, frozenset())
        for _ in pieces:
            if pieces.gi_frame:
                cache = pieces.gi_frame.f_locals["cache"]
        end = len(PROMPT) + 2 * generation.BLOCK
        return [t[:, :, :end].clone() for layer in cache.layers for t in (layer.keys, layer.values)]

    whole = generation.Answer()
    first = caches(whole, 40)
    again = caches(generation.Answer(whole.tokens[: 2 * generation.BLOCK]), 40)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_answer_that_is_complete_needs_no_model() -> None:
    from workers import generation

    answer = generation.Answer(range(32))
    assert list(generation.write(None, PROMPT, answer, 32, 16, frozenset())) == [] and len(answer.tokens) == 32


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

    def circle(answer: Any) -> Any:
        step = len(answer.tokens)
        while answer.choose(torch.zeros(20) + 9 * torch.eye(20)[5 + step % 4], frozenset()):
            step += 1
            if step == generation.BLOCK:
                again.append((answer.kept, answer.loops))
            assert step < 100
        return answer

    again: list[tuple[list[int], int]] = []
    answer = circle(generation.Answer())
    assert answer.whole and len(answer.tokens) < 30
    grams = [tuple(answer.tokens[i : i + generation.NGRAM]) for i in range(len(answer.tokens) - generation.NGRAM + 1)]
    assert len(grams) == len(set(grams))
    ((kept, loops),) = again
    assert loops > 0 and circle(generation.Answer(kept, loops)).tokens == answer.tokens, "its attempts still count"
    assert circle(generation.Answer(kept)).tokens != answer.tokens
