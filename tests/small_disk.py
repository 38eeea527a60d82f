"""A small file system that a test fills and frees: real ENOSPC, not a stand-in. Needs root or `unshare -rm`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

Disk = Callable[[int], None]


def on_a_small_disk(test: Callable[..., None]) -> Callable[..., None]:
    """Mounting needs root; without it the test runs as root of a namespace of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        if os.geteuid() == 0:
            test(**fixtures)
            return
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
            pytest.skip("a small file system needs root, or `unshare -rm`")
        name = f"{inspect.getfile(test)}::{test.__name__}"
        pytest_one = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        done = subprocess.run(["unshare", "-rm", *pytest_one], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    return run


@contextlib.contextmanager
def small_disk(root: Path, mib: int) -> Iterator[Disk]:
    """A file system of `mib` under `root`; call what it yields with the KiB that shall be left free."""
    root.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:  # `on_a_small_disk` runs the test where we are
        yield lambda free_kib: None
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(root)], check=True)

    def leave(free_kib: int) -> None:
        filler = root / ".filler"
        filler.unlink(missing_ok=True)
        info = os.statvfs(root)
        with contextlib.suppress(OSError):  # others write meanwhile: full is full
            filler.write_bytes(bytes(max(0, info.f_bavail * info.f_frsize - free_kib * 1024)))

    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
