"""The cases of every device, on a real CUDA card, and what only CUDA has. Collected only where there is one.

python -m pytest tests/test_cuda.py
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from common.settings import Settings
from tests.residency_cases import *  # noqa: F403
from tests.residency_cases import MIB, packed
from workers.residency import Device, OutOfMemory, open_device


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return open_device(Settings(), tmp_path_factory.mktemp("run"), "transcriber")


@pytest.fixture
def device(card: Device) -> Iterator[Device]:
    card.limit(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield card
    card.release(torch.empty(0, dtype=torch.uint8))
    assert card.held_bytes <= 16 * MIB  # crumbs of libraries


@pytest.mark.pure
def test_cudnn_takes_the_lstms_block_as_it_is(device: Device) -> None:
    lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True).eval()
    residency = packed(device, nn.Linear(3, 3), lstm)
    residency.reload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "weights are not part of single contiguous chunk of memory"
        lstm(torch.randn(1, 100, 60, device=device.torch_device))
    residency.close()


@pytest.mark.pure
def test_a_context_is_told_as_residue(device: Device) -> None:
    assert 50 * MIB < device.residue_bytes < 2048 * MIB
    assert device.name.endswith(f"(cuda:{device.torch_device.index})")


@pytest.mark.pure
def test_weights_that_are_not_pinned_go_through_buffers(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cuda.PIN_SHARE", 0.0)
    big = nn.Linear(12_000, 12_000)  # 549 MiB: more than the two buffers
    with torch.no_grad():
        want = big.weight[::999].clone()
    residency = packed(device, big)
    assert "not pinned" in device.note
    residency.reload()
    assert torch.equal(big.weight[::999].cpu(), want)
    residency.close()


@pytest.mark.pure
def test_a_real_step_over_the_lease_is_out_of_memory(device: Device) -> None:
    model = nn.Linear(4000, 4000)
    residency = packed(device, model)
    device.limit(residency.arena_bytes + 64 * MIB)
    residency.reload()
    with pytest.raises(OutOfMemory), device.working(0):
        model(torch.randn(100_000, 4000, device=device.torch_device))
    residency.offload()
    assert device.held_bytes == 0
    residency.close()
