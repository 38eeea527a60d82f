"""The backlog's format: whatever is written, torn, rolled over, killed and removed, reads back as what it was."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given, settings

from common import backlog
from common.backlog import Anchor, Chunk, Hole, Meta, Reader, Writer
from tests.conftest import ROOT

pytestmark = pytest.mark.pure
META = Meta(stream="s", source="mic", lane="live", origin="microphone", started_ns=5, resumable=False)


def pcm(first: int, count: int) -> bytes:
    """Samples that tell their own number."""
    return b"".join(((first + i) % 65536).to_bytes(2, "little") for i in range(count))


def read_all(folder: Path, step: int = 1000) -> list[Chunk]:
    """Everything up to the head, neighbouring samples joined."""
    reader, out, at = Reader(folder), list[Chunk](), 0
    while (chunk := reader.read(at, step)).end > at:
        if chunk.pcm and out and out[-1].pcm:
            out[-1] = msgspec.structs.replace(out[-1], pcm=out[-1].pcm + chunk.pcm)
        else:
            out.append(chunk)
        at = chunk.end
    return out


def test_appended_samples_read_back_over_several_files(folder: Path) -> None:
    writer = Writer(folder, file_samples=100)
    assert writer.append(0, pcm(0, 250)) == 250
    assert writer.append(250, pcm(250, 30)) == 30
    writer.close()
    assert [(first, backlog.size_samples(p)) for first, p in backlog.audio_files(folder)] == [
        (0, 100),
        (100, 100),
        (200, 80),
    ]
    assert read_all(folder, step=37) == [Chunk(start=0, pcm=pcm(0, 280))]
    assert Reader(folder).read(199, 5).pcm == pcm(199, 1), "a read does not cross files"
    assert backlog.head(folder) == 280


def test_a_hole_is_between_the_samples_it_separates(folder: Path) -> None:
    writer = Writer(folder, file_samples=1000)
    writer.append(0, pcm(0, 10))
    writer.append(50, pcm(50, 10), reason="device overflow")
    writer.hole(80, "capture was down")
    assert backlog.head(folder) == writer.end == 80
    hole = Chunk(start=10, hole_end=50, reason="device overflow")
    end = Chunk(start=60, hole_end=80, reason="capture was down")
    assert read_all(folder) == [Chunk(start=0, pcm=pcm(0, 10)), hole, Chunk(start=50, pcm=pcm(50, 10)), end]
    assert Reader(folder).read(30, 5) == Chunk(start=30, hole_end=50, reason="device overflow")
    assert Reader(folder).read(80, 5) == Chunk(start=80)


def test_samples_before_the_end_are_refused(folder: Path) -> None:
    writer = Writer(folder, file_samples=1000)
    writer.append(0, pcm(0, 10))
    with pytest.raises(ValueError, match="before the end 10"):
        writer.append(9, pcm(9, 1))
    with pytest.raises(ValueError, match="before the end 10"):
        writer.hole(10, "none")


def test_a_torn_tail_is_cut_at_start(folder: Path) -> None:
    writer = Writer(folder, file_samples=1000)
    writer.append(0, pcm(0, 10))
    writer.hole(20, "a")
    writer.append(20, pcm(20, 5))
    writer.close()
    with open(folder / "audio" / f"{20:020d}.pcm", "ab") as f:
        f.write(b"\x07")
    with open(folder / "gaps.jsonl", "ab") as f:
        f.write(b'{"start":25,"end":99,"rea')
    assert backlog.head(folder) == 25, "a reader sees neither the odd byte nor the torn line"
    assert Reader(folder).read(20, 100).pcm == pcm(20, 5)
    again = Writer(folder, file_samples=1000)
    assert again.end == 25
    again.append(25, pcm(25, 5))
    again.hole(40, "b")
    assert [h.end for h in backlog.holes(folder)] == [20, 40]
    assert Reader(folder).read(25, 100).pcm == pcm(25, 5)


def test_a_reader_follows_a_writer_into_new_files(folder: Path) -> None:
    writer, reader, at, heard = Writer(folder, file_samples=7), Reader(folder), 0, b""
    assert reader.read(0, 100) == Chunk(start=0)
    for turn in range(50):
        writer.append(writer.end, pcm(writer.end, turn % 11))
        while (chunk := reader.read(at, 5)).pcm:
            heard, at = heard + chunk.pcm, chunk.end
        assert at == writer.end
    assert heard == pcm(0, writer.end)


def test_removed_audio_is_a_hole_and_not_silence(folder: Path) -> None:
    writer, reader = Writer(folder, file_samples=10), Reader(folder)
    writer.append(0, pcm(0, 20))
    writer.append(25, pcm(25, 10), reason="disk full")
    assert reader.read(0, 4).pcm == pcm(0, 4)
    for _first, path in backlog.audio_files(folder)[:2]:
        path.unlink()
    assert reader.read(4, 4) == Chunk(start=4, hole_end=20, reason="audio removed before it was read")
    assert reader.read(20, 4) == Chunk(start=20, hole_end=25, reason="disk full")
    assert reader.read(25, 4).pcm == pcm(25, 4)


def test_an_ended_stream_without_audio_has_its_end(folder: Path) -> None:
    writer = Writer(folder, file_samples=10)
    writer.append(0, pcm(0, 20))
    backlog.write_meta(folder, msgspec.structs.replace(META, ended=True, end=20))
    for _first, path in backlog.audio_files(folder):
        path.unlink()
    assert backlog.head(folder) == 20
    assert Reader(folder).read(3, 4) == Chunk(start=3, hole_end=20, reason="audio removed before it was read")
    assert Reader(folder).read(20, 4) == Chunk(start=20)


def test_an_open_stream_without_audio_ends_where_its_last_anchor_or_hole_is(folder: Path) -> None:
    writer, reader = Writer(folder, file_samples=10), Reader(folder)
    backlog.write_meta(folder, META)
    writer.append(0, pcm(0, 15))
    writer.append(20, pcm(20, 10), reason="device overflow")
    writer.anchor()
    writer.append(30, pcm(30, 5))
    assert reader.read(0, 4).pcm == pcm(0, 4)
    for _first, path in backlog.audio_files(folder):
        path.unlink()
    for again in (reader, Reader(folder)):
        assert again.read(4, 4) == Chunk(start=4, hole_end=15, reason=backlog.GONE)
        assert again.read(15, 4) == Chunk(start=15, hole_end=20, reason="device overflow")
        assert again.read(20, 4) == Chunk(start=20, hole_end=30, reason=backlog.GONE)
        assert again.read(30, 4) == Chunk(start=30), "what came after the last anchor nothing proves: wait"
        assert again.read(33, 4) == Chunk(start=33), "a reader that was further waits"
    assert backlog.head(folder) == 30
    again = Writer(folder, file_samples=10)  # after a kill
    again.append(40, pcm(40, 5), reason="capture was down")
    assert reader.read(33, 4) == Chunk(start=33, hole_end=40, reason="capture was down")
    assert reader.read(40, 9).pcm == pcm(40, 5)


def test_newer_files_that_were_deleted_are_a_hole_after_the_older_ones(folder: Path) -> None:
    writer = Writer(folder, file_samples=10)
    writer.append(0, pcm(0, 35))
    writer.anchor()
    for _first, path in backlog.audio_files(folder)[2:]:
        path.unlink()
    assert backlog.head(folder) == 35
    assert read_all(folder) == [Chunk(start=0, pcm=pcm(0, 20)), Chunk(start=20, hole_end=35, reason=backlog.GONE)]


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_writer_whose_files_are_deleted_goes_on_in_a_new_one(folder: Path, folder_too: bool) -> None:
    writer, reader = Writer(folder, file_samples=1000), Reader(folder)
    writer.append(0, pcm(0, 10))
    assert reader.read(0, 4).pcm == pcm(0, 4)
    shutil.rmtree(folder / "audio")
    if not folder_too:
        (folder / "audio").mkdir()
    assert not writer.removed()
    writer.append(10, pcm(10, 5))
    assert [first for first, _ in backlog.audio_files(folder)] == [10]
    assert reader.read(4, 4) == Chunk(start=4, hole_end=10, reason=backlog.GONE)
    assert reader.read(10, 9).pcm == pcm(10, 5) and backlog.head(folder) == writer.end == 15


def test_the_end_that_anchors_prove_is_read_from_the_last_of_many(folder: Path) -> None:
    writer = Writer(folder, file_samples=1000)
    for _ in range(100):
        writer.append(writer.end, pcm(0, 3))
        writer.anchor()
    assert (folder / "anchors.jsonl").stat().st_size > 2 * backlog.TAIL_BYTES
    with open(folder / "anchors.jsonl", "ab") as f:
        f.write(b'{"sample":999,"wall')
    assert backlog.proven(folder) == 300


def test_the_end_that_holes_prove_is_read_from_the_last_of_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stream that a bad connection has cut to pieces for days: its head is asked for all the time."""
    lines = [Hole(start=960_000 * i, end=960_000 * i + 800, reason="the connection was lost") for i in range(20_000)]
    with open(folder / "gaps.jsonl", "wb") as f:
        f.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines) + b'{"start":99999999')
    decode, decoded = msgspec.json.decode, list[bytes]()

    def count(line: bytes, **how: Any) -> Any:
        decoded.append(line)
        return decode(line, **how)

    monkeypatch.setattr(msgspec.json, "decode", count)
    end = lines[-1].end
    assert backlog.head(folder) == end
    assert Reader(folder).read(end, 1) == Chunk(start=end)
    assert Reader(folder).read(end - 1, 1) == Chunk(start=end - 1, hole_end=end, reason=lines[-1].reason)
    assert len(decoded) < 300
    assert Reader(folder).read(960_007, 1) == Chunk(start=960_007, hole_end=960_800, reason=lines[1].reason)


