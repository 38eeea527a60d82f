"""capture's decisions, without a process: the ring, holes by the clock, which stream goes on, what may be deleted."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import time
from math import inf
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import soxr
from hypothesis import given, settings

from capture import intake as intake_module
from capture.intake import Intake, elapsed_ns
from capture.microphone import Behind, Device, NoDevice, choose
from capture.pace import Schedule
from capture.resample import Resampler
from capture.retention import Candidate, Retention, due, read_upto, say_swept
from capture.ring import Patience, Ring, Run
from capture.streams import Found, Stream, age_s
from capture.streams import choose as choose_stream
from capture.writer import WriterThread
from common import backlog, topology
from common import messages as m
from common.backlog import Anchor, Meta
from common.process import Log
from common.settings import CaptureSettings, RetentionSettings, Settings, Source, SpeakerSettings
from common.wire import run_dir
from tests.capture_helpers import RATE, numbered
from tests.conftest import ROOT

pytestmark = pytest.mark.pure
NS = 10**9


def taken(ring: Ring) -> list[tuple[int, int, str]]:
    """Drain: (start, end, reason) of holes, "" for samples that are the right ones."""
    out = []
    while run := ring.first():
        if run.pcm:
            assert run.pcm == numbered(run.start, run.end - run.start)
        out.append((run.start, run.end, run.reason))
        ring.release(run.end)
    return out


def test_the_ring_gives_what_it_got_and_joins_neighbours() -> None:
    ring = Ring(30)
    ring.begin(100)
    for _ in range(3):
        assert ring.put(numbered(ring.end, 10), Patience.ALWAYS)
    ring.jump(200, "device overflow", lost=True)
    ring.jump(220, "device overflow", lost=True)
    ring.jump(150, "never", lost=True)  # the past is no hole
    ring.put(numbered(220, 5), Patience.ALWAYS)
    assert ring.lost == 90
    assert taken(ring) == [(100, 130, ""), (130, 220, "device overflow"), (220, 225, "")]
    assert ring.waiting_s == 0


def test_a_part_taken_by_a_full_disk_is_released() -> None:
    ring = Ring(30)
    ring.put(numbered(0, 10), Patience.ALWAYS)
    ring.put(numbered(10, 10), Patience.ALWAYS)
    ring.release(13)
    assert ring.first() == Run(13, 20, numbered(13, 7))
    assert ring.waiting_s * RATE == 7


def test_a_full_ring_loses_the_newest_in_one_hole() -> None:
    ring = Ring(30)
    ring.disk_full = True
    for _ in range(40):
        assert ring.put(numbered(ring.end, RATE), Patience.WHILE_DISK_TAKES)
    assert ring.end == 40 * RATE and ring.lost == 10 * RATE and ring.waiting_s == 30
    ring.release(10 * RATE)
    assert ring.put(numbered(ring.end, RATE), Patience.NEVER)
    assert ring.lost == 11 * RATE, "it waits for half the room"
    ring.release(16 * RATE)
    ring.put(numbered(ring.end, RATE), Patience.NEVER)
    assert taken(ring) == [(16 * RATE, 30 * RATE, ""), (30 * RATE, 41 * RATE, "disk full"), (41 * RATE, 42 * RATE, "")]


def test_a_closed_ring_lets_nobody_wait() -> None:
    ring = Ring(30)
    ring.put(bytes(30 * RATE * 2), Patience.ALWAYS)
    ring.close()
    assert not ring.put(bytes(2), Patience.ALWAYS)


def anchor(sample: int, boot_s: float, wall_s: float = 1000.0, boot: str = "b") -> Anchor:
    return Anchor(sample=sample, wall_ns=int(wall_s * NS), boot_ns=int(boot_s * NS), boot_id=boot)


def test_time_is_told_by_the_boot_clock_within_a_boot_and_by_the_wall_clock_across() -> None:
    assert elapsed_ns(anchor(0, 10, 1000), anchor(0, 12, 5000)) == 2 * NS
    assert elapsed_ns(anchor(0, 10, 1000), anchor(0, 1, 1007, boot="c")) == 7 * NS
    assert elapsed_ns(anchor(0, 10, 1000), anchor(0, 1, 900, boot="c")) == 0, "a clock set back"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(intake_module, "boot_ns", lambda: int(now[0] * NS))
    return now


def test_a_resumed_microphone_jumps_by_the_time_passed(clock: list[float]) -> None:
    ring = Ring(30)
    intake = Intake(ring)
    last = anchor(5 * RATE, 990.0, boot=backlog.boot_id())
    intake.resume(7 * RATE, last)  # it wrote two more seconds after its last anchor
    intake.put(numbered(15 * RATE - 1600, 1600), Patience.NEVER)
    assert taken(ring) == [(7 * RATE, 15 * RATE - 1600, "capture was down"), (15 * RATE - 1600, 15 * RATE, "")]
    assert ring.lost == 0, "this process lost nothing"


def test_a_resumed_pipe_that_is_ahead_of_the_clock_has_no_hole(clock: list[float]) -> None:
    ring = Ring(30)
    intake = Intake(ring)
    intake.resume(50 * RATE, anchor(0, 990.0, boot=backlog.boot_id()))
    intake.put(numbered(50 * RATE, 1600), Patience.NEVER)
    assert taken(ring) == [(50 * RATE, 50 * RATE + 1600, "")]


def test_a_device_that_was_away_leaves_a_hole(clock: list[float]) -> None:
    ring = Ring(30)
    intake = Intake(ring)
    intake.resume(0, None)
    intake.away("device was away")  # before any sample there is nothing to be away from
    intake.put(numbered(0, 1600), Patience.NEVER)
    clock[0] += 3.1
    intake.away("device was away")
    intake.put(numbered(1600 + 3 * RATE, 1600), Patience.NEVER)
    assert taken(ring)[1] == (1600, 1600 + 3 * RATE, "device was away")
    assert ring.lost == 3 * RATE


def test_a_file_is_not_older_than_the_run_that_plays_it() -> None:
    """A microphone's first samples are: they had been heard when they came."""
    for resumable, heard_before_s in ((True, 0.0), (False, 1.0)):
        intake, before = Intake(Ring(30)), time.time_ns()
        intake.resumable = resumable
        intake.put(bytes(2 * RATE), Patience.NEVER)  # a second of sound
        assert 0 <= intake.started_ns + heard_before_s * NS - before < NS / 2


