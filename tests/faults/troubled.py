"""A real process in a bad world: its messages are lost or doubled, its wall clock jumps, it does not hear Leases.

python -m tests.faults.troubled FOLDER NAME MODULE ARGS...     runs MODULE as `python -m` would
python -m tests.faults.troubled FOLDER launcher CONFIG         the real launcher; everything it starts is troubled

Nothing of it is in the product: it replaces `wire.send` and `wire.receive`, the clock and a few calls of this one
process. What happens to it stands in FOLDER/trouble (`Trouble` as JSON, looked at all the time). The arbiter's also
keeps FOLDER/decisions: a line for each roster written, each Lease sent and each kill, for the checker.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from common import messages as m
from common import wire

LOOK_EVERY_S = 0.01
TROUBLE, DECISIONS = "trouble", "decisions"
EVERYBODY = "everybody"
_monotonic = time.monotonic


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the world now. Shares of messages by name of the sender."""

    loss: dict[str, float] = {}
    doubled: dict[str, float] = {}
    deaf: tuple[str, ...] = ()
    clock_s: float = 0.0


class World:
    """FOLDER/trouble as one process sees it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._name = folder / TROUBLE, name.partition("@")[0]
        self._rng = random.Random(f"{name} {os.getpid()}")
        self._trouble, self._stamp, self._next = Trouble(), (0, 0), 0.0

    def now(self) -> Trouble:
        if _monotonic() >= self._next:
            self._next = _monotonic() + LOOK_EVERY_S
            try:
                info = self._path.stat()
                if (stamp := (info.st_mtime_ns, info.st_ino)) != self._stamp:
                    self._trouble = msgspec.json.decode(self._path.read_bytes(), type=Trouble)
                    self._stamp = stamp
            except FileNotFoundError:
                self._trouble = Trouble()
        return self._trouble

    def _happens(self, shares: dict[str, float]) -> bool:
        share = max(shares.get(self._name, 0.0), shares.get(EVERYBODY, 0.0))
        return share > 0 and self._rng.random() < share

    def lost(self) -> bool:
        return self._happens(self.now().loss)

    def doubled(self) -> bool:
        return self._happens(self.now().doubled)

    def deaf(self) -> bool:
        return self._name in self.now().deaf


def trouble_messages(world: World) -> None:
    """Every message of this process goes through these two."""
    send, receive = wire.send, wire.receive

    def lossy(socket: Any, frames: wire.Frames) -> bool:
        if world.lost():
            return True
        if world.doubled():
            send(socket, frames)
        return send(socket, frames)

    def deaf(socket: Any) -> wire.Frames | None:
        frames = receive(socket)
        while frames is not None and world.deaf() and b"lease" in frames[-1][:20]:
            frames = receive(socket)
        return frames

    wire.send, wire.receive = lossy, deaf


def trouble_clock(world: World) -> None:
    """The wall clock as this process reads it; times of files are the kernel's and do not jump."""
    seconds, ns = time.time, time.time_ns
    time.time = lambda: seconds() + world.now().clock_s
    time.time_ns = lambda: ns() + round(world.now().clock_s * 1e9)


def watch_decisions(folder: Path) -> None:
    """What the arbiter decides, in the order in which it does: before the message can be lost."""
    from arbiter import hands

    out = os.open(folder / DECISIONS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    send, read, write, kill = wire.send, hands.read_roster, hands.write_roster, signal.pidfd_send_signal
    seen: dict[tuple[str, int], tuple[int, bool]] = {}
    run_folder: list[Path] = []

    def note(**row: Any) -> None:
        os.write(out, json.dumps({"at_s": _monotonic(), "arbiter": os.getpid()} | row).encode() + b"\n")

    def noting_send(socket: Any, frames: wire.Frames) -> bool:
        if b"lease" in frames[-1][:20]:
            lease = msgspec.msgpack.decode(frames[-1], type=m.Lease)
            who = (lease.incarnation.nonce, lease.incarnation.pid)
            if seen.get(who) != (lease.epoch, lease.granted):  # each second it says the same again
                seen[who] = (lease.epoch, lease.granted)
                mine = (lease.incarnation, lease.epoch, lease.bytes)
                rows = read(run_folder[0])[0].rows
                on_disk = any((r.incarnation, r.epoch, r.bytes) == mine for r in rows)
                note(event="lease", pid=who[1], epoch=lease.epoch, granted=lease.granted, on_disk=on_disk)
        return send(socket, frames)

    def noting_read(run: Path) -> Any:
        run_folder[:] = [run]
        return read(run)

    def noting_write(run: Path, roster: Any) -> None:
        write(run, roster)
        rows = [
            {
                "worker": r.incarnation.worker,
                "pid": r.incarnation.pid,
                "nonce": r.incarnation.nonce,
                "state": str(r.state),
                "epoch": r.epoch,
                "bytes": r.bytes,
                "within_s": r.offload_within_s,
            }
            for r in roster.rows
        ]
        note(event="roster", n=roster.n, rows=rows)

    def noting_kill(fd: int, number: int, *more: Any) -> None:
        pid = next(int(x.split()[1]) for x in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if "Pid:" in x)
        note(event="kill", pid=pid, signal=int(number))
        kill(fd, number, *more)

    note(event="start")
    wire.send, hands.read_roster, hands.write_roster = noting_send, noting_read, noting_write
    signal.pidfd_send_signal = noting_kill


def launcher(folder: str, config: str) -> None:
    """The real launcher over the table, each row's command wrapped."""
    from common.child import wants
    from common.launch import Launcher
    from common.settings import load
    from common.spare import Spare

    settings = load(config, (), {})
    table = [
        msgspec.structs.replace(want, command=("-m", "tests.faults.troubled", folder, want.name, *want.command[1:]))
        for want in wants(settings, ["--config", config])
    ]
    spare = Spare(["--config", config], settings.data / "logs" / "spare.log")
    Launcher(settings, table, lambda line: print(f"-- {line}", flush=True), spare=spare).run()


def main() -> None:
    folder, name, *rest = sys.argv[1:]
    world = World(Path(folder), name)
    trouble_messages(world)
    trouble_clock(world)
    if name == "launcher":
        launcher(folder, rest[0])
        return
    if name == "arbiter":
        watch_decisions(Path(folder))
    sys.argv = rest  # its first is put in its place by runpy
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
