"""Products of bfloat16 weights in float32: as exact as the narrow ones, and nothing else about the layer changes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.functional import linear  # noqa: E402

from workers.wide_linear import ROWS, WideLinear, widen, working_bytes  # noqa: E402

pytestmark = pytest.mark.pure


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 96, bias=True, dtype=dtype)
        self.logits = nn.Linear(96, 1000, bias=False, dtype=dtype)

    def get_output_embeddings(self) -> nn.Module:
        return self.logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, 100])
def test_many_rows_are_the_exact_sum_rounded_once(rows: int) -> None:
    torch.manual_seed(rows)
    model = Model(torch.bfloat16)
    x = torch.randn(1, rows, 48).bfloat16()
    narrow = model(x)
    names, tensors = [*model.state_dict()], [p.data_ptr() for p in model.parameters()]
    widen(model)
    out = model(x)
    exact = linear(x.double(), model.inner.weight.double(), model.inner.bias.double())
    assert out.dtype == torch.bfloat16 and out.shape == narrow.shape
    if rows < ROWS:
        assert torch.equal(out, narrow)
    else:
        assert (out != exact.bfloat16()).float().mean() < 0.01  # a sum in float32 lies on the other side of a half
    assert (out.double() - exact).abs().max() <= (narrow.double() - exact).abs().max() * 1.5
    assert names == [*model.state_dict()] and tensors == [p.data_ptr() for p in model.parameters()]


def test_only_narrow_layers_change_and_the_logits_stay() -> None:
    narrow, wide = Model(torch.bfloat16), Model(torch.float32)
    widen(narrow)
    widen(wide)
    assert type(narrow.inner) is WideLinear and type(narrow.logits) is nn.Linear and type(wide.inner) is nn.Linear
    assert working_bytes(narrow, 10) == 4 * (48 * 96 + 10 * (48 + 96)) and working_bytes(wide, 10) == 0
