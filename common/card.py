"""Which card there is, and the memory of the simulated one: who holds how many bytes of it.

`kind` answers "cuda" or "simulated" the same in every process, without importing torch. `SimulatedCard` is the file
RUN/gpu.vram, one byte a MiB granule, held by POSIX write locks: the kernel enforces the capacity across processes and
frees the granules of one that was killed; asking who holds a lock is the simulator's NVML. Bytes that a dead holder
left are taken for used until `simulated_reclaim_s` has passed, as a driver needs time to free them.
"""

from __future__ import annotations

import ctypes.util
import errno
import fcntl
import importlib.util
import os
import re
import struct
import time
from pathlib import Path

from common.settings import Settings, UserError

MIB = 2**20
ROOM_FOR_ALL_MIB = 65_536  # capacity when the settings name none: nobody has to leave
TRIES = 100
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux
Runs = list[tuple[int, int]]  # (first granule, how many)


def kind(settings: Settings) -> str:
    """`cuda` or `simulated`. UserError when CUDA is asked for and cannot be."""
    wanted = settings.gpu.device
    if wanted == "simulated":
        return wanted
    missing = no_cuda()
    if wanted == "cuda" and missing:
        raise UserError(f"settings: gpu.device is cuda, but {missing}; see: swapscribe doctor")
    return "simulated" if missing else "cuda"


def no_cuda() -> str:
    """Why CUDA cannot be used here, empty when it can."""
    if not cuda_build():
        return "the installed torch is a CPU build"
    if not ctypes.util.find_library("cuda") and not Path("/dev/nvidiactl").exists():
        return "no NVIDIA driver is installed"
    return ""


def cuda_build() -> str:
    """CUDA version that torch was built with, empty for a CPU build; reads its version file, imports nothing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    try:
        text = (Path(next(iter(spec.submodule_search_locations))) / "version.py").read_text()
    except OSError:
        return ""
    found = re.search(r"^cuda(?:: [^=]+)? = '([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else ""


class CardFull(MemoryError):
    """The simulated card has fewer free granules than were asked for."""


class SimulatedCard:
    """One process' view of the file. Only ONE object a process: closing any descriptor of it drops all its locks."""

    def __init__(self, run: Path, settings: Settings) -> None:
        self.granules = settings.gpu.simulated_mib or ROOM_FOR_ALL_MIB
        self._reclaim_s = settings.gpu.simulated_reclaim_s
        self._fd = os.open(run / "gpu.vram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size != self.granules:
            os.ftruncate(self._fd, self.granules)
        self._mine: Runs = []
        self._left_since: dict[int, float] = {}  # granules of the dead -> when they were seen first

    @property
    def held_bytes(self) -> int:
        return sum(n for _, n in self._mine) * MIB

    def take(self, nbytes: int) -> Runs:
        """Hold enough granules for `nbytes`; raises CardFull and then holds none of them."""
        wanted = -(-nbytes // MIB)
        for _ in range(TRIES):  # somebody else may be faster
            runs = self._free_runs(wanted)
            if sum(n for _, n in runs) < wanted:
                raise CardFull(f"the simulated card has no {wanted} MiB free (of {self.granules})")
            taken: Runs = []
            for first, n in runs:
                try:
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, n, first)
                except OSError as e:
                    if e.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                    break
                self._mark(b"\1", first, n)
                self._mine.append((first, n))
                taken.append((first, n))
            else:
                return taken
            self.give(taken)
        raise CardFull("the simulated card is fought over")

    def give(self, runs: Runs) -> None:
        """Free these granules."""
        for first, n in runs:
            self._mark(b"\0", first, n)
            fcntl.lockf(self._fd, fcntl.LOCK_UN, n, first)
            self._mine.remove((first, n))

    def _mark(self, byte: bytes, first: int, n: int) -> None:
        """Used or free. Told only by who was killed, and only where what it held is not free at once."""
        if self._reclaim_s > 0:
            os.pwrite(self._fd, byte * n, first)

    def by_pid(self) -> dict[int, int]:
        """Bytes held by each OTHER process (the kernel does not tell of our own locks)."""
        return self._sums(self._held(0, self.granules))

    def measure(self) -> tuple[int, int, dict[int, int]]:
        """(total bytes, used bytes, bytes by pid); also frees what the dead have left for long enough."""
        held = self._held(0, self.granules)
        left = self._left(held) if self._reclaim_s > 0 else set()
        now = time.monotonic()
        self._left_since = {g: self._left_since.get(g, now) for g in left}
        for granule in [g for g, since in self._left_since.items() if now - since >= self._reclaim_s]:
            os.pwrite(self._fd, b"\0", granule)
            del self._left_since[granule]
        mine = {os.getpid(): self.held_bytes} if self._mine else {}
        by_pid = self._sums(held) | mine
        return self.granules * MIB, sum(by_pid.values()) + len(self._left_since) * MIB, by_pid

    @staticmethod
    def _sums(held: list[tuple[int, int, int]]) -> dict[int, int]:
        out: dict[int, int] = {}
        for _, n, pid in held:
            out[pid] = out.get(pid, 0) + n * MIB
        return out

    def _held(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """(first granule, how many, pid) of everything that others hold in [first, end)."""
        out, todo = [], [(first, end)]
        while todo:
            a, b = todo.pop()
            if a >= b:
                continue
            ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, a, b - a, 0)
            state, _, at, size, pid = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, ask))
            if state == fcntl.F_UNLCK:
                continue
            low, high = max(a, at), min(b, at + size if size else b)
            out.append((low, high - low, pid))
            todo += [(a, low), (high, b)]
        return sorted(out)

    def _left(self, held: list[tuple[int, int, int]]) -> set[int]:
        """Granules whose byte says used, and that nobody holds."""
        data = os.pread(self._fd, self.granules, 0)
        used = {m.start() for m in re.finditer(b"\1", data)}
        for first, n in [*self._mine, *((first, n) for first, n, _ in held)]:
            used.difference_update(range(first, first + n))
        return used

    def _free_runs(self, wanted: int) -> Runs:
        """First fit: runs of free granules, `wanted` in all if there are as many."""
        held = self._held(0, self.granules)
        left = self._left(held) if self._reclaim_s > 0 else ()
        busy = sorted([*self._mine, *((first, n) for first, n, _ in held), *((granule, 1) for granule in left)])
        runs: Runs = []
        at, missing = 0, wanted
        for first, size in [*busy, (self.granules, 0)]:
            n = min(first - at, missing)
            if n > 0:
                runs.append((at, n))
                missing -= n
            at = max(at, first + size)
        return runs
