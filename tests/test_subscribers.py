"""Subscribers of the feed: both example programs and many followers join late, lose messages, and end up identical."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import messages as m
from common import wire
from common.feed_client import Appender, FeedClient, Follower, Store
from common.settings import FeedSettings, Settings
from tests.conftest import ROOT, Processes, Started, wait_for

EXAMPLES = ROOT / "examples"
STREAMS = ("mic-1", "mic-2", "film-3")
KINDS = ("transcript", "silence", "suppressed", "gap", "translation")


class Writer:
    """Appends random events of several kinds to several streams; the seed makes it repeatable."""

    def __init__(self, settings: Settings, seed: int = 1) -> None:
        self.settings, self.random = settings, random.Random(seed)
        self.appender, self.n, self.head = Appender(settings, "writer"), dict.fromkeys(STREAMS, 0), 0

    def body(self, stream: str) -> m.Body:
        at = self.random.randrange(10**9)
        span, text = (at, at + 16_000), "wörds " * self.random.randrange(1, 30)
        match self.random.choice(KINDS):
            case "transcript":
                words = tuple(m.Word(text=w, span=span, p=self.random.random()) for w in text.split())
                segment = m.segment_id(stream, at)
                return m.Transcript(segment=segment, span=span, text=text, language="en", words=words, model="x")
            case "silence":
                return m.Silence(span=span)
            case "suppressed":
                return m.Suppressed(span=span, text=text, reason="noise")
            case "gap":
                return m.Gap(span=span, reason="lost", retryable=False)
        return m.Translation(segment=f"{stream}:{at}", revision=0, target="pt", text=text)

    def append(self, stream: str = "", events: int = 0) -> int:
        stream = stream or self.random.choice(STREAMS)
        bodies = [self.body(stream) for _ in range(events or self.random.randrange(1, 4))]
        answer = self.appender.append(stream, self.n[stream], {}, bodies)
        assert isinstance(answer, m.At) and answer.n == self.n[stream] + 1, answer
        self.n[stream], self.head = answer.n, answer.head
        return answer.head

    def purge(self, stream: str) -> int:
        asker = wire.Requester(wire.ipc(self.settings, "append"))
        assert isinstance(asker.request(m.Purge(stream=stream), 10.0), m.Done)
        asker.close()
        place = self.appender.at(stream)  # a purge moves the place of every producer
        assert isinstance(place, m.At)
        self.n[stream], self.head = place.n, self.head + 1  # the Purged event
        return self.head


def state_hash(settings: Settings, upto: int, kinds: tuple[str, ...] | None = None) -> str:
    asker = wire.Requester(wire.ipc(settings, "replay"))
    answer = asker.request(m.StateHash(kinds=kinds, upto=upto), 30.0)
    asker.close()
    assert isinstance(answer, m.Hash) and answer.upto == upto
    return answer.sha256


# -- the example programs ---------------------------------------------------------------------------------------------


def python_example() -> list[str]:
    return [sys.executable, str(EXAMPLES / "subscriber.py")]


def node_example() -> list[str]:
    """The JavaScript example, with its packages installed once into the cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed: the JavaScript subscriber is not tested")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node is {version}, the JavaScript subscriber needs 20: it is not tested")
    lock = (EXAMPLES / "package-lock.json").read_bytes()
    folder = Settings().cache / "tests" / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(EXAMPLES / name, folder)
        # The packages bring their binaries; nobody's install script needs to run.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"npm ci failed: {done.stderr[-500:]}"
        (folder / "installed").touch()
    shutil.copy(EXAMPLES / "subscriber.mjs", folder)
    return [node, str(folder / "subscriber.mjs")]


Example = Callable[[], list[str]]
both = pytest.mark.parametrize("example", [python_example, node_example])


def follow(processes: Processes, example: list[str], *args: str, ipc: bool = True) -> Started:
    where = [f"--{name}={wire.ipc(processes.settings, name)}" for name in ("pub", "replay")] if ipc else []
    return processes.spawn([*example, *where, "--exit-at-head", *args], "subscriber")


def result(process: Started, timeout_s: float = 60.0) -> tuple[int, str]:
    """(head, sha256) that a subscriber printed at its end."""
    assert process.wait(timeout_s) == 0, process.output()[-2000:]
    found = re.search(r"^head (\d+) sha256 ([0-9a-f]{64})$", process.output(), re.MULTILINE)
    assert found, process.output()[-2000:]
    return int(found[1]), found[2]


@both
def test_an_example_joins_late_and_has_the_feeds_state(
    example: Example, processes: Processes, feed: Started, settings: Settings
) -> None:
    command, writer = example(), Writer(settings)
    for _ in range(100):
        writer.append()
    writer.purge(STREAMS[0])
    writer.append()
    subsets: tuple[tuple[str, ...] | None, ...] = (None, ("transcript",), ("gap", "purged"), ("no_such_kind",))
    for kinds in subsets:
        process = follow(processes, command, *(["--kinds", ",".join(kinds)] if kinds else []))
        assert result(process) == (writer.head, state_hash(settings, writer.head, kinds))
        if kinds is None:
            assert re.search(r"^mic-2 \d\d+:\d\d wörds", process.output(), re.MULTILINE)
            assert not re.search(r"^mic-1 ", process.output(), re.MULTILINE), "purged text was printed"


