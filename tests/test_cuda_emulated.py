"""`CudaDevice` over a stand-in of torch's CUDA, for machines without a card: the real file from its first line on, and
the cases of every device that need no more than memory. What only a card can show is in test_cuda."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from common.settings import GpuSettings, Settings, UserError
from tests.residency_cases import (
    MIB,
    TEXT,
    Toy,
    one_thread,  # noqa: F401
    packed,
    test_a_lightning_modules_device_is_told,  # noqa: F401
    test_a_model_on_meta_is_filled_in_place,  # noqa: F401
    test_a_reload_turns_back_between_two_copies,  # noqa: F401
    test_a_tensor_that_somebody_has_loses_its_elements,  # noqa: F401
    test_a_view_that_somebody_holds_never_dangles,  # noqa: F401
    test_an_lstm_stands_back_to_back_in_a_storage_of_its_own,  # noqa: F401
    test_every_kind_of_tensor_moves,  # noqa: F401
    test_everything_is_freed_in_the_end,  # noqa: F401
    test_neighbours_of_what_was_written_are_copied_once,  # noqa: F401
    test_packed_modules_can_be_trained_on,  # noqa: F401
    test_running_statistics_are_copied_back,  # noqa: F401
    test_what_a_module_makes_itself_travels_too,  # noqa: F401
    test_what_was_written_to_is_copied_back,  # noqa: F401
)
from tests.standin_cuda import StandInCuda
from workers.cuda import CONTEXT_BYTES, CudaDevice
from workers.residency import OutOfMemory, Residency

pytestmark = pytest.mark.pure


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    standin = StandInCuda()
    standin.take_place(monkeypatch)
    return standin


@pytest.fixture
def device(standin: StandInCuda, folder: Path) -> Iterator[CudaDevice]:
    device = CudaDevice(Settings(), folder)
    yield device
    device.release(torch.empty(0, dtype=torch.uint8))
    assert device.held_bytes == 0


def test_a_device_is_made_and_holds_nothing(standin: StandInCuda, device: CudaDevice) -> None:
    assert device.name == "Stand-in (cuda:0)" and device.note == ""
    assert (device.held_bytes, device.peak_bytes, device.residue_bytes) == (0, 0, CONTEXT_BYTES)
    assert standin.limit == 0


def test_a_card_that_is_not_there_is_named(standin: StandInCuda, folder: Path) -> None:
    with pytest.raises(UserError, match=r"gpu\.index is 1"):
        CudaDevice(Settings(gpu=GpuSettings(index=1)), folder)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_weights_come_and_go_pinned_or_not(
    standin: StandInCuda, device: CudaDevice, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cuda.PIN_SHARE", share)
    monkeypatch.setattr("workers.cuda.RING_BYTES", MIB)  # several turns of the two buffers
    monkeypatch.setattr("workers.cuda.PIN_CHUNK", MIB)  # several registrations
    toy, big = Toy().eval(), nn.Linear(1000, 1000)
    row = torch.randn(1, 1000)
    want = toy(TEXT), big(row)
    residency = packed(device, toy, big)
    assert ("not pinned" in device.note) == (share == 0)
    assert bool(standin.registered) and bool(device._pinned) == (share == 1)
    for _ in range(5):
        junk = [torch.empty(n * 1000) for n in range(5)]  # other addresses
        move = residency.reload()
        assert move is not None and move.copied_bytes == residency.arena_bytes == device.held_bytes
        assert torch.equal(toy(TEXT), want[0]) and torch.equal(big(row), want[1])
        assert residency.offload().copied_bytes == 0 and device.held_bytes == 0
        del junk
    residency.close()
    assert not device._pinned and (standin.registered == []) == (share == 1)


def test_a_driver_that_pins_only_some_is_served(
    standin: StandInCuda, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cuda.RING_BYTES", MIB)
    monkeypatch.setattr("workers.cuda.PIN_CHUNK", MIB)
    standin.pinnable = 2 * MIB
    big = nn.Linear(1000, 1000)
    want = big.weight.clone()
    residency = packed(device, big)
    assert "the driver refuses more" in device.note and "cannot be pinned either" in device.note
    residency.reload()
    assert torch.equal(big.weight, want)
    residency.close()
    assert standin.registered == []


def test_copies_wait_for_what_the_steps_still_do(
    standin: StandInCuda, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch may give a block memory that a kernel of the steps' stream has not left yet."""
    waited: list[list[object]] = []
    send = device._send
    monkeypatch.setattr(device, "_send", lambda *a: (waited.append([*device._stream.waited]), send(*a))[1])
    residency = packed(device, nn.Linear(10, 10))
    for turn in (1, 2):  # into new memory, and into memory for the block of before
        residency.reload()
        assert waited.pop() == [standin.default_stream] * turn and not waited
        residency.offload()
    residency.close()


def test_a_full_lease_is_out_of_memory(device: CudaDevice) -> None:
    residency = Residency(device, [nn.Linear(1000, 1000)])
    for lease in (0, residency.arena_bytes - MIB):
        device.limit(lease)
        with pytest.raises(OutOfMemory, match=r"^CUDA out of memory\. Tried to allocate \d+ bytes$"):
            residency.reload()
        assert device.held_bytes == 0 and not residency.resident
    device.limit(residency.arena_bytes + MIB)
    residency.reload()
    residency.close()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_no_room_is_out_of_memory_whoever_says_it(device: CudaDevice, error: RuntimeError) -> None:
    with pytest.raises(OutOfMemory), device.working(0):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
        ValueError("out of memory"),
    ],
)
def test_a_crash_stays_a_crash(device: CudaDevice, error: Exception) -> None:
    with pytest.raises(type(error)), device.working(0):
        raise error


def test_a_handle_that_cannot_be_made_in_a_broken_context_is_a_crash(standin: StandInCuda, device: CudaDevice) -> None:
    standin.broken = "CUDA error: device-side assert triggered"
    with pytest.raises(RuntimeError, match="device-side assert"), device.working(0):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    standin.broken = ""
