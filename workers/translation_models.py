"""The models of the translator: sentences of one language in, sentences of another out. No stream and no lease here.

    found = load(torch, settings, ("student-en-pt", "student-pt-en"))   # of the catalogue; torch of `_torch.set_up`
    found.modules                                          # what residency packs and moves
    found.knows("en", "pt")                                # the first of the models that knows the pair takes it
    pieces = found.translate(["One sentence."], "en", "pt")  # Pieces[list[Translated]]: return value of the generator
    found.working_bytes(batch), found.rehearse(batch)      # of the largest step of so many sentences

Deterministic. With a student a sentence gets the same text alone and in any batch; a model of transformers pads a
batch, its numbers differ in the last bits then, and now and then a word does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common import card, models
from common.settings import Settings, UserError
from common.speaker_runs import UNSPACED
from workers.sentence_parts import parts
from workers.translation_guard import How, again, suspect
from workers.translation_search import Network, Pieces, rehearse, search

MOST_ROWS = 16


class Translated(NamedTuple):
    """What became of one sentence. `suspect`: which check of `translation_guard` it fails, also at the second try."""

    text: str
    suspect: str


class Tokens(Protocol):
    """A tokenizer that knows its languages, and the limits of its model."""

    most: int  # tokens of a source

    def encode(self, text: str, source: str, target: str) -> list[int]:
        """With all that the model wants around them."""

    def decode(self, tokens: Sequence[int]) -> str: ...


class Model:
    """One model, of one or many pairs."""

    def __init__(self, row: models.Model, tokens: Tokens, network: Network, modules: Sequence[Any], most: int) -> None:
        self.row, self.tokens, self.network, self.modules, self.most = row, tokens, network, modules, most
        self.first = How(beams=row.beams)
        self.second = again(self.first)

    def knows(self, source: str, target: str) -> bool:
        return self.row.translates(source, target)

    def translate(self, texts: Sequence[str], source: str, target: str, how: How) -> Pieces[list[tuple[str, bool]]]:
        """Each text, and whether it ended by itself. Texts that are too long for the model are translated in parts, and
        no batch is larger than it was asked to be."""

        def length(text: str) -> int:
            return len(self.tokens.encode(text, source, target))

        cut = [parts(text, length, self.tokens.most) for text in texts]
        todo = [self.tokens.encode(part, source, target)[-self.tokens.most :] for own in cut for part in own]
        done: list[tuple[str, bool]] = []
        batch = self._batch(len(texts), how)
        for at in range(0, len(todo), batch):
            found = yield from search(self.network, todo[at : at + batch], target, how, self.most)
            done += [(self.tokens.decode(f.tokens).strip(), f.whole) for f in found]
        rest = iter(done)
        joined = [[next(rest) for _ in own] for own in cut]
        space = "" if target in UNSPACED else " "
        return [(space.join(text for text, _ in own), all(whole for _, whole in own)) for own in joined]

    def working_bytes(self, batch: int) -> int:
        """Device memory of the largest piece beside the weights: an upper bound."""
        shapes = ((self._batch(batch, self.first), self.first.beams), (1, self.second.beams))
        return max(self.network.working_bytes(n, beams, self.tokens.most, self.most) for n, beams in shapes)

    def rehearse(self, batch: int) -> Iterator[None]:
        """The largest pieces there are, on made-up text."""
        long = [self.network.end + 2] * self.tokens.most
        target, batch = self.row.targets()[0], self._batch(batch, self.first)
        yield from rehearse(self.network, long, batch, target, self.first, self.most)
        yield from rehearse(self.network, long, 1, target, self.second, self.most)

    def _batch(self, batch: int, how: How) -> int:
        """So many texts at once: memory grows with the rows of a search, which are texts times beams."""
        return max(1, min(batch, MOST_ROWS // how.beams))


class Models:
    """All models of the translator behind one face."""

    def __init__(self, models: Sequence[Model], sha256: str) -> None:
        self.models = models
        self.sha256 = sha256  # of all weights: for Worker.key
        self.modules: list[Any] = [module for model in models for module in model.modules]

    def knows(self, source: str, target: str) -> bool:
        return any(model.knows(source, target) for model in self.models)

    def name(self, source: str, target: str) -> str:
        """Which of them translates a pair."""
        return self._of(source, target).row.name

    def _of(self, source: str, target: str) -> Model:
        """KeyError: none knows the pair."""
        model = next((m for m in self.models if m.knows(source, target)), None)
        if model is None:
            raise KeyError(f"{source} -> {target}")
        return model

    def translate(self, texts: Sequence[str], source: str, target: str) -> Pieces[list[Translated]]:
        """One batch; what the guard does not like once more, alone and with another decoding. KeyError: not a pair
        that it knows."""
        model = self._of(source, target)
        plain = [" ".join(text.split()) for text in texts]
        first = yield from model.translate(plain, source, target, model.first)
        out = []
        for text, (was, whole) in zip(plain, first, strict=True):
            wrong = suspect(text, was, source, target, whole)
            if wrong:
                ((now, whole),) = yield from model.translate([text], source, target, model.second)
                still = suspect(text, now, source, target, whole)
                was, wrong = (was, wrong) if still and still == wrong == "empty" else (now, still)
            out.append(Translated(was, wrong))
        return out

    def working_bytes(self, batch: int) -> int:
        return max(model.working_bytes(batch) for model in self.models)

    def rehearse(self, batch: int) -> Iterator[None]:
        for model in self.models:
            yield from model.rehearse(batch)


Load = Callable[[Any, models.Model, Path, bool], Model]


def load(torch: Any, settings: Settings, names: Sequence[str]) -> Models:
    """UserError in one line when one is missing, or is no translation model."""
    if not names:
        raise UserError("translate.models is empty: name at least one")
    found, hashes = [], []
    half = card.kind(settings) == "cuda"
    for name in names:
        row = models.model(name)
        if row.task != "translation":
            fit = ", ".join(k.name for k in models.catalogue().values() if k.task == "translation")
            raise UserError(f"translate.models: {name} does not translate; these do: {fit}")
        folder = models.available(settings, name, check=True)
        about = models.stored(folder)
        hashes.append([about.sha256, sorted(about.files.items())])
        found.append(_loader(row)(torch, row, folder, half))
    return Models(found, hashlib.sha256(repr(hashes).encode()).hexdigest())


def _loader(row: models.Model) -> Load:
    if row.loader == "marian-student":
        from workers.translation_students import load_student

        return load_student
    from workers.translation_hub import load_hub_model

    return load_hub_model