def test_meta_survives_and_garbage_is_no_meta(folder: Path) -> None:
    assert backlog.read_meta(folder) is None
    backlog.write_meta(folder, META)
    assert backlog.read_meta(folder) == META
    (folder / "meta.json").write_bytes(b'{"stream":')
    assert backlog.read_meta(folder) is None


def test_two_processes_may_write_one_meta_at_once(folder: Path) -> None:
    """Two captures end the same stream that nobody goes on with."""
    program = "import sys; from pathlib import Path; from tests.test_backlog import META, backlog\n"
    program += "for _ in range(300): backlog.write_meta(Path(sys.argv[1]), META)"
    argv = [sys.executable, "-c", program, str(folder)]
    both = [subprocess.Popen(argv, cwd=ROOT) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert backlog.read_meta(folder) == META and [p.name for p in folder.iterdir()] == ["meta.json"]


def test_streams_are_listed_without_those_being_removed(folder: Path) -> None:
    for name in ("b", "a"):
        (folder / name).mkdir()
        backlog.write_meta(folder / name, META)
    (folder / "no-meta").mkdir()
    (folder / ".c.removed-1").mkdir()  # a removal that was killed half way
    backlog.write_meta(folder / ".c.removed-1", META)
    assert [p.name for p in backlog.streams(folder)] == ["a", "b"]
    backlog.remove(folder / "b")
    assert [p.name for p in backlog.streams(folder)] == ["a"]
    assert backlog.streams(folder / "nowhere") == []


def test_what_may_not_be_entered_is_no_stream(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lost+found`, where the audio has a disk of its own."""
    for name in ("a", "lost+found"):
        (folder / name).mkdir()
    backlog.write_meta(folder / "a", META)
    stat = os.stat

    def look(path: Path, **how: bool) -> os.stat_result:
        if "lost+found" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", look)
    assert [p.name for p in backlog.streams(folder)] == ["a"]


def test_anchors_read_back_without_a_torn_line(folder: Path) -> None:
    writer = Writer(folder, file_samples=10)
    anchor = Anchor(sample=16000, wall_ns=1, boot_ns=2, boot_id="b")
    writer.anchor(anchor)
    writer.append(0, pcm(0, 5))
    writer.anchor()
    with open(folder / "anchors.jsonl", "ab") as f:
        f.write(b'{"sample":')
    first, second = backlog.anchors(folder)
    assert first == anchor
    assert second.sample == 5 and second.boot_id == backlog.boot_id()


def test_a_full_disk_takes_whole_samples_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take an odd number of bytes and refuse the rest."""
    writer = Writer(folder, file_samples=1000)
    writer.append(0, pcm(0, 10))
    real, room = os.write, [7]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(fd, bytes(data)[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        writer.append(10, pcm(10, 10))
    assert writer.end == backlog.head(folder) == 13
    with pytest.raises(OSError, match="No space"):
        writer.hole(20, "disk full")
    assert backlog.holes(folder) == [] and writer.end == 13
    monkeypatch.undo()
    writer.append(13, pcm(13, 7))
    assert read_all(folder) == [Chunk(start=0, pcm=pcm(0, 20))]


def test_a_writer_notices_that_its_stream_was_removed(folder: Path) -> None:
    writer = Writer(folder / "s", file_samples=1000)
    assert not writer.removed()
    writer.append(0, pcm(0, 10))
    assert not writer.removed()
    backlog.remove(folder / "s")
    assert writer.removed()


APPEND = st.tuples(st.just("append"), st.integers(0, 120))
HOLE = st.tuples(st.just("hole"), st.integers(1, 90))
KILL = st.tuples(st.just("kill"), st.sampled_from(["clean", "odd byte", "torn gap", "empty file"]))
OPS = st.lists(st.one_of(APPEND, APPEND, HOLE, KILL), max_size=25)


@given(ops=OPS, file_samples=st.integers(1, 64), step=st.integers(1, 80))
@example(ops=[("append", 5), ("kill", "empty file"), ("hole", 3), ("append", 5)], file_samples=64, step=7)
@settings(deadline=None, max_examples=150)
def test_whatever_happens_the_backlog_reads_back(
    ops: list[tuple[str, int | str]], file_samples: int, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    writer, reader = Writer(folder, file_samples), Reader(folder)
    truth: list[int | None] = []  # per sample its number, or None in a hole
    heard: list[int | None] = []
    for verb, arg in ops:
        if verb == "append":
            assert isinstance(arg, int)
            writer.append(writer.end, pcm(writer.end, arg))
            truth += range(len(truth), len(truth) + arg)
        elif verb == "hole":
            assert isinstance(arg, int)
            writer.hole(writer.end + arg, "r")
            truth += [None] * arg
        else:
            writer.close()
            files = backlog.audio_files(folder)
            if arg == "odd byte" and files and files[-1][0] + backlog.size_samples(files[-1][1]) == writer.end:
                with files[-1][1].open("ab") as f:
                    f.write(b"x")
            if arg == "torn gap":
                with (folder / "gaps.jsonl").open("ab") as f:
                    f.write(b'{"start":1,')
            if arg == "empty file":
                (folder / "audio" / f"{writer.end:020d}.pcm").touch()
            writer = Writer(folder, file_samples)
        assert writer.end == backlog.head(folder) == len(truth)
        while (chunk := reader.read(len(heard), step)).end > len(heard):  # a reader that never stops reading
            heard += _numbers(chunk)
        assert heard == truth
    writer.close()
    late = [n for chunk in read_all(folder, step) for n in _numbers(chunk)]
    assert late == truth
    assert sum(h.end - h.start for h in backlog.holes(folder)) == truth.count(None)
    assert all(isinstance(h, Hole) and h.reason == "r" for h in backlog.holes(folder))


def _numbers(chunk: Chunk) -> list[int | None]:
    if not chunk.pcm:
        return [None] * (chunk.end - chunk.start)
    return [int.from_bytes(chunk.pcm[i : i + 2], "little") for i in range(0, len(chunk.pcm), 2)]