def test_anchors_come_each_minute_and_when_a_live_source_leaves_the_clock(clock: list[float]) -> None:
    def run(resumable: bool, chunks: int, seconds_each: float) -> list[int]:
        intake, seen = Intake(Ring(10_000)), list[int]()
        intake.resumable = resumable
        for _ in range(chunks):
            clock[0] += seconds_each
            intake.put(bytes(2 * RATE), Patience.NEVER)
            if intake.anchor and (not seen or seen[-1] != intake.anchor.sample):
                seen.append(intake.anchor.sample)
        return [s // RATE for s in seen]

    assert run(False, 130, 1.0) == [1, 61, 121]
    assert run(True, 130, 2.0) == [1, 31, 61, 91, 121], "a file at half pace: each minute of the clock"
    assert run(False, 8, 1.5) == [1, 4, 7], "a stalling pipe: each time it is a second off"


def meta(**changes: object) -> Meta:
    plain = Meta(stream="s", source="mic", lane="live", origin="o", started_ns=100 * NS, resumable=False)
    return msgspec.structs.replace(plain, **changes)


def test_the_newest_stream_that_fits_goes_on() -> None:
    def one(sample_s: float, **changes: object) -> Found:
        return Found(Path("s"), meta(**changes), 0, anchor(0, sample_s), 0)

    now = anchor(0, 1000.0)
    young, newer, old = one(700), one(800, started_ns=200 * NS), one(300)
    assert choose_stream([young, newer, old], "o", 0, now, 600) is newer
    assert choose_stream([old], "o", 0, now, 600) is None
    assert choose_stream([young], "other", 0, now, 600) is None, "the settings name another device"
    played = one(700, changed_ns=5 * NS)
    assert choose_stream([played], "o", 5 * NS, now, 600) is played
    for changed_ns in (0, 4 * NS, 6 * NS, 9999 * NS):
        assert choose_stream([played], "o", changed_ns, now, 600) is None, "another file, be it older"
    assert choose_stream([young], "o", 9999 * NS, now, 600) is young, "of a version that did not write it down"
    assert choose_stream([one(900, lane="batch")], "o", 0, now, 600) is None


def test_a_file_goes_on_and_another_under_its_name_begins_whatever_their_times_are(folder: Path) -> None:
    """A clock that was put back leaves files that are of the future."""
    where, source = Settings(data_dir=str(folder)), Source(name="talk", kind="file", path="talk.wav")
    hour_ns, at = 3600 * NS, time.time_ns()

    def life(changed_ns: int) -> str:
        stream = Stream(where, source, "talk.wav", "live")
        stream.find(changed_ns=changed_ns)
        stream.end_stale()
        stream.open(time.time_ns(), resumable=True).close()
        return stream.name

    for changed_ns in (at + hour_ns, at - hour_ns, at):
        names = {life(changed_ns), life(changed_ns), life(changed_ns)}
        assert len(names) == 1
    assert len(backlog.streams(where.streams)) == 3


def test_age_is_that_of_the_last_write_or_anchor() -> None:
    found = Found(Path("s"), meta(), 0, anchor(0, 100.0), int(995 * NS))
    assert age_s(found, anchor(0, 150.0, wall_s=1000)) == 5
    assert age_s(found._replace(last_write_ns=0), anchor(0, 150.0)) == 50


def test_a_clock_that_was_put_back_does_not_make_a_stream_young() -> None:
    """A microphone would go on there with a hole of any length, or of none at all."""
    found = Found(Path("s"), meta(), 0, anchor(0, 100.0), int(1000 * NS))
    two_hours = anchor(0, 7300.0, wall_s=500)
    assert age_s(found, two_hours) == 7200 - 2 * 60, "the last write is at most as much younger than the last anchor"
    assert age_s(found, anchor(0, 150.0, wall_s=500)) == 0, "restarted at once"
    assert age_s(found, anchor(0, 5.0, wall_s=999, boot="c")) == inf, "off for how long? A new stream is honest"
    assert age_s(found, anchor(0, 5.0, wall_s=1030, boot="c")) == 30


def test_a_stream_purged_since_it_was_found_is_not_written(folder: Path) -> None:
    where, source = Settings(data_dir=str(folder)), Source(name="mic", kind="stdin")
    begun = Stream(where, source, "stdin", "live")
    begun.open(1_700_000_000 * NS, False).append(0, b"\1\0")
    again = Stream(where, source, "stdin", "live")
    again.folder, again.meta = begun.folder, begun.meta
    assert again.folder
    backlog.remove(again.folder)
    with pytest.raises(FileNotFoundError):
        again.open(1_700_000_000 * NS, False)
    assert not again.folder.exists()


@pytest.mark.parametrize("lane", ["live", "batch"])
def test_streams_are_away_when_their_folder_is_another_one(folder: Path, lane: str) -> None:
    where = Settings(data_dir=str(folder))
    stream = Stream(where, Source(name="f", kind="file", path="x"), "x", lane)
    stream.find(content="c" * 64)
    stream.open(1_700_000_000 * NS, resumable=True).close()
    assert stream.folder
    backlog.remove(stream.folder)
    assert not stream.away, "this one was purged"
    where.streams.rename(folder / "unmounted")
    assert stream.away
    where.streams.mkdir()
    assert stream.away


def test_a_stream_that_goes_on_is_heard_as_its_source_says_now(folder: Path) -> None:
    where = Settings(data_dir=str(folder))
    for language, terms in (("pt", ("Orsk",)), ("", ()), ("auto", ())):
        source = Source(name="mic", kind="stdin", language=language, glossary=terms)
        stream = Stream(where, source, "stdin", "live")
        stream.find()
        stream.open(time.time_ns(), resumable=True).close()
        assert stream.folder and (meta := backlog.read_meta(stream.folder))
        assert (meta.language, meta.glossary) == (language, terms)
    assert len(backlog.streams(where.streams)) == 1, "one stream all the time"
    stream.finish(0, "stopped")
    assert (done := backlog.read_meta(stream.folder)) and done.language == "auto" and done.ended


def test_two_streams_begun_in_one_second_have_two_names(folder: Path) -> None:
    where = Settings(data_dir=str(folder))
    names = []
    for _ in range(2):
        stream = Stream(where, Source(name="mic", kind="stdin"), "o", "live")
        stream.open(1_795_376_570 * NS, resumable=False).close()
        names.append(stream.name)
    assert names == ["mic-20261122T194250Z", "mic-20261122T194251Z"]


def test_the_end_is_told_only_when_the_samples_are_on_the_platter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, stream = Ring(30), Stream(Settings(data_dir=str(folder)), Source(name="mic", kind="stdin"), "o", "live")
    writer = WriterThread(ring, Intake(ring), 60.0, lambda: None, Log("capture"))
    synced, fdatasync = list[tuple[str, int]](), os.fdatasync

    def record(fd: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), writer.end))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", record)
    writer.stream, writer.end_reason = stream, "end of input"
    writer.intake.put(numbered(0, 500), Patience.ALWAYS)
    ring.close()
    writer.run()
    assert writer.done and writer.error is None and writer.end == 500
    assert next(end for path, end in synced if path.endswith(".pcm")) == 0
    found = backlog.read_meta(folder / "streams" / stream.name)
    assert found and (found.ended, found.end) == (True, 500)


