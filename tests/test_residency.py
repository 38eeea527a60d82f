"""Residency on the simulated device: the cases of every device, its capacity, its faults, and what a kill leaves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from common.card import SimulatedCard
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.residency_cases import *  # noqa: F403
from tests.residency_cases import MIB, TEXT, Toy, packed, quantised
from workers.arena import Arena, plan
from workers.residency import Device, OutOfMemory, open_device
from workers.slots import find
from workers.views import Views

CAPACITY_MIB = 1500


def simulated(settings: Settings, **gpu: object) -> Settings:
    gpu = {"device": "simulated", "simulated_mib": CAPACITY_MIB} | gpu
    return msgspec.structs.replace(settings, gpu=msgspec.structs.replace(settings.gpu, **gpu))


@pytest.fixture
def device(settings: Settings, folder: Path) -> Iterator[Device]:
    device = open_device(simulated(settings), folder, "transcriber")
    yield device
    assert device.held_bytes == 0


@pytest.mark.pure
def test_the_link_is_as_fast_as_set(settings: Settings, folder: Path) -> None:
    device = open_device(simulated(settings, simulated_gb_s=0.5), folder, "transcriber")
    residency = packed(device, nn.Linear(4000, 4000))
    move = residency.reload()
    assert move is not None and move.gb_per_s <= 0.5  # less where the machine is busy
    assert residency.offload().seconds < move.seconds / 2
    residency.close()


@pytest.mark.pure
def test_a_full_card_is_out_of_memory(settings: Settings, folder: Path) -> None:
    device = open_device(simulated(settings, simulated_mib=50), folder, "transcriber")
    residency = packed(device, nn.Linear(4000, 4000))
    with pytest.raises(OutOfMemory, match="free"):
        residency.reload()
    assert device.held_bytes == 0


@pytest.mark.pure
def test_fault_switches(device: Device, folder: Path) -> None:
    residency = packed(device, nn.Linear(10, 10))
    faults = folder / "gpu.faults"
    faults.write_text("summarizer oom-reload 9\ntranscriber oom-reload 2\ntranscriber oom-step 1\n")
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="switched"):
            residency.reload()
    assert residency.reload() is not None
    with pytest.raises(OutOfMemory, match="switched"), device.working(1):
        pytest.fail("the step happened")
    with device.working(1):
        pass
    residency.offload()
    faults.write_text("transcriber lag-reload 0.2\ntranscriber lag-step 0.2")
    move = residency.reload()
    assert move is not None and move.seconds >= 0.2 and residency.longest_piece_s >= 0.2
    began = time.monotonic()
    with device.working(1):
        assert time.monotonic() - began >= 0.2
    residency.close()


@pytest.mark.pure
def test_a_hang_holds_its_memory_until_the_line_is_gone(device: Device, folder: Path) -> None:
    residency = packed(device, nn.Linear(1000, 1000))
    (folder / "gpu.faults").write_text("transcriber hang-reload\n")
    work = threading.Thread(target=residency.reload)
    work.start()
    wait_for(lambda: device.held_bytes > 0)
    assert work.is_alive() and not residency.resident
    (folder / "gpu.faults").unlink()
    work.join(10)
    assert residency.resident
    residency.close()


HOLDER = """
import sys, time, torch
from pathlib import Path
from common.settings import load
from workers.residency import Residency, open_device
settings = load(None, ("gpu.device=simulated", "gpu.simulated_mib=400"), {})
device = open_device(settings, Path(sys.argv[1]), "transcriber")
device.limit(2**30)
residency = Residency(device, [torch.nn.Linear(6000, 6000)])
residency.reload()
print("resident", flush=True)
time.sleep(600)
"""


@pytest.mark.processes
def test_a_killed_holder_frees_its_granules(settings: Settings, folder: Path, processes: Processes) -> None:
    holder = processes.spawn([sys.executable, "-c", HOLDER, str(folder)], "holder")
    wait_for(lambda: "resident" in holder.output(), 60)
    card = SimulatedCard(folder, simulated(settings, simulated_mib=400))
    assert card.by_pid() == {holder.pid: 138 * MIB}
    holder.kill()
    assert card.by_pid() == {}
    assert card.take(399 * MIB)


PEAK = """
import sys, torch
from pathlib import Path
from common.settings import load
from workers.residency import Residency, open_device
def status(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024
torch.set_num_threads(1)
device = open_device(load(None, ("gpu.device=simulated",), {}), Path(sys.argv[1]), "transcriber")
Residency(device, [torch.nn.Linear(10, 10)])
base = status("VmRSS")
model = torch.nn.Sequential(*(torch.nn.Linear(2000, 2000) for _ in range(30)))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
residency = Residency(device, [model])
print((status("VmHWM") - base) / residency.weights_bytes, (status("VmRSS") - base) / residency.weights_bytes)
"""


@pytest.mark.processes
def test_packing_frees_the_originals_as_it_goes(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True)
    peak, after = map(float, done.stdout.split())
    assert peak <= 1.1 and after <= 1.03, done.stdout


class QuantState:
    """A stand-in for bitsandbytes' (which needs its package, and whose CPU kernels repack)."""

    def __init__(self, nested: bool) -> None:
        self.absmax, self.code = torch.rand(64), torch.rand(16)
        self.offset = torch.rand(()) if nested else None
        self.state2 = QuantState(False) if nested else None
        self.shape = torch.Size((8, 8))


@pytest.mark.pure
def test_a_quant_state_moves_with_all_it_nests(device: Device) -> None:
    model = nn.Linear(8, 8)
    model.weight.quant_state = model.quant_state = state = QuantState(True)
    tensors = lambda: [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]  # noqa: E731
    want = [t.tolist() for t in tensors()]
    residency = packed(device, model)
    assert all(t.is_meta for t in tensors())
    residency.reload()
    assert [t.tolist() for t in tensors()] == want and {t.device for t in tensors()} == {device.torch_device}
    assert model.weight.quant_state is state
    residency.close()


if importlib.util.find_spec("bitsandbytes"):

    @pytest.mark.pure
    def test_bitsandbytes_4_bit_layers(device: Device) -> None:
        model = quantised()
        x = torch.randn(3, 256)
        residency = packed(device, model)
        residency.reload()
        want = model(x)
        for _ in range(5):
            residency.offload()
            assert device.held_bytes == 0
            residency.reload()
            assert torch.equal(model(x), want)
        residency.close()


@pytest.mark.pure
def test_a_block_may_come_back_at_another_address() -> None:
    """As on CUDA: the storage of the same block is emptied, and later filled somewhere else."""
    toy = Toy().eval()
    want = toy(TEXT)
    found = find([toy])
    layout = plan(found.slots, found.flats)
    arena = Arena(layout.total)
    for unit in layout.units:
        arena.take(unit)
    views = Views([toy], found)
    block = torch.empty(layout.total, dtype=torch.uint8)
    used = []
    for _ in range(3):
        block.copy_(arena.host)
        views.attach(block)
        assert torch.equal(toy(TEXT), want) and views.leave() is None
        assert not views.others()
        used.append(block.data_ptr())
        block.untyped_storage().resize_(0)
        used.append(torch.ones(layout.total, dtype=torch.uint8))  # takes the place
        block.untyped_storage().resize_(layout.total)
    assert len({a for a in used if isinstance(a, int)}) > 1


@pytest.mark.pure
def test_nothing_of_cuda_on_import() -> None:
    code = "import workers.residency, workers.cuda, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
