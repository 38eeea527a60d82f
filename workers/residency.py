"""A worker's weights: in RAM for good, and on the device while it holds a lease.

Packing moves each tensor of the modules into one host arena. `reload` is a few large copies into one device allocation;
`offload` drops that allocation, and copies back only what was written to. While the weights are away every place that
held one holds a stand-in on `meta`, and a forward of a module or of its direct children raises NoLease. Nothing is on
disk; a killed process leaves no device memory behind. What cannot be moved, and who may hold what: docs/swap.md.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import torch
from torch import nn

from workers.arena import Arena, plan
from workers.device import Device, OutOfMemory, SimulatedDevice, StillHeld, open_device
from workers.slots import Found, Slot, find

__all__ = [
    "Device",
    "Move",
    "NoLease",
    "OutOfMemory",
    "Residency",
    "SimulatedDevice",
    "StillHeld",
    "open_device",
]

MIB = 2**20
COPY_BYTES = 64 * MIB  # at least this much in one copy, so that the link is full
COPY_MOST = 256 * MIB  # and at most this: a reload can turn back between two
COPIES = 64  # about so many when the model is large
Fill = Callable[[str, torch.Tensor], None]


class NoLease(RuntimeError):
    """A forward while the weights are not on the device."""


class Move(NamedTuple):
    """One reload or offload: `bytes` came or went, `copied_bytes` of them were copied, at `gb_per_s` (10^9 bytes)."""

    bytes: int
    copied_bytes: int
    seconds: float
    gb_per_s: float
    device_before: int
    device_after: int


class Residency:
    """The weights of `modules` and where they are. Offloaded when made: the originals were freed while packing.

    A module built on `meta` is filled in place: `fill(name, tensor)` writes each tensor of it, in host memory.
    """

    def __init__(self, device: Device, modules: Sequence[nn.Module], fill: Fill | None = None) -> None:
        self.device = device
        self.longest_piece_s = 0.0
        self._block: torch.Tensor | None = None
        self._versions: list[int] = []
        self._addresses: list[int] = []
        self._modules = tuple(modules)
        self._found = found = find(self._modules)
        layout = plan(found.slots, found.flats)
        self.weights_bytes, self.arena_bytes = layout.weights_bytes, layout.total
        self._arena = Arena(layout.total)
        self._nothing = {s.dtype: torch.empty(0, dtype=s.dtype) for s in found.slots}
        with torch.no_grad(), torch.inference_mode(False):
            for unit in layout.units:
                self._arena.take(unit)
                for slot in unit.slots:
                    slot.packed = True
                    self._leave_original(slot, fill)
                self._arena.freed(sum(c.nbytes for c in unit.chunks))
        self._arena.trim()
        self._index(found)
        self._tell_cached(torch.device("meta"))
        device.pin(self._arena.host)
        me = weakref.ref(self)
        guarded = {id(m): m for root in self._modules for m in (root, *root.children())}
        self._hooks = [
            m.register_forward_pre_hook(lambda module, _: _check(me(), module), prepend=True) for m in guarded.values()
        ]

    @property
    def resident(self) -> bool:
        return self._block is not None

    @property
    def note(self) -> str:
        """One line for people: how it falls short, if it does."""
        return self.device.note

    def reload(
        self, turn_back: Callable[[], bool] = lambda: False, progress: Callable[[int], None] | None = None
    ) -> Move | None:
        """Bring all weights to the device; `progress` hears how many bytes have been sent. None: turned back between
        two copies. OutOfMemory: no room. After both nothing is held."""
        if self.resident:
            raise RuntimeError("reload: the weights are on the device already")
        before, began = self.device.held_bytes, time.perf_counter()
        if turn_back():
            return None
        block = self.device.allocate(self.arena_bytes)
        looked = self._piece(began)
        try:
            for start, end in copies(self.arena_bytes):
                if turn_back():
                    self.device.sync()
                    self.device.release(block)
                    return None
                self.device.copy_in(block, start, self._arena.host[start:end])
                looked = self._piece(looked)
                if progress:
                    progress(end)
            self.device.sync()
            self._attach(block)
        except BaseException:
            self._block = None
            self._detach()
            self.device.sync()
            self.device.release(block)
            raise
        now = self._piece(looked)
        seconds = now - began
        return Move(
            self.arena_bytes,
            self.arena_bytes,
            seconds,
            self.arena_bytes / seconds / 1e9,
            before,
            self.device.held_bytes,
        )

    def offload(self) -> Move:
        """Take all weights off the device. StillHeld: something holds a view of one, and its memory stays taken."""
        block = self._block
        if block is None:
            raise RuntimeError("offload: the weights are not on the device")
        before, began = self.device.held_bytes, time.perf_counter()
        with torch.no_grad(), torch.inference_mode(False):
            copied = self._save(block)
        self._detach()
        self._block = None
        try:
            self.device.release(block)
        except StillHeld:  # by an attribute that a module has got since it was packed?
            with torch.no_grad(), torch.inference_mode(False):
                copied += self._adopt()
            self._detach()
            self.device.release(block)
        seconds = time.perf_counter() - began
        speed = copied / seconds / 1e9
        return Move(self.arena_bytes, copied, seconds, speed, before, self.device.held_bytes)

    def close(self) -> None:
        """Give back device and host memory. The modules stay empty."""
        if self.resident:
            self.offload()
        for hook in self._hooks:
            hook.remove()
        self.device.unpin(self._arena.host)
        self._arena = Arena(0)

    # -- packing ----------------------------------------------------------------------------------------------------

    def _leave_original(self, slot: Slot, fill: Fill | None) -> None:
        """The bytes are in the arena: places get the stand-in, the original storage loses its last owner."""
        for place in slot.places:
            place.holder[place.key] = slot.away
        nothing = self._nothing[slot.dtype]
        if slot.on_meta:
            if fill is None:
                raise ValueError(f"{slot.name} is on meta; say how to fill it")
            fill(slot.name, self._view(self._arena.host, slot))
        if slot.on_meta or slot.live.is_inference():  # such an object cannot point elsewhere, nor count its versions
            is_parameter = isinstance(slot.live, nn.Parameter)
            slot.live = nn.Parameter(nothing.clone(), requires_grad=False) if is_parameter else nothing.clone()
        else:
            slot.live.data = nothing

    def _index(self, found: Found) -> None:
        """What each swap runs over, flat: a swap of a small model is as long as these loops."""
        self._slots = found.slots
        self._lives = [s.live for s in found.slots]
        self._swaps = [(p.holder, p.key, s.live, s.away) for s in found.slots for p in s.places]
        self._empties = [(s.live, self._nothing[s.dtype]) for s in found.slots]

    # -- on the device and off it -----------------------------------------------------------------------------------

    def _attach(self, block: torch.Tensor) -> None:
        """Every slot's tensor becomes a view into `block`, and goes back to its places."""
        with torch.no_grad(), torch.inference_mode(False):
            whole: dict[torch.dtype, torch.Tensor] = {}
            flats: dict[int, torch.Tensor] = {}
            for slot in self._slots:
                if slot.own is not None:
                    slot.live.data = slot.own.to(self.device.torch_device)
                elif slot.flat_at >= 0:
                    flat = flats.get(slot.flat_at)
                    if flat is None:  # cuDNN wants a storage that begins where the weights do
                        flat = flats[slot.flat_at] = torch.from_dlpack(block[slot.flat_at : slot.flat_end])
                    slot.live.data = self._view(flat, slot, slot.flat_at)
                else:
                    base = whole.get(slot.dtype)
                    if base is None:
                        size = slot.dtype.itemsize
                        base = whole[slot.dtype] = block[: len(block) // size * size].view(slot.dtype)
                    slot.live.data = base.as_strided(slot.size, slot.stride, slot.offset // slot.dtype.itemsize)
            for holder, key, live, _ in self._swaps:
                holder[key] = live
        self._tell_cached(self.device.torch_device)
        self._versions = [t._version for t in self._lives]
        self._addresses = [*map(torch.Tensor.data_ptr, self._lives)]
        self._block = block

    def _detach(self) -> None:
        for holder, key, _, away in self._swaps:
            holder[key] = away
        for live, nothing in self._empties:
            live.data = nothing
        self._tell_cached(torch.device("meta"))

    def _view(self, of: torch.Tensor, slot: Slot, base: int = 0) -> torch.Tensor:
        size = slot.dtype.itemsize
        start = slot.offset - base
        return of[start : start + slot.nbytes // size * size].view(slot.dtype).as_strided(slot.size, slot.stride)

    def _tell_cached(self, device: torch.device) -> None:
        for module in self._found.cached:
            module._device = device  # type: ignore[assignment]

    # -- what a step has changed ------------------------------------------------------------------------------------

    def _save(self, block: torch.Tensor) -> int:
        """Bring what was written to since the reload back to the host; returns how many bytes that were."""
        versions = [t._version for t in self._lives]
        addresses = [*map(torch.Tensor.data_ptr, self._lives)]
        training = [slots for module, slots in self._found.norms if module.training]
        same = addresses == self._addresses and self._in_place()
        if same and versions == self._versions and not training:
            return 0
        moved = {id(s) for s, now, then in zip(self._slots, versions, self._versions, strict=True) if now != then}
        # Batch norm's kernel writes the running statistics without a word; only the count of batches moves.
        for group in [*training, *(g for g in self._found.siblings if any(id(s) in moved for s in g))]:
            moved |= {id(s) for s in group}
        elsewhere = {id(s) for s, now, then in zip(self._slots, addresses, self._addresses, strict=True) if now != then}
        before = self._slots
        done = 0 if same else self._adopt(elsewhere)
        for slot in before:
            if id(slot) not in moved or id(slot) in elsewhere:
                continue
            if slot.own is None:
                self.device.copy_out(block, slot.offset, self._arena.host[slot.offset : slot.offset + slot.nbytes])
                done += slot.nbytes
            else:
                done += slot.keep()
        return done

    def _in_place(self) -> bool:
        """No place has got another tensor than ours since the reload."""
        try:
            for holder, key, live, _ in self._swaps:
                if holder[key] is not live:
                    return False
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def _adopt(self, elsewhere: Container[int] = ()) -> int:
        """Tensors that the modules have made themselves, or pointed elsewhere, live on the host and travel one by one
        from now on (a cache that grew, 4-bit weights that a CPU kernel repacks). Returns the bytes copied."""
        found = find(self._modules, self._slots)
        was = {id(s) for s in self._slots}
        kept = [s for s in found.slots if id(s) in elsewhere or id(s) not in was]
        done = sum(slot.keep() for slot in kept)
        self._found = found
        self._nothing |= {s.dtype: torch.empty(0, dtype=s.dtype) for s in kept}
        self._index(found)
        return done

    def _piece(self, since: float) -> float:
        """One uninterruptible piece, which began at `since`, has ended."""
        now = time.perf_counter()
        self.longest_piece_s = max(self.longest_piece_s, now - since)
        return now


def copies(nbytes: int) -> list[tuple[int, int]]:
    """Cut a reload into copies: of 64 MiB or more, as equal as can be."""
    least = min(max(COPY_BYTES, nbytes // COPIES), COPY_MOST)
    n = max(1, nbytes // least)
    edges = [nbytes * i // n // 4096 * 4096 for i in range(n)] + [nbytes]
    return list(zip(edges, edges[1:], strict=False))


def _check(residency: Residency | None, module: nn.Module) -> None:
    if residency is None or not residency.resident:
        raise NoLease(f"{type(module).__name__} was called without a lease: its weights are not on the device")