@both
def test_an_example_with_losses_follows_live_through_a_purge_and_a_killed_feed(
    example: Example, processes: Processes, feed: Started, settings: Settings
) -> None:
    command, writer = example(), Writer(settings, seed=2)
    for _ in range(50):
        writer.append()
    total = writer.head + 4 * 200 + 1
    subsets: tuple[tuple[str, ...] | None, ...] = (None, ("transcript", "suppressed"))
    started = {
        kinds: follow(
            processes, command, "--drop=0.1", f"--seed={i}", f"--until={total}",
            *(["--kinds", ",".join(kinds)] if kinds else []),
        )
        for i, kinds in enumerate(subsets)
    }  # fmt: skip
    for process in started.values():
        wait_for(lambda p=process: "wörds" in p.output(), what="a subscriber that has joined")
    for _ in range(200):
        writer.append(events=1)
    purged = STREAMS[1]
    writer.purge(purged)
    for _ in range(200):
        writer.append(events=1)
    feed.kill()
    feed = processes.start("workers.feed")
    for _ in range(400):
        writer.append(events=1)
    assert writer.head == total
    for kinds, process in started.items():
        assert result(process) == (total, state_hash(settings, total, kinds)), kinds


@both
def test_an_example_over_tcp_with_curve(example: Example, processes: Processes, folder: Path) -> None:
    command, ports = example(), free_ports(2)
    pub, replay = (f"tcp://127.0.0.1:{p}" for p in ports)
    for name in ("keys", "stranger"):
        wire.Curve.make(folder / name)
    shutil.copy(folder / "keys/server.pub", folder / "stranger")  # knows the server, but the server does not know it
    settings = processes.settings = Settings(
        data_dir=processes.settings.data_dir,
        feed=FeedSettings(pub_tcp=pub, replay_tcp=replay, curve_dir=str(folder / "keys")),
    )
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    writer = Writer(settings)
    for _ in range(20):
        writer.append()
    total = writer.head + 100
    where = [f"--pub={pub}", f"--replay={replay}"]
    known = follow(processes, command, *where, f"--curve={folder / 'keys'}", f"--until={total}", ipc=False)
    stranger = follow(processes, command, *where, f"--curve={folder / 'stranger'}", ipc=False)
    wait_for(lambda: "wörds" in known.output(), what="a subscriber that has joined")
    for _ in range(100):
        writer.append(events=1)
    assert result(known) == (total, state_hash(settings, total))
    wait_for(lambda: "no answer from the feed" in stranger.output(), what="a stranger that is not answered")
    assert "head" not in stranger.output()


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_the_examples_import_none_of_our_code_and_the_lock_names_no_registry() -> None:
    for name in ("subscriber.py", "subscriber.mjs"):
        assert not re.search(
            r"^\s*(from|import) (common|workers|capture)\b|from '\.", (EXAMPLES / name).read_text(), re.M
        )
    lock = (EXAMPLES / "package-lock.json").read_text()
    assert "resolved" not in lock and "http" not in lock and '"zeromq": "6.' in lock


# -- many ----------------------------------------------------------------------------------------------------------


class LossyClient(FeedClient):
    """A follower that loses a share of what is published to it."""

    def __init__(self, settings: Settings, kinds: tuple[str, ...] | None, seed: int, loss: float = 0.1) -> None:
        super().__init__(settings, kinds=kinds, keep=True)
        self.random, self.loss, self.lost = random.Random(seed), loss, 0

    def _take(self, frames: wire.Frames) -> list[m.Event | m.Beat | m.Hypothesis]:
        if self.random.random() < self.loss:
            self.lost += 1
            return []
        return super()._take(frames)


