"""The host side of residency: one private mapping that holds every byte of a worker's weights, and the plan of it.

`Plan` says where each storage's used bytes go: a storage is kept as one piece, so ties, views of one another and a
cuDNN weight block stay what they are. `Arena` is the mapping. Both are freed by reference count alone: a tensor that
views a mapping keeps it, so that nobody is ever left with a pointer into memory that has gone.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from workers.slots import Slot

ALIGN = 64  # as torch's own CPU allocator: vector code may round differently on other alignments
MIB = 2**20
TRIM_BYTES = 64 * MIB
HUGE = 2 * MIB  # page
TRIED = 4  # huge pages
SLOW_S = 0.002  # for one
_libc = ctypes.CDLL(None)


class Chunk(NamedTuple):
    """Bytes that stay together: `nbytes` of the storage of `source` from `start` on, to `to` in the arena."""

    source: Slot
    start: int
    nbytes: int
    to: int


class Unit(NamedTuple):
    """What is packed and then freed in one go: usually one storage."""

    slots: list[Slot]
    chunks: list[Chunk]


class Plan(NamedTuple):
    """Where all goes. `weights_bytes` counts each used byte of each storage once, `total` is the arena's size."""

    units: list[Unit]
    weights_bytes: int
    total: int


def plan(slots: list[Slot], flats: list[list[Slot]]) -> Plan:
    """Give each slot its offset. `flats`: slots that want to stand back to back (an LSTM's weights, for cuDNN)."""
    units: list[Unit] = []
    groups: dict[int, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.storage_key, []).append(slot)
    at = weights = 0
    for flat in flats:
        alone = all(len(groups.get(s.storage_key, ())) == 1 and s.contiguous for s in flat)
        if not alone or len({s.dtype for s in flat}) != 1:
            continue  # flat already, or shared with something else
        at = -(-at // ALIGN) * ALIGN
        unit = Unit(flat, [])
        first = at
        for slot in flat:
            del groups[slot.storage_key]
            start, end = slot.span
            slot.offset, slot.flat_at = at, first
            unit.chunks.append(Chunk(slot, start, end - start, at))
            at += end - start
        for slot in flat:
            slot.flat_end = at
        weights += at - first
        units.append(unit)
    for group in groups.values():
        group.sort(key=lambda s: s.span)
        unit = Unit(group, [])
        for start, end, members in _runs(group):
            at = -(-at // ALIGN) * ALIGN + start % ALIGN  # alignment inside the storage is kept
            unit.chunks.append(Chunk(members[0], start, end - start, at))
            for slot in members:
                slot.offset = at + slot.span[0] - start
            at += end - start
            weights += end - start
        units.append(unit)
    return Plan(units, weights, at)


def _runs(group: list[Slot]) -> Iterator[tuple[int, int, list[Slot]]]:
    """Byte ranges of one storage that its slots use, touching ones joined."""
    low, high = group[0].span
    members: list[Slot] = []
    for slot in group:
        start, end = slot.span
        if start > high:
            yield low, high, members
            low, high, members = start, end, []
        high = max(high, end)
        members.append(slot)
    yield low, high, members


def mapping(nbytes: int) -> mmap.mmap:
    """Private anonymous memory of exactly so many bytes, huge pages advised, not copied by a fork."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advised(memory, "MADV_DONTFORK")
    choose_pages(memory)
    return memory


def choose_pages(memory: mmap.mmap) -> None:
    """Huge pages for memory that holds nothing, unless they come slowly: its first ones are filled with zeros to know.

    A virtual machine that returns free memory to its host (free page reporting) has to ask for each huge page again: 7
    ms each were seen, 25 times what they take otherwise, and four times what the same bytes take in small pages.
    """
    if not _advised(memory, "MADV_HUGEPAGE") or len(memory) < 4 * TRIED * HUGE:
        return
    began = time.thread_time()
    for page in range(TRIED):
        memory[page * HUGE] = 0
    if time.thread_time() - began > TRIED * SLOW_S:
        _advised(memory, "MADV_NOHUGEPAGE")


def _advised(memory: mmap.mmap, advice: str) -> bool:
    """False: the kernel does not know it, which is slower, not wrong."""
    if not hasattr(mmap, advice):
        return False
    try:
        memory.madvise(getattr(mmap, advice))
    except OSError:
        return False
    return True


def as_bytes(memory: mmap.mmap, nbytes: int) -> torch.Tensor:
    """The mapping as a uint8 tensor (nbytes,). The tensor's storage keeps the mapping object alive, not its buffer:
    never close() the mapping, let it go."""
    with torch.inference_mode(False):
        return torch.frombuffer(memory, dtype=torch.uint8, count=nbytes)  # no slice: a view would hold on to its base


class Arena:
    """All weights of a worker in RAM, filled storage by storage while the originals are freed."""

    def __init__(self, nbytes: int) -> None:
        memory = mapping(nbytes)
        self.nbytes = nbytes
        self.host = as_bytes(memory, nbytes)
        self.memory: weakref.ref[mmap.mmap] = weakref.ref(memory)
        self._freed = 0

    def take(self, unit: Unit) -> None:
        """Copy the bytes of a unit in; slots without bytes (on meta) are left to the caller."""
        for source, start, nbytes, to in unit.chunks:
            if source.on_meta:
                continue
            self.host[to : to + nbytes].copy_(raw(source.live, start, nbytes))

    def freed(self, nbytes: int) -> None:
        """Originals of so many bytes have gone: give their pages back to the system now and then, not at the end."""
        self._freed += nbytes
        if self._freed >= TRIM_BYTES:
            self.trim()

    def close(self) -> None:
        """Free it, as soon as nobody views it any more."""
        self.host.data = torch.empty(0, dtype=torch.uint8)

    def trim(self) -> None:
        self._freed = 0
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)


def raw(tensor: torch.Tensor, start: int, nbytes: int) -> torch.Tensor:
    """Bytes [start, start + nbytes) of the storage that `tensor` views, uint8 (nbytes,)."""
    storage: Any = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, start, (nbytes,), (1,))
