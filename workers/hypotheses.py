"""What Whisper makes of an utterance that is still being spoken: one greedy pass, quick rather than thorough.

It begins with the words that are stable already, stops after so many new tokens, and says of each word how sure it is
and where in the audio it was heard (cross-attention of the alignment heads). No fallbacks, no word times: those belong
to the final.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from workers.interim import Piece


class Glimpse:
    """A greedy decoder on given features. `start` are the tokens before the text: prompt, start of transcript."""

    def __init__(self, torch: Any, model: Any, tokenizer: Any, suppressed: Sequence[int]) -> None:
        self._torch, self._model, self._tokenizer = torch, model, tokenizer
        self._suppressed = list(suppressed)
        self._blank = [*tokenizer.encode(" "), tokenizer.eot]
        heads = model.alignment_heads.indices().T.tolist()
        self._heads: dict[int, list[int]] = {}
        for layer, head in heads:
            self._heads.setdefault(layer, []).append(head)

    def __call__(
        self, features: Any, start: Sequence[int], prefix: Sequence[int], most: int, places: int
    ) -> tuple[list[Piece], float]:
        """At most `most` tokens behind `prefix`, as words; and P(no speech). `places` hold speech, the rest silence."""
        torch, model = self._torch, self._model
        queries: dict[int, list[Any]] = {layer: [] for layer in self._heads}
        hooks = [
            model.decoder.blocks[layer].cross_attn.query.register_forward_hook(
                lambda _, ins, out, kept=kept: kept.append(out[:, -1])
            )
            for layer, kept in queries.items()
        ]
        cache, more = model.install_kv_cache_hooks()
        hooks += more
        tokens: list[int] = []
        probs: list[float] = []
        silent = 0.0
        try:
            given = torch.tensor([[*start, *prefix]], device=features.device)
            for _ in range(most):
                states = self._states(given, features, cache)
                if not tokens and self._tokenizer.no_speech is not None:
                    at = list(start).index(self._tokenizer.sot)
                    silent = float(self._logits(states[:, at]).softmax(-1)[0, self._tokenizer.no_speech])
                logits = self._logits(states[:, -1])[0]
                logits[self._suppressed] = -torch.inf
                if not tokens and not prefix:
                    logits[self._blank] = -torch.inf
                logp, token = logits.log_softmax(-1).max(-1)
                if int(token) == self._tokenizer.eot:
                    break
                tokens.append(int(token))
                probs.append(float(logp.exp()))
                given = token.reshape(1, 1)
            keys = {layer: cache[model.decoder.blocks[layer].cross_attn.key] for layer in self._heads}
            heard = self._heard({k: v[: len(tokens)] for k, v in queries.items()}, keys, places) if tokens else []
        finally:
            for hook in hooks:
                hook.remove()
        return list(self._pieces(tokens, probs, heard)), silent

    def _states(self, tokens: Any, features: Any, cache: Any) -> Any:
        """The decoder without its last product, which costs most and is wanted of one place only."""
        d = self._model.decoder
        offset = next(iter(cache.values())).shape[1] if cache else 0
        x = d.token_embedding(tokens) + d.positional_embedding[offset : offset + tokens.shape[-1]]
        x = x.to(features.dtype)
        for block in d.blocks:
            x = block(x, features, mask=d.mask, kv_cache=cache)
        return d.ln(x)

    def _logits(self, x: Any) -> Any:
        return (x @ self._model.decoder.token_embedding.weight.to(x.dtype).T).float()

    def _heard(self, queries: dict[int, list[Any]], keys: dict[int, Any], places: int) -> list[int]:
        """For each token the place that the alignment heads looked at most."""
        torch, sums = self._torch, 0.0
        n_head = self._model.dims.n_text_head
        for layer, heads in self._heads.items():
            q = torch.stack([x[0] for x in queries[layer]])  # (tokens, state)
            k = keys[layer][0]  # (places, state)
            q = q.view(len(q), n_head, -1)[:, heads].permute(1, 0, 2)
            k = k.view(len(k), n_head, -1)[:, heads].permute(1, 2, 0)
            scale = q.shape[-1] ** -0.5
            sums = sums + ((q @ k) * scale).float().softmax(-1).sum(0)
        return [int(i) for i in sums[:, : max(1, places)].argmax(-1)]  # type: ignore[index]

    def _pieces(self, tokens: list[int], probs: list[float], heard: list[int]) -> Iterator[Piece]:
        words, parts = self._tokenizer.split_to_word_tokens(tokens)
        at = 0
        for word, part in zip(words, parts, strict=True):
            end = at + len(part)
            yield Piece(word, tuple(part), min(probs[at:end]), max(heard[at:end]))
            at = end
