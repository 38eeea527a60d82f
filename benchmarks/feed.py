"""What the feed costs: append -> subscriber beside a raw 4-KiB append + fdatasync in the same folder, interleaved.

`python benchmarks/feed.py [--rounds 400] [--events 1000000] [--json]`. A real feed process and real sockets; the
journal is measured at 10^3 events and again when it holds `--events`; then beside a subscriber that never reads.
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

REST_S = 0.008
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import messages as m  # noqa: E402
from common import wire  # noqa: E402
from common.settings import Settings, load  # noqa: E402

TEXT = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."
)


def transcript(stream: str, k: int) -> m.Transcript:
    """An event of ordinary size: 21 words with times (about 1.2 KB)."""
    first = k * 100_000
    words = tuple(
        m.Word(text=" " + w, span=(first + i * 4000, first + i * 4000 + 3500), p=0.9871)
        for i, w in enumerate(TEXT.split())
    )
    span = (first, first + 100_000)
    return m.Transcript(
        segment=m.segment_id(stream, first), span=span, text=TEXT, language="en", words=words, model="tiny.en"
    )


class FeedProcess:
    """A feed in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = (settings.data / "feed.log").open("ab")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "workers.feed", "--set", f"data_dir={settings.data}"], cwd=ROOT, stderr=self.log
        )
        self.asker = wire.Requester(wire.ipc(settings, "append"))
        self.sub = wire.subscriber([wire.ipc(settings, "pub")], ["event.", "beat"])
        while self.sub.poll(20_000) and self.sub.recv_multipart()[0] != b"beat":
            pass  # subscribed: the first beat is here

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def append_to_subscriber_s(self, stream: str, k: int) -> float:
        """Seconds from sending an append to having its event from the PUB socket."""
        append = m.Append(
            producer="bench", stream=stream, expect_n=k, positions={"audio": k}, events=(m.raw(transcript(stream, k)),)
        )
        began = time.perf_counter()
        self.asker.ask(append)
        while True:
            topic = self.sub.recv_multipart()[0]
            if topic != b"beat":
                break
        took = time.perf_counter() - began
        while self.asker.answer() is None:
            self.asker.socket.poll(1000)
        return took

    def stop(self) -> None:
        self.sub.close()
        self.asker.close()
        self.popen.send_signal(signal.SIGTERM)
        self.popen.wait(10)


def raw_s(fd: int) -> float:
    began = time.perf_counter()
    os.write(fd, b"x" * 4096)
    os.fdatasync(fd)
    return time.perf_counter() - began


def interleaved(feed: FeedProcess, folder: Path, stream: str, rounds: int) -> tuple[list[float], list[float], float]:
    """Medians are compared, so each round measures one of each. Returns ours, raw, feed cpu per append."""
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ours, raw = [], []
    cpu = feed.cpu_s()
    for k in range(rounds):
        # A throttled disk makes the second of two quick syncs wait: each goes first in turn, after a rest.
        for mine in (k % 2 == 0, k % 2 == 1):
            time.sleep(REST_S)
            if mine:
                ours.append(feed.append_to_subscriber_s(stream, k))
            else:
                raw.append(raw_s(fd))
    os.close(fd)
    return ours, raw, (feed.cpu_s() - cpu) / rounds


def fill(settings: Settings, events: int) -> None:
    """Grow the journal by the journal's own code, a thousand appends a transaction."""
    from workers.journal import Journal

    journal = Journal(settings.data / "journal")
    stream, k = "filler", 0
    while journal.head < events:
        group = [
            m.Append(
                producer="filler", stream=f"{stream}{i}", expect_n=k, positions={}, events=(m.raw(transcript("f", k)),)
            )
            for i in range(1000)
        ]
        answers, _ = journal.append(group)
        assert all(isinstance(a, m.At) for a in answers)
        k += 1
    journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".bench-") as tmp:
        folder = Path(tmp)
        settings = load(None, (f"data_dir={folder / 'data'}",), {})
        settings.data.mkdir()
        feed = FeedProcess(settings)
        interleaved(feed, folder, "warm", 1000)
        ours, raw, cpu = interleaved(feed, folder, "early", args.rounds)
        stalled = wire.subscriber([wire.ipc(settings, "pub")], [""], hwm=10)  # never reads
        beside, _, _ = interleaved(feed, folder, "stalled", args.rounds)
        stalled.close()
        feed.stop()
        fill(settings, args.events)
        feed = FeedProcess(settings)
        interleaved(feed, folder, "warm2", 200)
        late, late_raw, late_cpu = interleaved(feed, folder, "late", args.rounds)
        feed.stop()
    p50, raw50 = statistics.median(ours) * 1e3, statistics.median(raw) * 1e3
    late50, late_raw50 = statistics.median(late) * 1e3, statistics.median(late_raw) * 1e3
    figures = [
        Figure.against("append -> subscriber p50 at 10^3 events, beside raw append + fdatasync", p50, "ms", raw50),
        Figure("the same less 1 ms, beside raw (bound 2)", p50 - 1, "ms", raw50, (p50 - 1) / raw50),
        Figure.against(f"append -> subscriber p50 at {args.events} events, beside raw", late50, "ms", late_raw50),
        Figure.against(f"p50 at {args.events} events beside 10^3 (bound 1.5)", late50, "ms", p50),
        Figure("append -> subscriber p99 at 10^3 events", sorted(ours)[int(len(ours) * 0.99)] * 1e3, "ms"),
        Figure.against("p50 beside a subscriber that never reads", statistics.median(beside) * 1e3, "ms", p50),
        Figure("feed cpu per append at 10^3 events", cpu * 1e3, "ms"),
        Figure(f"feed cpu per append at {args.events} events", late_cpu * 1e3, "ms"),
    ]
    show(figures, args.json)


if __name__ == "__main__":
    main()
