"""The feed as a process: kills, stops, garbage, two writers, the beat, TCP with CURVE."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from common import backlog, wire
from common import messages as m
from common.feed_client import Appender, FeedClient, replay
from common.settings import FeedSettings, Settings, SpeakerSettings
from tests.conftest import Processes, Started, wait_for

pytestmark = pytest.mark.processes


def beat_of(client: FeedClient, wanted: str = "", timeout_s: float = 10.0) -> m.Beat:
    """Next beat, naming stream `wanted` if given."""

    def look() -> m.Beat | None:
        beats = [b for b in client.poll(0.5) if isinstance(b, m.Beat) and (not wanted or wanted in b.streams)]
        return beats[-1] if beats else None

    return wait_for(look, timeout_s, f"a beat with {wanted!r}")


@pytest.fixture
def feed(processes: Processes, settings: Settings) -> Iterator[Started]:
    settings.data.mkdir(parents=True)
    yield processes.start("workers.feed")


@pytest.fixture
def asker(settings: Settings, feed: Started) -> Iterator[wire.Requester]:
    asker = wire.Requester(wire.ipc(settings, "append"))
    assert isinstance(asker.request(m.Append(producer="t", stream="s", expect_n=-1), 10), m.At)
    yield asker
    asker.close()


def at(asker: wire.Requester, timeout_s: float = 5.0) -> m.Answer:
    return asker.request(m.Append(producer="t", stream="s", expect_n=-1), timeout_s)


@pytest.mark.parametrize("endpoint", ["append", "replay"])
def test_garbage_gets_one_clear_refusal_and_hurts_nobody(
    feed: Started, asker: wire.Requester, settings: Settings, endpoint: str
) -> None:
    rough = zmq.Context.instance().socket(zmq.DEALER)
    rough.setsockopt(zmq.LINGER, 0)
    rough.connect(wire.ipc(settings, endpoint))
    rng = random.Random(7)
    bombs = [b"", b"\xc1", b"\x81", b"[" * 10_000, b"\x91" * 100_000, m.encode({"type": "append"}), m.encode([1])]
    bombs += [m.encode({"type": "append", "protocol": 1, "producer": 3, "stream": "s", "expect_n": 0})]
    bombs += [m.encode({"type": "replay", "after": "x"}), m.encode({"type": "state_hash", "kinds": 3})]
    bombs += [rng.randbytes(rng.randrange(1, 4000)) for _ in range(200)]
    for i, bomb in enumerate(bombs):
        rough.send_multipart([str(i).encode(), bomb])
        assert rough.poll(5000), f"no answer to {bomb[:40]!r}"
        envelope, payload = rough.recv_multipart()
        answer = m.decode_answer(payload)
        assert envelope == str(i).encode() and isinstance(answer, m.Refused) and "malformed" in answer.reason
    rough.send(b"no envelope")  # a single frame is its own payload
    rough.send_multipart([b"many", b"frames", b"", b"garbage"])
    rough.close()
    assert isinstance(at(asker), m.At)
    lines = [line for line in feed.output().splitlines() if '"refused"' in line]
    assert 1 <= len(lines) <= 12, "nonsense is told on its 1st, 2nd, 4th, 8th … occurrence"


def test_an_oversized_message_costs_its_sender_the_connection_only(asker: wire.Requester, settings: Settings) -> None:
    rough = zmq.Context.instance().socket(zmq.DEALER)
    rough.setsockopt(zmq.LINGER, 0)
    rough.connect(wire.ipc(settings, "append"))
    rough.send_multipart([b"1", b"x" * (wire.MAX_MESSAGE + 1)])
    assert isinstance(at(asker), m.At)
    assert not rough.poll(500)
    rough.close()


def test_a_client_that_asks_and_never_reads_does_not_fill_the_memory(asker: wire.Requester, settings: Settings) -> None:
    told = tuple(m.raw(m.Suppressed(span=(0, 1), text="x" * 9000, reason="loop")) for _ in range(30))
    asker.request(m.Append(producer="t", stream="s", expect_n=0, events=told), 10)
    rude = zmq.Context.instance().socket(zmq.DEALER)
    for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.SNDHWM, 10_000)):
        rude.setsockopt(option, value)
    rude.connect(wire.ipc(settings, "replay"))
    for _ in range(500):
        rude.send_multipart([b"", m.encode(m.Replay(after=0))])
    polite = wire.Requester(wire.ipc(settings, "replay"))
    for _ in range(600):  # the feed takes from both in turn: all questions of the rude one are answered by then
        assert isinstance(polite.request(m.Replay(after=0, limit=1), 20), m.Page)
    polite.close()
    kept = 0
    while rude.poll(1000):
        rude.recv_multipart()
        kept += 1
    assert 0 < kept < 100
    rude.close()


def test_another_protocol_version_is_told_so(asker: wire.Requester) -> None:
    answer = asker.request(m.Append(producer="t", stream="s", expect_n=-1, protocol=99), 5)
    assert isinstance(answer, m.Refused) and "wrong protocol 99" in answer.reason and "1" in answer.reason


def test_a_plain_req_socket_is_served(asker: wire.Requester, settings: Settings) -> None:
    req = zmq.Context.instance().socket(zmq.REQ)
    req.setsockopt(zmq.LINGER, 0)
    req.connect(wire.ipc(settings, "replay"))
    req.send(m.encode(m.Replay(after=0)))
    assert req.poll(5000)
    assert isinstance(m.decode_answer(req.recv()), m.Page)
    req.close()


def test_after_a_graceful_stop_the_journal_is_one_file(
    feed: Started, asker: wire.Requester, settings: Settings
) -> None:
    """Who copies it has everything. (Somebody had asked for a replay: that is a connection of its own.)"""
    events = (m.raw(m.Silence(span=(0, 1))),)
    assert isinstance(asker.request(m.Append(producer="t", stream="s", expect_n=0, events=events), 5), m.At)
    assert len(list(replay(settings))) == 1
    assert feed.stop() == 0
    assert [p.name for p in (settings.data / "journal").iterdir()] == ["journal.sqlite"]


def test_a_second_feed_is_refused_in_one_line(processes: Processes, feed: Started, asker: wire.Requester) -> None:
    second = processes.start("workers.feed")
    assert second.wait() == 3
    assert second.output().splitlines() == [
        f"swapscribe: feed is already running as pid {feed.pid}; to take its place: swapscribe run feed"
    ]
    assert isinstance(at(asker), m.At)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(processes: Processes, settings: Settings, seed: int) -> None:
    """Two writers of one name append the same history while the feed is killed again and again."""
    rng = random.Random(seed)
    settings.data.mkdir(parents=True)
    feed = processes.start("workers.feed")
    least, kills = 400, 15
    enough = threading.Event()
    failures: list[BaseException] = []
    reached: list[int] = []

    def write() -> None:
        try:
            appender = Appender(settings, "twin")
            place = m.At(n=0, positions={}, state=b"", head=0)
            done = False
            while not done:  # asked after an answer only: who gives up in between does not know what was written
                body = m.Silence(span=(place.n, place.n + 1))
                try:
                    got = appender.append("s", place.n, {"audio": place.n + 1}, [body], timeout_s=0.5)
                except wire.Unreachable:
                    continue
                assert isinstance(got, m.At)
                assert got.n >= place.n and got.positions.get("audio", 0) == got.n
                place = got
                done = place.n >= least and enough.is_set()
            reached.append(place.n)
            appender.close()
        except BaseException as e:
            failures.append(e)

    client = FeedClient(settings, keep=True)
    writers = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for w in writers:
        w.start()
    while kills and not failures:
        client.poll(rng.uniform(0.0, 0.25))
        feed.kill()
        feed = processes.start("workers.feed")
        wait_for(lambda feed=feed: "serving" in feed.output())
        kills -= 1
    enough.set()
    for w in writers:
        w.join()
    assert not failures and not kills
    total = max(reached)
    events = list(replay(settings))
    assert [e.seq for e in events] == list(range(1, total + 1))
    assert [e.decode() for e in events] == [m.Silence(span=(i, i + 1)) for i in range(total)]
    wait_for(lambda: client.poll(0.1) is not None and client.head == total)
    answer = wire.Requester(wire.ipc(settings, "replay")).request(m.StateHash(), 5)
    assert isinstance(answer, m.Hash) and client.store and client.store.state_hash() == answer.sha256
    client.close()


def test_a_stopped_feed_delays_and_doubles_nothing(feed: Started, asker: wire.Requester) -> None:
    ask = m.Append(
        producer="p", stream="s", expect_n=0, positions={"audio": 1}, events=(m.raw(m.Silence(span=(0, 1))),)
    )
    feed.signal(signal.SIGSTOP)
    for _ in range(5):
        with pytest.raises(wire.Unreachable):
            asker.request(ask, 0.2)
    feed.signal(signal.SIGCONT)
    assert asker.request(ask, 5) == m.At(n=1, positions={"audio": 1}, state=b"", head=1)


def test_the_beat_tells_lag_coverage_and_who_has_read_how_far(
    feed: Started, asker: wire.Requester, settings: Settings
) -> None:
    folder = settings.streams / "mic-20260101T000000Z"
    folder.mkdir(parents=True)
    meta = backlog.Meta(
        stream=folder.name, source="mic", lane="live", origin="test", started_ns=time.time_ns(), resumable=False
    )
    backlog.write_meta(folder, meta)
    writer = backlog.Writer(folder, 60 * m.SAMPLE_RATE)
    writer.append(0, bytes(2 * 10 * m.SAMPLE_RATE))
    writer.close()
    client = FeedClient(settings)
    beat = beat_of(client, folder.name)
    assert beat.streams[folder.name].audio_head == 160_000 and beat.streams[folder.name].lag_s == 10.0
    assert beat.streams[folder.name].coverage == m.Coverage(pending=160_000)
    appender = Appender(settings, "transcriber")
    appender.append(folder.name, 0, {"audio": 64_000}, [m.Silence(span=(0, 64_000))])
    beat = wait_for(lambda: ((b := beat_of(client, folder.name)).head == 1 and b) or None)
    sb = beat.streams[folder.name]
    assert sb.coverage == m.Coverage(silence=64_000, pending=96_000) and sb.lag_s == 6.0
    assert sb.heads == {"silence": 1}
    assert sb.producers == {"transcriber": m.ProducerBeat(n=1, positions={"audio": 64_000})}
    appender.tell(m.WorkerStatus(worker="transcriber", pid=1, phase="idle", lag_s={folder.name: 0.5}))
    beat = wait_for(lambda: ((b := beat_of(client, folder.name)).workers and b) or None)
    assert beat.streams[folder.name].lag_s == 0.5  # a worker that speaks knows better: it has scanned further
    wait_for(lambda: not beat_of(client, folder.name).workers, what="a silent worker to be forgotten")
    client.close()


@pytest.mark.parametrize("ended", [False, True])
def test_audio_deleted_by_hand_takes_no_head_below_what_was_heard(
    feed: Started, asker: wire.Requester, settings: Settings, ended: bool
) -> None:
    meta = backlog.Meta(
        stream="mic-1", source="mic", lane="live", origin="test", started_ns=1, resumable=False, ended=ended, end=9
    )
    writer = backlog.Writer(settings.streams / meta.stream, 60 * m.SAMPLE_RATE)
    writer.append(0, bytes(2 * 64_000))
    backlog.write_meta(writer.folder, meta)  # what has ended without its audio ends where something proved it
    Appender(settings, "transcriber").append(meta.stream, 0, {"audio": 64_000}, [m.Silence(span=(0, 64_000))])
    for _first, path in backlog.audio_files(writer.folder):
        path.unlink()
    client = FeedClient(settings)
    stream = wait_for(lambda: (s := beat_of(client, meta.stream).streams[meta.stream]).producers and s)
    assert stream.audio_head == 64_000 and stream.lag_s == 0
    assert stream.coverage == m.Coverage(silence=64_000)
    client.close()


def test_voices_do_not_outlive_a_diarizer_that_was_turned_off(processes: Processes, settings: Settings) -> None:
    off = msgspec.structs.replace(settings, speakers=SpeakerSettings(enabled=False))
    for stream, ended in (("over", True), ("open", False), ("gone", None)):
        settings.windows(stream).mkdir(parents=True)
        (settings.windows(stream) / "windows").write_bytes(b"voices")
        if ended is not None:
            (settings.streams / stream).mkdir(parents=True)
            meta = backlog.Meta(stream=stream, source="s", lane="live", origin="", started_ns=1, resumable=False)
            backlog.write_meta(settings.streams / stream, msgspec.structs.replace(meta, ended=ended))
    processes.start("workers.feed", settings=off)
    kept = settings.windows("")
    wait_for(lambda: [p.name for p in kept.iterdir()] == ["open"], 20, "voices of what is over to go")


def test_hypotheses_pass_and_older_revisions_do_not(asker: wire.Requester, settings: Settings) -> None:
    client = FeedClient(settings, kinds=(), hypotheses=True)
    beat_of(client)

    def say(revision: int, stable: str) -> None:
        asker.tell(m.Hypothesis(stream="s", segment="s:0", revision=revision, span=(0, 1), stable=stable, unstable=""))

    for revision, stable in ((1, "a"), (3, "a b c"), (2, "a b"), (3, "again"), (4, "a b c d")):
        say(revision, stable)
    seen: list[str] = []
    while "a b c d" not in seen:
        seen += [h.stable for h in client.poll(5.0) if isinstance(h, m.Hypothesis)]
    assert seen == ["a", "a b c", "a b c d"]
    client.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_tcp_is_off_unless_asked_for_and_then_only_known_keys_come_in(processes: Processes, settings: Settings) -> None:
    settings.data.mkdir(parents=True)
    pub, rep = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    curve = wire.Curve(settings.data / "curve")
    on = msgspec.structs.replace(settings, feed=FeedSettings(pub_tcp=pub, replay_tcp=rep))
    without_keys = processes.start("workers.feed", settings=on)
    assert without_keys.wait() == 2 and "swapscribe keys" in without_keys.output().splitlines()[-2]
    curve.make(curve.folder, "client")
    stranger = wire.Curve(settings.data / "stranger")
    stranger.make(stranger.folder, "client")
    (stranger.folder / "server.pub").write_bytes((curve.folder / "server.pub").read_bytes())
    feed = processes.start("workers.feed", settings=on)
    known = wire.Requester(rep, curve)
    assert isinstance(known.request(m.Replay(after=0), 10), m.Page)
    for keys in (None, stranger):
        with pytest.raises(wire.Unreachable):
            wire.Requester(rep, keys).request(m.Replay(after=0), 1.0)
    sub = wire.subscriber([], ["beat"])
    curve.client(sub)
    sub.connect(pub)
    assert sub.poll(5000), "a subscriber with a known key hears the beat"
    assert os.stat(curve.folder / "server.key").st_mode & 0o077 == 0
    curve.make(curve.folder, "later")
    newcomer = wire.Asker(rep)  # keys made while the feed runs
    newcomer.close()
    newcomer.socket = wire._socket(zmq.DEALER)
    curve.client(newcomer.socket, "later")
    newcomer.socket.connect(rep)
    newcomer.ask(m.Replay(after=0))
    assert newcomer.socket.poll(5000) and isinstance(newcomer.answer(), m.Page)
    again = processes.start("workers.feed", settings=msgspec.structs.replace(on, data_dir=settings.data_dir + "2"))
    assert again.wait() == 2
    feed.stop()


def test_a_taken_port_is_one_line(processes: Processes, settings: Settings) -> None:
    settings.data.mkdir(parents=True)
    curve = wire.Curve(settings.data / "curve")
    curve.make(curve.folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        feed = processes.start(
            "workers.feed", settings=msgspec.structs.replace(settings, feed=FeedSettings(pub_tcp=address))
        )
        assert feed.wait() == 2
        lines = [line for line in feed.output().splitlines() if line.startswith("swapscribe: ")]
        assert len(lines) == 1 and address in lines[0] and "in use" in lines[0]