def beat(journal: str = "j", **positions: int) -> m.Beat:
    streams = {
        name: m.StreamBeat(
            source="x",
            lane="live",
            ended=False,
            audio_head=0,
            heads={},
            producers={"transcriber": m.ProducerBeat(n=1, positions={"audio": upto})},
            lag_s=0,
            coverage=m.Coverage(),
        )
        for name, upto in positions.items()
    }
    return m.Beat(protocol=1, journal=journal, head=0, at_ns=0, streams=streams, workers={}, captures={})


ONE = {"transcriber": 0}


def test_read_is_what_every_reader_has_passed() -> None:
    stream = beat(s=500).streams["s"]
    assert read_upto(stream, ONE) == 500
    slow = stream.producers | {"transcriber.b": m.ProducerBeat(n=1, positions={"audio": 20})}
    assert read_upto(msgspec.structs.replace(stream, producers=slow), ONE) == 20
    other = {"translator": m.ProducerBeat(n=1, positions={"audio": 900})}
    never = msgspec.structs.replace(stream, producers=other)
    assert read_upto(never, ONE) == 0, "a reader that never came has read nothing"


def test_what_a_reader_still_looks_back_at_is_not_read() -> None:
    two = topology.audio_readers(Settings())
    assert two == {"transcriber": 0, "diarizer": 160_000}
    off = Settings(speakers=SpeakerSettings(enabled=False))
    assert topology.audio_readers(off) == ONE, "one that never comes would keep all audio for ever"
    stream = beat(s=500_000).streams["s"]

    def upto(**positions: int) -> int:
        producers = stream.producers | {"diarizer": m.ProducerBeat(n=1, positions=positions)}
        return read_upto(msgspec.structs.replace(stream, producers=producers), two)

    assert read_upto(stream, two) == 0
    assert [upto(audio=100_000), upto(audio=300_000), upto(audio=700_000)] == [0, 140_000, 500_000]
    assert upto(audio=300_000, meta=2) == 300_000, "the stream is over for it"


