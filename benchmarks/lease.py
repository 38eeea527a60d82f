"""What a lease costs: Status with a want -> Lease, by the real arbiter process, beside a raw ZeroMQ round trip.

`python benchmarks/lease.py [--rounds 400] [--json]`. Each round measures one of each: the raw one is answered by a
process that only writes and renames a file of the roster's size in the same folder. Also: the arbiter's memory, and
the time and the modules of its import.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import messages as m  # noqa: E402
from common import wire  # noqa: E402
from common.backlog import replace_file  # noqa: E402
from common.card import MIB  # noqa: E402
from common.process import start_time  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from workers.lease import NOTHING, Holder  # noqa: E402

REST_S = 0.004
IMPORTS = 9


class Arbiter:
    """An arbiter in a process of its own, and the worker's end of one lease."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = (settings.data / "arbiter.log").open("ab")
        sets = [f"data_dir={settings.data}", "gpu.device=simulated", "gpu.simulated_mib=1000"]
        argv = [sys.executable, "-m", "arbiter", *(part for s in sets for part in ("--set", s))]
        began = time.perf_counter()
        self.popen = subprocess.Popen(argv, cwd=ROOT, stderr=self.log)
        pid = os.getpid()
        me = m.Incarnation(worker="bench", pid=pid, started_ticks=start_time(pid), nonce=os.urandom(8).hex())
        self.holder = Holder(me)
        self.wire = wire.Requester(wire.ipc(settings, "arbiter"))
        self.want(True)
        while not (self.holder.pending and self.holder.pending.granted):
            self.wire.tell(self.status())
            self.listen(20)
        self.first_s = time.perf_counter() - began
        self.act()
        self.release()

    def want(self, something: bool) -> None:
        self.holder.want = m.Want(bytes=100 * MIB, since_s=time.monotonic()) if something else NOTHING

    def status(self) -> m.Status:
        return self.holder.status(time.monotonic())

    def listen(self, timeout_ms: int) -> bool:
        """True when a new Lease came."""
        new = False
        if self.wire.socket.poll(timeout_ms):
            while (frames := wire.receive(self.wire.socket)) is not None:
                new |= self.holder.accept(wire_lease(frames[-1]))
        return new

    def act(self) -> None:
        due = self.holder.due()
        assert due
        if due.granted:
            self.holder.loaded(due, 0, time.monotonic())
        else:
            self.holder.offloaded(due)

    def release(self) -> None:
        """Want nothing, be revoked, give back."""
        self.want(False)
        self.wire.tell(self.status())
        while not self.listen(1000):
            self.wire.tell(self.status())
        self.act()
        self.wire.tell(self.status())

    def grant_s(self) -> float:
        """Seconds from sending the want to having the Lease."""
        self.want(True)
        began = time.perf_counter()
        self.wire.tell(self.status())
        while not self.listen(5000):
            raise RuntimeError("no grant")
        took = time.perf_counter() - began
        self.act()
        self.release()
        return took

    def rss_mib(self) -> float:
        return rss_mib(self.popen.pid)

    def stop(self) -> None:
        self.wire.close()
        self.popen.send_signal(signal.SIGTERM)
        self.popen.wait(10)


def wire_lease(payload: bytes) -> m.Lease:
    import msgspec

    return msgspec.msgpack.decode(payload, type=m.Lease)


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Raw:
    """A process that answers each message as it came, after one write + rename in the run folder."""

    def __init__(self, settings: Settings, size: int) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, __file__, "--serve", str(settings.data), str(size)])
        self.wire = wire.Requester(wire.ipc(settings, "raw"))

    @staticmethod
    def serve(data: str, size: int) -> None:
        settings = Settings(data_dir=data)
        socket = wire.router(wire.ipc(settings, "raw"))
        path, content = wire.run_dir(settings) / "raw-roster", b"x" * size
        while True:
            socket.poll()
            frames = wire.receive(socket)
            replace_file(path, content, durable=False)
            wire.send(socket, frames or [])

    def round_trip_s(self, payload: bytes) -> float:
        began = time.perf_counter()
        while not wire.send(self.wire.socket, [b"", payload]):
            time.sleep(0.01)
        self.wire.socket.poll(5000)
        assert wire.receive(self.wire.socket)
        return time.perf_counter() - began

    def stop(self) -> None:
        self.wire.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def import_s(what: str) -> float:
    """Median seconds of a whole interpreter that imports this, less one that imports nothing."""
    times: dict[str, list[float]] = {"pass": [], what: []}
    for _ in range(IMPORTS):
        for code, took in times.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            took.append(time.perf_counter() - began)
    return statistics.median(times[what]) - statistics.median(times["pass"])


def torch_in_arbiter() -> int:
    code = "import sys, arbiter.__main__; print('torch' in sys.modules or 'pynvml' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(out.stdout.strip() == "True")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        Raw.serve(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".bench-") as tmp:
        settings = load(None, (f"data_dir={Path(tmp) / 'data'}",), {})
        settings.data.mkdir()
        arbiter = Arbiter(settings)
        raw = Raw(settings, size=400)
        payload = m.encode(arbiter.status())
        ours: list[float] = []
        plain: list[float] = []
        for k in range(args.rounds + 50):
            for mine in (k % 2 == 0, k % 2 == 1):  # each goes first in turn
                time.sleep(REST_S)
                if mine:
                    ours.append(arbiter.grant_s())
                else:
                    plain.append(raw.round_trip_s(payload))
        del ours[:50], plain[:50]  # warm by then
        memory = arbiter.rss_mib()
        first_s = arbiter.first_s
        raw.stop()
        arbiter.stop()
    p50, raw50 = statistics.median(ours) * 1e3, statistics.median(plain) * 1e3
    p99, raw99 = (sorted(x)[int(len(x) * 0.99)] * 1e3 for x in (ours, plain))
    base_s = import_s("import zmq, msgspec")
    figures = [
        Figure.against("want -> lease p50, beside raw round trip + write + rename", p50, "ms", raw50),
        Figure("the difference (bound 0.5)", p50 - raw50, "ms"),
        Figure.against("want -> lease p99, beside raw", p99, "ms", raw99),
        Figure("start of the process -> first lease", first_s * 1e3, "ms"),
        Figure("arbiter RSS (bound 40)", memory, "MiB"),
        Figure.against(
            "import of the arbiter, beside import zmq, msgspec (bound 3)",
            import_s("import arbiter.__main__") * 1e3,
            "ms",
            base_s * 1e3,
        ),
        Figure("torch or NVML in the arbiter's modules (bound 0)", torch_in_arbiter(), ""),
    ]
    show(figures, args.json)


if __name__ == "__main__":
    main()
