"""What cannot be read (a bad disk, a damaged or somebody else's file, a language that the model does not know) is
named, and stops nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from common import backlog, wire
from common import messages as m
from common.feed_client import FeedClient, replay
from common.settings import Settings, Source
from tests.conftest import Processes, wait_for
from tests.speech import write_wav
from tests.system import quiet

pytestmark = pytest.mark.processes


def recorded(settings: Settings, name: str, seconds: float, lane: str = "live") -> Path:
    """A stream that has ended."""
    folder = settings.streams / name
    writer = backlog.Writer(folder, 60 * m.SAMPLE_RATE)
    writer.append(0, quiet(seconds).tobytes())
    writer.close()
    meta = backlog.Meta(
        stream=name, source=name, lane=lane, origin="a test", started_ns=1, resumable=True,
        ended=True, end=round(seconds * m.SAMPLE_RATE), end_reason="end of file",
    )  # fmt: skip
    backlog.write_meta(folder, meta)
    return folder


def beats(client: FeedClient) -> m.Beat | None:
    client.poll(0.5)
    return client.last_beat


def ended(settings: Settings) -> set[str]:
    return {e.stream for e in replay(settings, kinds=("stream_ended",))}


@pytest.mark.speech
def test_audio_that_cannot_be_read_waits_and_stops_no_other_stream(processes: Processes, settings: Settings) -> None:
    bad = recorded(settings, "a", 2.0)
    recorded(settings, "b", 2.0)
    foreign = recorded(settings, "c", 2.0)
    meta = backlog.read_meta(foreign)
    assert meta
    backlog.write_meta(foreign, msgspec.structs.replace(meta, language="pt"))
    (_, file), moved = backlog.audio_files(bad)[0], bad / "moved"
    file.rename(moved)
    file.mkdir()  # whoever opens it gets an error, also root
    processes.start("workers.feed")
    client = FeedClient(settings, kinds=())
    wait_for(lambda: beats(client), 20, "the feed")
    processes.start("arbiter")
    worker = processes.start("workers.transcriber")
    wait_for(lambda: ended(settings) == {"b"}, 60, "the end of the stream that can be read")

    def said() -> str:
        beat = beats(client)
        return beat.workers["transcriber"].detail if beat and "transcriber" in beat.workers else ""

    def both() -> str:
        why = said()
        return why if "a cannot be read: " in why and "c waits: " in why else ""

    why = wait_for(both, 20, "both reasons")
    assert "model tiny.en does not know language 'pt'; one that does: swapscribe models fetch base" in why
    file.rmdir()
    moved.rename(file)
    backlog.write_meta(foreign, meta)  # as its source says now
    wait_for(lambda: ended(settings) == {"a", "b", "c"}, 30, "the end of all")
    wait_for(lambda: not said(), 10, "no complaint")
    assert worker.alive and worker.output().count("audio cannot be read") == 1
    assert worker.output().count("stream waits") == 1
    client.close()


def test_the_feed_outlives_a_folder_that_it_cannot_read(processes: Processes, settings: Settings) -> None:
    folder = recorded(settings, "a", 1.0)
    meta = backlog.read_meta(folder)
    assert meta
    backlog.write_meta(folder, msgspec.structs.replace(meta, ended=False))
    (folder / "audio").rename(folder / "moved")
    (folder / "audio").write_text("no folder")
    damaged = recorded(settings, "b", 1.0)
    (damaged / "meta.json").write_text("{")
    feed = processes.start("workers.feed")
    client = FeedClient(settings, kinds=())
    seen = [wait_for(lambda: beats(client), 20, "a beat")]
    wait_for(lambda: seen.append(beats(client)) or len({b.at_ns for b in seen if b}) > 2, 20, "more beats")
    assert seen[-1] and set(seen[-1].streams) == {"a"}
    assert feed.output().count("its meta.json cannot be read") == 1
    client.close()


def test_a_capture_is_heard_before_it_has_a_stream(processes: Processes, settings: Settings) -> None:
    settings.data.mkdir(parents=True)
    settings = msgspec.structs.replace(settings, source=(Source(name="mic", kind="stdin"),))
    bell = wire.publisher(wire.ipc(settings, "doorbell@mic"))
    processes.start("workers.feed", settings=settings)
    client = FeedClient(settings, kinds=())
    full = m.Doorbell(source="mic", stream="", end=0, state="disk_full")

    def heard() -> m.Doorbell | None:
        wire.send(bell, [b"doorbell", m.encode(full)])
        beat = beats(client)
        return beat.captures.get("mic") if beat else None

    assert wait_for(heard, 20, "the beat to name it") == full
    client.close()
    bell.close()


def test_a_batch_whose_meta_is_damaged_is_one_line(processes: Processes, settings: Settings, folder: Path) -> None:
    write_wav(folder / "talk.wav", quiet(1.0))
    source = Source(name="talk", kind="file", path=str(folder / "talk.wav"), pace="max")
    settings = msgspec.structs.replace(settings, source=(source,))
    assert processes.start("capture", "--source", "talk", settings=settings).wait() == 0
    (stream,) = backlog.streams(settings.streams)
    (stream / "meta.json").write_text("{")
    again = processes.start("capture", "--source", "talk", settings=settings)
    assert again.wait() == 2
    assert f"swapscribe purge {stream.name}" in again.output() and "Traceback" not in again.output()