@pytest.mark.parametrize(
    ("read_h", "unread_h", "end", "age_h", "full", "goes"),
    [
        (24, 0, 100, 25, False, True),
        (24, 0, 100, 23, False, False),
        (24, 0, 100, 0, True, True),
        (24, 0, 101, 9999, True, False),
        (0, 0, 100, 9999, True, False),
        (24, 48, 101, 49, False, True),
        (24, 48, 101, 47, True, False),
        (0, 48, 100, 49, False, True),
    ],
)
def test_what_is_due(read_h: float, unread_h: float, end: int, age_h: float, full: bool, goes: bool) -> None:
    """Read up to sample 100."""
    limits = RetentionSettings(read_audio_h=read_h, unread_audio_h=unread_h)
    assert due(Candidate(Path("f"), end, 1e6 - age_h * 3600, 1), 100, 1e6, limits, full) is goes


@pytest.mark.parametrize(
    ("read_h", "age_h", "full", "goes"),
    [(24, 47, False, False), (24, 49, False, True), (24, 0, True, True), (0, 9999, True, False)],
)
def test_who_does_not_listen_keeps_no_captioned_audio_for_ever(
    read_h: float, age_h: float, full: bool, goes: bool
) -> None:
    """The diarizer's model is missing, say: read by everybody up to 0, by captions up to 100."""
    limits = RetentionSettings(read_audio_h=read_h)
    assert due(Candidate(Path("f"), 100, 1e6 - age_h * 3600, 1), 0, 1e6, limits, full, 100, full) is goes
    assert not due(Candidate(Path("f"), 101, 1e6 - age_h * 3600, 1), 0, 1e6, limits, full, 100, full), (
        "without captions"
    )


