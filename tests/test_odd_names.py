"""Names of files that cannot be used, or hardly: one line for each, and the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import backlog
from common import messages as m
from common.feed_client import Appender
from common.given_sources import parse
from common.settings import Settings, UserError
from common.transcripts import Output
from tests.conftest import ROOT, Started, clean_environment

NOT_UTF8 = os.fsdecode(b"talk\xff.wav")


def call(settings: Settings, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, *args]
    env = clean_environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env, timeout=60)


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files is the working one."""
    monkeypatch.chdir(folder)
    return folder


class Texts:
    """What `transcribe` writes of files whose words are in the journal."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.appender = Appender(settings, "transcriber")
        self.told: set[str] = set()

    def write(self, *files: str, form: str = "txt") -> Output:
        output = Output(self.settings, files, form, self.out, False)
        for job in output.jobs:
            if job.stream not in self.told:
                said = m.Transcript(segment="x:0", span=(0, 9), text=job.path.read_text(), language="en", model="x")
                bodies = (said, m.StreamEnded(end=9, reason="end of file"))
                assert isinstance(self.appender.append(job.stream, 0, {"audio": 9}, bodies), m.At)
                self.told.add(job.stream)
            job.state = "done"
            output.settle(job)
        return output

    def found(self) -> dict[str, str]:
        return {p.name: p.read_text().strip() for p in self.out.iterdir()}


@pytest.fixture
def texts(settings: Settings, feed: Started, inside: Path) -> Iterator[Texts]:
    made = Texts(settings, inside / "out")
    yield made
    made.appender.close()


def test_names_that_cannot_be_used_are_a_line_each_and_start_nothing(settings: Settings, inside: Path) -> None:
    (inside / NOT_UTF8).write_bytes(b"any sound")
    done = call(settings, "transcribe", NOT_UTF8, "~nobody-here/a.wav", cwd=inside)
    lines = ["talk\\udcff.wav: its path is not UTF-8; rename it", "~nobody-here/a.wav: No such file or directory"]
    assert (done.returncode, done.stderr.splitlines()) == (1, [f"swapscribe: {line}" for line in lines])
    done = call(settings, "speakers", "enroll", "~nobody-here/a.wav", "--name", "Ann")
    assert (done.returncode, done.stderr) == (2, "swapscribe: ~nobody-here/a.wav: No such file or directory\n")
    settings.data.joinpath("journal").mkdir(parents=True)
    done = call(settings, "export", NOT_UTF8)
    assert (done.returncode, done.stderr) == (2, "swapscribe: 'talk\\udcff.wav' is not UTF-8\n")


def test_sources_of_such_names_are_one_line(inside: Path) -> None:
    (inside / NOT_UTF8).touch()
    for text, says in ((NOT_UTF8, "not UTF-8"), ("mic:\udcff", "not UTF-8"), ("~nobody-here/a.wav", "no such file")):
        with pytest.raises(UserError, match=says):
            parse(text)
    (inside / "~nobody-here.wav").touch()
    assert parse("~nobody-here.wav").path == str(inside / "~nobody-here.wav"), "a shell takes it as it stands, too"


def test_the_longest_names_are_cut_and_the_others_written(texts: Texts) -> None:
    names = [f"{c * n}.wav" for c, n in (("a", 247), ("b", 251), ("ß", 125))] + ["c.wav"]
    for i, name in enumerate(names):
        Path(name).write_text(f"words {i}")
    assert not texts.write(*names).failed
    assert texts.found().keys() >= {f"{'a' * 247}.txt", f"{'b' * 251}.txt", "c.txt"}
    assert not texts.write(*names, form="json").failed
    assert all(len(name.encode()) <= backlog.LONGEST_NAME for name in texts.found()) and len(texts.found()) == 8


def test_a_text_that_cannot_be_written_does_not_stop_the_others(
    texts: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.wav"):
        Path(name).write_text(f"words of {name}")
    (texts.out / "a.txt").mkdir(parents=True)
    output = texts.write("a.wav", "b.wav")
    assert output.failed and (texts.out / "b.txt").read_text() == "words of b.wav\n"
    assert f"swapscribe: a.wav: {texts.out / 'a.txt'}: Is a directory\n" in capsys.readouterr().err


def test_texts_of_sounds_with_one_name_do_not_take_each_others_place(
    texts: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, other = "a/x.wav", "b/x.wav", "b/x.mp3"
    for name in (a, b, other):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"words of {name}")
        texts.write(name)
    found = texts.found()
    assert found["x.txt"] == "words of a/x.wav" and set(found.values()) == {f"words of {n}" for n in (a, b, other)}
    for name in (b, a, other):
        texts.write(name)
    assert texts.found() == found and "in place of" not in capsys.readouterr().err
    Path(a).write_text("other words at that place")
    texts.write(a)
    assert texts.found() == found | {"x.txt": "other words at that place"}
    Path("moved").mkdir()
    Path(a).rename("moved/x.wav")
    texts.write("moved/x.wav")
    assert texts.found().keys() == found.keys()


def test_a_text_that_stands_where_nothing_is_known_of_is_replaced_and_that_is_said(
    texts: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.wav").write_text("words")
    texts.out.mkdir()
    (texts.out / "x.txt").write_text("notes")
    texts.write("x.wav")
    assert f"x.wav: {texts.out / 'x.txt'}, in place of what was there\n" in capsys.readouterr().err
    assert texts.found() == {"x.txt": "words"}


def test_any_name_of_a_file_is_replaced_whole(folder: Path) -> None:
    for name in ("n" * 255, "ß" * 127, os.fsdecode(b"\xff" * 255)):
        backlog.replace_file(folder / name, b"x", durable=False)
        backlog.replace_file(folder / name, b"y", durable=False, alone=False)
        assert (folder / name).read_bytes() == b"y" and not list(folder.glob("*.new"))
