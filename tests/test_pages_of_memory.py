"""Huge pages where they come quickly, small ones where the machine has to ask its host for each of them."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from workers import arena
from workers.arena import MIB, as_bytes, choose_pages, mapping

SMAPS = Path("/proc/self/smaps")
pytestmark = [
    pytest.mark.pure,
    pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the kernel is none of Linux"),
]


def flags(memory: mmap.mmap) -> set[str]:
    """What the kernel was told of it: hg, nh, dc (not copied by a fork), …"""
    address = as_bytes(memory, 1).data_ptr()
    areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", SMAPS.read_text(), re.MULTILINE | re.DOTALL)
    return next(set(told.split()) for start, end, told in areas if int(start, 16) <= address < int(end, 16))


def test_pages_are_small_where_huge_ones_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "SLOW_S", 10.0)
    memory = mapping(64 * MIB)
    assert {"hg", "dc"} <= flags(memory)
    memory[:] = bytes(64 * MIB)
    monkeypatch.setattr(arena, "SLOW_S", -1.0)  # as if each took for ever
    assert {"nh", "dc"} <= flags(mapping(64 * MIB)) and "hg" in flags(mapping(16 * MIB)), "a little is not worth a try"
    memory.madvise(mmap.MADV_DONTNEED)
    choose_pages(memory)
    assert "nh" in flags(memory)
    monkeypatch.setattr(arena, "SLOW_S", 10.0)
    choose_pages(memory)  # as it is today, not as it was
    assert "hg" in flags(memory)
    assert not any(memory[i] for i in range(0, 64 * MIB, MIB))