def test_a_full_disk_is_not_kept_full_by_a_diarizer_that_cannot_run(folder: Path) -> None:
    ours = stream_of(folder, "ours", "mic", False)
    for _first, path in backlog.audio_files(ours):
        os.utime(path)
    retention = Retention(folder, "mic", RetentionSettings(), topology.audio_readers(Settings()))
    retention.hear(beat(ours=25), now=10.0)
    assert retention.sweep(now=10.5, disk_full=True) == [], "memory still takes what comes"
    assert len(retention.sweep(now=11.0, disk_full=True, pressing=True)) == 2 and kept(ours) == [20]
    assert retention.unheard == 2, "and it is said"
    assert retention.sweep(now=12.0, disk_full=True, pressing=True) == [] and retention.unheard == 0


def stream_of(root: Path, name: str, source: str, ended: bool) -> Path:
    """Three files of 10 samples."""
    writer = backlog.Writer(root / name, file_samples=10)
    writer.append(0, numbered(0, 30))
    writer.close()
    backlog.write_meta(root / name, meta(stream=name, source=source, ended=ended, end=30 if ended else 0))
    for _first, path in backlog.audio_files(root / name):
        os.utime(path, (0, 0))
    return root / name


def kept(folder: Path) -> list[int]:
    return [first for first, _ in backlog.audio_files(folder)]


def test_retention_deletes_ours_and_what_has_ended_and_never_without_a_beat(folder: Path) -> None:
    ours, theirs = stream_of(folder, "ours", "mic", False), stream_of(folder, "theirs", "b", False)
    ended = stream_of(folder, "ended", "b", True)
    retention = Retention(folder, "mic", RetentionSettings(read_audio_h=1), ONE)
    assert retention.sweep(now=10.0) == []
    retention.hear(beat(ours=30, theirs=30, ended=29), now=10.0)
    assert retention.sweep(now=15.1) == [], "the beat is too old"
    assert len(retention.sweep(now=14.9)) == 4
    assert (kept(ours), kept(theirs), kept(ended)) == ([20], [0, 10, 20], [20])
    retention.hear(beat(other=1), now=20.0)  # a beat names some streams only: what was read stays read
    retention.hear(beat(ended=30), now=21.0)
    assert len(retention.sweep(now=21.0)) == 1
    assert kept(ended) == [] and backlog.read_meta(ended) and backlog.head(ended) == 30


def test_a_stream_that_is_captured_again_under_its_name_is_another_one(folder: Path) -> None:
    """A purged batch file: its name is that of its content."""
    first = stream_of(folder, "f-1", "f", True)
    retention = Retention(folder, "mic", RetentionSettings(read_audio_h=1), ONE)
    retention.hear(beat(**{"f-1": 30}), now=1.0)
    assert len(retention.sweep(now=1.0)) == 3 and retention.sweep(now=1.0) == []
    backlog.remove(first)
    again = stream_of(folder, "f-1", "f", True)
    backlog.write_meta(again, meta(stream="f-1", source="f", ended=True, end=30, started_ns=101 * NS))
    assert retention.sweep(now=1.0) == [], "nobody has read this one, as far as is known"
    retention.hear(beat(**{"f-1": 30}), now=2.0)
    assert len(retention.sweep(now=2.0)) == 3 and kept(again) == []


