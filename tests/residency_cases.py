"""What must hold of residency on every device: run on the simulated one by test_residency, on CUDA by test_cuda.

The fixture `device` comes from the file that imports these; nothing is held on it, and its limit is 0.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.torch_models import FAMILIES, digest
from workers.residency import COPY_BYTES, FULL_LOOKS, Device, NoLease, OutOfMemory, Residency, StillHeld, copies

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
CYCLES = int(os.environ.get("TEST_CYCLES") or 300)  # on the simulated card; 1,000 on a real one, which is quicker


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def rss() -> int:
    """Bytes that are resident, without what the allocator keeps of a forward that is over (10 MB, or none)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * PAGE


class Toy(nn.Module):
    """Everything that a module may keep a tensor in, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(500, 64)
        self.head = nn.Linear(64, 500, bias=False)
        self.head.weight = self.embed.weight  # tied: one Parameter, two places
        self.norm = nn.BatchNorm1d(64)
        self.lstm = nn.LSTM(64, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.register_buffer("scale", torch.rand(64) + 0.5, persistent=False)
        self.register_buffer("where", torch.eye(4, device="cpu").to_sparse(), persistent=False)
        self.register_buffer("counted", torch.zeros(64))
        self.plain = torch.rand(64)
        self.listed = [torch.rand(64), {"deep": torch.rand(64)}]
        self.paired = (torch.rand(64), "text")
        both = torch.rand(2, 64)
        self.first, self.second = both[0], both[1]  # two views of one storage
        self.wide = torch.rand(64).expand(3, 64)  # a stride of 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) * self.scale + self.plain + self.listed[0] - self.listed[1]["deep"] + self.paired[0]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = self.lstm(x)[0] + self.first - self.second + self.wide.mean(0) + self.counted
        return self.head(x)


TEXT = torch.arange(40).reshape(2, 20)


def packed(device: Device, *modules: nn.Module) -> Residency:
    residency = Residency(device, modules)
    device.limit(residency.arena_bytes + 256 * MIB)
    return residency


@pytest.mark.speech
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_identical_after_hundreds_of_cycles(device: Device, family: str) -> None:
    cycles = CYCLES if device.torch_device.type == "cpu" else 1000
    model, forward, child = FAMILIES[family]()
    residency = packed(device, model)
    assert residency.arena_bytes <= 1.02 * residency.weights_bytes
    ties = [n for n, p in model.named_parameters(remove_duplicate=False)]
    for call in (forward, child):
        with pytest.raises(NoLease, match="without a lease"):
            call(device.torch_device)
    residency.reload()
    want = digest(forward(device.torch_device))
    forward(device.torch_device)
    early = 0
    for cycle in range(cycles):
        assert residency.offload().copied_bytes == 0
        assert device.held_bytes == 0
        if cycle == 50:
            early = rss()
        residency.reload()
        if cycle in (0, 49, cycles // 2, cycles - 1):
            assert digest(forward(device.torch_device)) == want
    residency.offload()
    grown = (rss() - early) / (cycles - 50) * 100
    assert grown <= MIB, f"RSS grows by {grown / MIB:.2f} MiB in 100 cycles"
    assert ties == [n for n, p in model.named_parameters(remove_duplicate=False)]
    with pytest.raises(NoLease):
        forward(device.torch_device)
    residency.close()


@pytest.mark.speech
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_no_output(device: Device, family: str) -> None:
    model, forward, _ = FAMILIES[family]()
    if device.torch_device.type == "cpu":  # elsewhere other kernels compute it
        want = digest(forward(torch.device("cpu")))
        residency = packed(device, model)
        residency.reload()
        assert digest(forward(device.torch_device)) == want
        residency.close()


@pytest.mark.pure
def test_every_kind_of_tensor_moves(device: Device) -> None:
    toy = Toy().eval()
    want = toy(TEXT)
    residency = packed(device, toy)
    assert {t.device.type for t in toy.parameters()} == {"meta"}
    assert toy.plain.is_meta and toy.listed[0].is_meta and toy.listed[1]["deep"].is_meta and toy.paired[0].is_meta
    assert {w.device.type for w in toy.lstm._flat_weights} == {"meta"}
    assert toy.where.layout == torch.sparse_coo and toy.where.device.type == "cpu"
    residency.reload()
    here = device.torch_device
    assert {t.device for t in toy.parameters()} == {here}
    assert {t.device for n, t in toy.named_buffers() if n != "where"} == {here}
    assert toy.plain.device == toy.paired[0].device == here and toy.paired[1] == "text"
    assert toy.head.weight is toy.embed.weight
    assert toy.first.untyped_storage().data_ptr() == toy.second.untyped_storage().data_ptr()
    assert toy.wide.stride() == (0, 1)
    assert torch.allclose(toy(TEXT.to(here)).cpu(), want, atol=1e-5)
    residency.close()


@pytest.mark.pure
def test_an_lstm_stands_back_to_back_in_a_storage_of_its_own(device: Device) -> None:
    """cuDNN takes the weights as they are only if they begin where their storage does, matrices before biases."""
    toy = Toy()
    residency = packed(device, nn.Linear(3, 5), toy)
    residency.reload()
    at = toy.lstm._flat_weights[0].data_ptr()
    assert at == toy.lstm._flat_weights[0].untyped_storage().data_ptr()
    for weight in sorted(toy.lstm._flat_weights, key=lambda w: w.dim() < 2):
        assert weight.data_ptr() == at
        at += weight.nbytes
    assert [r() for r in toy.lstm._flat_weight_refs] == toy.lstm._flat_weights
    assert list(toy.lstm.parameters()) == toy.lstm._flat_weights
    residency.close()


@pytest.mark.pure
def test_a_lightning_modules_device_is_told(device: Device) -> None:
    class StandInLightning(nn.Linear):
        """Remembers its device as LightningModules do."""

        _device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__(4, 4)
            self._device = torch.device("cpu")

    model = StandInLightning()
    residency = packed(device, model)
    assert model._device.type == "meta"
    residency.reload()
    assert model._device == device.torch_device
    residency.close()


@pytest.mark.pure
def test_what_was_written_to_is_copied_back(device: Device) -> None:
    toy = Toy().eval()
    residency = packed(device, toy)
    residency.reload()
    toy.counted.add_(2)
    assert residency.offload().copied_bytes >= toy.counted.nbytes
    residency.reload()
    assert toy.counted.tolist() == [2.0] * 64
    assert residency.offload().copied_bytes == 0
    residency.close()


@pytest.mark.pure
@pytest.mark.parametrize("count_batches", [True, False])
def test_running_statistics_are_copied_back(device: Device, count_batches: bool) -> None:
    """The kernel of batch norm writes them without moving their version."""
    norm = nn.BatchNorm1d(8)
    if not count_batches:
        norm.num_batches_tracked = None
    residency = packed(device, norm)
    residency.reload()
    norm(torch.randn(32, 8).to(device.torch_device) + 5)
    mean = norm.running_mean.tolist()
    assert min(mean) > 0.1
    residency.offload()
    residency.reload()
    assert norm.running_mean.tolist() == mean
    residency.close()


@pytest.mark.pure
def test_what_a_module_makes_itself_travels_too(device: Device) -> None:
    """A buffer made anew, a view kept as an attribute, a weight pointed elsewhere: none keeps device memory."""
    toy = Toy().eval()
    residency = packed(device, toy)
    residency.reload()
    here = device.torch_device
    toy.scale = torch.full((64,), 3.0, device=here)
    toy.kept = toy.plain[:10]
    toy.listed[0].data = torch.full((64,), 4.0, device=here)
    kept = toy.kept.tolist()
    with torch.inference_mode():
        toy.cache = torch.ones(5, device=here)
    residency.offload()
    assert device.held_bytes == 0
    for _ in range(2):
        residency.reload()
        assert toy.scale.tolist() == [3.0] * 64 and toy.listed[0].tolist() == [4.0] * 64
        assert toy.kept.tolist() == kept and toy.cache.tolist() == [1.0] * 5
        toy.cache.add_(0)
        toy(TEXT.to(here))
        residency.offload()
        assert device.held_bytes == 0
    residency.reload()
    toy.scale.add_(1)
    residency.offload()
    residency.reload()
    assert toy.scale.tolist() == [4.0] * 64
    residency.close()


@pytest.mark.pure
def test_a_view_that_somebody_holds_never_dangles(device: Device) -> None:
    big = nn.Linear(6000, 6000)  # more than library caches
    residency = packed(device, big)
    residency.reload()
    view = big.weight[0]
    values = view.clone()
    with pytest.raises(StillHeld):
        residency.offload()
    assert torch.equal(view, values) and device.held_bytes >= big.weight.nbytes  # still counted, still there
    with pytest.raises(NoLease):
        big(values)
    residency.reload()
    with pytest.raises(StillHeld):  # it does not count as ours the second time
        residency.offload()
    assert torch.equal(view, values)
    del view
    residency.reload()
    residency.offload()
    assert device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_a_tensor_that_somebody_has_loses_its_elements(device: Device) -> None:
    """By name, by a weak reference, or inside a graph of autograd; nobody can reach the others, which stay views."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    residency = packed(device, model)
    residency.reload()
    had, weak = model[0].weight, weakref.ref(model[1].weight)
    want = had.tolist()
    with torch.enable_grad():
        graph = (model[2].bias * model[2].bias).sum()
    for _ in range(2):
        residency.offload()
        assert had.numel() == 0 and weak().numel() == 0
        with pytest.raises(RuntimeError):
            had @ torch.ones(8, 8, device=had.device)
        with pytest.raises(RuntimeError):
            graph.backward(retain_graph=True)
        views = residency._views
        assert {id(t) for t in views._taken.values()} == {id(had), id(weak()), id(views.slots[5].live)}
        residency.reload()
        assert had is model[0].weight and had.tolist() == want and weak() is model[1].weight
    graph.backward()
    bias = model[2].bias
    assert torch.equal(bias.grad, 2 * bias)
    bias.grad = None
    residency.close()


