"""Models of transformers for the translator: M2M100 (one model, a hundred languages) and Marian's opus-mt (some pairs).

The library has the networks and the tokenizers; the search is ours, so that it can be interrupted, and is the same for
all models. Imports transformers: only after `_torch.set_up`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import models
from common.settings import UserError
from workers._torch import torchaudio_beside_cpu_torch
from workers.translation_models import Model
from workers.translation_search import Choices, Pieces, choose

FAMILIES = ("m2m_100", "marian")
MOST_SOURCE = 160  # tokens of a part; memory grows with them
MOST_TARGET = 256
# Codes of ours that M2M100 has by another name.
ALIASES = {"jw": "jv", "nn": "no", "nb": "no"}


class M2MTokens:
    """One vocabulary for all languages; a sentence begins with the token of its own."""

    most = MOST_SOURCE

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._languages = frozenset(tokenizer.lang_token_to_id.values())

    def encode(self, text: str, source: str, target: str) -> list[int]:
        self.tokenizer.src_lang = ALIASES.get(source, source)
        return list(self.tokenizer(text)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        tokens = [t for t in tokens if t not in self._languages]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def begin(self, target: str) -> list[int]:
        """A text begins with the token of the language it shall have."""
        return [int(self.tokenizer.get_lang_id(ALIASES.get(target, target)))]


class MarianTokens:
    """A vocabulary of a pair; a model of several targets wants `>>pt<<` before the text."""

    most = MOST_SOURCE

    def __init__(self, tokenizer: Any, says: dict[str, str]) -> None:
        self.tokenizer, self.says = tokenizer, says

    def encode(self, text: str, source: str, target: str) -> list[int]:
        said = self.says.get(target, "")
        return list(self.tokenizer(f"{said} {text}" if said else text)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def begin(self, target: str) -> list[int]:
        return []


class State:
    """A batch under way: what the encoder made of it, for each row; how many rows a sentence has; the cache."""

    def __init__(self, hidden: Any, mask: Any) -> None:
        self.hidden, self.mask = hidden, mask
        self.cache: Any = None
        self.rows = [1] * len(hidden)


class Seq2Seq:
    """A `Network` of translation_search around a model of transformers."""

    def __init__(self, torch: Any, model: Any, begin: Callable[[str], list[int]]) -> None:
        self._torch, self.model, self._begin = torch, model, begin
        c = self.config = model.config
        # The text's begin and padding are tokens that no text contains.
        self.end, self._pad = int(c.eos_token_id), int(c.pad_token_id)
        self._first = int(c.decoder_start_token_id)
        self._never = [t for t in {self._pad, self._first} if t != self.end]

    def begin(self, sources: Sequence[Sequence[int]]) -> Pieces[State]:
        torch, longest = self._torch, max(map(len, sources))
        ids = torch.full((len(sources), longest), self._pad)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = torch.tensor(source)
        mask = (torch.arange(longest) < torch.tensor([[len(s)] for s in sources])).long()
        here = self.model.device
        mask = mask.to(here)
        hidden = self.model.get_encoder()(input_ids=ids.to(here), attention_mask=mask)[0]
        yield
        return State(hidden, mask)

    def start(self, target: str) -> list[int]:
        return [self._first, *self._begin(target)]

    def step(
        self, state: State, tokens: Sequence[Sequence[int]], banned: Sequence[Sequence[int]], most: int
    ) -> Choices:
        out = self.model(
            encoder_outputs=(state.hidden,),
            attention_mask=state.mask,
            decoder_input_ids=self._torch.tensor(tokens, device=self.model.device),
            past_key_values=state.cache,
            use_cache=True,
        )
        state.cache = out.past_key_values
        return choose(out.logits[:, -1], None, [[*self._never, *b] for b in banned], most)

    def keep(self, state: State, rows: Sequence[Sequence[int]]) -> None:
        starts = [sum(state.rows[:i]) for i in range(len(state.rows))]
        flat = [start + row for start, own in zip(starts, rows, strict=True) for row in own]
        if flat != list(range(sum(state.rows))):
            at = self._torch.tensor(flat, device=self.model.device)
            state.hidden, state.mask = state.hidden[at], state.mask[at]
            if state.cache is not None:
                state.cache.reorder_cache(at)
        state.rows = [len(own) for own in rows if own]

    def pretend(self, state: State, length: int) -> None:
        if state.cache is None:
            return
        for layer in state.cache.self_attention_cache.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                setattr(layer, name, old[:, :, :1].repeat(1, 1, length, 1))

    def working_bytes(self, batch: int, beams: int, source: int, target: int) -> int:
        """Keys and values of all layers, and of one layer twice, for it grows by being copied; the widest pieces of
        encoder and decoder; scores of the whole vocabulary, in float32, as they are and as logarithms."""
        c, size, rows = self.config, self.model.dtype.itemsize, batch * beams
        layer = 2 * rows * c.d_model * (source + target) * size
        cache = (c.decoder_layers + 2) * layer
        wide = (6 * c.d_model + 2 * c.encoder_ffn_dim) * source * batch * size
        scores = 3 * c.encoder_attention_heads * source * source * batch * 4
        choice = rows * c.vocab_size * (size + 4 * 4)
        return int(cache + wide + scores + choice)


def load_hub_model(torch: Any, row: models.Model, folder: Path, half: bool) -> Model:
    """In 16 bits on a card, else in 32."""
    torchaudio_beside_cpu_torch()
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the store; nothing is looked up
    import transformers as library

    transformers: Any = library  # half of it has no types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, **known).model_type
        if kind not in FAMILIES:
            raise ValueError(f"a model of the family {kind}; known here are {', '.join(FAMILIES)}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **known)
        dtype = torch.float16 if half else torch.float32
        # A torch file is read with weights_only, which is the library's way
        net = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, **known).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise UserError(f"model {row.name}: {str(e).splitlines()[0][:200]}") from None
    return adapted(torch, row, tokenizer, net)


def adapted(torch: Any, row: models.Model, tokenizer: Any, net: Any) -> Model:
    tokens = M2MTokens(tokenizer) if net.config.model_type == "m2m_100" else MarianTokens(tokenizer, row.says)
    return Model(row, tokens, Seq2Seq(torch, net, tokens.begin), [net], MOST_TARGET)
