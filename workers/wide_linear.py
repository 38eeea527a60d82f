"""Linear layers with bfloat16 weights on a processor that cannot multiply them: many rows at once go in float32.

Without instructions for bfloat16 torch's product of it takes seven times as long as float32's. The result is the same
but for the order of the sum: both add up in float32 and round once. The weights stay as they are; one layer's at a time
is widened for as long as its product takes. A single row is bound by memory, and stays with the narrow weights.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

ROWS = 8  # from so many on widening the weights pays


class WideLinear(nn.Linear):
    """A Linear whose class was changed: same parameters, same places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[:-1].numel() < ROWS or x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return linear(x.float(), self.weight.float(), bias).to(x.dtype)


def multiplies_bfloat16() -> bool:
    """This processor has instructions for it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widen(model: nn.Module) -> None:
    """All linear layers of a model but that of its logits, which is only ever asked for one row."""
    getter = getattr(model, "get_output_embeddings", None)
    logits = getter() if callable(getter) else None
    for module in model.modules():
        if type(module) is nn.Linear and module is not logits and module.weight.dtype == torch.bfloat16:
            module.__class__ = WideLinear


def working_bytes(model: nn.Module, rows: int) -> int:
    """Most that widening takes at a time, for so many rows."""
    sizes = [m.weight.numel() + rows * sum(m.weight.shape) for m in model.modules() if type(m) is WideLinear]
    return 4 * max(sizes, default=0)
