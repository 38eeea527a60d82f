"""The tensors of the modules as views into one block of device memory: put in their places, taken away, compared.

These loops run over every tensor at each swap, and for a small model they are what a swap costs: so the views are made
once per block, whose storage is emptied and filled again, and each loop does one cheap thing. Views given to the
modules are never the ones kept here: a tensor that was taken away has no elements, so that nobody reads freed memory
through it, and whoever has made a view of it in the meantime is seen in the storage's use count.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.dlpack import from_dlpack

from workers.slots import Found, find

_version: Callable[[torch.Tensor], int] = operator.attrgetter("_version")
_uses: Callable[[int], int] = torch._C._storage_Use_Count


class Changes(NamedTuple):
    """What has happened to slots since they were attached, each by its `id`."""

    written: set[int]
    elsewhere: set[int]  # pointed at other memory
    replaced: bool  # some place holds another tensor than ours


class Views:
    """All slots of a list of modules. Detached when made."""

    def __init__(self, modules: Sequence[torch.nn.Module], found: Found) -> None:
        self._modules = modules
        self._at: torch.Tensor | None = None
        self._storages: list[tuple[int, int]] = []  # the storage, how many tensors of ours use it
        self._versions: list[int] = []
        self._addresses: list[int] = []
        self._flats_begin = -1
        self._begins = -1  # address of the block that these are of; taking a tensor away moves neither
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []  # a slot's tensor, and the view that it becomes
        self._index(found)

    def _index(self, found: Found) -> None:
        self.slots, self._found = found.slots, found
        empty = {s.dtype: torch.empty(0, dtype=s.dtype) for s in found.slots}
        self._lives = [s.live for s in found.slots]
        self._swaps = [(p.holder, p.key, s.live, s.away) for s in found.slots for p in s.places]
        self._empties = [(s.live, empty[s.dtype]) for s in found.slots]
        self._flats = any(s.flat_at >= 0 and s.own is None for s in found.slots)
        self._own = [s for s in found.slots if s.own is not None]
        self._at = None  # views are made anew by the next `attach`; until then the old ones count as ours

    def attach(self, block: torch.Tensor) -> None:
        """Every slot's tensor becomes a view into `block`, and goes back to its places."""
        with torch.no_grad(), torch.inference_mode(False):
            moved = self._flats and self._flats_begin != block.data_ptr()  # their storages know addresses, not blocks
            if self._at is not block or moved:
                self._look_at(block)
            for live, view in self._pairs:
                live.data = view
            for slot in self._own:
                assert slot.own is not None
                slot.live.data = slot.own.to(block.device)
        for holder, key, live, _ in self._swaps:
            holder[key] = live
        for module in self._found.cached:
            module._device = block.device  # type: ignore[assignment]
        if self._begins != block.data_ptr() or self._own:
            self._versions = [*map(_version, self._lives)]
            self._addresses = [*map(torch.Tensor.data_ptr, self._lives)]
            self._begins = block.data_ptr()

    def detach(self) -> None:
        """Places get their stand-ins on `meta`, the tensors lose their elements."""
        for holder, key, _, away in self._swaps:
            holder[key] = away
        for live, empty in self._empties:
            live.data = empty
        for module in self._found.cached:
            module._device = torch.device("meta")  # type: ignore[assignment]

    def others(self) -> bool:
        """After `detach`: does anybody else still view the block?"""
        return any(_uses(storage) > ours for storage, ours in self._storages)

    def _look_at(self, block: torch.Tensor) -> None:
        self._pairs, self._storages = [], []
        bases: dict[torch.dtype, torch.Tensor] = {}
        flats: dict[int, torch.Tensor] = {}
        for slot in self.slots:
            if slot.own is not None:
                continue
            if slot.flat_at >= 0:  # cuDNN wants a storage that begins where the weights do
                if slot.flat_at not in flats:
                    flats[slot.flat_at] = from_dlpack(block[slot.flat_at : slot.flat_end])
                view = slot.view(flats[slot.flat_at], slot.flat_at)
            else:
                size = slot.dtype.itemsize
                if slot.dtype not in bases:
                    bases[slot.dtype] = block[: len(block) // size * size].view(slot.dtype)
                view = bases[slot.dtype].as_strided(slot.size, slot.stride, slot.offset // size)
            self._pairs.append((slot.live, view))
        del bases
        storages = [t.untyped_storage()._cdata for t in (block, *flats.values())]
        flats.clear()
        self._storages = [(storage, _uses(storage)) for storage in storages]
        self._at, self._begins, self._flats_begin = block, -1, block.data_ptr()

    # -- what a step has done ---------------------------------------------------------------------------------------

    def changes(self) -> Changes | None:
        """None: nothing at all, which is the rule for frozen weights."""
        versions = [*map(_version, self._lives)]
        addresses = [*map(torch.Tensor.data_ptr, self._lives)]
        training = [slots for module, slots in self._found.norms if module.training]
        replaced = not self._in_place()
        if versions == self._versions and addresses == self._addresses and not training and not replaced:
            return None
        written = {id(s) for s, now, then in zip(self.slots, versions, self._versions, strict=True) if now != then}
        # Batch norm's kernel writes the running statistics without a word; only the count of batches moves.
        for group in [*training, *(g for g in self._found.siblings if any(id(s) in written for s in g))]:
            written |= {id(s) for s in group}
        pairs = zip(self.slots, addresses, self._addresses, strict=True)
        elsewhere = {id(s) for s, now, then in pairs if now != then}
        self._begins = -1
        return Changes(written, elsewhere, replaced)

    def _in_place(self) -> bool:
        try:
            for holder, key, live, _ in self._swaps:
                if holder[key] is not live:
                    return False
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def adopt(self, elsewhere: set[int]) -> int:
        """Tensors that the modules have made themselves, or pointed elsewhere, live on the host and travel one by one
        from now on (a cache that grew, 4-bit weights that a CPU kernel repacks). Returns the bytes copied."""
        found = find(self._modules, self.slots)
        was = {id(s) for s in self.slots}
        done = sum(slot.keep() for slot in found.slots if id(slot) in elsewhere or id(slot) not in was)
        self._index(found)
        return done
