"""The tensors of the modules as views into one block of device memory: put in their places, taken away, compared.

These loops run over every tensor at each swap, with cold caches, and for a small model they are what a swap costs. So
the block's storage is emptied and filled again, and a tensor that nobody can reach while the weights are away stays a
view of it: only its places change. One that somebody still refers to loses its elements, so that nobody reads freed
memory through it; whoever has made a view of it is seen in the storage's use count.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

from workers.slots import Found, Slot, find, share_counters

_address: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr
_uses: Callable[[int], int] = torch._C._storage_Use_Count
_trains: Callable[[dict[str, bool]], bool] = operator.itemgetter("training")
# References to a tensor that are ours, beside one for each place: its slot's, `_lives`, `_stay`, the call that counts.
_LISTED = next(map(sys.getrefcount, [object()]))
_OURS = _LISTED + 2


SHARING_BYTES = 64 * 2**20  # a counter is shared by tensors of so many bytes, which are copied back if it moves


class Changes(NamedTuple):
    """What has happened to slots since they were attached, each by its `id`."""

    written: set[int]
    elsewhere: set[int]  # pointed at other memory
    replaced: bool  # some place holds another tensor than ours


class Views:
    """All slots of a list of modules. Detached when made."""

    def __init__(self, modules: Sequence[nn.Module], found: Found) -> None:
        self._modules = modules
        self._begins = -1  # address of the block that the next two are of
        self._versions: list[int] = []
        self._addresses: list[int] = []
        self._storages: list[int] = []  # that of the block, and those of recurrent weights
        self._kept: list[int] = []  # how many uses of each are ours when no tensor stays
        self._bare = -1, 0  # the block's storage, and how many used it when it was new
        self._flats_begin = -1
        with torch.no_grad(), torch.inference_mode(False):
            share_counters([*_buckets(found.slots)], found.slots)
        self._index(found)

    def _index(self, found: Found) -> None:
        self.slots, self._found = found.slots, found
        self._lives = [s.live for s in found.slots]
        self._counters = [*{id(s.counter): s.counter for s in found.slots}.values()]
        self._swaps = [(p.holder, p.key, s.live, s.away) for s in found.slots for p in s.places]
        self._empty = {s.dtype: torch.empty(0, dtype=s.dtype) for s in found.slots}
        # Those that count their batches need no look: the count is one of the slots, and moves with the statistics.
        self._norms = [vars(norm) for norm, _ in found.norms if norm._buffers.get("num_batches_tracked") is None]
        self._flats = any(s.flat_at >= 0 and s.own is None for s in found.slots)
        self._own = [s for s in found.slots if s.own is not None]
        self._at: torch.Tensor | None = None  # views are made by the next `attach`; old ones count as ours until then
        self._away = False
        self._nothing_stays()
        lists = [m._flat_weight_refs for root in self._modules for m in root.modules() if isinstance(m, nn.RNNBase)]
        counts = Counter(id(ref) for refs in lists for ref in refs)
        self._weak_refs = [*{id(ref): ref for refs in lists for ref in refs if ref is not None}.values()]
        self._weak_refs_ours = [_LISTED + counts[id(ref)] for ref in self._weak_refs]

    def _nothing_stays(self) -> None:
        self._stay: list[torch.Tensor] = []  # tensors that stay views of the block while it is away,
        self._ours: list[int] = []  # how many references to each are ours,
        self._weak: list[int] = []  # how many weak ones recurrent modules have,
        self._on: list[int] = []  # which storage each is of,
        self._expected = self._kept  # how many uses of each storage are ours with them,
        self._taken: dict[int, torch.Tensor] = {}  # and which of them somebody else had at the last `detach`
        self._go = self._lives  # all others

    def attach(self, block: torch.Tensor) -> None:
        """Every slot's tensor becomes a view into `block`, and goes back to its places."""
        self._away = False
        moved = self._flats and self._flats_begin != block.data_ptr()  # their storages know addresses, not blocks
        if self._at is not block or moved:
            with torch.no_grad(), torch.inference_mode(False):
                self._look_at(block)
        else:
            for i, live in self._taken.items():
                live.data = self._pairs[i]
        self._taken.clear()
        for slot in self._own:
            assert slot.own is not None
            with torch.no_grad(), torch.inference_mode(False):
                slot.live.data = slot.own.to(block.device)
        for holder, key, live, _ in self._swaps:
            holder[key] = live
        for module in self._found.cached:
            module._device = block.device  # type: ignore[assignment]
        if self._begins != block.data_ptr() or self._own:
            self._versions = [counter._version for counter in self._counters]
            self._addresses = [*map(_address, self._lives)]
            self._begins = block.data_ptr()

    def untouched(self) -> bool:
        """Nothing was written, and the block has as many views as we have made: told without a look at any tensor.
        Whether one points elsewhere, or is in another's place, is for `vacate` to find."""
        return (
            not self._go
            and [counter._version for counter in self._counters] == self._versions
            and [*map(_uses, self._storages)] == self._expected
            and not any(map(_trains, self._norms))
        )

    def vacate(self) -> set[int] | None:
        """The rest of a detach, when `untouched` and the block is gone but its addresses stay. Else what is to be
        adopted: those that point elsewhere, each by its `id`; and what some place holds that is not ours."""
        addresses = [*map(_address, self._lives)]
        if addresses == self._addresses and self._take_out():
            self._detach()
            return None
        pairs = zip(self.slots, addresses, self._addresses, strict=True)
        return {id(s) for s, now, then in pairs if now != then}

    def leave(self) -> Changes | None:
        """Detach if nothing at all was done to any slot, which is the rule for frozen weights. Else say what was: it is
        to be saved, and detached then."""
        changes = self._changes()
        if changes is None:
            self._detach()
        return changes

    def detach(self) -> None:
        """Places get their stand-ins on `meta`; tensors that anybody can still reach lose their elements."""
        if self._away:
            return
        for holder, key, _, away in self._swaps:
            holder[key] = away
        self._detach()

    def _detach(self) -> None:
        for live in self._go:
            live.data = self._empty[live.dtype]
        counts = [*map(sys.getrefcount, self._stay)]
        weak = [*map(weakref.getweakrefcount, self._stay)]
        weak_refs = [*map(sys.getrefcount, self._weak_refs)]  # the same object for all who ask for one
        if counts != self._ours or weak != self._weak or weak_refs != self._weak_refs_ours:
            for i, live in enumerate(self._stay):
                if counts[i] != self._ours[i] or weak[i]:
                    self._taken[i] = live
                    live.data = self._empty[live.dtype]
        for module in self._found.cached:
            module._device = torch.device("meta")  # type: ignore[assignment]
        self._away = True

    def others(self) -> bool:
        """After `detach`: does anybody else still view the block?"""
        expected = self._expected
        if self._taken:
            expected = [*expected]
            for i in self._taken:
                expected[self._on[i]] -= 1
        return any(map(operator.gt, map(_uses, self._storages), expected))

    def _look_at(self, block: torch.Tensor) -> None:
        self._at, self._begins = None, -1
        self._nothing_stays()
        self._pairs: list[torch.Tensor] = []  # of each in `_stay`, what it becomes when it comes back
        bases: dict[torch.dtype, torch.Tensor] = {}
        flats: dict[int, torch.Tensor] = {}
        stay, on = [], []
        for live in self._lives:
            live.data = self._empty[live.dtype]
        storage = block.untyped_storage()._cdata
        if self._bare[0] != storage:
            self._bare = storage, _uses(storage)
        strangers = _uses(storage) - self._bare[1]  # of a block that could not be given back
        for slot in self.slots:
            if slot.own is not None:
                continue
            if slot.flat_at >= 0:  # cuDNN wants a storage that begins where the weights do
                if slot.flat_at not in flats:
                    flats[slot.flat_at] = from_dlpack(block[slot.flat_at : slot.flat_end])
                view = slot.view(flats[slot.flat_at], slot.flat_at)
                on.append(1 + [*flats].index(slot.flat_at))
            else:
                size = slot.dtype.itemsize
                if slot.dtype not in bases:
                    bases[slot.dtype] = block[: len(block) // size * size].view(slot.dtype)
                view = bases[slot.dtype].as_strided(slot.size, slot.stride, slot.offset // size)
                on.append(0)
            stay.append(slot.live)
            self._pairs.append(view)
        del bases
        self._storages = [storage, *(t.untyped_storage()._cdata for t in flats.values())]
        flats.clear()
        self._kept = [*map(_uses, self._storages)]
        self._kept[0] -= strangers
        for live, view in zip(stay, self._pairs, strict=True):
            live.data = view
        places = Counter(id(live) for _, _, live, _ in self._swaps)
        weak = Counter(id(ref()) for ref in self._weak_refs)
        self._ours = [_OURS + places[id(live)] for live in stay]
        self._weak = [weak[id(live)] for live in stay]
        self._stay, self._on, staying = stay, on, {*map(id, stay)}
        self._expected = [kept + on.count(i) for i, kept in enumerate(self._kept)]
        self._go = [live for live in self._lives if id(live) not in staying]
        self._at, self._flats_begin = block, block.data_ptr()

    # -- what a step has done ---------------------------------------------------------------------------------------

    def _changes(self) -> Changes | None:
        """None: nothing, and the places have their stand-ins. Else they are as they were."""
        versions = [counter._version for counter in self._counters]
        addresses = [*map(_address, self._lives)]
        same = versions == self._versions and addresses == self._addresses and not any(map(_trains, self._norms))
        taken_out = self._take_out()
        if same and taken_out:
            return None
        if taken_out:
            self._put_back()
        written = self._written(versions)
        # Batch norm's kernel writes the running statistics without a word; only the count of batches moves.
        running = [slots for module, slots in self._found.norms if module.training]
        for group in [*running, *(g for g in self._found.siblings if any(id(s) in written for s in g))]:
            written |= {id(s) for s in group}
        pairs = zip(self.slots, addresses, self._addresses, strict=True)
        elsewhere = {id(s) for s, now, then in pairs if now != then}
        self._begins = -1
        return Changes(written, elsewhere, not taken_out)

    def _written(self, versions: list[int]) -> set[int]:
        """Slots whose counter has moved. They get counters of their own, for where one was written others will be."""
        counts = zip(self._counters, versions, self._versions, strict=True)
        moved = {id(counter) for counter, now, then in counts if now != then}
        written = [s for s in self.slots if id(s.counter) in moved]
        with torch.no_grad(), torch.inference_mode(False):
            share_counters([[s] for s in written if s.counter is not s.live], written)
        self._counters = [*{id(s.counter): s.counter for s in self.slots}.values()]
        return {id(s) for s in written}

    def _take_out(self) -> bool:
        """The stand-ins take their places. False: some place holds something else than ours, and all are as before."""
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for holder, key, live, away in self._swaps:
                if holder[key] is not live and holder[key] is not away:  # two modules may share a place
                    break
                holder[key] = away
            else:
                return True
        self._put_back()
        return False

    def _put_back(self) -> None:
        for holder, key, live, away in self._swaps:
            with contextlib.suppress(KeyError, IndexError, TypeError):
                if holder[key] is away:
                    holder[key] = live

    def adopt(self, elsewhere: Set[int]) -> int:
        """Tensors that the modules have made themselves, or pointed elsewhere, live on the host and travel one by one
        from now on (a cache that grew, 4-bit weights that a CPU kernel repacks). Returns the bytes copied."""
        found = find(self._modules, self.slots)
        was = {id(s) for s in self.slots}
        done = sum(slot.keep() for slot in found.slots if id(slot) in elsewhere or id(slot) not in was)
        self._index(found)
        return done


def _buckets(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Neighbours of a kind: what one training step writes while another part of it still reads stays apart."""
    kinds: dict[tuple[bool, torch.dtype], list[Slot]] = {}
    for slot in slots:
        kinds.setdefault((isinstance(slot.live, nn.Parameter), slot.dtype), []).append(slot)
    for kind in kinds.values():
        bucket: list[Slot] = []
        size = 0
        for slot in kind:
            size += slot.nbytes
            if bucket and size > SHARING_BYTES:
                yield bucket
                bucket, size = [], slot.nbytes
            bucket.append(slot)
        yield bucket
