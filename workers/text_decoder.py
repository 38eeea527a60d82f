"""Whisper's text decoder without what nobody reads: its last product, of each place with the whole vocabulary.

Whisper makes it for every token of the prompt and reads two of them: whether there is speech at all, and what comes
next. With 130 tokens of prompt that is 27 MB and 2.6 billion multiplications in a model of 37 million weights.
"""

from __future__ import annotations

from typing import Any


def states(model: Any, tokens: Any, features: Any, cache: Any) -> Any:
    """tokens (texts, so many), features (texts, places, state) -> (texts, so many, state)"""
    d = model.decoder
    offset = next(iter(cache.values())).shape[1] if cache else 0
    x = d.token_embedding(tokens) + d.positional_embedding[offset : offset + tokens.shape[-1]]
    x = x.to(features.dtype)
    for block in d.blocks:
        x = block(x, features, mask=d.mask, kv_cache=cache)
    return d.ln(x)


def logits(model: Any, x: Any) -> Any:
    """(…, state) -> (…, vocabulary) float32"""
    return (x @ model.decoder.token_embedding.weight.to(x.dtype).T).float()


def task(whisper: Any, model: Any, options: Any) -> Any:
    """One decoding as whisper does it; `run` takes features (windows, places, state)."""
    made = whisper.decoding.DecodingTask(model, options)
    inference, sot = made.inference, made.sot_index

    def read(tokens: Any, features: Any) -> Any:
        if not inference.kv_cache:
            inference.kv_cache, inference.hooks = model.install_kv_cache_hooks()
        if tokens.shape[-1] > inference.initial_token_length:
            return logits(model, states(model, tokens[:, -1:], features, inference.kv_cache))
        return logits(model, states(model, tokens, features, inference.kv_cache)[:, [sot, -1]])

    vars(inference)["logits"] = read
    made.sot_index = 0  # where `read` puts it
    return made
