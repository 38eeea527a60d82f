"""The network of a small Marian student: a transformer encodes the sentence, two recurrent layers write the other one.

Kim et al. 2019, "From Research to Production and Back: Ludicrously Fast Neural Machine Translation": the decoder's
self-attention is a "simpler simple recurrent unit" (SSRU), so its memory is one vector a layer, however long the text.
Words of the target are chosen from a shortlist: those that often come of the words of the source, and the commonest.

A sentence's numbers do not depend on its neighbours. It is encoded alone; attention and choice are of each sentence for
itself; what is common, the matrices, gets at least `LEAST_ROWS` rows, from where the libraries of matrices on CPUs
compute each row alike (docs/decisions/translation-models.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from workers.translation_search import Choices, Pieces, choose

Tensor = torch.Tensor
T = TypeVar("T")

END, UNKNOWN = 0, 1  # tokens of these vocabularies
NOTHING = -1  # what stands before the first one
LEAST_ROWS = 4
MOST_PLACES = 1024  # of source or target
MOST_CHOICES = 52  # a token of the source brings so many to the shortlist, with its share of the commonest
EPSILON = 1e-6  # Marian's, in its norms


class Wide(nn.Module):
    """(rows, width) -> (rows, width)"""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.fc2(functional.relu(self.fc1(x))))
        return y


class Attention(nn.Module):
    """What rows see of the places of ONE sentence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, EPSILON)

    def memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(places, width) -> keys (heads, width / heads, places), values (heads, places, width / heads)"""
        k, v = self.k(x), self.v(x)
        places = len(x)
        return (
            k.view(places, self.heads, -1).permute(1, 2, 0).contiguous(),
            v.view(places, self.heads, -1).transpose(0, 1).contiguous(),
        )

    def seen(self, q: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """(rows, width) -> (rows, width); rows of this sentence"""
        keys, values = memory
        rows, width = q.shape
        q = q.view(rows, self.heads, -1).transpose(0, 1)
        weights = torch.softmax((q @ keys) / math.sqrt(width // self.heads), -1)
        return (weights @ values).transpose(0, 1).reshape(rows, width)

    def forward(self, x: Tensor, memories: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int]) -> Tensor:
        """`rows`: how many of the rows belong to each of the sentences."""
        parts = torch.split(self.q(x), [*rows, len(x) - sum(rows)])  # behind them are rows that fill up
        seen = [self.seen(q, memory) for q, memory in zip(parts, memories, strict=False)]
        y: Tensor = self.norm(x + self.o(torch.cat([*seen, parts[-1]])))
        return y


class Recurrent(nn.Module):
    """SSRU: c = forget · c + (1 - forget) · into(x); what goes on is its positive part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.forget = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, width), (rows, width) -> the same, one token on"""
        forget = torch.sigmoid(self.forget(x))
        cell = forget * cell + (1 - forget) * self.into(x)
        return self.norm(x + functional.relu(cell)), cell


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.attention, self.wide = Attention(width, heads), Wide(width, wide)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(self.attention(x, [self.attention.memory(x)], [len(x)]))
        return y


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.recurrent, self.attention = Recurrent(width), Attention(width, heads)
        self.wide = Wide(width, wide)

    def forward(self, x: Tensor, cell: Tensor, memories: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, cell = self.recurrent(x, cell)
        return self.wide(self.attention(x, memories, rows)), cell


class Sentence:
    """What the decoder looks at of one sentence: keys and values of each layer, and the words it may choose from."""

    def __init__(self, memory: list[Any], tokens: Tensor | None, vectors: Tensor, bias: Tensor) -> None:
        self.memory, self.tokens, self.vectors, self.bias = memory, tokens, vectors, bias


class State:
    """Texts under way: their sentences, how many rows (beams) each has, and a cell for each row and layer."""

    def __init__(self, sentences: list[Sentence], cells: Tensor) -> None:
        self.sentences, self.cells = sentences, cells  # cells: (layers, rows, width)
        self.rows = [1] * len(sentences)
        self.length = 0


class Shortlist:
    """Which tokens may stand in the translation of a sentence. On the host: only its choice goes to the device."""

    def __init__(self, always: int, starts: Tensor, tokens: Tensor) -> None:
        self.always, self.starts, self.tokens = always, starts.tolist(), tokens.numpy()

    def __call__(self, source: Sequence[int]) -> Tensor:
        """Ascending. The source's own tokens are among them, for names."""
        may = [self.tokens[self.starts[t] : self.starts[t + 1]] for t in set(source)]
        return torch.from_numpy(np.unique(np.concatenate([np.arange(self.always), source, *may])).astype(np.int64))


