"""Small Marian students as models of the translator: their vocabulary by the sentencepiece library, their network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import models
from common.settings import UserError
from workers._torch import unfilled
from workers.convert_marian import VOCABULARY, WEIGHTS
from workers.marian_student import END, MOST_PLACES, student
from workers.translation_models import Model

MOST_SOURCE = 160  # tokens: students have not seen many longer sentences
MOST_TARGET = min(2 * MOST_SOURCE, MOST_PLACES)


class Pieces:
    """A SentencePiece vocabulary that both languages share."""

    most = MOST_SOURCE

    def __init__(self, vocabulary: Any) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str, source: str, target: str) -> list[int]:
        return [*self._vocabulary.encode(text), END]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._vocabulary.decode(list(tokens)))


def load_student(torch: Any, row: models.Model, folder: Path, half: bool) -> Model:
    """float32 everywhere: it is small, and a card computes it no faster in 16 bits."""
    from safetensors.torch import load_file
    from sentencepiece import SentencePieceProcessor

    try:
        with unfilled(torch):
            net = student(models.stored(folder).dims, load_file(folder / WEIGHTS))
        vocabulary = SentencePieceProcessor(model_file=str(folder / VOCABULARY))
        if len(vocabulary) != len(net.bias) or vocabulary.eos_id() != END:
            raise ValueError("vocabulary and weights are not of the same model")
    except (KeyError, ValueError, RuntimeError, OSError) as e:
        why = str(e).splitlines()[0][:160]
        raise UserError(f"model {row.name}: {why}; get it again with: swapscribe models fetch {row.name}") from None
    return Model(row, Pieces(vocabulary), net, [net], MOST_TARGET)
