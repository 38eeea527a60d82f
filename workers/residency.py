"""A worker's weights: in RAM for good, and on the device while it holds a lease.

Packing moves each tensor of the modules into one host arena. `reload` is a few large copies into one device allocation;
`offload` drops that allocation, and copies back only what was written to. While the weights are away every place that
held one holds a stand-in on `meta`, and a forward of a module or of its direct children raises NoLease. Nothing is on
disk; a killed process leaves no device memory behind. What cannot be moved, and who may hold what: docs/swap.md.
"""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

import torch
from torch import nn

from workers.arena import Arena, plan
from workers.device import Device, OutOfMemory, StillHeld, open_device
from workers.slots import Slot, find
from workers.views import Changes, Views

__all__ = [
    "Device",
    "Move",
    "NoLease",
    "OutOfMemory",
    "Residency",
    "StillHeld",
    "open_device",
]

MIB = 2**20
COPY_BYTES = 64 * MIB  # at least this much in one copy, so that the link is full
COPY_MOST = 256 * MIB  # and at most this: a reload can turn back between two
FULL_LOOKS = 3  # so many offloads look at every tensor first: what a model does to its own, it does from the start
COPIES = 64  # about so many when the model is large
Fill = Callable[[str, torch.Tensor], None]
Freed = Callable[[], None]


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
        self.resident = False
        self.longest_piece_s = 0.0
        self._modules = tuple(modules)
        found = find(self._modules)
        layout = plan(found.slots, found.flats)
        self.weights_bytes, self.arena_bytes = layout.weights_bytes, layout.total
        self._arena = Arena(layout.total)
        with torch.no_grad(), torch.inference_mode(False):
            for unit in layout.units:
                self._arena.take(unit)
                for slot in unit.slots:
                    self._leave_original(slot, fill)
                self._arena.freed(sum(c.nbytes for c in unit.chunks))
        self._arena.trim()
        self._views = Views(self._modules, found)
        self._views.detach()
        self._block: torch.Tensor | None = None
        self._copies = copies(self.arena_bytes)
        self._looks = 0  # offloads so far
        self._kept = False  # the block was not freed by the last offload: somebody held a view
        device.pin(self._arena.host)
        me = weakref.ref(self)
        guarded = {id(m): m for root in self._modules for m in (root, *root.children())}
        self._hooks = [
            m.register_forward_pre_hook(lambda module, _: _check(me(), module), prepend=True) for m in guarded.values()
        ]

    @property
    def note(self) -> str:
        """One line for people: how it falls short, if it does."""
        return self.device.note

    def _leave_original(self, slot: Slot, fill: Fill | None) -> None:
        """The bytes are in the arena: the original storage loses its last owner."""
        slot.packed = True
        for place in slot.places:
            place.holder[place.key] = slot.away
        empty = torch.empty(0, dtype=slot.dtype)
        if slot.on_meta:
            if fill is None:
                raise ValueError(f"{slot.name} is on meta; say how to fill it")
            fill(slot.name, slot.view(self._arena.host))
        if slot.on_meta or slot.live.is_inference():  # such an object cannot point elsewhere, nor count its versions
            slot.live = nn.Parameter(empty, requires_grad=False) if isinstance(slot.live, nn.Parameter) else empty
        else:
            slot.live.data = empty

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
        if self._block is None or not self._kept:
            self._block = self.device.allocate(self.arena_bytes, self._block)
        self._kept = True
        looked = self._piece(began)
        try:
            for start, end in self._copies:
                if turn_back():
                    self.device.sync()
                    self._free()
                    return None
                self.device.copy_in(self._block, start, self._arena.host[start:end])
                looked = self._piece(looked)
                if progress:
                    progress(end)
            self._views.attach(self._block)  # while the last copies are still under way
            self.device.sync()
        except BaseException:
            self._views.detach()
            self.device.sync()
            self._free()
            raise
        self.resident = True
        size, seconds = self.arena_bytes, self._piece(looked) - began
        return Move(size, size, seconds, size / seconds / 1e9, before, self.device.held_bytes)

    def offload(self, freed: Freed = lambda: None) -> Move:
        """Take all weights off the device. `freed` hears of it as soon as the memory is given back, which may be before
        their places have got stand-ins. StillHeld: something holds a view of one; mostly its memory stays taken."""
        if self._block is None or not self.resident:
            raise RuntimeError("offload: the weights are not on the device")
        before, began, copied = self.device.held_bytes, time.perf_counter(), 0
        # The rule, for frozen weights: nothing to save and nobody to harm, so that the rest can wait for the memory.
        at_once = self._looks >= FULL_LOOKS and self.device.addresses_stay and self._views.untouched()
        self._looks += 1
        if not at_once:
            if changes := self._views.leave():
                copied = self._save(self._block, changes)
                self._views.detach()
            self.resident = False
            copied += self._clear()
        self.resident = False
        copied += self._release()
        seconds = time.perf_counter() - began
        freed()
        if at_once and (elsewhere := self._views.vacate()) is not None:
            self._keep_strays(elsewhere)
            if elsewhere:  # each that left the block made room in the count for one who views it
                self._block = None  # and is never filled again under that one's eyes
                raise StillHeld(
                    "something outside the modules views their weights, whose memory is gone: it finds zeros"
                )
        return Move(self.arena_bytes, copied, seconds, copied / seconds / 1e9, before, self.device.held_bytes)

    def trim(self) -> None:
        """Give back to the system what the allocator keeps of a large step: no other step may be as large again."""
        self._arena.trim()

    def close(self) -> None:
        """Give back device and host memory. The modules stay empty."""
        if self.resident:
            self.offload()
        for hook in self._hooks:
            hook.remove()
        self.device.unpin(self._arena.host)
        self._arena.close()

    def _free(self) -> int:
        return self._clear() + self._release()

    def _clear(self) -> int:
        """Make sure that nobody would be left with a pointer into the block."""
        copied = 0
        if self._views.others():
            gc.collect()  # an exception with its frames, in a cycle?
            if self._views.others():
                copied = self._keep_strays()
                if self._views.others():
                    raise StillHeld("something outside the modules still views their weights: their memory stays taken")
        return copied

    def _release(self) -> int:
        """Give the block back."""
        assert self._block is not None
        copied = 0
        try:
            self.device.release(self._block)
        except StillHeld:
            copied = self._keep_strays()
            self.device.release(self._block)
        self._kept = False
        return copied

    def _keep_strays(self, elsewhere: Set[int] = frozenset()) -> int:
        """Tensors that modules have got since they were packed, or pointed elsewhere, move to the host."""
        with torch.no_grad(), torch.inference_mode(False):
            copied = self._views.adopt(elsewhere)
        self._views.detach()
        return copied

    def _save(self, block: torch.Tensor, changes: Changes) -> int:
        """Bring what was written to since the reload back to the host; returns how many bytes that were."""
        done, slots = 0, self._views.slots
        with torch.no_grad(), torch.inference_mode(False):
            if changes.elsewhere or changes.replaced:
                done = self._views.adopt(changes.elsewhere)
            for slot in slots:
                if id(slot) not in changes.written - changes.elsewhere:
                    continue
                if slot.own is None:
                    self.device.copy_out(block, slot.offset, self._arena.host[slot.offset : slot.offset + slot.nbytes])
                    done += slot.nbytes
                else:
                    done += slot.keep()
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
    return list(itertools.pairwise(edges))


def _check(residency: Residency | None, module: nn.Module) -> None:
    if residency is None or not residency.resident:
        raise NoLease(f"{type(module).__name__} was called without a lease: its weights are not on the device")