def places(count: int, width: int) -> Tensor:
    """(count, width): sines, then cosines."""
    half = width // 2
    steps = torch.exp(torch.arange(half, dtype=torch.float64) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def split(items: Sequence[T], counts: Sequence[int]) -> list[Sequence[T]]:
    ends = list(itertools.accumulate(counts, initial=0))
    return [items[a:b] for a, b in itertools.pairwise(ends)]


class Student(nn.Module):
    """One pair of languages. A `Network` of translation_search."""

    encoder: Any  # lists of layers
    decoder: Any
    places: Tensor

    def __init__(self, dims: dict[str, int], shortlist: Shortlist | None = None) -> None:
        super().__init__()
        width, sizes = dims["width"], (dims["width"], dims["heads"], dims["wide"])
        self.width, self.end, self.shortlist = width, END, shortlist
        self.embed = nn.Embedding(dims["vocabulary"], width)
        self.bias = nn.Parameter(torch.zeros(dims["vocabulary"]), requires_grad=False)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(dims["encoder_layers"]))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(dims["decoder_layers"]))
        self.register_buffer("places", places(MOST_PLACES, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens,) of one sentence -> (tokens, width)"""
        x: Tensor = self.embed(tokens) * math.sqrt(self.width) + self.places[: len(tokens)]
        for layer in self.encoder:
            x = layer(x)
        return x

    # As a `Network` of translation_search

    def begin(self, sources: Sequence[Sequence[int]]) -> Pieces[State]:
        sentences = []
        for source in sources:
            sentences.append(self.read(source))
            yield
        cells = torch.zeros(len(self.decoder), len(sentences), self.width, device=self.bias.device)
        return State(sentences, cells)

    def read(self, source: Sequence[int]) -> Sentence:
        """One sentence with its END, alone."""
        here = self.bias.device
        x = self(torch.tensor(source, device=here))
        memory = [layer.attention.memory(x) for layer in self.decoder]
        if self.shortlist is None:
            return Sentence(memory, None, self.embed.weight.detach(), self.bias.detach())
        tokens = self.shortlist(source)
        chosen = tokens.to(here)
        return Sentence(memory, tokens, self.embed.weight[chosen], self.bias[chosen])

    def start(self, target: str) -> list[int]:
        return [NOTHING]

    def step(
        self, state: State, tokens: Sequence[Sequence[int]], banned: Sequence[Sequence[int]], most: int
    ) -> Choices:
        rows = sum(state.rows)
        x = torch.zeros(max(rows, LEAST_ROWS), self.width, device=self.bias.device)
        if state.length:  # else all are NOTHING, which is zeros
            x[:rows] = self.embed(torch.tensor([t for (t,) in tokens], device=x.device)) * math.sqrt(self.width)
        x = x + self.places[state.length]
        cells = functional.pad(state.cells, (0, 0, 0, len(x) - rows))
        kept = []
        for i, layer in enumerate(self.decoder):
            x, cell = layer(x, cells[i], [s.memory[i] for s in state.sentences], state.rows)
            kept.append(cell[:rows])
        state.cells = torch.stack(kept)
        state.length += 1
        out = Choices([], [])
        for sentence, own, bans in zip(
            state.sentences, torch.split(x[:rows], state.rows), split(banned, state.rows), strict=True
        ):
            logits = functional.linear(own, sentence.vectors, sentence.bias)
            more = choose(logits, sentence.tokens, [[UNKNOWN, *b] for b in bans], most)
            out.scores.extend(more.scores)
            out.tokens.extend(more.tokens)
        return out

    def keep(self, state: State, rows: Sequence[Sequence[int]]) -> None:
        """Of each sentence the rows that go on, by their old numbers within it; none: the sentence is done."""
        starts = [sum(state.rows[:i]) for i in range(len(state.rows))]
        flat = [start + row for start, own in zip(starts, rows, strict=True) for row in own]
        state.cells = state.cells[:, torch.tensor(flat, dtype=torch.long, device=state.cells.device)]
        state.sentences = [s for s, own in zip(state.sentences, rows, strict=True) if own]
        state.rows = [len(own) for own in rows if own]

    def pretend(self, state: State, length: int) -> None:
        state.length = length

    def working_bytes(self, batch: int, beams: int, source: int, target: int) -> int:
        heads, wide = self.encoder[0].attention.heads, self.encoder[0].wide.fc1.out_features
        encoder = source * (8 * self.width + 2 * wide) + 3 * heads * source * source
        choice = min(len(self.bias), MOST_CHOICES * source) if self.shortlist else 0
        sentence = 2 * len(self.decoder) * source * self.width + choice * (self.width + 1)
        rows = max(batch * beams, LEAST_ROWS)
        decoder = rows * (8 * self.width + 2 * wide + 3 * heads * source + 4 * (choice or len(self.bias)))
        return int(4 * (batch * sentence + max(encoder, decoder)))


def student(dims: dict[str, int], tensors: dict[str, Tensor]) -> Student:
    """With these parameters (`convert_marian`). Raises KeyError or RuntimeError if they do not fit.

    Weights are integers and the number that they were multiplied with; here they are what they stand for, in float32.
    """
    own = dict(tensors)
    short = [own.pop(f"shortlist.{part}") for part in ("always", "starts", "tokens")]
    for name in [n for n in own if n.endswith(".scale")]:
        weight = f"{name.removesuffix('.scale')}.weight"
        own[weight] = own[weight].float() / own.pop(name)
    net = Student(dims, Shortlist(int(short[0]), short[1], short[2]))
    net.load_state_dict(own)
    return net.eval()