def test_200_late_joiners_with_losses_reach_the_identical_state(
    processes: Processes, feed: Started, settings: Settings
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    joiners, appends = 200, 1200
    writer = Writer(settings, seed)
    plan = sorted((rng.randrange(appends * 9 // 10), i) for i in range(joiners))
    subset = {i: tuple(rng.sample(KINDS, rng.randrange(1, 3))) if rng.random() < 0.4 else None for i in range(joiners)}
    done, clients = 0, dict[int, LossyClient]()
    final, stop = 0, threading.Event()

    def run(part: int) -> None:
        mine, waiting = dict[int, LossyClient](), [p for p in plan if p[1] % 4 == part]
        while not stop.is_set() and (waiting or not final or any(c.head < final for c in mine.values())):
            while waiting and waiting[0][0] <= done:
                _, i = waiting.pop(0)
                clients[i] = mine[i] = LossyClient(settings, subset[i], seed + i)
            for client in mine.values():
                client.poll(0.001)
        for client in mine.values():
            client.close()

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in range(4)]
    for t in threads:
        t.start()
    began = time.monotonic()
    for done in range(appends):  # the threads read it
        writer.append()
        if done == appends * 2 // 3:
            writer.purge(STREAMS[2])
    final = writer.head
    print(f"{final} events in {time.monotonic() - began:.1f} s")
    for t in threads:
        t.join(120)
    stuck = [(i, c.head, subset[i]) for i, c in clients.items() if c.head < final]
    stop.set()
    assert not stuck, f"not complete after 120 s (seed {seed}): {stuck[:5]} of {len(stuck)}"
    print(f"complete after {time.monotonic() - began:.1f} s; {sum(c.lost for c in clients.values())} messages lost")
    hashes = {k: state_hash(settings, final, k) for k in {c._kinds for c in clients.values()}}
    assert len(clients) == joiners and all(c.lost for c in clients.values())
    for i, c in clients.items():
        assert c.store and c.store.state_hash(final) == hashes[c._kinds], (
            f"joiner {i} of seed {seed}, kinds {subset[i]}"
        )


def test_a_page_older_than_a_purge_brings_nothing_back() -> None:
    follower, store = Follower(("silence", "purged")), Store()
    silence, purged = m.encode(m.Silence(span=(0, 9))), m.encode(m.Purged(stream="s", seqs=((1, 1),)))
    first = m.Event(seq=1, prev=0, stream="s", kind="silence", producer="p", n=1, at_ns=1, body=silence)
    second = m.Event(seq=2, prev=0, stream="s", kind="purged", producer="feed", n=1, at_ns=2, body=purged)
    for e in follower.live(second):  # comes while a page that was read before it is on its way
        store.apply(e)
    for e in follower.page(m.Page(journal="j", first=1, head=1, upto=1, events=(first,))):
        store.apply(e)
    expected = hashlib.sha256(first.tombstone().canonical() + second.canonical()).hexdigest()
    assert store.state_hash() == expected


def test_what_a_killed_feed_did_not_publish_reaches_a_subscriber_of_one_kind(
    processes: Processes, feed: Started, settings: Settings
) -> None:
    writer, names = Appender(settings, "writer"), [f"old-{i:02d}" for i in range(30)]
    for name in names:
        assert isinstance(writer.append(name, 0, {}, [m.SpeakerName(speaker="a", name="A")]), m.At)
    client = LossyClient(settings, ("speaker_name",), seed=1, loss=0.0)
    wait_for(lambda: client.poll(0.01) and client.head == len(names) and client.last_beat, what="a client at the head")
    client.loss = 1.0
    at = writer.append(names[-1], 1, {}, [m.SpeakerName(speaker="a", name="B")])
    assert isinstance(at, m.At)
    feed.kill()  # before a beat could tell
    wait_for(lambda: client.poll(0.01) == [] and client.lost, what="the loss")
    processes.start("workers.feed")
    client.loss = 0.0
    wait_for(lambda: client.head >= at.head or client.poll(0.01) is None, what="the head")
    assert client.store and at.head in client.store.events
    client.close()


# -- a stalled subscriber --------------------------------------------------------------------------------------------


@pytest.fixture
def stalled(processes: Processes) -> Iterator[Callable[[], None]]:
    """Starts subscribers that are stopped as soon as they have joined; they go on in the end."""
    stopped: list[Started] = []

    def start() -> None:
        for _ in range(3):
            address = [f"--{name}={wire.ipc(processes.settings, name)}" for name in ("pub", "replay")]
            process = processes.spawn([*python_example(), *address], "stalled")
            wait_for(lambda p=process: "wörds" in p.output(), what="a subscriber that has joined")
            process.signal(signal.SIGSTOP)
            stopped.append(process)

    yield start
    for process in stopped:
        process.signal(signal.SIGCONT)


def test_a_stalled_subscriber_slows_nobody(
    processes: Processes, feed: Started, settings: Settings, stalled: Callable[[], None]
) -> None:
    writer, reader = Writer(settings), FeedClient(settings)
    text = "wörds " * 2000  # 14 KB an event: 400 of them overflow every socket buffer on the way

    def latencies() -> tuple[list[float], list[float]]:
        """Seconds from append to answer, and from append to a subscriber that reads."""
        answers, arrivals = [], []
        for _ in range(400):
            began = time.perf_counter()
            body = m.Suppressed(span=(0, 1), text=text, reason="noise")
            at = writer.appender.append("mic-1", writer.n["mic-1"], {}, [body])
            answers.append(time.perf_counter() - began)
            assert isinstance(at, m.At)
            writer.n["mic-1"] = at.n
            while reader.head < at.head:
                reader.poll(1.0)
            arrivals.append(time.perf_counter() - began)
        return answers, arrivals

    writer.append()
    before = latencies()
    stalled()
    after = latencies()
    reader.close()
    for name, x, y in zip(("append", "append to subscriber"), before, after, strict=True):
        a, b = statistics.median(x) * 1000, statistics.median(y) * 1000
        worst = max(y) * 1000
        print(f"{name}: median {a:.2f} ms, with three stalled subscribers {b:.2f} ms (worst {worst:.1f} ms)")
        assert b < 3 * a + 5 and worst < 1000, name
    assert os.getpgid(feed.pid) and feed.alive