def test_what_cannot_be_deleted_is_said_once_and_keeps_nobody_from_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file somebody made a folder of, one on a disk with a defect, and a folder that may not be entered."""
    stuck, shut, good = (stream_of(folder, name, "b", True) for name in ("stuck", "shut", "good"))
    (stuck / "audio" / f"{0:020d}.pcm").unlink()
    (stuck / "audio" / f"{0:020d}.pcm").mkdir()
    os.utime(stuck / "audio" / f"{0:020d}.pcm", (0, 0))
    listed, stat = os.listdir, os.stat
    defects = [10]

    def listdir(path: Path) -> list[str]:
        if path == shut / "audio":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    def look(path: Path, **how: bool) -> os.stat_result:
        if defects and path == stuck / "audio" / f"{defects[0]:020d}.pcm":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return stat(path, **how)

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os, "stat", look)
    retention = Retention(folder, "mic", RetentionSettings(read_audio_h=1), ONE)
    retention.hear(beat(stuck=10**6, shut=30, good=30), now=1.0)
    gone = retention.sweep(now=1.0)
    assert (kept(stuck), kept(good)) == ([0, 10], []) and len(gone) == 4
    assert retention.refused.keys() == {shut, *(path for _, path in backlog.audio_files(stuck))}
    say_swept(Log("capture"), retention, gone)
    assert "audio cannot be removed" in caplog.text
    assert retention.sweep(now=2.0) == [] and retention.refused == {}, "said already"
    defects.clear()
    monkeypatch.setattr(os, "listdir", listed)
    assert len(retention.sweep(now=3.0)) == 4 and (kept(stuck), kept(shut)) == ([0], []), "tried again"


@pytest.mark.parametrize("lane", ["live", "batch"])
def test_a_stream_of_any_lane_has_anchors_for_a_jump_of_the_wall_clock(folder: Path, lane: str) -> None:
    where = Settings(data_dir=str(folder), capture=CaptureSettings(file_s=1))
    ring, stream = Ring(30), Stream(where, Source(name="f", kind="file", path="x"), "o", lane)
    stream.find(content="c" * 64)
    writer = WriterThread(ring, Intake(ring), 60.0, lambda: None, Log("capture"))
    writer.stream = stream
    writer.intake.put(numbered(0, RATE), Patience.ALWAYS)
    writer.intake.put(numbered(RATE, 2 * RATE), Patience.ALWAYS)
    ring.close()
    writer.run()
    assert writer.error is None and stream.folder and kept(stream.folder) == [0, RATE, 2 * RATE]
    for _first, path in backlog.audio_files(stream.folder):
        os.utime(path, (0, 0))  # by a clock that was put forward since
    retention = Retention(where.streams, "f", RetentionSettings(unread_audio_h=24), ONE)
    retention.hear(beat(), now=1.0)
    assert retention.sweep(now=1.0) == [], "unread, and a moment old"


def test_a_jump_of_the_wall_clock_makes_no_file_old(folder: Path) -> None:
    """Also not one that nobody has read, where a limit was set for those."""
    ours = stream_of(folder, "ours", "mic", False)  # files of 1970 by their times
    now = backlog.anchor_now(0)
    hours_ns = 3600 * 10**9
    anchors = [(0, 3, now.boot_id), (10, 0, now.boot_id), (20, 3, "of another boot")]  # sample, hours ago
    lines = [Anchor(sample=s, wall_ns=0, boot_ns=now.boot_ns - h * hours_ns, boot_id=b) for s, h, b in anchors]
    (ours / "anchors.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    retention = Retention(folder, "mic", RetentionSettings(read_audio_h=1, unread_audio_h=2), ONE)
    retention.hear(beat(ours=10), now=1.0)
    assert retention.sweep(now=1.0) == [] and kept(ours) == [0, 10, 20]
    old = [msgspec.structs.replace(line, boot_ns=now.boot_ns - 3 * hours_ns) for line in lines]
    (ours / "anchors.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in old))
    retention.sweep(now=1.0)
    assert kept(ours) == [20]


def test_another_journal_has_read_nothing_yet(folder: Path) -> None:
    ended = stream_of(folder, "ended", "b", True)
    retention = Retention(folder, "mic", RetentionSettings(read_audio_h=1), ONE)
    retention.hear(beat(ended=30), now=1.0)
    retention.hear(beat(journal="restored"), now=2.0)
    assert retention.sweep(now=2.0) == [] and kept(ended) == [0, 10, 20]


def test_a_removal_that_was_killed_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grave = folder / ".old.removed-77"
    (grave / "audio").mkdir(parents=True)
    retention = Retention(folder, "mic", RetentionSettings(), ONE)
    retention.hear(beat(), now=1.0)
    retention.sweep(now=1.0)
    assert grave.exists(), "somebody may be at it"
    later = time.time_ns() + 700 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    retention.sweep(now=1.0)
    assert not grave.exists()


@given(
    cuts=st.lists(st.integers(1, 5000), max_size=12), rate_hz=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000])
)
@settings(deadline=None, max_examples=60)
def test_resampling_does_not_depend_on_how_the_sound_was_cut(cuts: list[int], rate_hz: int) -> None:
    sound = (np.random.default_rng(7).standard_normal((12_000, 2)) * 9000).astype("<i2")
    resampler, parts, at = Resampler(rate_hz), list[bytes](), 0
    for cut in cuts:
        parts.append(resampler.push(sound[at : at + cut]))
        at = min(at + cut, len(sound))
    parts += [resampler.push(sound[at:]), resampler.flush()]
    mono = (sound.astype(np.float32) / np.float32(32768)).mean(axis=1, dtype=np.float32)
    whole = soxr.resample(mono, rate_hz, RATE, quality="HQ") if rate_hz != RATE else mono
    assert b"".join(parts) == np.clip(np.rint(whole * 32768), -32768, 32767).astype("<i2").tobytes()


def lost(arrivals: list[float], took_s: float = 0.05) -> list[float]:
    """What is told as lost when buffers of `took_s` arrive at these times."""
    behind = Behind()
    told = [behind.heard(took_s, b - a - took_s) for a, b in itertools.pairwise(arrivals)]
    return [round(t, 2) for t in told if t]


@pytest.mark.parametrize("ppm", [-300, 0, 300])
def test_late_buffers_and_clocks_that_differ_lose_nothing(ppm: int) -> None:
    rng = random.Random(5)
    due = [i * 0.05 * (1 + ppm / 1e6) for i in range(200_000)]  # nearly three hours
    assert lost(sorted(t + rng.random() ** 8 * 0.3 for t in due)) == []


@pytest.mark.parametrize("held", [0, 4, 20])
def test_a_machine_that_stood_still_lost_what_its_driver_did_not_hold(held: int) -> None:
    before = [i * 0.05 for i in range(100)]
    hurry = [before[-1] + 60 + i * 0.001 for i in range(held)]
    after = [before[-1] + 60 + i * 0.05 for i in range(1, 100)]
    (lost_s,) = lost(before + hurry + after)
    assert abs(lost_s - (60 - held * 0.05)) < 0.1


def test_a_device_is_chosen_by_number_name_or_default() -> None:
    found = [Device(0, "HDA Intel", 2, 48_000, False), Device(3, "USB Mic 0", 1, 44_100, True)]
    assert choose(found, "").number == 3
    assert choose(found, "intel").number == 0
    assert choose(found, "3").number == 3
    for wanted in ("7", "bluetooth"):
        with pytest.raises(NoDevice, match="HDA Intel, USB Mic 0"):
            choose(found, wanted)
    with pytest.raises(NoDevice, match="no input device"):
        choose([], "")


def test_a_file_source_keeps_its_pace_and_does_not_hurry_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    intake = Intake(Ring(30))

    def wait(seconds: float) -> bool:
        waited.append(round(seconds, 3))
        now[0] += seconds
        return False

    monkeypatch.setattr(intake, "wait", wait)
    schedule = Schedule(2.0)
    assert schedule.piece_samples == RATE // 5
    assert schedule.wait(intake, 3200) and schedule.wait(intake, 3200)
    now[0] += 60  # the disk was full
    for _ in range(21):
        assert schedule.wait(intake, 3200)
    assert waited == [0.1, 0.1, 0.1], "two seconds of its pace in a hurry, then as before"


def test_open_streams_of_sources_nobody_captures_any_more_are_ended(tmp_path: Path) -> None:
    """Only when too old to be gone on with, and never while their capture lives."""
    settings = Settings(data_dir=str(tmp_path))
    now = time.time_ns()
    for name, old_s in (("gone", 3600), ("young", 5), ("alive", 3600)):
        folder = settings.streams / f"{name}-1"
        folder.mkdir(parents=True)
        meta = backlog.Meta(
            stream=folder.name, source=name, lane="live", origin="x", started_ns=now - old_s * 10**9, resumable=False
        )
        backlog.write_meta(folder, meta)
    hold = "import sys; from common.process import NameLock; from pathlib import Path\n"
    hold += "lock = NameLock(Path(sys.argv[1]), 'capture@alive'); lock.take()\n"
    hold += "print('held', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", hold, str(run_dir(settings))]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        stream = Stream(settings, Source(name="mic", kind="microphone"), "mic", "live")
        stream.find()
        assert stream.end_stale() == {"gone-1": ""}
        other.communicate()
    ended = {p.name: backlog.read_meta(p).ended for p in backlog.streams(settings.streams)}  # type: ignore[union-attr]
    assert ended == {"gone-1": True, "young-1": False, "alive-1": False}


def orphan(where: Settings, source: str) -> Path:
    """An open live stream of long ago, of a source that nobody captures."""
    folder = where.streams / f"{source}-1"
    folder.mkdir(parents=True)
    backlog.write_meta(folder, meta(stream=folder.name, source=source, started_ns=1))
    return folder


def test_a_stream_of_another_source_that_cannot_be_ended_costs_no_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Settings(data_dir=str(tmp_path))
    purged, ended, stuck, plain = (orphan(where, name) for name in ("purged", "ended", "stuck", "plain"))
    ring, stream = Ring(60), Stream(where, Source(name="mic", kind="microphone"), "o", "live")
    writer = WriterThread(ring, Intake(ring), 60.0, lambda: None, Log("capture"))
    stream.find()
    backlog.remove(purged)
    done = meta(stream="ended-1", source="ended", ended=True, end=7, end_reason="stopped")
    backlog.write_meta(ended, done)
    rename = os.rename

    def refuse(old: Path, new: Path) -> None:
        if new == stuck / "meta.json":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    writer.stream = stream
    writer.intake.put(numbered(0, 500), Patience.ALWAYS)
    ring.close()
    writer.run()
    assert writer.error is None and writer.end == 500
    assert not purged.exists() and backlog.read_meta(ended) == done
    assert [(f := backlog.read_meta(p)) and f.ended for p in (stuck, plain)] == [False, True]


def test_a_stream_that_is_gone_on_with_meanwhile_is_not_ended(tmp_path: Path) -> None:
    """Its end waited for space on the disk."""
    where = Settings(data_dir=str(tmp_path))
    folder = orphan(where, "hall")
    stream = Stream(where, Source(name="mic", kind="microphone"), "o", "live")
    stream.find()
    backlog.Writer(folder, 16_000).append(0, numbered(0, 100))
    assert stream.end_stale() == {}
    assert (found := backlog.read_meta(folder)) and not found.ended


def test_a_meta_that_was_being_written_at_a_kill_is_tidied_up(tmp_path: Path) -> None:
    where, source = Settings(data_dir=str(tmp_path)), Source(name="mic", kind="stdin")
    stream = Stream(where, source, "stdin", "live")
    stream.open(time.time_ns(), resumable=False).close()
    assert stream.folder
    (stream.folder / "meta.json.77.new").write_bytes(b"half of i")
    Stream(where, source, "stdin", "live").find()
    assert sorted(p.name for p in stream.folder.iterdir()) == ["audio", "meta.json"]