@pytest.mark.pure
def test_a_weak_reference_beside_those_of_a_recurrent_module_is_seen(device: Device) -> None:
    """Python gives both the same object."""
    lstm = nn.LSTM(8, 8)
    residency = packed(device, lstm)
    residency.reload()
    residency.offload()
    assert not residency._views._taken and not residency._views._go
    residency.reload()
    weak = weakref.ref(lstm.weight_ih_l0)
    view = lstm.weight_hh_l0[0]
    with pytest.raises(StillHeld):
        residency.offload()
    assert weak().numel() == 0 and view.numel() == 8
    del view
    residency.reload()
    assert weak() is lstm.weight_ih_l0 and weak().numel() == 256
    del weak
    residency.offload()
    assert not residency._views._taken and device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_old_memory_of_a_tensor_that_was_pointed_elsewhere_is_held(device: Device) -> None:
    """As many uses of the block as before, but not the same ones."""
    big = nn.Linear(6000, 6000, bias=False)
    residency = packed(device, big)
    device.limit(3 * residency.arena_bytes)
    residency.reload()
    old = big.weight.detach()
    want = old[0].tolist()
    big.weight.data = torch.full((6000, 6000), 2.0, device=device.torch_device)
    with pytest.raises(StillHeld):
        residency.offload()
    assert old[0].tolist() == want
    del old
    for _ in range(2):
        residency.reload()
        assert big.weight[0].tolist() == [2.0] * 6000
        residency.offload()
        assert device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_a_model_that_has_kept_still_is_looked_at_once_its_memory_is_free(device: Device) -> None:
    """If it points a tensor elsewhere then, somebody may look at nothing, but never at what is written later."""
    big = nn.Linear(6000, 6000, bias=False)
    residency = packed(device, big)
    device.limit(3 * residency.arena_bytes)
    for _ in range(FULL_LOOKS):
        residency.reload()
        residency.offload()
    residency.reload()
    old = big.weight.detach()
    want = old[0].tolist()
    big.weight.data = torch.full((6000, 6000), 2.0, device=device.torch_device)
    with pytest.raises(StillHeld):
        residency.offload()
    seen = old[0].tolist()
    assert seen == ([0.0] * 6000 if device.addresses_stay else want)
    residency.reload()
    assert old[0].tolist() == seen and big.weight[0].tolist() == [2.0] * 6000
    del old
    residency.offload()
    assert device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_neighbours_of_what_was_written_are_copied_once(device: Device) -> None:
    """They share a version counter with it until then."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    residency = packed(device, model)
    residency.reload()
    want = [p.tolist() for p in model.parameters()]
    for cycle in range(3):
        model[3].weight.add_(1)
        copied = residency.offload().copied_bytes
        assert copied == model[3].weight.nbytes if cycle else copied >= model[3].weight.nbytes
        residency.reload()
    assert residency.offload().copied_bytes == 0
    residency.reload()
    now = [p.tolist() for p in model.parameters()]
    assert [i for i in range(16) if now[i] != want[i]] == [6]
    residency.close()


@pytest.mark.pure
def test_packed_modules_can_be_trained_on(device: Device) -> None:
    """Tensors stay what they are for autograd: hooks, who wants a gradient, and no version that moves under a graph."""
    layers = [layer for _ in range(2) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8))]
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    model[0].bias.requires_grad_(False)
    heard: list[torch.Tensor] = []
    model[4].weight.register_hook(heard.append)
    before = [*model.parameters()]
    residency = packed(device, model)
    residency.reload()
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))
    with torch.enable_grad():
        model(torch.randn(16, 8, device=device.torch_device)).sum().backward()
    assert len(heard) == 1
    assert [n for n, p in model.named_parameters() if p.grad is None] == ["0.bias"]
    model.zero_grad()
    residency.close()


@pytest.mark.pure
def test_a_view_in_a_garbage_cycle_is_let_go(device: Device) -> None:
    big = nn.Linear(6000, 6000)
    residency = packed(device, big)
    residency.reload()
    cycle: list[Any] = [big.weight[0]]
    cycle.append(cycle)
    del cycle
    residency.offload()
    assert device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_over_the_lease_raises_and_holds_nothing(device: Device) -> None:
    model = nn.Linear(4000, 4000)  # 61 MiB
    residency = Residency(device, [model])
    for lease in (0, residency.arena_bytes - MIB):
        device.limit(lease)
        with pytest.raises(OutOfMemory):
            residency.reload()
        assert device.held_bytes == 0 and not residency.resident
    device.limit(residency.arena_bytes + 40 * MIB)
    residency.reload()
    with pytest.raises(OutOfMemory), device.working(200 * MIB):
        torch.empty(200 * MIB, dtype=torch.uint8, device=device.torch_device)
    assert residency.arena_bytes <= device.held_bytes <= residency.arena_bytes + 40 * MIB
    with device.working(20 * MIB):
        torch.empty(20 * MIB, dtype=torch.uint8, device=device.torch_device)
    assert device.peak_bytes >= residency.arena_bytes + 20 * MIB
    residency.offload()
    assert device.held_bytes == 0
    residency.close()


@pytest.mark.pure
def test_a_reload_turns_back_between_two_copies(device: Device) -> None:
    model = nn.Linear(8000, 8000, bias=False)  # 244 MiB: three copies
    want = model.weight[::1000, ::1000].clone()
    residency = packed(device, model)
    sent: list[int] = []
    assert residency.reload(turn_back=lambda: len(sent) == 2, progress=sent.append) is None
    assert len(sent) == 2 and sent[-1] < residency.arena_bytes
    assert device.held_bytes == 0 and not residency.resident and model.weight.is_meta
    assert residency.reload(turn_back=lambda: True) is None and device.held_bytes == 0
    move = residency.reload(progress=sent.append)
    assert move is not None and move.bytes == move.copied_bytes == residency.arena_bytes == sent[-1]
    assert move.device_before == 0 and move.device_after >= residency.arena_bytes
    assert residency.longest_piece_s > 0
    assert torch.equal(model.weight[::1000, ::1000].cpu(), want)
    residency.close()


@pytest.mark.pure
def test_a_model_on_meta_is_filled_in_place(device: Device) -> None:
    with torch.device("meta"):
        model = Toy()
    filled: list[str] = []

    def fill(name: str, tensor: torch.Tensor) -> None:
        filled.append(name)
        tensor.fill_(len(filled))

    residency = Residency(device, [model], fill)
    device.limit(residency.arena_bytes + MIB)
    residency.reload()
    assert len(set(filled)) == len(filled)
    assert model.embed.weight.unique().tolist() == [filled.index("Toy[0].embed.weight") + 1]
    assert model.head.weight is model.embed.weight
    residency.close()
    with pytest.raises(ValueError, match="on meta"), torch.device("meta"):
        Residency(device, [nn.Linear(2, 2)])


@pytest.mark.pure
def test_what_cannot_be_moved_is_refused(device: Device) -> None:
    with pytest.raises(TypeError, match="TorchScript"):
        Residency(device, [torch.jit.script(nn.Linear(2, 2))])


@pytest.mark.pure
def test_everything_is_freed_in_the_end(device: Device) -> None:
    model = nn.Linear(4000, 4000)
    residency = packed(device, model)
    arena = residency._arena.memory
    original = weakref.ref(model.weight)
    residency.reload()
    residency.close()
    assert device.held_bytes == 0 and arena() is None
    del model, residency
    gc.collect()
    assert original() is None


@pytest.mark.pure
@pytest.mark.parametrize("nbytes", [1, 4096, COPY_BYTES - 1, COPY_BYTES, 3 * COPY_BYTES + 5, 14 * 2**30])
def test_copies_cover_everything_once(nbytes: int) -> None:
    cut = copies(nbytes)
    assert [a for a, _ in cut] == [0, *[b for _, b in cut[:-1]]] and cut[-1][1] == nbytes
    sizes = [b - a for a, b in cut]
    assert nbytes < COPY_BYTES or min(sizes) >= COPY_BYTES - 4096
    assert len(sizes) <= 64


def quantised() -> nn.Module:
    """4-bit layers of bitsandbytes with nested statistics, quantised on the CPU."""
    import bitsandbytes

    torch.manual_seed(5)
    layers = [bitsandbytes.nn.Linear4bit(256, 256, quant_type="nf4", compress_statistics=True) for _ in range(3)]
    return nn.Sequential(*layers).to("cpu").eval()


@pytest.mark.pure
def test_the_memory_is_free_before_an_offload_is_through(device: Device) -> None:
    """What it hears then is true, and a place that holds another tensor by then keeps it."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    residency = packed(device, model)
    heard: list[tuple[int, bool]] = []
    for _ in range(FULL_LOOKS + 2):
        residency.reload()
        model[1].bias = nn.Parameter(torch.full((8,), 5.0, device=device.torch_device), requires_grad=False)
        residency.offload(lambda: heard.append((device.held_bytes, residency.resident)))
        assert heard.pop() == (0, False) and not heard
        assert {p.device.type for p in model.parameters()} == {"meta"}
    residency.reload()
    assert model[1].bias.tolist() == [5.0] * 8
    residency.close()
